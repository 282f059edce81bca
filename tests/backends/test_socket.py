"""Time-outs of sockets: the kernel's where it has them, Python's elsewhere."""

from __future__ import annotations

import socket
import ssl
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from dramatiq_status.backends import _socket
from dramatiq_status.backends._timed import closed_by_c


@pytest.fixture
def plain() -> Iterator[socket.socket]:
    """A socket whose other end is silent."""
    first, second = socket.socketpair()
    with closed_by_c(first) as plain, second:
        yield plain


@pytest.mark.skipif(sys.platform != "linux", reason="Only Linux is known to keep them.")
def test_the_kernel_keeps_the_timeouts_of_plain_sockets(plain: socket.socket) -> None:
    # Given a socket with a time-out
    _socket.set_timeout(plain, 0.05)
    # When nothing arrives in this time
    with pytest.raises(BlockingIOError):
        plain.recv(1)
    # Then the kernel has noticed, and Python knows of no time-out
    assert plain.gettimeout() is None


def test_python_keeps_the_timeouts_elsewhere(plain: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a system whose kernel has no such time-outs
    monkeypatch.setattr(_socket, "IS_SUPPORTED", False)
    _socket.set_timeout(plain, 0.05)
    # When nothing arrives in this time
    # Then Python has noticed
    with pytest.raises(TimeoutError):
        plain.recv(1)


def test_tls_keeps_its_own_timeouts(plain: socket.socket) -> None:
    wrapped = ssl.create_default_context().wrap_socket(plain, server_hostname="x", do_handshake_on_connect=False)
    with wrapped:
        _socket.set_timeout(wrapped, 5)
        assert wrapped.gettimeout() == 5


@pytest.mark.parametrize("answer", [b"", b"\x01\x00\x00\x00", b"\0" * 16, OSError("unknown option")], ids=str)
def test_a_kernel_that_returns_another_timeout_has_none(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a system with another form of time-outs
    class Other(socket.socket):
        def getsockopt(self, *arguments: Any) -> Any:
            if isinstance(answer, OSError):
                raise answer
            return answer

    monkeypatch.setattr(_socket, "PLAIN_SOCKET", Other)
    # When the kernel is asked
    # Then Python's time-outs are used
    assert not _socket.takes_timeouts()
