"""Time-outs of sockets, kept by the kernel where it supports them."""

from __future__ import annotations

import socket
import struct
from typing import Any, Final

from .._interrupts import ARE_THREADS_REAL
from ._timed import MIN_TIMEOUT, PLAIN_SOCKET


def has_kernel_timeouts(found: Any) -> bool:
    """Whether the kernel keeps the time-outs of a socket, so that Python calls no ``poll()`` before each send and
    receive.  The sockets of TLS and of gevent keep their own.
    """
    return IS_SUPPORTED and type(found) is PLAIN_SOCKET


def set_timeout(found: Any, seconds: float) -> None:
    """Set the maximum number of seconds that each system call of a socket waits.

    After that, a socket with time-outs of the kernel raises ``BlockingIOError``, another one ``TimeoutError``.
    """
    seconds = max(seconds, MIN_TIMEOUT)
    if not has_kernel_timeouts(found):
        found.settimeout(seconds)
        return
    if found.gettimeout() is not None:
        found.settimeout(None)
    interval = _interval(seconds)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, interval)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, interval)


def _interval(seconds: float) -> bytes:
    """Encode a time-out as Linux, macOS and the BSDs take it: a ``struct timeval``."""
    return struct.pack("@ll", *divmod(round(seconds * 1_000_000), 1_000_000))


def takes_timeouts() -> bool:
    """Whether the kernel stores time-outs in the expected form: it returns a time-out as it was set."""
    interval = _interval(1.5)
    try:
        with PLAIN_SOCKET() as plain:
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                plain.setsockopt(socket.SOL_SOCKET, option, interval)
                if plain.getsockopt(socket.SOL_SOCKET, option, len(interval)) != interval:
                    return False
    except OSError:
        return False
    return True


#: Whether the kernel can keep the time-outs of plain sockets.
IS_SUPPORTED: Final = ARE_THREADS_REAL and takes_timeouts()
