"""The writer of a process: the methods that the other modules of the package call.

An update from outside of a run has no sequence number, so the store cannot recognize that it was sent twice. Only the
writer's thread sends such updates, because no interrupt strikes that thread.  If the connection breaks after the store
has carried out an increment and before its reply arrives, the writer sends the increment again, and it counts twice. If
the writer did not send it again, an increment that the store has not received would be lost.

A process that was forked off in the middle of a run also writes to the message of this run, from outside of the run.
It writes at once, on the thread that writes, because the process may be killed at any moment.  Before the fork, the
writer stores what the running messages have written, so that the writes of the child come after it.
"""

from __future__ import annotations

import atexit
import math
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Final

from .. import _time as time
from .._interrupts import ARE_THREADS_REAL
from .._log import logger
from .._process import at_fork, note_interrupt
from ..backend import StatusBackend
from ..circuit_breaker import FIRST_PAUSE, CircuitBreaker
from ..record import DEFAULT_HEARTBEAT_INTERVAL, Record
from ..update import EnqueueId, Kind
from .buffer import MessageBuffer
from .heartbeats import Heartbeats
from .leadership import Leadership, Wakeup
from .operations import Confirmation
from .queue import SendQueue
from .sender import Sender

#: Maximum number of messages whose updates the writer keeps while the store is down.
DEFAULT_MAX_PENDING: Final = 10_000

#: Maximum number of bytes of these updates.
DEFAULT_MAX_PENDING_BYTES: Final = 64 * 2**20

#: Maximum number of seconds that a process waits for its last updates when it ends.
EXIT_TIMEOUT: Final = 5.0

#: Seconds between two checks of the writer's thread for deferred buffers that are due.
CHECK_INTERVAL: Final = 0.002

#: Number of references to buffers of other messages above which the writer removes the references to deleted buffers.
_MIN_SWEEP: Final = 256


class Writer:
    """The writer of a process: it sends the updates.

    Its thread starts with the first write, and again after a fork, or after :meth:`drain`.

    Parameters:
      backend(StatusBackend)
      breaker(CircuitBreaker): Circuit breaker of the store.
      heartbeat_interval(int): Milliseconds between two heartbeats of running messages.
      max_pending(int): Maximum number of messages whose updates are kept while the store is down.
        Beyond that, updates of messages that finished first are dropped first.
      max_pending_bytes(int): Maximum number of bytes of these updates.
    """

    def __init__(
        self,
        backend: StatusBackend,
        breaker: CircuitBreaker,
        *,
        heartbeat_interval: int = DEFAULT_HEARTBEAT_INTERVAL,
        max_pending: int = DEFAULT_MAX_PENDING,
        max_pending_bytes: int = DEFAULT_MAX_PENDING_BYTES,
    ) -> None:
        self.backend = backend
        self.breaker = breaker
        self._interval = heartbeat_interval / 1000
        self._max_pending = max_pending
        self._max_pending_bytes = max_pending_bytes
        #: Buffers that were copied from the parent process at a fork.
        self.inherited: list[MessageBuffer] = []
        self._begin()
        _writers.add(self)

    def _begin(self) -> None:
        self._start_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wakeup = Wakeup()
        #: Buffers of the messages that run in this process, for heartbeats; each leaves when it is closed.
        self.running: dict[MessageBuffer, None] = {}
        #: Buffers whose updates wait for a command of the broker, and the times, by the monotonic clock, at which the
        #: writer sends them itself.
        self.deferred: dict[MessageBuffer, float] = {}
        # Whether a buffer was added to `deferred` since the last check of the thread.
        self._has_more = False
        # Buffers of writes from outside of the messages' runs, by message id, and the number of references above which
        # to remove the references to buffers that are gone.
        self._outside: dict[str, weakref.ref[MessageBuffer]] = {}
        self._sweep_at = _MIN_SWEEP
        self._queue = SendQueue(self.breaker, self._max_pending, self._max_pending_bytes)
        self._heartbeats = Heartbeats(self.backend, self.breaker, self._queue, self.running, self._interval)
        self._sender = Sender(self.backend, self.breaker, self._queue, self.running, self._heartbeats.make_due)
        self._leadership = Leadership(self.breaker, self._queue, self._sender, self._wakeup)

    def begin_again(self) -> None:
        """Reset the writer in a forked process.  The parent sends its own unsent updates."""
        self.inherited = [*self.running, *self.buffers_outside(), *self.inherited]
        self._begin()
        self.breaker.renew()
        for buffer in self.inherited:
            buffer.inherit()

    # Buffers

    def put(self, buffer: MessageBuffer) -> None:
        """Signal that a buffer has something to send."""
        self._queue.signals.append(buffer)
        if self._thread is None:
            self._ensure_thread()
        # When a leader passes on the leadership, it wakes a thread that collects the signals.
        if self._wakeup.is_asleep and not self._leadership.is_taken:
            self._leadership.wake_thread()

    def put_later(self, buffer: MessageBuffer, seconds: float) -> None:
        """Send the updates of a buffer after `seconds`, unless they are sent earlier, with a command of the broker.

        While messages run, the writer's thread checks every :data:`CHECK_INTERVAL` seconds for the buffers whose time
        has come.  So a short run does not wake it.
        """
        self.deferred[buffer] = due = time.monotonic() + seconds
        self._has_more = True
        if self._thread is None:
            self._ensure_thread()
        if self._wakeup.is_asleep and self._wakeup.wake_at > due + CHECK_INTERVAL:
            self._wakeup.wake()

    def _signal_due(self) -> float:
        """Signal for the deferred buffers whose time has come, and return the time of the next check."""
        now = time.monotonic()
        deferred = list(self.deferred.items())
        for buffer, due in deferred:
            if due <= now:
                # The order matters: the buffer may be deferred again between the two.
                self.deferred.pop(buffer, None)
                self._queue.signals.append(buffer)
        # The thread checks once more than needed, so that a run that starts soon does not have to wake it.
        has_more, self._has_more = self._has_more, False
        if has_more:
            return now + CHECK_INTERVAL
        return max(now + CHECK_INTERVAL, min(due for _, due in deferred)) if deferred else math.inf

    def begin_run(
        self, message_id: str, *, run_token: int, enqueue_id: EnqueueId, throttle: int, base: Callable[[], Record]
    ) -> MessageBuffer:
        """Open the buffer of a run."""
        self._ensure_thread()
        buffer = MessageBuffer(
            self, message_id, kind=Kind.RUN, run_token=run_token, enqueue_id=enqueue_id, throttle=throttle, base=base
        )
        buffer.repeatable = True
        return buffer

    def outside(self, message_id: str) -> MessageBuffer:
        """Open the buffer for writes from outside of a run.

        All code of the process that writes to the message shares it.
        """
        reference = self._outside.get(message_id)
        buffer = None if reference is None else reference()
        if buffer is None:
            buffer = MessageBuffer(self, message_id)
            self._outside[message_id] = weakref.ref(buffer)
            if len(self._outside) > self._sweep_at:
                self._sweep()
        return buffer

    def _sweep(self) -> None:
        """Remove the references to buffers that are gone.

        References with callbacks would remove them as well, but an interrupt that strikes in a callback is lost.
        """
        for message_id, reference in list(self._outside.items()):
            if reference() is None:
                self._outside.pop(message_id, None)
        self._sweep_at = 2 * len(self._outside) + _MIN_SWEEP

    def buffers_outside(self) -> list[MessageBuffer]:
        """List the buffers that :meth:`outside` has opened, and that still exist."""
        return [buffer for reference in list(self._outside.values()) if (buffer := reference()) is not None]

    def begin_enqueue(self, message_id: str) -> MessageBuffer:
        """Open the buffer of a message that enters its queue."""
        buffer = MessageBuffer(self, message_id)
        buffer.repeatable = True
        return buffer

    # Waiting

    def wait(self, confirmation: Confirmation, timeout: float | None = None) -> bool:
        """Wait for a confirmation.  While the store is down, do not wait.

        Parameters:
          confirmation(Confirmation)
          timeout(float): Maximum number of seconds; by default the time-out of the backend.
        """
        if self.breaker.down:
            return False
        return confirmation.wait(self.backend.timeout / 1000 if timeout is None else timeout)

    def deadline(self) -> float:
        """Return the time until which an acknowledgement that begins now may wait, by the monotonic clock."""
        return time.monotonic() + self.backend.timeout / 1000

    def confirm_others(
        self, buffers: Iterable[MessageBuffer], confirmations: Iterable[Confirmation], deadline: float
    ) -> None:
        """Wait for the writes to these buffers and for these confirmations, until the deadline.  While the store is
        down, do not wait.

        The writer's thread sends the writes: an interrupt that strikes an acknowledging thread while it sends
        an increment would make the increment count twice.
        """
        for confirmation in [*confirmations, *filter(None, [buffer.unstored() for buffer in buffers])]:
            if self.breaker.down:
                return
            confirmation.wait(max(0.0, deadline - time.monotonic()))

    def confirm(self, buffer: MessageBuffer, confirmation: Confirmation, deadline: float | None = None) -> bool:
        """Wait until the final state that :meth:`MessageBuffer.finish` has added is stored, and send it if no other
        thread sends.  While the store is down, do not wait.

        Parameters:
          buffer(MessageBuffer)
          confirmation(Confirmation)
          deadline(float): End of the wait, by default that of an acknowledgement that begins now.

        Returns:
          bool: Whether the final state is stored.
        """
        if self.breaker.down:
            self.put(buffer)
            return False
        self._queue.signals.append(buffer)
        if self._thread is None:
            # The writer's thread sends the updates if this thread cannot.
            self._ensure_thread()
        self._leadership.lead_or_wait(confirmation, self.deadline() if deadline is None else deadline)
        return bool(confirmation.stored)

    def before_fork(self) -> None:
        """Wait until the store has all writes of the running messages.  While the store is down, do not wait."""
        if self.running and not self.breaker.down:
            self.confirm_others([*list(self.running), *self.buffers_outside()], (), self.deadline())

    def count_unsent(self) -> tuple[int, int]:
        """Count the updates that are not stored yet, and their messages."""
        return self._queue.count_unsent()

    def note_answer(self) -> None:
        """End an outage after another call of this process has succeeded, unless the store refuses updates.  The writer
        itself tries again only while it has updates to send.
        """
        if not self.breaker.refuses:
            self._sender.succeed()

    def drain(self, timeout: float) -> bool:
        """Send all earlier writes, without throttling.

        If the store does not answer, try again for `timeout` seconds.  Then log the number of updates that are lost if
        the process ends.

        The writer's thread ends if everything is sent and no message runs in this process any more, and starts
        again with the next write.  Otherwise it goes on: a process may have other workers, runs that outlive the end of
        their worker, and a store that comes back.

        Returns:
          bool: Whether everything was sent.
        """
        deadline = time.monotonic() + timeout
        queue = self._queue
        if self._thread is None and (queue.signals or not queue.is_empty):
            self._ensure_thread()
        thread = self._thread
        if thread is None:
            # There is nothing to send, or the thread could not be started.
            return not queue.signals and queue.is_empty
        for buffer in list(self.deferred):
            self.deferred.pop(buffer, None)
            queue.signals.append(buffer)
        confirmation = Confirmation()
        queue.drains.append(confirmation)
        self._wakeup.wake()
        if not confirmation.wait(timeout):
            self._end_drain(confirmation)
            self.breaker.gave_up(*self.count_unsent(), timeout)
        if self._thread is not thread:
            thread.join(max(0.0, deadline - time.monotonic()))
        return bool(confirmation.stored)

    def _end_drain(self, confirmation: Confirmation) -> None:
        try:
            self._queue.drains.remove(confirmation)
        except ValueError:
            # Another thread has ended it.
            pass

    # The thread

    def _ensure_thread(self) -> None:
        if self._thread is not None:
            return
        with self._start_lock:
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="dramatiq-status-writer", daemon=True)
                try:
                    thread.start()
                except RuntimeError as e:
                    # The interpreter is shutting down, or cannot start more threads.  That must not raise an error in
                    # an actor.
                    logger.error("The status writer cannot start its thread: %s", e)
                    return
                self._thread = thread

    def _work(self) -> None:
        queue, leadership = self._queue, self._leadership
        while True:
            self._wait_for_work()
            # A later drain has to wait for the next pass of this loop.
            drains = list(queue.drains)
            sent = True
            with leadership.lock:
                leadership.next_leader = None
                try:
                    queue.gather()
                    queue.gather_due()
                    queue.make_room()
                    # A drain tries again, however early.
                    if queue.ready and (drains or not self.breaker.blocked):
                        sent = self._sender.send(list(queue.ready))
                    queue.make_room()
                    if drains and self._end(drains):
                        return
                    self._heartbeats.send_due()
                except Exception:
                    leadership.log_unexpected()
            leadership.pass_on()
            if drains and (queue.later or not sent):
                self._wakeup.sleep(FIRST_PAUSE)

    def _end(self, drains: list[Confirmation]) -> bool:
        """Release drains if everything is sent, and return whether the thread ends."""
        if not self._queue.is_empty:
            return False
        has_ended = False
        with self._start_lock:
            if not self.running:
                # A write after this line starts the thread again. A write before it has signalled.
                self._thread = None
                has_ended = not self._queue.signals
                if not has_ended:
                    self._thread = threading.current_thread()
        for confirmation in drains:
            self._end_drain(confirmation)
            confirmation.release(True)
        return has_ended

    def _wait_for_work(self) -> None:
        """Sleep until there is something to do."""
        queue, wakeup = self._queue, self._wakeup
        while not queue.drains:
            # This comes first, so that a buffer that is deferred after the check below wakes this thread.
            wakeup.wake_at = math.inf
            wakeup.is_asleep = True
            look_at = self._signal_due()
            wake_at = min(self._heartbeats.due_at, queue.next_due)
            if queue.ready or (queue.signals and self.breaker.down):
                wake_at = min(wake_at, queue.alarm())
            wakeup.wake_at = min(wake_at, look_at)
            now = time.monotonic()
            if wake_at <= now:
                break
            # If another thread leads, it collects the signals, or wakes a thread that does.
            if not self._leadership.is_taken and (queue.is_backlogged or (queue.signals and not self.breaker.down)):
                break
            wakeup.sleep(max(0.0, min(wake_at, look_at) - now))
        wakeup.is_asleep = False


#: All writers of this process.
_writers: weakref.WeakSet[Writer] = weakref.WeakSet()


def _before_fork() -> None:
    if not ARE_THREADS_REAL:
        # Under gevent, an interrupt may strike while this hook waits, and could not be raised again.
        return
    try:
        for writer in list(_writers):
            writer.before_fork()
    except Exception:
        logger.exception("The writes of running messages may be stored later than the writes of a forked process.")
    except BaseException as e:
        # An interrupt ends the wait. It is raised again after the fork.
        note_interrupt(e)


def _begin_all() -> None:
    for writer in list(_writers):
        writer.begin_again()


def _drain_all() -> None:
    deadline = time.monotonic() + EXIT_TIMEOUT
    for writer in list(_writers):
        # If a worker's shutdown has waited for the end of this outage without success, the exit of the process does not
        # wait again.
        if not writer.breaker.was_given_up:
            writer.drain(max(0.0, deadline - time.monotonic()))


at_fork(flush=_before_fork, after_in_child=_begin_all)
atexit.register(_drain_all)
