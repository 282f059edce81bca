"""The cost of ``increment()`` for its caller inside of a worker."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import repeat
from statistics import median
from time import monotonic, perf_counter

import dramatiq
from dramatiq.brokers.stub import StubBroker
from dramatiq.worker import Worker

from dramatiq_status import StatusMiddleware, StatusRegistry, current_progress
from dramatiq_status.backends.redis import RedisBackend
from tests.servers import RedisServer

from .common import Options, Table, spread

CALLS = 200_000
FLOOR = "a lock, a clock and an addition"


class Floor:
    """A minimal increment, to compare: a lock, a clock and an addition."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = 0
        self.due = 0.0

    def increment(self, n: int = 1) -> None:
        with self.lock:
            self.due = monotonic()
            self.count += n


def run(options: Options) -> Iterator[Table]:
    calls = CALLS // 10 if options.quick else CALLS
    times: dict[str, list[float]] = {FLOOR: [], "increment(), not throttled": [], "increment(), throttled to 1 s": []}
    with RedisServer() as server:
        broker = StubBroker()
        backend = RedisBackend(url=server.url)
        broker.add_middleware(StatusMiddleware(backend=backend))
        broker.emit_after("process_boot")

        def work(name: str) -> None:
            times[FLOOR].append(time_calls(Floor().increment, calls))
            times[name].append(time_calls(current_progress().increment, calls))

        actors = {
            name: dramatiq.actor(work, actor_name=f"work_{throttle}", broker=broker, status_throttle=throttle)
            for name, throttle in zip(list(times)[1:], (0, 1000))
        }
        worker = Worker(broker, worker_threads=1, worker_timeout=100)
        worker.start()
        try:
            for _ in range(options.rounds(12)):
                for name, actor in actors.items():
                    message = actor.send(name)
                    broker.join(message.queue_name)
                    snapshot = StatusRegistry.wait(message, backend=backend)
                    assert snapshot["progress"] == calls, snapshot.to_dict()
        finally:
            worker.stop()
            broker.close()
    rows = [["case", "us", "80 % in", "goal (stretch)"]]
    for name, found in times.items():
        rows.append([name, f"{median(found):.2f}", spread(found), "" if name == FLOOR else "<= 1.00 (0.40)"])
    yield Table(f"increment() in a worker, {calls:,} in a loop, mean of one", rows)


def time_calls(call: Callable[[], None], calls: int) -> float:
    """Return microseconds a call."""
    begin = perf_counter()
    for _ in repeat(None, calls):
        call()
    return (perf_counter() - begin) / calls * 1e6
