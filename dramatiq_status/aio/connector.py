"""Connections of an event loop to Redis, with the parameters of the backend."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any, Final

from .. import _time as time
from ..backends.redis.connection import Address, address_of
from ..backends.redis.driver import driver_of, errors
from ..backends.redis.requests import failure_of
from ..backends.redis.sentinel import MasterPool
from ..backends.redis.transport import Transport
from .tasks import within

#: Names of the driver's classes of connections that ``redis.asyncio`` has as well.
_KINDS: Final = frozenset(("Connection", "SSLConnection", "UnixDomainSocketConnection"))

#: Prefix of the names of classes that query Sentinels for the master.
_BY_SENTINEL: Final = "SentinelManaged"

#: Connection parameters to copy from the backend: the address, the login, and options of the socket, the protocol and
#: the encoding.  Parameters that begin with "ssl_" are copied as well.
_PARAMETERS: Final = frozenset(
    (
        *("host", "port", "path", "db", "username", "password", "client_name", "credential_provider"),
        *("socket_keepalive", "socket_keepalive_options", "socket_type", "protocol"),
        *("encoding", "encoding_errors", "decode_responses"),
    )
)


class Connector:
    """Factory of asynchronous connections with the parameters of a backend.

    Parameters:
      kind(type): A class of connections of ``redis.asyncio``.
      parameters(dict[str, object])
      timeout(float): Seconds that the server may take to answer.
      locate(Callable): Finds the present address of a server; it may block.  None if the address is among the
        parameters.
      master(MasterPool): Connections of threads to the master that Sentinels name; None without Sentinels.
    """

    def __init__(
        self,
        kind: type,
        parameters: dict[str, Any],
        timeout: float,
        locate: Callable[[], Address] | None,
        master: MasterPool | None = None,
    ) -> None:
        self.timeout = timeout
        self._kind = kind
        self._parameters = parameters
        self._locate = locate
        self._master = master

    @staticmethod
    def of(transport: Transport) -> Connector | None:
        """Make a connector.  Return None if ``redis.asyncio`` cannot connect as a transport does."""
        pool = transport.pool
        name = pool.kind.__name__.removeprefix(_BY_SENTINEL)
        if name not in _KINDS or pool.parameters.get("redis_connect_func"):
            return None
        kind = driver_of(pool.kind).find("asyncio", name)
        taken = {name for base in kind.__mro__ for name in signature(base.__init__).parameters}
        parameters: dict[str, Any] = {"socket_timeout": pool.timeout, "socket_connect_timeout": pool.timeout}
        for name, value in pool.parameters.items():
            if name in _PARAMETERS or name.startswith("ssl_"):
                if name in taken:
                    parameters[name] = value
                elif value:
                    return None
        if isinstance(pool, MasterPool):
            return Connector(kind, parameters, pool.timeout, partial(_locate_master, pool), pool)
        # On a cluster, the pool has the address of one node, which may be down.  The driver's pool of replicas that
        # Sentinels name has no address.
        has_address = transport.pipelines and "connection_pool" not in pool.parameters
        locate = None if has_address else partial(transport.connect, address_of)
        return Connector(kind, parameters, pool.timeout, locate)

    def is_outdated(self, connection: Any) -> bool:
        """Return whether it is time to query the Sentinels, or they have named another master than the server of a
        connection.
        """
        master = self._master
        return master is not None and (master.is_due or master.address != (connection.host, connection.port))

    async def locate_again(self) -> None:
        """Query the Sentinels if it is time, so that :meth:`is_outdated` is right about an open connection."""
        if self._master is not None and self._master.is_due:
            await asyncio.to_thread(self._master.locate_again, time.monotonic() + self.timeout)

    async def connect(self) -> Any:
        """Connect, and return the connection.

        Raises:
          BackendError: When the server does not answer, or answers with an error.
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


def _locate_master(master: MasterPool) -> Address:
    try:
        return master.locate(time.monotonic() + master.timeout)
    except errors() as e:
        raise failure_of(e) from e


async def disconnect(connection: Any, *, nowait: bool = False) -> None:
    try:
        await connection.disconnect(nowait=nowait)
    except errors():
        pass


def error_for(error: BaseException) -> BaseException:
    """Return an error of the driver as a :class:`.BackendError`, and every other error as it is."""
    return failure_of(error) if isinstance(error, errors()) else error
