"""Jobs in a state that stores do not index, among the jobs of a state that they do index.

A cancelled job is a failed one, for example.  A page of the cancelled jobs is read from pages of the failed jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .snapshot import Snapshot
from .words import state_of

#: States that stores do not index.  Each has the indexed states whose jobs are searched for it, in this order.
AMONG: Final[dict[str, tuple[str, ...]]] = {
    "cancelled": ("failed",),
    "stalled": ("working", "queued"),
    "retrying": ("queued",),
    "scheduled": ("queued",),
}

#: Maximum number of jobs that are read for a page of the dashboard, and of jobs that are read at once.
MAX_SEARCHED: Final = 1000
_AT_ONCE: Final = 250


def is_in(snapshot: Snapshot, state: str) -> bool:
    """Whether a job is in a state, by its lower-case word."""
    return state_of(snapshot).lower() == state


class StatePage:
    """A page of the jobs in a state.  While :attr:`to_read` is not zero, the caller reads this number of jobs in the
    state :attr:`read_from`, after the cursor :attr:`read_after`, and passes them to :meth:`take`.

    Parameters:
      state(str): An indexed state, or a key of :data:`AMONG`; None for all states.
      limit(int): Maximum number of jobs.
      after(str): :attr:`after` of the page before.
      searched(int): Maximum number of jobs that are read for a key of :data:`AMONG`.
    """

    def __init__(self, state: str | None, limit: int, after: str | None = None, searched: int = MAX_SEARCHED) -> None:
        #: The jobs of the page, newest first in each state that is read.
        self.jobs: list[Snapshot] = []
        #: Cursor of the job after which the caller reads; None to read from the beginning.
        self.read_after: str | None = after
        self._state = state if state in AMONG else None
        self._states: tuple[str | None, ...] = AMONG.get(state or "", (state,))
        # Position of the present state in `_states`; the number of states when the list has ended.
        self._position = 0
        # The cursor of a page begins with the state that is read, except while the first state is read.
        read_from, dot, cursor = (after or "").partition(".")
        if dot and read_from in self._states[1:]:
            self._position, self.read_after = self._states.index(read_from), cursor or None
        self._limit = limit
        self._left = searched
        #: Number of jobs to read; 0 when the page is complete.
        self.to_read: int = limit if self._state is None else _AT_ONCE

    @property
    def read_from(self) -> str | None:
        """The state to read; None for all states."""
        return self._states[self._position]

    @property
    def after(self) -> str | None:
        """Cursor of the next page; None where the list ends."""
        if self._position == len(self._states):
            return None
        return f"{self.read_from}.{self.read_after or ''}" if self._position else self.read_after

    def take(self, found: Sequence[Snapshot]) -> None:
        """Take the jobs that were read."""
        requested, self.to_read = self.to_read, 0
        self._left -= len(found)
        for snapshot in found:
            self.read_after = snapshot.cursor
            if self._state is None or is_in(snapshot, self._state):
                self.jobs.append(snapshot)
                if len(self.jobs) == self._limit:
                    return
        if len(found) < requested:
            self._position, self.read_after = self._position + 1, None
            if self._position == len(self._states):
                return
        if self._state is not None and self._left > 0:
            self.to_read = min(_AT_ONCE, self._left)
