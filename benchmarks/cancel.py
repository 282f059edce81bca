"""Cancelled messages: the time until a running actor sees the request, and the cost if no message is cancelled."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from statistics import median
from time import perf_counter, sleep, thread_time

import dramatiq
from dramatiq.brokers.stub import StubBroker
from dramatiq.worker import Worker

from dramatiq_status import Cancellation, StatusMiddleware, StatusRegistry, current_status, track
from dramatiq_status.backend import StatusBackend, now_ms
from dramatiq_status.backends import StubBackend
from dramatiq_status.cancels import CancelLogReader
from dramatiq_status.circuit_breaker import CircuitBreaker
from dramatiq_status.update import EnqueueId, Kind, Update
from dramatiq_status.writer import Writer

from .common import Options, Table, fresh_stores, percentile, spread

MANY = 100_000
ITEMS = 100_000

ENQUEUE_ID = EnqueueId(7, 1)


def run(options: Options) -> Iterator[Table]:
    with fresh_stores() as stores:
        rows = [["store", "ms", "95 %", "goal"]]
        for name, make in stores.items():
            if options.quick and name != "Redis":
                # Each round takes up to a second.
                continue
            times = list(seen_after(make(), options.rounds(20)))
            goal = "<= 1000" if "redis" in name.lower() else "<= 2000"
            rows.append([name, f"{median(times):.1f}", f"{percentile(times, 0.95):.1f}", goal])
        yield Table("From cancel() to status.cancelled in a running actor", rows)
        rows = [["store", "log", "us", "80 % in"]]
        for name, make in stores.items():
            for count in (0, MANY // 100 if options.quick else MANY):
                times = list(reads_of(make(), count, options.rounds(200)))
                rows.append([name, f"{count:,} cancelled", f"{median(times):.0f}", spread(times)])
        yield Table("A worker's read of the log, once a second, while nothing is added", rows)
    yield checks(options)


def seen_after(backend: StatusBackend, rounds: int) -> Iterator[float]:
    """Measure milliseconds until a running actor sees the request."""
    broker = StubBroker()
    broker.add_middleware(StatusMiddleware(backend=backend))
    begun, seen = threading.Event(), []

    @dramatiq.actor(broker=broker)
    def work() -> None:
        status = current_status()
        status.flush()
        begun.set()
        while not status.cancelled:
            sleep(0.0005)
        seen.append(perf_counter())

    worker = Worker(broker, worker_threads=1, worker_timeout=100)
    worker.start()
    for number in range(rounds):
        message = work.send()
        begun.wait()
        begun.clear()
        # The request comes at any time between two reads of the log.
        sleep(number % 10 / 10)
        begin = perf_counter()
        assert StatusRegistry.cancel(message, backend=backend) is Cancellation.REQUESTED
        StatusRegistry.wait(message, backend=backend)
        yield (seen.pop() - begin) * 1e3
    worker.stop()
    broker.close()


def reads_of(backend: StatusBackend, count: int, rounds: int) -> Iterator[float]:
    """Measure microseconds of a read that finds nothing new."""
    for first in range(0, count, 1000):
        ids = [f"cancelled-{number}" for number in range(first, first + 1000)]
        backend.update_many([(one, Update(Kind.ENQUEUE, ENQUEUE_ID)) for one in ids])
        backend.update_many([(one, Update(Kind.CANCEL)) for one in ids])
    position, _ = backend.read_cancels(None)
    for _ in range(rounds):
        begin = perf_counter()
        position, marks = backend.read_cancels(position)
        yield (perf_counter() - begin) * 1e6
        assert not marks


def checks(options: Options) -> Table:
    """Measure the checks of a worker and of an actor."""
    items = ITEMS // 10 if options.quick else ITEMS
    found: dict[str, list[float]] = {}

    def work() -> None:
        status, breaker = current_status(), CircuitBreaker("benchmark")
        none = CancelLogReader(middleware.backend, breaker, Writer(middleware.backend, breaker))
        many = CancelLogReader(middleware.backend, breaker, Writer(middleware.backend, breaker))
        many.note(range(MANY))
        # A message that was enqueued after the log was read.
        later = now_ms() + 3_600_000

        def loop(body: Callable[[], object]) -> None:
            for _ in repeat(None, items):
                body()

        def tracked(*, cancellable: bool) -> None:
            for _ in track(range(items), cancellable=cancellable):
                pass

        cases = {
            "start of a message, nothing cancelled": partial(loop, lambda: none.find("message", ENQUEUE_ID, later)),
            "start of a message, 100,000 cancelled": partial(loop, lambda: many.find("message", ENQUEUE_ID, later)),
            "status.cancelled": partial(loop, lambda: status.cancelled),
            "an item of track(cancellable=False)": partial(tracked, cancellable=False),
            "an item of track()": partial(tracked, cancellable=True),
        }
        for _ in range(options.rounds(15)):
            for name, case in cases.items():
                # The processor time of this thread: other threads of the worker run beside it.
                begin = thread_time()
                case()
                found.setdefault(name, []).append((thread_time() - begin) / items * 1e9)

    broker = StubBroker()
    middleware = StatusMiddleware(backend=StubBackend())
    broker.add_middleware(middleware)
    message = dramatiq.actor(work, broker=broker).send()
    worker = Worker(broker, worker_threads=1, worker_timeout=100)
    worker.start()
    StatusRegistry.wait(message, broker=broker, timeout=None)
    worker.stop()
    broker.close()
    rows = [["case", "ns", "goal"]]
    for name, times in found.items():
        rows.append([name, f"{min(times):.0f}", ""])
    without, with_check = (min(times) for times in list(found.values())[-2:])
    rows.append(["the check of an item", f"{with_check - without:.0f}", "<= 30"])
    return Table("Checks in a worker, the shortest of all rounds", rows)
