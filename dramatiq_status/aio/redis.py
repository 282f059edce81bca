"""The Redis backend in an event loop: its operations, over connections of the loop's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..backend import Listed, Query, StatusBackend
from ..backends.redis import RedisBackend
from ..backends.redis.driver import errors, response_errors
from ..backends.redis.subscription import PING_AFTER
from ..backends.redis.transport import Steps, T
from ..cursor import Cursor
from ..errors import BackendError
from ..record import whole_number_in
from ..snapshot import Snapshot
from ..update import Outcome, Update
from .backend import AsyncBackend
from .connection import PipelinedConnection
from .connector import Connector, disconnect, error_for
from .tasks import within


class AsyncCluster(AsyncBackend):
    """A Redis Cluster in an event loop.

    Reads and writes run in threads.  The hub receives changes over one connection of ``redis.asyncio`` to a node.

    Parameters:
      backend(RedisBackend)
      connector(Connector): Connects to a node.
    """

    def __init__(self, backend: RedisBackend, connector: Connector) -> None:
        super().__init__(backend)
        self._connector = connector
        self._channels = backend.keys.channels

    async def subscribe(self) -> RedisSubscription:
        return RedisSubscription(await self._connector.connect(), self._channels, self._connector.timeout)


class AsyncRedis(AsyncCluster):
    """A single Redis server, or a master that Sentinels name, in an event loop.

    It has two connections of ``redis.asyncio``: one for reads and writes, one for the changes that are published.

    Parameters:
      backend(RedisBackend)
      connector(Connector): Connects to the server.
    """

    def __init__(self, backend: RedisBackend, connector: Connector) -> None:
        super().__init__(backend, connector)
        self._redis = backend
        self._operations = backend.operations
        self._connection = PipelinedConnection(connector, backend.transport.clock)

    async def snapshot(self, message_id: str) -> Snapshot | None:
        return await self._drive(self._operations.snapshot(message_id))

    async def snapshots(self, message_ids: Sequence[str]) -> Sequence[Snapshot | BackendError | None]:
        return await self._drive(self._operations.snapshots(message_ids))

    async def update(self, message_id: str, update: Update) -> Outcome:
        return await self._drive(self._operations.update(message_id, update))

    async def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        return await self._drive(self._operations.update_many(updates))

    async def delete(self, message_id: str) -> bool:
        return await self._drive(self._operations.delete(message_id))

    async def find(self, query: Query, *, limit: int, after: Cursor | None) -> list[Listed]:
        self._redis.check_index()
        return await self._drive(self._operations.find(query, limit, after))

    async def count(self, query: Query) -> int:
        self._redis.check_index()
        return await self._drive(self._operations.count(query))

    async def close(self) -> None:
        try:
            await super().close()
        finally:
            await self._connection.close()

    async def _drive(self, steps: Steps[T]) -> T:
        """Run an operation to its end."""
        try:
            requests = next(steps)
            while True:
                requests = steps.send(await self._connection.run(requests))
        except StopIteration as end:
            found: T = end.value
            return found


def make(backend: StatusBackend) -> AsyncBackend | None:
    """Make the asynchronous side of a Redis backend.  Return None if ``redis.asyncio`` cannot connect as the backend
    does.
    """
    if not isinstance(backend, RedisBackend):
        return None
    connector = Connector.of(backend.transport)
    if connector is None:
        return None
    return (AsyncRedis if backend.transport.pipelines else AsyncCluster)(backend, connector)


class RedisSubscription:
    """A subscription to the changes of any number of messages, over one connection.

    Parameters:
      connection(redis.asyncio.Connection): A connection that no other code uses.
      channels_of(Callable): Returns message ids by the names of their channels.
      timeout(float): Seconds that the server may take to answer.
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
                    # The login may lack the permission to unsubscribe.  The subscription then stays as it is.
                    continue
                raise error_for(e) from e
            if reply is None:
                raise BackendError("Redis: the server does not answer any more.")
            if not isinstance(reply, list) or len(reply) != 3:
                # The reply to a PING.
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
        # One task reads and another one writes.  A command on a closed connection would connect it again.
        if not self._connection.is_connected:
            raise ConnectionError("the subscription is closed.")
        await self._connection.send_command(*command, check_health=False)
