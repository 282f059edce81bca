"""Dramatiq's hooks: what each means is in ``lifecycle.py``, what is
written goes through ``writer.py``.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import traceback
import weakref
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from random import Random
from typing import Any, Final, NamedTuple, TypeVar

import dramatiq
from dramatiq.errors import ActorNotFound
from dramatiq.middleware import Middleware

from ._process import at_fork, drop_interrupt
from .backend import StatusBackend, check_duration, check_message_id, check_number, now_ms
from .backends import backend_from_url
from .channel import RunChannel
from .context import Binding, bind, current_binding, hiding, uncover
from .errors import BackendError, StatusOptionError, StatusSetupError
from .fields import MAX_FIELDS, encode_fields, encode_value, plain_value
from .lifecycle import (
    Begun,
    Decision,
    Describe,
    Frame,
    ThreadNotes,
    describe_exception,
    is_delayed_copy,
    name_of,
    queue_of,
    shortened,
    type_and_text,
    whole_number,
)
from .outage import Health, Outage, logger
from .progress import Progress
from .record import (
    ACTOR_NAME,
    ARGS,
    COMPLETED,
    DEFAULT_HEARTBEAT_INTERVAL,
    DEFAULT_LIVE_TTL,
    DEFAULT_STATUS_TTL,
    ENQUEUED_AT,
    EXCEPTION,
    FAILED,
    FINISHED_AT,
    HEARTBEAT_INTERVAL,
    KWARGS,
    LIVE_TTL,
    MAX_WHOLE_NUMBER,
    NO_EPOCH,
    QUEUE_NAME,
    QUEUED,
    RESULT,
    SCHEDULED_AT,
    SKIPPED,
    STARTED_AT,
    STATUS_TTL,
    TRACEBACK,
    Epoch,
    Kind,
    Origin,
    Record,
    Update,
)
from .status import Status
from .writer import DEFAULT_MAX_PENDING, Barrier, Enqueue, Finish, Lane, Start, Writer

try:
    from dramatiq.threading import Interrupt
except ImportError:  # Dramatiq 1.x
    from dramatiq.middleware.threading import Interrupt

F = TypeVar("F", bound=Callable[..., None])

#: What ``includes`` may name.
INCLUDES: Final = frozenset(("message", "traceback", "result"))

#: How long a worker that shuts down waits for its last updates, in seconds.
SHUTDOWN_TIMEOUT: Final = 5.0

#: How many frames of a traceback are stored; what Dramatiq's Retries keeps.
_TRACEBACK_LIMIT: Final = 30

#: Limit of the retries that a message may claim to have had.
_MAX_RETRIES: Final = 10**9

#: The message options that are ours: which enqueue a message is the
#: delivery of, the store's receipt of it, and the heartbeat interval that its record
#: may name, where that is not the default.  Their values are plain JSON (two whole numbers in a list, a
#: string, a whole number): an encoder may not support other types, and a worker may lack this package.
EPOCH_OPTION: Final = "status_epoch"
RECEIPT_OPTION: Final = "status_receipt"
HEARTBEAT_OPTION: Final = "status_heartbeat"

#: Draws tokens of runs and roots of epochs, which only have to differ: without a system call each.
_token = Random(os.urandom(32))
at_fork(after_in_child=lambda: _token.seed(os.urandom(32)))


class Settings(NamedTuple):
    """What the middleware, an actor and a message together ask for."""

    tracked: bool
    status_ttl: int
    throttle: int
    #: Parts that the message asks to include, and parts that the actor, or else the middleware, allows.
    includes: frozenset[str]
    allowed: frozenset[str]

    def include(self, name: str) -> bool:
        """Whether to store something."""
        return name in self.includes and name in self.allowed


_SETTINGS_OPTIONS: Final = frozenset(("status_ttl", "status_throttle", "status_includes", "track_status"))

#: Options that users may give a message.
_OPTIONS: Final = _SETTINGS_OPTIONS | {"status"}


class _Context(NamedTuple):
    """What the middleware hangs on a frame."""

    lane: Lane
    settings: Settings
    previous: Binding | None
    #: As the worker holds it: with its exception, which the copy for a retry lacks.
    message: Any


def _through_interrupts(hook: F) -> F:
    """Carry a hook through to its end.

    Time limits, aborts and shutdowns are raised asynchronously, here
    too.  Behind the actor they come too late to stop it, and Dramatiq would run
    a message again whose actor has returned, or lose the thread.
    """

    @functools.wraps(hook)
    def wrapper(self: StatusMiddleware, broker: dramatiq.Broker, message: Any, **outcome: Any) -> None:
        while True:
            try:
                return hook(self, broker, message, **outcome)
            except Interrupt:
                logger.debug("An interrupt came after the actor had returned; it is ignored.")

    return wrapper  # type: ignore[return-value]


def _through_late_interrupts(hook: F) -> F:
    """The same for an enqueue, but for one that the actor itself makes: that is interrupted, and the
    actor with it.  A retry whose enqueue was interrupted would be lost, and the thread with it.
    """

    @functools.wraps(hook)
    def wrapper(self: StatusMiddleware, *args: Any, **kwargs: Any) -> None:
        while True:
            try:
                return hook(self, *args, **kwargs)
            except Interrupt:
                binding = self._binding()
                frame = None if binding is None else binding.frame
                if frame is None or not (frame.outcome_seen or _exception_in_flight(frame.context.message)):
                    raise
                logger.debug("An interrupt came after the actor had returned; it is ignored.")

    return wrapper  # type: ignore[return-value]


class StatusMiddleware(Middleware):
    """Records the status of every message.

    Add it last.  It works in other places of the list as well, except that a message is shown as
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
        writes of a message, in milliseconds.  An earlier write is kept,
        and sent when the time is over, or with the next write.
      includes(Iterable[str]): Further values to store: ``"message"`` (args
        and kwargs), ``"traceback"``, ``"result"``.  An actor's ``status_includes`` replaces
        this set; a message's ``status_includes`` may leave out some of it, and cannot add to it.
      describe_exception(Callable): Takes the exception of a failed run, and returns
        the dict of its ``"type"`` and ``"message"`` that is stored as
        ``exception``; None for no such field.  A stored traceback then ends with this
        description.  By default it has the type and the text of the exception; None stores no exception.
      track_status(bool): Whether to track messages of actors that do not set
        ``track_status``.
      heartbeat_interval(int): Milliseconds between heartbeats of the running
        messages of a worker, which sends all of them in one
        round trip.  A message without a heartbeat for three intervals
        is :attr:`.Snapshot.stalled`: three intervals should be longer than any
        call into C that keeps the interpreter lock.  By default 15 seconds.
      max_pending(int): Maximum number of messages whose updates a worker keeps in
        memory while the store is down; at least 1.
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
    ) -> None:
        if backend is None:
            backend = backend_from_url()
        if not isinstance(backend, StatusBackend):
            raise TypeError(f"backend must be a StatusBackend, not {type(backend).__name__}.")
        self.backend: StatusBackend = backend
        self.live_ttl: int = check_duration("live_ttl", live_ttl, minimum=1)
        self.heartbeat_interval: int = check_duration("heartbeat_interval", heartbeat_interval, minimum=1)
        self._describe = _check_describe(describe_exception)
        included = _check_includes("includes", includes)
        self._defaults = Settings(
            bool(track_status),
            check_duration("status_ttl", status_ttl, minimum=1),
            check_duration("status_throttle", status_throttle),
            included,
            included,
        )
        self._outage = Outage(type(backend).__name__)
        self._writer = Writer(
            backend,
            self._outage,
            heartbeat_interval=self.heartbeat_interval,
            max_pending=check_number("max_pending", max_pending, minimum=1),
        )
        self._notes = ThreadNotes()
        # Whether the warning about swallowed options was logged.
        self._warned_of_options = False
        _middleware.add(self)
        # By actor; actors are few and live as long as the process.
        self._settings: dict[str, Settings] = {}
        # What every record of this middleware says of itself, where it is not the default.
        self._extra: Record = {}
        if self.live_ttl != DEFAULT_LIVE_TTL:
            self._extra[LIVE_TTL] = str(self.live_ttl)
        if self.heartbeat_interval != DEFAULT_HEARTBEAT_INTERVAL:
            self._extra[HEARTBEAT_INTERVAL] = str(self.heartbeat_interval)

    @property
    def actor_options(self) -> set[str]:
        return set(_SETTINGS_OPTIONS)

    def health(self) -> Health:
        """Return whether the store is up, and counters of this process: of updates that wait, and of those that
        were dropped. Each process has its own.

        Returns:
          Health
        """
        return self._outage.health(*self._writer.count_unsent())

    # Declaring

    # NOTE: Dramatiq has no hook for `add_middleware`.  The first of these hooks that a broker calls refuses a second
    # StatusMiddleware.  `add_middleware` itself calls `after_declare_actor` and `after_declare_queue` where the broker
    # has declared actors and queues before.

    def before_declare_queue(self, broker: dramatiq.Broker, queue_name: str) -> None:
        _refuse_two(broker)

    def after_declare_queue(self, broker: dramatiq.Broker, queue_name: str) -> None:
        _refuse_two(broker)

    def after_declare_actor(self, broker: dramatiq.Broker, actor: Any) -> None:
        _refuse_two(broker)

    def before_worker_boot(self, broker: dramatiq.Broker, worker: Any) -> None:
        _refuse_two(broker)

    def before_declare_actor(self, broker: dramatiq.Broker, actor: Any) -> None:
        _refuse_two(broker)
        self._settings[actor.actor_name] = self._settings_of_actor(actor.actor_name, actor.options)

    # Enqueueing

    @_through_late_interrupts
    def before_enqueue(self, broker: dramatiq.Broker, message: Any, delay: int | None) -> None:
        notes, message_id = self._notes, message.message_id
        if delay is None and notes.delayed and notes.holds(message_id):
            # A due message is moved to its queue; it was enqueued before.
            return
        binding = self._binding()
        inside = notes.worker or binding is not None
        settings = self._settings_of(broker, message, strict=not inside)
        if not _SETTINGS_OPTIONS.isdisjoint(message.options):
            _write_back(message.options, settings)
        if "options" in message.options and not self._warned_of_options:
            self._warn_of_options(message)
        if settings.tracked:
            self._write_queued(message, delay, settings, binding, inside=inside)
        if binding is not None and binding.frame is not None:
            self._store_before_send(binding.frame)

    def _warn_of_options(self, message: Any) -> None:
        """Warn once of options of this middleware that arrive in a place where Dramatiq ignores them."""
        nested = message.options["options"]
        if not isinstance(nested, Mapping):
            return
        swallowed = sorted(_OPTIONS.intersection(nested))
        if swallowed:
            self._warned_of_options = True
            logger.warning(
                "The options %s of message %.200r of actor %.200r have arrived inside of an option named 'options' and "
                "have no effect; neither have Dramatiq's own beside them. Some versions of OpenTelemetry's "
                "instrumentor for Dramatiq do this to what send_with_options() is given. Send such messages with "
                "broker.enqueue(actor.message(...).copy(options={...})). This is logged once.",
                ", ".join(swallowed),
                message.message_id,
                message.actor_name,
            )

    def _write_queued(
        self, message: Any, delay: int | None, settings: Settings, binding: Binding | None, *, inside: bool
    ) -> None:
        """Write that a message enters its queue."""
        notes, message_id = self._notes, message.message_id
        epoch = self._begin_enqueue(message)
        message.options[EPOCH_OPTION] = list(epoch)
        if self.heartbeat_interval != DEFAULT_HEARTBEAT_INTERVAL:
            message.options[HEARTBEAT_OPTION] = self.heartbeat_interval
        fields = self._fields_of(message, settings, strict=not inside)
        if delay is not None:
            # Dramatiq takes longer delays, a record holds numbers of at most 15 digits.
            fields[SCHEDULED_AT] = str(min(now_ms() + whole_number(delay, MAX_WHOLE_NUMBER), MAX_WHOLE_NUMBER))
        if not inside:
            self._enqueue_directly(message, Update(Kind.ENQUEUE, epoch, fields=fields))
        elif binding is not None and binding.frame is not None and binding.frame.message_id == message_id:
            frame = binding.frame
            # A tracer that stands first sees the retry before the outcome.
            exception = frame.exception or _exception_in_flight(frame.context.message)
            if exception is not None:
                fields.update(self._fields_of_exception(exception, settings))
            lane, barrier = frame.context.lane, Barrier()
            lane.add(Enqueue(epoch, fields))
            lane.add(barrier)
            notes.barrier = barrier
        else:
            notes.barrier = self._writer.enqueue(message_id, Enqueue(epoch, fields))

    def _store_before_send(self, frame: Frame) -> None:
        """Wait until all writes of a run are stored, before the broker gets a message that the run sends and that may
        read them. In a coroutine, which must not block the event loop, do nothing.
        """
        if self._outage.down or asyncio._get_running_loop() is not None:
            return
        # A run may hold handles of thousands of messages, and send as many.
        fresh, frame.fresh = frame.fresh, set()
        others = [found for reference in list(fresh) if (found := reference()) is not None]
        written = [*filter(None, [lane.unstored() for lane in (frame.context.lane, *others)]), *(frame.enqueues or ())]
        if any(barrier.stored is None for barrier in written):
            # In the same round trip as `queued`.
            queued = self._notes.barrier
            self._writer.confirm_others((), written if queued is None else [*written, queued], self._writer.deadline())
            if queued is not None and queued.stored is None:
                # The time-out is over: after_enqueue does not wait for a second one.
                self._notes.barrier = None

    @_through_late_interrupts
    def after_enqueue(self, broker: dramatiq.Broker, message: Any, delay: int | None) -> None:
        notes, message_id = self._notes, message.message_id
        if delay is None and notes.delayed and notes.holds(message_id):
            return
        if notes.begun and isinstance(message_id, str):
            notes.begun.pop(message_id, None)
        binding = self._binding()
        if binding is not None and binding.frame is not None and binding.frame.message_id == message_id:
            binding.frame.requeued = True
        elif notes.worker and isinstance(message_id, str):
            notes.enqueued.add(message_id)
        self._complete_owed()
        if notes.barrier is not None:
            if asyncio._get_running_loop() is None:
                self._writer.wait(notes.barrier)
            elif binding is not None and binding.frame is not None:
                # A coroutine must not block other coroutines: the acknowledgement of its message waits instead.
                waits = [barrier for barrier in binding.frame.enqueues or () if barrier.stored is None]
                binding.frame.enqueues = [*waits, notes.barrier]
            notes.barrier = None

    def before_delay_message(self, broker: dramatiq.Broker, message: Any) -> None:
        if isinstance(message.message_id, str):
            self._notes.hold(message.message_id)

    def _begin_enqueue(self, message: Any) -> Epoch:
        """Return the enqueue of a message that begins: the one that has begun before, where the broker tries again."""
        notes, message_id, carried = self._notes, message.message_id, _epoch_of(message.options)
        begun = notes.begun.get(message_id)
        if begun is not None and begun.is_repeated_by(message.message_timestamp, carried):
            return begun.epoch
        epoch = _next_epoch(carried)
        notes.begin(message_id, Begun(message.message_timestamp, carried, epoch))
        return epoch

    def _enqueue_directly(self, message: Any, update: Update) -> None:
        """Send `queued` before the broker gets the message; the reply is
        read after it, so that the two round trips overlap.
        """
        self._complete_owed()
        if self._outage.blocked:
            self._outage.dropped()
            return
        try:
            self._notes.owed = self.backend.begin_update(message.message_id, update)
        except BackendError as e:
            self._outage.failed(e)
            return
        except (TypeError, ValueError) as e:
            logger.error("The status of message %r cannot be stored: %s", message.message_id, e)
            return
        receipt = self.backend.receipt(message.message_id)
        if receipt is not None:
            message.options[RECEIPT_OPTION] = receipt

    def _complete_owed(self) -> None:
        # Owed since the last enqueue of this thread, if the broker refused it.
        owed, self._notes.owed = self._notes.owed, None
        if owed is not None:
            try:
                owed()
            except BackendError as e:
                self._outage.failed(e)
            else:
                self._outage.succeeded()

    # Processing

    def before_process_message(self, broker: dramatiq.Broker, message: Any) -> None:
        notes, given = self._notes, _unwrapped(message)
        previous = current_binding()
        if previous is not None and notes.worker:
            # Left behind by a delivery whose end we were not told.
            _abandon(previous)
            previous = None
        settings = self._settings_of(broker, given, strict=False)
        if not settings.tracked:
            # Its end brings back what it hides; a worker's thread has nothing to hide.
            bind(None if previous is None else hiding(previous, given.message_id))
            return
        if previous is not None and previous.frame is not None and previous.frame.message_id == given.message_id:
            # A broker that retries inside of the hooks.
            previous.frame.requeued = True
        binding = self._open(message, given, settings, previous, run=_token.getrandbits(31) | 1)
        assert binding.frame is not None
        frame, options = binding.frame, given.options
        lane: Lane = frame.context.lane
        origin = None
        receipt = options.get(RECEIPT_OPTION)
        if isinstance(receipt, str):
            origin = Origin(Update(Kind.ENQUEUE, frame.epoch, fields=lane.base), receipt)
        fields = {STARTED_AT: str(now_ms())}
        if self.heartbeat_interval != DEFAULT_HEARTBEAT_INTERVAL or HEARTBEAT_OPTION in options:
            # The record may name that of a process that has enqueued it. (What a worker that died has named is not
            # known here: a message is shown as stalled where the next worker's is more than three times as long.)
            fields[HEARTBEAT_INTERVAL] = str(self.heartbeat_interval)
        retries = whole_number(options.get("retries"), 0)
        # Redeliveries count up from there, and a record holds 15 digits.
        lane.add(Start(fields, retries + 1 if 0 <= retries < _MAX_RETRIES else 1, origin))
        bind(binding)
        # Not before it is bound: an interrupt between the two would leave a lane that nobody closes.
        self._writer.running[lane] = None

    @_through_interrupts
    def after_process_message(
        self, broker: dramatiq.Broker, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        drop_interrupt()
        frame = self._frame_of(broker, message)
        if frame is not None:
            frame.outcome_seen, frame.exception, frame.result = True, exception, result
            if exception is None and _unwrapped(message).options.get("group_completion_callbacks"):
                # The last member of a group sends the group's callback, which may read the statuses of all members.
                self._store_before_send(frame)

    @_through_interrupts
    def after_skip_message(self, broker: dramatiq.Broker, message: Any) -> None:
        frame = self._frame_of(broker, message)
        if frame is not None:
            frame.skipped = True

    @_through_interrupts
    def before_ack(self, broker: dramatiq.Broker, message: Any) -> None:
        self._settle(broker, message, rejected=message.failed)

    @_through_interrupts
    def before_nack(self, broker: dramatiq.Broker, message: Any) -> None:
        self._settle(broker, message, rejected=True)

    @_through_interrupts
    def after_ack(self, broker: dramatiq.Broker, message: Any) -> None:
        self._close(broker, message, rejected=message.failed)

    @_through_interrupts
    def after_nack(self, broker: dramatiq.Broker, message: Any) -> None:
        self._close(broker, message, rejected=True)

    def _settle(self, broker: dramatiq.Broker, message: Any, *, rejected: bool) -> None:
        """The message is about to be acknowledged or rejected: write what it has come to."""
        frame = self._find_frame(message)
        if frame is None:
            if is_delayed_copy(message.queue_name, message.options):
                return
            # No worker has had it: its actor is unknown.
            frame = self._frame_of(broker, message)
            if frame is None:
                return
        lane: Lane = frame.context.lane
        if not frame.settled:
            if frame.others is not None or frame.enqueues is not None:
                # Before the final state: a reader that sees it also finds what the run has written to other messages.
                frame.deadline = frame.deadline or self._writer.deadline()
                lanes = [found for reference in list(frame.others or ()) if (found := reference()) is not None]
                self._writer.confirm_others(lanes, frame.enqueues or (), frame.deadline)
            decision = frame.decide(rejected=rejected)
            if decision is Decision.REQUEUED:
                lane.close()
            else:
                frame.barrier = Barrier()
                lane.finish(self._finish(frame, message, decision), frame.barrier)
            frame.settled = True
        if frame.barrier is not None:
            self._writer.confirm(lane, frame.barrier, frame.deadline)
            frame.barrier = None

    def _finish(self, frame: Frame, message: Any, decision: Decision) -> Finish:
        context: _Context = frame.context
        settings, state = context.settings, FAILED if decision is Decision.FAILED else COMPLETED
        fields = {FINISHED_AT: str(now_ms())}
        if frame.skipped:
            fields[SKIPPED] = "true"
        if state == COMPLETED and context.lane.verdict is not None:
            state = context.lane.verdict
        if decision is Decision.FAILED:
            exception = frame.exception or getattr(message, "_exception", None)
            if exception is None and not frame.outcome_seen and not frame.skipped:
                # A broker that tells the hooks of no exception is just raising it; Dramatiq 1.x does
                # not say why it rejects a message without running it.
                exception = sys.exc_info()[1] if frame.run else ActorNotFound(message.actor_name)  # type: ignore[no-untyped-call]
            if exception is not None:
                fields.update(self._fields_of_exception(exception, settings))
        elif settings.include("result") and not context.lane.has_written(RESULT):
            self._include(fields, RESULT, "result", frame.result)
        return Finish(state, fields, settings.status_ttl)

    def _close(self, broker: dramatiq.Broker, message: Any, *, rejected: bool) -> None:
        """The delivery is over."""
        notes = self._notes
        if notes.holds(message.message_id) and is_delayed_copy(message.queue_name, message.options):
            notes.release(message.message_id)
        frame = self._find_frame(message)
        if frame is not None:
            if not frame.settled:
                # A broker without the hooks before.
                self._settle(broker, message, rejected=rejected)
            frame.exception = frame.result = None
            bind(frame.context.previous)
        else:
            uncover(message.message_id)
        notes.forget()

    # Frames

    def _binding(self) -> Binding | None:
        binding = current_binding()
        return binding if binding is not None and binding.writer is self._writer else None

    def _find_frame(self, message: Any) -> Frame | None:
        binding = current_binding()
        if binding is None or binding.writer is not self._writer or binding.frame is None:
            return None
        frame = binding.frame
        # Mostly it is the same object, and to ask a worker's proxy for an id takes time.
        return frame if frame.context.message is message or frame.message_id == message.message_id else None

    def _frame_of(self, broker: dramatiq.Broker, message: Any) -> Frame | None:
        """The frame of a message; one without a run where another
        middleware stopped the message before ours saw it; None for one
        that is not tracked.
        """
        frame = self._find_frame(message)
        if frame is None:
            settings = self._settings_of(broker, message, strict=False)
            if settings.tracked:
                previous = None if self._notes.worker else current_binding()
                binding = self._open(message, _unwrapped(message), settings, previous, run=0)
                bind(binding)
                frame = binding.frame
                assert frame is not None
                # It may have been another middleware that has stopped it, and put it back before ours saw it.
                frame.requeued = frame.message_id in self._notes.enqueued
        return frame

    def _open(self, message: Any, given: Any, settings: Settings, previous: Binding | None, *, run: int) -> Binding:
        """Open the lane and the frame of a delivery."""
        message_id, epoch = given.message_id, _epoch_of(given.options)
        base: Callable[[], Record] = functools.partial(self._fields_of, given, settings, strict=False)
        if settings.include("message"):
            # The actor may change its arguments.
            base = base().copy
        lane = self._writer.begin_run(message_id, run=run, epoch=epoch, throttle=settings.throttle, base=base)
        frame = Frame(message_id, epoch, run, context=_Context(lane, settings, previous, message))
        channel = RunChannel(lane, self.backend)
        return Binding(Status(channel), Progress(channel), self._writer, frame)

    # Options

    def _settings_of(self, broker: dramatiq.Broker, message: Any, *, strict: bool) -> Settings:
        name, options = message.actor_name, message.options
        settings = self._settings.get(name)
        if settings is None:
            # Declared before this middleware was added, or known to other processes only.
            actor = broker.actors.get(name)
            settings = self._settings_of_actor(name, actor.options if actor else {})
            if actor is not None:
                self._settings[name] = settings
        if not _SETTINGS_OPTIONS.isdisjoint(options):
            for option in _SETTINGS_OPTIONS.intersection(options):
                try:
                    settings = _refine(settings, {option: options[option]}, f"message {message.message_id!r}")
                except StatusOptionError as e:
                    if strict:
                        raise
                    logger.error("%s The option is ignored.", e)
            # Where the producer has not declared the actor, the worker decides.
            if strict and name in self._settings:
                _refuse_more(settings, message)
        if settings.tracked:
            # A worker checks it, too: the producer may not have this middleware.
            try:
                check_message_id(message.message_id)
            except (TypeError, ValueError) as e:
                logger.warning("Message %.200r of actor %r is not tracked: %s", message.message_id, name, e)
                settings = settings._replace(tracked=False)
        return settings

    def _settings_of_actor(self, name: str, options: Mapping[str, Any]) -> Settings:
        settings = _refine(self._defaults, options, f"actor {name!r}")
        return settings._replace(allowed=settings.includes)

    def _fields_of(self, message: Any, settings: Settings, *, strict: bool) -> Record:
        """What a message says of itself, and the fields that were given when it was sent."""
        fields = {
            ACTOR_NAME: _quoted(name_of(message.actor_name)),
            QUEUE_NAME: _quoted(queue_of(message.queue_name)),
            **self._extra,
        }
        enqueued_at = whole_number(message.message_timestamp, -1)
        if enqueued_at >= 0:
            fields[ENQUEUED_AT] = str(enqueued_at)
        if settings.status_ttl != DEFAULT_STATUS_TTL:
            # For an end that somebody else says.
            fields[STATUS_TTL] = str(settings.status_ttl)
        given = message.options.get("status")
        if given is not None:
            encoded, message.options["status"] = self._given_fields(given, message, strict=strict)
            fields.update(encoded)
        if settings.include("message"):
            self._include(fields, ARGS, "args", list(message.args))
            self._include(fields, KWARGS, "kwargs", message.kwargs)
        return fields

    def _given_fields(self, given: Any, message: Any, *, strict: bool) -> tuple[Record, dict[str, Any]]:
        """Encode the fields that were given when the message was sent.  Return them, and the valid ones as plain JSON:
        an encoder may support no other types.
        """
        where = f"message {message.message_id!r} of actor {message.actor_name!r}"
        if not isinstance(given, Mapping):
            if strict:
                raise StatusOptionError(f"The option 'status' of {where} must be a dict, not {type(given).__name__}.")
            logger.error("The option 'status' of %s is not a dict and is ignored.", where)
            return {}, {}
        if len(given) > MAX_FIELDS:
            if strict:
                raise StatusOptionError(
                    f"The option 'status' of {where} has more than {MAX_FIELDS} fields: {len(given)}."
                )
            logger.error("The option 'status' of %s has more than %d fields and is ignored.", where, MAX_FIELDS)
            return {}, {}
        fields: Record = {}
        right: dict[str, Any] = {}
        wrong: list[Exception] = []
        for name, value in given.items():
            try:
                encoded, state = encode_fields({name: value}, max_size=self.backend.max_field_size)
                if state not in (None, QUEUED):
                    raise ValueError(f"Field 'status' of a message that is sent is 'queued', not {value!r}.")
            except (TypeError, ValueError) as e:
                if strict:
                    raise StatusOptionError(f"The option 'status' of {where} is wrong. {e}") from e
                wrong.append(e)
            else:
                fields.update(encoded)
                right[str.__str__(name)] = plain_value(value, encoded, state)
        if wrong:
            logger.error(
                "In the option 'status' of %s, %d of %d fields are ignored. %s", where, len(wrong), len(given), wrong[0]
            )
        return fields, right

    def _fields_of_exception(self, exception: BaseException, settings: Settings) -> Record:
        fields: Record = {}
        described = None
        if self._describe is not None:
            # None replaces the exception of an earlier run.
            described = describe_exception(exception, self.backend.max_field_size, self._describe)
            self._include(fields, EXCEPTION, "exception", described)
        if settings.include("traceback"):
            try:
                if self._describe is type_and_text:
                    text = "".join(traceback.format_exception(exception, limit=_TRACEBACK_LIMIT))
                else:
                    text = _described_traceback(exception, described)
            except Exception as e:
                # As above.
                logger.warning("A traceback cannot be written: %s", e)
            else:
                # Its end says most: the exception, and where it was raised.
                self._include(fields, TRACEBACK, "traceback", shortened(text, self.backend.max_field_size, end=True))
        return fields

    def _include(self, fields: Record, stored: str, name: str, value: Any) -> None:
        try:
            fields[stored] = encode_value(name, value, self.backend.max_field_size)
        except Exception as e:
            # Whatever it is that the job has left: its status must not suffer.
            logger.warning("It is not included: %s", e)

    # Shutting down

    def after_worker_thread_boot(self, broker: dramatiq.Broker, thread: Any) -> None:
        self._notes.worker = True

    def after_worker_shutdown(self, broker: dramatiq.Broker, worker: Any) -> None:
        self._writer.drain(SHUTDOWN_TIMEOUT)


#: All middleware of this process.
_middleware: weakref.WeakSet[StatusMiddleware] = weakref.WeakSet()


def _forget_notes() -> None:
    # A reply that the store still owes is the parent's to read, from a socket that both have.
    for middleware in list(_middleware):
        middleware._notes = ThreadNotes()


at_fork(after_in_child=_forget_notes)


def _refuse_two(broker: dramatiq.Broker) -> None:
    """Refuse a broker with two of this middleware: each would take a worker's running message from the other."""
    if sum(isinstance(middleware, StatusMiddleware) for middleware in broker.middleware) > 1:
        raise StatusSetupError(
            "The broker has more than one StatusMiddleware: add one only. A message has one status, in one store; how "
            "to move to another store without a second middleware is in the README, under 'Moving to another store'."
        )


def _unwrapped(message: Any) -> Any:
    """What a worker's proxy of a message stands for: each look through a proxy costs a failed one."""
    return getattr(message, "_message", message)


@functools.lru_cache(maxsize=1024)
def _quoted(name: str) -> str:
    return encode_value("name", name, 1 << 20)


def _next_epoch(epoch: Epoch) -> Epoch:
    return Epoch(epoch.root, epoch.number + 1) if epoch.root else Epoch(_token.getrandbits(31) | 1, 1)


def _epoch_of(options: dict[str, Any]) -> Epoch:
    """Return the enqueue that a message is the delivery of; NO_EPOCH where its option is missing or malformed."""
    given = options.get(EPOCH_OPTION)
    if given is None:
        return NO_EPOCH
    if isinstance(given, (list, tuple)) and len(given) == 2:
        epoch = Epoch(whole_number(given[0], 0), whole_number(given[1], 0))
        # The next one has to be a number as well.
        if epoch.root > 0 and 0 < epoch.number < MAX_WHOLE_NUMBER:
            return epoch
    return NO_EPOCH


def _exception_in_flight(message: Any) -> BaseException | None:
    # Dramatiq puts it there before any hook hears of it.
    found = getattr(message, "_exception", None)
    return found if isinstance(found, BaseException) else None


def _abandon(binding: Binding) -> None:
    if binding.frame is not None and not binding.frame.settled:
        binding.frame.context.lane.close()


def _described_traceback(exception: BaseException, described: Mapping[str, str] | None) -> str:
    """Format a traceback without the texts of exceptions, including exceptions that were caught on the way."""
    lines = ["Traceback (most recent call last):\n", *traceback.format_tb(exception.__traceback__, _TRACEBACK_LIMIT)]
    if described is not None:
        lines.append(": ".join(filter(None, (described["type"], described["message"]))) + "\n")
    return "".join(lines)


def _refuse_more(settings: Settings, message: Any) -> None:
    if not settings.includes <= settings.allowed:
        more = ", ".join(sorted(map(repr, settings.includes - settings.allowed)))
        raise StatusOptionError(
            f"The option 'status_includes' of message {message.message_id!r} asks for {more}, which actor "
            f"{message.actor_name!r} does not include: a message may only leave something out. Add it to the actor's "
            "status_includes, or to includes of StatusMiddleware."
        )


def _refine(settings: Settings, options: Mapping[str, Any], where: str) -> Settings:
    """Lay the options of an actor or a message over the settings."""
    try:
        if options.get("track_status") is not None:
            settings = settings._replace(tracked=bool(options["track_status"]))
        if options.get("status_ttl") is not None:
            settings = settings._replace(status_ttl=check_duration("status_ttl", options["status_ttl"], minimum=1))
        if options.get("status_throttle") is not None:
            settings = settings._replace(throttle=check_duration("status_throttle", options["status_throttle"]))
        if options.get("status_includes") is not None:
            settings = settings._replace(includes=_check_includes("status_includes", options["status_includes"]))
    except (TypeError, ValueError) as e:
        raise StatusOptionError(f"An option of {where} is wrong. {e}") from e
    return settings


def _write_back(options: dict[str, Any], settings: Settings) -> None:
    """Write what a message's options were found to mean in their place: a broker cannot send sets and timedeltas,
    nor what is wrong.
    """
    checked = {
        "track_status": settings.tracked,
        "status_ttl": settings.status_ttl,
        "status_throttle": settings.throttle,
        "status_includes": sorted(settings.includes),
    }
    for option in checked.keys() & options:
        if options[option] is not None:
            options[option] = checked[option]


def _check_describe(describe: Any) -> Describe | None:
    if describe is not None and not callable(describe):
        raise TypeError(
            f"describe_exception must be a function of an exception, or None, not {type(describe).__name__}."
        )
    found: Describe | None = describe
    return found


def _check_includes(name: str, includes: Iterable[str]) -> frozenset[str]:
    if isinstance(includes, str):
        raise TypeError(f"{name} must be a set of names, not the str {includes!r}: write {{{includes!r}}}.")
    found = frozenset(includes)
    if not found <= INCLUDES:
        unknown = ", ".join(sorted(map(repr, found - INCLUDES)))
        raise ValueError(f"{name} may name {', '.join(sorted(map(repr, INCLUDES)))}, not {unknown}.")
    # Our own strings: an enum of the user's may equal them.
    return frozenset(include for include in INCLUDES if include in found)
