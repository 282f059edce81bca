"""Redis behind TLS, names and passwords."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import dramatiq
import pytest
import redis
from dramatiq.brokers.redis import RedisBroker

from dramatiq_status import (
    Snapshot,
    State,
    StatusMiddleware,
    StatusRegistry,
    aio,
    backend_from_url,
    current_status,
)
from dramatiq_status.aio.store import async_backend
from dramatiq_status.backend import Query, StatusBackend
from dramatiq_status.backends.redis import RedisBackend, clients
from dramatiq_status.backends.redis.driver import driver
from dramatiq_status.errors import BackendError
from dramatiq_status.testing.conformance import enqueue, finish, heartbeat, outside, pages_of, start, write
from dramatiq_status.update import Outcome

from ..conftest import StartServer
from ..proxy import Proxy
from ..recording import answered, eventually, working
from ..servers import RedisCluster, RedisSentinels, RedisServer, _free_cluster_port, _Sentinel, free_port

#: Time-out in milliseconds that no test reaches by chance, even on a busy machine.
PATIENT = 20_000

PASSWORD = "s3cr3t/:@p"

#: ACL rules of a user with all permissions.
EVERYTHING: dict[str, Any] = {
    "enabled": True, "passwords": ["+" + PASSWORD], "keys": "*", "channels": "*", "commands": ["+@all"],
}  # fmt: skip

#: ACL rules of a user with only the permissions that a backend needs.
PERMITTED = (
    "+evalsha +script|load +time +hget +hmget +hgetall +hset +hsetnx +hdel +hkeys +hexists +exists +del "
    "+pexpire +pttl +publish +subscribe +ping +smembers +sadd +srem +zadd +zrem +zcard +zcount +zrange +zrevrange "
    "+zrevrangebyscore +zscore +srandmember +unlink +zremrangebyscore +zremrangebyrank"
)


def tls_arguments(certificates: Path, port: int) -> tuple[str, ...]:
    """Return the arguments with which a server speaks TLS on another port."""
    return (
        *("--tls-port", str(port), "--tls-auth-clients", "no"),
        *("--tls-ca-cert-file", str(certificates / "ca.crt")),
        *("--tls-cert-file", str(certificates / "server.crt"), "--tls-key-file", str(certificates / "server.key")),
    )


class TlsServer(RedisServer):
    """A Redis server with TLS on a second port."""

    def __init__(self, certificates: Path) -> None:
        self.tls_port = free_port()
        super().__init__(*tls_arguments(certificates, self.tls_port))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``ca.crt``, ``server.crt`` and ``server.key`` for 127.0.0.1, and ``other.crt`` of another authority."""
    directory = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    # Python 3.13 requires all extensions that the standard requires of certificates.
    signs = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    for name in ("ca", "other"):
        openssl("req", "-x509", *key, *signs, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.crt")
    openssl("req", *key, "-subj", "/CN=127.0.0.1", "-keyout", "server.key", "-out", "server.csr")
    extensions = ("subjectAltName=IP:127.0.0.1", "subjectKeyIdentifier=hash", "authorityKeyIdentifier=keyid")
    (directory / "extensions").write_text("\n".join(extensions))
    openssl(
        *("x509", "-req", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"),
        *("-extfile", "extensions", "-out", "server.crt"),
    )
    return directory


@pytest.fixture(scope="module")
def tls_server(certificates: Path) -> Iterator[TlsServer]:
    with TlsServer(certificates) as server:
        yield server


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """Yield a client with all permissions.  Users that a test creates are deleted after it."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client
        for name in client.acl_users():
            if name != "default":
                client.acl_deluser(name)


@pytest.mark.parametrize("way", ["url", "parameters"])
def test_updates_and_changes_over_tls(tls_server: TlsServer, certificates: Path, way: str) -> None:
    # Given a server that speaks TLS, and a backend that trusts its authority
    ca = str(certificates / "ca.crt")
    if way == "url":
        backend = RedisBackend(url=f"rediss://127.0.0.1:{tls_server.tls_port}?ssl_ca_certs={ca}", timeout=PATIENT)
    else:
        backend = RedisBackend(host="127.0.0.1", port=tls_server.tls_port, ssl=True, ssl_ca_certs=ca, timeout=PATIENT)
    with closing(backend):
        # When many records are written, read and watched, one of them with a large field
        ids = [uuid4().hex for _ in range(500)]
        large = '"' + "x" * 60_000 + '"'
        outcomes = backend.update_many([(message_id, enqueue(large=large)) for message_id in ids])
        found = backend.read_many(ids)
        subscription = backend.subscribe(ids[:1])
        begun = backend.begin_update(ids[0], start(1))
        with closing(subscription):
            heard = subscription.wait(PATIENT / 1000)
        # Then all values are unchanged
        assert (begun(), set(outcomes), heard) == (Outcome.APPLIED, {Outcome.APPLIED}, {ids[0]: 2})
        assert all(record is not None and record[":large"] == large for record in found)


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
@pytest.mark.parametrize("trust", ["authority", "anybody"])
def test_a_url_selects_tls(tls_server: TlsServer, certificates: Path, scheme: str, trust: str) -> None:
    # Given the URL of a server that speaks TLS and requires a login
    query = f"ssl_ca_certs={certificates / 'ca.crt'}" if trust == "authority" else "ssl_cert_reqs=none"
    with redis.Redis(port=tls_server.port) as client:
        client.acl_setuser("worker", **EVERYTHING)
        url = f"{scheme}://worker:{quote(PASSWORD, safe='')}@127.0.0.1:{tls_server.tls_port}/1?{query}"
        # When a backend is made from it
        with closing(backend_from_url(url, timeout=PATIENT)) as backend:
            # Then the backend works
            message_id = uuid4().hex
            assert backend.update(message_id, enqueue()) is Outcome.APPLIED and backend.read(message_id) is not None
        client.acl_deluser("worker")


def test_tls_to_sentinels_by_url(start_server: StartServer, tls_server: TlsServer, certificates: Path) -> None:
    # Given a Sentinel that speaks TLS, as its master does
    port = free_port()
    lines = [argument.replace("--", "", 1) for argument in tls_arguments(certificates, port)]
    settings = (f"{name} {value}" for name, value in zip(lines[::2], lines[1::2]))
    start_server(_Sentinel(tls_server.tls_port, "tls-replication yes", *settings))
    # When a backend is made from a URL
    url = f"rediss+sentinel://127.0.0.1:{port}/{RedisSentinels.service_name}?ssl_ca_certs={certificates / 'ca.crt'}"
    with closing(backend_from_url(url, timeout=PATIENT)) as backend:
        # Then the backend works
        message_id = uuid4().hex
        assert backend.update(message_id, enqueue()) is Outcome.APPLIED and backend.read(message_id) is not None


def test_tls_to_a_cluster_by_url(start_server: StartServer, certificates: Path) -> None:
    # Given a cluster that speaks TLS
    cluster, ports = RedisCluster(), [free_port() for _ in range(3)]
    for node, port in zip(cluster.nodes, ports):
        node._port = _free_cluster_port()
        # Nodes announce their TLS ports only if they also speak TLS among themselves.
        bus = ("--tls-cluster", "yes", "--cluster-port", str(node.port + 10_000))
        node.args = (*tls_arguments(certificates, port), *bus)
    start_server(cluster)
    # When a backend is made from the URL of one node
    url = f"rediss+cluster://127.0.0.1:{ports[0]}?ssl_ca_certs={certificates / 'ca.crt'}"
    with closing(backend_from_url(url, timeout=PATIENT)) as backend:
        ids = [uuid4().hex for _ in range(200)]
        outcomes = backend.update_many([(message_id, enqueue()) for message_id in ids])
        # Then the backend works with all nodes
        assert set(outcomes) == {Outcome.APPLIED} and all(backend.read_many(ids))
        assert isinstance(backend, RedisBackend)
        assert {port for _, port in backend.transport._map.nodes} == set(ports)


@pytest.mark.parametrize("package", ["redis", "valkey"])
@pytest.mark.parametrize("way", ["url", "by url", "parameters", "sentinels", "cluster"])
def test_the_name_in_a_certificate_is_compared_with_the_host(
    tls_server: TlsServer, certificates: Path, monkeypatch: pytest.MonkeyPatch, package: str, way: str
) -> None:
    # Given a driver, and a server whose certificate is for 127.0.0.1
    monkeypatch.setattr(clients, "DRIVER", driver(package))
    host, port, query = "localhost", tls_server.tls_port, f"ssl_ca_certs={certificates / 'ca.crt'}"
    own: dict[str, Any] = {"ssl": True, "ssl_ca_certs": str(certificates / "ca.crt"), "timeout": PATIENT}
    makers: dict[str, Callable[[], StatusBackend]] = {
        "url": lambda: RedisBackend(url=f"rediss://{host}:{port}?{query}", timeout=PATIENT),
        "by url": lambda: backend_from_url(f"rediss://{host}:{port}?{query}", timeout=PATIENT),
        "parameters": lambda: RedisBackend(host=host, port=port, **own),
        "sentinels": lambda: backend_from_url(f"rediss+sentinel://{host}:{port}/m?{query}", timeout=PATIENT),
        "cluster": lambda: backend_from_url(f"rediss+cluster://{host}:{port}?{query}", timeout=PATIENT),
    }
    # When a backend connects by another name
    backend: Any = makers[way]()
    with closing(backend), pytest.raises(BackendError) as caught:
        backend.read("m")
    # Then it refuses the server, on connections to Sentinels and to their master
    if way == "sentinels":
        asked = [backend.transport.pool, *(sentinel.pool for sentinel in backend.transport.pool.sentinels)]
        assert [one.parameters["ssl_check_hostname"] for one in asked] == [True, True]
    else:
        assert "match" in str(caught.value)


@pytest.mark.parametrize("package", ["redis", "valkey"])
@pytest.mark.parametrize(
    "chosen", [{"ssl_check_hostname": False}, {"ssl_cert_reqs": "none"}, {"ssl_cert_reqs": None}], ids=str
)
def test_the_name_in_a_certificate_is_not_compared_on_request(
    tls_server: TlsServer,
    certificates: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    chosen: dict[str, Any],
) -> None:
    monkeypatch.setattr(clients, "DRIVER", driver(package))
    # Given a backend that does not compare the name, and connects by another one than that in the certificate
    own: dict[str, Any] = {"ssl_ca_certs": str(certificates / "ca.crt"), "timeout": PATIENT, **chosen}
    with closing(RedisBackend(host="localhost", port=tls_server.tls_port, ssl=True, **own)) as backend:
        # When it is used
        # Then the backend works
        assert backend.update(uuid4().hex, enqueue()) is Outcome.APPLIED


@pytest.mark.parametrize("way", ["tls", "unix", "narrow"])
def test_an_event_loop_watches_over_each_kind_of_connection(
    request: pytest.FixtureRequest, start_server: StartServer, tmp_path: Path, certificates: Path, way: str
) -> None:
    # Given a server behind TLS, on a socket at a path, or with a user with only the needed permissions
    if way == "tls":
        port = request.getfixturevalue("tls_server").tls_port
        backend = RedisBackend(url=f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificates / 'ca.crt'}", timeout=PATIENT)
    elif way == "unix":
        start_server(RedisServer("--unixsocket", str(tmp_path / "socket")))
        backend = RedisBackend(url=f"unix://{tmp_path / 'socket'}", timeout=PATIENT)
    else:
        client = request.getfixturevalue("client")
        rights = ("~dramatiq-status*", "resetchannels", "&dramatiq-status*", *PERMITTED.split())
        client.execute_command("ACL", "SETUSER", "narrow", "on", "nopass", *rights)
        port = request.getfixturevalue("redis_server").port
        backend = RedisBackend(host="127.0.0.1", port=port, username="narrow", password="x", timeout=PATIENT)
    ids = ["žluťoučký kůň", *(uuid4().hex for _ in range(20))]

    async def follow(message_id: str) -> State:
        async for found in aio.StatusRegistry.watch(message_id, backend=backend):
            if found.queued:
                await asyncio.to_thread(backend.update, message_id, start(1))
            elif found.working:
                await aio.StatusRegistry.get(message_id, backend=backend).update(status="completed")
        return found.state

    async def main() -> list[State]:
        store = await async_backend(backend)
        assert type(store).__name__ == "AsyncRedis"
        return await asyncio.gather(*map(follow, ids))

    with closing(backend):
        backend.recheck_interval = 3_600_000
        backend.update_many([(message_id, enqueue()) for message_id in ids])
        # When messages are watched in an event loop, and each changes after each snapshot
        # Then the watchers receive all ends
        assert asyncio.run(main()) == [State.COMPLETED] * len(ids)


def test_an_idle_tls_connection_is_used_again(tls_server: TlsServer, certificates: Path) -> None:
    # Given a connection that was not used for a while
    url = f"rediss://127.0.0.1:{tls_server.tls_port}?ssl_ca_certs={certificates / 'ca.crt'}"
    with closing(RedisBackend(url=url, timeout=PATIENT)) as backend:
        backend.update("m", start(1))
        (link,) = backend.transport.pool._idle
        link.used -= 60
        # When a call needs a connection
        backend.update("m", write(1, 2))
        # Then the call uses this one
        assert list(backend.transport.pool._idle) == [link]


def test_replies_byte_by_byte_over_tls_end_at_the_timeout(tls_server: TlsServer, certificates: Path) -> None:
    # Given a server that sends its replies byte by byte
    with Proxy(tls_server.tls_port) as proxy:
        url = f"rediss://127.0.0.1:{proxy.port}?ssl_ca_certs={certificates / 'ca.crt'}"
        with closing(RedisBackend(url=url, timeout=500)) as backend:
            answered(lambda: backend.update("m", start(1)))
            proxy.drip = (1, 0.1)
            # When a call is made, over an idle connection and over a new one
            for _ in range(2):
                # Then the call ends with its time-out, although each byte comes in time
                with pytest.raises(BackendError):
                    backend.read("m")


def test_a_tls_connection_that_the_server_closed(tls_server: TlsServer, certificates: Path) -> None:
    # Given a connection in use that the server has closed
    url = f"rediss://127.0.0.1:{tls_server.tls_port}?ssl_ca_certs={certificates / 'ca.crt'}"
    with closing(RedisBackend(url=url, timeout=PATIENT)) as backend:
        message_id = uuid4().hex
        backend.update(message_id, start(1))
        with redis.Redis(port=tls_server.port) as other:
            other.client_kill_filter(_type="normal", skipme=True)
        # When an update is written
        # Then another connection is opened
        assert backend.update(message_id, write(1, 2)) is Outcome.APPLIED


@pytest.mark.parametrize("way", ["plain", "tls"])
def test_the_error_of_a_silent_server_contains_the_time_out(
    request: pytest.FixtureRequest, redis_server: RedisServer, certificates: Path, way: str
) -> None:
    # Given a connection to a server that has stopped answering
    if way == "plain":
        server, url = redis_server, redis_server.url
    else:
        server = request.getfixturevalue("tls_server")
        url = f"rediss://127.0.0.1:{server.tls_port}?ssl_ca_certs={certificates / 'ca.crt'}"
    with closing(RedisBackend(url=url, timeout=1500)) as backend:
        assert answered(lambda: backend.read_many(["m"]))
        server.pause()
        try:
            # When a call is made
            # Then the error contains the time-out, and not the text of the system's error
            with pytest.raises(BackendError, match="no answer within 1500 milliseconds"):
                backend.read("m")
        finally:
            server.resume()


def test_an_authority_that_is_not_trusted_raises(tls_server: TlsServer, certificates: Path) -> None:
    # Given a backend that trusts another authority
    url = f"rediss://127.0.0.1:{tls_server.tls_port}?ssl_ca_certs={certificates / 'other.crt'}"
    backend = RedisBackend(url=url, timeout=PATIENT)
    # When it is used
    # Then the call raises a BackendError that names the reason
    with pytest.raises(BackendError, match="certificate"):
        backend.read("m")


def test_a_user_with_a_password_can_write(client: redis.Redis, redis_server: RedisServer) -> None:
    # Given a user
    client.acl_setuser("worker", **EVERYTHING)
    with closing(
        RedisBackend(host="127.0.0.1", port=redis_server.port, username="worker", password=PASSWORD, timeout=PATIENT)
    ) as backend:
        # When a record is written
        # Then it is stored
        assert backend.update("m", enqueue()) is Outcome.APPLIED


def test_a_user_who_may_not_publish(client: redis.Redis, redis_server: RedisServer) -> None:
    # Given a user without the right to any channel
    client.execute_command("ACL", "SETUSER", "quiet", "on", "nopass", "~*", "resetchannels", "+@all")
    with closing(
        RedisBackend(host="127.0.0.1", port=redis_server.port, username="quiet", password="x", timeout=PATIENT)
    ) as backend:
        # When a message is enqueued, run and completed
        life = (enqueue(), start(1), write(1, 2, increment=1), outside(step="1"), heartbeat(1), finish(1))
        outcomes = [backend.update("m", update) for update in life]
        # Then all updates are stored, and a watcher polls
        assert outcomes == [Outcome.APPLIED] * 6
        assert StatusRegistry.wait("m", backend=backend, timeout=PATIENT)["progress"] == 1


def test_a_user_who_may_do_no_more_than_needed(client: redis.Redis, redis_server: RedisServer) -> None:
    # Given a user with one namespace and few commands
    client.execute_command(
        *("ACL", "SETUSER", "narrow", "on", "nopass", "~shop:*", "~shop?index:*", "resetchannels", "&shop:*"),
        *PERMITTED.split(),
    )
    with closing(
        RedisBackend(
            **{"host": "127.0.0.1", "port": redis_server.port, "username": "narrow", "password": "x"},
            namespace="shop",
            timeout=PATIENT,
        )
    ) as backend:
        # When messages go through all their states, and are listed and deleted
        life = (
            *(enqueue(a='"actor"'), start(1), write(1, 2, increment=1, step="1"), enqueue(generation=2)),
            *(start(2, generation=2), heartbeat(2), outside(increment=1), finish(2, 9, generation=2)),
            *(
                enqueue(origin=8, step="2"),
                enqueue(origin=8, b="1"),
                outside(state=3),
                outside(state=0),
                start(3, origin=9),
            ),
        )
        outcomes = [backend.update("m", update) for update in life]
        with closing(backend.subscribe(["m"])) as subscription:
            backend.update("m", write(3, 2, origin=9))
            heard = subscription.wait(PATIENT / 1000)
        for n in range(50):
            backend.update_many([(f"m{n}", start(1, a=f'"a{n}"')), (f"m{n}", finish(1))])
        # Then no call is refused
        assert set(outcomes) == {Outcome.APPLIED, Outcome.LATE} and "m" in heard
        assert [len(page) for page in pages_of(backend, Query(), limit=20)] == [20, 20, 11] and backend.count(
            Query()
        ) == 51
        assert backend.delete("m")


def test_a_cluster_with_names_and_passwords(redis_cluster: RedisCluster) -> None:
    redis_cluster.reset()
    with ExitStack() as stack:
        # Given a user on all nodes
        for number in range(3):
            node = stack.enter_context(redis_cluster.client(number))
            node.acl_setuser("worker", **EVERYTHING)
            stack.callback(node.acl_deluser, "worker")
        backend = RedisBackend(
            cluster_nodes=redis_cluster.addresses, username="worker", password=PASSWORD, timeout=PATIENT
        )
        stack.callback(backend.close)
        ids = [uuid4().hex for _ in range(100)]
        # When records are written on all nodes
        backend.update_many([(message_id, enqueue()) for message_id in ids])
        # Then they can be read
        assert all(backend.read_many(ids))


def test_parameters_beside_a_url(redis_server: RedisServer) -> None:
    # Given a URL with a database, and parameters beside it
    url = redis_server.database(3)
    with closing(RedisBackend(url=url, timeout=PATIENT, client_name="shop", db=2)) as backend:
        # When a backend connects
        backend.update("m", enqueue())
        # Then it uses both, and the URL where they differ
        found = next(one for one in backend.client.client_list() if one["name"] == "shop")
        assert found["db"] == "3"
    # And a parameter that connections do not have is an error
    with pytest.raises(TypeError, match=r"A connection parameter, passed or in the URL, is wrong: .*'colour'"):
        RedisBackend(url=url, colour="red")


@pytest.mark.parametrize("fault", ["nobody there", "wrong password"])
@pytest.mark.parametrize("way", ["url", "parameters", "client", "sentinels", "cluster"])
def test_no_error_contains_a_password(
    redis_server: RedisServer, redis_url: str, caplog: pytest.LogCaptureFixture, way: str, fault: str
) -> None:
    # Given a backend with a wrong login, or whose server does not run
    port = redis_server.port if fault == "wrong password" else free_port()
    secret = {"username": "worker", "password": "s3cr3t", "timeout": 300}
    makers: dict[str, Callable[[], RedisBackend]] = {
        "url": lambda: RedisBackend(url=f"redis://worker:s3cr3t@127.0.0.1:{port}/0", timeout=300),
        "parameters": lambda: RedisBackend(host="127.0.0.1", port=port, **secret),
        "client": lambda: RedisBackend(
            client=redis.Redis(host="127.0.0.1", port=port, username="worker", password="s3cr3t"), timeout=300
        ),
        "sentinels": lambda: RedisBackend(
            sentinels=[("127.0.0.1", port)], service_name="m", sentinel_kwargs={"password": "s3cr3t"}, **secret
        ),
        "cluster": lambda: RedisBackend(cluster_nodes=[("127.0.0.1", port)], **secret),
    }
    backend = makers[way]()
    calls: list[Callable[[], Any]] = [
        lambda: backend.read("m"),
        lambda: backend.update("m", enqueue()),
        lambda: backend.begin_update("m", enqueue())(),
        lambda: backend.subscribe(["m"]),
        lambda: backend.find(Query(), limit=1, after=None),
    ]
    told = [repr(backend), str(backend)]
    for call in calls:
        # When its calls fail
        with pytest.raises(BackendError) as caught:
            call()
        error: BaseException | None = caught.value
        while error is not None:
            told += [str(error), repr(error)]
            error = error.__cause__ or error.__context__
    # Then neither the errors nor the log contain the password
    told += [record.getMessage() for record in caplog.records]
    assert [line for line in told if "s3cr3t" in line] == []
    backend.close()


@pytest.mark.parametrize("way", ["tls", "unix"])
def test_statuses_are_sent_with_the_commands_of_a_broker(
    request: pytest.FixtureRequest, start_server: StartServer, tmp_path: Path, certificates: Path, way: str
) -> None:
    # Given a server behind TLS or at a path, a user with a password, a database, and a name of the connections
    login, query = f"worker:{quote(PASSWORD, safe='')}", "client_name=piggyback"
    if way == "tls":
        server = request.getfixturevalue("tls_server")
        url = f"rediss://{login}@127.0.0.1:{server.tls_port}/3?{query}&ssl_ca_certs={certificates / 'ca.crt'}"
    else:
        server = start_server(RedisServer("--unixsocket", str(tmp_path / "socket")))
        # With RESP3, redis-py 7.1 itself connects to no Unix socket.
        protocol = 2 if redis.__version__.startswith("7.1.") else 3
        url = f"unix://{login}@{tmp_path / 'socket'}?{query}&db=3&protocol={protocol}"
    with redis.Redis(port=server.port, db=3, decode_responses=True) as admin, ExitStack() as stack:
        admin.acl_setuser("worker", **EVERYTHING)
        backend = stack.enter_context(closing(RedisBackend(url=url, timeout=PATIENT)))
        broker = RedisBroker(client=backend.broker_client(), middleware=[StatusMiddleware(backend=backend)])
        stack.callback(broker.close)
        assert backend.update_attacher(broker) is not None

        @dramatiq.actor(broker=broker)
        def work(n: int) -> None:
            current_status()["n"] = n

        work.send(0)
        admin.config_resetstat()
        # When messages are sent and run
        messages = [work.send(n) for n in range(5)]
        # Then each enqueue is one transaction with its status
        assert admin.info("commandstats")["cmdstat_multi"]["calls"] == 5
        with working(broker):
            eventually(lambda: not admin.hlen("dramatiq:default.msgs"))
        found = backend.snapshots([message.message_id for message in messages])
        assert [(s.state, s["n"]) for s in found if isinstance(s, Snapshot)] == [("completed", n) for n in range(5)]
        # And all connections are those of this user and database
        seen = {(line["user"], line["db"]) for line in admin.client_list() if line["name"] == "piggyback"}
        assert seen == {("worker", "3")}
