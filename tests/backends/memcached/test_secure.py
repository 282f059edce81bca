"""Memcached behind TLS, and with a login."""

from __future__ import annotations

import logging
import ssl
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any
from uuid import uuid4

import dramatiq
import pytest

from dramatiq_status import BackendError, StatusRegistry
from dramatiq_status.backends import MemcachedBackend
from dramatiq_status.backends.memcached.server import Server
from dramatiq_status.record import PROGRESS, STATE
from dramatiq_status.testing.conformance import enqueue, finish, outside, start, together, write
from dramatiq_status.update import Outcome

from ...conftest import StartServer, started
from ...recording import answered, make_broker, run
from ...servers import LoginMemcachedServer, MemcachedServer, TlsMemcachedServer

#: Time-out in milliseconds that no test reaches by chance, even on a busy machine.
PATIENT = 20_000

Make = Callable[..., MemcachedBackend]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[MemcachedBackend] = []

    def make_one(**parameters: Any) -> MemcachedBackend:
        made.append(MemcachedBackend(**{"timeout": PATIENT, **parameters}))
        return made[-1]

    yield make_one
    for backend in made:
        backend.close()


@pytest.fixture
def message_id() -> str:
    return uuid4().hex


def server_of(backend: MemcachedBackend) -> Server:
    assert backend._servers.only is not None
    return backend._servers.only


def live_through(backend: MemcachedBackend, message_id: str) -> None:
    """Enqueue, run and complete a message, as a sender, a worker and a reader do."""
    assert backend.begin_update(message_id, enqueue(user_id="42"))() is Outcome.APPLIED
    updates = [start(1), write(1, 2, increment=1), outside(step="1"), finish(1, 3)]
    assert [backend.update(message_id, update) for update in updates] == [Outcome.APPLIED] * 4
    record = backend.read(message_id)
    assert record is not None and (record[STATE], record[":user_id"], record[":step"]) == ("2", "42", "1")
    assert backend.read_many([message_id, "unknown"]) == [record, None]
    assert backend.delete(message_id)


# TLS


@pytest.fixture(scope="module")
def tls_server() -> Iterator[TlsMemcachedServer]:
    with started(TlsMemcachedServer()) as server:
        yield server


@pytest.mark.parametrize("meta", [True, False])
def test_updates_and_reads_over_tls(tls_server: TlsMemcachedServer, make: Make, message_id: str, meta: bool) -> None:
    # Given a server that requires TLS
    backend = make(servers=tls_server.address, tls_context=tls_server.context, meta=meta)
    # When several threads enqueue, run and read messages at the same time
    together(*[lambda n=n: live_through(backend, f"{message_id}-{n}") for n in range(4)])  # type: ignore[misc]
    # Then all connections use TLS
    connection = server_of(backend).take_idle(time.monotonic())
    assert connection is not None
    assert isinstance(connection.socket, ssl.SSLSocket)
    connection.close()


def test_large_values_over_tls(tls_server: TlsMemcachedServer, make: Make) -> None:
    # Given more bytes than fit into a record of TLS, or into a buffer
    backend = make(servers=tls_server.address, tls_context=tls_server.context)
    ids = [uuid4().hex for _ in range(20)]
    large = '"' + "x" * 60_000 + '"'
    # When they are written in one call, and read in another
    outcomes = backend.update_many([(m, start(1, one=large, two=large)) for m in ids])
    found = backend.read_many(ids)
    # Then they are unchanged
    assert outcomes == [Outcome.APPLIED] * 20 and all(record and record[":two"] == large for record in found)


def test_a_certificate_that_is_not_trusted_raises_an_error(
    tls_server: TlsMemcachedServer, make: Make, message_id: str
) -> None:
    # Given a client that does not trust the server's certificate
    backend = make(servers=tls_server.address, tls_context=ssl.create_default_context())
    # When the backend connects
    # Then it raises an error
    with pytest.raises(BackendError, match="CERTIFICATE_VERIFY_FAILED"):
        backend.update(message_id, enqueue())


def test_an_idle_tls_connection_is_used_again(
    tls_server: TlsMemcachedServer, make: Make, message_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a connection that is checked before each use
    monkeypatch.setattr("dramatiq_status.backends._pool.IdlePool.idle_check", -1.0)
    backend = make(servers=tls_server.address, tls_context=tls_server.context)
    backend.update(message_id, start(1))
    first = server_of(backend).take_idle(time.monotonic())
    assert first is not None
    server_of(backend).give(first)
    # When it is used several times
    for n in range(3):
        backend.update(message_id, write(1, 2 + n, increment=1))
    # Then no other connection is made
    record = backend.read(message_id)
    assert server_of(backend).take_idle(time.monotonic()) is first
    assert record is not None and record[PROGRESS] == "3"
    first.close()


@pytest.mark.parametrize("fault", ["restart", "pause"])
def test_a_restarted_tls_server_is_connected_again(
    start_server: StartServer, make: Make, message_id: str, fault: str
) -> None:
    # Given a server with a connection
    server = start_server(TlsMemcachedServer())
    backend = make(servers=server.address, tls_context=server.context, timeout=PATIENT if fault == "restart" else 300)
    sequence = count(2)

    def update_after_fault() -> Outcome:
        answered(lambda: backend.update(message_id, start(1)))
        # When the server is restarted, or stops answering
        getattr(server, fault)()
        # Then the backend connects again, or raises an error
        if fault == "pause":
            with pytest.raises(BackendError, match="timed out"):
                backend.update(message_id, write(1, next(sequence)))
            server.resume()
        return backend.update(message_id, write(1, next(sequence)))

    assert answered(update_after_fault) is (Outcome.MISSING if fault == "restart" else Outcome.APPLIED)


# Logins


@pytest.fixture(scope="module")
def login_server() -> Iterator[LoginMemcachedServer]:
    with started(LoginMemcachedServer()) as server:
        yield server


def login_of(server: LoginMemcachedServer, **other: Any) -> dict[str, Any]:
    return {"servers": server.address, "username": server.username, "password": server.password, **other}


@pytest.mark.parametrize("meta", [True, False])
def test_a_login_is_sent_to_each_connection(
    login_server: LoginMemcachedServer, make: Make, message_id: str, meta: bool
) -> None:
    # Given a server that requires a login
    backend = make(**login_of(login_server, meta=meta))
    # When a message is enqueued, run and read, over several connections
    # Then all calls succeed
    together(*[lambda n=n: live_through(backend, f"{message_id}-{n}") for n in range(4)])  # type: ignore[misc]


def test_a_login_on_many_servers(start_server: StartServer, make: Make) -> None:
    # Given three servers that require a login
    servers = [start_server(LoginMemcachedServer()) for _ in range(3)]
    backend = make(**login_of(servers[0], servers=[server.address for server in servers]))
    ids = [uuid4().hex for _ in range(30)]
    # When messages are written
    # Then all are stored
    assert backend.update_many([(message_id, enqueue()) for message_id in ids]) == [Outcome.APPLIED] * 30


def test_a_login_where_none_is_needed(memcached_server: MemcachedServer, make: Make, message_id: str) -> None:
    # Given a server that requires no login, and a backend with one
    backend = make(servers=memcached_server.address, username="bob", password="secret")
    # When a message is enqueued, run and read
    live_through(backend, message_id)
    # Then all calls succeed, and the server does not keep the password
    assert memcached_server.ask(b"get login\r\n") == b"END\r\n"


@pytest.mark.parametrize(
    "login, message",
    [
        ({"username": "bob", "password": "sesame-wrong"}, "refuses the login of 'bob'"),
        ({"username": None, "password": None}, "requires a login"),
    ],
    ids=["wrong", "none"],
)
def test_a_login_that_is_refused(
    login_server: LoginMemcachedServer,
    make: Make,
    caplog: pytest.LogCaptureFixture,
    login: dict[str, Any],
    message: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    # Given a wrong login, or none
    backend = make(**login_of(login_server, **login))
    # When a message is sent and read
    broker = make_broker(backend)

    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    sent = work.send()
    run(broker)
    with pytest.raises(BackendError, match=message) as caught:
        StatusRegistry.read(sent, backend=backend)
    # Then the error and the log name the reason, and contain no password
    text = caplog.text + "".join(traceback.format_exception(caught.value)) + repr(backend) + repr(vars(backend))
    assert message in caplog.text and "sesame" not in text


def test_a_password_is_not_shown(login_server: LoginMemcachedServer, make: Make, message_id: str) -> None:
    # Given a backend with a login that was used
    backend = make(**login_of(login_server))
    backend.update(message_id, enqueue())
    pool = server_of(backend)
    connection = pool.take_idle(time.monotonic())
    assert connection is not None
    # When its objects and their attributes are printed
    seen = [backend, vars(backend), backend._servers, vars(backend._servers), pool, vars(pool), connection]
    # Then no password is printed
    assert "bob" in repr(seen) and login_server.password not in repr(seen)
    connection.close()


@pytest.mark.parametrize(
    "username, password, error, field",
    [
        ("bob", None, TypeError, "password"),
        (None, "x-secret", TypeError, "username"),
        ("bob", b"x-secret", TypeError, "password"),
        ("bob", "x-secret x", ValueError, "password"),
        ("bob\r\nflush_all", "x-secret", ValueError, "username"),
        ("bob", "x-secret\r\n", ValueError, "password"),
        ("", "x-secret", ValueError, "username"),
    ],
)
def test_wrong_logins_raise_an_error(username: Any, password: Any, error: type[Exception], field: str) -> None:
    # Given a login that cannot be sent
    # When a backend is made with it
    with pytest.raises(error, match=f"^{field}") as caught:
        MemcachedBackend(username=username, password=password)
    # Then an error is raised at once, without the password
    assert "x-secret" not in str(caught.value)
