"""The memcached backend: an item for each message, rewritten by compare-and-set."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, Final, TypeVar

from ..._log import logger
from ..._time import monotonic
from ...backend import StatusBackend, escape_namespace, now_ms
from ...cancel_log import LOG_TTL, add_to_log, cancelled_by, read_log
from ...decoding import take_texts
from ...errors import BackendError, StoreRefused
from ...record import TRUNCATED, Record, is_finished
from ...snapshot import Snapshot
from ...update import Kind, Outcome, Update, apply
from .._document import by_message, counts_twice, from_value, room_in, split_value, to_value
from .._keys import HASH_SIZE, HASHED, MAX_KEY_SIZE, key_of
from .exchange import Exchange, Steps
from .item import MAX_CACHED, CachedItem, ItemCache, PendingItem, expiry_of, put
from .protocol import Connection, Credentials, StoreReply
from .rounds import Rounds
from .server import Server, has_hung_up
from .servers import Servers, always, nodes_at, nodes_of

#: Maximum number of messages that are read in one round trip.  The buffers of the sockets have room for the
#: requests for this many items, see :data:`.WRITES_PER_ROUND_TRIP`.
READS_PER_ROUND_TRIP: Final = 500

#: Maximum number of messages of which a process caches the key and the server.  Without the cache, pymemcache's hash
#: takes about 15 microseconds for each server.
LOCATIONS_CACHED: Final = 16_384

#: Maximum number of attempts to add marks to the log of cancelled messages.  An attempt fails if another process writes
#: at the same time.
LOG_ATTEMPTS: Final = 16

# Reading an attribute of an Enum takes five times as long as reading a global.
_STORED: Final = StoreReply.STORED

T = TypeVar("T")

#: A function that decodes the value of a message.  Its arguments are the message id, the value with the seconds until
#: it expires, and the current time in epoch milliseconds.
Decode = Callable[[str, tuple[bytes, "int | None"], int], "T | None"]


class MemcachedBackend(StatusBackend):
    """A backend that stores statuses in memcached_ 1.6 or newer, on one server or many.

    An enqueue takes one round trip.  The first update by another process, for example by the worker, takes two, because
    it reads the item.  The next updates by the same process take one each, if the server has the meta commands (1.6.10
    and newer).  If another process has written in between, an update takes two more.  Without meta commands, every
    update except the first enqueue takes two (``gets`` and ``cas``).  The backend does not use meta commands with a
    server that evicts nothing (``-M``).  The updates of many messages share round trips.  Reading takes one round trip
    for each server and for up to 500 messages.

    Memcached is a cache: it may forget a status too early, when its memory is full or when it is restarted.  The next
    write of the running message restores the status.

    The times in a record come from the clock of the host that writes.  Statuses expire by the server's clock.

    The backend makes its own connections, as many as there are threads that call memcached at the same time, with
    `timeout` as their time-outs.  They are safe across forks.

    With several servers, the id of a message determines its server, and a message never moves to another server.  While
    a server is down, reads of its messages raise :class:`.BackendError`, and so do writes and deletes from outside of a
    worker.  Updates of running messages are kept, and sent when the server is back.  After a failure, the backend tries
    the server again: at first after 0.1 seconds, later every 2 seconds.  The log has one line for the beginning of a
    server's outage, and one for its end.  A call sends its requests to all servers at the same time.  It takes at most
    one `timeout` for every 128 updates or 500 reads of a server.

    Many processes may write to one message.  After some conflicts, a process takes a turn: it adds an item with the
    key ``namespace%turn:...``, which lives for at most 2 seconds.

    Parameters:
      client(pymemcache.Client): An optional ``Client``, ``PooledClient`` or ``HashClient``.  The backend takes the
        addresses and connection parameters of this client, and ignores `servers` and `parameters`.
      servers(str | tuple[str, int] | list): ``"host:port"``, a tuple of both, ``"unix:/path"``, or a list of these.
      namespace(str): Prefix of all keys.
      timeout(int): Maximum duration of a call, in milliseconds.
      max_field_size(int): Maximum size of an encoded field, in bytes.
      meta(bool): Whether to use the meta commands if the server has them.
      username(str): Username for servers that are started with ``-Y`` (1.5.15 and newer).  Username and password are
        sent as plain text, so use TLS as well.  SASL (``-S``) is not possible, because it belongs to the binary
        protocol.
      password(str): Password of the user.  It is never part of a log line, an error or a ``repr``.
      **parameters: Connection parameters for :class:`pymemcache.Client`, ``tls_context`` for example.

    .. _memcached: https://memcached.org
    """

    def __init__(
        self,
        *,
        client: Any = None,
        servers: Any = ("127.0.0.1", 11211),
        namespace: str = "dramatiq-status",
        meta: bool = True,
        username: str | None = None,
        password: str | None = None,
        **parameters: Any,
    ) -> None:
        own = {name: parameters.pop(name) for name in ("timeout", "max_field_size") if name in parameters}
        super().__init__(namespace=namespace, **own)
        hasher, clients = nodes_of(client) if client is not None else nodes_at(servers, parameters)
        prefix: str = next(iter(clients.values())).key_prefix.decode() + escape_namespace(namespace) + ":"
        if len(prefix) + len(HASHED) + HASH_SIZE > MAX_KEY_SIZE or not prefix.isprintable() or " " in prefix:
            raise ValueError(f"key_prefix and namespace must be short and hold no spaces, not {prefix!r}.")
        self._prefix = prefix
        login = None if username is None and password is None else Credentials(username, password)
        self._servers = Servers(hasher, clients, timeout=self.timeout / 1000, meta=meta, login=login)
        # Returns the key of a message, and the server of that key.
        self._locate: Callable[[str], tuple[bytes, Server]] = lru_cache(LOCATIONS_CACHED)(self._find_location)
        self._items = ItemCache()
        # In the key of a message, ":" comes directly behind the namespace.
        self._log_key: bytes = f"{prefix[:-1]}%cancels".encode()
        self._rounds = Rounds(self._items, prefix[:-1] + "%turn:")
        # Ids of messages for which `_log` has logged an error.
        self._logged: OrderedDict[str, bool] = OrderedDict()

    # Writing

    def update(self, message_id: str, update: Update) -> Outcome:
        """Carry out one update.  It takes one round trip if this process has cached the item of the message, and no
        other writer has changed the item since.
        """
        outcome = self._update_cached(message_id, update)
        if outcome is None:
            whole = update.kind is Kind.OUTSIDE
            (outcome,), failures, problems = self._update_all(((message_id, update),), whole=whole)
            for error in (*failures, *problems.values()):
                raise error
        self._log_cancels(((message_id, update),), [outcome])
        return outcome

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        deadline = monotonic() + self.timeout / 1000
        try:
            outcome = self._update_cached(*updates[0]) if len(updates) == 1 else None
        except BackendError as e:
            return self._unavailable(1, e, deadline)
        if outcome is not None:
            self._log_cancels(updates, [outcome])
            return [outcome]
        outcomes, failures, problems = self._update_all(updates)
        self._log_cancels(updates, outcomes)
        refusals = [problem for problem in problems.values() if isinstance(problem, StoreRefused)]
        if refusals and not failures and all(outcome is Outcome.UNSTORABLE for outcome in outcomes):
            raise refusals[0]
        for message_id, problem in problems.items():
            if not isinstance(problem, StoreRefused):
                self._log(message_id, problem)
        if failures and all(outcome is Outcome.UNAVAILABLE for outcome in outcomes):
            return self._unavailable(len(outcomes), failures[0], deadline)
        return outcomes

    def _log_cancels(self, updates: Sequence[tuple[str, Update]], outcomes: Sequence[Outcome]) -> None:
        """Add messages to the log of cancelled messages, in two round trips or more."""
        cancelled = cancelled_by(updates, outcomes)
        if not cancelled:
            return
        server = self._servers.server_of(self._log_key)
        try:
            for _ in range(LOG_ATTEMPTS):
                if server.call(self._log_over, cancelled, may_repeat=always):
                    break
        except BackendError as e:
            # The messages are cancelled.  Without the log, workers find the requests to cancel in the outcomes of the
            # starts of runs and of heartbeats.
            logger.info("The log of cancelled messages was not written, so workers stop messages late: %s", e)

    def _log_over(self, connection: Connection, message_ids: list[str]) -> bool:
        """Add messages to the log, and return whether no other process has written to it at the same time."""
        connection.send(connection.get(self._log_key))
        found = connection.read_item()
        value = add_to_log(None if found is None else found.value, message_ids).encode()
        expiry = LOG_TTL // 1000
        cas = None if found is None else found.cas
        stored, _ = connection.store_now(connection.store(self._log_key, value, expiry, cas))
        return stored in (StoreReply.STORED, StoreReply.REFUSED)

    def read_cancels(self, position: Any) -> tuple[int, list[int]]:
        found = self._servers.server_of(self._log_key).call(Connection.read_value, self._log_key)
        return read_log(None if found is None else found[0], position or 0)

    def _unavailable(self, count: int, error: BackendError, deadline: float) -> list[Outcome]:
        """Return the outcomes of updates to which their server has not replied.  Raise the error if no other server
        answers.
        """
        if not self._servers.has_answer(deadline):
            raise error
        return [Outcome.UNAVAILABLE] * count

    def _log(self, message_id: str, problem: Exception) -> None:
        """Log once for each message that a value is not stored."""
        if message_id not in self._logged:
            logger.error("An update is not stored, or not completely: %s", problem)
        put(self._logged, message_id, True, MAX_CACHED)

    def begin_update(self, message_id: str, update: Update) -> Callable[[], Outcome]:
        """Send the first enqueue of a message; the returned function reads the reply.  Other updates are carried out
        before this method returns.
        """
        deadline = monotonic() + self.timeout / 1000
        try:
            complete = self._begin_enqueue(message_id, update)
        except BackendError as e:
            (outcome,) = self._unavailable(1, e, deadline)
            return lambda: outcome
        if complete is not None:
            return complete
        (outcome,) = self.update_many(((message_id, update),))
        return lambda: outcome

    def _update_all(
        self, updates: Sequence[tuple[str, Update]], *, whole: bool = False
    ) -> tuple[list[Outcome], list[BackendError], dict[str, Exception]]:
        """Carry out updates, as far as their servers answer and their items have room.

        Parameters:
          updates(Sequence[tuple[str, Update]])
          whole(bool): Whether an update is stored with all its fields or not at all.

        Returns:
          tuple: The outcomes, the errors of the servers that have failed, and the problems of single messages.
        """

        def make(message_id: str) -> PendingItem:
            return PendingItem(message_id, self._locate(message_id)[0], whole=whole)

        documents = by_message(updates, make)
        groups = self._servers.group(documents, lambda document: self._locate(document.message_id)[1])
        errors = self._servers.run([self._exchange_of(server, group) for server, group in groups])
        outcomes = [Outcome.UNAVAILABLE] * len(updates)
        problems: dict[str, Exception] = {}
        for document in documents:
            if document.done:
                if document.error is not None:
                    problems[document.message_id] = document.error
                for index, outcome in zip(document.indexes, document.outcomes):
                    outcomes[index] = outcome
        return outcomes, [error for error in errors if error is not None], problems

    def _exchange_of(self, server: Server, documents: list[PendingItem]) -> Exchange:
        """Make the exchange that carries out updates of the messages of a server."""

        def may_repeat() -> bool:
            if any(document.sent and any(map(counts_twice, document.updates)) for document in documents):
                return False
            for document in documents:
                document.reread()
            return True

        return Exchange(server, lambda connection: self._rounds.carry_out(connection, documents), may_repeat)

    def _begin_enqueue(self, message_id: str, update: Update) -> Callable[[], Outcome] | None:
        """Send the first enqueue of a message.  Return None, without sending anything, if the update is of another kind
        or too large, or if the server has closed the connection.
        """
        if update.kind is not Kind.ENQUEUE or update.enqueue_id.generation > 1:
            return None
        now = now_ms()
        _, record, ttl = apply(None, update, now)
        assert record is not None and ttl is not None
        expires_at = now + ttl
        (key, server), value = self._locate(message_id), to_value(record, expires_at)

        def send(connection: Connection) -> bool:
            if len(value) > room_in(connection.max_value_size):
                return False
            connection.send(connection.store(key, value, expiry_of(expires_at, now), None))
            return True

        read = server.begin(send)
        if read is None:
            return None

        def complete() -> Outcome:
            try:
                stored, _ = read(Connection.read_stored)
            except BackendError as e:
                if e.__cause__ is None or not has_hung_up(e.__cause__):
                    # A second attempt would exceed the time-out of this call, and may end in the same error.
                    return self._unavailable(1, e, monotonic())[0]
            else:
                if stored is _STORED:
                    return Outcome.APPLIED
            # The message has a record already, or the server had closed an idle connection.
            return self.update_many(((message_id, update),))[0]

        return complete

    def _update_cached(self, message_id: str, update: Update) -> Outcome | None:
        """Carry out an update of a cached item in one round trip; return None if this is not possible."""
        item = self._items.take(message_id)
        if item is None:
            return None
        key, server = self._locate(message_id)
        may_repeat = _never if counts_twice(update) else None
        return server.call(self._update_over, message_id, key, item, update, may_repeat=may_repeat)

    def _update_over(
        self, connection: Connection, message_id: str, key: bytes, item: CachedItem, update: Update
    ) -> Outcome | None:
        now = now_ms()
        if not item.serves(update, connection.server, now):
            return None
        outcome, record, ttl = apply(item.record, update, now)
        if record is None or record is item.record or TRUNCATED in record:
            # The cached record may be out of date, or there is a list of dropped fields to update.
            return None
        expires_at = item.expires_at if ttl is None else now + ttl
        value = to_value(record, expires_at)
        if len(value) > room_in(connection.max_value_size):
            return None
        stored, cas = connection.store_now(connection.store(key, value, expiry_of(expires_at, now), item.cas))
        if stored is not _STORED:
            return None
        if cas is not None and not is_finished(record):
            self._items.put(message_id, CachedItem(record, expires_at, cas, connection.server, now), len(value))
        return outcome

    # Reading

    def read(self, message_id: str) -> Record | None:
        return self._read(message_id, _record_of)

    def read_many(self, message_ids: Sequence[str]) -> list[Record | BackendError | None]:
        return self._read_all(message_ids, _record_of)

    def snapshot(self, message_id: str) -> Snapshot | None:
        return self._read(message_id, _snapshot_of)

    def snapshots(self, message_ids: Sequence[str]) -> list[Snapshot | BackendError | None]:
        return self._read_all(message_ids, _snapshot_of)

    def _read(self, message_id: str, decode: Decode[T]) -> T | None:
        key, server = self._locate(message_id)
        value = server.call(Connection.read_value, key)
        return None if value is None else decode(message_id, value, now_ms())

    def _read_all(self, message_ids: Sequence[str], decode: Decode[T]) -> list[T | BackendError | None]:
        locate, found = self._locate, dict[str, T | BackendError | None]()
        groups = self._servers.group(message_ids, lambda message_id: locate(message_id)[1])
        if not groups:
            return []
        errors = self._servers.run(
            [
                Exchange(server, partial(self._read_over, ids=ids, decode=decode, found=found), always)
                for server, ids in groups
            ]
        )
        for (_, ids), error in zip(groups, errors):
            if error is not None:
                if all(errors):
                    raise error
                found.update(dict.fromkeys(ids, error))
        return [found[message_id] for message_id in message_ids]

    def _read_over(
        self, connection: Connection, ids: list[str], decode: Decode[T], found: dict[str, T | BackendError | None]
    ) -> Steps:
        locate = self._locate
        for first in range(0, len(ids), READS_PER_ROUND_TRIP):
            if first:
                connection.renew()
            some = ids[first : first + READS_PER_ROUND_TRIP]
            connection.request_values([locate(message_id)[0] for message_id in some])
            yield None
            values, now = connection.read_values(len(some)), now_ms()
            for message_id, value in zip(some, values):
                found[message_id] = None if value is None else decode(message_id, value, now)

    # Deleting and closing

    def delete(self, message_id: str) -> bool:
        self._items.take(message_id)
        key, server = self._locate(message_id)
        return server.call(Connection.delete, key)

    def close(self) -> None:
        self._servers.close()

    # Keys

    def _find_location(self, message_id: str) -> tuple[bytes, Server]:
        key = key_of(self._prefix, message_id).encode()
        return key, self._servers.server_of(key)


def _record_of(message_id: str, value: tuple[bytes, int | None], now: int) -> Record | None:
    return from_value(value[0], value[1], now)[0]


def _snapshot_of(message_id: str, value: tuple[bytes, int | None], now: int) -> Snapshot | None:
    lines, _ = split_value(value[0], value[1], now)
    return None if lines is None else take_texts(message_id, lines[2::2], lines[3::2], now)


def _never() -> bool:
    return False
