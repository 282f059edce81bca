"""The heartbeats of running messages."""

from __future__ import annotations

from collections import deque

from .. import _time as time
from ..backend import StatusBackend
from ..circuit_breaker import LONGEST_PAUSE, CircuitBreaker
from ..errors import BackendError, StoreRefused
from ..update import Outcome
from .buffer import MessageBuffer
from .queue import SendQueue


class Heartbeats:
    """Sender of the heartbeats of all running messages, on the writer's thread.  One call of the backend sends them,
    except that a message whose updates have failed alone has a call of its own.

    Parameters:
      backend(StatusBackend)
      breaker(CircuitBreaker)
      queue(SendQueue)
      running(dict): Buffers of the messages that run in this process.
      interval(float): Seconds between two heartbeats.
    """

    def __init__(
        self,
        backend: StatusBackend,
        breaker: CircuitBreaker,
        queue: SendQueue,
        running: dict[MessageBuffer, None],
        interval: float,
    ) -> None:
        self._backend = backend
        self._breaker = breaker
        self._queue = queue
        self._running = running
        self._interval = interval
        #: Time of the next heartbeat, by the monotonic clock.
        self.due_at: float = time.monotonic() + interval

    def make_due(self) -> None:
        """Make the next heartbeats due at once, because none were stored during the outage."""
        self.due_at = time.monotonic()

    def send_due(self) -> None:
        """Send the heartbeats if they are due."""
        if time.monotonic() < self.due_at:
            return
        if self._breaker.blocked:
            self.due_at = self._breaker.retry_at
            return
        self.due_at = time.monotonic() + self._interval
        buffers = [buffer for buffer in list(self._running) if buffer.thread.is_alive() and not buffer.heartbeat_failed]
        # The heartbeat of a message that the store may refuse is sent alone, so that no other message looks stalled.
        self._send(
            [
                [buffer for buffer in buffers if not buffer.failed_alone],
                *([buffer] for buffer in buffers if buffer.failed_alone),
            ]
        )

    def _send(self, batches: list[list[MessageBuffer]]) -> None:
        waiting = deque(batch for batch in batches if batch)
        refused: list[MessageBuffer] = []
        has_succeeded = False
        while waiting:
            batch = waiting.popleft()
            try:
                outcomes = self._backend.update_many([(buffer.message_id, buffer.heartbeat()) for buffer in batch])
            except BackendError as e:
                is_refusal = isinstance(e, StoreRefused)
                if is_refusal and len(batch) > 1:
                    waiting.extendleft([buffer] for buffer in batch)
                elif has_succeeded or (is_refusal and (waiting or batch[0].failed_alone)):
                    self._breaker.count_failure()
                    refused += batch
                else:
                    self._queue.fail(e)
                    self.due_at = min(self.due_at, self._breaker.retry_at)
                    return
            else:
                has_succeeded = True
                self._settle(batch, outcomes)
        if has_succeeded:
            self._breaker.succeeded()
        for buffer in refused:
            buffer.failed_alone = buffer.heartbeat_failed = True

    def _settle(self, buffers: list[MessageBuffer], outcomes: list[Outcome]) -> None:
        if Outcome.UNAVAILABLE in outcomes:
            self.due_at = min(self.due_at, time.monotonic() + LONGEST_PAUSE)
        for buffer, outcome in zip(buffers, outcomes):
            if outcome is Outcome.MISSING and not buffer.failed_alone:
                buffer.restore()
            elif outcome is Outcome.REQUESTED:
                buffer.cancelled = True
