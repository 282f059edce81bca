"""Calls of the script of Dramatiq's Redis broker, over connections of this package."""

from __future__ import annotations

import functools
import threading
from types import FunctionType
from typing import Any, Final

import redis
from redis import exceptions

from ... import _time as time
from ..._log import logger
from ...piggyback import AttachedUpdates
from ...update import Outcome
from .connection import ServerPool, parameters_of
from .operations import Operations
from .protocol import OUTCOMES
from .requests import pack

#: Commands of the broker's script, which are its first arguments.
COMMANDS: Final = frozenset({"ack", "enqueue", "fetch", "nack", "purge", "qsize", "requeue"})

#: Number of the keys and arguments that each call of the broker's script has, before those of its command.
HEAD: Final = 9

#: Position of the time among these keys and arguments.
_TIME_AT: Final = 2

#: Name of the option with the broker's own id of a message.  This id is the first argument of the broker's commands.
_ID_OPTION: Final = "redis_message_id"

_TIME: Final = pack("TIME")

#: Packed commands that begin and end a transaction.
MULTI: Final = pack("MULTI")
EXEC: Final = pack("EXEC")

#: Time-out of calls, in seconds, if the client has none: about 12 days.
FOREVER: Final = 1_000_000.0

#: Seconds after which an idle connection is checked before it is used.  A check takes a system call, during which other
#: threads get the interpreter.  redis-py makes a check for each call.
IDLE_CHECK: Final = 0.02

#: redis-py's classes of connections.  A class of another package may do more than connect.
_KINDS: Final = (redis.Connection, redis.SSLConnection, redis.UnixDomainSocketConnection)

#: Parameters of connections that change replies, or the time at which a connection has to log in again.
_UNUSUAL: Final = ("decode_responses", "credential_provider", "cache", "cache_config")

#: Classes of arguments that :func:`_packed` packs as redis-py does.
_USUAL: Final = frozenset((str, bytes, int))

#: Classes of the server's errors by their codes.  The text of redis-py's error does not contain the code.
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


#: Updates that are attached to the next command of the broker about a message, on the same thread: the broker's own id
#: of the message, the updates, and the operations of the backend that make their requests.
Attachment = tuple[str, AttachedUpdates, Operations]


class ThreadAttachment(threading.local):
    """The attachment of each thread."""

    attachment: Attachment | None = None


class RedisUpdateAttacher:
    """An attacher of updates to commands of the broker.  The broker's client sends both in one transaction.

    Parameters:
      client(BrokerClient)
      operations(Operations): The backend's operations.
    """

    def __init__(self, client: Any, operations: Operations) -> None:
        self.client = client
        self._operations = operations

    def attach(self, message: Any, updates: AttachedUpdates) -> bool:
        client, broker_id = self.client, message.options.get(_ID_OPTION)
        if broker_id is None or not client.broker_calls.is_open(client):
            return False
        client.broker_calls.thread.attachment = broker_id, updates, self._operations
        return True


class BrokerCalls:
    """Calls of the broker's script over connections that need fewer system calls and locks than redis-py's.

    Parameters:
      pool(redis.ConnectionPool): Pool with the parameters of connections.

    Raises:
      ValueError: When connections with these parameters do more than this package's connections can do.
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
        # This connection is never opened: it only shows the parameters.
        sample: Any = pool.connection_class(**parameters)
        timeout = sample.socket_timeout
        self._pool = ServerPool(
            pool,
            FOREVER if timeout is None else timeout,
            socket_connect_timeout=getattr(sample, "socket_connect_timeout", timeout),
            decode_responses=False,
        )
        self._pool.idle_check = IDLE_CHECK
        self._pack_command = sample.pack_command
        retry = parameters.get("retry")
        retries = bool(parameters.get("retry_on_timeout") or parameters.get("retry_on_error"))
        #: Whether redis-py would send a command again after a connection has failed.
        self.repeats: bool = retries or (retry is not None and getattr(retry, "get_retries", lambda: 1)() != 0)
        # The last `execute_command` that was found, and whether it is redis-py's own.
        self._found: Any = None
        self._is_plain = False
        #: Attachment of each thread.
        self.thread: ThreadAttachment = ThreadAttachment()

    def takes(self, client: Any, numkeys: int, arguments: tuple[Any, ...]) -> bool:
        """Return whether a script call is one of the broker's, and no other package has replaced the client's
        `execute_command`.
        """
        return numkeys == 1 and len(arguments) >= HEAD and arguments[1] in COMMANDS and self.is_open(client)

    def is_open(self, client: Any) -> bool:
        """Return whether no other package has replaced the client's `execute_command`."""
        found = type(client).execute_command
        if found is not self._found:
            self._is_plain, self._found = _is_plain(found), found
        return (
            self._is_plain
            and "execute_command" not in client.__dict__
            # The method of redis-py's dict would turn the name into capitals.
            and not dict.__contains__(client.response_callbacks, "EVALSHA")
        )

    def call(self, sha: str, arguments: tuple[Any, ...]) -> Any:
        """Call the broker's script, and return the reply.

        Raises:
          redis.RedisError: When the server does not answer, or answers with an error.
        """
        command = self._pack(sha, arguments)
        attachment = self.thread.attachment
        if attachment is not None and len(arguments) > HEAD and arguments[HEAD] == attachment[0]:
            reply = self._call_together(command, attachment)
            self.thread.attachment = None
        else:
            (reply,) = self._exchange(command, 1)
        if isinstance(reply, Exception):
            raise refusal_of(reply)
        return reply

    def _pack(self, sha: str, arguments: tuple[Any, ...]) -> bytes:
        """Pack a call of the broker's script.

        The method of redis-py, which is used for unusual arguments, takes four times as long.
        """
        now, own = str(arguments[_TIME_AT]).encode(), arguments[HEAD:]
        around = _pack_around(sha, len(arguments), len(now), *arguments[:_TIME_AT], *arguments[_TIME_AT + 1 : HEAD])
        if around is None or arguments[_TIME_AT].__class__ is not int or not _USUAL.issuperset(map(type, own)):
            return b"".join(self._pack_command("EVALSHA", sha, "1", *arguments))
        return b"".join((around[0], now, around[1], *map(_packed, own), b"\r\n"))

    def _call_together(self, command: bytes, attachment: Attachment) -> Any:
        """Send updates and a command of the broker as one transaction, and return the reply to the command.

        If the server refuses the whole transaction, the command is sent again without the updates.
        """
        _, updates, operations = attachment
        clock = operations.clock
        # A script that gets the time as an argument takes less time of the server.
        packed_at = None if clock.known else time.monotonic()
        packed = [MULTI] if packed_at is None else [_TIME, MULTI]
        try:
            for request in operations.requests_of(updates.collect()):
                packed.append(request.pack(clock))
            is_alone = packed[-1] is MULTI
        except Exception:
            logger.exception("The status of a message is not sent with the broker's command.")
            is_alone = True
        if is_alone:
            updates.send_separately()
            return self._exchange(command, 1)[0]
        packed += (command, EXEC)
        all_replies = self._exchange(b"".join(packed), len(packed))
        if packed_at is not None and not isinstance(measured := all_replies.pop(0), Exception):
            clock.set(measured, packed_at)
        replies = all_replies[-1]
        if isinstance(all_replies[0], Exception):
            # The login has no permission for transactions. The server has carried out the commands one by one.
            replies = all_replies[1:-1]
        if isinstance(replies, Exception):
            updates.send_separately()
            return self._exchange(command, 1)[0]
        try:
            outcomes = _outcomes_of(replies[:-1])
            if outcomes is None:
                updates.send_separately()
            else:
                updates.settle(outcomes)
        except Exception:
            # The broker's command was carried out, so this error must not reach the caller.
            logger.exception("The status of a message that was sent with the broker's command is sent again.")
        return replies[-1]

    def _exchange(self, packed: bytes, count: int) -> list[Any]:
        """Send commands, and return their replies."""
        connection = self._pool.take()
        try:
            connection.send(packed)
            replies = connection.read_many(count)
        except BaseException as e:
            # The replies may still arrive, also after an interrupt.
            connection.close()
            raise error_of(e) from e
        self._pool.give(connection)
        return replies

    def close(self) -> None:
        """Close the idle connections."""
        self._pool.close()


@functools.lru_cache(maxsize=256)
def _pack_around(sha: str, number: int, time_size: int, *arguments: Any) -> tuple[bytes, bytes] | None:
    """Pack the parts of a call that come before and after the time.  Return None for unusual arguments.

    Most calls of a broker have the same parts.  `number` is the number of all arguments of the call.
    """
    if not _USUAL.issuperset(map(type, arguments)):
        return None
    before = b"".join(map(_packed, ("EVALSHA", sha, 1, *arguments[:_TIME_AT])))
    after = b"".join(map(_packed, arguments[_TIME_AT:]))
    return b"*%d%b\r\n$%d\r\n" % (number + 3, before, time_size), after


def _packed(argument: Any) -> bytes:
    text = argument if argument.__class__ is bytes else str(argument).encode()
    return b"\r\n$%d\r\n%b" % (len(text), text)


def _outcomes_of(replies: list[Any]) -> list[Outcome] | None:
    """Return the outcomes of the updates of script calls; None if the server has refused one of the calls."""
    outcomes: list[Outcome] = []
    for reply in replies:
        if isinstance(reply, Exception):
            return None
        for number in reply:
            outcomes.append(OUTCOMES[number])
    return outcomes


def _is_plain(found: Any) -> bool:
    """Return whether this is redis-py's own `execute_command`, and not one of another package."""
    return (
        type(found) is FunctionType
        and found.__module__ == "redis.client"
        and found.__qualname__ == "Redis.execute_command"
        and not hasattr(found, "__wrapped__")
    )


def error_of(error: BaseException) -> BaseException:
    """Return the error that redis-py raises in the place of an error of a socket, and every other error unchanged."""
    if isinstance(error, TimeoutError):
        return exceptions.TimeoutError(str(error))
    return exceptions.ConnectionError(str(error)) if isinstance(error, OSError) else error


def refusal_of(reply: Exception) -> Exception:
    """Return the error that redis-py raises for a reply that is an error."""
    if isinstance(reply, redis.RedisError):
        # The driver has read the reply, and has made this error.
        return reply
    code, _, text = str(reply).partition(" ")
    kind = _ERRORS.get(code)
    return exceptions.ResponseError(str(reply)) if kind is None else kind(text)
