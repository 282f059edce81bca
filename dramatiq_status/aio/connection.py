"""One connection to Redis for all calls of an event loop."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from ..backend import MIN_BYTES_PER_SECOND
from ..backends.redis.clock import ServerClock
from ..backends.redis.driver import hang_ups
from ..backends.redis.requests import Exchange, Request, failure_of
from ..errors import BackendError
from .connector import Connector, error_for
from .stream import Stream, stream_of
from .tasks import CATCH_UP, end_of, no_answer, within

#: Maximum number of calls that are sent together.
CALLS_PER_SEND: Final = 100

#: Number of replies for which all waiting calls get another second.
MIN_REPLIES_PER_SECOND: Final = 1000

#: Seconds after which an idle connection is closed.
IDLE_TIMEOUT: Final = 30.0

#: Whether a task can distinguish its time-out from another cancellation.
_CAN_UNCANCEL: Final = sys.version_info >= (3, 11)

#: Maximum size, in bytes, of requests that a caller sends without the task of the connection.  A write of so few
#: bytes does not wait.
_SMALL: Final = 16_384


class _Call:
    """Requests of one caller, which waits for their replies.

    Parameters:
      requests(Sequence[Request])
      clock(ServerClock): Clock of the server.
      deadline(float): Deadline by the loop's clock, if no replies arrive before it.
      granted(float): Seconds that replies had granted to all calls before the call was made.
    """

    __slots__ = ("_clock", "caller", "deadline", "exchange", "granted", "is_done", "is_first", "requests", "waiter")

    def __init__(self, requests: Sequence[Request], clock: ServerClock, deadline: float, granted: float) -> None:
        self.requests = requests
        self._clock = clock
        self.granted = granted
        #: Whether the requests have their replies, or an error.
        self.is_done = False
        #: Whether the call as a whole was never repeated.
        self.is_first = True
        #: Gets a result when the call is done; None if no caller waits for that.
        self.waiter: asyncio.Future[None] | None = None
        #: The task of the caller, if the caller sends the requests and receives the replies.
        self.caller: asyncio.Task[Any] | None = None
        self.exchange = Exchange(requests, clock)
        self.deadline: float = deadline + len(self.exchange.packed) / MIN_BYTES_PER_SECOND

    @property
    def must_repeat(self) -> bool:
        """Whether to send all requests again, because the server is no longer the master."""
        return self.is_first and "READONLY" in str(self.exchange.refusal)

    def restart(self, requests: Sequence[Request]) -> None:
        """Prepare to send requests again: all of them, or only those whose scripts the server did not have."""
        self.exchange = Exchange(requests, self._clock)

    def finish(self) -> None:
        """Wake the caller."""
        self.is_done = True
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def fail(self, failure: BackendError) -> None:
        """Wake the caller with an error instead of the replies."""
        if not self.is_done:
            for request in self.requests:
                request.error = failure
            if self.caller is not None:
                self.caller.cancel()
            self.finish()

    def is_over(self) -> bool:
        """Return whether the call is done, or its caller no longer waits."""
        return self.is_done or (self.waiter is not None and self.waiter.done())


class PipelinedConnection:
    """One connection for all calls of an event loop.

    Calls that are made while others are under way are sent together, by a task.  Then 100 reads take 27 microseconds
    each, and 51 with the driver's pool of connections.  If no other call is under way, the caller itself sends small
    requests and receives the replies, from Python 3.11 on: the task, and a second one for its time-out, would make a
    call 1.5 times as long.  A caller that stops waiting disturbs no other call.  A connection that was idle for
    :data:`IDLE_TIMEOUT` seconds is closed.

    The time-out of a call includes the time before it is sent: earlier calls, connecting, and finding the server.
    Each reply makes the deadlines of all calls a little later, because the server answers.

    Parameters:
      connector(Connector): Connects to the server.
      clock(ServerClock): Clock of the server.
    """

    def __init__(self, connector: Connector, clock: ServerClock) -> None:
        self._connector = connector
        self._clock = clock
        self._stream: Stream | None = None
        self._calls: deque[_Call] = deque()
        self._task: asyncio.Task[None] | None = None
        # Whether there are no calls, although the task may not have ended yet.
        self._is_free = True
        # The call whose caller sends the requests and receives the replies, without the task.
        self._lone: _Call | None = None
        # The timer that closes an idle connection, and the time by the loop's clock at which the last calls ended.
        self._timer: asyncio.TimerHandle | None = None
        self._used_at = 0.0
        # Calls in the order of their deadlines, including calls that are done, and the timer that ends the first.
        self._waiting: deque[_Call] = deque()
        self._alarm: asyncio.TimerHandle | None = None
        # Seconds that replies have granted to all calls so far, and the time by the loop's clock at which the last part
        # of a reply has arrived.
        self._granted = 0.0
        self._replied_at = 0.0

    async def run(self, requests: Sequence[Request]) -> Sequence[Request]:
        """Carry out requests, and return them, each with its replies or its error."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._connector.timeout
        call = _Call(requests, self._clock, deadline, self._granted)
        self._limit(call)
        stream = self._stream
        if (
            _CAN_UNCANCEL
            and self._is_free
            and self._lone is None
            and stream is not None
            and len(call.exchange.packed) <= _SMALL
            and not self._connector.is_outdated(stream.connection)
        ):
            await self._run_alone(stream, call)
            if call.is_done:
                return requests
        else:
            self._is_free = False
            self._calls.append(call)
        call.waiter = loop.create_future()
        if self._task is None and self._lone is None:
            self._start(self._work())
        await call.waiter
        return requests

    async def _run_alone(self, stream: Stream, call: _Call) -> None:
        """Send a call and receive its replies.  If the call has to be sent again, the task sends it."""
        task: Any = asyncio.current_task()
        before = task.cancelling()
        self._lone, call.caller = call, task
        try:
            await self._send_and_receive(stream, [call])
        except BaseException as e:
            call.caller = None
            # If the call is done here, `_Call.fail` has failed it and cancelled this task.
            has_failed = call.is_done and task.uncancel() <= before and isinstance(e, asyncio.CancelledError)
            if not await self._drop_connection(e, [call], used=True) and not has_failed:
                raise
        else:
            call.caller = None
            await self._settle([call])
        finally:
            self._lone = None
            self._used_at = asyncio.get_running_loop().time()
            if self._calls and self._task is None:
                self._start(self._work())

    async def close(self) -> None:
        """Close the connection.  Calls that are under way fail."""
        try:
            if self._task is not None:
                await end_of(self._task)
        finally:
            # A task that was cancelled before it began does not reset this attribute itself.
            self._task = None
            if self._lone is not None:
                self._lone.fail(BackendError("Redis: the connection was closed."))
            self._fail("the connection was closed.")
            if self._alarm is not None:
                self._alarm.cancel()
                self._alarm = None
            await self._disconnect()

    # Deadlines

    def _limit(self, call: _Call) -> None:
        waiting = self._waiting
        while waiting and waiting[0].is_over():
            waiting.popleft()
        waiting.append(call)
        if self._alarm is None:
            self._alarm = asyncio.get_running_loop().call_at(waiting[0].deadline, self._expire)

    def _expire(self, caught_up: bool = False) -> None:
        loop, waiting = asyncio.get_running_loop(), self._waiting
        self._alarm = None
        now = loop.time()
        while waiting and (waiting[0].is_over() or self._end_of(waiting[0]) <= now):
            if not waiting[0].is_over():
                if not caught_up and now - self._end_of(waiting[0]) > CATCH_UP:
                    # The loop was blocked.  First read the replies that have arrived in the meantime.
                    self._alarm = loop.call_later(CATCH_UP, self._expire, True)
                    return
                waiting[0].fail(failure_of(no_answer(self._connector.timeout)))
            waiting.popleft()
        if waiting:
            self._alarm = loop.call_at(self._end_of(waiting[0]), self._expire)

    def _end_of(self, call: _Call) -> float:
        return self._later(call.deadline, call.granted)

    def _later(self, deadline: float, granted: float) -> float:
        """Return the deadline of a call, by the loop's clock.

        Each reply since the call was made, and each part of a reply, has put the deadline off.  A server that stops
        replying gets no more than the time-out after the last part of a reply.
        """
        later = deadline + self._granted - granted
        return max(deadline, min(later, self._replied_at + self._connector.timeout))

    def _note_bytes(self, number: int) -> None:
        """Put all deadlines off, because bytes have arrived."""
        self._granted += number / MIN_BYTES_PER_SECOND
        self._replied_at = asyncio.get_running_loop().time()

    # The task that sends and receives

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._task = asyncio.create_task(work, name="dramatiq-status calls")

    async def _work(self) -> None:
        try:
            while self._calls and self._lone is None:
                number = min(len(self._calls), CALLS_PER_SEND)
                calls = [self._calls.popleft() for _ in range(number)]
                await self._exchange([call for call in calls if not call.is_over()])
        except BaseException as e:
            self._fail(f"the connection was given up: {type(e).__name__}.")
            raise
        finally:
            self._task = None
        loop = asyncio.get_running_loop()
        self._used_at = loop.time()
        self._timer = loop.call_later(IDLE_TIMEOUT, self._rest)

    def _fail(self, why: str) -> None:
        while self._calls:
            self._calls.popleft().fail(BackendError(f"Redis: {why}"))

    def _rest(self) -> None:
        self._timer = None
        if self._task is not None:
            return
        loop = asyncio.get_running_loop()
        left = self._used_at + IDLE_TIMEOUT - loop.time()
        if left > 0 or self._lone is not None:
            # A caller has used the connection without the task in the meantime.
            self._timer = loop.call_later(left if left > 0 else IDLE_TIMEOUT, self._rest)
        else:
            self._is_free = False
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
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close(nowait=nowait)

    async def _exchange(self, calls: list[_Call]) -> None:
        used = False
        try:
            if self._stream is not None and self._connector.is_outdated(self._stream.connection):
                await self._connector.locate_again()
                if self._connector.is_outdated(self._stream.connection):
                    await self._disconnect()
            used = self._stream is not None
            if self._stream is None:
                self._stream = stream_of(await self._connector.connect(), self._note_bytes)
            granted = self._granted
            await within(
                self._connector.timeout + sum(len(call.exchange.packed) for call in calls) / MIN_BYTES_PER_SECOND,
                self._send_and_receive(self._stream, calls),
                lambda end: self._later(end, granted),
            )
        except BaseException as e:
            if not await self._drop_connection(e, calls, used=used):
                raise
        else:
            await self._settle(calls)

    async def _drop_connection(self, error: BaseException, calls: list[_Call], *, used: bool) -> bool:
        """Close the connection after an error, and fail or repeat the calls that are not done.

        Parameters:
          error(BaseException)
          calls(list[_Call])
          used(bool): Whether the connection was open before, so that the server may have closed it while it was idle.

        Returns:
          bool: Whether `error` is an error of the store.
        """
        await self._disconnect(nowait=True)
        failure = error_for(error)
        closed = used and isinstance(error, hang_ups())
        for call in reversed([call for call in calls if not call.is_over()]):
            if closed and call.is_first and all(request.repeatable for request in call.requests):
                self._repeat(call)
            else:
                call.fail(
                    failure if isinstance(failure, BackendError) else BackendError("Redis: the connection was closed.")
                )
        return isinstance(failure, BackendError)

    async def _send_and_receive(self, stream: Stream, calls: list[_Call]) -> None:
        await stream.send([call.exchange.packed for call in calls])
        for call in calls:
            await self._receive(stream, call.exchange)
            if not call.exchange.unknown and not call.must_repeat:
                call.finish()
        self._is_free = not self._calls and all(
            call.exchange.refusal is None and not call.exchange.unknown for call in calls
        )

    async def _settle(self, calls: list[_Call]) -> None:
        """Repeat the requests that were not carried out."""
        if any(call.exchange.refusal is not None for call in calls):
            # The server may no longer be the master.
            await self._disconnect(nowait=True)
        for call in calls:
            if call.must_repeat:
                self._repeat(call)
            elif call.exchange.unknown:
                call.restart(call.exchange.unknown)
                self._is_free = False
                self._calls.append(call)

    def _repeat(self, call: _Call) -> None:
        self._is_free = False
        call.is_first = False
        call.restart(call.requests)
        self._calls.appendleft(call)

    async def _receive(self, stream: Stream, exchange: Exchange) -> None:
        """Read the replies to a call, even if its caller waits no longer."""
        clock = asyncio.get_running_loop().time
        while exchange.expected:
            replies = []
            for _ in range(exchange.expected):
                replies.append(await stream.read())
                self._granted += 1 / MIN_REPLIES_PER_SECOND
                self._replied_at = clock()
            exchange.take(replies)
