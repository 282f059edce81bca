"""Tests that each call ends by its deadline, however many servers and requests it needs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import dramatiq
import pytest

from dramatiq_status import BackendError, aio
from dramatiq_status.backend import Query, StatusBackend
from dramatiq_status.backends import MemcachedBackend, RedisBackend
from dramatiq_status.backends.redis import connection as redis_connection
from dramatiq_status.backends.redis.keys import TAGS, shard_of, slot_of
from dramatiq_status.update import EnqueueId, Kind, Outcome, Update

from .aio.test_registry import answered_in_loop
from .pace import own_clock
from .proxy import Proxy
from .recording import PATIENCE, answered, eventually, make_broker
from .servers import RedisCluster, RedisSentinels, RedisServer

#: The time-out of the backends here, in milliseconds.
TIMEOUT = 500

#: Time-out of the backends in tests where some servers answer, in milliseconds.
LONG_TIMEOUT = 2000


def limit(timeout: int = TIMEOUT) -> float:
    """Return the seconds that a call may take: its time-out, half of it for uninterruptible steps, and 0.2 seconds."""
    return timeout / 1000 * 1.5 + 0.2


#: One byte of a reply, and the seconds until the next: far less than the time-out.
DRIP = (1, 0.1)

#: Calls whose replies take longer than the time-out if they arrive byte by byte.
FIELDS = {f":{n}": '"x"' for n in range(100)}


@contextmanager
def in_time(*, fails: bool | None = True, timeout: int = TIMEOUT) -> Iterator[None]:
    """Check that a call ends by its deadline, and optionally whether it raises BackendError."""
    failed = False
    with own_clock() as clock:
        try:
            yield
        except BackendError:
            failed = True
        assert clock() < limit(timeout)
    assert fails in (None, failed)


def enqueue(number: int = 1, *, fields: dict[str, str] = FIELDS) -> Update:
    return Update(Kind.ENQUEUE, EnqueueId(number, 1), fields=fields)


def filled(
    connect: Callable[..., StatusBackend], updates: list[tuple[str, Update]], *, timeout: int = TIMEOUT
) -> StatusBackend:
    """Send updates with all the time that a busy machine needs, and return a connected backend with a time-out."""
    with closing(connect(timeout=PATIENCE * 1000)) as patient:
        assert Outcome.UNAVAILABLE not in patient.update_many(updates)
    backend = connect(timeout=timeout)
    # The messages are on all servers.
    answered(lambda: backend.read_many([message_id for message_id, _ in updates[:20]]))
    return backend


def enqueue_all(backend: RedisBackend, number: int) -> None:
    """Enqueue small messages, some of them on each server."""
    backend.update_many([(str(n), enqueue(number, fields={})) for n in range(100)])


# A server that sends one byte after the other


@pytest.fixture
def proxy(redis_server: RedisServer, redis_url: str) -> Iterator[Proxy]:
    with Proxy(redis_server.port) as proxy:
        yield proxy


@pytest.fixture
def dripping(proxy: Proxy) -> Iterator[RedisBackend]:
    """Yield a backend that is connected to a server whose replies drip."""
    backend = filled(partial(RedisBackend, host="127.0.0.1", port=proxy.port), [("m", enqueue())])
    proxy.drip = DRIP
    yield backend
    backend.close()


CALLS: dict[str, Callable[[Any], Any]] = {
    "read": lambda backend: backend.read("m"),
    "begin_update": lambda backend: backend.begin_update("m", enqueue(2))(),
    "find": lambda backend: backend.find(Query(None, None, None), limit=10, after=None),
}


@pytest.mark.parametrize("call", [CALLS["read"], CALLS["find"]], ids=["read", "find"])
def test_replies_byte_by_byte_end_at_the_timeout(dripping: RedisBackend, call: Callable[[RedisBackend], Any]) -> None:
    # Given a server that sends its replies byte by byte
    # When a call is made
    # Then the call ends by its time-out
    with in_time():
        call(dripping)


@pytest.mark.parametrize("call", [CALLS["read"], CALLS["begin_update"]], ids=["read", "begin_update"])
def test_connecting_with_replies_byte_by_byte_ends_at_the_timeout(
    dripping: RedisBackend, call: Callable[[RedisBackend], Any]
) -> None:
    # Given a server that sends its replies byte by byte, and no connection
    dripping.close()
    # When a call is made
    # Then connecting and the call together end by the time-out
    with in_time():
        call(dripping)


@pytest.mark.parametrize(
    ("kind", "size", "ids"),
    [("redis", 1, ["m"]), ("redis", len("*0\r\n"), ["unknown"] * 1500), ("memcached", 1, ["m"])],
    ids=["bytes of redis", "replies of redis", "bytes of memcached"],
)
def test_replies_whose_parts_never_let_a_call_wait_for_long_end_at_the_timeout(
    request: pytest.FixtureRequest, kind: str, size: int, ids: list[str]
) -> None:
    # Given a server that sends a byte, or a short reply, every two milliseconds
    server = request.getfixturevalue(f"{kind}_server")
    server.reset()
    with Proxy(server.port) as proxy:
        backend: StatusBackend
        if kind == "redis":
            backend = RedisBackend(host="127.0.0.1", port=proxy.port, timeout=TIMEOUT)
        else:
            backend = MemcachedBackend(servers=f"127.0.0.1:{proxy.port}", timeout=TIMEOUT)
        with closing(backend):
            answered(lambda: backend.update("m", enqueue()))
            proxy.drip = (size, 0.002)
            # When a call is made whose replies take seconds
            # Then the call ends by its time-out
            with in_time():
                backend.read_many(ids)


def test_subscribing_with_replies_byte_by_byte_ends_at_the_timeout(dripping: RedisBackend) -> None:
    with in_time():
        dripping.subscribe(["m"])


@pytest.mark.parametrize(
    "before",
    ["import sys; sys.modules['hiredis'] = None", "from gevent import monkey; monkey.patch_all()"],
    ids=["without hiredis", "gevent"],
)
def test_replies_byte_by_byte_without_hiredis_and_with_gevent(proxy: Proxy, before: str) -> None:
    # Given a process without hiredis, or with gevent
    filled(partial(RedisBackend, host="127.0.0.1", port=proxy.port), [("m", enqueue())]).close()
    script = f"""
        {before}
        import sys
        from dramatiq_status import BackendError
        from dramatiq_status.backends import RedisBackend
        backend = RedisBackend(host="127.0.0.1", port={proxy.port}, timeout={TIMEOUT})
        def answers():
            try:
                backend.read("m")
                return True
            except BackendError:
                return False
        while not answers():
            pass
        print("ready", flush=True)
        for line in sys.stdin:
            print("answered" if answers() else "failed", flush=True)
        """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        # When it calls a server that sends its replies byte by byte, over an idle connection and over a new one
        proxy.drip = DRIP
        for _ in range(2):
            # Then the call ends by its time-out
            with in_time(fails=False):
                process.stdin.write("go\n")
                process.stdin.flush()
                assert process.stdout.readline() == "failed\n"
        process.stdin.close()


def test_replies_byte_by_byte_in_an_event_loop(dripping: RedisBackend) -> None:
    async def ask() -> None:
        # Given a server that sends its replies byte by byte, and no connection, or one
        for _ in range(2):
            # When a call is made
            # Then the call ends by its time-out
            with in_time():
                await aio.StatusRegistry.read("m", backend=dripping)

    asyncio.run(ask())


@pytest.mark.parametrize("kind", ["redis", "redis without hiredis", "memcached"])
def test_a_large_reply_may_take_longer_than_the_timeout(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a server that sends 8 MB a second
    server = request.getfixturevalue("memcached_server" if kind == "memcached" else "redis_server")
    server.reset()
    if kind == "redis without hiredis":
        monkeypatch.setattr(redis_connection, "hiredis", None)
    large = '"' + "x" * 60_000 + '"'
    ids = [str(number) for number in range(50)]
    with Proxy(server.port) as proxy:
        if kind == "memcached":
            connect: Any = partial(MemcachedBackend, servers=f"127.0.0.1:{proxy.port}")
        else:
            connect = partial(RedisBackend, host="127.0.0.1", port=proxy.port)
        updates = [(message_id, enqueue(fields={":large": large})) for message_id in ids]
        backend = filled(connect, updates, timeout=200)
        proxy.drip = (65_536, 65_536 / 8_000_000)
        # When a call reads 3 MB, with a time-out of half of the time that they take
        records = answered(lambda: backend.read_many(ids))
        # Then the call succeeds
        assert [isinstance(record, dict) and record[":large"] for record in records] == [large] * 50
        backend.close()


def test_a_large_reply_that_stops_ends_at_the_timeout(proxy: Proxy) -> None:
    # Given a server that stops in the middle of a large reply
    large = enqueue(fields={":large": '"' + "x" * 60_000 + '"'})
    backend = filled(
        partial(RedisBackend, host="127.0.0.1", port=proxy.port), [(str(number), large) for number in range(60)]
    )
    proxy.stop_after = 3_000_000
    # When a call is made
    # Then the call ends as early as for a server that does not begin a reply
    with in_time():
        backend.read_many([str(number) for number in range(60)])
    backend.close()


@contextmanager
def busy_process() -> Iterator[None]:
    """Let other threads have the interpreter, so that each system call of ours takes a fifth of a second longer."""
    interval, over = sys.getswitchinterval(), threading.Event()

    def spin() -> None:
        while not over.is_set():
            pass

    threads = [threading.Thread(target=spin) for _ in range(2)]
    sys.setswitchinterval(0.1)
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        over.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("kind", ["redis", "redis without hiredis", "cluster"])
def test_replies_that_a_busy_process_reads_late(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a process whose other threads need the processor
    if kind == "cluster":
        servers = request.getfixturevalue("redis_cluster")
        servers.reset()
        connect = partial(RedisBackend, cluster_nodes=servers.addresses)
    else:
        if kind != "redis":
            monkeypatch.setattr(redis_connection, "hiredis", None)
        connect = partial(RedisBackend, url=request.getfixturevalue("redis_url"))
    ids = [str(number) for number in range(250)]
    backend = filled(connect, [(message_id, enqueue()) for message_id in ids])
    # When it reads many messages
    with busy_process():
        records = answered(lambda: backend.read_many(ids))
    # Then the call succeeds, although the replies are read late
    assert all(isinstance(record, dict) for record in records)
    backend.close()


@pytest.mark.parametrize("with_hiredis", [True, False])
def test_replies_that_are_read_late_after_begin_update(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, with_hiredis: bool
) -> None:
    # Given an update that was sent
    if not with_hiredis:
        monkeypatch.setattr(redis_connection, "hiredis", None)
    backend = RedisBackend(url=redis_url, timeout=100)
    numbers = count(1)

    def update() -> bool:
        complete = backend.begin_update("m", enqueue(next(numbers)))
        # When the caller does other work for longer than the time-out, such as the broker's call
        time.sleep(0.3)
        return complete() is Outcome.APPLIED

    # Then the reply is read
    assert answered(update)
    backend.close()


def test_a_large_reply_in_an_event_loop_may_take_longer_than_the_timeout(proxy: Proxy) -> None:
    # Given a server that takes twice the time-out for a reply, and goes on sending
    ids = [str(number) for number in range(1000)]
    backend = filled(
        partial(RedisBackend, host="127.0.0.1", port=proxy.port),
        [(message_id, enqueue(fields={})) for message_id in ids],
    )

    async def ask() -> list[Any]:
        # About 80 bytes a message
        proxy.drip = (1600, 0.02)
        return await aio.StatusRegistry.read_many(ids, backend=backend)

    # When a call is made
    # Then the call succeeds
    assert None not in answered(lambda: asyncio.run(ask()))
    backend.close()


def test_replies_that_a_blocked_event_loop_reads_late(redis_server: RedisServer, redis_url: str) -> None:
    backend = filled(partial(RedisBackend, url=redis_url), [("m", enqueue())], timeout=100)

    async def ask() -> Any:
        await aio.StatusRegistry.read("m", backend=backend)
        # Given a call whose request was sent
        redis_server.pause()
        call = asyncio.create_task(aio.StatusRegistry.read("m", backend=backend))
        await asyncio.sleep(0.01)
        redis_server.resume()
        # When other code blocks the event loop for longer than the time-out
        time.sleep(0.3)
        # Then the reply, which has arrived, is read
        return await call

    assert answered(lambda: asyncio.run(ask())) is not None
    backend.close()


# Servers that are frozen


class Store(NamedTuple):
    """Servers, a backend that uses them, and the name of the kind of store."""

    kind: str
    servers: Any
    backend: RedisBackend

    def use(self) -> None:
        """Call the backend, so that it has idle connections to all servers."""

        def ask() -> Any:
            enqueue_all(self.backend, 1)
            return self.backend.read_many([str(number) for number in range(100)])

        answered(ask)

    def freeze(self, *, connected: bool) -> None:
        """Freeze all servers."""
        if not connected:
            self.backend.close()
        self.servers.pause()
        if self.kind == "sentinel":
            # The next call queries the Sentinels again
            self.backend.transport.pool.query_at = 0.0  # type: ignore[attr-defined]


@pytest.fixture(params=["redis", "sentinel", "cluster"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    kind = request.param
    servers = request.getfixturevalue(
        {"redis": "redis_server", "sentinel": "redis_sentinels"}.get(kind, "redis_cluster")
    )
    servers.reset()
    if kind == "redis":
        backend = RedisBackend(url=servers.url, timeout=TIMEOUT)
    elif kind == "sentinel":
        backend = RedisBackend(sentinels=servers.addresses, service_name=servers.service_name, timeout=TIMEOUT)
    else:
        backend = RedisBackend(cluster_nodes=servers.addresses, timeout=TIMEOUT)
    store = Store(kind, servers, backend)
    store.use()
    yield store
    servers.resume()
    backend.close()


FROZEN_CALLS = {
    **CALLS,
    "reads of all nodes": lambda backend: backend.read_many([str(number) for number in range(100)]),
    "updates on all nodes": lambda backend: enqueue_all(backend, 2),
    "subscribe": lambda backend: backend.subscribe(["m"]),
}


@pytest.mark.parametrize(
    "name, connected",
    [
        *[(name, True) for name in ("read", "begin_update", "reads of all nodes", "updates on all nodes")],
        *[(name, False) for name in ("read", "begin_update", "find", "subscribe")],
    ],
)
def test_calls_to_frozen_servers_end_by_the_deadline(store: Store, name: str, connected: bool) -> None:
    # Given servers all of which are frozen, and connections to them or none
    store.freeze(connected=connected)
    # When a call is made
    # Then it raises an error, or postpones its updates, by its deadline
    with in_time(fails=None if "update" in name else True):
        FROZEN_CALLS[name](store.backend)


@pytest.mark.parametrize("connected", [True, False], ids=["connected", "not connected"])
def test_send_waits_for_one_timeout_while_servers_are_frozen(store: Store, connected: bool) -> None:
    # Given a message to send, and frozen servers
    broker = make_broker(store.backend)

    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    store.freeze(connected=connected)
    # When it is sent
    # Then send() waits for one time-out at most
    with in_time(fails=False):
        work.send()


@pytest.mark.parametrize("connected", [True, False], ids=["connected", "not connected"])
def test_concurrent_calls_to_frozen_servers_end_by_their_own_deadlines(store: Store, connected: bool) -> None:
    async def ask() -> None:
        # Given frozen servers, and connections to them or none
        if connected:
            await answered_in_loop(lambda: aio.StatusRegistry.read("0", backend=store.backend))
        await asyncio.to_thread(store.freeze, connected=connected)
        # When calls are made, one of them while the first waits
        first = asyncio.create_task(aio.StatusRegistry.read("0", backend=store.backend))
        await asyncio.sleep(TIMEOUT / 4000)
        # Then each ends by its own deadline
        with in_time():
            await aio.StatusRegistry.read("1", backend=store.backend)
        with pytest.raises(BackendError):
            await first

    asyncio.run(ask())


def test_a_frozen_sentinel_leaves_time_for_the_next_one_and_the_master(redis_sentinels: RedisSentinels) -> None:
    # Given a frozen Sentinel, which is the first to be queried
    redis_sentinels.reset()
    connect = partial(
        RedisBackend,
        sentinels=redis_sentinels.addresses,
        service_name=redis_sentinels.service_name,
        timeout=LONG_TIMEOUT,
    )

    def reaches_the_master() -> bool:
        # When a call needs the master
        with closing(connect()) as backend, in_time(fails=None, timeout=LONG_TIMEOUT):
            backend.update("m", enqueue())
            return backend.read("m") is not None
        return False

    redis_sentinels.sentinels[0].pause()
    try:
        # Then there is time left for the next Sentinel, and for the master
        eventually(reaches_the_master)
    finally:
        redis_sentinels.sentinels[0].resume()


def test_a_frozen_node_leaves_time_for_the_other_nodes(redis_cluster: RedisCluster) -> None:
    # Given a cluster with a frozen node, which is the first to be queried, and no connections
    redis_cluster.reset()
    backend = RedisBackend(cluster_nodes=redis_cluster.addresses, timeout=LONG_TIMEOUT)
    ids = [str(number) for number in range(60)]
    backend.update_many([(message_id, enqueue()) for message_id in ids])
    backend.close()
    redis_cluster.nodes[0].pause()
    try:
        # When messages of all nodes are written
        with in_time(fails=False, timeout=LONG_TIMEOUT):
            outcomes = backend.update_many([(message_id, enqueue(2)) for message_id in ids])
    finally:
        redis_cluster.resume()
        backend.close()
    # Then there was time left for the other nodes
    assert [outcome is not Outcome.UNAVAILABLE for outcome in outcomes] == [
        redis_cluster.owner(slot_of(TAGS[shard_of(message_id)])) != 0 for message_id in ids
    ]
