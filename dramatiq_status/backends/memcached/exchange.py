"""Exchanges: requests to several servers at the same time, and their replies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from selectors import EVENT_READ, DefaultSelector
from typing import Final, NamedTuple

from ..._time import monotonic, sleep
from ...errors import BackendError
from .protocol import Connection
from .server import FAILURES, Server, has_hung_up

#: Seconds that a call may take beyond its deadline, to read replies that arrived while it waited for another server.
GRACE: Final = 0.05

#: Steps of an exchange over a connection.  Each step yields None if a reply is due, or the time by the monotonic clock
#: at which the exchange continues.
Steps = Iterator["float | None"]


class Exchange(NamedTuple):
    """An exchange with a server.

    Parameters:
      server: The server.
      start: Begins the exchange over a connection.
      may_repeat: Returns whether the exchange may start a second time, after the server has closed an idle connection.
    """

    server: Server
    start: Callable[[Connection], Steps]
    may_repeat: Callable[[], bool]

    def run(self) -> BackendError | None:
        """Carry out the exchange, and wait for it; return the error if it fails."""
        try:
            self.server.call(self._run_over, may_repeat=self.may_repeat)
        except BackendError as e:
            return e
        return None

    def _run_over(self, connection: Connection) -> None:
        for resume_at in self.start(connection):
            if resume_at is not None:
                sleep(max(0.0, resume_at - monotonic()))


class RunningExchange:
    """An exchange with one server that runs at the same time as exchanges with other servers.

    Parameters:
      exchange(Exchange)
      deadline(float): End of the call, by the monotonic clock.

    Attributes:
      done(bool): Whether the exchange has ended.
      error(BackendError): Its error; None while it runs, and after success.
      connection(Connection): Its connection, while it has one.
      resume_at(float): Time of its next step by the monotonic clock; None while a reply is due.
    """

    def __init__(self, exchange: Exchange, deadline: float) -> None:
        self.server: Server = exchange.server
        self._start = exchange.start
        self._may_repeat = exchange.may_repeat
        self.done: bool = False
        self.error: BackendError | None = None
        self.connection: Connection | None = None
        self.resume_at: float | None = None
        self._deadline = deadline
        self._steps: Steps | None = None
        # Whether the exchange may use an idle connection.
        self._is_idle = True

    def advance(self) -> None:
        """Continue until a reply is due, or until the exchange has to wait for a time."""
        while not self.done:
            try:
                self.resume_at = next(self._connect() if self._steps is None else self._steps)
                return
            except StopIteration:
                self._end()
            except BackendError as e:
                self.done, self.error = True, e
            except FAILURES as e:
                self.close()
                if self._is_idle and has_hung_up(e) and self._may_repeat():
                    # The other idle connections have been idle for longer, so the server has probably closed them too.
                    self.server.close()
                    self._is_idle, self._steps = False, None
                else:
                    self.done, self.error = True, self.server.fail(e)
                    self.error.__cause__ = e

    def _connect(self) -> Steps:
        self.server.check()
        self.connection = self.server.take_idle(monotonic()) if self._is_idle else None
        if self.connection is not None:
            self.connection.begin(self._deadline)
            self._steps = self._start(self.connection)
        else:
            self._is_idle = False
            self.connection = connection = self.server.open(self._deadline)
            self._steps = chain(connection.log_in(), self._start(connection))
        return self._steps

    def _end(self) -> None:
        connection, self.connection = self.connection, None
        self.done = True
        if connection is not None:
            self.server.give(connection)
        self.server.succeed()

    def close(self) -> None:
        """Close its connection, if the exchange has not ended."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()

    def ends_at(self) -> float:
        """Return the time, by the monotonic clock, at which the exchange continues or fails even if no reply
        arrives.
        """
        if self.resume_at is not None:
            return self.resume_at
        return self._deadline if self.connection is None else self.connection.deadline


def run_together(exchanges: Sequence[RunningExchange], is_enough: Callable[[], bool]) -> None:
    """Carry out exchanges at the same time, until all have ended, or until `is_enough` returns True."""
    try:
        # Exchanges that need a new connection come last: connecting may take all the time that is left.
        for exchange in sorted(exchanges, key=lambda exchange: not exchange.server.has_idle):
            exchange.advance()
        while not is_enough() and (active := [exchange for exchange in exchanges if not exchange.done]):
            for exchange in _wait(active):
                exchange.advance()
    finally:
        for exchange in exchanges:
            exchange.close()


def _wait(exchanges: list[RunningExchange]) -> list[RunningExchange]:
    """Wait until exchanges can continue, because a reply has arrived or their time has come; return these."""
    ready: list[RunningExchange] = []
    with DefaultSelector() as selector:
        for exchange in exchanges:
            if exchange.resume_at is None and exchange.connection is not None:
                selector.register(exchange.connection, EVENT_READ, exchange)
        timeout = min(exchange.ends_at() for exchange in exchanges) - monotonic()
        if selector.get_map():
            ready = [key.data for key, _ in selector.select(max(0.0, timeout))]
        else:
            sleep(max(0.0, timeout))
    now = monotonic()
    for exchange in ready:
        connection = exchange.connection
        if connection is not None and connection.deadline < now + GRACE:
            # The call has spent its time on another server.  This server has answered, so it gets a little more time.
            connection.deadline = now + GRACE
    return ready + [found for found in exchanges if found not in ready and found.ends_at() <= now]
