"""Operations: the entries of a message buffer."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import repeat
from typing import NamedTuple

from .._interrupts import Sleep
from ..record import Record
from ..update import Changes, EnqueueId


class Write(NamedTuple):
    """Operation that sets fields, then adds to the progress, then carries out changes.  Only a write from outside of a
    run has a state.
    """

    fields: Record
    increment: int | float = 0
    urgent: bool = True
    state: int | None = None
    changes: Changes | None = None


class Start(NamedTuple):
    """Operation that begins the run."""

    fields: Record
    attempts: int


class Finish(NamedTuple):
    """Operation that ends the run, when Dramatiq is done with the message."""

    state: int
    fields: Record
    ttl: int


class Enqueue(NamedTuple):
    """Operation that marks the message as queued."""

    enqueue_id: EnqueueId
    fields: Record


class Withdrawal(NamedTuple):
    """Operation that takes back an enqueue that has ended in an error."""

    enqueue_id: EnqueueId


class Confirmation(Sleep):
    """Object on which a thread waits until the store has all earlier operations of a message."""

    __slots__ = ("stored",)

    def __init__(self) -> None:
        super().__init__()
        #: Whether the store has all of them; None while that is unknown.
        self.stored: bool | None = None

    def release(self, stored: bool) -> None:
        """Set the result, and wake the waiting thread.  A second call has no effect."""
        if self.stored is None:
            self.stored = stored
            self.wake()

    def wait(self, timeout: float) -> bool:
        """Wait for the result for at most `timeout` seconds.

        An interrupted thread may wait again.

        Returns:
          bool: Whether the store has all earlier operations; False without a result.
        """
        if self.stored is None:
            self.sleep(timeout)
        return bool(self.stored)


Operation = int | float | Write | Start | Finish | Enqueue | Withdrawal | Confirmation


def plain_number(value: int | float) -> int | float:
    """Return a number as a plain int or float: the store gets no instances of derived classes."""
    return int(value) if isinstance(value, int) else float(value)


def pop_first(operations: deque[Operation], number: int) -> Iterator[Operation]:
    """Remove the first operations, and none that another thread adds meanwhile.

    A caller passes the iterator to one call into C: an interrupt strikes before that call or after it.
    """
    return map(deque.popleft, repeat(operations, number))
