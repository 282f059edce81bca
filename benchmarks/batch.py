"""Reading and rolling up 1,000 messages that belong together."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

import redis

from dramatiq_status import StatusRegistry
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends.memcached import MemcachedBackend
from dramatiq_status.backends.redis import RedisBackend
from dramatiq_status.record import COMPLETED
from dramatiq_status.update import Kind, Update
from tests.servers import MemcachedServer, RedisServer

from .common import RUN_TOKEN, Case, Options, Table, interleave, placed, ratios, running_job, spread

CHILDREN = 1000
BASE = "redis-py, pipeline of hgetall"
GOAL = "<= 10 ms"


def run(options: Options) -> Iterator[Table]:
    with RedisServer() as redis_server, MemcachedServer() as memcached_server:
        cases = {
            **redis_cases(redis_server),
            **memcached_cases(memcached_server),
        }
        for placement in ("same", "cross"):
            with placed(placement, redis_server, memcached_server):
                times = interleave(cases, rounds=options.rounds(40), calls=1)
            rows = [
                [
                    name,
                    f"{median(series) / 1000:.2f}",
                    f"{median(found := ratios(series, times[BASE])):.2f}",
                    spread(found),
                    GOAL if name.endswith(".read()") else "",
                ]
                for name, series in times.items()
            ]
            yield Table(
                f"A batch of {CHILDREN:,} children, half of them finished; {placement}",
                [["case", "ms", "ratio", "80 % in", "goal"], *rows],
            )


def children(backend: StatusBackend) -> list[str]:
    """Store statuses of which every second one is finished."""
    ids = []
    for n in range(CHILDREN):
        message_id, enqueue_id = running_job(backend)
        ids.append(message_id)
        if n % 2:
            backend.update(message_id, Update(Kind.RUN, enqueue_id, RUN_TOKEN, 2, state=COMPLETED))
    return ids


def redis_cases(server: RedisServer) -> dict[str, Case]:
    client = redis.Redis(port=server.port)
    backend = RedisBackend(url=server.url)
    ids = children(backend)
    batch = StatusRegistry.batch(ids, backend=backend)
    found = batch.read()
    assert (found.counts["completed"], found.counts["working"]) == (CHILDREN // 2, CHILDREN // 2)
    snapshots = list(found.children.values())

    def raw() -> list[Any]:
        pipeline = client.pipeline(transaction=False)
        for message_id in ids:
            pipeline.hgetall(f"dramatiq-status:{message_id}")
        return pipeline.execute()

    return {
        BASE: raw,
        "Redis, batch.read()": batch.read,
        "of that, rolling up": lambda: batch._rollup.take(snapshots),
    }


def memcached_cases(server: MemcachedServer) -> dict[str, Case]:
    backend = MemcachedBackend(servers=server.address)
    return {"memcached, batch.read()": StatusRegistry.batch(children(backend), backend=backend).read}
