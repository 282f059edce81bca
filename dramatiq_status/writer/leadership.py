"""The leadership: one thread at a time sends the updates of all messages.

The leader is the writer's thread, or a worker's thread that has to wait for a final state in any case.  Such a worker's
thread sends the updates of all runs and enqueues itself. If it handed its update to the writer's thread, the switch
between the threads would take longer than the round trip.  This is group commit, as databases do it.
"""

from __future__ import annotations

import threading
from collections import deque

from .. import _time as time
from .._interrupts import Sleep
from .._log import logger
from ..circuit_breaker import CircuitBreaker
from .operations import Confirmation
from .queue import SendQueue
from .sender import Sender


class Wakeup(Sleep):
    """The sleep of the writer's thread."""

    def __init__(self) -> None:
        super().__init__()
        #: is_asleep: Whether the writer's thread sleeps. Only that thread sets it to False. If another thread set it,
        #: and an interrupt struck before its wake(), the writer's thread would not be woken. wake_at: End of the sleep,
        #: by the monotonic clock.
        self.is_asleep: bool = False
        self.wake_at: float = 0.0


class Leadership:
    """The leadership, and the threads that wait for it.

    Parameters:
      breaker(CircuitBreaker)
      queue(SendQueue)
      sender(Sender)
      wakeup(Wakeup)
    """

    def __init__(self, breaker: CircuitBreaker, queue: SendQueue, sender: Sender, wakeup: Wakeup) -> None:
        self._breaker = breaker
        self._queue = queue
        self._sender = sender
        self._wakeup = wakeup
        #: The leader holds it while it collects and sends.
        self.lock: threading.Lock = threading.Lock()
        #: Confirmations of the threads that wait for their final state to be stored.
        self.waiting: deque[Confirmation] = deque()
        #: Confirmation of the thread that was woken to lead next; None for none.
        self.next_leader: Confirmation | None = None

    @property
    def is_taken(self) -> bool:
        """Whether a thread leads, or is about to lead."""
        return self.next_leader is not None or self.lock.locked()

    def lead_or_wait(self, confirmation: Confirmation, deadline: float) -> None:
        """Wait for a confirmation until the deadline, and lead where no other thread does."""
        try:
            while confirmation.stored is None and not self._breaker.down and time.monotonic() < deadline:
                if not self.lock.locked():
                    self._lead()
                    continue
                self.waiting.append(confirmation)
                if self.lock.locked():
                    # Otherwise no leader is left to wake this thread.
                    confirmation.sleep(max(0.0, deadline - time.monotonic()))
        finally:
            if confirmation.stored is None or self.next_leader is confirmation or self._is_abandoned():
                # The thread was interrupted, its deadline is over, the store is down, or another thread stored its
                # final state before it could lead.  The writer's thread sends the updates instead.
                self._release(confirmation)

    def _is_abandoned(self) -> bool:
        """Whether there are unsent updates and no thread to send them, because an interrupt struck before the
        leadership was passed on.
        """
        is_left = bool(self._queue.signals or self.waiting or self._queue.ready)
        return is_left and self._wakeup.is_asleep and not self.is_taken

    def _release(self, confirmation: Confirmation) -> None:
        # The deque may contain the confirmation several times: once for each time that the thread began to wait.
        while confirmation in self.waiting:
            try:
                self.waiting.remove(confirmation)
            except ValueError:
                break
        if self.next_leader is confirmation:
            self.next_leader = None
        self._wakeup.wake()

    def _lead(self) -> None:
        """Lead on a worker's thread: send updates, and pass on the leadership."""
        with self.lock:
            self._send_repeatable()
        self.pass_on()

    def _send_repeatable(self) -> None:
        """Send the updates of buffers that are repeatable."""
        self.next_leader = None
        try:
            self._queue.gather()
            buffers = [buffer for buffer in self._queue.ready if buffer.repeatable]
            if buffers and not self._breaker.down:
                self._sender.send(buffers)
        except Exception:
            self.log_unexpected()

    def pass_on(self) -> None:
        """Wake the next thread that waits, or else the writer's thread if it has something to do."""
        waiting = self.waiting
        while waiting:
            try:
                confirmation = waiting.popleft()
            except IndexError:
                break
            if confirmation.stored is None:
                self.next_leader = confirmation
                confirmation.wake()
                # If buffers are ready, the writer's thread is woken as well, to send them.
                if not self._queue.ready:
                    return
                break
        if self._wakeup.is_asleep:
            self.wake_thread()

    def wake_thread(self) -> None:
        """Wake the writer's thread if it has something to do before it wakes by itself."""
        if self._queue.alarm() < self._wakeup.wake_at or self._queue.is_backlogged:
            self._wakeup.wake()

    def log_unexpected(self) -> None:
        """Log an unexpected error of the writer, and drop the ready buffers, so that the other messages are still
        sent.
        """
        logger.exception("An unexpected error occurred in the status writer, which continues.")
        self._queue.clear()
