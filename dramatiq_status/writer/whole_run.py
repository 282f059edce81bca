"""Runs that have ended before any of their operations was merged: one update each, made without a merger."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from ..update import EnqueueId, Kind, Update
from .operations import Confirmation, Finish, Operation, Start, pop_first

#: Number of operations of such a run: its start, its end, and the confirmation for which its acknowledgement waits.
WHOLE_RUN: Final = 3

# Reading an attribute of an Enum takes five times as long as reading a global.
_RUN: Final = Kind.RUN


def whole_run(operations: Sequence[Operation], enqueue_id: EnqueueId, run_token: int) -> Update | None:
    """Make the one update of a run that has written nothing between its start and its end; None for other operations.

    Most short runs write nothing.  To merge the operations takes three times as long.
    """
    if len(operations) != WHOLE_RUN:
        return None
    start, finish = operations[0], operations[1]
    if not isinstance(start, Start) or not isinstance(finish, Finish) or not isinstance(operations[2], Confirmation):
        return None
    fields = {**start.fields, **finish.fields}
    # Arguments by position take half of the time of arguments by name.
    return Update(_RUN, enqueue_id, run_token, 1, True, False, finish.state, start.attempts, fields, 0, finish.ttl)


def release_run(operations: deque[Operation]) -> None:
    """Release the confirmation of a run whose one update is stored."""
    confirmation = operations[2]
    assert isinstance(confirmation, Confirmation)
    confirmation.release(True)


def remove_run(operations: deque[Operation]) -> None:
    """Remove the operations of a run."""
    list(pop_first(operations, WHOLE_RUN))
