"""How the Redis backend talks to a server: connections that are kept
open, and the shortest way through the driver.
"""

from __future__ import annotations

import re
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar

from ... import _time as time
from ..._interrupts import WeakList
from ..._process import at_fork
from ...errors import BackendError, StoreRefused
from .._timed import PLAIN_SOCKET, SLOWEST, time_left, timed, uninterrupted
from .driver import driver_of, errors, hang_ups, response_errors

hiredis: Any = None
try:
    import hiredis
except ImportError:
    pass

T = TypeVar("T")

# Sockets of gevent and of TLS keep their own time; so do those of
# systems whose timeval we do not know.
_PLAIN_SOCKET: Final[Any] = PLAIN_SOCKET if sys.platform == "linux" and socket.socket.__module__ == "socket" else None

#: A connection that was idle for this many seconds is looked at before
#: it is used again: the server may have closed it.
IDLE_CHECK: Final = 1.0

#: Parts of the time-out by which a system call may end behind the deadline of its call.
TIME_STEPS: Final = 16

#: What a socket raises whose time is over, be it the kernel's or Python's.
_TIME_OUTS: Final = (BlockingIOError, TimeoutError)

_INCOMPLETE: Final = object()

#: What a pool of redis-py's tells its connections about notifications of maintenance.
_MAINTENANCE: Final = re.compile("maint|orig_|oss_cluster_maint")

_BUFFER_SIZE: Final = 16_384


class ServerError(Exception):
    """The server has answered with an error."""

    @property
    def demoted(self) -> bool:
        """Whether it is a replica: it was the master once, or a Sentinel has erred.  Nothing was written."""
        return "READONLY" in str(self)


#: What redis-py takes off the errors that it has a class for.
_CODES: Final = {
    "NoScriptError": "NOSCRIPT",
    "ReadOnlyError": "READONLY",
    "MovedError": "MOVED",
    "AskError": "ASK",
    "TryAgainError": "TRYAGAIN",
    "ClusterDownError": "CLUSTERDOWN",
    "MasterDownError": "MASTERDOWN",
    "NoPermissionError": "NOPERM",
    "OutOfMemoryError": "OOM",
    "BusyLoadingError": "LOADING",
}


def failure_of(error: BaseException) -> BackendError:
    """Make a :class:`.BackendError` of an error of the driver, or of the server."""
    text = str(error)
    # The connection's user may have the permission for other keys. The code is in the text, or the class stands for it.
    is_refusal = "NOPERM" in (text[:6], _CODES.get(type(error).__name__)) and " key" in text
    failure = (StoreRefused if is_refusal else BackendError)(f"Redis: {type(error).__name__}: {text}")
    failure.__cause__ = error
    return failure


def coded(error: Exception) -> Exception:
    """An error that the server has answered with, as it was sent: with its code."""
    code = _CODES.get(type(error).__name__)
    return error if code is None or str(error).startswith(code) else ServerError(f"{code} {error}")


class Link:
    """A connection to the server.

    redis-py does what it is good at: it connects, with TLS, names and
    passwords, Sentinel and all.  With hiredis installed, requests and replies
    then take the socket directly; without it, they go through redis-py.

    All that one call does with it ends by one deadline.  A system call has a time-out of its own, which is
    set again only where the call has much less time left than that, or more.

    Parameters:
      make(Callable): Makes the driver's connection, which is not connected yet; it is given the deadline.
      timeout(float): How long one call may take, in seconds.
    """

    __slots__ = ("_connection", "_make", "_reader", "_slack", "_socket", "_timeout", "_waits", "deadline", "used")

    def __init__(self, make: Callable[[float], Any], timeout: float) -> None:
        #: When it was last used, by the monotonic clock; 0 for never.
        self.used = 0.0
        #: Deadline of the present call, by the monotonic clock.
        self.deadline = 0.0
        self._make = make
        self._timeout = timeout
        self._slack = timeout / TIME_STEPS
        # Time-out of a system call, in seconds; negative where it is unknown.
        self._waits = -timeout
        self._connection: Any = None
        self._socket: Any = None
        self._reader: Any = None

    def connect(self) -> None:
        """Connect to the server, if that was not done yet."""
        if self._connection is not None:
            return
        connection = self._connection = uninterrupted(self._open, self.deadline)
        if hiredis is not None:
            found = getattr(connection, "_sock", None)
            self._socket = getattr(found, "socket", found)
            self._reader = hiredis.Reader(encoding="utf-8", errors="replace", notEnoughData=_INCOMPLETE)

    def _open(self) -> Any:
        connection = self._make(self.deadline)
        connection.connect()
        return connection

    def send(self, request: bytes) -> None:
        """Send packed commands."""
        if self._connection is None:
            self.connect()
        if self._socket is None:
            self._connection.deadline = self.deadline
            self._connection.send_packed_command([request], check_health=False)
            self.deadline = self._connection.deadline
            return
        try:
            self._limit()
            sent = self._socket.send(request)
            if sent < len(request):
                self._send_rest(memoryview(request)[sent:])
        except _TIME_OUTS as e:
            raise self._no_answer() from e

    def read(self) -> Any:
        """Read the reply to one command.

        Returns:
          object: The reply; an exception where it is an error.
        """
        reader = self._reader
        if reader is None:
            return self._read_by_driver()
        while True:
            reply = reader.gets()
            if reply is not _INCOMPLETE:
                return reply
            try:
                self._limit()
                data = self._socket.recv(_BUFFER_SIZE)
            except _TIME_OUTS as e:
                raise self._no_answer() from e
            if not data:
                raise ConnectionError("Connection closed by server.")
            # A server that needs long for a large reply does answer.
            self.deadline += len(data) / SLOWEST
            reader.feed(data)

    def read_many(self, count: int) -> list[Any]:
        """Read the replies to so many commands."""
        if self._reader is None:
            return [self.read() for _ in range(count)]
        replies: list[Any] = []
        gets = self._reader.gets
        while len(replies) < count:
            reply = gets()
            replies.append(self.read() if reply is _INCOMPLETE else reply)
        return replies

    def is_stale(self) -> bool:
        """Whether the server has closed the connection, or said something unasked."""
        if type(self._socket) is _PLAIN_SOCKET:
            try:
                self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except OSError:
                pass
            return True
        # The driver sets time-outs of its own.
        self._waits = -self._timeout
        self._connection.deadline = None
        try:
            return bool(self._connection.can_read())
        except errors():
            return True

    def close(self) -> None:
        """Close it for good."""
        self._socket = self._reader = None
        if self._connection is not None:
            self._connection.disconnect()

    def _send_rest(self, request: memoryview) -> None:
        while request:
            self._limit()
            sent = self._socket.send(request)
            self.deadline += sent / SLOWEST
            request = request[sent:]

    def _read_by_driver(self) -> Any:
        connection = self._connection
        connection.deadline = self.deadline
        try:
            return connection.read_response()
        except response_errors() as e:
            return coded(e)
        finally:
            # A large reply has made it later.
            self.deadline = connection.deadline

    def _limit(self) -> None:
        """Let the next system call wait until the deadline, give or take a little."""
        difference = self.deadline - time.monotonic() - self._waits
        if difference < -self._slack or difference > self._slack:
            # A server that stops in the middle of a large reply has no more than the time-out.
            self._waits = waits = min(time_left(self.deadline), self._timeout)
            self.deadline = min(self.deadline, time.monotonic() + self._timeout)
            if type(self._socket) is _PLAIN_SOCKET:
                _let_kernel_time(self._socket, waits)
            else:
                self._socket.settimeout(waits)

    def _no_answer(self) -> TimeoutError:
        # The kernel's own words are that a resource is temporarily unavailable.
        return TimeoutError(f"no answer within {self._timeout * 1000:.0f} milliseconds.")


class Connections:
    """Links that are idle; the one used last is taken first, so that there
    are as many as threads talk to the server at the same time.

    redis-py's own pool checks a connection with system calls whenever it
    is taken, and locks; that is a fifth of the time of an update.

    Parameters:
      pool(redis.ConnectionPool): Says how to connect.
      timeout(float): How long one call may take, in seconds.
      address(tuple[str, int]): Where to connect to in place of where the pool says.

    Raises:
      TypeError: When connections do not take a parameter.
      ValueError: When they do not take its value.
    """

    def __init__(self, pool: Any, timeout: float, address: tuple[str, int] | None = None) -> None:
        self._class = pool.connection_class
        driver = driver_of(self._class)
        self.timeout = timeout
        self._parameters = {
            # redis-py 8 hears of maintenance on connections of its own, and only with the parsers of version 3.
            **{name: value for name, value in pool.connection_kwargs.items() if not _MAINTENANCE.match(name)},
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "retry": driver.no_retry,
            "retry_on_timeout": False,
            "retry_on_error": [],
            "encoding": "utf-8",
            "encoding_errors": "replace",
            "decode_responses": True,
            # hiredis takes twice as long for the maps of version 3.
            "protocol": 2,
        }
        if address is not None:
            self._parameters["host"], self._parameters["port"] = address
        self._idle: deque[Link] = deque()
        try:
            # Here, and not at the first call: what is wrong with a parameter is no outage.
            made = self._make()
        except (TypeError, ValueError, driver.error) as e:
            kind = TypeError if isinstance(e, TypeError) else ValueError
            raise kind(f"A connection parameter, passed or in the URL, is wrong: {e}") from None
        if getattr(made, "driver_info", None) is not None:
            # redis-py 8 would look for its own version among all installed packages, for each connection.
            self._parameters["driver_info"] = made.driver_info
        _all.add(self)

    @property
    def is_idle(self) -> bool:
        """Whether a connection is idle."""
        return bool(self._idle)

    def call(
        self,
        request: bytes,
        read: Callable[[Link], T],
        *,
        again: bool = True,
        deadline: float | None = None,
        first: bool = True,
    ) -> T:
        """Send a request and read what it is answered with.

        Parameters:
          request(bytes): Packed commands.
          read(Callable): Reads the replies from the link.
          again(bool): Whether to do so once more on a new connection
            where the server has closed an idle one.
          deadline(float): When it has to end, by the monotonic clock; None for after the time-out.
          first(bool): False for that other time.

        Raises:
          BackendError: When the server does not answer, or with an error.
        """
        link = self.take(deadline)
        try:
            link.send(request)
            reply = read(link)
        except BaseException as e:
            # Also for an interrupt (time limit, abort, shutdown), which may have struck
            # between a request and its reply: never use this one again.
            link.close()
            if first and self._is_past(link, e, again):
                return self.call(request, read, again=again, deadline=link.deadline, first=False)
            raise _error_for(e) from e
        self.give(link)
        return reply

    def begin(self, request: bytes, read: Callable[[Link], T], *, again: bool = True) -> Callable[[], T]:
        """Send a request, and return what reads its replies; see :meth:`call`.

        What the caller does in between does not count for the time-out.
        """
        link = self.take()
        sent = True
        try:
            link.send(request)
        except BaseException as e:
            link.close()
            if not self._is_past(link, e, again):
                raise _error_for(e) from e
            sent = False
        left = link.deadline - time.monotonic()

        def complete() -> T:
            deadline = link.deadline = time.monotonic() + left
            if sent:
                try:
                    reply = read(link)
                except BaseException as e:
                    link.close()
                    if not self._is_past(link, e, again):
                        raise _error_for(e) from e
                else:
                    self.give(link)
                    return reply
            return self.call(request, read, again=again, deadline=deadline, first=False)

        return complete

    def _is_past(self, link: Link, error: BaseException, again: bool) -> bool:
        """Whether a link has failed because the server is not, or not what, it was when we connected to it."""
        if isinstance(error, ServerError):
            past = error.demoted
        else:
            past = again and link.used > 0 and isinstance(error, hang_ups())
        if past:
            # The other idle ones are no younger.
            self.close()
        return past

    def give(self, link: Link) -> None:
        """Give a link back on which nothing is owed."""
        link.used = time.monotonic()
        self._idle.append(link)

    def fresh(self, deadline: float) -> Any:
        """Make a connection of redis-py's that is the caller's alone; it is not connected yet.

        Parameters:
          deadline(float): When it has to be connected, by the monotonic clock, until the caller sets another one.

        Raises:
          Exception: One of :func:`errors`, when it is not known where to connect to.
        """
        connection = self._make()
        connection.deadline = deadline
        return connection

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            try:
                self._idle.pop().close()
            except IndexError:
                return

    def take(self, deadline: float | None = None) -> Link:
        """Take the link used last, or a new one, which is not connected yet.

        Parameters:
          deadline(float): See :meth:`call`.
        """
        now = time.monotonic()
        try:
            link = self._idle.pop()
        except IndexError:
            link = Link(self.fresh, self.timeout)
        else:
            if now - link.used > IDLE_CHECK and link.is_stale():
                link.close()
                link = Link(self.fresh, self.timeout)
        link.deadline = now + self.timeout if deadline is None else deadline
        return link

    def forget(self) -> None:
        """Leave the connections to the parent process."""
        self._idle = deque()

    def _make(self) -> Any:
        return timed(self._class)(**self._parameters)


_all: Final = WeakList[Connections]()


def _forget_all() -> None:
    for connections in _all:
        connections.forget()


# The sockets belong to the parent.
at_fork(after_in_child=_forget_all)


def _let_kernel_time(plain: socket.socket, seconds: float) -> None:
    """Leave the time-outs of a plain socket to the kernel: Python's own
    cost another system call for each of ours.
    """
    if plain.gettimeout() is not None:
        plain.settimeout(None)
    whole = int(seconds)
    interval = struct.pack("@ll", whole, int((seconds - whole) * 1_000_000))
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, interval)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, interval)


def pack(*command: Any) -> bytes:
    """Pack a command the way Redis reads it.

    Raises:
      ValueError: When an argument cannot be sent: a number of thousands of digits, or a lone surrogate.
    """
    # Only texts: hiredis crashes the process at an int of more than 4,300 digits.
    texts = [argument if argument.__class__ is str else str(argument) for argument in command]
    if hiredis is not None:
        packed: bytes = hiredis.pack_command(tuple(texts))
        return packed
    parts = [b"*%d\r\n" % len(texts)]
    for text in texts:
        encoded = text.encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(encoded), encoded))
    return b"".join(parts)


def _error_for(error: BaseException) -> BaseException:
    return failure_of(error) if isinstance(error, (ServerError, *errors())) else error
