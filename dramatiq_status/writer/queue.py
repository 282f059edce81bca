"""The queue of the message buffers that have updates to send."""

from __future__ import annotations

import math
from collections import deque

from .. import _time as time
from .._log import logger
from ..circuit_breaker import CircuitBreaker
from ..errors import BackendError
from .backlog import MAX_UNMEASURED, Backlog
from .buffer import MessageBuffer
from .operations import Confirmation


class SendQueue:
    """The buffers with something to send: at once, or later.

    Only the leader calls the methods that change it.  An interrupt may strike the leader between any two instructions:
    a buffer is then in two places, and never in none.

    Parameters:
      breaker(CircuitBreaker)
      max_pending(int): Maximum number of messages that wait while the store is down.
      max_pending_bytes(int): Maximum number of bytes of their updates.
    """

    def __init__(self, breaker: CircuitBreaker, max_pending: int, max_pending_bytes: int) -> None:
        self._breaker = breaker
        self._max_pending = max_pending
        self._max_pending_bytes = max_pending_bytes
        #: Buffers that have signalled, some of them more than once. Any thread appends to it.
        self.signals: deque[MessageBuffer] = deque()
        #: Buffers to send at once, in order.
        self.ready: dict[MessageBuffer, None] = {}
        #: Buffers to send later, with the times by the monotonic clock.
        self.later: dict[MessageBuffer, float] = {}
        #: The earliest of these times.
        self.next_due: float = math.inf
        self.backlog: Backlog = Backlog(max_pending, max_pending_bytes, self.is_waiting)
        #: Confirmations for which :meth:`.Writer.drain` waits.  While there is one, throttled buffers are sent at once.
        self.drains: deque[Confirmation] = deque()
        # Whether it was logged that the backlog is full.
        self._is_full = False

    def is_waiting(self, buffer: MessageBuffer) -> bool:
        """Return whether a buffer waits to be sent."""
        return buffer in self.ready or buffer in self.later

    @property
    def is_empty(self) -> bool:
        """Whether no collected buffer waits to be sent.  Buffers whose signals were not collected do not count."""
        return not (self.ready or self.later)

    @property
    def is_backlogged(self) -> bool:
        """Whether so many buffers have signalled, or were noted, that updates may have to be dropped."""
        return len(self.signals) > min(MAX_UNMEASURED, self._max_pending // 10) or self.backlog.must_measure

    def alarm(self) -> float:
        """Return the time of the next work for the writer's thread, by the monotonic clock."""
        if self._breaker.down:
            return self._breaker.retry_at
        return 0.0 if self.signals or self.ready else self.next_due

    def count_unsent(self) -> tuple[int, int]:
        """Count the updates that are not stored yet, and their messages; on any thread."""
        # Each list is a copy by one call into C, while other threads write.
        buffers = {*list(self.ready), *list(self.later), *list(self.signals)}
        counts = {buffer: buffer.count_unsent() for buffer in buffers}
        return sum(counts.values()), len({buffer.message_id for buffer, count in counts.items() if count})

    def gather(self) -> None:
        """Collect the buffers that have signalled, in one pass.

        Buffers that signal meanwhile wait for the next pass, so that the leader finishes however fast other threads
        write.
        """
        signals, now = self.signals, time.monotonic()
        listed = list(signals)
        for buffer in dict.fromkeys(listed):
            self._collect(buffer, now)
        # This comes last, so that the signals are collected again if an interrupt strikes before it.
        for _ in listed:
            signals.popleft()

    def gather_due(self) -> None:
        """Collect the buffers whose time has come; all of them for a drain."""
        now = time.monotonic()
        if self.drains or now >= self.next_due:
            for buffer in [buffer for buffer, due in self.later.items() if self.drains or due <= now]:
                del self.later[buffer]
                self._collect(buffer, now)
            self.next_due = min(self.later.values(), default=math.inf)

    def _collect(self, buffer: MessageBuffer, now: float) -> None:
        due = buffer.collect(now)
        if due is not None and now < buffer.retry_at and not self.drains:
            # No thread waits for a postponed buffer.
            buffer.give_up()
            self.backlog.note(buffer)
            due = buffer.retry_at
        if due == 0.0 or (due and self.drains):
            self.ready[buffer] = None
            if self.later:
                self.later.pop(buffer, None)
            if self._breaker.down:
                self.backlog.note(buffer)
                if self._breaker.blocked:
                    buffer.give_up()
        elif due is not None:
            self.later[buffer] = due
            self.next_due = min(self.next_due, due)

    def remove(self, buffer: MessageBuffer) -> None:
        """Remove a buffer that has no further updates to send at once."""
        self.ready.pop(buffer, None)

    def move_to_back(self, buffer: MessageBuffer) -> None:
        """Send a buffer after all others that are ready."""
        # The dict is replaced as a whole, so that an interrupt loses no buffer.
        self.ready = {**{other: None for other in self.ready if other is not buffer}, buffer: None}

    def move_behind(self, buffer: MessageBuffer, creator: MessageBuffer) -> None:
        """Move a buffer behind the buffer whose updates create the missing record; on the writer's thread."""
        if self.later.pop(creator, None) is not None:
            # Only the throttle holds the creator back.
            self.ready[creator] = None
        elif creator not in self.ready:
            # The store has lost the record of a running message.
            creator.restore()
        del self.ready[buffer]
        self.ready[buffer] = None

    def postpone(self, buffer: MessageBuffer, pause: float) -> None:
        """Send a buffer again after `pause` seconds, and let no thread wait for it.

        The leader calls this if one server of many does not answer, calls with this buffer alone have failed, or a
        record is missing.
        """
        buffer.give_up()
        self.later[buffer] = buffer.retry_at = due = time.monotonic() + pause
        self.next_due = min(self.next_due, due)
        # This comes last: after an interrupt before it, the buffer is in both places.
        self.remove(buffer)
        self.backlog.note(buffer)

    def fail(self, error: BackendError) -> None:
        """Begin or continue an outage: let no thread wait for the store."""
        self._breaker.failed(error)
        self.gather()
        for buffer in self.ready:
            buffer.give_up()
            if buffer not in self.backlog:
                self.backlog.note(buffer)

    def clear(self) -> None:
        """Forget the buffers that are ready, because an unexpected error was raised for one of them."""
        for buffer in self.ready:
            buffer.failed_alone = False
            buffer.give_up()
        self.ready.clear()

    def make_room(self) -> None:
        """Drop updates until the backlog is within its limits; on the writer's thread."""
        self.backlog.measure()
        if not self.backlog:
            self._is_full = False
        while (buffer := self.backlog.pop_excess()) is not None:
            self.ready.pop(buffer, None)
            self.later.pop(buffer, None)
            buffer.failed_alone = False
            self._breaker.dropped(buffer.drop())
            if not self._is_full:
                self._is_full = True
                logger.warning(
                    "More than %d messages, or more than %d bytes of their updates, wait for the status store: from "
                    "now on, updates of messages that finished first are dropped first.",
                    self._max_pending,
                    self._max_pending_bytes,
                )
