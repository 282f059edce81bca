"""One connection to Redis for all of an event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from ..backends.redis.connection import ServerError, coded
from ..backends.redis.driver import hang_ups, response_errors
from ..errors import BackendError
from ._connect import CATCH_UP, Connector, disconnect, error_for, no_answer, within

T = TypeVar("T")

#: How many requests are sent together, at most.
REQUESTS_A_CALL: Final = 100

#: Number of replies for which all waiting calls get another second.
SLOWEST: Final = 1000

#: After how many seconds an idle connection is closed.
IDLE: Final = 30.0


class Short(BaseException):
    """Raised where more replies are needed than have come."""

    def __init__(self, missing: int) -> None:
        self.missing = missing


class Unsent(BaseException):
    """Raised where a request has to be sent before more replies come."""

    def __init__(self, request: bytes) -> None:
        self.request = request


class OutOfStep(BackendError):
    """Raised where nobody knows how many of the next replies belong to whom."""


class Call:
    """A request, who waits for its answer, and the replies so far: it
    stands in for the link of a backend, whose replies are read from
    the beginning whenever there are more.
    """

    __slots__ = (
        *("_at", "_begin", "_read", "_replies", "_sends", "_sent"),
        *("again", "answer", "deadline", "first", "request", "seen"),
    )

    def __init__(
        self,
        request: bytes,
        read: Callable[[Any], Any],
        again: bool,
        answer: asyncio.Future[Any],
        deadline: float,
        seen: int,
    ) -> None:
        self.request = request
        self.again = again
        #: Deadline by the loop's clock, if no replies arrive before it.
        self.deadline = deadline
        #: Number of replies that had arrived before the call was made.
        self.seen = seen
        #: Whether it was not sent for a second time.
        self.first = True
        self.answer = answer
        self._begin = request
        self._read = read
        self._replies: list[Any] = []
        #: How many requests were sent after the one at the beginning.
        self._sent = 0
        self._at = self._sends = 0

    def add(self, reply: Any) -> None:
        """Take note of a reply."""
        self._replies.append(reply)

    def next(self, request: bytes) -> None:
        """Make another request the one to be sent."""
        self.request = request
        self._sent += 1

    def restart(self) -> None:
        """Forget the replies, to be sent once more."""
        self.request = self._begin
        self._replies.clear()
        self._sent = 0

    def finish(self) -> None:
        """Work out the answer from the replies, and give it to the one who waits."""
        self._at = self._sends = 0
        found = self._read(self)
        if not self.answer.done():
            self.answer.set_result(found)

    def fail(self, error: BaseException) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)

    def read(self) -> Any:
        return self.read_many(1)[0]

    def read_many(self, number: int) -> list[Any]:
        missing = self._at + number - len(self._replies)
        if missing > 0:
            raise Short(missing)
        self._at += number
        return self._replies[self._at - number : self._at]

    def send(self, request: bytes) -> None:
        self._sends += 1
        if self._sends > self._sent:
            raise Unsent(request)


class Line:
    """One connection for all: requests are sent together with those that
    have come up meanwhile, and each is answered with its own replies.

    Whoever stops waiting leaves the others undisturbed.  A connection that was idle for
    :data:`IDLE` seconds is closed.

    A call ends by its deadline, whatever goes on before it is sent: calls that were sent earlier, connecting, and
    asking where the server is.  Each reply makes the deadlines of all calls a little later: the server answers.

    Parameters:
      connector(Connector): How to connect.
    """

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._connection: Any = None
        self._calls: deque[Call] = deque()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        # Calls in the order of their deadlines, including answered calls, and the timer that ends the first.
        self._waiting: deque[Call] = deque()
        self._alarm: asyncio.TimerHandle | None = None
        # Number of replies so far, and the time of the last one by the loop's clock.
        self._replies = 0
        self._heard = 0.0

    async def call(self, request: bytes, read: Callable[[Any], T], *, again: bool = True) -> T:
        """Send a request and read what it is answered with.

        Parameters:
          request(bytes): Packed commands.
          read(Callable): Reads the replies, from what looks like a link.
          again(bool): Whether to do so once more on a new connection
            where the server has closed an idle one.

        Raises:
          BackendError: When the server does not answer, or with an error.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        call = Call(request, read, again, answer, loop.time() + self._connector.timeout, self._replies)
        self._calls.append(call)
        self._limit(call)
        if self._task is None:
            self._start(self._work())
        return await answer

    async def close(self) -> None:
        """Close the connection; those who wait get an error."""
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

    def _limit(self, call: Call) -> None:
        waiting = self._waiting
        while waiting and waiting[0].answer.done():
            waiting.popleft()
        waiting.append(call)
        if self._alarm is None:
            self._alarm = asyncio.get_running_loop().call_at(waiting[0].deadline, self._expire)

    def _expire(self, caught_up: bool = False) -> None:
        loop, waiting = asyncio.get_running_loop(), self._waiting
        self._alarm = None
        now = loop.time()
        while waiting and (waiting[0].answer.done() or self._end_of(waiting[0]) <= now):
            if not waiting[0].answer.done():
                if not caught_up and now - self._end_of(waiting[0]) > CATCH_UP:
                    # The loop was blocked.  Read the replies first that have arrived meanwhile.
                    self._alarm = loop.call_later(CATCH_UP, self._expire, True)
                    return
                waiting[0].fail(error_for(no_answer(self._connector.timeout)))
            waiting.popleft()
        if waiting:
            self._alarm = loop.call_at(self._end_of(waiting[0]), self._expire)

    def _end_of(self, call: Call) -> float:
        return self._later(call.deadline, call.seen)

    def _later(self, deadline: float, seen: int) -> float:
        """Return the later deadline of a call, by the loop's clock.

        A server that stops has no more than the time-out.
        """
        granted = deadline + (self._replies - seen) / SLOWEST
        return max(deadline, min(granted, self._heard + self._connector.timeout))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._task = asyncio.create_task(work, name="dramatiq-status calls")

    async def _work(self) -> None:
        try:
            while self._calls:
                number = min(len(self._calls), REQUESTS_A_CALL)
                calls = [self._calls.popleft() for _ in range(number)]
                await self._exchange([call for call in calls if not call.answer.done()])
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

    async def _disconnect(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        connection, self._connection = self._connection, None
        if connection is not None:
            await disconnect(connection)

    async def _exchange(self, calls: list[Call]) -> None:
        used = self._connection is not None
        try:
            if not used:
                self._connection = await self._connector.connect()
            seen = self._replies
            await within(
                self._connector.timeout, self._converse(self._connection, calls), lambda end: self._later(end, seen)
            )
        except BaseException as e:
            connection, self._connection = self._connection, None
            if connection is not None:
                await disconnect(connection, nowait=True)
            error = error_for(e)
            closed = used and isinstance(e, hang_ups())
            for call in reversed([call for call in calls if not call.answer.done()]):
                if call.again and (isinstance(e, OutOfStep) or (closed and call.first)):
                    call.first = call.first and not closed
                    call.restart()
                    self._calls.appendleft(call)
                else:
                    call.fail(error if isinstance(error, BackendError) else BackendError("Redis: it was interrupted."))
            if not isinstance(error, BackendError):
                raise

    async def _converse(self, connection: Any, calls: list[Call]) -> None:
        await connection.send_packed_command([call.request for call in calls], check_health=False)
        for call in calls:
            try:
                await self._read(connection, call)
            except Unsent as e:
                call.next(e.request)
                self._calls.append(call)
            except ServerError as e:
                if e.demoted and call.first:
                    call.first, call.again = False, True
                else:
                    call.fail(error_for(e))
                raise OutOfStep("Redis: a request failed that was sent together with this one.") from e

    async def _read(self, connection: Any, call: Call) -> None:
        """Read the replies to a call, also where nobody waits for its answer any more."""
        clock = asyncio.get_running_loop().time
        while True:
            try:
                call.finish()
            except Short as e:
                for _ in range(e.missing):
                    call.add(await _reply(connection))
                    self._replies += 1
                    self._heard = clock()
            else:
                return


async def _reply(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except response_errors() as e:
        return coded(e)
