"""Connections that stay open, and use the socket without the driver where they can."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from typing import Any, Final

from ... import _time as time
from ...backend import MIN_BYTES_PER_SECOND
from .._pool import IdlePool
from .._socket import TIME_OUTS, has_kernel_timeouts, limit_first_wait, wait_longer
from .._timed import time_left, timed, uninterrupted
from .driver import driver_of, errors, response_errors
from .requests import coded, failure_of, hiredis

_INCOMPLETE: Final = object()

#: Parameters by which a pool of redis-py's lets its connections receive notifications of maintenance.
_MAINTENANCE: Final = re.compile("maint|orig_|oss_cluster_maint")

_BUFFER_SIZE: Final = 16_384

Address = tuple[str, int]


class Connection:
    """A connection to a server.

    The driver connects: it supports TLS, logins and Unix sockets.  If hiredis is installed, requests and replies then
    use the socket without the driver.  This saves a tenth of an update's time.

    A call has one deadline.  To save time, only two kinds of system calls use it: those that wait for long, and those
    that receive a further part of the replies.

    Parameters:
      pool(ServerPool): Makes the driver's connection, and has the time-out of calls.
    """

    __slots__ = ("_connection", "_pool", "_reader", "_socket", "deadline", "used")

    def __init__(self, pool: ServerPool) -> None:
        #: Time of the end of the last call, by the monotonic clock; 0 before the first call.
        self.used: float = 0.0
        #: Deadline of the present call, by the monotonic clock.
        self.deadline: float = 0.0
        self._pool = pool
        self._connection: Any = None
        self._socket: Any = None
        self._reader: Any = None

    def connect(self) -> None:
        """Connect to the server, unless it is connected."""
        if self._connection is not None:
            return
        connection = self._connection = uninterrupted(self._open, self.deadline)
        if hiredis is not None:
            found = getattr(connection, "_sock", None)
            self._socket = getattr(found, "socket", found)
            limit_first_wait(self._socket)
            is_decoded = self._pool.parameters["decode_responses"]
            decoding = {"encoding": "utf-8", "errors": "replace"} if is_decoded else {}
            invalid = self._pool.invalid_response
            self._reader = hiredis.Reader(protocolError=invalid, notEnoughData=_INCOMPLETE, **decoding)

    def _open(self) -> Any:
        connection = self._pool.fresh(self.deadline)
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
            sent = self._socket.send(request)
        except TIME_OUTS:
            sent = self._wait_longer(self._socket.send, request)
        if sent < len(request):
            self._send_rest(memoryview(request)[sent:])

    def read(self, *, may_be_late: bool = False) -> Any:
        """Read one reply.

        Parameters:
          may_be_late(bool): Whether the deadline may be over, because the call has read other replies before.

        Returns:
          object: The reply; an exception if it is an error.
        """
        reader = self._reader
        if reader is None:
            return self._read_by_driver()
        while True:
            reply = reader.gets()
            if reply is not _INCOMPLETE:
                return reply
            try:
                if may_be_late and time.monotonic() > self.deadline:
                    # If bytes arrive one by one, no system call waits for long enough to end the call.
                    raise TimeoutError
                data = self._socket.recv(_BUFFER_SIZE)
            except TIME_OUTS:
                data = self._wait_longer(self._socket.recv, _BUFFER_SIZE)
            if not data:
                raise ConnectionError("Connection closed by server.")
            # A large reply may take the server longer than the time-out, so each part of it makes the deadline later.
            self.deadline += len(data) / MIN_BYTES_PER_SECOND
            reader.feed(data)
            may_be_late = True

    def read_many(self, count: int) -> list[Any]:
        """Read some replies."""
        if count == 1:
            # The usual case.
            return [self.read()]
        if self._reader is None:
            return [self.read() for _ in range(count)]
        replies: list[Any] = []
        gets = self._reader.gets
        while len(replies) < count:
            reply = gets()
            replies.append(self.read(may_be_late=True) if reply is _INCOMPLETE else reply)
        return replies

    def is_stale(self) -> bool:
        """Return whether the server has closed the connection, or has sent something without a request."""
        if has_kernel_timeouts(self._socket):
            try:
                self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except OSError:
                pass
            return True
        self._connection.deadline = None
        try:
            if self._connection.can_read():
                return True
        except errors():
            return True
        if self._socket is not None:
            # The driver has set a time-out of its own.
            limit_first_wait(self._socket)
        return False

    def close(self) -> None:
        """Close the connection.  It is never used again."""
        self._socket = self._reader = None
        if self._connection is not None:
            self._connection.disconnect()

    def _send_rest(self, request: memoryview) -> None:
        while request:
            sent = self._wait_longer(self._socket.send, request)
            self.deadline += sent / MIN_BYTES_PER_SECOND
            request = request[sent:]

    def _read_by_driver(self) -> Any:
        connection = self._connection
        connection.deadline = self.deadline
        try:
            return connection.read_response()
        except response_errors() as e:
            return coded(e)
        except ValueError as e:
            # The driver's parser in Python raises it for a reply such as "$x".
            raise self._pool.invalid_response(str(e)) from e
        finally:
            # A large reply has made the deadline later.
            self.deadline = connection.deadline

    def _wait_longer(self, call: Callable[[Any], Any], argument: Any) -> Any:
        """Call a method of the socket, and wait until the deadline."""
        # A server that stops in the middle of a large reply gets at most one more time-out.
        self.deadline = min(self.deadline, time.monotonic() + self._pool.timeout)
        try:
            return wait_longer(self._socket, time_left(self.deadline), call, argument)
        except TimeoutError:
            raise TimeoutError(f"no answer within {self._pool.timeout * 1000:.0f} milliseconds.") from None


def parameters_of(pool: Any) -> dict[str, Any]:
    """Return the parameters of the connections of one of the driver's pools.

    Parameters for notifications of maintenance are left out, because redis-py 8 gets these notifications only on its
    own connections, and only with parsers of RESP3.
    """
    return {name: value for name, value in pool.connection_kwargs.items() if not _MAINTENANCE.match(name)}


class ServerPool(IdlePool[Connection]):
    """Idle connections to a server, and the parameters of new ones.

    Parameters:
      pool(redis.ConnectionPool): A pool of the driver's, with the parameters of connections.
      timeout(float): Seconds that one call may take.
      address(tuple[str, int]): Host and port in place of the pool's.
      **others: Parameters of the driver's connections in place of the usual ones of this package.

    Raises:
      TypeError: When connections do not take a parameter.
      ValueError: When connections do not take the value of a parameter.
    """

    def __init__(self, pool: Any, timeout: float, address: Address | None = None, **others: Any) -> None:
        super().__init__()
        #: The driver's class of connections.
        self.kind: type = pool.connection_class
        self.timeout = timeout
        driver = driver_of(self.kind)
        #: The driver's class of errors of replies that are not of the protocol.
        self.invalid_response: type[Exception] = driver.invalid_response
        #: Parameters of the driver's connections.
        self.parameters: dict[str, Any] = {
            **parameters_of(pool),
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "retry": driver.no_retry,
            "retry_on_timeout": False,
            "retry_on_error": [],
            "encoding": "utf-8",
            "encoding_errors": "replace",
            "decode_responses": True,
            # hiredis takes twice as long for the maps of RESP3.
            "protocol": 2,
            **others,
        }
        if address is not None:
            self.parameters["host"], self.parameters["port"] = address
        try:
            # Make one connection object now, so that a wrong parameter raises its error here. In the first call, it
            # would look like an outage.
            made = self.fresh(deadline=0.0)
        except (TypeError, ValueError, driver.error) as e:
            kind = TypeError if isinstance(e, TypeError) else ValueError
            raise kind(f"A connection parameter, passed or in the URL, is wrong: {e}") from None
        if getattr(made, "driver_info", None) is not None:
            # Otherwise redis-py 8 searches all installed packages for its own version, for each connection.
            self.parameters["driver_info"] = made.driver_info

    def take(self, deadline: float | None = None) -> Connection:
        """Take the connection that was used last, or a new one, which is not connected yet.

        Parameters:
          deadline(float): Deadline of the call, by the monotonic clock; by default the present time plus the time-out.
        """
        now = time.monotonic()
        connection = self.take_idle(now) or Connection(self)
        connection.deadline = now + self.timeout if deadline is None else deadline
        return connection

    def fresh(self, deadline: float) -> Any:
        """Make a connection of the driver's for the caller alone.  It is not connected yet.

        Parameters:
          deadline(float): Deadline for connecting, by the monotonic clock, until the caller sets another one.
        """
        connection = timed(self.kind)(**self.parameters)
        connection.deadline = deadline
        return connection


def address_of(connection: Any) -> Address:
    """Connect a connection of the driver's, and return the host and port of its server.

    Raises:
      BackendError: When the server does not answer.
    """
    try:
        connection.connect()
        return connection.host, connection.port
    except errors() as e:
        raise failure_of(e) from e
    finally:
        connection.disconnect()
