"""The client for Dramatiq's Redis broker: its calls have the results, errors and connections of redis-py's."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend as ResultBackend
from redis._parsers.base import BaseParser
from redis.backoff import NoBackoff
from redis.retry import Retry

from dramatiq_status.backends import RedisBackend
from dramatiq_status.backends.redis.broker_calls import BrokerCalls
from dramatiq_status.errors import NotSupported

from ..recording import eventually, raised_by, start_worker
from ..servers import RedisCluster, RedisSentinels, RedisServer


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return commands of the broker that have not gone through redis-py."""
    seen: list[str] = []
    call = BrokerCalls.call

    def noted(self: BrokerCalls, sha: str, arguments: tuple[Any, ...]) -> Any:
        seen.append(arguments[1])
        return call(self, sha, arguments)

    monkeypatch.setattr(BrokerCalls, "call", noted)
    return seen


def make_broker(url: str, **parameters: Any) -> RedisBroker:
    # Maintenance would move messages that a test has left.
    return RedisBroker(client=RedisBackend(url=url, **parameters).broker_client(), maintenance_chance=0)


def declare(broker: dramatiq.Broker) -> dramatiq.Actor[..., Any]:
    @dramatiq.actor(broker=broker)
    def add(x: int, y: int) -> None:
        pass

    return add


def play(broker: RedisBroker) -> list[Any]:
    """Call each command of the broker, and return what could be seen of it."""
    add = declare(broker)
    sent = [add.send(number, 2) for number in range(4)]
    consumer = broker.consume("default", prefetch=3, timeout=10)
    got = [next(consumer) for _ in range(3)]
    assert [message.args for message in got if message] == [message.args for message in sent[:3]]
    seen: list[Any] = [broker.do_qsize("default")]
    consumer.ack(got[0])
    consumer.nack(got[1])
    consumer.requeue([got[2]])
    seen.append(broker.do_qsize("default"))
    seen += [sorted(broker.client.keys("dramatiq:*default*")), broker.client.zcard("dramatiq:default.XQ")]
    broker.flush("default")
    return [*seen, broker.do_qsize("default")]


@pytest.mark.parametrize("parameters", ["", "?protocol=2", "?protocol=3"])
def test_each_command_has_the_effect_that_it_has_through_redis_py(
    redis_server: RedisServer, redis_url: str, parameters: str, calls: list[str]
) -> None:
    # Given brokers with a client of redis-py, and with ours
    by_redis_py = play(RedisBroker(url=redis_server.database(1) + parameters, maintenance_chance=0))
    assert calls == []
    # When all commands are called
    by_us = play(make_broker(redis_url + parameters))
    # Then their effects are equal, and none has gone through redis-py
    assert by_us == by_redis_py
    assert set(calls) == {"enqueue", "fetch", "qsize", "ack", "nack", "requeue", "purge"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("dramatiq", "ack", 1_700_000_000_000, "default", "broker", 60_000, 604_800_000, 0, 4000, "id"),
        ("dramatiq", "enqueue", 7, "é", "broker", 60_000, 604_800_000, 1, 4000, "id", b"\xff" * 2000),
        ("dramatiq", "fetch", 7, "default", "broker", 60_000, 604_800_000, 1, 4000, 16),
        ("dramatiq", "qsize", 7, "default", "broker", 60_000, 604_800_000, 0, 4000),
        # Other classes
        ("dramatiq", "fetch", 7, "default", "broker", 60_000, 604_800_000, 1, 4000, 0.5),
        ("dramatiq", "ack", 7, b"\xff", "broker", 1e3, 604_800_000, 0, 4000, "id"),
        ("dramatiq", "ack", b"7", "default", "broker", 60_000, 604_800_000, 0, 4000, "id"),
    ],
)
def test_calls_are_packed_as_redis_py_packs_them(redis_url: str, arguments: tuple[Any, ...]) -> None:
    client = RedisBackend(url=redis_url).broker_client()
    assert client.broker_calls is not None
    expected = b"".join(redis.Connection().pack_command("EVALSHA", "0" * 40, 1, *arguments))
    # The second call finds the parts that it has in common with the first one.
    for _ in range(2):
        assert client.broker_calls._pack("0" * 40, arguments) == expected
    # And an argument that redis-py refuses is refused
    with pytest.raises(redis.DataError):
        client.broker_calls._pack("0" * 40, (*arguments, True))


def test_a_client_serves_the_results_and_other_calls_as_well(redis_url: str, calls: list[str]) -> None:
    # Given a broker whose client the results use, too
    broker = make_broker(redis_url)
    results = ResultBackend(client=broker.client)
    broker.add_middleware(Results(backend=results))

    @dramatiq.actor(broker=broker, store_results=True)
    def add_up(x: int, y: int) -> int:
        return x + y

    message = add_up.send(1, 2)
    worker = start_worker(broker)
    # When its result is read, and other commands are called
    try:
        assert message.get_result(backend=results, block=True, timeout=10_000) == 3
    finally:
        worker.stop()
    with broker.client.pipeline() as pipeline:
        assert pipeline.set("key", "text").get("key").execute() == [True, b"text"]
    # Then another script has its own replies, and goes through redis-py unless its arguments are like the broker's
    calls.clear()
    script = broker.client.register_script("return {KEYS[1], ARGV[1], tostring(#ARGV)}")
    assert script(keys=["a"], args=["ack", *range(8)]) == [b"a", b"ack", b"9"]
    assert script(keys=["a"], args=["other", *range(8)]) == [b"a", b"other", b"9"]
    assert set(calls) == {"ack"}


def test_the_script_is_loaded_again_where_the_server_has_lost_it(redis_server: RedisServer, redis_url: str) -> None:
    broker = make_broker(redis_url)
    add = declare(broker)
    add.send(1, 2)
    broker.client.script_flush()
    add.send(1, 2)
    assert broker.do_qsize("default") == 2


def test_a_restarted_server_is_connected_again(start_server: Any) -> None:
    # Given a client with idle connections, and no retries
    server = start_server(RedisServer())
    broker = make_broker(server.url)
    add = declare(broker)
    add.send(1, 2)
    # When the server is restarted
    server.restart()
    # Then the next call connects again, as through redis-py
    add.send(1, 2)
    assert broker.do_qsize("default") == 1
    # And while the server is away, the call raises the error of redis-py
    server.stop()
    with pytest.raises(redis.ConnectionError):
        add.send(1, 2)
    server.start()
    add.send(1, 2)


def test_a_call_ends_after_the_time_out_of_the_client(start_server: Any) -> None:
    server = start_server(RedisServer())
    broker = make_broker(f"{server.url}?socket_timeout=0.2")
    add = declare(broker)
    sent: list[None] = []

    def send() -> bool:
        sent.append(None)
        add.send(1, 2)
        return True

    def size_after_a_late_reply() -> int:
        eventually(lambda: not isinstance(raised_by(send), redis.TimeoutError))
        server.pause()
        with pytest.raises(redis.TimeoutError):
            send()
        server.resume()
        try:
            return int(broker.do_qsize("default"))
        except redis.TimeoutError:
            # On a busy machine, this reply may be late, too.
            return 0

    # The next call does not read the reply that came too late.
    assert eventually(size_after_a_late_reply) <= len(sent)


@contextmanager
def answering(reply: bytes) -> Iterator[int]:
    """Run a server that greets clients, and has one reply to scripts."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(peer: socket.socket) -> None:
        while data := peer.recv(65_536):
            peer.sendall(reply if b"EVALSHA" in data else b"+OK\r\n" * data.count(b"*"))

    def accept() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(peer,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


ERRORS = [
    "ERR Error running script",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "NOSCRIPT No matching script. Please use EVAL.",
    "READONLY You can't write against a read only replica.",
    "LOADING Redis is loading the dataset in memory",
    "MASTERDOWN Link with MASTER is down",
    "NOPERM this user has no permissions",
    "NOAUTH Authentication required.",
    "WRONGTYPE Operation against a key holding the wrong kind of value",
    "MISCONF Redis is configured to save RDB snapshots",
    "NOREPLICAS Not enough good replicas to write.",
]


def error_of(call: Callable[[], Any]) -> tuple[type[Exception], str]:
    with pytest.raises(redis.RedisError) as found:
        call()
    return found.type, str(found.value)


@pytest.mark.parametrize("error", ERRORS)
def test_errors_are_those_of_redis_py(error: str, calls: list[str]) -> None:
    if error.startswith("MASTERDOWN") and "MASTERDOWN" not in BaseParser.EXCEPTION_CLASSES:
        pytest.skip("redis-py 5.0.0 has no class for this error.")
    with answering(f"-{error}\r\n".encode()) as port:
        ours = RedisBackend(url=f"redis://127.0.0.1:{port}/0?protocol=2").broker_client()
        theirs = redis.Redis(connection_pool=ours.connection_pool)
        command = ("sha", 1, "dramatiq", "fetch", *range(8))
        assert error_of(lambda: ours.evalsha(*command)) == error_of(lambda: theirs.evalsha(*command))
        assert calls == ["fetch"]


def test_retries_are_those_of_the_client(start_server: Any, calls: list[str]) -> None:
    # Given a client that tries twice
    server = start_server(RedisServer())
    client = redis.Redis(port=server.port, retry=Retry(NoBackoff(), 1), socket_timeout=0.2)
    broker = RedisBroker(client=RedisBackend(client=client).broker_client())
    add = declare(broker)
    add.send(1, 2)
    # When the first attempt has no reply
    server.pause()
    threading.Timer(0.3, server.resume).start()
    add.send(1, 2)
    # Then the second one is redis-py's
    assert calls[-1] == "enqueue" and broker.do_qsize("default") >= 2


def test_connections_have_the_name_of_the_client(redis_server: RedisServer, redis_url: str, calls: list[str]) -> None:
    broker = make_broker(f"{redis_url}?client_name=broker")
    broker.do_qsize("default")
    names = [client["name"] for client in redis.Redis.from_url(redis_url).client_list() if "evalsha" in client["cmd"]]
    assert "qsize" in calls and "broker" in names


def test_a_user_with_the_rights_of_the_broker_alone(redis_server: RedisServer, redis_url: str) -> None:
    admin = redis.Redis.from_url(redis_url)
    admin.acl_setuser(
        "worker", enabled=True, passwords=["+secret"], keys=["dramatiq*"], categories=["+@all", "-@dangerous"]
    )
    try:
        broker = make_broker(f"redis://worker:secret@127.0.0.1:{redis_server.port}/0")
        declare(broker).send(1, 2)
        assert broker.do_qsize("default") == 1
        other = RedisBroker(client=broker.client, namespace="other")
        with pytest.raises(redis.ResponseError):
            declare(other).send(1, 2)
    finally:
        admin.acl_deluser("worker")


def test_threads_and_a_forked_process_have_their_own_connections(redis_url: str) -> None:
    # Given a client that eight threads use at the same time
    broker = make_broker(redis_url)
    add = declare(broker)
    threads = [threading.Thread(target=lambda: [add.send(1, 2) for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert broker.do_qsize("default") == 400
    # When a child process and its parent use it at the same time
    child = os.fork()
    if not child:
        try:
            for _ in range(50):
                add.send(1, 2)
        finally:
            os._exit(0)
    for _ in range(50):
        add.send(1, 2)
    os.waitpid(child, 0)
    # Then each has had its own replies
    assert broker.do_qsize("default") == 500


# What goes through redis-py


@pytest.mark.parametrize(
    "make",
    [
        lambda url: redis.Redis.from_url(url, decode_responses=True),
        lambda url: redis.Redis(connection_pool=redis.BlockingConnectionPool.from_url(url)),
        lambda url: redis.Redis(connection_pool=redis.ConnectionPool.from_url(url, connection_class=Traced)),
    ],
    ids=["decoded", "limited", "own-connections"],
)
def test_unusual_connections_are_left_to_redis_py(
    redis_url: str, make: Callable[[str], redis.Redis], calls: list[str]
) -> None:
    client = RedisBackend(client=make(redis_url)).broker_client()
    assert RedisBroker(client=client).do_qsize("default") == 0
    assert calls == []


class Traced(redis.Connection):
    """A connection of another package."""


def test_sentinels_are_left_to_redis_py(redis_sentinels: RedisSentinels, calls: list[str]) -> None:
    redis_sentinels.reset()
    backend = RedisBackend(sentinels=redis_sentinels.addresses, service_name="mymaster", timeout=20_000)
    assert RedisBroker(client=backend.broker_client()).do_qsize("default") == 0
    assert calls == []


def test_packages_that_trace_commands_see_all_of_them(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, calls: list[str]
) -> None:
    # Given a package that replaces `execute_command`, after the client has been used
    broker = make_broker(redis_url)
    broker.do_qsize("default")
    assert calls
    calls.clear()
    seen: list[Any] = []
    original = redis.Redis.execute_command

    def traced(self: redis.Redis, *arguments: Any, **options: Any) -> Any:
        seen.append(arguments[0])
        return original(self, *arguments, **options)

    # When it is replaced in the class, or in the client
    with monkeypatch.context() as patched:
        patched.setattr(redis.Redis, "execute_command", traced)
        broker.do_qsize("default")
    with monkeypatch.context() as patched:
        patched.setattr(broker.client, "execute_command", traced.__get__(broker.client))
        broker.do_qsize("default")
    # Then it gets the broker's calls
    assert seen == ["EVALSHA", "EVALSHA"] and calls == []
    broker.do_qsize("default")
    assert calls == ["qsize"]


def test_a_cluster_has_no_client_for_a_broker(redis_cluster: RedisCluster) -> None:
    with pytest.raises(NotSupported, match="cluster"):
        RedisBackend(cluster_nodes=redis_cluster.addresses).broker_client()


def test_a_client_of_valkey_py_is_refused(redis_url: str) -> None:
    valkey = pytest.importorskip("valkey")
    with pytest.raises(NotSupported, match="redis-py"):
        RedisBackend(client=valkey.Valkey.from_url(redis_url)).broker_client()
