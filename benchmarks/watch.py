"""The cost of watchers and their delay: of many watchers in one event loop, and of one that blocks."""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, NamedTuple

import redis

from dramatiq_status import StatusRegistry, aio
from dramatiq_status.backends.redis import RedisBackend
from dramatiq_status.record import COMPLETED
from dramatiq_status.update import Kind, Update
from tests.servers import RedisServer

from .common import Options, Table, percentile, running_job

JOBS = 200
WATCHERS = 2000
#: Number of changes of each job, and the seconds between two of them.
CHANGES = 20
PAUSE = 0.2


class Result(NamedTuple):
    """Figures of one way of watching.

    Parameters:
      seen: Number of snapshots that were shown.
      latencies: Milliseconds from each final write until its watcher saw it; of the blocking watcher, from each write.
      cpu: Seconds of processor time.
      seconds: Seconds from the first change to the last watcher's end.
      memory: Growth of the process in MB.
      connections: Maximum numbers of connections to the server, by kind.
    """

    seen: int
    latencies: list[float]
    cpu: float
    seconds: float
    memory: float
    connections: str


def run(options: Options) -> Iterator[Table]:
    jobs, watchers, changes = (20, 200, 5) if options.quick else (JOBS, WATCHERS, CHANGES)
    rows = [
        ["watchers", "snapshots", "connections", "MB", "cpu s", "us a snapshot", "final p50 ms", "p99 ms", "max ms"]
    ]
    cases: dict[str, Callable[[RedisServer, list[str]], Result]] = {
        f"{watchers} x aio watch": lambda server, ids: in_child(watch_all, server, ids, watchers, changes),
        f"{watchers} x aio read every 50 ms": lambda server, ids: in_child(poll_all, server, ids, watchers, changes),
        "1 x watch, blocking": lambda server, ids: in_child(watch_one, server, ids[:1], 1, changes),
        "1 x aio watch": lambda server, ids: in_child(watch_all, server, ids[:1], 1, changes),
    }
    for name, case in cases.items():
        with RedisServer() as server:
            backend = RedisBackend(url=server.url)
            ids = [running_job(backend)[0] for _ in range(jobs)]
            backend.close()
            result = case(server, ids)
        rows.append(
            [
                name,
                str(result.seen),
                result.connections,
                f"{result.memory:.1f}",
                f"{result.cpu:.2f}",
                f"{result.cpu / result.seen * 1e6:.0f}",
                f"{median(result.latencies):.1f}",
                f"{percentile(result.latencies, 0.99):.1f}",
                f"{max(result.latencies):.1f}",
            ]
        )
    yield Table(
        f"Watching {jobs} jobs of {changes} changes, one each {PAUSE * 1000:.0f} ms, from one process",
        rows,
        "The changes come from another process. A watcher may get a change up to 50 ms late if another change "
        "came just before it. The times of the blocking watch are those of all changes, not only of the final one.",
    )


def in_child(watch: Callable[..., Result], *arguments: Any) -> Result:
    """Run a case in a process of its own, which has its own memory and processor time."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()

    def work() -> None:
        there.send(watch(*arguments))

    process = context.Process(target=work)
    process.start()
    try:
        found: Result = here.recv()
        return found
    finally:
        process.join(10)
        if process.is_alive():
            process.kill()


@contextmanager
def changing(server: RedisServer, ids: list[str], changes: int) -> Iterator[None]:
    """Let another process change the jobs, one after another, and complete them."""
    process = multiprocessing.get_context("fork").Process(target=change, args=(server.url, ids, changes))
    process.start()
    try:
        yield
    finally:
        process.join(60)
        if process.is_alive():
            process.kill()


def change(url: str, ids: list[str], changes: int) -> None:
    backend = RedisBackend(url=url)
    begin = time.perf_counter()
    for number in range(1, changes + 1):
        for index, message_id in enumerate(ids):
            # The changes are spread over the pause, as the changes of real jobs are.
            time.sleep(max(0.0, begin + (number + index / len(ids)) * PAUSE - time.perf_counter()))
            fields = {":at": repr(time.perf_counter())}
            final = COMPLETED if number == changes else None
            backend.update(message_id, Update(Kind.OUTSIDE, state=final, fields=fields, increment=1))
    backend.close()


class Costs:
    """A meter of the processor time, the memory and the connections of this process."""

    def __init__(self, server: RedisServer) -> None:
        self._client = redis.Redis(port=server.port, decode_responses=True)
        # Maximum numbers of connections: of subscriptions, and of others.
        self._heard = self._asked = 0
        self._memory = memory()
        self._begin = time.perf_counter()
        self._cpu = time.process_time()
        #: Maximum growth of the memory in MB.
        self.peak = 0.0

    def look(self) -> None:
        self.peak = max(self.peak, memory() - self._memory)
        found = self._client.client_list()
        heard = sum(int(client["sub"]) > 0 for client in found)
        self._heard = max(self._heard, heard)
        # The connections of this query and of the process that changes the jobs do not count.
        self._asked = max(self._asked, len(found) - heard - 2)

    def result(self, seen: int, latencies: list[float]) -> Result:
        cpu, seconds = time.process_time() - self._cpu, time.perf_counter() - self._begin
        self._client.close()
        return Result(seen, latencies, cpu, seconds, self.peak, f"{self._heard} + {self._asked}")


def memory() -> float:
    """Return the resident memory of this process in MB."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 1e6


def watch_all(server: RedisServer, ids: list[str], watchers: int, changes: int) -> Result:
    return asyncio.run(follow_all(server, ids, watchers, changes, lambda i, b: aio.StatusRegistry.watch(i, backend=b)))


def poll_all(server: RedisServer, ids: list[str], watchers: int, changes: int) -> Result:
    """Measure watchers that each poll, through the same connection."""
    return asyncio.run(follow_all(server, ids, watchers, changes, poll))


async def poll(message_id: str, backend: RedisBackend) -> AsyncIterator[Any]:
    version = None
    while True:
        snapshot = await aio.StatusRegistry.read(message_id, backend=backend)
        assert snapshot is not None
        if snapshot.version != version:
            version = snapshot.version
            yield snapshot
        if snapshot.finished:
            return
        await asyncio.sleep(0.05)


async def follow_all(
    server: RedisServer,
    ids: list[str],
    watchers: int,
    changes: int,
    watch: Callable[[str, RedisBackend], AsyncIterator[Any]],
) -> Result:
    backend = RedisBackend(url=server.url)
    latencies: list[float] = []
    seen = 0

    async def follow(message_id: str) -> None:
        nonlocal seen
        async for snapshot in watch(message_id, backend):
            seen += 1
            if snapshot.finished:
                latencies.append((time.perf_counter() - snapshot["at"]) * 1000)

    with changing(server, ids, changes):
        costs = Costs(server)
        tasks = [asyncio.create_task(follow(ids[index % len(ids)])) for index in range(watchers)]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0.5)
            await asyncio.to_thread(costs.look)
        await asyncio.gather(*tasks)
        return costs.result(seen, latencies)


def watch_one(server: RedisServer, ids: list[str], watchers: int, changes: int) -> Result:
    backend = RedisBackend(url=server.url)
    latencies = []
    seen = 0
    with changing(server, ids, changes):
        costs = Costs(server)
        for snapshot in StatusRegistry.watch(ids[0], backend=backend):
            seen += 1
            if "at" in snapshot:
                latencies.append((time.perf_counter() - snapshot["at"]) * 1000)
            costs.look()
        return costs.result(seen, latencies)
