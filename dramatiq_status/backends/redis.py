"""The Redis backend: a hash a message, a script call for any number of updates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from ..backend import Query, StatusBackend, check_number, escape_namespace
from ..fields import encode_value
from ..record import Kind, Outcome, Record, Update, is_sound, number_text
from ._driver import any_driver
from ._push import RedisSubscription
from ._redis import Connections, Link
from ._script import TIME, Script, ScriptCall, ServerClock, checked

if TYPE_CHECKING:
    import redis

#: redis-py, or valkey-py where only that is installed.
DRIVER: Final = any_driver()

#: The script that mirrors ``record.apply``, and the one that reads its index.
UPDATE: Final = Script.load("redis.lua")
LIST: Final = Script.load("redis_list.lua")

#: How many messages of one state, queue and actor can be listed.
DEFAULT_MAX_LISTED: Final = 100_000

#: How many updates one script call carries at most.  Redis serves
#: nobody else while a script runs; this many take about a millisecond.
UPDATES_A_CALL: Final = 128

#: How many hashes one pipeline reads at most.
READS_A_CALL: Final = 2000

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
      max_listed(int): How many messages of each state, queue and actor
        can be listed and counted, the newest ones.  0 for no index: it takes
        about 110 bytes a message, and some microseconds of the server when a message changes its state.
      **parameters: Connection parameters for :class:`redis.Redis`.

    .. _Redis: https://redis.io
    """

    def __init__(
        self,
        *,
        client: redis.Redis | None = None,
        url: str | None = None,
        namespace: str = "dramatiq-status",
        max_listed: int = DEFAULT_MAX_LISTED,
        **parameters: Any,
    ) -> None:
        own = {name: parameters.pop(name) for name in ("timeout", "max_field_size") if name in parameters}
        super().__init__(namespace=namespace, **own)
        if client is None:
            client = DRIVER.client.from_url(url) if url else DRIVER.client(**parameters)
        self.client = client
        self._prefix = escape_namespace(namespace) + ":"
        #: What the keys of the index start with. No message's key does: the first ":" of those
        #: comes before their first space.
        self._index = escape_namespace(namespace) + " index:"
        self._max_listed = check_number("max_listed", max_listed)
        self._index_arguments = (max_listed, len(self._prefix), self._index if max_listed else "")
        self._connections = Connections(client.connection_pool, self.timeout / 1000)
        self._script = UPDATE
        self._clock = ServerClock()
        #: The present moment that the script is told; by default what we know of the server's clock.
        self._script_now = ""

    def __repr__(self) -> str:
        # Not the client: it may show a password.
        return f"<{type(self).__name__} {self.namespace!r}>"

    why_no_list = "it was made with max_listed=0."

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
        updates = ((message_id, update),)
        request = self._request(updates)
        complete = self._connections.begin(request.packed, request.read, again=_may_repeat(updates))
        return lambda: _OUTCOMES[complete()[0]]

    def _evaluate(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        if not updates:
            return []
        request = self._request(updates)
        numbers = self._connections.call(request.packed, request.read, again=_may_repeat(updates))
        return [_OUTCOMES[number] for number in numbers]

    def _request(self, updates: Sequence[tuple[str, Update]]) -> ScriptCall:
        prefix = self._prefix
        now = self._script_now or self._clock.text()
        keys = [prefix + message_id for message_id, _ in updates]
        return ScriptCall(self._script, keys, self._arguments(updates, now), None if now else self._clock)

    def _arguments(self, updates: Sequence[tuple[str, Update]], now: str) -> list[Any]:
        """What the script is told."""
        arguments: list[Any] = [now]
        moves = False
        for _, (kind, epoch, run, place, start, create, state, attempts, fields, increment, ttl, _) in updates:
            added = number_text(increment) if increment else 0
            if kind is Kind.RUN:
                if start or create or state is not None:
                    moves = True
                    arguments += (1, epoch[0], epoch[1], run, place, 1 if start else 0, 1 if create else 0)
                    arguments += ("" if state is None else state, attempts, added, ttl, len(fields))
                else:
                    arguments += (4, run, place, added, len(fields))
            elif kind is Kind.OUTSIDE:
                if state is None:
                    arguments += (2, added, len(fields))
                else:
                    moves = True
                    arguments += (5, state, added, ttl, len(fields))
            elif kind is Kind.ENQUEUE:
                moves = True
                arguments += (0, epoch[0], epoch[1], len(fields))
            else:
                arguments += (3, run, len(fields))
            for item in fields.items():
                arguments += item
        if moves:
            arguments += (self._clock.moment(), *self._index_arguments)
        return arguments

    # Reading

    def read_many(self, message_ids: Sequence[str]) -> list[Record | None]:
        found: list[Record | None] = []
        for first in range(0, len(message_ids), READS_A_CALL):
            found += self._read(message_ids[first : first + READS_A_CALL])
        return found

    def _read(self, message_ids: Sequence[str]) -> list[Record | None]:
        prefix = self._prefix
        clock = None if self._clock.known else self._clock
        request = []
        for message_id in message_ids:
            key = prefix + message_id
            size = len(key) if key.isascii() else len(key.encode())
            request.append(f"*2\r\n$7\r\nHGETALL\r\n${size}\r\n{key}\r\n")
        packed = "".join(request).encode()

        def read(link: Link) -> list[Any]:
            if clock:
                clock.set(checked(link.read()))
            return link.read_many(len(message_ids))

        return [_to_record(reply) for reply in self._connections.call(TIME + packed if clock else packed, read)]

    def now(self) -> int:
        """The present moment by the server's clock, as the last calls have seen it."""
        return self._clock.now()

    # Listing

    def find(self, query: Query, *, limit: int, offset: int) -> list[tuple[str, Record]]:
        found = [(message_id, _to_record(reply)) for _, message_id, reply in self._list(query, limit, offset)]
        return [(message_id, record) for message_id, record in found if record is not None]

    def count(self, query: Query) -> int:
        number: int = self._list(query, 0, 0)
        return number

    def _list(self, query: Query, limit: int, offset: int) -> Any:
        if not self._max_listed:
            raise self._cannot_list()
        wanted = (
            "" if query.state is None else query.state,
            "" if query.queue_name is None else _quoted(query.queue_name),
            "" if query.actor_name is None else _quoted(query.actor_name),
        )
        request = ScriptCall(LIST, [self._index], [*wanted, offset, limit, self._prefix, 1], None)
        return self._connections.call(request.packed, request.read)

    # Following

    def subscribe(self, message_ids: Sequence[str]) -> RedisSubscription:
        """Begin to hear of changes, over a connection that lasts as long as the subscription."""
        return RedisSubscription(self._connections.fresh(), self._channels(message_ids), self.timeout / 1000)

    def _channels(self, message_ids: Iterable[str]) -> dict[str, str]:
        """The ids by the names of the channels on which the script tells of them."""
        return {self._prefix + message_id: message_id for message_id in message_ids}

    # Deleting and closing

    def delete(self, message_id: str) -> bool:
        request = ScriptCall(UPDATE, [self._prefix + message_id], ["", 6, 0, "", *self._index_arguments], None)
        return _OUTCOMES[self._connections.call(request.packed, request.read)[0]] is Outcome.APPLIED

    def close(self) -> None:
        self._connections.close()


def _may_repeat(updates: Iterable[tuple[str, Update]]) -> bool:
    """Whether updates may be sent again that may have been carried out:
    an increment from outside has nothing that would tell it from its repetition.
    """
    return not any(update.increment and update.kind is Kind.OUTSIDE for _, update in updates)


def _quoted(name: str) -> str:
    return encode_value("name", name, len(name) * 6 + 2)


def _to_record(reply: Any) -> Record | None:
    if not reply or isinstance(reply, Exception):
        # An error: something that is not ours lies under our key.
        return None
    texts = iter(reply)
    record = dict(zip(texts, texts))
    return record if is_sound(record) else None
