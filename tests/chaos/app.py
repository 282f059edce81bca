"""Module that the ``dramatiq`` command loads: a broker, the actors, and a witness that records what Dramatiq does."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.errors import Retry
from dramatiq.middleware import (
    AgeLimit,
    AsyncIO,
    Callbacks,
    CurrentMessage,
    GroupCallbacks,
    Middleware,
    Pipelines,
    Retries,
    ShutdownNotifications,
    SkipMessage,
    TimeLimit,
)
from dramatiq.rate_limits.backends import RedisBackend as RateLimits
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend as ResultBackend

from dramatiq_status import StatusMiddleware, StatusRegistry, backend_from_url, current_progress, current_status

from .facts import FactFile
from .plan import MAX_RETRIES

#: Milliseconds after which a silent worker counts as dead for the Redis broker.
BROKER_HEARTBEAT: Final = 2_000

#: Milliseconds between two heartbeats of running messages.
STATUS_HEARTBEAT: Final = 1_000

#: Time limit, in milliseconds, of jobs that exceed it on purpose.
TIME_LIMIT: Final = 400

#: Minimum duration of an acknowledgement that is recorded as slow, in seconds.
LONG_HOLD: Final = 1.0

#: Maximum seconds for which a job waits for its time limit.
_NO_LIMIT: Final = 30.0


class Boom(Exception):
    """An exception after which a job is retried."""


class Expected(Exception):
    """The exception in the actors' option ``throws``."""


@dataclass
class Run:
    """A delivery of a message to an actor."""

    message_id: str
    retries: int
    token: str = field(default_factory=lambda: uuid4().hex[:12])
    exception: str | None = None
    returned: bool = False
    skipped: bool = False
    #: Whether the retry was enqueued, and whether the broker has taken it.
    offered: bool = False
    requeued: bool = False
    decided: float = 0.0


_run: ContextVar[Run | None] = ContextVar("chaos_run", default=None)


class Notes(threading.local):
    """Values that the witness keeps between the hooks of one thread."""

    def __init__(self) -> None:
        self.delayed: Counter[str] = Counter()
        self.run: Run | None = None


class Witness(Middleware):
    """Middleware that records deliveries and decisions of Dramatiq. It stands ahead of the middleware under test.

    A decision is recorded before the middleware under test stores it, and so before a reader can see the final state.
    """

    def __init__(self, facts: FactFile) -> None:
        self._facts = facts
        self._notes = Notes()

    def after_process_boot(self, broker: dramatiq.Broker) -> None:
        watch_logs(self._facts)
        self._facts.write("booted", parent=os.getppid())

    def before_delay_message(self, broker: dramatiq.Broker, message: Any) -> None:
        self._notes.delayed[message.message_id] += 1

    def before_enqueue(self, broker: dramatiq.Broker, message: Any, delay: int | None) -> None:
        if delay is not None or not self._notes.delayed[message.message_id]:
            # A retry keeps its root; a message that its sender or a group enqueues again has another root.
            root = message.options.setdefault("chaos_root", uuid4().hex[:12])
            self._facts.write("enqueuing", id=message.message_id, origin=root)
            run = self._notes.run
            if run is not None and run.message_id == message.message_id:
                run.offered = True

    def after_enqueue(self, broker: dramatiq.Broker, message: Any, delay: int | None) -> None:
        if delay is not None or not self._notes.delayed[message.message_id]:
            run = self._notes.run
            if run is not None and run.message_id == message.message_id:
                run.requeued = True
            self._facts.write("enqueued", id=message.message_id)

    def before_process_message(self, broker: dramatiq.Broker, message: Any) -> None:
        self._begin(message)

    def after_process_message(
        self, broker: dramatiq.Broker, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        if (run := self._notes.run) is not None:
            run.returned, run.exception = True, None if exception is None else type(exception).__name__

    def after_skip_message(self, broker: dramatiq.Broker, message: Any) -> None:
        if (run := self._notes.run) is not None:
            run.skipped = True

    def before_ack(self, broker: dramatiq.Broker, message: Any) -> None:
        self._decide(message, rejected=message.failed)

    def before_nack(self, broker: dramatiq.Broker, message: Any) -> None:
        self._decide(message, rejected=True)

    def after_ack(self, broker: dramatiq.Broker, message: Any) -> None:
        if _is_delayed_copy(message):
            self._notes.delayed[message.message_id] -= 1
        elif (run := self._notes.run) is not None:
            self._facts.write("acked", id=run.message_id, run=run.token)
            self._notes.run = None

    after_nack = after_ack

    def _begin(self, message: Any) -> Run:
        run = Run(message.message_id, int(message.options.get("retries") or 0))
        self._notes.run = run
        _run.set(run)
        self._facts.write("began", id=run.message_id, run=run.token, retries=run.retries)
        return run

    def _decide(self, message: Any, *, rejected: bool) -> None:
        run = self._notes.run
        if run is None or run.message_id != message.message_id:
            if _is_delayed_copy(message):
                return
            # The broker delivered a message of an unknown actor.
            run = self._begin(message)
            run.exception = "ActorNotFound"
        if run.requeued:
            decision = "requeued"
        elif rejected or not (run.skipped or (run.returned and run.exception is None)):
            decision = "failed"
        else:
            decision = "completed"
        run.decided = time.monotonic()
        self._facts.write(
            "decided",
            id=run.message_id,
            run=run.token,
            decision=decision,
            exception=run.exception,
            skipped=run.skipped,
            unsure=run.offered and not run.requeued,
        )


class Stopwatch(Middleware):
    """Middleware behind the one under test that records slow acknowledgements."""

    def __init__(self, facts: FactFile) -> None:
        self._facts = facts

    def before_ack(self, broker: dramatiq.Broker, message: Any) -> None:
        run = _run.get()
        if run is not None and run.message_id == message.message_id and run.decided:
            seconds = time.monotonic() - run.decided
            if seconds > LONG_HOLD:
                self._facts.write("held", id=run.message_id, run=run.token, seconds=round(seconds, 2))

    before_nack = before_ack


def _is_delayed_copy(message: Any) -> bool:
    return bool(message.queue_name.endswith(".DQ"))


class FactHandler(logging.Handler):
    """Log handler that records what the library logs."""

    def __init__(self, facts: FactFile) -> None:
        super().__init__(logging.WARNING)
        self._facts = facts

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.name.startswith("dramatiq_status") or "StatusMiddleware" in text:
            trace = logging.Formatter().formatException(record.exc_info) if record.exc_info else None
            self._facts.write("log", level=record.levelname, text=text, trace=trace)


def watch_logs(facts: FactFile) -> None:
    """Record what this process logs from now on, if it is not recorded yet."""
    root = logging.getLogger()
    if not any(isinstance(handler, FactHandler) for handler in root.handlers):
        root.addHandler(FactHandler(facts))


def unwatch_logs() -> None:
    """Stop the recording of what this process logs, because another run may follow, with its own facts."""
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, FactHandler)]:
        root.removeHandler(handler)


def make_broker(broker_url: str, store_url: str, oracle_url: str, facts: FactFile) -> dramatiq.Broker:
    """Make the broker of the workers and of the runner. Statuses piggyback if broker and store are one Redis."""
    backend = backend_from_url(store_url)
    middleware = [
        AgeLimit(),
        TimeLimit(interval=100),
        ShutdownNotifications(),
        Callbacks(),
        Pipelines(),
        Retries(max_retries=MAX_RETRIES, min_backoff=20, max_backoff=200),
        AsyncIO(),
        Results(backend=ResultBackend(url=oracle_url)),
        GroupCallbacks(RateLimits(url=oracle_url)),
        CurrentMessage(),
        Witness(facts),
        StatusMiddleware(backend=backend, heartbeat_interval=STATUS_HEARTBEAT),
        Stopwatch(facts),
    ]
    broker: dramatiq.Broker
    if broker_url.startswith("amqp://"):
        # Without confirmations, the broker may lose messages.
        broker = RabbitmqBroker(url=broker_url, middleware=middleware, confirm_delivery=True)
    else:
        connects = {"client": backend.broker_client()} if store_url == broker_url else {"url": broker_url}
        broker = RedisBroker(
            middleware=middleware, heartbeat_timeout=BROKER_HEARTBEAT, maintenance_chance=1_000_000, **connects
        )
    _watch_errors(broker, facts)
    return broker


def _watch_errors(broker: dramatiq.Broker, facts: FactFile) -> None:
    """Record the enqueues that end in an error: the broker may have the message or not."""
    enqueue = broker.enqueue

    def watched(message: Any, *, delay: int | None = None) -> Any:
        try:
            return enqueue(message, delay=delay)
        except BaseException as e:
            what = "refused" if isinstance(e, Exception) else "interrupted"
            facts.write(what, id=message.message_id, exception=type(e).__name__)
            raise

    broker.enqueue = watched  # type: ignore[method-assign]


# The actors


def play(job: dict[str, Any]) -> int | None:
    """Carry out the job's plan."""
    for pause in _acts(job):
        time.sleep(pause)
    return job["number"] if job["result"] else None


async def play_async(job: dict[str, Any]) -> int | None:
    """Carry out the job's plan in the event loop."""
    for pause in _acts(job):
        await asyncio.sleep(pause)
    return job["number"] if job["result"] else None


def _acts(job: dict[str, Any]) -> Iterator[float]:
    """Carry out the steps of a job, and yield the seconds to sleep between them."""
    run = _run.get()
    assert run is not None
    status, progress = current_status(), current_progress()
    status["run"] = run.token
    facts.write("entered", id=run.message_id, run=run.token)
    status.update(begun=job["number"])
    if job["children"]:
        progress.total = job["children"]
    for _ in range(job["steps"]):
        progress.increment()
        if job["pause"]:
            yield job["pause"] / 1000
    status["last"] = run.token
    facts.write("did", id=run.message_id, run=run.token)
    yield from _send_children(job, run)
    if run.retries < job["failures"]:
        yield from _end(job, run)
    if "parent" in job:
        facts.write("counting", id=job["parent"], child=run.message_id, run=run.token)
        StatusRegistry.progress(job["parent"]).increment()


def _send_children(job: dict[str, Any], run: Run) -> Iterator[float]:
    for number in range(job["children"]):
        child = {**job, "children": 0, "steps": number, "parent": run.message_id, "end": "boom"}
        child["failures"] = int(number == 1)
        message = (
            dramatiq.get_broker().actors["play"].message_with_options(args=(child,), status={"user": job["number"]})
        )
        facts.write("planned", id=message.message_id, job=child)
        dramatiq.get_broker().enqueue(message)
        yield job["pause"] / 1000


def _end(job: dict[str, Any], run: Run) -> Iterator[float]:
    """Carry out the end of a run that the job's plan names."""
    end = job["end"]
    if end == "boom":
        raise Boom(run.token)
    if end == "retry":
        raise Retry(run.token, delay=30)
    if end == "throw":
        raise Expected(run.token)
    if end == "skip":
        raise SkipMessage(run.token)
    if end == "limit":
        deadline = time.monotonic() + _NO_LIMIT
        while time.monotonic() < deadline:
            yield 0.01
    if end == "say failed":
        current_status().update(status="failed", reason=run.token)
        facts.write("said", id=run.message_id, run=run.token)


def declare(broker: dramatiq.Broker) -> dict[str, dramatiq.Actor[Any, Any]]:
    """Declare the actors on a broker."""
    return {
        function.__name__: dramatiq.actor(function, broker=broker, throws=Expected) for function in (play, play_async)
    }


if "CHAOS_DIRECTORY" in os.environ:
    facts = FactFile(Path(os.environ["CHAOS_DIRECTORY"]))
    dramatiq.set_broker(
        make_broker(os.environ["CHAOS_BROKER"], os.environ["CHAOS_STORE"], os.environ["CHAOS_ORACLE"], facts)
    )
    declare(dramatiq.get_broker())
