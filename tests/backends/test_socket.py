"""Time-outs of sockets: the kernel's where it has them, Python's elsewhere."""

from __future__ import annotations

import signal
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from dramatiq_status import BackendError
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends import MemcachedBackend, RedisBackend, _socket
from dramatiq_status.backends._timed import closed_by_c
from dramatiq_status.testing.conformance.store import until_answered
from dramatiq_status.update import EnqueueId, Kind, Outcome, Update

from ..pace import own_clock
from ..recording import PATIENCE

#: Seconds between two signals, and their number.
SIGNALS = (0.1, 60)


@pytest.fixture
def plain() -> Iterator[socket.socket]:
    """Yield a socket whose other end is silent."""
    first, second = socket.socketpair()
    with closed_by_c(first) as plain, second:
        yield plain


@pytest.mark.skipif(sys.platform != "linux", reason="Only Linux is known to keep them.")
def test_the_kernel_keeps_the_timeouts_of_plain_sockets(plain: socket.socket) -> None:
    # Given a socket whose system calls wait for a short time at first
    _socket.limit_first_wait(plain)
    # When nothing arrives in this time
    with pytest.raises(BlockingIOError):
        plain.recv(1)
    # Then the kernel's time-out ends the call, and Python has set none
    assert plain.gettimeout() is None


def test_python_keeps_the_timeouts_elsewhere(plain: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a system whose kernel has no such time-outs
    monkeypatch.setattr(_socket, "IS_SUPPORTED", False)
    _socket.limit_first_wait(plain)
    # When nothing arrives in this time
    # Then Python's time-out ends the call
    with pytest.raises(TimeoutError):
        plain.recv(1)


def test_tls_keeps_its_own_timeouts(plain: socket.socket) -> None:
    wrapped = ssl.create_default_context().wrap_socket(plain, server_hostname="x", do_handshake_on_connect=False)
    with wrapped:
        _socket.limit_first_wait(wrapped)
        assert wrapped.gettimeout() == _socket.FIRST_WAIT


@pytest.mark.parametrize("answer", [b"", b"\x01\x00\x00\x00", b"\0" * 16, OSError("unknown option")], ids=str)
def test_a_kernel_that_returns_another_timeout_has_none(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a system with another form of time-outs
    class Other(socket.socket):
        def getsockopt(self, *arguments: Any) -> Any:
            if isinstance(answer, OSError):
                raise answer
            return answer

    monkeypatch.setattr(_socket, "PLAIN_SOCKET", Other)
    # When the backend checks for the kernel's time-outs
    # Then Python's time-outs are used
    assert not _socket.takes_timeouts()


# Signals, and servers that are slower than the first wait


@pytest.fixture(params=["redis", "memcached"])
def server(request: pytest.FixtureRequest) -> Iterator[Any]:
    server = request.getfixturevalue(f"{request.param}_server")
    server.reset()
    yield server
    server.resume()


def connect(server: Any, timeout: int) -> StatusBackend:
    if server.url.startswith("redis"):
        return RedisBackend(url=server.url, timeout=timeout)
    return MemcachedBackend(servers=server.address, timeout=timeout)


@contextmanager
def signals() -> Iterator[None]:
    """Send signals to this thread, which handles them."""
    interval, count = SIGNALS
    thread, over = threading.get_ident(), threading.Event()

    def send() -> None:
        for _ in range(count):
            if over.wait(interval):
                return
            signal.pthread_kill(thread, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        over.set()
        sender.join()
        signal.signal(signal.SIGUSR1, before)


def test_signals_do_not_prolong_a_timeout(server: Any) -> None:
    with closing(connect(server, 500)) as backend:
        until_answered(lambda: backend.read("m"))
        # Given a server that does not answer
        server.pause()
        # When a process that gets signals reads a status
        with signals(), own_clock() as clock:
            with pytest.raises(BackendError):
                backend.read("m")
            took = clock()
    # Then the read ends by its deadline, and not with the last signal
    assert took < 3


def test_a_server_that_is_slow_gets_whole_requests(server: Any) -> None:
    fields = {":large": f'"{"x" * 60_000}"'}
    ids = [str(number) for number in range(100)]
    with closing(connect(server, PATIENCE * 1000)) as backend:
        backend.read_many(ids)
        # Given a server that does not read for a moment
        server.pause()
        timer = threading.Timer(0.1, server.resume)
        timer.start()
        # When it gets a request that is larger than the buffers of the socket
        outcomes = backend.update_many([(one, Update(Kind.ENQUEUE, EnqueueId(1, 1), fields=fields)) for one in ids])
        timer.join()
        # Then it gets the whole request
        assert outcomes == [Outcome.APPLIED] * 100
        assert [record and record[":large"] for record in backend.read_many(ids)] == [fields[":large"]] * 100
