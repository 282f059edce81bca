"""Pools of idle connections: the rules by which a call takes a connection and gives it back."""

from __future__ import annotations

from collections import deque
from typing import Any, Final, Generic, Protocol, TypeVar

from .._interrupts import WeakList
from .._process import at_fork
from .._time import monotonic

#: Seconds after which an idle connection is checked before it is used: the server may have closed it.
IDLE_CHECK: Final = 1.0


class Poolable(Protocol):
    """A connection that a pool can keep.

    Attributes:
      used(float): Time at which it was last given back, by the monotonic clock; 0 before the first time.
    """

    used: float

    def is_stale(self) -> bool:
        """Return whether the server has closed the connection, or has sent something without a request."""

    def close(self) -> None:
        """Close the connection, even if a reply is still due."""


C = TypeVar("C", bound=Poolable)


class IdlePool(Generic[C]):
    """The idle connections to one server.

    - A call takes the connection that was used last.  So there are as many connections as threads that call the server
      at the same time.
    - A call that raises an exception closes its connection and does not give it back.  After an interrupt (a time
      limit, an abort, a shutdown), a reply may still be due, and the next call would read it.
    - If a call fails because the server has closed its idle connection, the caller closes all others, which are older,
      and repeats the call unless an increment would count twice.
    - A child process leaves the connections to its parent.

    A pool takes no locks, because a deque needs none.  The pool of redis-py takes locks, and makes system calls for
    each connection that is taken.  These locks and calls would take a fifth of the time of an update.
    """

    #: Seconds after which an idle connection is checked before it is used.
    idle_check: float = IDLE_CHECK

    def __init__(self) -> None:
        self._idle: deque[C] = deque()
        _pools.add(self)

    @property
    def has_idle(self) -> bool:
        """Whether there is an idle connection."""
        return bool(self._idle)

    def take_idle(self, now: float) -> C | None:
        """Take the connection that was used last; return None if there is none, or if it is stale.

        Parameters:
          now(float): The current time, by the monotonic clock.
        """
        try:
            connection = self._idle.pop()
        except IndexError:
            return None
        if now - connection.used > self.idle_check and connection.is_stale():
            connection.close()
            return None
        return connection

    def give(self, connection: C) -> None:
        """Give back a connection on which no reply is due."""
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
