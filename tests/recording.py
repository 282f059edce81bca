"""A backend that records its calls, and that a test can block or break; brokers whose jobs use it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import dramatiq
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import AsyncIO, Callbacks, Middleware, Pipelines, Retries

from dramatiq_status import BackendError, StatusMiddleware, StatusRegistry
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends import StubBackend
from dramatiq_status.record import Record
from dramatiq_status.testing.conformance.store import until_answered
from dramatiq_status.update import Kind, Outcome, Update

#: Maximum number of seconds that a test waits for an event.
PATIENCE = 20.0

#: An environment for processes whose coverage is not measured: a tracer makes the conformance suite several times
#: slower, and lets its interrupts strike as a lock is taken.
UNMEASURED = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}

Updates = list[tuple[str, Update]]


class RecordingBackend(StubBackend):
    """A stub that records its calls of `update_many` in order: :attr:`calls` has a list of updates for each.

    ``before`` and ``after`` are called with the updates of each call; they may block, or raise an error for the call.
    """

    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.calls: list[Updates] = []
        self.attempts = 0
        self.before: Callable[[Updates], None] = lambda updates: None
        self.after: Callable[[Updates], None] = lambda updates: None
        self._called = threading.Condition()

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        given = list(updates)
        with self._called:
            self.attempts += 1
            self._called.notify_all()
        self.before(given)
        outcomes = super().update_many(given)
        with self._called:
            self.calls.append(given)
            self._called.notify_all()
        self.after(given)
        return outcomes

    def wait_for(self, predicate: Callable[[], Any]) -> None:
        """Wait until the predicate is true.  It is called as each call of `update_many` begins and ends."""
        with self._called:
            assert self._called.wait_for(predicate, PATIENCE), "It did not happen in time."

    def updates(self, message_id: str | None = None, *kinds: Kind) -> list[Update]:
        """Return the updates that were carried out, of one message or all, of some kinds or all."""
        return [
            update
            for call in list(self.calls)
            for found, update in call
            if message_id in (None, found) and (not kinds or update.kind in kinds)
        ]

    def writes(self, message_id: str | None = None) -> list[Update]:
        """Return the updates of runs, except heartbeats."""
        return self.updates(message_id, Kind.RUN)

    def field(self, message_id: str, stored_name: str) -> str | None:
        """Return the JSON text of a field."""
        record: Record | None = self.read(message_id)
        return None if record is None else record.get(stored_name)


class Gate:
    """A gate that blocks those calls of a backend for which ``holds`` returns True, until it is opened."""

    def __init__(self, backend: RecordingBackend, holds: Callable[[Updates], bool] | None = None) -> None:
        self._holds = holds or (lambda updates: any(update.kind is Kind.RUN for _, update in updates))
        self._open = threading.Event()
        #: Set when a call waits at the gate.
        self.reached = threading.Event()
        backend.before = self._pass

    def _pass(self, updates: Updates) -> None:
        if not self._open.is_set() and self._holds(updates):
            self.reached.set()
            assert self._open.wait(PATIENCE)

    def open(self) -> None:
        self._open.set()


class Broken:
    """A fault of a backend: while it is ``down``, all updates fail, before or after they are carried out, and so do
    reads of the log of cancelled messages.  A worker reads it once a second, and a successful read ends an outage.
    """

    def __init__(self, backend: RecordingBackend, *, after: bool = False) -> None:
        self.down = True
        self.failures = 0
        if after:
            backend.after = self._fail
        else:
            backend.before = self._fail
        self._read_cancels = backend.read_cancels
        backend.read_cancels = self._read_log  # type: ignore[method-assign]

    def _read_log(self, position: Any) -> tuple[Any, Sequence[int]]:
        if self.down:
            raise BackendError("The store is down for this test.")
        return self._read_cancels(position)

    def _fail(self, updates: Updates) -> None:
        if self.down:
            self.failures += 1
            raise BackendError("The store is down for this test.")


def make_broker(backend: StatusBackend, *middleware: Middleware, asyncio: bool = False, **options: Any) -> StubBroker:
    """Make a broker with the usual middleware, quick retries (none by default) and statuses."""
    first = [AsyncIO()] if asyncio else []
    return make_stub_broker(
        *first,
        Callbacks(),
        Pipelines(),
        Retries(max_retries=0, min_backoff=1, max_backoff=2),
        *middleware,
        StatusMiddleware(backend=backend, **options),
    )


def make_stub_broker(*middleware: Middleware) -> StubBroker:
    """Make Dramatiq's stub, by default with Dramatiq's own middleware. Its `join` raises no exceptions of jobs. For
    this, the stub of Dramatiq 2 needs an argument.
    """
    knows = "fail_fast_default" in signature(StubBroker).parameters
    return StubBroker(list(middleware) or None, **({"fail_fast_default": False} if knows else {}))


def start_worker(broker: dramatiq.Broker, *, threads: int = 2, queues: set[str] | None = None) -> dramatiq.Worker:
    """Start a worker in this process that a test can stop at once."""
    worker = dramatiq.Worker(broker, queues=queues, worker_timeout=10, worker_threads=threads)
    worker.start()
    wait_until_it_runs(worker)
    return worker


def wait_until_it_runs(worker: dramatiq.Worker) -> None:
    """Wait until all threads of a worker run.

    A thread of Dramatiq's worker sets its own flag ``running`` as it begins.  If `stop` has cleared the flag before,
    the thread never ends, and `stop` waits for it for ten minutes.
    """
    eventually(lambda: all(thread.running for thread in [*worker.workers, *worker.consumers.values()]))


@contextmanager
def working(broker: dramatiq.Broker, *, threads: int = 2) -> Iterator[dramatiq.Worker]:
    """Run a worker in this process for the length of a ``with`` block."""
    worker = start_worker(broker, threads=threads)
    try:
        yield worker
    finally:
        worker.stop()


def run(broker: StubBroker, *, threads: int = 2) -> None:
    """Run a worker until all that is enqueued has been processed."""
    with working(broker, threads=threads) as worker:
        join(broker, worker)


def join(broker: StubBroker, worker: dramatiq.Worker) -> None:
    """Wait until all that is enqueued has been processed."""
    for queue_name in list(broker.queues):
        if not queue_name.endswith(".DQ"):
            broker.join(queue_name, timeout=int(PATIENCE * 1000))
    worker.join()


def eventually(predicate: Callable[[], Any]) -> Any:
    """Poll until a function returns a true value, and return this value."""
    deadline = time.monotonic() + PATIENCE
    while not (found := predicate()):
        assert time.monotonic() < deadline, "It did not happen in time."
        time.sleep(0.005)
    return found


def answered(ask: Callable[[], Any]) -> Any:
    """Repeat a call until servers answer in time with a true value, and return this value."""
    return eventually(lambda: until_answered(ask))


def begun(watch: Callable[[], Iterator[Any]]) -> tuple[Any, Iterator[Any]]:
    """Begin to watch, again if the first read has no answer in time, and return what it finds and the watch."""

    def begin() -> tuple[Any, Iterator[Any]]:
        watching = watch()
        return next(watching), watching

    return until_answered(begin)


def all_completed(messages: Sequence[Any], backend: StatusBackend) -> list[Any] | None:
    """Return the statuses of messages if all are completed; None otherwise, and while the store does not answer."""
    try:
        found = StatusRegistry.read_many(messages, backend=backend)
    except BackendError:
        return None
    return found if all(snapshot is not None and snapshot.completed for snapshot in found) else None


def raised_by(call: Callable[[], Any]) -> BaseException | None:
    """Call a function, and return the exception that it raises."""
    try:
        call()
    except BaseException as e:
        return e
    return None
