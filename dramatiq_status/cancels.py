"""The thread on which a worker reads the log of cancelled messages."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Sequence
from typing import Any, Final

from ._log import logger
from ._process import at_fork
from .backend import StatusBackend, Subscription, now_ms
from .cancel_log import MAX_LOGGED, MAX_MARKS, is_cancelled, mark_of
from .circuit_breaker import CircuitBreaker
from .errors import BackendError
from .record import CANCEL_REASON, Record
from .update import EnqueueId
from .writer import Writer

#: Maximum number of seconds for which `stop()` waits for the thread.
_JOIN_TIMEOUT: Final = 1.0

#: Maximum number of milliseconds by which the clocks of two hosts are assumed to differ.
_CLOCK_SKEW: Final = 60_000


class CancelLogReader:
    """Reader of the log of cancelled messages.  It has a thread of its own while this process has a worker, and notes
    requests in the buffers of running messages.

    Parameters:
      backend(StatusBackend)
      breaker(CircuitBreaker): A read that succeeds ends an outage, unless the store refuses updates.
      writer(Writer): Owner of the buffers of the messages that run in this process.
    """

    def __init__(self, backend: StatusBackend, breaker: CircuitBreaker, writer: Writer) -> None:
        self._backend = backend
        self._breaker = breaker
        self._writer = writer
        self.begin_again()
        _all_readers.add(self)

    def begin_again(self) -> None:
        """Reset the reader to its state before the first worker boots.  A forked process begins in this state."""
        # Marks that were read. When there are many, the older half is dropped.
        self._marks: set[int] = set()
        self._older: set[int] = set()
        # Time up to which marks may be missing, because the log or this process has dropped them, in epoch
        # milliseconds. A message that was enqueued later was not cancelled before that time.
        self._incomplete_until = 0
        self._position: Any = None
        self._workers = 0
        self._thread: threading.Thread | None = None
        self._subscription: Subscription | None = None
        self._is_ended = threading.Event()

    def start(self) -> None:
        """Begin to read, when a worker of this process boots. If the store answers, this method returns after the log
        was read once.
        """
        self._workers += 1
        if self._workers == 1:
            self._read()
            self._is_ended = threading.Event()
            self._thread = threading.Thread(
                target=self._work, args=(self._is_ended,), name="dramatiq-status-cancels", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """End the thread with the last worker of this process."""
        self._workers = max(0, self._workers - 1)
        thread = self._thread
        if self._workers == 0 and thread is not None:
            self._thread = None
            self._is_ended.set()
            # This wakes the thread.
            self._close()
            thread.join(_JOIN_TIMEOUT)

    def find(self, message_id: str, enqueue_id: EnqueueId, enqueued_at: Any) -> Record | None:
        """Return the record of a cancelled message; None for any other, and while the store does not answer.  It takes
        a round trip only if the mark of the message was read from the log, or may be missing.

        Parameters:
          message_id(str)
          enqueue_id(EnqueueId)
          enqueued_at(int): Time at which the message was made, in epoch milliseconds.  It comes from the
            message, so another program may have given it any value.
        """
        if not (self._marks or self._older) or self._breaker.down or not isinstance(message_id, str):
            return None
        mark = mark_of(message_id)
        is_later = isinstance(enqueued_at, int) and enqueued_at > self._incomplete_until
        if is_later and mark not in self._marks and mark not in self._older:
            return None
        try:
            record = self._backend.read(message_id)
        except BackendError as e:
            logger.info("Message %r runs although it may be cancelled: %s", message_id, e)
            return None
        return record if record is not None and is_cancelled(record, enqueue_id.origin) else None

    def _work(self, is_ended: threading.Event) -> None:
        while not is_ended.is_set():
            try:
                self._wait(is_ended)
                if not is_ended.is_set():
                    self._read()
            except Exception:
                # When the last worker ends, it closes the subscription while this thread waits.
                if not is_ended.is_set():
                    logger.exception("The log of cancelled messages could not be read.")
                    is_ended.wait(self._backend.cancel_interval / 1000)

    def _wait(self, is_ended: threading.Event) -> None:
        """Wait until the log changes, or until it is time to read it."""
        interval = self._backend.cancel_interval / 1000
        try:
            if self._subscription is None and not self._breaker.down:
                self._subscription = self._backend.subscribe_cancels()
            if is_ended.is_set():
                self._close()
                return
            if self._subscription is not None:
                self._subscription.wait(interval)
                return
        except BackendError as e:
            # The writer logs the outage.
            logger.debug("The log of cancelled messages cannot be watched: %s", e)
            self._close()
        is_ended.wait(interval)

    def _close(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.close()

    def _read(self) -> None:
        if self._breaker.blocked:
            return
        try:
            position, marks = self._backend.read_cancels(self._position)
            self._writer.note_answer()
            if marks:
                self.note(marks)
                # A full log may have dropped earlier marks, so any running message may be cancelled.
                self._mark_buffers(None if len(marks) >= MAX_MARKS else set(marks))
            # This comes last: if the store did not return the records of running messages, the marks are read again.
            self._position = position
        except BackendError as e:
            # This read begins no outage. In an outage, it delays the next try.
            if self._breaker.down:
                self._breaker.failed(e)
            logger.debug("The log of cancelled messages could not be read: %s", e)

    def add(self, mark: int) -> None:
        """Note the mark of one message that was cancelled; on any thread."""
        self._marks.add(mark)

    def note(self, marks: Sequence[int]) -> None:
        """Note the marks that one read of the log has returned; on the thread that reads."""
        is_full = len(self._marks) > MAX_LOGGED
        if len(marks) >= MAX_MARKS or (is_full and self._older):
            self._incomplete_until = now_ms() + _CLOCK_SKEW
        if is_full:
            self._older, self._marks = self._marks, set()
        self._marks.update(marks)

    def _mark_buffers(self, new: set[int] | None) -> None:
        """Note requests in the buffers of those running messages whose marks are in `new`; None stands for all running
        messages.

        Raises:
          BackendError: When the store does not return the records of all these messages.
        """
        running = list(self._writer.running)
        buffers = [buffer for buffer in running if new is None or mark_of(buffer.message_id) in new]
        if buffers:
            failure = None
            for buffer, record in zip(buffers, self._backend.read_many([buffer.message_id for buffer in buffers])):
                if isinstance(record, BackendError):
                    failure = record
                elif record is not None and is_cancelled(record, buffer.enqueue_id.origin):
                    buffer.cancel_reason, buffer.is_reason_read, buffer.cancelled = reason_in(record), True, True
            if failure is not None:
                # The server of this record does not answer, while other servers do.
                raise failure


def reason_in(record: Record) -> str | None:
    """Return the reason for which a message was cancelled; None if no reason was given."""
    try:
        found = json.loads(record.get(CANCEL_REASON, "null"))
    except ValueError:
        found = None
    return found if isinstance(found, str) else None


#: All readers of this process.
_all_readers: weakref.WeakSet[CancelLogReader] = weakref.WeakSet()


def _begin_all_again() -> None:
    for reader in list(_all_readers):
        reader.begin_again()


at_fork(after_in_child=_begin_all_again)
