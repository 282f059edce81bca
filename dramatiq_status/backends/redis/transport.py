"""Transports, which carry requests to servers and replies back, and the transport to a single server."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol, TypeVar

from ... import _time as time
from ...errors import BackendError
from .clock import ServerClock
from .connection import Connection, ServerPool
from .driver import errors, hang_ups
from .requests import Exchange, Request, failure_of

T = TypeVar("T")

#: An operation that is under way.  The generator yields requests, and receives them back with their replies.
Steps = Generator[Sequence[Request], Sequence[Any], T]


class Transport(Protocol):
    """A transport to the servers of a store, for threads."""

    #: Connections to a server.  Connections to other servers differ only in the address.
    pool: ServerPool

    #: Whether one connection reaches all keys, so that an event loop can pipeline its requests.
    pipelines: bool

    @property
    def clock(self) -> ServerClock:
        """The clock of the server that has answered last."""

    def run(self, requests: Sequence[Request]) -> Sequence[Request]:
        """Send requests and wait for the replies.  Requests to different nodes run at the same time.

        Parameters:
          requests(Sequence[Request]): One at least.

        Returns:
          Sequence[Request]: The requests, each with its replies or its error, in any order.  The parts of a request
            replace it if its keys were on different nodes.
        """

    def begin(self, requests: Sequence[Request]) -> Callable[[], Sequence[Request]]:
        """Send requests, and return a function that completes them as :meth:`run` does.

        The time from the return of this method to the call of that function does not count for the time-out.

        Raises:
          BackendError: When the only server does not take the first request.
        """

    def connect(self, use: Callable[[Any], T]) -> T:
        """Connect to a server that answers.  This may take as long as a call.

        Parameters:
          use(Callable): Takes a connection of the driver's without other users, connects it, and returns a result.  It
            raises a :class:`.BackendError` if the connection cannot connect.

        Raises:
          BackendError: When no server answers.
        """

    def is_down(self, failure: BackendError) -> bool:
        """Return whether no server answers.  This is checked after all requests of an operation have failed.

        Parameters:
          failure(BackendError): The error of one of these requests.
        """

    def close(self) -> None:
        """Close the idle connections."""


def drive(transport: Transport, steps: Steps[T], done: Sequence[Request] | None = None) -> T:
    """Run an operation to its end.

    Parameters:
      transport(Transport)
      steps(Steps)
      done(Sequence[Request]): The first requests, if they are completed; None if the operation has not begun.
    """
    try:
        requests = next(steps) if done is None else steps.send(done)
        while True:
            requests = steps.send(transport.run(requests))
    except StopIteration as end:
        found: T = end.value
        return found


class ServerTransport:
    """A transport to a single server, or to the master that Sentinels name.

    Parameters:
      pool(ServerPool): Connections to the server.
      clock(ServerClock): Clock of the server; by default a new one.
    """

    pipelines = True

    def __init__(self, pool: ServerPool, clock: ServerClock | None = None) -> None:
        self.pool = pool
        self.clock: ServerClock = clock or ServerClock()

    def run(self, requests: Sequence[Request]) -> Sequence[Request]:
        request = requests[0]
        if len(requests) > 1 or not self.clock.known:
            return self._run(requests, None, True)
        # Most calls have one request.  An exchange would cost an update another 3 %.
        packed = request.pack(self.clock)
        connection = self.pool.take()
        try:
            connection.send(packed)
            refusal = request.take([connection.read()] if request.size == 1 else connection.read_many(request.size))
        except BaseException as e:
            return self._fail(connection, e, requests, True)
        if refusal is not None:
            return self._refused(connection, requests, refusal, True)
        self.pool.give(connection)
        return requests

    def query(self, request: Request, deadline: float) -> Any:
        """Return the reply to one request.

        Parameters:
          request(Request)
          deadline(float): Deadline of the call, by the monotonic clock.

        Raises:
          BackendError: When the server does not answer, or answers with an error.
        """
        self._run((request,), deadline, True)
        return request.result()

    def begin(self, requests: Sequence[Request]) -> Callable[[], Sequence[Request]]:
        exchange = None if len(requests) == 1 and self.clock.known else Exchange(requests, self.clock)
        packed = requests[0].pack(self.clock) if exchange is None else exchange.packed
        connection = self.pool.take()
        try:
            connection.send(packed)
        except BaseException as e:
            done = self._fail(connection, e, requests, True)
            if (failure := done[0].error) is not None:
                raise failure from e
            return lambda: done
        left = connection.deadline - time.monotonic()

        def complete() -> Sequence[Request]:
            connection.deadline = time.monotonic() + left
            if exchange is None:
                return self._receive_one(connection, requests)
            return self._receive(connection, exchange, True)

        return complete

    def _run(self, requests: Sequence[Request], deadline: float | None, first: bool) -> Sequence[Request]:
        """Carry out requests.

        Parameters:
          requests(Sequence[Request])
          deadline(float): Deadline of the call, by the monotonic clock; None for the present time plus the time-out.
          first(bool): Whether they may be sent again over a new connection.
        """
        exchange = Exchange(requests, self.clock)
        connection = self.pool.take(deadline)
        try:
            connection.send(exchange.packed)
        except BaseException as e:
            return self._fail(connection, e, requests, first)
        return self._receive(connection, exchange, first)

    def _receive_one(self, connection: Connection, requests: Sequence[Request]) -> Sequence[Request]:
        """Read the replies to a request that was sent alone."""
        request = requests[0]
        try:
            refusal = request.take(connection.read_many(request.size))
        except BaseException as e:
            return self._fail(connection, e, requests, True)
        if refusal is not None:
            return self._refused(connection, requests, refusal, True)
        self.pool.give(connection)
        return requests

    def _receive(self, connection: Connection, exchange: Exchange, first: bool) -> Sequence[Request]:
        """Read the replies to requests."""
        try:
            while exchange.expected:
                exchange.take(connection.read_many(exchange.expected))
        except BaseException as e:
            return self._fail(connection, e, exchange.requests, first)
        refusal = exchange.refusal
        if refusal is not None or exchange.unknown:
            return self._refused(connection, exchange.requests, refusal, first)
        self.pool.give(connection)
        return exchange.requests

    def _refused(
        self, connection: Connection, requests: Sequence[Request], refusal: Exception | None, first: bool
    ) -> Sequence[Request]:
        """Send requests again: those whose scripts the server did not have, or, after a failover, all requests to the
        present master.

        Every other error with which a server replies is final.
        """
        unknown = [request for request in requests if request.unknown]
        if unknown:
            # The exchange loads their scripts.
            self.pool.give(connection)
            self._run(unknown, connection.deadline, first)
            return requests
        # The server may no longer be the master.
        connection.close()
        if first and "READONLY" in str(refusal):
            self.pool.close()
            return self._run(requests, connection.deadline, False)
        return requests

    def _fail(
        self, connection: Connection, error: BaseException, requests: Sequence[Request], first: bool
    ) -> Sequence[Request]:
        """Send requests again over a new connection, or note why they have failed.

        Raises:
          BaseException: The interrupt, if it was one.  It may have struck between a request and its reply, so the
            connection is never used again.
        """
        connection.close()
        is_outdated = connection.used > 0 and isinstance(error, hang_ups())
        if first and is_outdated and all(request.repeatable for request in requests):
            # The server has closed an idle connection.  The other idle connections have been idle for longer, so the
            # server has probably closed them too.
            self.pool.close()
            return self._run(requests, connection.deadline, False)
        if not isinstance(error, errors()):
            raise error
        failure = failure_of(error)
        for request in requests:
            request.error = failure
        return requests

    def connect(self, use: Callable[[Any], T]) -> T:
        return use(self.pool.fresh(time.monotonic() + self.pool.timeout))

    def is_down(self, failure: BackendError) -> bool:
        return True

    def close(self) -> None:
        self.pool.close()
