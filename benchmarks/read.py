"""Reads of one status, of 1,000 in one round trip, and in an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from typing import Any

import pymemcache
import redis
import redis.asyncio

from dramatiq_status import StatusRegistry, aio
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends.memcached import MemcachedBackend
from dramatiq_status.backends.redis import RedisBackend
from tests.servers import MemcachedServer, RedisServer

from .common import Case, Options, Table, interleave, placed, running_job, timed_rows

MANY = 1000

#: Number of reads of one call in an event loop.
AIO_READS = 100
GOALS = {
    "Redis, StatusRegistry.read": "<= 1.15 (0.90)",
    "memcached, StatusRegistry.read": "<= 1.15 (0.90)",
    "Redis, StatusRegistry.read_many": "<= 8 us, <= 1.00 (0.70)",
    "memcached, StatusRegistry.read_many": "<= 5 us, <= 1.00 (0.70)",
    "aio.StatusRegistry.read": "<= 1.00 (0.80)",
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
        for placement in ("same", "cross"):
            with placed(placement, redis_server), closing(asyncio.new_event_loop()) as loop:
                one_by_one, at_once = aio_cases(redis_server, loop)
                times = interleave(one_by_one, rounds=options.rounds(40), calls=1)
                times_at_once = interleave(at_once, rounds=options.rounds(40), calls=1)
            yield Table(
                f"One status read and decoded in an event loop, Redis; {placement}",
                [
                    ["case", "us", "ratio", "80 % in", "goal (stretch)"],
                    *timed_rows(times, "redis.asyncio, hgetall", divide=AIO_READS, goals=GOALS),
                    *timed_rows(times_at_once, f"redis.asyncio, {AIO_READS} tasks", divide=AIO_READS, goals=GOALS),
                ],
            )


def aio_cases(server: RedisServer, loop: asyncio.AbstractEventLoop) -> tuple[dict[str, Case], dict[str, Case]]:
    """Return the cases of reads one after another, and of reads by many tasks at once."""
    client = redis.asyncio.Redis(port=server.port)
    backend = RedisBackend(url=server.url)
    message_id, _ = running_job(backend)
    key = f"dramatiq-status:{message_id}"

    def one_by_one(read: Callable[[], Awaitable[Any]]) -> Case:
        async def read_all() -> None:
            for _ in range(AIO_READS):
                if not await read():
                    raise AssertionError("The message is unknown.")

        return lambda: loop.run_until_complete(read_all())

    def at_once(read: Callable[[], Awaitable[Any]]) -> Case:
        async def read_all() -> None:
            if not all(await asyncio.gather(*(read() for _ in range(AIO_READS)))):
                raise AssertionError("The message is unknown.")

        return lambda: loop.run_until_complete(read_all())

    def raw() -> Awaitable[Any]:
        return client.hgetall(key)

    def ours() -> Awaitable[Any]:
        return aio.StatusRegistry.read(message_id, backend=backend)

    return (
        {"redis.asyncio, hgetall": one_by_one(raw), "aio.StatusRegistry.read": one_by_one(ours)},
        {
            f"redis.asyncio, {AIO_READS} tasks": at_once(raw),
            f"aio.StatusRegistry.read, {AIO_READS} tasks": at_once(ours),
        },
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
