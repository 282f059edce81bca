"""Jobs in a state that stores do not index, among the jobs of a state that they do index.

A cancelled job is a failed one, for example.  A page of the cancelled jobs is read from pages of the failed jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .snapshot import Snapshot
from .words import state_of

#: By the state of such jobs: the state that stores index.
AMONG: Final = {"cancelled": "failed", "stalled": "working", "retrying": "queued", "scheduled": "queued"}

#: Maximum number of jobs that are read for a page of the dashboard, and at once.
MAX_SEARCHED: Final = 1000
_AT_ONCE: Final = 250


def is_in(snapshot: Snapshot, state: str) -> bool:
    """Whether a job is in a state, by its lower-case word."""
    return state_of(snapshot).lower() == state


class StatePage:
    """A page of the jobs in a state.  While :attr:`to_read` is not zero, the caller reads so many jobs in the state
    :attr:`read_from` and passes them to :meth:`take`.

    Parameters:
      state(str): A state that stores index, or a key of :data:`AMONG`.
      limit(int): Maximum number of jobs.
      after(str): Cursor of the page before.
      searched(int): Maximum number of jobs that are read for a key of :data:`AMONG`.
    """

    def __init__(self, state: str | None, limit: int, after: str | None = None, searched: int = MAX_SEARCHED) -> None:
        #: The jobs of the page, last changed first.
        self.jobs: list[Snapshot] = []
        #: Cursor from which to read; in the end that of the next page, and None where the list ends.
        self.after: str | None = after
        #: The state to read.
        self.read_from: str | None = state if state is None else AMONG.get(state, state)
        self._state = state if state in AMONG else None
        self._limit = limit
        self._left = searched
        #: Number of jobs to read; 0 when the page is complete.
        self.to_read: int = limit if self._state is None else _AT_ONCE

    def take(self, found: Sequence[Snapshot]) -> None:
        """Take the jobs that were read."""
        asked, self.to_read = self.to_read, 0
        self._left -= len(found)
        for snapshot in found:
            self.after = snapshot.cursor
            if self._state is None or is_in(snapshot, self._state):
                self.jobs.append(snapshot)
                if len(self.jobs) == self._limit:
                    return
        if len(found) < asked:
            self.after = None
        elif self._left > 0:
            self.to_read = min(_AT_ONCE, self._left)
