"""One update of one job, called directly, as from outside of a worker."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from itertools import chain, count

import pymemcache
import redis

from dramatiq_status import StatusRegistry
from dramatiq_status.backends.memcached import MemcachedBackend
from dramatiq_status.backends.redis import RedisBackend
from dramatiq_status.backends.redis.requests import Exchange
from dramatiq_status.update import Kind, Update
from tests.servers import MemcachedServer, RedisServer

from .common import RUN_TOKEN, Case, Options, Table, interleave, placed, running_job, timed_rows

BASE = "redis-py pipeline: HSET, EXPIRE"
GOALS = {
    "same": {"Redis, backend.update": "<= 0.80 (0.65)", "memcached, backend.update": "<= 0.55 (0.47)"},
    "cross": {"Redis, backend.update": "<= 0.90"},
}


def run(options: Options) -> Iterator[Table]:
    with RedisServer() as redis_server, MemcachedServer() as memcached_server:
        for placement in ("same", "cross"):
            with placed(placement, redis_server, memcached_server):
                cases = {
                    **redis_cases(redis_server),
                    **memcached_cases(memcached_server),
                }
                times = interleave(cases, rounds=options.rounds(120), calls=100)
            yield Table(
                f"One update of one job, two fields; {placement}",
                [
                    ["case", "us", "ratio", "80 % in", "goal (stretch)"],
                    *timed_rows(times, BASE, goals=GOALS[placement]),
                ],
            )


def redis_cases(server: RedisServer) -> dict[str, Case]:
    client = redis.Redis(port=server.port)
    backend = RedisBackend(url=server.url)
    message_id, enqueue_id = running_job(backend)
    steps, places = count(), count(2)

    def base() -> None:
        pipeline = client.pipeline(transaction=False)
        pipeline.hset("base", mapping={":step": '"reading"', "p": str(next(steps))})
        pipeline.expire("base", 604_800)
        pipeline.execute()

    def direct() -> None:
        backend.update(message_id, Update(Kind.OUTSIDE, fields={":step": '"reading"', "p": str(next(steps))}))

    def of_run() -> None:
        fields = {":step": '"reading"', "p": str(next(steps))}
        backend.update(message_id, Update(Kind.RUN, enqueue_id, RUN_TOKEN, next(places), fields=fields))

    def user() -> None:
        StatusRegistry.get(message_id, backend=backend).update(step="reading", progress=next(steps))

    return {
        BASE: base,
        "Redis, raw socket, our bytes": _redis_floor(server, backend, message_id),
        "Redis, backend.update": direct,
        "Redis, backend.update of a run": of_run,
        "Redis, StatusRegistry.get(id).update": user,
    }


def _redis_floor(server: RedisServer, backend: RedisBackend, message_id: str) -> Case:
    update = Update(Kind.OUTSIDE, fields={":step": '"reading"', "p": "500"})
    while not backend.transport.clock.known:  # On a busy machine the answer may have come too late.
        backend.read(message_id)
    request = Exchange(next(backend.operations.update(message_id, update)), backend.transport.clock).packed
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def floor() -> None:
        connection.sendall(request)
        if connection.recv(4096) != b"*1\r\n:1\r\n":
            raise AssertionError("The update was not applied.")

    return floor


def memcached_cases(server: MemcachedServer) -> dict[str, Case]:
    backend = MemcachedBackend(servers=server.address)
    message_id, enqueue_id = running_job(backend)
    other_id, _ = running_job(backend)
    steps, places = count(), count(2)

    def direct() -> None:
        fields = {":step": '"reading"', "p": str(next(steps))}
        backend.update(message_id, Update(Kind.RUN, enqueue_id, RUN_TOKEN, next(places), fields=fields))

    def user() -> None:
        StatusRegistry.get(other_id, backend=backend).update(step="reading", progress=next(steps))

    return {
        "pymemcache: gets, cas": _compare_and_set(server, other_id),
        "memcached, raw socket, our size": _memcached_floor(server),
        "memcached, backend.update": direct,
        "memcached, StatusRegistry.get(id).update": user,
    }


def _compare_and_set(server: MemcachedServer, message_id: str) -> Case:
    """Return a case that updates a copy of a document by pymemcache, in two round trips."""
    client = pymemcache.Client(server.address, no_delay=True)
    client.set("document", client.get(f"dramatiq-status:{message_id}"), expire=604_800)
    steps = count()

    def update() -> None:
        document, cas = client.gets("document")
        # A document is its expiry, its form, and names and JSON texts in turns, a line each.
        expiry, form, *lines = document.decode().split("\n")
        record = {**dict(zip(lines[::2], lines[1::2])), ":step": '"reading"', "p": str(next(steps))}
        changed = "\n".join([expiry, form, *chain.from_iterable(record.items())])
        if not client.cas("document", changed, cas, expire=604_800, noreply=False):
            raise AssertionError("The update was not applied.")

    return update


def _memcached_floor(server: MemcachedServer) -> Case:
    # The approximate size of the document of a running job.
    value = b"x" * 230
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(b"ms floor %d T604800 c\r\n%b\r\n" % (len(value), value))
    cas = connection.recv(4096)[4:-2]

    def floor() -> None:
        nonlocal cas
        connection.sendall(b"ms floor %d T604800 C%b c\r\n%b\r\n" % (len(value), cas, value))
        cas = connection.recv(4096)[4:-2]

    return floor
