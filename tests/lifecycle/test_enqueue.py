"""Enqueues that go wrong: the broker that does not take a message, and the store that does not take its status."""

from __future__ import annotations

import os
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Middleware
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from dramatiq_status import StatusMiddleware, StatusRegistry
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends import MemcachedBackend, RedisBackend

from ..conftest import StartServer
from ..recording import answered, eventually, make_broker, make_stub_broker, run
from ..servers import MemcachedServer, RedisServer, Server, free_port


def test_a_refused_enqueue_leaves_no_pending_reply(store: StatusBackend) -> None:
    # Given a broker whose server does not run, and a broker that works, with the same store
    ours = StatusMiddleware(backend=store)
    down = RedisBroker(host="127.0.0.1", port=free_port(), retry=Retry(NoBackoff(), 0), middleware=[ours])
    up = make_broker(store)

    @dramatiq.actor(broker=down)
    def never() -> None: ...

    @dramatiq.actor(broker=up)
    def work() -> None: ...

    # When one thread sends messages to both brokers in turns
    refused, sent = [], []
    for _ in range(3):
        message = never.message()
        with pytest.raises(RedisConnectionError):
            down.enqueue(message)
        refused.append(message.message_id)
        # (The reply to the first update is still unread while the next message is sent or read.)
        assert StatusRegistry.get("unknown", backend=store).state is None
        sent.append(work.send().message_id)
    run(up)
    # Then refused messages are unknown, and the others have the right states
    assert [StatusRegistry.get(found, backend=store).state for found in refused] == [None] * 3
    snapshots = [StatusRegistry.read(found, backend=store) for found in sent]
    assert [(found and found.state, found and found.actor_name) for found in snapshots] == [("completed", "work")] * 3


def test_the_parent_reads_a_pending_reply_after_a_fork(store: StatusBackend) -> None:
    # Given an enqueue that the broker refuses, so that the store's reply to it is still to be read
    ours = StatusMiddleware(backend=store)
    down = RedisBroker(host="127.0.0.1", port=free_port(), retry=Retry(NoBackoff(), 0), middleware=[ours])
    up = make_stub_broker(ours)

    @dramatiq.actor(broker=down)
    def never() -> None: ...

    @dramatiq.actor(broker=up)
    def work() -> None: ...

    with pytest.raises(RedisConnectionError):
        never.send()
    # When the process forks, and both processes send and read
    go_on, tell = os.pipe()
    child = os.fork()
    messages = [work.message() for _ in range(20)]
    for message in messages:
        if not child:
            # The processes take turns, because both would have to be the first to read the pending reply.
            os.read(go_on, 1)
        up.enqueue(message)
        if child:
            os.write(tell, b".")
        snapshot = StatusRegistry.read(message, backend=store)
        right = snapshot is not None and snapshot.message_id == message.message_id and snapshot.actor_name == "work"
        if not child and not right:
            os._exit(1)
        assert right
    if not child:
        os._exit(0)
    # Then each process gets its own replies
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    snapshots = StatusRegistry.read_many(messages, backend=store)
    assert all(found is not None and found.queued for found in snapshots)


def test_fields_that_do_not_fit_into_an_item_are_left_out(memcached_url: str, caplog: pytest.LogCaptureFixture) -> None:
    # Given fields that fit one by one, but not all together, into an item of memcached
    backend = MemcachedBackend(servers=memcached_url.removeprefix("memcached://"), timeout=20_000)
    broker = make_broker(backend)
    ran: list[int] = []

    @dramatiq.actor(broker=broker)
    def work(number: int) -> None:
        ran.append(number)

    # When a message is sent with these fields, and another one without
    large = work.send_with_options(args=(1,), status={f"field {n}": "x" * 60_000 for n in range(20)})
    small = work.send(2)
    run(broker, threads=1)
    # Then both are completed. The first one lacks the fields that do not fit, and the log names them
    assert sorted(ran) == [1, 2]
    snapshots = [StatusRegistry.read(message, backend=backend) for message in (large, small)]
    assert [found and found.state for found in snapshots] == ["completed"] * 2
    kept = set(snapshots[0].fields) if snapshots[0] is not None else set()
    lost = {f"field {n}" for n in range(20)} - kept
    assert 0 < len(lost) < 20 and all(repr(name) in caplog.text for name in lost)
    assert f"These fields of message {large.message_id!r}" in caplog.text
    backend.close()


class Observer(Middleware):
    """Middleware that records the number of failed calls of the store in the present outage at each of its hooks."""

    def __init__(self, ours: StatusMiddleware, seen: list[tuple[str, int]], name: str) -> None:
        self._ours, self._seen, self._name = ours, seen, name

    def before_enqueue(self, broker: dramatiq.Broker, message: Any, delay: int | None) -> None:
        self._note("before")

    def after_enqueue(self, broker: dramatiq.Broker, message: Any, delay: int | None) -> None:
        self._note("after")

    def _note(self, hook: str) -> None:
        breaker = self._ours._breaker
        self._seen.append((f"{hook}, {self._name}", breaker._failures if breaker.down else 0))


@pytest.mark.parametrize("kind", ["redis", "memcached"])
def test_hooks_of_other_middleware_while_the_store_hangs(kind: str, start_server: StartServer) -> None:
    # Given a store that hangs, and other middleware before and after StatusMiddleware
    backend: StatusBackend
    server: Server
    if kind == "redis":
        server = redis = start_server(RedisServer())
        backend = RedisBackend(url=redis.url, timeout=300)
    else:
        server = memcached = start_server(MemcachedServer())
        backend = MemcachedBackend(servers=memcached.address, timeout=300)
    ours, seen = StatusMiddleware(backend=backend), list[tuple[str, int]]()
    broker = make_stub_broker(Observer(ours, seen, "in front"), ours, Observer(ours, seen, "behind"))

    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    def send() -> dramatiq.Message[Any] | None:
        """Send a message, and return it if the store has answered."""
        ours._breaker.retry_at = 0
        message = work.send()
        return None if ours._breaker.down else message

    def send_after_an_outage() -> dramatiq.Message[Any] | None:
        eventually(send)
        server.pause()
        seen.clear()
        # When a message is sent
        work.send()
        # Then the middleware before it waits for the store once, after the enqueue
        assert seen == [("before, in front", 0), ("before, behind", 0), ("after, behind", 0), ("after, in front", 1)]
        # When the next message tries the store again, the wait ends before the broker has this message
        seen.clear()
        send()
        assert seen == [("before, in front", 1), ("before, behind", 2), ("after, behind", 2), ("after, in front", 2)]
        # And when the store answers again, the next message is stored
        server.resume()
        return send()

    message = eventually(send_after_an_outage)
    assert answered(lambda: StatusRegistry.get(message, backend=backend).queued)
    backend.close()
