"""How the Redis backend talks to a server: connections that are kept
open, and the shortest way through the driver.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import sys
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar

from .. import _time as time
from ..errors import BackendError
from ._driver import driver_of, errors, hang_ups, response_errors

hiredis: Any = None
try:
    import hiredis
except ImportError:
    pass

T = TypeVar("T")

# Sockets of gevent and of TLS keep their own time; so do those of
# systems whose timeval we do not know.
_PLAIN_SOCKET: Final = socket.socket if sys.platform == "linux" and socket.socket.__module__ == "socket" else None

#: A connection that was idle for this many seconds is looked at before
#: it is used again: the server may have closed it.
IDLE_CHECK: Final = 1.0

#: For how many seconds Sentinels are believed that the master is the
#: master: if they answer, and if they do not.
MASTER_TRUST: Final = (1.0, 15.0)

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
}


def coded(error: Exception) -> Exception:
    """An error that the server has answered with, as it was sent: with its code."""
    code = _CODES.get(type(error).__name__)
    return error if code is None or str(error).startswith(code) else ServerError(f"{code} {error}")


class Link:
    """A connection to the server.

    redis-py does what it is good at: it connects, with TLS, names and
    passwords, Sentinel and all.  With hiredis installed, requests and replies
    then take the socket directly; without it, they go through redis-py.

    Parameters:
      connection(redis.Connection): Not connected yet.
    """

    __slots__ = ("_connection", "_reader", "_socket", "_timeout", "used")

    def __init__(self, connection: Any) -> None:
        #: When it was last used, by the monotonic clock; 0 for never.
        self.used = 0.0
        self._connection = connection
        self._socket: Any = None
        self._reader: Any = None
        self._timeout: float | None = None

    def connect(self) -> None:
        """Connect to the server, if that was not done yet."""
        if self._socket is None:
            self._connection.connect()
            if hiredis is not None:
                self._socket = getattr(self._connection, "_sock", None)
                self._timeout = _let_kernel_time(self._socket)
                self._reader = hiredis.Reader(encoding="utf-8", errors="replace", notEnoughData=_INCOMPLETE)

    def send(self, request: bytes) -> None:
        """Send packed commands."""
        if self._socket is None:
            self.connect()
        if self._socket is not None:
            try:
                self._socket.sendall(request)
            except _TIME_OUTS as e:
                raise self._no_answer() from e
        else:
            self._connection.send_packed_command([request], check_health=False)

    def read(self) -> Any:
        """Read the reply to one command.

        Returns:
          object: The reply; an exception where it is an error.
        """
        reader = self._reader
        if self._socket is None or reader is None:
            try:
                return self._connection.read_response()
            except response_errors() as e:
                return coded(e)
        while True:
            reply = reader.gets()
            if reply is _INCOMPLETE:
                try:
                    data = self._socket.recv(_BUFFER_SIZE)
                except _TIME_OUTS as e:
                    raise self._no_answer() from e
                if not data:
                    raise ConnectionError("Connection closed by server.")
                reader.feed(data)
            else:
                return reply

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
        try:
            return bool(self._connection.can_read())
        except errors():
            return True

    def close(self) -> None:
        self._socket = self._reader = None
        self._connection.disconnect()

    def _no_answer(self) -> TimeoutError:
        # The kernel's own words are that a resource is temporarily unavailable.
        return TimeoutError(f"no answer within {(self._timeout or 0) * 1000:.0f} milliseconds.")


class Connections:
    """Links that are idle; the one used last is taken first, so that there
    are as many as threads talk to the server at the same time.

    redis-py's own pool checks a connection with system calls whenever it
    is taken, and locks; that is a fifth of the time of an update.

    Parameters:
      pool(redis.ConnectionPool): Says how to connect.
      timeout(float): The time-outs of the connections, in seconds.
      address(tuple[str, int]): Where to connect to in place of where the pool says.

    Raises:
      TypeError: When connections do not take a parameter.
      ValueError: When they do not take its value.
    """

    def __init__(self, pool: Any, timeout: float, address: tuple[str, int] | None = None) -> None:
        self._class = pool.connection_class
        driver = driver_of(self._class)
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
            self.fresh()
        except (TypeError, ValueError, driver.error) as e:
            kind = TypeError if isinstance(e, TypeError) else ValueError
            raise kind(f"A connection parameter, passed or in the URL, is wrong: {e}") from None
        _all.add(self)

    def call(self, request: bytes, read: Callable[[Link], T], *, again: bool = True, first: bool = True) -> T:
        """Send a request and read what it is answered with.

        Parameters:
          request(bytes): Packed commands.
          read(Callable): Reads the replies from the link.
          again(bool): Whether to do so once more on a new connection
            where the server has closed an idle one.
          first(bool): False for that other time.

        Raises:
          BackendError: When the server does not answer, or with an error.
        """
        link = self.take()
        try:
            link.send(request)
            reply = read(link)
        except BaseException as e:
            # Also for an interrupt (time limit, abort, shutdown), which may have struck
            # between a request and its reply: never use this one again.
            link.close()
            if first and self._is_past(link, e, again):
                return self.call(request, read, again=again, first=False)
            raise _error_for(e) from e
        self.give(link)
        return reply

    def begin(self, request: bytes, read: Callable[[Link], T], *, again: bool = True) -> Callable[[], T]:
        """Send a request, and return what reads its replies; see :meth:`call`."""
        link = self.take()
        try:
            link.send(request)
        except BaseException as e:
            link.close()
            if self._is_past(link, e, again):
                return lambda: self.call(request, read, again=again, first=False)
            raise _error_for(e) from e

        def complete() -> T:
            try:
                reply = read(link)
            except BaseException as e:
                link.close()
                if self._is_past(link, e, again):
                    return self.call(request, read, again=again, first=False)
                raise _error_for(e) from e
            self.give(link)
            return reply

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

    def fresh(self) -> Any:
        """Make a connection of redis-py's that is the caller's alone; it is not connected yet."""
        return self._class(**self._parameters)

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            try:
                self._idle.pop().close()
            except IndexError:
                return

    def take(self) -> Link:
        """Take the link used last, or a new one, which is not connected yet."""
        try:
            link = self._idle.pop()
        except IndexError:
            return Link(self.fresh())
        if time.monotonic() - link.used > IDLE_CHECK and link.is_stale():
            link.close()
            link.used = 0.0
        return link

    def forget(self) -> None:
        """Leave the connections to the parent process."""
        self._idle = deque()


class SentinelConnections(Connections):
    """The same, to the present master.

    A new connection asks the Sentinels for it.  That is not enough: a master that they replace without
    its having failed takes writes for some ten seconds until they tell it, and they would all be lost.
    """

    def __init__(self, pool: Any, timeout: float) -> None:
        super().__init__(pool, timeout)
        self._master = self._parameters["connection_pool"] = _Master(pool)
        self._address: Any = None
        #: When to ask who the master is.
        self.ask_at = 0.0

    def take(self) -> Link:
        now = time.monotonic()
        if now >= self.ask_at:
            answered, not_answered = MASTER_TRUST
            self.ask_at = now + not_answered
            try:
                address = self._master.get_master_address()
            except errors():
                # What there is may well be right.
                return super().take()
            self.ask_at = now + answered
            if address != self._address:
                self._address = address
                self.close()
        return super().take()


class _Master:
    """A pool of connections to a master, as they know it: it tells them where that is.

    Where no Sentinel knows, some versions of redis-py (6.4, 7.1) quote how
    they were asked, with their passwords.  This does not.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._unknown = driver_of(pool.connection_class).find("sentinel", "MasterNotFoundError")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def get_master_address(self) -> Any:
        try:
            return self._pool.get_master_address()
        except self._unknown:
            pass
        # Not in the handler: those who log an error with its context would have the passwords.
        asked = (sentinel.connection_pool.connection_kwargs for sentinel in self._pool.sentinel_manager.sentinels)
        places = ", ".join(f"{one.get('host')}:{one.get('port')}" for one in asked)
        raise self._unknown(
            f"no Sentinel names a master {self._pool.service_name!r}: those at {places} "
            f"do not answer, refuse the login, or see none."
        )


_all: Final[weakref.WeakSet[Connections]] = weakref.WeakSet()


def _forget_all() -> None:
    for connections in list(_all):
        connections.forget()


# The sockets belong to the parent.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def _let_kernel_time(found: Any) -> float | None:
    """Leave the time-outs of a plain socket to the kernel: Python's own
    cost another system call for each of ours.

    Returns:
      float: The time-out in seconds; None where there is no socket, or no time-out.
    """
    timeout: float | None = None if found is None else found.gettimeout()
    if timeout and type(found) is _PLAIN_SOCKET:
        seconds = int(timeout)
        interval = struct.pack("@ll", seconds, int((timeout - seconds) * 1_000_000))
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, interval)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, interval)
        found.settimeout(None)
    return timeout


def pack(*command: Any) -> bytes:
    """Pack a command the way Redis reads it."""
    if hiredis is not None:
        packed: bytes = hiredis.pack_command(command)
        return packed
    parts = [b"*%d\r\n" % len(command)]
    for argument in command:
        encoded = str(argument).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(encoded), encoded))
    return b"".join(parts)


def _error_for(error: BaseException) -> BaseException:
    if isinstance(error, (ServerError, *errors())):
        return BackendError(f"Redis: {type(error).__name__}: {error}")
    return error
