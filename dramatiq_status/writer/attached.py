"""Updates of message buffers that are sent with a command of the broker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from .. import _time as time
from ..update import Outcome, Update
from .buffer import MessageBuffer

#: Outcomes after which an update is not sent again.
_FINAL: Final = frozenset(Outcome).difference((Outcome.MISSING, Outcome.UNAVAILABLE, Outcome.UNSTORABLE))

_APPLIED: Final = Outcome.APPLIED


class AttachmentWriter(Protocol):
    """The part of the writer that attached buffers use."""

    deferred: dict[MessageBuffer, float]

    def put(self, buffer: MessageBuffer) -> None: ...


class AttachedBuffers:
    """The updates of some buffers, sent in one transaction with a command of the broker.

    The leader may send the same updates at the same time.  The store recognizes repeated updates, because updates of
    runs and enqueues have sequence numbers or enqueue ids.

    Parameters:
      writer(AttachmentWriter)
      *buffers(MessageBuffer): Buffers whose updates may be sent twice.
    """

    #: Whether the store has the updates, or gets them from the writer.
    may_be_stored: bool = False

    def __init__(self, writer: AttachmentWriter, *buffers: MessageBuffer) -> None:
        self._writer = writer
        self._buffers = buffers
        self._taken: list[tuple[MessageBuffer, list[Update]]] = []

    def collect(self) -> list[tuple[str, Update]]:
        now = time.monotonic()
        found = []
        self._taken = []
        for buffer in self._buffers:
            updates = buffer.take(now)
            self._taken.append((buffer, updates))
            for update in updates:
                found.append((buffer.message_id, update))
        return found

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        self.may_be_stored = True
        first = 0
        for buffer, updates in self._taken:
            found = outcomes[first : first + len(updates)]
            first += len(updates)
            # The usual outcomes are counted first, because Python takes long for the hash of an Enum.
            if (found.count(_APPLIED) == len(found) or _FINAL.issuperset(found)) and not buffer.settle(updates, found):
                self._writer.deferred.pop(buffer, None)
            else:
                # The leader sends the updates again, and processes their outcomes.
                self._writer.put(buffer)

    def send_separately(self) -> None:
        self.may_be_stored = True
        for buffer in self._buffers:
            self._writer.put(buffer)
