"""The cost of an update and of a read as the number of tracked jobs grows."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from uuid import uuid4

from dramatiq_status import StatusRegistry
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends.memcached import MemcachedBackend
from dramatiq_status.backends.redis import RedisBackend
from dramatiq_status.update import EnqueueId
from tests.servers import MemcachedServer, RedisServer

from .common import Case, Options, Table, interleave, placed, running_updates, timed_rows

SIZES = (1, 1_000, 100_000)


def run(options: Options) -> Iterator[Table]:
    sizes = (1, 100, 1_000) if options.quick else SIZES
    rows = [["case", "us", "ratio", "80 % in"]]
    with ExitStack() as stack:
        # A server for each number of jobs.
        redis_servers = [stack.enter_context(RedisServer()) for _ in sizes]
        memcached_servers = [stack.enter_context(MemcachedServer("-m", "256")) for _ in sizes]
        backends: dict[str, list[StatusBackend]] = {
            "Redis": [RedisBackend(url=server.url, timeout=20_000) for server in redis_servers],
            "memcached": [MemcachedBackend(servers=server.address, timeout=20_000) for server in memcached_servers],
        }
        for store, of_store in backends.items():
            ids = [fill(backend, size) for backend, size in zip(of_store, sizes)]
            with placed("same", *redis_servers, *memcached_servers):
                for verb, make in (("update", updating), ("read", reading)):
                    cases = {
                        f"{store}, {verb}, of {size:,} job{'s' * (size > 1)}": make(backend, of_size)
                        for size, backend, of_size in zip(sizes, of_store, ids)
                    }
                    times = interleave(cases, rounds=options.rounds(80), calls=100)
                    rows += timed_rows(times, next(iter(cases)))
    yield Table("Cost against the number of tracked jobs; same", rows, "Goal: flat.")


def fill(backend: StatusBackend, size: int) -> list[str]:
    """Store running jobs, and return up to a hundred of their ids.

    The number is limited, because a memcached backend caches a limited number of items.
    """
    ids = [str(uuid4()) for _ in range(size)]
    updates = running_updates(EnqueueId(1_234_567_890, 1))
    for first in range(0, size, 1000):
        backend.update_many([(message_id, update) for message_id in ids[first : first + 1000] for update in updates])
    return random.sample(ids, min(size, 100))


def updating(backend: StatusBackend, ids: list[str]) -> Case:
    return lambda: StatusRegistry.get(random.choice(ids), backend=backend).update(step="reading", progress=500)


def reading(backend: StatusBackend, ids: list[str]) -> Case:
    def read() -> None:
        if StatusRegistry.read(random.choice(ids), backend=backend) is None:
            raise AssertionError("A job has been lost.")

    return read
