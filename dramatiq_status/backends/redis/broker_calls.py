"""Calls of the script of Dramatiq's Redis broker, over connections of this package."""

from __future__ import annotations

from types import FunctionType
from typing import Any, Final

import redis
from redis import exceptions

from .connection import Connection, ServerPool, parameters_of

#: Commands of the broker's script, which are its first arguments.
COMMANDS: Final = frozenset({"ack", "enqueue", "fetch", "nack", "purge", "qsize", "requeue"})

#: Number of the keys and arguments that each call of the broker's script has, before those of its command.
HEAD: Final = 9

#: Seconds that a call may take where the client has no time-out: about 12 days.
FOREVER: Final = 1_000_000.0

#: redis-py's classes of connections.  A class of another package may do more than connect.
_KINDS: Final = (redis.Connection, redis.SSLConnection, redis.UnixDomainSocketConnection)

#: Parameters of connections that change replies, or the time at which a connection has to log in again.
_UNUSUAL: Final = ("decode_responses", "credential_provider", "cache", "cache_config")

#: Classes of the server's errors by their codes.  The text of such an error does not have the code.
_ERRORS: Final = {
    "ERR": exceptions.ResponseError,
    "EXECABORT": exceptions.ExecAbortError,
    "LOADING": exceptions.BusyLoadingError,
    "MASTERDOWN": exceptions.MasterDownError,
    "NOAUTH": exceptions.AuthenticationError,
    "NOPERM": exceptions.NoPermissionError,
    "NOSCRIPT": exceptions.NoScriptError,
    "OOM": exceptions.OutOfMemoryError,
    "READONLY": exceptions.ReadOnlyError,
    "WRONGPASS": exceptions.AuthenticationError,
}


class BrokerCalls:
    """Calls of the broker's script over connections that need fewer system calls and locks than redis-py's.

    Parameters:
      pool(redis.ConnectionPool): Pool with the parameters of connections.

    Raises:
      ValueError: When connections with these parameters do more than this package's connections can.
    """

    def __init__(self, pool: redis.ConnectionPool) -> None:
        parameters = parameters_of(pool)
        is_usual = (
            pool.connection_class in _KINDS
            # A pool of another class may limit the connections, or choose the server.
            and type(pool).get_connection is redis.ConnectionPool.get_connection
            and not hasattr(pool, "is_master")
            and not any(parameters.get(name) for name in _UNUSUAL)
        )
        if not is_usual:
            raise ValueError("these connections are not the usual ones.")
        # It is never connected.
        sample: Any = pool.connection_class(**parameters)
        timeout = sample.socket_timeout
        self._pool = ServerPool(
            pool,
            FOREVER if timeout is None else timeout,
            socket_connect_timeout=getattr(sample, "socket_connect_timeout", timeout),
            decode_responses=False,
        )
        self._pack = sample.pack_command
        retry = parameters.get("retry")
        retries = bool(parameters.get("retry_on_timeout") or parameters.get("retry_on_error"))
        #: Whether redis-py would send a command again after a connection has failed.
        self.repeats: bool = retries or (retry is not None and getattr(retry, "get_retries", lambda: 1)() != 0)
        # The last `execute_command` that was found, and whether it is redis-py's own.
        self._found: Any = None
        self._is_plain = False

    def takes(self, client: Any, numkeys: int, arguments: tuple[Any, ...]) -> bool:
        """Whether a call of a script is one of the broker's, and nothing but this package changes its way."""
        if numkeys != 1 or len(arguments) < HEAD or arguments[1] not in COMMANDS:
            return False
        found = type(client).execute_command
        if found is not self._found:
            self._is_plain, self._found = _is_plain(found), found
        return self._is_plain and "execute_command" not in vars(client) and "EVALSHA" not in client.response_callbacks

    def call(self, sha: str, arguments: tuple[Any, ...]) -> Any:
        """Call the broker's script, and return the reply.

        Raises:
          redis.RedisError: When the server does not answer, or answers with an error.
        """
        packed = b"".join(self._pack("EVALSHA", sha, 1, *arguments))
        connection = self._take()
        try:
            connection.send(packed)
            reply = connection.read()
        except BaseException as e:
            # After an interrupt as well, the reply may still arrive.
            connection.close()
            raise error_of(e) from e
        self._pool.give(connection)
        if isinstance(reply, Exception):
            raise refusal_of(reply)
        return reply

    def _take(self) -> Connection:
        """Take a connection that the server has not closed."""
        connection = self._pool.take()
        while connection.used and connection.is_stale():
            connection.close()
            connection = self._pool.take()
        return connection

    def close(self) -> None:
        """Close the idle connections."""
        self._pool.close()


def _is_plain(found: Any) -> bool:
    """Whether this is redis-py's own `execute_command`, and not one that another package has put in its place."""
    return (
        type(found) is FunctionType
        and found.__module__ == "redis.client"
        and found.__qualname__ == "Redis.execute_command"
        and not hasattr(found, "__wrapped__")
    )


def error_of(error: BaseException) -> BaseException:
    """Return the error that redis-py raises in the place of an error of a socket; every other one unchanged."""
    if isinstance(error, TimeoutError):
        return exceptions.TimeoutError(str(error))
    return exceptions.ConnectionError(str(error)) if isinstance(error, OSError) else error


def refusal_of(reply: Exception) -> Exception:
    """Return the error that redis-py raises for a reply that is an error."""
    if isinstance(reply, redis.RedisError):
        # The driver has read it.
        return reply
    code, _, text = str(reply).partition(" ")
    kind = _ERRORS.get(code)
    return exceptions.ResponseError(str(reply)) if kind is None else kind(text)
