"""One connection to Redis for all calls of an event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from ..backends.redis.clock import ServerClock
from ..backends.redis.driver import hang_ups, response_errors
from ..backends.redis.requests import Exchange, Request, coded, failure_of
from ..errors import BackendError
from .connector import CATCH_UP, Connector, disconnect, error_for, no_answer, within

#: Maximum number of calls that are sent together.
CALLS_AT_ONCE: Final = 100

#: Number of replies for which all waiting calls get another second.
SLOWEST: Final = 1000

#: Seconds after which an idle connection is closed.
IDLE: Final = 30.0


class _Call:
    """Requests of one caller, which waits for their replies.

    Parameters:
      requests(Sequence[Request])
      clock(ServerClock): Clock of the server.
      done(asyncio.Future): Gets a result when the caller need not wait any longer.
      deadline(float): Deadline by the loop's clock, if no replies arrive before it.
      seen(int): Number of replies that had arrived before the call was made.
    """

    __slots__ = ("_clock", "_requests", "deadline", "done", "exchange", "is_first", "seen")

    def __init__(
        self,
        requests: Sequence[Request],
        clock: ServerClock,
        done: asyncio.Future[None],
        deadline: float,
        seen: int,
    ) -> None:
        self._requests = requests
        self._clock = clock
        self.done = done
        self.deadline = deadline
        self.seen = seen
        #: Whether the requests were not sent again over a new connection.
        self.is_first = True
        self.exchange = Exchange(requests, clock)

    @property
    def is_repeatable(self) -> bool:
        """Whether the server may execute all requests twice."""
        return all(request.repeatable for request in self._requests)

    def restart(self) -> None:
        """Make all requests those to send next."""
        self.exchange = Exchange(self._requests, self._clock)

    @property
    def must_repeat(self) -> bool:
        """Whether to send all requests again, because the server is no longer the master."""
        return self.is_first and "READONLY" in str(self.exchange.refusal)

    def go_on(self) -> None:
        """Make the requests those to send next whose scripts were unknown."""
        self.exchange = Exchange(self.exchange.unknown, self._clock)

    def finish(self) -> None:
        """Let the caller go on."""
        if not self.done.done():
            self.done.set_result(None)

    def fail(self, failure: BackendError) -> None:
        """Let the caller go on, with an error in place of the replies."""
        if not self.done.done():
            for request in self._requests:
                request.error = failure
            self.done.set_result(None)


class PipelinedConnection:
    """One connection for all calls of an event loop.

    Calls that are made while others are under way are sent together: 100 reads at once take 27 microseconds each, and
    51 with the driver's pool of connections.  A caller that stops waiting disturbs no other call.  A connection that
    was idle for :data:`IDLE` seconds is closed.

    A call ends by its deadline, whatever happens before it is sent: earlier calls, connecting, and finding the server.
    Each reply makes the deadlines of all calls a little later, because the server answers.

    Parameters:
      connector(Connector): Connects to the server.
      clock(ServerClock): Clock of the server.
    """

    def __init__(self, connector: Connector, clock: ServerClock) -> None:
        self._connector = connector
        self._clock = clock
        self._connection: Any = None
        self._calls: deque[_Call] = deque()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        # Calls in the order of their deadlines, including calls that are done, and the timer that ends the first.
        self._waiting: deque[_Call] = deque()
        self._alarm: asyncio.TimerHandle | None = None
        # Number of replies so far, and the time of the last one by the loop's clock.
        self._replies = 0
        self._replied_at = 0.0

    async def run(self, requests: Sequence[Request]) -> Sequence[Request]:
        """Carry out requests, and return them, each with its replies or its error."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._connector.timeout
        call = _Call(requests, self._clock, loop.create_future(), deadline, self._replies)
        self._calls.append(call)
        self._limit(call)
        if self._task is None:
            self._start(self._work())
        await call.done
        return requests

    async def close(self) -> None:
        """Close the connection.  Calls that are under way fail."""
        task = self._task
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
            # It may have had no chance to begin.
            self._task = None
        self._fail("the connection was closed.")
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        await self._disconnect()

    # Deadlines

    def _limit(self, call: _Call) -> None:
        waiting = self._waiting
        while waiting and waiting[0].done.done():
            waiting.popleft()
        waiting.append(call)
        if self._alarm is None:
            self._alarm = asyncio.get_running_loop().call_at(waiting[0].deadline, self._expire)

    def _expire(self, caught_up: bool = False) -> None:
        loop, waiting = asyncio.get_running_loop(), self._waiting
        self._alarm = None
        now = loop.time()
        while waiting and (waiting[0].done.done() or self._end_of(waiting[0]) <= now):
            if not waiting[0].done.done():
                if not caught_up and now - self._end_of(waiting[0]) > CATCH_UP:
                    # The loop was blocked.  Read the replies first that have arrived meanwhile.
                    self._alarm = loop.call_later(CATCH_UP, self._expire, True)
                    return
                waiting[0].fail(failure_of(no_answer(self._connector.timeout)))
            waiting.popleft()
        if waiting:
            self._alarm = loop.call_at(self._end_of(waiting[0]), self._expire)

    def _end_of(self, call: _Call) -> float:
        return self._later(call.deadline, call.seen)

    def _later(self, deadline: float, seen: int) -> float:
        """Return the later deadline of a call, by the loop's clock.

        A server that stops has no more than the time-out.
        """
        granted = deadline + (self._replies - seen) / SLOWEST
        return max(deadline, min(granted, self._replied_at + self._connector.timeout))

    # The task that sends and receives

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._task = asyncio.create_task(work, name="dramatiq-status calls")

    async def _work(self) -> None:
        try:
            while self._calls:
                number = min(len(self._calls), CALLS_AT_ONCE)
                calls = [self._calls.popleft() for _ in range(number)]
                await self._exchange([call for call in calls if not call.done.done()])
        except BaseException as e:
            self._fail(f"the connection was given up: {type(e).__name__}.")
            raise
        finally:
            self._task = None
        self._timer = asyncio.get_running_loop().call_later(IDLE, self._rest)

    def _fail(self, why: str) -> None:
        while self._calls:
            self._calls.popleft().fail(BackendError(f"Redis: {why}"))

    def _rest(self) -> None:
        self._timer = None
        if self._task is None:
            self._start(self._idle())

    async def _idle(self) -> None:
        try:
            await self._disconnect()
        finally:
            self._task = None
        if self._calls:
            self._start(self._work())

    async def _disconnect(self, *, nowait: bool = False) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        connection, self._connection = self._connection, None
        if connection is not None:
            await disconnect(connection, nowait=nowait)

    async def _exchange(self, calls: list[_Call]) -> None:
        used = self._connection is not None
        try:
            if not used:
                self._connection = await self._connector.connect()
            seen = self._replies
            await within(
                self._connector.timeout, self._converse(self._connection, calls), lambda end: self._later(end, seen)
            )
        except BaseException as e:
            await self._disconnect(nowait=True)
            error = error_for(e)
            closed = used and isinstance(e, hang_ups())
            for call in reversed([call for call in calls if not call.done.done()]):
                if closed and call.is_first and call.is_repeatable:
                    self._repeat(call)
                else:
                    call.fail(error if isinstance(error, BackendError) else BackendError("Redis: it was interrupted."))
            if not isinstance(error, BackendError):
                raise
        else:
            await self._settle(calls)

    async def _converse(self, connection: Any, calls: list[_Call]) -> None:
        await connection.send_packed_command([call.exchange.packed for call in calls], check_health=False)
        for call in calls:
            await self._receive(connection, call.exchange)
            if not call.exchange.unknown and not call.must_repeat:
                call.finish()

    async def _settle(self, calls: list[_Call]) -> None:
        """Send requests again that were not carried out."""
        if any(call.exchange.refusal is not None for call in calls):
            # The server may no longer be the master.
            await self._disconnect(nowait=True)
        for call in calls:
            if call.must_repeat:
                self._repeat(call)
            elif call.exchange.unknown:
                call.go_on()
                self._calls.append(call)

    def _repeat(self, call: _Call) -> None:
        call.is_first = False
        call.restart()
        self._calls.appendleft(call)

    async def _receive(self, connection: Any, exchange: Exchange) -> None:
        """Read the replies to a call, even if its caller waits no longer."""
        clock = asyncio.get_running_loop().time
        while exchange.expected:
            replies = []
            for _ in range(exchange.expected):
                replies.append(await _reply(connection))
                self._replies += 1
                self._replied_at = clock()
            exchange.take(replies)


async def _reply(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except response_errors() as e:
        return coded(e)
