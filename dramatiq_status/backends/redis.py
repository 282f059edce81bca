"""The Redis backend: a hash a message, a script call for any number of updates."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha1
from pathlib import Path
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError
from redis.retry import Retry

from ..backend import StatusBackend, now_ms
from ..errors import BackendError
from ..record import Kind, Outcome, Record, Update, is_sound, number_text

#: The script that mirrors ``record.apply``.
SCRIPT: Final = (Path(__file__).parent / "redis.lua").read_text(encoding="utf-8")
SCRIPT_SHA: Final = sha1(SCRIPT.encode()).hexdigest()

#: How many updates one script call carries at most.  Redis serves
#: nobody else while a script runs; this many take about a millisecond.
UPDATES_A_CALL: Final = 128

#: How many hashes one pipeline reads at most.
READS_A_CALL: Final = 2000

#: A connection that was idle for this many seconds is looked at before
#: it is used again: the server may have closed it.
IDLE_CHECK: Final = 1.0

#: For how many seconds the measured distance between the server's
#: clock and ours is believed.
CLOCK_TRUST: Final = 300.0

_OUTCOMES = {outcome.value: outcome for outcome in Outcome}


class RedisBackend(StatusBackend):
    """Keeps statuses in Redis_ (or Valkey) 6.2 or newer.

    Updates of any number of messages take one round trip, and so do reads.
    Moments in a record come from the server's clock, where
    it is the server that acts (``updated_at``, ``heartbeat_at``).

    It opens connections of its own, as many as there are threads that
    talk to Redis at the same time, with `timeout` as their time-outs and
    without redis-py's retries, so that a server that is down is noticed
    within that time.  They are safe across forks.

    Parameters:
      client(redis.Redis): An optional client.  If this is passed, `url`
        and all connection parameters are ignored; its pool says how to connect.
      url(str): An optional connection URL.  If both a URL and
        connection parameters are provided, the URL is used.
      namespace(str): What all keys start with.
      timeout(int): How long one call may take, in milliseconds.
      max_field_size(int): The largest encoded field, in bytes.
      **parameters: Connection parameters for :class:`redis.Redis`.

    .. _Redis: https://redis.io
    """

    def __init__(
        self,
        *,
        client: redis.Redis | None = None,
        url: str | None = None,
        namespace: str = "dramatiq-status",
        **parameters: Any,
    ) -> None:
        own = {name: parameters.pop(name) for name in ("timeout", "max_field_size") if name in parameters}
        super().__init__(namespace=namespace, **own)
        if client is None:
            client = redis.Redis.from_url(url) if url else redis.Redis(**parameters)
        self.client = client
        self._prefix = namespace + ":"
        self._connections = _Connections(client.connection_pool, self.timeout / 1000)
        self._clock_offset = 0
        self._clock_checked = -CLOCK_TRUST
        #: The present moment that the script is told, '' for the server's own.
        self._script_now = ""

    # Writing

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for first in range(0, len(updates), UPDATES_A_CALL):
            batch = updates[first : first + UPDATES_A_CALL]
            outcomes += self._evaluate(batch)
        return outcomes

    def begin_update(self, message_id: str, update: Update) -> Callable[[], Outcome]:
        """Send the update; its reply is read by what this returns."""
        updates = ((message_id, update),)
        with self._connected() as connection:
            connection.send_packed_command(connection.pack_command(*self._command(updates)), check_health=False)

        def complete() -> Outcome:
            with self._connected(connection):
                try:
                    reply = connection.read_response()
                except NoScriptError:
                    reply = self._load_and_repeat(connection, updates)
            self._connections.give(connection)
            return _OUTCOMES[reply[0]]

        return complete

    def _evaluate(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        command = self._command(updates)

        def call(connection: Any) -> Any:
            connection.send_packed_command(connection.pack_command(*command), check_health=False)
            try:
                return connection.read_response()
            except NoScriptError:
                return self._load_and_repeat(connection, updates)

        reply = self._call(call, again=not any(u.increment and u.kind is Kind.OUTSIDE for _, u in updates))
        return [_OUTCOMES[number] for number in reply]

    def _command(self, updates: Sequence[tuple[str, Update]]) -> list[Any]:
        prefix = self._prefix
        command: list[Any] = ["EVALSHA", SCRIPT_SHA, len(updates)]
        command += [prefix + message_id for message_id, _ in updates]
        command.append(self._script_now)
        for _, (kind, epoch, run, place, start, create, state, attempts, fields, increment, ttl, _) in updates:
            command += (
                kind.value,
                epoch[0],
                epoch[1],
                run,
                place,
                1 if start else 0,
                1 if create else 0,
                "" if state is None else state,
                attempts,
                number_text(increment) if increment else 0,
                ttl,
                len(fields),
            )
            for item in fields.items():
                command += item
        return command

    def _load_and_repeat(self, connection: Any, updates: Sequence[tuple[str, Update]]) -> Any:
        # The server was restarted, or is new to us.
        connection.send_command("SCRIPT LOAD", SCRIPT, check_health=False)
        connection.read_response()
        connection.send_packed_command(connection.pack_command(*self._command(updates)), check_health=False)
        return connection.read_response()

    # Reading

    def read_many(self, message_ids: Sequence[str]) -> list[Record | None]:
        found: list[Record | None] = []
        for first in range(0, len(message_ids), READS_A_CALL):
            found += self._read(message_ids[first : first + READS_A_CALL])
        return found

    def _read(self, message_ids: Sequence[str]) -> list[Record | None]:
        prefix = self._prefix
        request = []
        measure = time.monotonic() - self._clock_checked > CLOCK_TRUST
        if measure:
            request.append("*1\r\n$4\r\nTIME\r\n")
        for message_id in message_ids:
            key = prefix + message_id
            size = len(key) if key.isascii() else len(key.encode())
            request.append(f"*2\r\n$7\r\nHGETALL\r\n${size}\r\n{key}\r\n")
        packed = "".join(request).encode()

        def call(connection: Any) -> list[Any]:
            connection.send_packed_command([packed], check_health=False)
            if measure:
                self._set_clock(connection.read_response())
            read = connection.read_response
            replies = []
            for _ in message_ids:
                try:
                    replies.append(read())
                except redis.ResponseError:
                    # Something that is not ours lies under our key.
                    replies.append(None)
            return replies

        return [_to_record(reply) for reply in self._call(call)]

    def _set_clock(self, reply: Any) -> None:
        seconds, microseconds = reply
        self._clock_offset = int(seconds) * 1000 + int(microseconds) // 1000 - now_ms()
        self._clock_checked = time.monotonic()

    def now(self) -> int:
        """The present moment by the server's clock, as the last reads have seen it."""
        return now_ms() + self._clock_offset

    # Deleting and closing

    def delete(self, message_id: str) -> bool:
        def call(connection: Any) -> Any:
            connection.send_command("DEL", self._prefix + message_id, check_health=False)
            return connection.read_response()

        return bool(self._call(call))

    def close(self) -> None:
        self._connections.close()

    # Connections

    def _call(self, call: Callable[[Any], Any], *, again: bool = True) -> Any:
        """Call with a connection; once again with a new one where the
        server has hung up on an idle one, if that can do no harm.
        """
        idle = self._connections.any_idle()
        try:
            return self._call_once(call)
        except BackendError as e:
            if not again or not idle or not isinstance(e.__cause__, redis.ConnectionError):
                raise
            self._connections.close()
            return self._call_once(call)

    def _call_once(self, call: Callable[[Any], Any]) -> Any:
        with self._connected() as connection:
            reply = call(connection)
        self._connections.give(connection)
        return reply

    @contextmanager
    def _connected(self, connection: Any = None) -> Iterator[Any]:
        if connection is None:
            connection = self._connections.take()
        try:
            yield connection
        except (RedisError, OSError) as e:
            connection.disconnect()
            raise BackendError(f"Redis: {type(e).__name__}: {e}") from e
        except BaseException:
            # An interrupt (time limit, abort, shutdown) may have struck
            # between a request and its reply: never use this one again.
            connection.disconnect()
            raise


class _Connections:
    """Idle connections; the one used last is taken first."""

    def __init__(self, pool: Any, timeout: float) -> None:
        self._class = pool.connection_class
        self._parameters = {
            **pool.connection_kwargs,
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "retry": Retry(NoBackoff(), 0),
            "retry_on_timeout": False,
            "retry_on_error": [],
            "encoding": "utf-8",
            "encoding_errors": "replace",
            "decode_responses": True,
        }
        self._idle: deque[tuple[Any, float]] = deque()
        # The sockets belong to the parent.
        os.register_at_fork(after_in_child=self._forget)

    def take(self) -> Any:
        try:
            connection, used = self._idle.pop()
        except IndexError:
            return self._class(**self._parameters)
        if time.monotonic() - used > IDLE_CHECK:
            try:
                if connection.can_read():
                    connection.disconnect()
            except (RedisError, OSError):
                connection.disconnect()
        return connection

    def give(self, connection: Any) -> None:
        self._idle.append((connection, time.monotonic()))

    def any_idle(self) -> bool:
        """Whether there is a connection that was used before."""
        return bool(self._idle)

    def close(self) -> None:
        """Close the idle connections."""
        while True:
            try:
                connection, _ = self._idle.pop()
            except IndexError:
                return
            connection.disconnect()

    def _forget(self) -> None:
        self._idle = deque()


def _to_record(reply: Any) -> Record | None:
    if not reply:
        return None
    record = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2]))
    return record if is_sound(record) else None
