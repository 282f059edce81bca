"""Reading one status, and 1,000 in one round trip."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pymemcache
import redis

from dramatiq_status import StatusRegistry
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends.memcached import MemcachedBackend
from dramatiq_status.backends.redis import RedisBackend
from tests.servers import MemcachedServer, RedisServer

from .common import Case, Options, Table, interleave, placed, running_job, timed_rows

MANY = 1000
GOALS = {
    "Redis, StatusRegistry.read": "<= 1.15 (0.90)",
    "memcached, StatusRegistry.read": "<= 1.15 (0.90)",
    "Redis, StatusRegistry.read_many": "<= 8 us, <= 1.00 (0.70)",
    "memcached, StatusRegistry.read_many": "<= 5 us, <= 1.00 (0.70)",
}


def run(options: Options) -> Iterator[Table]:
    with RedisServer() as redis_server, MemcachedServer() as memcached_server:
        one, many = redis_cases(redis_server)
        memcached_one, memcached_many = memcached_cases(memcached_server)
        for placement in ("same", "cross"):
            with placed(placement, redis_server, memcached_server):
                times = interleave({**one, **memcached_one}, rounds=options.rounds(80), calls=150)
                many_times = interleave({**many, **memcached_many}, rounds=options.rounds(60), calls=1)
            yield Table(
                f"One status read and decoded; {placement}",
                [
                    ["case", "us", "ratio", "80 % in", "goal (stretch)"],
                    *timed_rows({name: times[name] for name in one}, "redis-py, hgetall", goals=GOALS),
                    *timed_rows({name: times[name] for name in memcached_one}, "pymemcache, get", goals=GOALS),
                ],
            )
            yield Table(
                f"{MANY:,} statuses read and decoded, .state and .progress of each; {placement}",
                [
                    ["case", "us a key", "ratio", "80 % in", "goal (stretch)"],
                    *timed_rows(many_times, "redis-py, pipeline of hgetall", divide=MANY, goals=GOALS),
                ],
            )


def redis_cases(server: RedisServer) -> tuple[dict[str, Case], dict[str, Case]]:
    client = redis.Redis(port=server.port)
    backend = RedisBackend(url=server.url)
    ids = [running_job(backend)[0] for _ in range(MANY)]
    keys = [f"dramatiq-status:{message_id}" for message_id in ids]
    assert client.hlen(keys[0]) > 10

    def raw_many() -> list[Any]:
        pipeline = client.pipeline(transaction=False)
        for key in keys:
            pipeline.hgetall(key)
        return pipeline.execute()

    return (
        {
            "redis-py, hgetall": lambda: client.hgetall(keys[0]),
            "Redis, backend.read": lambda: backend.read(ids[0]),
            "Redis, StatusRegistry.read": lambda: StatusRegistry.read(ids[0], backend=backend),
        },
        {
            "redis-py, pipeline of hgetall": raw_many,
            "Redis, backend.read_many": lambda: backend.read_many(ids),
            "Redis, StatusRegistry.read_many": lambda: read_many(ids, backend),
        },
    )


def memcached_cases(server: MemcachedServer) -> tuple[dict[str, Case], dict[str, Case]]:
    client = pymemcache.Client(server.address, no_delay=True)
    backend = MemcachedBackend(servers=server.address)
    ids = [running_job(backend)[0] for _ in range(MANY)]
    keys = [f"dramatiq-status:{message_id}" for message_id in ids]
    assert len(client.get_many(keys)) == MANY
    return (
        {
            "pymemcache, get": lambda: client.get(keys[0]),
            "memcached, backend.read": lambda: backend.read(ids[0]),
            "memcached, StatusRegistry.read": lambda: StatusRegistry.read(ids[0], backend=backend),
        },
        {
            "pymemcache, get_many": lambda: client.get_many(keys),
            "memcached, backend.read_many": lambda: backend.read_many(ids),
            "memcached, StatusRegistry.read_many": lambda: read_many(ids, backend),
        },
    )


def read_many(ids: list[str], backend: StatusBackend) -> list[Any]:
    return [
        (snapshot.state, snapshot.progress)
        for snapshot in StatusRegistry.read_many(ids, backend=backend)
        if snapshot is not None
    ]
