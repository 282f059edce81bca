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

_UNREACHED: Final = """\
  5  the store does not answer
  3  the job is unknown, or its status has expired or was deleted
"""

_OF_JOBS: Final = f"""\
{_UNREACHED}\
  1  the job failed or was cancelled
  4  the job is not finished, or not within --timeout
  0  all jobs are completed
"""

_OF_CANCEL: Final = """\
  1  the job was over before, or ended in another way
  4  the job was asked to stop, and still runs
  0  all jobs are cancelled
"""

_OTHERS: Final = """\
other exit statuses:
  2  wrong arguments
  130  stopped by Ctrl-C
"""

#: Text about the exit statuses of all commands in ``--help``.
EXPLANATION: Final = f"""\
exit status of get, wait and watch, the first of these that is true of a job:
{_OF_JOBS}\
exit status of cancel:
  5, 3  as for get, wait and watch
{_OF_CANCEL}\
{_OTHERS}"""

_FIRST: Final = "exit status, the first of these that is true of a job:"

#: By command: the text about its exit statuses in its ``--help``.
EXPLANATIONS: Final = {
    "get": f"{_FIRST}\n{_OF_JOBS.replace(', or not within --timeout', '')}{_OTHERS}",
    "wait": f"{_FIRST}\n{_OF_JOBS.replace(', or not', '')}{_OTHERS}",
    "watch": f"{_FIRST}\n{_OF_JOBS.replace(', or not', '')}{_OTHERS}",
    "cancel": f"{_FIRST}\n{_UNREACHED}{_OF_CANCEL}{_OTHERS}",
}

_BY_RANK: Final = (UNREACHABLE, UNKNOWN, FAILED, UNFINISHED, COMPLETED)


class CommandError(Exception):
    """Error that ends a command with a line on stderr.

    Parameters:
      message(str): What is wrong, where, and what to do.
      status(int): The exit status.
    """

    def __init__(self, message: str, status: int = USAGE) -> None:
        super().__init__(message)
        self.status = status


def worst(statuses: Iterable[int]) -> int:
    """Return the exit status for many jobs: the first in ``_BY_RANK`` that one of the jobs has, or 0 without jobs.

    >>> worst([0, 4, 1]), worst([])
    (1, 0)
    """
    found = set(statuses)
    return next((status for status in _BY_RANK if status in found), COMPLETED)
