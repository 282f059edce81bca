"""Pools of idle connections, one for each server: the rules by which a call takes a connection and gives it back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar

from .._interrupts import WeakList
from .._process import at_fork
from .._time import monotonic

#: Seconds after which an idle connection is checked before it is used: the server may have closed it.
IDLE_CHECK: Final = 1.0

T = TypeVar("T")


class Poolable(Protocol):
    """A connection that a pool can keep.

    Attributes:
      used(float): Time at which it was last given back, by the monotonic clock; 0 before.
      deadline(float): End of the present call, by the monotonic clock.  Large replies make it later.
    """

    used: float
    deadline: float

    def begin(self, deadline: float) -> None:
        """Begin a call that ends at a time by the monotonic clock."""

    def is_stale(self) -> bool:
        """Whether the server has closed the connection, or has sent something unexpected."""

    def close(self) -> None:
        """Close it, even if a reply is still due."""


C = TypeVar("C", bound=Poolable)


class IdlePool(ABC, Generic[C]):
    """The idle connections to one server.

    - A call takes the connection that was used last.  So there are as many connections as threads that call the server
      at the same time.
    - A connection is used again only after a call without an exception.  After an interrupt (a time limit, an abort, a
      shutdown), a reply may still be due, and the next call would read it.
    - If the server has closed an idle connection, the call uses a new connection, once, unless this could count
      something twice.  The other idle connections are closed as well, because they are older.
    - A child process leaves the connections to its parent.

    It takes no locks: a deque needs none.  The pools of the drivers lock, and check each connection with system calls.

    Parameters:
      timeout(float): Seconds for each call, including the time to connect.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._idle: deque[C] = deque()
        _pools.add(self)

    @abstractmethod
    def connect(self, deadline: float) -> C:
        """Make a connection, for a call that ends at a time by the monotonic clock."""

    @abstractmethod
    def can_repeat(self, connection: C, error: BaseException, may_repeat: Callable[[], bool] | None) -> bool:
        """Whether a new connection may succeed where this one has failed, and the call does no harm if it is repeated.

        Parameters:
          connection(C): The connection that has failed.
          error(BaseException): What it has raised.
          may_repeat(Callable): See :meth:`call`.
        """

    @abstractmethod
    def error_of(self, error: BaseException) -> BaseException:
        """Return the exception that a call raises for one that has occurred in it; the same one for an interrupt."""

    @property
    def has_idle(self) -> bool:
        """Whether there is an idle connection."""
        return bool(self._idle)

    def call(
        self,
        use: Callable[..., T],
        *arguments: Any,
        may_repeat: Callable[[], bool] | None = None,
        deadline: float | None = None,
    ) -> T:
        """Call a function with a connection and arguments, and once more if a new connection may succeed.

        Parameters:
          use(Callable): The function.
          *arguments: Its arguments behind the connection.
          may_repeat(Callable): Returns whether it may be called twice, None if it always may.
          deadline(float): End of the call by the monotonic clock, None for `timeout` seconds from now.

        Raises:
          BackendError: When the server does not answer, or answers with an error.
        """
        is_first = True
        while True:
            connection: C | None = None
            try:
                connection = self.take(deadline)
                result = use(connection, *arguments)
            except BaseException as e:
                if connection is not None:
                    connection.close()
                    if is_first and self.can_repeat(connection, e, may_repeat):
                        self.close()
                        is_first, deadline = False, connection.deadline
                        continue
                error = self.error_of(e)
                if error is e:
                    raise
                raise error from e
            self.give(connection)
            return result

    def take(self, deadline: float | None = None) -> C:
        """Take a connection for a call, see :meth:`call`."""
        now = monotonic()
        end = now + self.timeout if deadline is None else deadline
        connection = self.take_idle(now)
        if connection is None:
            return self.connect(end)
        connection.begin(end)
        return connection

    def take_idle(self, now: float) -> C | None:
        """Take the connection that was used last, None if there is none or if it is stale.

        Parameters:
          now(float): The present time, by the monotonic clock.
        """
        try:
            connection = self._idle.pop()
        except IndexError:
            return None
        if now - connection.used > IDLE_CHECK and connection.is_stale():
            connection.close()
            return None
        return connection

    def give(self, connection: C) -> None:
        """Give a connection back on which no reply is due."""
        connection.used = monotonic()
        self._idle.append(connection)

    def close(self) -> None:
        """Close the idle connections."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return
            connection.close()

    def forget(self) -> None:
        """Drop the idle connections without closing them: a child process leaves them to its parent."""
        self._idle = deque()


_pools: Final = WeakList[IdlePool[Any]]()


def _forget_connections() -> None:
    for pool in _pools:
        pool.forget()


at_fork(after_in_child=_forget_connections)
