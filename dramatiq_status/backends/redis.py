"""The Redis backend: a hash a message, a script call for any number of updates."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from hashlib import sha1
from pathlib import Path
from typing import Any, Final

import redis

from ..backend import StatusBackend, now_ms
from ..record import Kind, Outcome, Record, Update, is_sound, number_text
from ._redis import Connections, Link, pack

#: The script that mirrors ``record.apply``.
SCRIPT: Final = (Path(__file__).parent / "redis.lua").read_text(encoding="utf-8")
SCRIPT_SHA: Final = sha1(SCRIPT.encode()).hexdigest()

#: How many updates one script call carries at most.  Redis serves
#: nobody else while a script runs; this many take about a millisecond.
UPDATES_A_CALL: Final = 128

#: How many hashes one pipeline reads at most.
READS_A_CALL: Final = 2000

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
        self._connections = Connections(client.connection_pool, self.timeout / 1000)
        self._clock_offset = 0
        self._clock_checked = -CLOCK_TRUST
        #: The present moment that the script is told, '' for the server's own.
        self._script_now = ""

    # Writing

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        if len(updates) <= UPDATES_A_CALL:
            return self._evaluate(updates)
        outcomes: list[Outcome] = []
        for first in range(0, len(updates), UPDATES_A_CALL):
            outcomes += self._evaluate(updates[first : first + UPDATES_A_CALL])
        return outcomes

    def begin_update(self, message_id: str, update: Update) -> Callable[[], Outcome]:
        """Send the update; its reply is read by what this returns."""
        request = pack(*self._command(((message_id, update),)))
        complete = self._connections.begin(request, lambda link: _outcomes(link, request))
        return lambda: _OUTCOMES[complete()[0]]

    def _evaluate(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        if not updates:
            return []
        request = pack(*self._command(updates))
        # An increment from outside has nothing that would tell it from its repetition.
        again = not any(update.increment and update.kind is Kind.OUTSIDE for _, update in updates)
        numbers = self._connections.call(request, lambda link: _outcomes(link, request), again=again)
        return [_OUTCOMES[number] for number in numbers]

    def _command(self, updates: Sequence[tuple[str, Update]]) -> list[Any]:
        prefix = self._prefix
        command: list[Any] = ["EVALSHA", SCRIPT_SHA, len(updates)]
        for message_id, _ in updates:
            command.append(prefix + message_id)
        command.append(self._script_now)
        for _, (kind, epoch, run, place, start, create, state, attempts, fields, increment, ttl, _) in updates:
            added = number_text(increment) if increment else 0
            if kind is Kind.RUN:
                if start or create or state is not None:
                    command += (1, epoch[0], epoch[1], run, place, 1 if start else 0, 1 if create else 0)
                    command += ("" if state is None else state, attempts, added, ttl, len(fields))
                else:
                    command += (4, run, place, added, len(fields))
            elif kind is Kind.OUTSIDE:
                command += (2, "" if state is None else state, added, ttl, len(fields))
            elif kind is Kind.ENQUEUE:
                command += (0, epoch[0], epoch[1], len(fields))
            else:
                command += (3, run, len(fields))
            for item in fields.items():
                command += item
        return command

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

        def read(link: Link) -> list[Any]:
            if measure:
                self._set_clock(link.read())
            return [link.read() for _ in message_ids]

        return [_to_record(reply) for reply in self._connections.call(packed, read)]

    def _set_clock(self, reply: Any) -> None:
        seconds, microseconds = _checked(reply)
        self._clock_offset = int(seconds) * 1000 + int(microseconds) // 1000 - now_ms()
        self._clock_checked = time.monotonic()

    def now(self) -> int:
        """The present moment by the server's clock, as the last reads have seen it."""
        return now_ms() + self._clock_offset

    # Deleting and closing

    def delete(self, message_id: str) -> bool:
        return bool(self._connections.call(pack("DEL", self._prefix + message_id), lambda link: _checked(link.read())))

    def close(self) -> None:
        self._connections.close()


def _outcomes(link: Link, request: bytes) -> list[int]:
    """Read the script's reply; load it where the server does not have it: a new or restarted one."""
    reply = link.read()
    if type(reply) is not list and str(reply).startswith("NOSCRIPT"):
        link.send(pack("SCRIPT", "LOAD", SCRIPT) + request)
        _checked(link.read())
        reply = link.read()
    numbers: list[int] = _checked(reply)
    return numbers


def _checked(reply: Any) -> Any:
    if isinstance(reply, Exception):
        raise redis.ResponseError(str(reply))
    return reply


def _to_record(reply: Any) -> Record | None:
    if not reply or isinstance(reply, Exception):
        # An error: something that is not ours lies under our key.
        return None
    record = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2]))
    return record if is_sound(record) else None
