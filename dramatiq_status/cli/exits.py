"""Exit statuses, and the errors that end a command with one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

COMPLETED: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNKNOWN: Final = 3
UNFINISHED: Final = 4
UNREACHABLE: Final = 5
INTERRUPTED: Final = 130

#: Text about the exit statuses in ``--help``.
EXPLANATION: Final = """\
exit status of get, wait and watch, the first of these that is true of a job:
  5  the store does not answer
  3  the job is unknown, or its status has expired or was deleted
  1  the job failed or was cancelled
  4  the job is not finished, or not within --timeout
  0  all jobs are completed
exit status of cancel:
  5, 3  as above
  1  the job was over before, or ended in another way
  4  the job was asked to stop, and still runs
  0  all jobs are cancelled
other exit statuses:
  2  wrong arguments
  130  stopped by Ctrl-C
"""

_BY_RANK: Final = (UNREACHABLE, UNKNOWN, FAILED, UNFINISHED, COMPLETED)


class CommandError(Exception):
    """Ends a command with a line on stderr.

    Parameters:
      message(str): What is wrong, where, and what to do.
      status(int): The exit status.
    """

    def __init__(self, message: str, status: int = USAGE) -> None:
        super().__init__(message)
        self.status = status


def worst(statuses: Iterable[int]) -> int:
    """Return the exit status of many jobs.

    >>> worst([0, 4, 1]), worst([])
    (1, 0)
    """
    found = set(statuses)
    return next((status for status in _BY_RANK if status in found), COMPLETED)
