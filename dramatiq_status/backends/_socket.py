"""Time-outs of sockets, kept by the kernel where it supports them."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Any, Final, TypeVar

from .._interrupts import ARE_THREADS_REAL
from ._timed import PLAIN_SOCKET

T = TypeVar("T")

#: Seconds that a system call of a socket waits at first: longer than most replies take.
#:
#: After a signal, Python repeats the system call, and the kernel then waits for the whole time-out again: with 500
#: milliseconds and a signal every 100 milliseconds, the call would end only after the last signal.  So this time-out
#: is shorter than the usual intervals of signals.  After it, :func:`wait_longer` uses a time-out of Python's, which
#: signals do not prolong.
FIRST_WAIT: Final = 0.004

#: Errors of a socket whose time-out is over: with the kernel's time-outs, and with Python's.
TIME_OUTS: Final = (BlockingIOError, TimeoutError)


def has_kernel_timeouts(found: Any) -> bool:
    """Return whether the kernel keeps the time-outs of a socket, so that Python calls no ``poll()`` before each send
    and receive.  The sockets of TLS and of gevent have time-outs of their own.
    """
    return IS_SUPPORTED and type(found) is PLAIN_SOCKET


def limit_first_wait(found: Any) -> None:
    """Let each system call of a socket wait for :data:`FIRST_WAIT`.  After that it raises one of :data:`TIME_OUTS`, and
    its caller calls :func:`wait_longer`.
    """
    if not has_kernel_timeouts(found):
        found.settimeout(FIRST_WAIT)
        return
    found.settimeout(None)
    interval = _interval(FIRST_WAIT)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, interval)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, interval)


def wait_longer(found: Any, seconds: float, call: Callable[[Any], T], argument: Any) -> T:
    """Repeat a socket's call that has raised one of :data:`TIME_OUTS`, with more time.

    Parameters:
      found(socket.socket): The socket.  After an error, it has to be closed.
      seconds(float): Maximum number of seconds to wait, not 0.
      call(Callable): The socket's method ``recv`` or ``send``.
      argument(object): The argument of the method.

    Raises:
      TimeoutError: When the time is over.
    """
    found.settimeout(seconds)
    result = call(argument)
    found.settimeout(None if has_kernel_timeouts(found) else FIRST_WAIT)
    return result


def _interval(seconds: float) -> bytes:
    """Encode a time-out as Linux, macOS and the BSDs take it: a ``struct timeval``."""
    return struct.pack("@ll", *divmod(round(seconds * 1_000_000), 1_000_000))


def takes_timeouts() -> bool:
    """Return whether the kernel stores time-outs in the expected form: it returns a time-out as it was set."""
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
