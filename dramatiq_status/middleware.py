"""Dramatiq's hooks.  The modules ``enqueues`` and ``deliveries`` define what each hook writes."""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Iterable
from copy import copy
from datetime import timedelta
from threading import get_ident
from typing import Any, Final, TypeVar

import dramatiq
from dramatiq.middleware import Middleware

from . import opening  # noqa: F401 - an actor can pickle its handles
from ._log import logger
from ._process import drop_interrupt
from .aborts import is_abort
from .backend import BackendOwner, StatusBackend
from .backends import backend_from_url
from .cancels import CancelLogReader
from .checks import check_duration, check_number
from .circuit_breaker import CircuitBreaker, Health
from .deliveries import Deliveries, exception_in_flight, unwrapped
from .enqueues import Enqueues
from .errors import Cancelled, StatusSetupError
from .message_fields import Describe, MessageFields, type_and_text
from .options import SETTINGS_OPTIONS, Options, Settings, check_includes, write_back
from .record import DEFAULT_HEARTBEAT_INTERVAL, DEFAULT_LIVE_TTL, DEFAULT_STATUS_TTL
from .writer import DEFAULT_MAX_PENDING, DEFAULT_MAX_PENDING_BYTES, Writer

try:
    from dramatiq.threading import Interrupt
except ImportError:  # Dramatiq 1.x
    from dramatiq.middleware.threading import Interrupt

F = TypeVar("F", bound=Callable[..., None])

#: Maximum number of seconds that a worker waits for its last updates when it shuts down.
SHUTDOWN_TIMEOUT: Final = 5.0


def _through_interrupts(hook: F) -> F:
    """Run a hook to its end, whatever interrupts strike.

    Dramatiq raises time limits, aborts and shutdowns asynchronously, in hooks as well.  In a hook that runs after the
    actor, an interrupt is too late to stop the actor.  An interrupt that left the hook would have one of two effects:
    Dramatiq would run a message again although its actor has returned, or the worker would lose the thread.

    After an interrupt the hook runs again from its start.  Such a hook must be idempotent: if the hook is interrupted
    after any instruction and is then called again, the effect must be that of one call. A hook therefore removes a
    value from the thread's state or from the delivery only after it has used the value.
    """

    @functools.wraps(hook)
    def wrapper(self: StatusMiddleware, broker: dramatiq.Broker, message: Any, **outcome: Any) -> None:
        while True:
            try:
                return hook(self, broker, message, **outcome)
            except Interrupt:
                logger.debug("An interrupt came too late to stop the actor; it is ignored.")

    return wrapper  # type: ignore[return-value]


def _through_late_interrupts(hook: F) -> F:
    """Run a hook of an enqueue to its end, except where the actor itself sends the message.

    An interrupt that strikes before the actor has ended must stop the actor, and leaves the hook.  A later interrupt
    strikes while a retry is enqueued. If it left the hook, the retry and the worker's thread would be lost.  So the
    hook runs again from its start, and must be idempotent, as for :func:`_through_interrupts`.
    """

    @functools.wraps(hook)
    def wrapper(self: StatusMiddleware, broker: dramatiq.Broker, message: Any, delay: int | None) -> None:
        while True:
            try:
                return hook(self, broker, message, delay)
            except Interrupt:
                binding = self._deliveries.binding()
                delivery = None if binding is None else binding.delivery
                if delivery is None or not (delivery.outcome_seen or exception_in_flight(delivery.message)):
                    raise
                logger.debug("An interrupt came too late to stop the actor; it is ignored.")

    return wrapper  # type: ignore[return-value]


class StatusMiddleware(BackendOwner, Middleware):
    """A middleware that records the status of every message.

    Add it last.  It works in other places of the broker's list of middleware as well, except that a message is shown as
    ``working`` for a moment when a later middleware skips it.

    >>> broker.add_middleware(StatusMiddleware(backend=RedisBackend(url="redis://127.0.0.1:6379/1")))

    Parameters:
      backend(StatusBackend): Store of the statuses.  By default the store whose
        URL the environment variable ``DRAMATIQ_STATUS_URL`` contains, so that a settings
        file can name this class by its dotted path alone.
      status_ttl(int): Milliseconds for which a status is kept after its
        message has finished.  By default 1 hour.
      live_ttl(int): Milliseconds for which a status is kept while its message waits or
        runs, in addition to the message's delay.  Every write and every
        heartbeat starts this time again.  By default 7 days.
      status_throttle(int): Shortest time between two throttled
        writes of a message, in milliseconds.  A throttled write that comes sooner is kept,
        and sent when the time is over, or with the next write that is not throttled.  By default 0: no write is
        throttled.
      includes(Iterable[str]): Further values to store: ``"message"`` (args
        and kwargs), ``"traceback"``, ``"result"``.  An actor's ``status_includes`` replaces
        this set; a message's ``status_includes`` may leave out some of it, and cannot add to it.
      describe_exception(Callable): Takes the exception of a failed run, and returns a dict with its ``"type"`` and its
        ``"message"``, to store as ``exception``.  If it returns None, or if this parameter is None, no exception is
        stored.  A stored traceback ends with this description.  By default, the description has the type and the text
        of the exception.
      track_status(bool): Whether to track messages of actors that do not set
        ``track_status``.
      heartbeat_interval(int): Milliseconds between heartbeats of the running
        messages of a worker.  The worker sends these heartbeats
        together.  A message without a heartbeat for three intervals is :attr:`.Snapshot.stalled`, so three intervals
        should be longer than any call into C that keeps the interpreter lock.  By default 15 seconds.
      max_pending(int): Maximum number of messages whose updates a worker keeps in
        memory while the store is down; at least 1.  By default 10,000.
      max_pending_bytes(int): Maximum number of bytes of the fields of these messages; at
        least 1.  By default 64 MiB.  Where the backlog of an outage exceeds one of the two limits, the updates of the
        messages that finished first are dropped first.
    """

    def __init__(
        self,
        *,
        backend: StatusBackend | None = None,
        status_ttl: int | timedelta = DEFAULT_STATUS_TTL,
        live_ttl: int | timedelta = DEFAULT_LIVE_TTL,
        status_throttle: int | timedelta = 0,
        includes: Iterable[str] = (),
        describe_exception: Describe | None = type_and_text,
        track_status: bool = True,
        heartbeat_interval: int | timedelta = DEFAULT_HEARTBEAT_INTERVAL,
        max_pending: int = DEFAULT_MAX_PENDING,
        max_pending_bytes: int = DEFAULT_MAX_PENDING_BYTES,
    ) -> None:
        if backend is None:
            backend = backend_from_url()
        if not isinstance(backend, StatusBackend):
            raise TypeError(f"backend must be a StatusBackend, not {type(backend).__name__}.")
        self.live_ttl: int = check_duration("live_ttl", live_ttl, minimum=1)
        self.heartbeat_interval: int = check_duration("heartbeat_interval", heartbeat_interval, minimum=1)
        self._describe_exception = describe_exception
        included = check_includes("includes", includes)
        self._options = Options(
            Settings(
                bool(track_status),
                check_duration("status_ttl", status_ttl, minimum=1),
                check_duration("status_throttle", status_throttle),
                included,
                included,
            )
        )
        self._max_pending = check_number("max_pending", max_pending, minimum=1)
        self._max_pending_bytes = check_number("max_pending_bytes", max_pending_bytes, minimum=1)
        self._use(backend)

    def _use(self, backend: StatusBackend) -> None:
        self.backend: StatusBackend = backend
        self._fields = MessageFields(
            backend,
            live_ttl=self.live_ttl,
            heartbeat_interval=self.heartbeat_interval,
            describe=self._describe_exception,
        )
        self._breaker = CircuitBreaker(type(backend).__name__)
        self._writer = Writer(
            backend,
            self._breaker,
            heartbeat_interval=self.heartbeat_interval,
            max_pending=self._max_pending,
            max_pending_bytes=self._max_pending_bytes,
        )
        self._cancels = CancelLogReader(backend, self._breaker, self._writer)
        self._deliveries = Deliveries(
            backend, self._writer, self._options, self._fields, self._cancels, self.heartbeat_interval
        )
        self._enqueues = Enqueues(
            backend, self._writer, self._breaker, self._fields, self._deliveries, self.heartbeat_interval
        )

    def with_backend(self, backend: StatusBackend) -> StatusMiddleware:
        """Return a middleware with the same settings and another store, to replace this middleware in a test."""
        twin = copy(self)
        twin._use(backend)
        return twin

    @property
    def actor_options(self) -> set[str]:
        return set(SETTINGS_OPTIONS)

    def health(self) -> Health:
        """Return whether the store is up, and the counters of this process, such as the number of updates that wait and
        of updates that were dropped.

        Returns:
          Health
        """
        return self._breaker.health(*self._writer.count_unsent())

    # Declaring

    # NOTE: Dramatiq has no hook for `add_middleware`.  The first of these hooks that a broker calls refuses a second
    # StatusMiddleware.  `add_middleware` itself calls `after_declare_actor` and `after_declare_queue` where the broker
    # has declared actors and queues before.

    def before_declare_queue(self, broker: dramatiq.Broker, queue_name: str) -> None:
        _refuse_two(broker)

    def after_declare_queue(self, broker: dramatiq.Broker, queue_name: str) -> None:
        _refuse_two(broker)
        _watch_enqueues(broker)

    def after_declare_actor(self, broker: dramatiq.Broker, actor: Any) -> None:
        _refuse_two(broker)
        _watch_enqueues(broker)
        # For actors that were declared before, Dramatiq 1 passes the name.
        _let_throw_cancelled(broker.get_actor(actor) if isinstance(actor, str) else actor)

    def before_worker_boot(self, broker: dramatiq.Broker, worker: Any) -> None:
        _refuse_two(broker)
        self._cancels.start()

    def before_declare_actor(self, broker: dramatiq.Broker, actor: Any) -> None:
        _refuse_two(broker)
        self._options.declare(actor.actor_name, actor.options)

    # Enqueueing

    @_through_late_interrupts
    def before_enqueue(self, broker: dramatiq.Broker, message: Any, delay: int | None) -> None:
        watched = broker.__dict__.get("enqueue")
        if watched is None:
            # The broker's next enqueue is the first one that is watched.
            _watch_enqueues(broker)
        thread, message_id = self._deliveries.thread_state, message.message_id
        if delay is None and thread.delayed and thread.holds(message_id):
            # A due message is moved to its queue; it was enqueued before.
            return
        # An interrupted enqueue may have left its confirmation here. The command of that enqueue may never have been
        # sent.
        thread.confirmation = None
        binding = self._deliveries.binding()
        inside = thread.worker or binding is not None
        settings = self._options.of_message(broker, message, strict=not inside)
        if not SETTINGS_OPTIONS.isdisjoint(message.options):
            write_back(message.options, settings)
        if "options" in message.options:
            self._options.warn_of_nested(message)
        is_attached = settings.tracked and self._enqueues.begin(
            thread,
            broker,
            message,
            delay,
            settings,
            binding,
            inside=inside,
            is_watched=watched is not None and getattr(watched, "first_thread", None) != get_ident(),
        )
        if binding is not None and binding.delivery is not None and not is_attached:
            self._enqueues.store_before_send(binding.delivery)

    @_through_late_interrupts
    def after_enqueue(self, broker: dramatiq.Broker, message: Any, delay: int | None) -> None:
        thread, message_id = self._deliveries.thread_state, message.message_id
        if delay is None and thread.delayed and thread.holds(message_id):
            return
        if thread.begun and isinstance(message_id, str):
            thread.begun.pop(message_id, None)
            thread.unconfirmed.pop(message_id, None)
        binding = self._deliveries.binding()
        if binding is not None and binding.delivery is not None and binding.delivery.message_id == message_id:
            binding.delivery.requeued = True
        elif thread.worker and isinstance(message_id, str):
            thread.enqueued.add(message_id)
        self._enqueues.complete(thread, message, binding)

    def withdraw_enqueue(self, message: Any) -> None:
        """Take back ``queued`` of a message whose enqueue has ended in an error, unless the enqueue is a retry.  A
        message that the broker has refused is then unknown, like a message that was never sent.
        """
        message_id = getattr(message, "message_id", None)
        if isinstance(message_id, str):
            self._enqueues.withdraw(message_id)

    def before_delay_message(self, broker: dramatiq.Broker, message: Any) -> None:
        if isinstance(message.message_id, str):
            self._deliveries.thread_state.hold(message.message_id)

    # Processing

    def before_process_message(self, broker: dramatiq.Broker, message: Any) -> None:
        self._deliveries.begin(broker, message)

    @_through_interrupts
    def after_process_message(
        self, broker: dramatiq.Broker, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        drop_interrupt()
        delivery = self._deliveries.delivery_of(broker, message)
        if delivery is not None:
            delivery.outcome_seen, delivery.exception, delivery.result = True, exception, result
            delivery.cancelled = exception is not None and is_abort(exception)
            if exception is None and unwrapped(message).options.get("group_completion_callbacks"):
                # The last member of a group sends the group's callback, which may read the statuses of all members.
                self._enqueues.store_before_send(delivery)

    @_through_interrupts
    def after_skip_message(self, broker: dramatiq.Broker, message: Any) -> None:
        delivery = self._deliveries.delivery_of(broker, message)
        if delivery is not None:
            # Dramatiq calls this hook while it handles the exception.
            exception = sys.exc_info()[1]
            delivery.cancelled = delivery.cancelled or isinstance(exception, Cancelled) or is_abort(exception)
            delivery.skipped = not delivery.cancelled

    @_through_interrupts
    def before_ack(self, broker: dramatiq.Broker, message: Any) -> None:
        self._deliveries.settle(broker, message, rejected=message.failed)

    @_through_interrupts
    def before_nack(self, broker: dramatiq.Broker, message: Any) -> None:
        self._deliveries.settle(broker, message, rejected=True)

    @_through_interrupts
    def after_ack(self, broker: dramatiq.Broker, message: Any) -> None:
        self._deliveries.close(broker, message, rejected=message.failed)

    @_through_interrupts
    def after_nack(self, broker: dramatiq.Broker, message: Any) -> None:
        self._deliveries.close(broker, message, rejected=True)

    # Shutting down

    def after_worker_thread_boot(self, broker: dramatiq.Broker, thread: Any) -> None:
        self._deliveries.thread_state.worker = True

    def after_worker_shutdown(self, broker: dramatiq.Broker, worker: Any) -> None:
        self._cancels.stop()
        self._writer.drain(SHUTDOWN_TIMEOUT)


class _WatchedEnqueue:
    """Replacement for the method ``enqueue`` of a broker.  It takes back ``queued`` when the method ends in an error,
    because Dramatiq has no hook for such an error.
    """

    def __init__(self, broker: dramatiq.Broker) -> None:
        self._broker = broker
        self._own = broker.__dict__.get("enqueue")
        #: Id of the thread that has replaced the broker's method, perhaps in the middle of the broker's first enqueue,
        #: which is not watched.  It is None while that thread calls this object.
        self.first_thread: int | None = get_ident()

    def __call__(self, message: Any, *args: Any, **kwargs: Any) -> Any:
        is_first = self.first_thread == get_ident()
        # The method of the class is looked up each time: tests replace it.
        call = self._own or type(self._broker).enqueue.__get__(self._broker)
        try:
            if is_first:
                self.first_thread = None
            return call(message, *args, **kwargs)
        except Exception:
            # An interrupt is no Exception and passes, because it gives no information about the broker.  It does not
            # interrupt system calls, so it mostly strikes when the broker has the message already.
            for middleware in self._broker.middleware:
                if isinstance(middleware, StatusMiddleware):
                    middleware.withdraw_enqueue(message)
            raise
        finally:
            if is_first:
                self.first_thread = get_ident()


#: Brokers whose enqueues are watched.
_watched: weakref.WeakSet[dramatiq.Broker] = weakref.WeakSet()


def _watch_enqueues(broker: dramatiq.Broker) -> None:
    """Replace the method ``enqueue`` of a broker by a :class:`_WatchedEnqueue`."""
    if broker not in _watched:
        broker.__dict__["enqueue"] = _WatchedEnqueue(broker)
        _watched.add(broker)


def _let_throw_cancelled(actor: Any) -> None:
    """Add :class:`.Cancelled` to the exceptions after which an actor's message is not retried.

    A worker skips a message whose actor raises it.  Some brokers, such as dramatiq-eager-broker, do not skip messages:
    they pass the exception to Dramatiq's ``Retries``.
    """
    throws = actor.options.get("throws") or ()
    if not isinstance(throws, tuple):
        throws = (throws,)
    if Cancelled not in throws:
        actor.options["throws"] = (*throws, Cancelled)


def _refuse_two(broker: dramatiq.Broker) -> None:
    """Refuse a broker that has two StatusMiddlewares. In a worker, the second one would find the delivery that the
    first one has just bound, assume that this delivery has ended, and close its buffer.
    """
    if sum(isinstance(middleware, StatusMiddleware) for middleware in broker.middleware) > 1:
        raise StatusSetupError(
            "The broker has more than one StatusMiddleware: add one only. A message has one status, in one store; how "
            "to move to another store without a second middleware is in docs/how-to/move-to-another-store.rst."
        )
