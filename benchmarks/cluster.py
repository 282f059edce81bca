"""A Redis Cluster: one update, 128 updates, 1,000 reads and a page of a list, beside redis-py's ``RedisCluster``."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from contextlib import closing
from itertools import count, islice
from typing import Any

import redis

from dramatiq_status import StatusRegistry
from dramatiq_status.backends.redis import RedisBackend
from dramatiq_status.backends.redis.clock import ServerClock
from dramatiq_status.backends.redis.keys import Keys
from dramatiq_status.backends.redis.protocol import UpdateCall
from dramatiq_status.backends.redis.script import UPDATE
from dramatiq_status.update import Kind, Update
from tests.servers import RedisCluster

from .common import Case, Options, Table, interleave, placed, running_job, timed_rows

UPDATES = 128
READS = 1000
PAGE = 50

#: Tables by title: the base, and the number of calls of a round.
TABLES = {
    "One update of one job, two fields": ("RedisCluster, pipeline of HSET, EXPIRE", 50),
    f"{UPDATES} updates of as many jobs": (f"RedisCluster, pipeline of {UPDATES} HSET, EXPIRE", 2),
    f"{READS:,} statuses read": ("RedisCluster, pipeline of HGETALL", 1),
    f"A page of {PAGE} of {READS:,} jobs": ("RedisCluster, pipelines of ZREVRANGE and HGETALL", 2),
}


def run(options: Options) -> Iterator[Table]:
    with (
        RedisCluster() as cluster,
        closing(redis.RedisCluster(host="127.0.0.1", port=cluster.members[0].port, decode_responses=True)) as client,
        closing(RedisBackend(cluster_nodes=cluster.addresses)) as backend,
    ):
        ids = [running_job(backend)[0] for _ in range(READS)]
        kinds = (update_cases, many_cases, read_cases, page_cases)
        for placement in ("same", "free"):
            for (title, (base, calls)), make in zip(TABLES.items(), kinds):
                with placed(placement, *cluster.members):
                    times = interleave(make(client, backend, ids), rounds=options.rounds(60), calls=calls)
                yield Table(
                    f"{title}, three nodes; {placement}",
                    [["case", "us", "ratio", "80 % in"], *timed_rows(times, base)],
                )


def update_cases(client: redis.RedisCluster, backend: RedisBackend, ids: list[str]) -> dict[str, Case]:
    steps, keys = count(), keys_of(client, "hash")

    def base() -> None:
        pipeline = client.pipeline()
        pipeline.hset("base", mapping={":step": '"reading"', "p": str(next(steps))})
        pipeline.expire("base", 604_800)
        pipeline.execute()

    def same_script() -> None:
        call_script(client, keys[0], {":step": '"reading"', "p": str(next(steps))})

    def ours() -> None:
        backend.update(ids[0], Update(Kind.OUTSIDE, fields={":step": '"reading"', "p": str(next(steps))}))

    return {
        "RedisCluster, pipeline of HSET, EXPIRE": base,
        "RedisCluster, EVALSHA of our script": same_script,
        "Cluster, backend.update": ours,
    }


def many_cases(client: redis.RedisCluster, backend: RedisBackend, ids: list[str]) -> dict[str, Case]:
    steps, keys = count(), keys_of(client, "hash")

    def base() -> None:
        pipeline = client.pipeline()
        for number in range(UPDATES):
            pipeline.hset(f"base-{number}", mapping={":step": '"reading"', "p": str(next(steps))})
            pipeline.expire(f"base-{number}", 604_800)
        pipeline.execute()

    def same_script() -> None:
        # The pipelines of redis-py refuse EVALSHA.
        for key in keys[:UPDATES]:
            call_script(client, key, {":step": '"reading"', "p": str(next(steps))})

    def ours() -> None:
        fields = [{":step": '"reading"', "p": str(next(steps))} for _ in range(UPDATES)]
        backend.update_many([(i, Update(Kind.OUTSIDE, fields=pairs)) for i, pairs in zip(ids, fields)])

    return {
        f"RedisCluster, pipeline of {UPDATES} HSET, EXPIRE": base,
        f"RedisCluster, {UPDATES} EVALSHA of our script": same_script,
        "Cluster, backend.update_many": ours,
    }


def call_script(client: redis.RedisCluster, key: str, fields: dict[str, str]) -> None:
    """Update a message from outside, by the update script and redis-py's client."""
    update = ("", Update(Kind.OUTSIDE, fields=fields))
    arguments = UpdateCall(Keys("", 0), 0, [update], [0]).arguments(ServerClock())
    if client.evalsha(UPDATE.sha, 1, key, *arguments) != [1]:
        raise AssertionError("The update was not applied.")


def read_cases(client: redis.RedisCluster, backend: RedisBackend, ids: list[str]) -> dict[str, Case]:
    keys = keys_of(client, "hash")
    assert len(keys) >= READS

    def base() -> None:
        pipeline = client.pipeline()
        for key in keys[:READS]:
            pipeline.hgetall(key)
        pipeline.execute()

    return {
        "RedisCluster, pipeline of HGETALL": base,
        "Cluster, StatusRegistry.read_many": lambda: StatusRegistry.read_many(ids, backend=backend),
    }


def page_cases(client: redis.RedisCluster, backend: RedisBackend, ids: list[str]) -> dict[str, Case]:
    """Return the cases of a page.  The base reads the newest messages of each sorted set of the index, merges them,
    and reads their hashes."""
    sets = keys_of(client, "zset")
    records = {key.rpartition(":")[2]: key for key in keys_of(client, "hash")}

    def base() -> None:
        pipeline = client.pipeline()
        for key in sets:
            pipeline.zrevrange(key, 0, PAGE - 1, withscores=True)
        newest = heapq.merge(*pipeline.execute(), key=lambda pair: -pair[1])
        pipeline = client.pipeline()
        for message_id, _ in islice(newest, PAGE):
            pipeline.hgetall(records[message_id])
        if not all(pipeline.execute()):
            raise AssertionError("The page is not full.")

    def ours() -> None:
        if len(StatusRegistry.list(limit=PAGE, backend=backend)) != PAGE:
            raise AssertionError("The page is not full.")

    return {"RedisCluster, pipelines of ZREVRANGE and HGETALL": base, "Cluster, StatusRegistry.list": ours}


def keys_of(client: redis.RedisCluster, kind: str) -> list[Any]:
    """Find all keys of the library with values of a type."""
    return list(client.scan_iter("dramatiq-status*", _type=kind, count=1000))
