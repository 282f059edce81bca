"""Connections of the drivers, with one deadline for a whole call, and without code that runs when they are dropped."""

from __future__ import annotations

import _socket
import socket
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final, TypeVar

from .. import _time as time
from .._interrupts import ARE_THREADS_REAL, may_be_interrupted
from ..backend import MIN_BYTES_PER_SECOND

T = TypeVar("T")

#: Shortest time-out of a socket, in seconds.
MIN_TIMEOUT: Final = 0.001

#: Seconds after its deadline in which a call still waits for the thread that connects.
GRACE: Final = 0.05

#: Maximum number of bytes that are sent at once.
_SEND_SIZE: Final = 65_536

#: A function written in C that replaces the driver's ``__del__``.
#:
#: Time limits, aborts and shutdowns are raised asynchronously, between any two instructions of Python that a worker's
#: thread executes.  Python ignores what is raised inside of ``__del__``, so a time limit that strikes there never ends
#: its job.
_DO_NOTHING: Final = object.__hash__


def time_left(deadline: float) -> float:
    """Return the number of seconds that the next system call may wait.

    After the deadline, return :data:`MIN_TIMEOUT`, so that the call can still read a reply that has arrived.  The reply
    may have arrived while other threads executed Python, or while the call read from other servers.
    """
    return max(deadline - time.monotonic(), MIN_TIMEOUT)


def half_of(deadline: float) -> float:
    """Return a deadline for one server.  It leaves half of the time for the other servers."""
    return deadline - max(deadline - time.monotonic(), 0) / 2


def uninterrupted(work: Callable[[], T], deadline: float) -> T:
    """Call a function on a thread that no time limit, abort or shutdown strikes.  A worker's thread starts a new thread
    for this, and any other thread calls the function itself.

    A driver that is interrupted while it connects leaves an open socket behind.  When Python drops that socket later,
    on a worker's thread, it executes code for a warning, and ignores an interrupt that strikes there.

    Parameters:
      work(Callable): The function.
      deadline(float): Time, by the monotonic clock, after which the caller no longer waits.

    Raises:
      TimeoutError: When the time is over.
    """
    if not may_be_interrupted():
        return work()
    done, results, errors = allocate_lock(), list[T](), list[BaseException]()

    def run() -> Iterator[None]:
        try:
            # The new thread begins at this line.  Before 3.12, Python may raise in it an interrupt that was meant for
            # the worker's thread.
            yield
            results.append(work())
        except BaseException as e:
            errors.append(e)
        done.release()

    done.acquire()
    running = run()
    next(running)
    start_new_thread(next, (running, None))
    if not done.acquire(timeout=max(deadline - time.monotonic(), 0) + GRACE):
        raise TimeoutError("timed out")
    while errors:
        # The list does not keep the error, because the error's traceback contains the list.
        raise errors.pop()
    return results.pop()


class _TimedSocket:
    """A socket whose calls end at the deadline of its connection.

    The driver connects and logs in through this socket.  Otherwise, a server that sends one byte after the other would
    have the whole time-out for each byte.

    Parameters:
      socket(socket.socket)
      connection(_Timed)
    """

    def __init__(self, socket: Any, connection: Any) -> None:
        self.socket = socket
        self._connection = connection
        self._timeout: float | None = socket.gettimeout()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.socket, name)

    def settimeout(self, timeout: float | None) -> None:
        self._timeout = timeout
        self.socket.settimeout(timeout)

    def recv(self, *arguments: Any) -> Any:
        self._limit()
        data = self.socket.recv(*arguments)
        self._allow(len(data))
        return data

    def recv_into(self, *arguments: Any) -> Any:
        self._limit()
        size = self.socket.recv_into(*arguments)
        self._allow(size)
        return size

    def sendall(self, data: Any) -> None:
        rest = memoryview(data)
        while rest:
            self._limit()
            self.socket.sendall(rest[:_SEND_SIZE])
            self._allow(_SEND_SIZE)
            rest = rest[_SEND_SIZE:]

    def _limit(self) -> None:
        deadline = self._connection.deadline
        if deadline is not None and self._timeout != 0:
            left = time_left(deadline)
            self.socket.settimeout(left if self._timeout is None else min(left, self._timeout))

    def _allow(self, size: int) -> None:
        if self._connection.deadline is not None:
            self._connection.deadline += size / MIN_BYTES_PER_SECOND


class _Timed:
    """Part of a class of connections that have a deadline."""

    #: End of the current call, by the monotonic clock; None for the driver's own time-outs.
    deadline: float | None = None

    @property
    def socket_timeout(self) -> float | None:
        return self._limited(self._socket_timeout)

    @socket_timeout.setter
    def socket_timeout(self, timeout: float | None) -> None:
        self._socket_timeout = timeout

    @property
    def socket_connect_timeout(self) -> float | None:
        return self._limited(self._socket_connect_timeout)

    @socket_connect_timeout.setter
    def socket_connect_timeout(self, timeout: float | None) -> None:
        self._socket_connect_timeout = timeout

    def set_parser(self, parser_class: type) -> None:
        super().set_parser(_with_c_finalizer(parser_class, _DO_NOTHING))  # type: ignore[misc]

    def _connect(self) -> _TimedSocket:
        return _TimedSocket(closed_by_c(super()._connect()), self)  # type: ignore[misc]

    def _limited(self, timeout: float | None) -> float | None:
        if self.deadline is None:
            return timeout
        left = time_left(self.deadline)
        return left if timeout is None else min(left, timeout)


@cache
def timed(kind: type) -> Any:
    """Return a subclass of one of the driver's classes of connections.  Its connections have a deadline."""
    made = type(kind.__name__, (_Timed, kind), {"__module__": kind.__module__})
    return _with_c_finalizer(made, _DO_NOTHING)


def closed_by_c(found: Any) -> Any:
    """Let a socket close without a warning when it is dropped, because a warning executes Python."""
    if ARE_THREADS_REAL and isinstance(found, socket.socket):
        found.__class__ = _with_c_finalizer(type(found), _socket.socket.close)  # type: ignore[arg-type]
    return found


def quieten(client: Any) -> Any:
    """Let a client of the driver and its pool execute no Python when they are dropped."""
    for item in (client.connection_pool, client):
        item.__class__ = _with_c_finalizer(type(item), _DO_NOTHING)  # type: ignore[arg-type]
    return client


@cache
def _with_c_finalizer(kind: type, finalize: Any) -> type:
    """Make a class whose objects execute no Python when they are dropped."""
    if not ARE_THREADS_REAL:
        return kind
    return type(kind.__name__, (kind,), {"__slots__": (), "__module__": kind.__module__, "__del__": finalize})


#: Class of the sockets that :func:`closed_by_c` returns, except for TLS.
PLAIN_SOCKET: Final = _with_c_finalizer(socket.socket, _socket.socket.close)
