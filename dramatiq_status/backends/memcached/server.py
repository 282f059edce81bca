"""One memcached server: its idle connections, and its circuit breaker."""

from __future__ import annotations

import copy
from collections.abc import Callable
from ssl import SSLEOFError, SSLZeroReturnError
from typing import Any, Final, TypeVar

from pymemcache.exceptions import MemcacheError, MemcacheUnexpectedCloseError

from ..._time import monotonic
from ...circuit_breaker import CircuitBreaker
from ...errors import BackendError
from .._pool import IdlePool
from .protocol import Connection, Credentials

#: Exceptions of a connection that the server has closed.
_HANG_UPS: Final = (ConnectionError, MemcacheUnexpectedCloseError, SSLEOFError, SSLZeroReturnError)

#: Exceptions of a server that does not answer, or answers with an error.
FAILURES: Final[tuple[type[Exception], ...]] = (MemcacheError, OSError)

T = TypeVar("T")


def has_hung_up(error: BaseException) -> bool:
    """Return whether an exception means that the server has closed the connection."""
    return isinstance(error, _HANG_UPS)


class Server(IdlePool[Connection]):
    """A server, and the idle connections to it.

    Parameters:
      client(pymemcache.Client): Has the address and all connection parameters.
      timeout(float): Seconds for each call, including the time to connect.
      meta(bool): See :class:`.Connection`.
      login(Credentials): See :class:`.Connection`.
    """

    def __init__(self, client: Any, *, timeout: float, meta: bool, login: Credentials | None = None) -> None:
        self._client = copy.copy(client)
        self._client.sock = None
        self._client.no_delay = True
        self._meta = meta
        self._login = login
        self.timeout = timeout
        super().__init__()

    @property
    def is_down(self) -> bool:
        """Whether the last call to the server has failed.  Always False if the backend has only one server."""
        return False

    @property
    def address(self) -> str:
        """The address of the server, for log lines and errors."""
        address = self._client.server
        return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address)

    def call(self, use: Callable[..., T], *arguments: Any, may_repeat: Callable[[], bool] | None = None) -> T:
        """Call a function with a connection and arguments.  If the server has closed the idle connection, call the
        function again with a new one.

        Parameters:
          use(Callable): The function.
          *arguments: Its arguments after the connection.
          may_repeat(Callable): Returns whether the function may be called a second time; None if this is always
            allowed.

        Raises:
          BackendError: When the server does not answer, or answers with an error.
        """
        now = monotonic()
        deadline = now + self.timeout
        connection = self.take_idle(now)
        if connection is not None:
            connection.begin(deadline)
            try:
                result = use(connection, *arguments)
            except BaseException as e:
                connection.close()
                if not isinstance(e, FAILURES):
                    raise
                if not has_hung_up(e) or (may_repeat is not None and not may_repeat()):
                    raise self.fail(e) from e
                self.close()
            else:
                self.give(connection)
                return result
        try:
            connection = self.connect(deadline)
            try:
                result = use(connection, *arguments)
            except BaseException:
                connection.close()
                raise
        except FAILURES as e:
            raise self.fail(e) from e
        self.give(connection)
        return result

    def begin(self, send: Callable[[Connection], bool]) -> Callable[[Callable[[Connection], T]], T] | None:
        """Send a request, and return a function that reads its reply.

        Parameters:
          send(Callable): Sends the request; returns whether it has sent one.

        Returns:
          Callable | None: A function that takes a function, calls it with the connection and returns its result.  None
          if `send` has sent nothing, or if the server has closed the idle connection.

        Raises:
          BackendError: When the server cannot be reached.  The returned function raises it as well.
        """
        deadline = monotonic() + self.timeout
        idle: Connection | None = None
        try:
            connection = idle = self.take_idle(monotonic())
            if connection is None:
                connection = self.connect(deadline)
            else:
                connection.begin(deadline)
            try:
                sent = send(connection)
            except BaseException:
                connection.close()
                raise
        except FAILURES as e:
            if idle is not None and has_hung_up(e):
                return None
            raise self.fail(e) from e
        if not sent:
            self.give(connection)
            return None
        # The time until the caller reads the reply does not count for the time-out.
        left = deadline - monotonic()

        def read(call: Callable[[Connection], T]) -> T:
            connection.deadline = monotonic() + left
            try:
                result = call(connection)
            except BaseException as e:
                connection.close()
                if isinstance(e, FAILURES):
                    raise self.fail(e) from e
                raise
            self.give(connection)
            return result

        return read

    def check(self) -> None:
        """Raise the error of the last call, if it is too early to try the server again.

        Raises:
          BackendError
        """

    def succeed(self) -> None:
        """Note that the server has answered."""

    def fail(self, error: BaseException) -> BackendError:
        """Note that a call has failed, and return the error for it."""
        return BackendError(f"memcached at {self.address}: {type(error).__name__}: {error}")

    def connect(self, deadline: float) -> Connection:
        """Make a connection that is ready for requests."""
        connection = self.open(deadline)
        try:
            for _ in connection.log_in():
                pass
        except BaseException:
            connection.close()
            raise
        return connection

    def open(self, deadline: float) -> Connection:
        """Connect, without :meth:`.Connection.log_in`."""
        client = copy.copy(self._client)
        return Connection(client, timeout=self.timeout, deadline=deadline, meta=self._meta, login=self._login)


class ServerWithBreaker(Server):
    """One of several servers.  It has a circuit breaker of its own, because it may be down while the others answer."""

    # The exception of its last call that has failed.
    _failure: BaseException

    def __init__(self, client: Any, *, timeout: float, meta: bool, login: Credentials | None = None) -> None:
        super().__init__(client, timeout=timeout, meta=meta, login=login)
        self.forget()

    @property
    def is_down(self) -> bool:
        return self.breaker.down

    def call(self, use: Callable[..., T], *arguments: Any, may_repeat: Callable[[], bool] | None = None) -> T:
        self.check()
        result = super().call(use, *arguments, may_repeat=may_repeat)
        self.succeed()
        return result

    def begin(self, send: Callable[[Connection], bool]) -> Callable[[Callable[[Connection], T]], T] | None:
        self.check()
        read: Callable[[Callable[[Connection], T]], T] | None = super().begin(send)
        if read is None:
            return None

        def read_and_note(call: Callable[[Connection], T]) -> T:
            result = read(call)
            self.succeed()
            return result

        return read_and_note

    def check(self) -> None:
        if self.breaker.blocked:
            raise super().fail(self._failure) from self._failure

    def succeed(self) -> None:
        self.answered_at: float = monotonic()
        if self.breaker.down:
            self.breaker.succeeded()

    def fail(self, error: BaseException) -> BackendError:
        self._failure = error
        self.breaker.failed(error)
        return super().fail(error)

    def forget(self) -> None:
        super().forget()
        #: Its circuit breaker.  A child process makes a new one, because a thread of the parent may hold the lock of
        #: this one.
        self.breaker: CircuitBreaker = CircuitBreaker(f"memcached at {self.address}")
        #: Time of its last answer, by the monotonic clock.
        self.answered_at = float("-inf")
        self._failure = ConnectionError()
