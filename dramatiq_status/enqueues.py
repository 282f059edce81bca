"""The writes of an enqueue."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import dramatiq

from ._log import logger
from .backend import StatusBackend, now_ms
from .circuit_breaker import CircuitBreaker
from .context import Binding
from .deliveries import Deliveries, exception_in_flight
from .errors import BackendError, StoreRefused
from .history import run_ended
from .lifecycle import BegunEnqueue, Delivery, ThreadState, whole_number
from .message_fields import MessageFields
from .options import ENQUEUE_ID_OPTION, ENQUEUED_AT_OPTION, HEARTBEAT_OPTION, Settings, enqueue_id_of, next_enqueue_id
from .piggyback import UpdateAttacher
from .record import DEFAULT_HEARTBEAT_INTERVAL, MAX_WHOLE_NUMBER, RUN_ENDED, SCHEDULED_AT
from .update import EnqueueId, Kind, Outcome, Update
from .writer import AttachedBuffers, Confirmation, Enqueue, Withdrawal, Writer

#: Maximum age of a message at its first enqueue, in milliseconds, up to which `enqueued_at` is the time at which the
#: message was made.  The later stages of a pipeline and the callbacks of a group are made long before their enqueues.
_MADE_EARLIER: Final = 100

# Reading an attribute of an Enum takes five times as long as reading a global.
_ENQUEUE: Final = Kind.ENQUEUE


class _AttachedUpdate:
    """The update of an enqueue outside of a worker.  It is attached to the broker's command, or sent after it."""

    #: Whether the transaction with the update was carried out.
    may_be_stored = False

    def __init__(self, message_id: str, update: Update) -> None:
        self.message_id = message_id
        self.update = update

    def collect(self) -> Sequence[tuple[str, Update]]:
        return () if self.may_be_stored else ((self.message_id, self.update),)

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        self.may_be_stored = True

    def send_separately(self) -> None:
        """Do nothing: :meth:`Enqueues.complete` sends the update."""


class Enqueues:
    """Hooks of an enqueue: they write ``queued`` for messages that enter a queue.

    Parameters:
      backend(StatusBackend)
      writer(Writer)
      breaker(CircuitBreaker)
      fields(MessageFields)
      deliveries(Deliveries)
      heartbeat_interval(int): In milliseconds.
    """

    def __init__(
        self,
        backend: StatusBackend,
        writer: Writer,
        breaker: CircuitBreaker,
        fields: MessageFields,
        deliveries: Deliveries,
        heartbeat_interval: int,
    ) -> None:
        self._backend = backend
        self._writer = writer
        self._breaker = breaker
        self._fields = fields
        self._deliveries = deliveries
        self._heartbeat_interval = heartbeat_interval

    def begin(
        self,
        thread: ThreadState,
        broker: dramatiq.Broker,
        message: Any,
        delay: int | None,
        settings: Settings,
        binding: Binding | None,
        *,
        inside: bool,
        is_watched: bool,
    ) -> bool:
        """Write ``queued``, before the broker gets a message.

        Parameters:
          thread(ThreadState): State of this thread.
          broker(Broker)
          message(Message)
          delay(int): In milliseconds; None for no delay.
          settings(Settings): Settings of the message.
          binding(Binding): Handles of the message that runs on this thread; None if no message runs.
          inside(bool): Whether this thread is a worker's, or runs a message.
          is_watched(bool): Whether :meth:`withdraw` is called if the enqueue ends in an error.  If not, an enqueue
            outside of a worker writes ``queued`` after the broker has the message.

        Returns:
          bool: Whether ``queued`` and all earlier writes of the run are sent with the broker's command.
        """
        message_id = message.message_id
        enqueue_id = self._begin_enqueue(thread, message)
        message.options[ENQUEUE_ID_OPTION] = list(enqueue_id)
        if enqueue_id.generation == 1:
            now = now_ms()
            if now - whole_number(message.message_timestamp, now) > _MADE_EARLIER:
                message.options.setdefault(ENQUEUED_AT_OPTION, now)
        if self._heartbeat_interval != DEFAULT_HEARTBEAT_INTERVAL:
            message.options[HEARTBEAT_OPTION] = self._heartbeat_interval
        fields = self._fields.of_message(message, settings, strict=not inside)
        if delay is not None:
            # Dramatiq accepts any delay, but a record holds numbers of at most 15 digits.
            fields[SCHEDULED_AT] = str(min(now_ms() + whole_number(delay, MAX_WHOLE_NUMBER), MAX_WHOLE_NUMBER))
        attacher = self._deliveries.update_attacher(broker)
        begun, withdrawn = thread.unconfirmed.get(message_id, (None, None))
        if begun != enqueue_id:
            withdrawn = None
        if not inside and withdrawn is None:
            # Arguments by position take half of the time of arguments by name.
            update = Update(_ENQUEUE, enqueue_id, 0, 0, False, False, None, 1, fields)
            thread.unconfirmed[message_id] = enqueue_id, None
            attached = _AttachedUpdate(message_id, update)
            if self._attach(thread, attacher, message, attached):
                return True
            if not is_watched:
                thread.attached[message_id] = attached
                return False
            # An earlier enqueue of this message, which was not watched, may have ended in an error.
            thread.attached.pop(message_id, None)
            self._enqueue_directly(thread, message, update)
            return False
        delivery = None if binding is None else binding.delivery
        own = None if delivery is None else delivery.buffer
        if delivery is not None and (
            delivery.fresh or delivery.confirming or delivery.enqueues or not delivery.buffer.can_take_all()
        ):
            # The run has earlier writes that cannot be attached, and have to be stored before the broker gets the
            # message.
            attacher = None
        if delivery is not None and delivery.message_id == message_id:
            # If `Retries` comes later than this middleware in the broker's list, Dramatiq enqueues the retry before it
            # calls `after_process_message` of this middleware.
            exception = delivery.exception or exception_in_flight(delivery.message)
            if exception is not None:
                fields.update(self._fields.of_exception(exception, settings))
            if delivery.run_token:
                fields[RUN_ENDED] = run_ended(now_ms(), failed=exception is not None)
            buffer = delivery.buffer
        else:
            # An unstored withdrawal of the same message must not take back this enqueue.
            attacher = attacher if withdrawn is None else None
            buffer = withdrawn or self._writer.begin_enqueue(message_id)
            thread.unconfirmed[message_id] = enqueue_id, buffer
        confirmation = Confirmation()
        buffer.add(Enqueue(enqueue_id, fields), deferred=True)
        buffer.add(confirmation, deferred=True)
        thread.confirmation = confirmation
        buffers = [buffer] if own is None or own is buffer else [own, buffer]
        is_attached = self._attach(thread, attacher, message, AttachedBuffers(self._writer, *buffers))
        if not is_attached:
            self._writer.put(buffer)
        return is_attached

    def _attach(
        self,
        thread: ThreadState,
        attacher: UpdateAttacher | None,
        message: Any,
        attached: _AttachedUpdate | AttachedBuffers,
    ) -> bool:
        """Attach ``queued`` to the broker's command.  Return whether that was possible."""
        if attacher is None or not attacher.attach(message, attached):
            return False
        thread.attached[message.message_id] = attached
        return True

    def store_before_send(self, delivery: Delivery) -> None:
        """Wait until all writes of a run are stored, before the broker gets a message that the run sends. The actor of
        that message may read them. Do nothing in a coroutine, which must not block the event loop, and in an outage.
        """
        if self._breaker.down or asyncio._get_running_loop() is not None:
            return
        # A run may write to thousands of messages, and send thousands. So each send waits only for the writes since the
        # last send. After an interrupt, the hook begins again and waits for the same writes.
        delivery.confirming, delivery.fresh = delivery.confirming | delivery.fresh, set()
        others = [found for reference in delivery.confirming if (found := reference()) is not None]
        written = [
            *filter(None, [buffer.unstored() for buffer in (delivery.buffer, *others)]),
            *(delivery.enqueues or ()),
        ]
        if any(confirmation.stored is None for confirmation in written):
            # The writer sends these writes in the same round trip as `queued`.
            thread = self._deliveries.thread_state
            queued = thread.confirmation
            self._writer.confirm_others((), written if queued is None else [*written, queued], self._writer.deadline())
            if queued is not None and queued.stored is None:
                # The time-out is over: after_enqueue does not wait for a second one.
                thread.confirmation = None
        delivery.confirming = set()

    def _begin_enqueue(self, thread: ThreadState, message: Any) -> EnqueueId:
        """Return the id of an enqueue that begins.  If the broker tries again, it is the id of the first try."""
        message_id, carried = message.message_id, enqueue_id_of(message.options)
        begun = thread.begun.get(message_id)
        if begun is not None and begun.is_repeated_by(message.message_timestamp, carried):
            return begun.enqueue_id
        enqueue_id = next_enqueue_id(carried)
        thread.begin(message_id, BegunEnqueue(message.message_timestamp, carried, enqueue_id))
        return enqueue_id

    def _enqueue_directly(self, thread: ThreadState, message: Any, update: Update) -> None:
        """Send `queued` and do not wait for the reply.  If this is called before the enqueue, the reply is read
        after the enqueue, so that the two round trips overlap.
        """
        # A reply is still pending if the broker has refused the last enqueue of this thread.
        self._complete_pending(thread)
        if self._breaker.blocked:
            self._breaker.dropped()
            return
        try:
            thread.pending_enqueue = self._backend.begin_update(message.message_id, update)
        except BackendError as e:
            self._fail(e)
        except (TypeError, ValueError) as e:
            logger.error("The status of message %r cannot be stored: %s", message.message_id, e)

    def complete(self, thread: ThreadState, message: Any, binding: Binding | None) -> None:
        """Wait until the last enqueue of this thread is stored."""
        attached = thread.attached.get(message.message_id) if isinstance(message.message_id, str) else None
        if isinstance(attached, _AttachedUpdate):
            if not attached.may_be_stored:
                self._enqueue_directly(thread, message, attached.update)
        elif attached is not None and thread.confirmation is not None and thread.confirmation.stored is None:
            attached.send_separately()
        if attached is not None:
            del thread.attached[message.message_id]
        self._complete_pending(thread)
        if thread.confirmation is not None:
            if asyncio._get_running_loop() is None:
                self._writer.wait(thread.confirmation)
            elif binding is not None and binding.delivery is not None:
                # A coroutine must not block other coroutines: the acknowledgement of its message waits instead.
                waits = [
                    confirmation for confirmation in binding.delivery.enqueues or () if confirmation.stored is None
                ]
                binding.delivery.enqueues = [*waits, thread.confirmation]
            thread.confirmation = None

    def withdraw(self, message_id: str) -> None:
        """Take back ``queued`` of an enqueue of this thread that has ended in an error.

        The broker may have the message nevertheless.  The store therefore removes the record only if no run of
        the message has begun, and a run that begins later makes a new record.  ``queued`` of a retry is not taken back,
        because the acknowledgement of the run then writes the final state.
        """
        thread = self._deliveries.thread_state
        found, attached = thread.unconfirmed.get(message_id), thread.attached.pop(message_id, None)
        if found is None:
            return
        if attached is not None and not attached.may_be_stored:
            # The message and its status are in one transaction: either both are stored, or neither.
            del thread.unconfirmed[message_id]
            thread.confirmation = None
            return
        enqueue_id, buffer = found
        self._complete_pending(thread)
        blocks = buffer is not None and asyncio._get_running_loop() is not None
        if buffer is None:
            buffer = self._writer.begin_enqueue(message_id)
        confirmation = Confirmation()
        # In an outage of the store, the writer keeps the withdrawal.
        buffer.add(Withdrawal(enqueue_id), deferred=True)
        buffer.add(confirmation)
        thread.unconfirmed[message_id] = enqueue_id, buffer
        thread.confirmation = None
        if not blocks and self._writer.wait(confirmation):
            del thread.unconfirmed[message_id]

    def _complete_pending(self, thread: ThreadState) -> None:
        pending, thread.pending_enqueue = thread.pending_enqueue, None
        if pending is not None:
            try:
                pending()
            except BackendError as e:
                self._fail(e)
            else:
                self._breaker.succeeded()

    def _fail(self, error: BackendError) -> None:
        if isinstance(error, StoreRefused):
            # The store has answered: the messages that are sent next are not affected.
            logger.error("The status store refuses the status of a message that is sent: %s", error)
            self._breaker.count_failure()
            self._breaker.dropped()
        else:
            self._breaker.failed(error)
