"""A worker's deliveries of messages, and the writes at their beginning and at their end."""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable
from typing import Any, Final

import dramatiq
from dramatiq.errors import ActorNotFound

from ._process import at_fork
from .backend import StatusBackend, now_ms
from .cancel_log import mark_of
from .cancels import CancelLogReader, reason_in
from .context import Binding, bind, current_binding, resume, suspend
from .errors import Cancelled
from .history import run_ended, run_lost
from .lifecycle import Decision, Delivery, ThreadState, ThreadStates, is_delayed_copy, whole_number
from .message_fields import MessageFields
from .options import HEARTBEAT_OPTION, Options, Settings, enqueue_id_of, new_token
from .piggyback import UpdateAttacher
from .record import (
    CANCELLED,
    COMPLETED,
    DEFAULT_HEARTBEAT_INTERVAL,
    FAILED,
    FINISHED_AT,
    HEARTBEAT_AT,
    HEARTBEAT_INTERVAL,
    RESULT,
    RUN_ENDED,
    SKIPPED,
    STARTED_AT,
    STATE,
    WORKING,
    Record,
)
from .update import EnqueueId
from .writer import AttachedBuffers, Confirmation, Finish, MessageBuffer, Start, Writer

#: Maximum number of retries that is read from a message.
_MAX_RETRIES: Final = 10**9


#: Seconds from the start of a run until the writer sends the update of this start, if the broker has an update
#: attacher.  If the acknowledgement comes earlier, the update is sent in one transaction with the acknowledgement.
_START_AFTER: Final = 0.002

#: Seconds after which the writer sends a final state that was not sent with an acknowledgement.
_FINISH_AFTER: Final = 1.0


class Deliveries:
    """Hooks of a delivery: they write its beginning and its end.

    Parameters:
      backend(StatusBackend)
      writer(Writer)
      options(Options)
      fields(MessageFields)
      cancels(CancelLogReader)
      heartbeat_interval(int): In milliseconds.
    """

    def __init__(
        self,
        backend: StatusBackend,
        writer: Writer,
        options: Options,
        fields: MessageFields,
        cancels: CancelLogReader,
        heartbeat_interval: int,
    ) -> None:
        self._threads = ThreadStates()
        self._backend = backend
        self._writer = writer
        self._options = options
        self._fields = fields
        self._cancels = cancels
        self._heartbeat_interval = heartbeat_interval
        _deliveries.add(self)

    @property
    def thread_state(self) -> ThreadState:
        """The state of this thread."""
        return self._threads.own

    def begin(self, broker: dramatiq.Broker, message: Any) -> None:
        """Write ``working`` and bind the handles, before a worker processes the message.

        Raises:
          Cancelled: When the message was cancelled, so that no worker may run it.
        """
        given, previous = unwrapped(message), current_binding()
        if previous is not None and self.thread_state.worker:
            # The hooks at the end of an earlier delivery were not called.
            _abandon(previous)
            previous = None
        settings = self._options.of_message(broker, given, strict=False)
        if not settings.tracked:
            # `close` resumes the outer message. A worker's thread has no outer message.
            bind(None if previous is None else suspend(previous, given.message_id))
            return
        if previous is not None and previous.delivery is not None and previous.delivery.message_id == given.message_id:
            # The message begins again inside its own delivery: this broker retries a message without calling the hooks
            # of an enqueue.
            previous.delivery.requeued = True
            ended = run_ended(now_ms(), failed=previous.delivery.exception is not None)
            previous.delivery.buffer.write({RUN_ENDED: ended}, urgent=True)
        enqueue_id = enqueue_id_of(given.options)
        record = self._cancels.find(given.message_id, enqueue_id, given.message_timestamp)
        if record is not None:
            # Dramatiq then skips the message.  The hook `after_skip_message` opens a delivery without a run.
            if record[STATE] == str(WORKING):
                self.thread_state.lost_run = given.message_id, run_lost(record.get(HEARTBEAT_AT))
            raise Cancelled(reason_in(record))
        binding = self._open(message, given, settings, previous, enqueue_id, new_token())
        assert binding.delivery is not None
        buffer, options = binding.delivery.buffer, given.options
        fields = {STARTED_AT: str(now_ms())}
        if self._heartbeat_interval != DEFAULT_HEARTBEAT_INTERVAL or HEARTBEAT_OPTION in options:
            # This replaces the interval of the process that has enqueued the message, which the record may contain.
            # (If both processes have the default, this worker writes no interval. The record may then keep a shorter
            # interval of a worker that died. If the default is more than three times as long, the message counts as
            # stalled.)
            fields[HEARTBEAT_INTERVAL] = str(self._heartbeat_interval)
        retries = whole_number(options.get("retries"), 0)
        # Each redelivery adds 1 to the stored number of attempts, and a record holds numbers of at most 15 digits.
        start = Start(fields, retries + 1 if 0 <= retries < _MAX_RETRIES else 1)
        can_attach = self.update_attacher(broker) is not None
        buffer.add(start, deferred=can_attach)
        bind(binding)
        # The buffer is added after its delivery is bound. In the other order, an interrupt between the two would leave
        # a buffer that no hook finds and closes.
        self._writer.running[buffer] = None
        if can_attach:
            self._writer.put_later(buffer, _START_AFTER)

    def update_attacher(self, broker: dramatiq.Broker) -> UpdateAttacher | None:
        """Return the update attacher of a broker; None if it has none, and while the store refuses updates."""
        return None if self._writer.breaker.refuses else self._backend.update_attacher(broker)

    def settle(self, broker: dramatiq.Broker, message: Any, *, rejected: bool, may_attach: bool = True) -> None:
        """Write the final state of a message, before the broker acknowledges or rejects the message.

        Parameters:
          broker(Broker)
          message(Message)
          rejected(bool)
          may_attach(bool): Whether the final state may be sent with the broker's next command.
        """
        delivery = self.find_delivery(message)
        if delivery is None:
            if is_delayed_copy(message.queue_name, message.options):
                return
            # The message was not processed, because its actor is unknown.
            delivery = self.delivery_of(broker, message)
            if delivery is None:
                return
        buffer: MessageBuffer = delivery.buffer
        if not delivery.settled:
            if delivery.others is not None or delivery.enqueues is not None:
                # Wait for the run's writes to other messages before its final state is sent, so that a reader that
                # finds the final state also finds these writes.
                delivery.deadline = delivery.deadline or self._writer.deadline()
                buffers = [found for reference in list(delivery.others or ()) if (found := reference()) is not None]
                self._writer.confirm_others(buffers, delivery.enqueues or (), delivery.deadline)
            decision = delivery.decide(rejected=rejected)
            if decision is Decision.REQUEUED:
                if buffer.cancelled:
                    # This process may get the retry before it reads the log.
                    self._cancels.add(mark_of(delivery.message_id))
                buffer.close()
            else:
                delivery.confirmation = Confirmation()
                buffer.finish(self._finish(delivery, message, decision), delivery.confirmation)
            delivery.settled = True
        confirmation = delivery.confirmation
        if confirmation is None or (may_attach and self._attach(broker, message, buffer)):
            return
        if confirmation.stored is None:
            self._writer.confirm(buffer, confirmation, delivery.deadline)
        delivery.confirmation = None

    def _attach(self, broker: dramatiq.Broker, message: Any, buffer: MessageBuffer) -> bool:
        """Attach a final state to the acknowledgement.  Return whether that was possible."""
        attacher = self.update_attacher(broker)
        if attacher is None or not buffer.can_take_all():
            return False
        self._writer.put_later(buffer, _FINISH_AFTER)
        return attacher.attach(unwrapped(message), AttachedBuffers(self._writer, buffer))

    def _finish(self, delivery: Delivery, message: Any, decision: Decision) -> Finish:
        settings, state = delivery.settings, COMPLETED if decision is Decision.COMPLETED else FAILED
        fields = {FINISHED_AT: str(now_ms())}
        if decision is Decision.CANCELLED:
            fields[CANCELLED] = "true"
            lost = self.thread_state.lost_run
            if lost is not None and lost[0] == delivery.message_id and not delivery.run_token:
                fields[RUN_ENDED] = lost[1]
            return Finish(state, fields, settings.status_ttl)
        if delivery.skipped:
            fields[SKIPPED] = "true"
        if state == COMPLETED and delivery.buffer.requested_state is not None:
            state = delivery.buffer.requested_state
        if decision is Decision.FAILED:
            exception = delivery.exception or getattr(message, "_exception", None)
            if exception is None and not delivery.outcome_seen and not delivery.skipped:
                # A broker that passes no exception to the hooks is raising it now.  Dramatiq 1.x rejects a message
                # of an unknown actor without an exception.
                exception = sys.exc_info()[1] if delivery.run_token else ActorNotFound(message.actor_name)  # type: ignore[no-untyped-call]
            if isinstance(exception, Cancelled):
                # Some brokers, such as dramatiq-eager-broker, do not skip a message whose actor raises this exception.
                # The exception then arrives here.
                fields[CANCELLED] = "true"
            elif exception is not None:
                fields.update(self._fields.of_exception(exception, settings))
        else:
            if state == FAILED:
                # The run has set its own state. An exception that is stored is one of an earlier run.
                fields.update(self._fields.of_no_exception(settings))
            if settings.include("result") and not delivery.buffer.has_written(RESULT):
                self._fields.include(fields, RESULT, "result", delivery.result)
        return Finish(state, fields, settings.status_ttl)

    def close(self, broker: dramatiq.Broker, message: Any, *, rejected: bool) -> None:
        """End a delivery, and bind the handles of the outer message again."""
        thread = self.thread_state
        if thread.delayed and thread.holds(message.message_id) and is_delayed_copy(message.queue_name, message.options):
            thread.release(message.message_id)
        delivery = self.find_delivery(message)
        if delivery is not None:
            confirmation: Confirmation | None = delivery.confirmation
            if not delivery.settled or (confirmation is not None and confirmation.stored is None):
                # This broker does not call `before_ack` and `before_nack`, or the final state was attached to one
                # of its commands, and may not be stored.
                self.settle(broker, message, rejected=rejected, may_attach=False)
            delivery.exception = delivery.result = None
            bind(delivery.previous)
        else:
            resume(message.message_id)
        thread.forget()

    def binding(self) -> Binding | None:
        """Return the binding of this context, if it is one of this middleware."""
        binding = current_binding()
        return binding if binding is not None and binding.writer is self._writer else None

    def find_delivery(self, message: Any) -> Delivery | None:
        """Return the delivery of a message, if this context processes the message."""
        binding = current_binding()
        if binding is None or binding.writer is not self._writer or binding.delivery is None:
            return None
        delivery = binding.delivery
        # Compare the objects first: they are usually the same, and to read an attribute of the worker's proxy takes
        # longer.
        return delivery if delivery.message is message or delivery.message_id == message.message_id else None

    def delivery_of(self, broker: dramatiq.Broker, message: Any) -> Delivery | None:
        """Return the delivery of a message; None for an untracked message.  If another middleware has stopped the
        message before :meth:`begin`, open a delivery without a run.
        """
        delivery = self.find_delivery(message)
        if delivery is None:
            settings = self._options.of_message(broker, message, strict=False)
            if settings.tracked:
                previous = None if self.thread_state.worker else current_binding()
                given = unwrapped(message)
                binding = self._open(message, given, settings, previous, enqueue_id_of(given.options), run_token=0)
                bind(binding)
                delivery = binding.delivery
                assert delivery is not None
                # Another middleware may have stopped the message and enqueued it again before a hook of this middleware
                # was called.
                delivery.requeued = delivery.message_id in self.thread_state.enqueued
        return delivery

    def _open(
        self,
        message: Any,
        given: Any,
        settings: Settings,
        previous: Binding | None,
        enqueue_id: EnqueueId,
        run_token: int,
    ) -> Binding:
        """Open the buffer of a delivery, and make its handles."""
        message_id = given.message_id
        base: Callable[[], Record] = functools.partial(self._fields.of_message, given, settings, strict=False)
        if settings.include("message"):
            # Make the fields now, because the actor may change its arguments.
            base = base().copy
        buffer = self._writer.begin_run(
            message_id, run_token=run_token, enqueue_id=enqueue_id, throttle=settings.throttle, base=base
        )
        delivery = Delivery(message_id, enqueue_id, run_token, buffer, settings, previous, message)
        return Binding(None, self._writer, delivery)


#: The objects of class `Deliveries` in this process.
_deliveries: weakref.WeakSet[Deliveries] = weakref.WeakSet()


def _forget_threads() -> None:
    # A pending reply arrives at a socket that both processes have. The parent reads it.
    for deliveries in list(_deliveries):
        deliveries._threads = ThreadStates()


at_fork(after_in_child=_forget_threads)


def unwrapped(message: Any) -> Any:
    """Return the message behind a worker's proxy, whose attributes take longer to read."""
    return getattr(message, "_message", message)


def exception_in_flight(message: Any) -> BaseException | None:
    """Return the exception of a message.  Dramatiq sets it before it calls the first hook after the actor."""
    found = getattr(message, "_exception", None)
    return found if isinstance(found, BaseException) else None


def _abandon(binding: Binding) -> None:
    if binding.delivery is not None and not binding.delivery.settled:
        binding.delivery.buffer.close()
