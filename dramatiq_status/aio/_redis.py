"""The Redis backend in an event loop: what it sends and how it reads replies is the Redis backend's own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ..backend import Listed, Query, StatusBackend
from ..backends.redis import RedisBackend
from ..backends.redis.driver import errors, response_errors
from ..backends.redis.subscription import PING_AFTER
from ..cursor import Cursor
from ..errors import BackendError
from ..record import whole_number_in
from ..snapshot import Snapshot
from ..update import Outcome, Update
from ._connect import Connector, disconnect, error_for, within
from ._line import Line
from .backend import AsyncBackend

T = TypeVar("T")


class AsyncCluster(AsyncBackend):
    """A Redis Cluster for one event loop: it is read and written in threads, and
    tells of changes through ``redis.asyncio``, over a connection to one of its nodes.

    Parameters:
      backend(RedisBackend)
      connector(Connector): How to connect.
    """

    def __init__(self, backend: RedisBackend, connector: Connector) -> None:
        super().__init__(backend)
        self._connector = connector
        self._channels = backend._channels

    async def subscribe(self) -> RedisSubscription:
        return RedisSubscription(await self._connector.connect(), self._channels, self._connector.timeout)


class AsyncRedis(AsyncCluster):
    """One Redis server, or the master that Sentinels know, for one event loop, through
    ``redis.asyncio``: one connection for reads and writes, one for news.
    """

    def __init__(self, backend: RedisBackend, connector: Connector) -> None:
        super().__init__(backend, connector)
        self._line = Line(connector)
        self._stage = Stage()
        # It knows all that the backend knows, but its calls are made here.
        self._actor = copy.copy(backend)
        self._actor._connections = self._stage  # type: ignore[assignment]

    async def snapshots(self, message_ids: Sequence[str]) -> Sequence[Snapshot | BackendError | None]:
        return await self._play(self._actor.snapshots, message_ids)

    async def update(self, message_id: str, update: Update) -> Outcome:
        return await self._play(self._actor.update, message_id, update)

    async def delete(self, message_id: str) -> bool:
        return await self._play(self._actor.delete, message_id)

    async def find(self, query: Query, *, limit: int, after: Cursor | None) -> list[Listed]:
        return await self._play(lambda: self._actor.find(query, limit=limit, after=after))

    async def count(self, query: Query) -> int:
        return await self._play(self._actor.count, query)

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


def make(backend: StatusBackend) -> AsyncBackend | None:
    """Make what a Redis backend is in an event loop; None where it takes more than ``redis.asyncio`` has."""
    if not isinstance(backend, RedisBackend):
        return None
    connector = Connector.of(backend)
    if connector is None:
        return None
    return AsyncRedis(backend, connector) if backend._shards is None else AsyncCluster(backend, connector)


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


class RedisSubscription:
    """Hears of changes of any number of messages over one connection.

    Parameters:
      connection(redis.asyncio.Connection): Is nobody else's.
      channels_of(Callable): Gives message ids by the names of their channels.
      timeout(float): How long the server may take to answer, in seconds.
    """

    def __init__(self, connection: Any, channels_of: Callable[[Sequence[str]], dict[str, str]], timeout: float) -> None:
        self._connection = connection
        self._channels_of = channels_of
        self._timeout = timeout
        self._channels: dict[str, str] = {}

    async def add(self, message_ids: Sequence[str]) -> None:
        channels = self._channels_of(message_ids)
        self._channels.update(channels)
        await self._send("SUBSCRIBE", *channels)

    async def remove(self, message_ids: Sequence[str]) -> None:
        channels = self._channels_of(message_ids)
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
                if isinstance(e, response_errors()) and "unsubscribe" in str(e):
                    # Whoever may not do that hears more than they want.
                    continue
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
                return message_id, whole_number_in(version, 0)

    async def close(self) -> None:
        await disconnect(self._connection, nowait=True)

    async def _send(self, *command: str) -> None:
        try:
            await within(self._timeout, self._write(command))
        except errors() as e:
            raise error_for(e) from e

    async def _write(self, command: Sequence[str]) -> None:
        # One task reads and another one writes: the one may have closed what the other
        # would then connect again.
        if not self._connection.is_connected:
            raise ConnectionError("the subscription is closed.")
        await self._connection.send_command(*command, check_health=False)
