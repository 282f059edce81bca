"""The time from a write inside of a worker until a reader in another process sees it."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from statistics import median

import dramatiq
import pymemcache
import redis
from dramatiq.brokers.stub import StubBroker
from dramatiq.worker import Worker

from dramatiq_status import StatusMiddleware, current_status
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends.memcached import MemcachedBackend
from dramatiq_status.backends.redis import RedisBackend
from tests.servers import MemcachedServer, RedisServer

from .common import Options, Table, percentile

WRITES = 1000
#: Seconds between two writes.
PAUSE = 0.004
KEY = "dramatiq-status:"

#: A function that returns the number that was written last.
Look = Callable[[], int]


def run(options: Options) -> Iterator[Table]:
    writes = 100 if options.quick else WRITES
    rows = [["writer", "p50 ms", "p99 ms", "max ms", "goal for p99 (stretch)"]]
    with RedisServer() as redis_server, MemcachedServer() as memcached_server:
        found = {}
        for name, busy in (("", 0), (", beside a busy thread", 1)):
            found["redis-py, a blocking hset" + name] = measure(
                RedisBackend(url=redis_server.url), redis_server.port, writes, busy=busy, directly=True
            )
            found["Redis, status[...] =" + name] = measure(
                RedisBackend(url=redis_server.url), redis_server.port, writes, busy=busy
            )
            found["memcached, status[...] =" + name] = measure(
                MemcachedBackend(servers=memcached_server.address), memcached_server.port, writes, busy=busy
            )
    for name, latencies in found.items():
        goal = "<= 5 (1)" if name in ("Redis, status[...] =", "memcached, status[...] =") else ""
        rows.append(
            [
                name,
                f"{median(latencies):.3f}",
                f"{percentile(latencies, 0.99):.3f}",
                f"{max(latencies):.3f}",
                goal,
            ]
        )
    yield Table(f"From a write in a worker to a reader in another process, {writes} writes", rows)


def measure(backend: StatusBackend, port: int, writes: int, *, directly: bool = False, busy: int = 0) -> list[float]:
    """Return the milliseconds from each write until a reader that polls without a pause has seen it."""
    broker = StubBroker()
    broker.add_middleware(StatusMiddleware(backend=backend))
    broker.emit_after("process_boot")
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    written: list[float] = []
    client = redis.Redis(port=port)
    done = threading.Event()

    @dramatiq.actor(broker=broker)
    def write() -> None:
        status = current_status()
        key = KEY + status.message_id
        status["n"] = 0
        status.flush()
        here.send(key)
        here.recv()
        for number in range(1, writes + 1):
            time.sleep(PAUSE)
            written.append(time.perf_counter())
            if directly:
                client.hset(key, ":n", number)
            else:
                status["n"] = number
        done.set()

    @dramatiq.actor(broker=broker)
    def compute() -> None:
        while not done.is_set():
            sum(range(1000))

    kind = "redis" if isinstance(backend, RedisBackend) else "memcached"
    reader = context.Process(target=watch, args=(kind, port, writes, there))
    reader.start()
    worker = Worker(broker, worker_threads=1 + busy, worker_timeout=100)
    worker.start()
    try:
        write.send()
        for _ in range(busy):
            compute.send()
        done.wait()
        seen: list[float] = here.recv()
        reader.join(10)
    finally:
        done.set()
        worker.stop()
        broker.close()
        if reader.is_alive():
            reader.kill()
    return [(at - since) * 1000 for at, since in zip(seen, written)]


def watch(kind: str, port: int, writes: int, pipe: Connection) -> None:
    """Read as often as possible, and send the times at which each number, or a later one, was first seen."""
    key = pipe.recv()
    look = redis_look(port, key) if kind == "redis" else memcached_look(port, key)
    look()
    pipe.send(None)
    seen: list[float] = []
    while len(seen) < writes:
        number = look()
        seen += [time.perf_counter()] * (number - len(seen))
    pipe.send(seen)


def redis_look(port: int, key: str) -> Look:
    client = redis.Redis(port=port)
    return lambda: int(client.hget(key, ":n"))


def memcached_look(port: int, key: str) -> Look:
    client = pymemcache.Client(("127.0.0.1", port), no_delay=True)

    def look() -> int:
        document = client.get(key)
        return int(document[document.index(b"\n:n\n") + 4 :].partition(b"\n")[0])

    return look
