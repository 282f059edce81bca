"""The Redis backend in an event loop: what it sends and how it reads replies is the Redis backend's own."""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any, Final, TypeVar

from ..backend import StatusBackend
from ..backends._driver import driver_of, errors, hang_ups, response_errors
from ..backends._push import PING_AFTER
from ..backends._redis import Connections, ServerError, coded
from ..backends.redis import RedisBackend
from ..errors import BackendError
from ..record import Outcome, Record, Update
from .backend import AsyncBackend

T = TypeVar("T")

#: How many requests are sent together, at most.
REQUESTS_A_CALL: Final = 100

#: After how many seconds an idle connection is closed.
IDLE: Final = 30.0

#: The connections that ``redis.asyncio`` has under the same names.
_KINDS: Final = frozenset(("Connection", "SSLConnection", "UnixDomainSocketConnection"))

#: What says where and as whom to connect; all that begins with "ssl" does so, too.
_PARAMETERS: Final = frozenset(
    (
        *("host", "port", "path", "db", "username", "password", "client_name", "credential_provider"),
        *("socket_keepalive", "socket_keepalive_options", "socket_type", "protocol"),
        *("encoding", "encoding_errors", "decode_responses"),
    )
)


class AsyncRedis(AsyncBackend):
    """A Redis backend for one event loop, through ``redis.asyncio``: one
    connection for reads and writes, one for news.

    Parameters:
      backend(RedisBackend)
      connector(Connector): How to connect.
    """

    def __init__(self, backend: RedisBackend, connector: Connector) -> None:
        super().__init__(backend)
        self._connector = connector
        self._line = Line(connector)
        self._stage = Stage()
        # It knows all that the backend knows, but its calls are made here.
        self._actor = copy.copy(backend)
        self._actor._connections = self._stage  # type: ignore[assignment]

    @staticmethod
    def of(backend: StatusBackend) -> AsyncRedis | None:
        """Make one; None where it takes more than ``redis.asyncio`` has."""
        connections = getattr(backend, "_connections", None)
        if not isinstance(backend, RedisBackend) or type(connections) is not Connections:
            return None
        connector = Connector.of(connections, backend.timeout / 1000)
        return None if connector is None else AsyncRedis(backend, connector)

    async def read_many(self, message_ids: Sequence[str]) -> list[Record | None]:
        return await self._play(self._actor.read_many, message_ids)

    async def update(self, message_id: str, update: Update) -> Outcome:
        return await self._play(self._actor.update, message_id, update)

    async def delete(self, message_id: str) -> bool:
        return await self._play(self._actor.delete, message_id)

    async def find(self, query: Any, *, limit: int, offset: int) -> list[tuple[str, Record]]:
        return await self._play(lambda: self._actor.find(query, limit=limit, offset=offset))

    async def count(self, query: Any) -> int:
        return await self._play(self._actor.count, query)

    async def subscribe(self) -> RedisSubscription:
        connection = await self._connector.connect()
        assert isinstance(self.backend, RedisBackend)
        return RedisSubscription(connection, self.backend, self._connector.timeout)

    async def close(self) -> None:
        await super().close()
        await self._line.close()

    async def _play(self, method: Callable[..., T], *arguments: Any) -> T:
        """Run a method of the backend.

        Where it calls the server it is left, and run again from the beginning as
        soon as the answer is here; methods of backends keep nothing
        in between, and most call once.
        """
        answers: list[Any] = []
        while True:
            try:
                return self._stage.run(answers, method, *arguments)
            except Unanswered as call:
                request, read, again = call.request, call.read, call.again
            try:
                answers.append(await self._line.call(request, read, again=again))
            except BackendError as e:
                answers.append(e)


class Unanswered(BaseException):
    """Raised out of a backend's method where it needs an answer."""

    def __init__(self, request: bytes, read: Callable[[Any], Any], again: bool) -> None:
        self.request = request
        self.read = read
        self.again = again


class Stage:
    """Stands in for the connections of a backend: hands out answers that are here already."""

    def __init__(self) -> None:
        self._answers: list[Any] = []
        self._next = 0

    def run(self, answers: list[Any], method: Callable[..., T], *arguments: Any) -> T:
        self._answers, self._next = answers, 0
        return method(*arguments)

    def call(self, request: bytes, read: Callable[[Any], T], *, again: bool = True) -> T:
        if self._next == len(self._answers):
            raise Unanswered(request, read, again)
        answer = self._answers[self._next]
        self._next += 1
        if isinstance(answer, BackendError):
            raise answer
        found: T = answer
        return found


class Connector:
    """Makes connections like those of a backend.

    Parameters:
      kind(type): A connection of ``redis.asyncio``.
      parameters(dict[str, object])
      timeout(float): How long the server may take, in seconds.
    """

    def __init__(self, kind: type, parameters: dict[str, Any], timeout: float) -> None:
        self.timeout = timeout
        self._kind = kind
        self._parameters = parameters

    @staticmethod
    def of(connections: Connections, timeout: float) -> Connector | None:
        """Make one; None where ``redis.asyncio`` cannot connect in that way."""
        name = connections._class.__name__
        if name not in _KINDS:
            return None
        kind = driver_of(connections._class).find("asyncio", name)
        taken = {name for base in kind.__mro__ for name in signature(base.__init__).parameters}
        parameters: dict[str, Any] = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
        for name, value in connections._parameters.items():
            if name in _PARAMETERS or name.startswith("ssl_"):
                if name in taken:
                    parameters[name] = value
                elif value:
                    return None
        return Connector(kind, parameters, timeout)

    async def connect(self) -> Any:
        """Connect.

        Raises:
          BackendError: When the server does not answer, or with an error.
        """
        connection = self._kind(**self._parameters)
        try:
            await asyncio.wait_for(connection.connect(), self.timeout)
        except BaseException as e:
            await _disconnect(connection, nowait=True)
            raise error_for(e) from e
        return connection


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

    __slots__ = ("_at", "_begin", "_read", "_replies", "_sends", "_sent", "again", "answer", "first", "request")

    def __init__(self, request: bytes, read: Callable[[Any], Any], again: bool, answer: asyncio.Future[Any]) -> None:
        self.request = request
        self.again = again
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

    Whoever stops waiting leaves the others undisturbed.

    Parameters:
      connector(Connector): How to connect.
    """

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._connection: Any = None
        self._calls: deque[Call] = deque()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

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
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._calls.append(Call(request, read, again, answer))
        if self._task is None:
            self._start(self._work())
        return await answer

    async def close(self) -> None:
        """Close the connection; those who wait get an error."""
        task = self._task
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        await self._disconnect()

    def _start(self, work: Any) -> None:
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
            for call in self._calls:
                call.fail(BackendError(f"Redis: the connection was given up: {type(e).__name__}."))
            self._calls.clear()
            raise
        finally:
            self._task = None
        self._timer = asyncio.get_running_loop().call_later(IDLE, self._rest)

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
            await _disconnect(connection)

    async def _exchange(self, calls: list[Call]) -> None:
        used = self._connection is not None
        try:
            if not used:
                self._connection = await self._connector.connect()
            await asyncio.wait_for(self._converse(self._connection, calls), self._connector.timeout)
        except BaseException as e:
            connection, self._connection = self._connection, None
            if connection is not None:
                await _disconnect(connection, nowait=True)
            error = error_for(e)
            closed = used and isinstance(e, hang_ups())
            for call in reversed(calls):
                if call.answer.done():
                    continue
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
                await _read(connection, call)
            except Unsent as e:
                call.next(e.request)
                self._calls.append(call)
            except ServerError as e:
                if e.demoted and call.first:
                    call.first, call.again = False, True
                else:
                    call.fail(error_for(e))
                raise OutOfStep("Redis: a request failed that was sent together with this one.") from e


class RedisSubscription:
    """Hears of changes of any number of messages over one connection.

    Parameters:
      connection(redis.asyncio.Connection): Is nobody else's.
      backend(RedisBackend): Names the channels.
      timeout(float): How long the server may take to answer, in seconds.
    """

    def __init__(self, connection: Any, backend: RedisBackend, timeout: float) -> None:
        self._connection = connection
        self._backend = backend
        self._timeout = timeout
        self._channels: dict[str, str] = {}

    async def add(self, message_ids: Sequence[str]) -> None:
        channels = self._backend._channels(message_ids)
        self._channels.update(channels)
        await self._send("SUBSCRIBE", *channels)

    async def remove(self, message_ids: Sequence[str]) -> None:
        channels = self._backend._channels(message_ids)
        for channel in channels:
            self._channels.pop(channel, None)
        await self._send("UNSUBSCRIBE", *channels)

    async def receive(self) -> tuple[str, int | None]:
        while True:
            try:
                reply = await self._connection.read_response(timeout=PING_AFTER)
                if reply is None:
                    await self._send("PING")
                    reply = await self._connection.read_response(timeout=self._timeout)
            except errors() as e:
                raise error_for(e) from e
            if reply is None:
                raise BackendError("Redis: the server says nothing any more.")
            if not isinstance(reply, list) or len(reply) != 3:
                # The answer to a PING.
                continue
            kind, channel, version = reply
            message_id = self._channels.get(channel)
            if message_id is None:
                continue
            if kind == "subscribe":
                return message_id, None
            if kind == "message":
                return message_id, int(version) if version.isdecimal() else 0

    async def close(self) -> None:
        await _disconnect(self._connection, nowait=True)

    async def _send(self, *command: str) -> None:
        try:
            await self._connection.send_command(*command, check_health=False)
        except errors() as e:
            raise error_for(e) from e


async def _read(connection: Any, call: Call) -> None:
    """Read the replies to a call, also where nobody waits for its answer any more."""
    while True:
        try:
            call.finish()
        except Short as e:
            for _ in range(e.missing):
                call.add(await _reply(connection))
        else:
            return


async def _reply(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except response_errors() as e:
        return coded(e)


async def _disconnect(connection: Any, *, nowait: bool = False) -> None:
    try:
        await connection.disconnect(nowait=nowait)
    except errors():
        pass


def error_for(error: BaseException) -> BaseException:
    """What a driver's error is to our callers; all else is left as it is."""
    if isinstance(error, (ServerError, asyncio.TimeoutError, *errors())):
        return BackendError(f"Redis: {type(error).__name__}: {error}")
    return error
