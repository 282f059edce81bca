"""How an event loop connects to Redis: as the backend does that it stands for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from inspect import signature
from typing import Any, Final, TypeVar

from .. import _time as time
from ..backends.redis import RedisBackend
from ..backends.redis.connection import Connections, ServerError
from ..backends.redis.driver import driver_of, errors
from ..backends.redis.sentinel import SentinelConnections
from ..errors import BackendError

#: The connections that ``redis.asyncio`` has under the same names.
_KINDS: Final = frozenset(("Connection", "SSLConnection", "UnixDomainSocketConnection"))

#: What the names of those begin with that ask Sentinels for the master.
_BY_SENTINEL: Final = "SentinelManaged"

#: What says where and as whom to connect; all that begins with "ssl" does so, too.
_PARAMETERS: Final = frozenset(
    (
        *("host", "port", "path", "db", "username", "password", "client_name", "credential_provider"),
        *("socket_keepalive", "socket_keepalive_options", "socket_type", "protocol"),
        *("encoding", "encoding_errors", "decode_responses"),
    )
)

Address = tuple[str, int]

T = TypeVar("T")

#: Seconds in which a call reads replies that arrived while the event loop was blocked.
CATCH_UP: Final = 0.05


class Connector:
    """Makes connections like those of a backend.

    Parameters:
      kind(type): A connection of ``redis.asyncio``.
      parameters(dict[str, object])
      timeout(float): How long the server may take, in seconds.
      locate(Callable): Finds where the server is at present; None where that
        is among the parameters.  It may take some time.
    """

    def __init__(
        self, kind: type, parameters: dict[str, Any], timeout: float, locate: Callable[[], Address] | None
    ) -> None:
        self.timeout = timeout
        self._kind = kind
        self._parameters = parameters
        self._locate = locate

    @staticmethod
    def of(backend: RedisBackend) -> Connector | None:
        """Make one; None where ``redis.asyncio`` cannot connect in that way."""
        timeout = backend.timeout / 1000
        locate: Callable[[], Address] | None = None
        if backend._shards is None:
            connections = backend._connections
        else:
            # All nodes hear of everything: any that answers will do.
            cluster = backend._shards.cluster
            connections = cluster._first[0].connections
            locate = lambda: cluster.connect(_address_of)  # noqa: E731
        name = connections._class.__name__
        if name.startswith(_BY_SENTINEL):
            name = name.removeprefix(_BY_SENTINEL)
            locate = lambda: _address_by_sentinel(connections)  # noqa: E731
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
        return Connector(kind, parameters, timeout, locate)

    async def connect(self) -> Any:
        """Connect.

        Raises:
          BackendError: When the server does not answer, or with an error.
        """
        parameters = self._parameters
        if self._locate is not None:
            host, port = await asyncio.to_thread(self._locate)
            parameters = {**parameters, "host": host, "port": port}
        connection = self._kind(**parameters)
        try:
            await within(self.timeout, connection.connect())
        except BaseException as e:
            await disconnect(connection, nowait=True)
            raise error_for(e) from e
        # Each call has a deadline of its own.
        connection.socket_timeout = None
        return connection


def _address_by_sentinel(connections: Connections) -> Address:
    deadline = time.monotonic() + connections.timeout
    try:
        if isinstance(connections, SentinelConnections):
            return connections.locate(deadline)
        return _address_of(connections.fresh(deadline))
    except errors() as e:
        raise error_for(e) from e


def _address_of(connection: Any) -> Address:
    """Connect, for once without a loop, to see where that leads."""
    try:
        connection.connect()
        return connection.host, connection.port
    except errors() as e:
        raise error_for(e) from e
    finally:
        connection.disconnect()


async def within(seconds: float, work: Coroutine[Any, Any, T], later: Callable[[float], float] = lambda end: end) -> T:
    """Wait for some work, for so many seconds at most.

    An event loop that was blocked calls its timers first.  The work then has :data:`CATCH_UP` more seconds.

    ``asyncio.wait_for`` before Python 3.12 forgets that it was cancelled where the work
    is done at the same moment (bpo-37658), and the driver calls it, too: whoever
    cancels a task of ours would wait for its end for ever.

    Parameters:
      seconds(float)
      work(Coroutine)
      later(Callable): Returns the end that is in force, by the loop's clock, for the original end.

    Raises:
      TimeoutError: When the time is over.
    """
    clock = asyncio.get_running_loop().time
    task = asyncio.create_task(work)
    end = clock() + seconds
    caught_up = False
    try:
        while not task.done():
            left = later(end) - clock()
            if left <= 0:
                if caught_up or left > -CATCH_UP:
                    break
                caught_up, left = True, CATCH_UP
            await asyncio.wait((task,), timeout=left)
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
        if not task.cancelled():
            # Where we were cancelled nobody else asks for it, and it would be logged.
            task.exception()
    if task.cancelled():
        raise no_answer(seconds)
    return task.result()


def no_answer(seconds: float) -> TimeoutError:
    """The error of what has taken so many seconds."""
    return TimeoutError(f"no answer within {seconds * 1000:g} milliseconds.")


async def disconnect(connection: Any, *, nowait: bool = False) -> None:
    try:
        await connection.disconnect(nowait=nowait)
    except errors():
        pass


def error_for(error: BaseException) -> BaseException:
    """What a driver's error is to our callers; all else is left as it is."""
    if isinstance(error, (ServerError, *errors())):
        return BackendError(f"Redis: {type(error).__name__}: {error}")
    return error
