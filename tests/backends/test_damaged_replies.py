"""Tests that a damaged reply is an error of the store, and that the call after it is right."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.brokers.redis import RedisBroker

from dramatiq_status import BackendError, StatusMiddleware, StatusRegistry, aio
from dramatiq_status.aio import stream
from dramatiq_status.backend import Query, StatusBackend
from dramatiq_status.backends import MemcachedBackend, RedisBackend
from dramatiq_status.backends.redis import connection as redis_connection
from dramatiq_status.update import EnqueueId, Kind, Outcome, Update

from ..proxy import Proxy
from ..recording import PATIENCE
from ..servers import MemcachedServer, RedisServer

#: Time-out of the backends, in milliseconds.
TIMEOUT = int(PATIENCE * 1000)

ENQUEUE = Update(Kind.ENQUEUE, EnqueueId(1, 1), fields={":step": '"first"'})
WRITE = Update(Kind.OUTSIDE, fields={":step": '"next"'})

#: Replies of a server of another kind, and replies with a size, a number or a type that is none.
DAMAGED = {
    "HTTP": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "TLS": b"\x15\x03\x03\x00\x02\x02\x28\r\n",
    "Redis, size": b"$x\r\nabc\r\n",
    "Redis, type": b"*2\r\n?1\r\n?2\r\n",
    "Redis, number": b":x\r\n",
    "memcached, size": b"VA x c1 t1\r\nabc\r\nMN\r\n",
    "memcached, cas": b"VA 3 cx t1\r\nabc\r\nMN\r\n",
    "memcached, no cas": b"VA 3\r\nabc\r\nMN\r\n",
    "memcached, end": b"VA 2 c1 t1\r\nabc\r\nMN\r\n",
    "memcached, number": b"HD cx\r\nMN\r\n",
    "memcached, gets": b"VALUE key 0 x 1\r\nabc\r\nEND\r\nMN\r\n",
    "memcached, stored": b"STORE\r\nMN\r\n",
}


class Damager(Proxy):
    """A proxy that replaces all replies by others while a test wants it."""

    reply: bytes | None = None

    def on_reply(self, data: bytes) -> bytes:
        return data if self.reply is None else self.reply


@pytest.fixture(params=["redis", "redis without hiredis", "memcached", "memcached without meta commands"])
def store(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Damager, Callable[[], StatusBackend]]]:
    kind = request.param
    server: RedisServer | MemcachedServer
    if kind.startswith("redis"):
        if "without" in kind:
            monkeypatch.setattr(redis_connection, "hiredis", None)
            monkeypatch.setattr(stream, "hiredis", None)
        server = request.getfixturevalue("redis_server")
    else:
        server = request.getfixturevalue("memcached_server")
    server.reset()
    with Damager(server.port) as damager:
        if kind.startswith("redis"):
            yield damager, lambda: RedisBackend(url=f"redis://127.0.0.1:{damager.port}", timeout=TIMEOUT)
        else:
            meta = "without" not in kind
            yield damager, lambda: MemcachedBackend(servers=f"127.0.0.1:{damager.port}", timeout=TIMEOUT, meta=meta)


def calls_of(backend: StatusBackend) -> dict[str, Callable[[], Any]]:
    calls: dict[str, Callable[[], Any]] = {
        "snapshot": lambda: backend.snapshot("one"),
        "snapshots": lambda: backend.snapshots(["one", "two"]),
        "update": lambda: backend.update("one", WRITE),
        "update_many": lambda: backend.update_many([("one", WRITE), ("two", WRITE)]),
        "begin_update": lambda: backend.begin_update("one", WRITE)(),
        "delete": lambda: backend.delete("two"),
    }
    if isinstance(backend, RedisBackend):
        calls["list"] = lambda: backend.find(Query(), limit=10, after=None)
        calls["count"] = lambda: backend.count(Query())
        calls["cancels"] = lambda: backend.read_cancels(None)
    return calls


def has_failed(call: Callable[[], Any]) -> bool:
    """Return whether a call fails, or all of its parts fail."""
    try:
        found = call()
    except BackendError:
        return True
    parts = found if isinstance(found, list) else [found]
    return all(isinstance(part, BackendError) or part is Outcome.UNAVAILABLE for part in parts)


@pytest.mark.parametrize("damaged", DAMAGED)
def test_a_damaged_reply_is_an_error_of_the_store(
    store: tuple[Damager, Callable[[], StatusBackend]], damaged: str
) -> None:
    # Given a backend whose calls all work
    damager, connect = store
    with closing(connect()) as backend:
        for name in calls_of(backend):
            backend.update_many([("one", ENQUEUE), ("two", ENQUEUE)])
            assert not has_failed(lambda: backend.snapshot("one"))
            # When a reply is damaged
            damager.reply = DAMAGED[damaged]
            # Then the call fails
            assert has_failed(calls_of(backend)[name]), name
            # And the next one has its own reply, over another connection
            damager.reply = None
            found = backend.snapshot("one")
            assert found is not None and found["step"] in ("first", "next"), name


@pytest.mark.parametrize("damaged", DAMAGED)
def test_a_damaged_reply_in_an_event_loop(store: tuple[Damager, Callable[[], StatusBackend]], damaged: str) -> None:
    # Given a backend in an event loop
    damager, connect = store
    with closing(connect()) as backend:
        backend.update("one", ENQUEUE)

        async def main() -> None:
            handle = aio.StatusRegistry.get("one", backend=backend)
            assert (await handle.read())["step"] == "first"  # type: ignore[index]
            for call in (handle.read, lambda: handle.update(step="next"), handle.read):
                # When a reply is damaged
                damager.reply = DAMAGED[damaged]
                # Then the call fails
                with pytest.raises(BackendError):
                    await call()
                # And the next one has its own reply
                damager.reply = None
                assert (await handle.read())["step"] in ("first", "next")  # type: ignore[index]

        asyncio.run(main())


@pytest.mark.parametrize("damaged", [name for name in DAMAGED if not name.startswith("memcached")])
def test_a_damaged_reply_to_the_broker_is_an_error_of_the_driver(redis_server: RedisServer, damaged: str) -> None:
    # Given a broker whose commands carry the statuses
    redis_server.reset()
    with Damager(redis_server.port) as damager:
        backend = RedisBackend(url=f"redis://127.0.0.1:{damager.port}", timeout=TIMEOUT)
        broker = RedisBroker(client=backend.broker_client())
        broker.add_middleware(StatusMiddleware(backend=backend))

        @dramatiq.actor(broker=broker)
        def work() -> None: ...

        work.send()
        # When the reply to an enqueue is damaged
        damager.reply = DAMAGED[damaged]
        # Then it raises an error of the driver's
        with pytest.raises(redis.RedisError):
            work.send()
        # And the next message is enqueued, with its status
        damager.reply = None
        message = work.send()
        found = StatusRegistry.read(message, broker=broker)
        assert found is not None and found.queued
        broker.close()
        backend.close()
