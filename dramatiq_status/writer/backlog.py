"""The messages that wait because the store does not take their updates."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from .buffer import MessageBuffer

#: Maximum number of noted buffers, or of signals, until the writer's thread is woken to measure the backlog.
MAX_UNMEASURED: Final = 16


class Backlog:
    """The buffers that wait because the store does not take their updates, and the number of bytes in them.

    Each thread that sends may note a buffer.  An interrupt may strike such a thread, so only the writer's own thread,
    which no interrupt strikes, measures the noted buffers and updates the sum.

    Parameters:
      max_buffers(int): Maximum number of buffers.
      max_bytes(int): Maximum number of bytes in all of them.
      is_waiting(Callable): Returns whether a buffer still waits.
    """

    def __init__(self, max_buffers: int, max_bytes: int, is_waiting: Callable[[MessageBuffer], bool]) -> None:
        self._max_buffers = max_buffers
        self._max_bytes = max_bytes
        self._is_waiting = is_waiting
        self._noted: dict[MessageBuffer, None] = {}
        # _sizes: The measured buffers and their sizes in bytes. _finished: The measured buffers of finished messages,
        # the earliest first. An OrderedDict finds its first item in constant time, even after many first items were
        # removed.
        self._sizes: OrderedDict[MessageBuffer, int] = OrderedDict()
        self._finished: OrderedDict[MessageBuffer, None] = OrderedDict()
        self._bytes = 0

    def __contains__(self, buffer: MessageBuffer) -> bool:
        return buffer in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def must_measure(self) -> bool:
        """Whether so many buffers were noted that they have to be measured now."""
        return len(self._noted) > MAX_UNMEASURED

    @property
    def has_room(self) -> bool:
        """Whether the measured buffers leave room for another."""
        return len(self._sizes) < self._max_buffers and self._bytes < self._max_bytes

    def note(self, buffer: MessageBuffer) -> None:
        """Note that a buffer waits, no longer waits, or has another size."""
        self._noted[buffer] = None

    def update(self, buffer: MessageBuffer) -> None:
        """Note that a buffer may have changed, if it was measured."""
        if buffer in self._sizes:
            self._noted[buffer] = None

    def measure(self) -> None:
        """Measure the noted buffers."""
        noted, self._noted = self._noted, {}
        for buffer in noted:
            size = buffer.size() if self._is_waiting(buffer) else None
            if size is None:
                self._forget(buffer)
            else:
                # A measured buffer keeps its position in the order.
                self._bytes += size - self._sizes.get(buffer, 0)
                self._sizes[buffer] = size
                if buffer.closed:
                    self._finished[buffer] = None

    def pop_excess(self) -> MessageBuffer | None:
        """Remove and return a buffer if there are too many, or too many bytes.

        The removed buffer is the one of the message that finished first.  If no message has finished, it is the buffer
        that has waited longest.
        """
        if len(self._sizes) <= self._max_buffers and self._bytes <= self._max_bytes:
            return None
        buffer = next(iter(self._finished or self._sizes))
        self._forget(buffer)
        return buffer

    def _forget(self, buffer: MessageBuffer) -> None:
        self._bytes -= self._sizes.pop(buffer, 0)
        self._finished.pop(buffer, None)
