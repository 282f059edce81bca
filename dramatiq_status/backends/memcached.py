"""The memcached backend: an item a message, rewritten by compare-and-set."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final, TypeVar

from .. import _time as time
from ..backend import StatusBackend, escape_namespace, now_ms
from ..errors import BackendError
from ..outage import logger
from ..record import VERSION, Kind, Outcome, Record, Update, apply, is_finished
from ..snapshot import Snapshot, take_texts
from ._fleet import Fleet, Pool, clients_for, clients_of, hung_up
from ._item import (
    ABSENT,
    Job,
    Known,
    counts_twice,
    expiry_of,
    from_receipt,
    from_value,
    room_in,
    split_value,
    to_receipt,
    to_value,
)
from ._key import HASH_SIZE, HASHED, MAX_KEY_SIZE, key_of
from ._meta import Connection, Login, Stored

#: How many messages are written in one round trip at most, and how many
#: are read.  So many short requests fit into the sockets' buffers:
#: neither side then waits for the other to read first.
WRITES_A_ROUND: Final = 128
READS_A_ROUND: Final = 500

#: How many items, and receipts, a process remembers.
MAX_KNOWN: Final = 1024

#: Of how many messages a process remembers the key and the server:
#: pymemcache's hash takes some 15 microseconds a server.
PLACES_KNOWN: Final = 16_384

#: The largest value that is remembered, in bytes.
MAX_KNOWN_SIZE: Final = 65_536

#: From how many conflicts on an update waits a moment before it is tried again.
PATIENT_CONFLICTS: Final = 3

# An attribute of an Enum takes five times as long as a name.
_STORED: Final = Stored.STORED

T = TypeVar("T")

# Makes something of a message's value, its seconds left and the present moment.
Take = Callable[[str, tuple[bytes, "int | None"], int], "T | None"]


class MemcachedBackend(StatusBackend):
    """Keeps statuses in memcached_ 1.6 or newer, on one server or many.

    The next update of a message by the same process, and the first one of
    its run where the server is 1.6.27 or newer, takes one round trip
    where the server has the meta commands (1.6.10 and newer); an update
    of a message that this process does not know takes two, and so does
    every update without meta commands, by ``gets`` and ``cas``.  Updates of many messages share them.  Somebody
    else's write in between costs two more.  Reading takes one a server,
    for up to 500 messages.

    Memcached is a cache: it may forget a status before its time, when
    its memory is full or when it is restarted.  The next write of the
    running message restores it.

    Moments in a record come from the clock of the host that writes, expiry
    from the server's.

    It opens connections of its own, as many as there are threads that
    talk to memcached at the same time, with `timeout` as their
    time-outs.  They are safe across forks.

    With many servers, each message lives on one of them, by its id, and
    never moves to another.  While some of them are down, their statuses
    read as unknown, those of the others as always; updates of running
    messages are kept and sent when their server is back, and what is
    written or deleted from outside of a worker raises
    :class:`.BackendError`.  A server that has failed is tried again
    after 0.1 seconds at first, later after 2, by whoever needs it.  Each server's outage is logged once when it
    begins and once when it ends.  Where none answers, or the only one
    does not, everything raises :class:`.BackendError`.

    Parameters:
      client(pymemcache.Client): An optional ``Client``, ``PooledClient``
        or ``HashClient``.  If this is passed, `servers` and all connection
        parameters are ignored; it says where and how to connect.
      servers(str | tuple[str, int] | list): ``"host:port"``, a tuple of
        the two, ``"unix:/path"``, or a list of these.
      namespace(str): What all keys start with.
      timeout(int): How long one call may take, in milliseconds.
      max_field_size(int): The largest encoded field, in bytes.
      meta(bool): Whether to use the meta commands where the server has them.
      username(str): With `password`, for servers that run with ``-Y``
        (1.5.15 and newer).  Memcached sends and takes them as they are:
        without TLS, everybody on the way can read them.  The binary
        protocol's SASL (``-S``) cannot be used.
      password(str): Never shown in a log, an error or a ``repr``.
      **parameters: Connection parameters for :class:`pymemcache.Client`,
        ``tls_context`` for one.

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
        hasher, clients = clients_of(client) if client is not None else clients_for(servers, parameters)
        prefix: str = next(iter(clients.values())).key_prefix.decode() + escape_namespace(namespace) + ":"
        if len(prefix) + len(HASHED) + HASH_SIZE > MAX_KEY_SIZE or not prefix.isprintable() or " " in prefix:
            raise ValueError(f"key_prefix and namespace must be short and hold no spaces, not {prefix!r}.")
        self._prefix = prefix
        login = None if username is None and password is None else Login(username, password)
        self._fleet = Fleet(hasher, clients, timeout=self.timeout / 1000, meta=meta, login=login)
        # The key of a message, and the server that has it.
        self._place: Callable[[str], tuple[bytes, Pool]] = lru_cache(PLACES_KNOWN)(self._find_place)
        self._known: OrderedDict[str, Known] = OrderedDict()
        self._receipts: OrderedDict[str, str] = OrderedDict()

    # Writing

    def update(self, message_id: str, update: Update) -> Outcome:
        """Carry out one update; one round trip where this process was the
        last to write to the record.
        """
        outcome = self._rewrite(message_id, update)
        if outcome is None:
            (outcome,), errors = self._attempt(((message_id, update),))
            for error in errors:
                raise error
        return outcome

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        error: Exception | None = None
        if len(updates) == 1:
            try:
                return [self.update(*updates[0])]
            except BackendError as e:
                outcomes, error = [Outcome.UNREACHED], e
        else:
            outcomes, errors = self._attempt(updates)
            for found in errors:
                if isinstance(found, BackendError):
                    error = found
                else:
                    # The others are stored, and must not be sent again because of this one.
                    logger.error("Something of an update is not stored: %s", found)
        if error is not None and not self._fleet.goes_on():
            raise error
        return outcomes

    def begin_update(self, message_id: str, update: Update) -> Callable[[], Outcome]:
        """Send what enqueues a message for the first time; its reply is
        read by what this returns.  Anything else is carried out at once.

        The receipt is there at once where the server takes a cas of our
        own choice (1.6.27 and newer).  Elsewhere there is none: the
        worker then reads before it writes first, on the writer's
        thread, which costs less than waiting for the reply here.
        """
        try:
            complete = self._begin(message_id, update)
        except BackendError:
            if self._fleet.goes_on():
                return lambda: Outcome.UNREACHED
            raise
        if complete is not None:
            return complete
        (outcome,) = self.update_many(((message_id, update),))
        return lambda: outcome

    def _attempt(self, updates: Sequence[tuple[str, Update]]) -> tuple[list[Outcome], list[Exception]]:
        """Carry out updates as far as their servers answer and their items
        have room; tell what happened where they do not.
        """
        jobs: dict[str, Job] = {}
        for index, (message_id, update) in enumerate(updates):
            job = jobs.get(message_id)
            if job is None:
                job = jobs[message_id] = Job(message_id, self._place(message_id)[0])
            job.indexes.append(index)
            job.updates.append(update)
        errors: list[Exception] = []
        for pool, group in self._fleet.by_server(jobs.values(), lambda job: self._place(job.message_id)[1]):
            try:
                for first in range(0, len(group), WRITES_A_ROUND):
                    self._carry_out(pool, group[first : first + WRITES_A_ROUND])
            except BackendError as e:
                errors.append(e)
        outcomes = [Outcome.UNREACHED] * len(updates)
        for job in jobs.values():
            if job.done:
                if job.error is not None:
                    errors.append(job.error)
                for index, outcome in zip(job.indexes, job.outcomes):
                    outcomes[index] = outcome
        return outcomes, errors

    def _begin(self, message_id: str, update: Update) -> Callable[[], Outcome] | None:
        """Send an update that makes a record where there is none; None
        where it is no such update, is too large or could not be sent.
        """
        if update.kind is not Kind.ENQUEUE or update.epoch.number > 1:
            return None
        now = now_ms()
        _, record, ttl = apply(None, update, now)
        assert record is not None and ttl is not None
        expires_at = now + ttl
        (key, pool), value = self._place(message_id), to_value(record, expires_at)

        def send(connection: Connection) -> bool:
            if len(value) > room_in(connection.max_value_size):
                return False
            expiry = expiry_of(expires_at, now)
            if connection.takes_cas:
                # The message is on its way before the server can tell.  What a
                # restarted server, or one that refuses it, has is another number.
                cas = random.getrandbits(63) | 1 << 62
                _put(self._receipts, message_id, to_receipt(record, cas, now, connection.server))
                connection.send(connection.store_new(key, value, expiry, cas))
            else:
                connection.send(connection.store(key, value, expiry, None))
            return True

        begun = pool.begin(send)
        if begun is None:
            return None

        def complete() -> Outcome:
            try:
                stored, _ = begun(Connection.read_stored)
            except BackendError as e:
                if e.__cause__ is None or not hung_up(e.__cause__):
                    if self._fleet.goes_on():
                        return Outcome.UNREACHED
                    raise
            else:
                if stored is Stored.STORED:
                    return Outcome.APPLIED
            # Somebody was quicker, or the server had closed an idle connection.
            return self.update_many(((message_id, update),))[0]

        return complete

    def _rewrite(self, message_id: str, update: Update) -> Outcome | None:
        """Carry out an update of what is remembered, as fast as can be;
        None where there is more to it.
        """
        known = self._known.pop(message_id, None)
        if known is None:
            return None
        key, pool = self._place(message_id)
        again = _never if counts_twice(update) else None
        return pool.call(self._rewrite_by, message_id, key, known, update, again=again)

    def _rewrite_by(
        self, connection: Connection, message_id: str, key: bytes, known: Known, update: Update
    ) -> Outcome | None:
        now = now_ms()
        if not known.serves(update, connection.server, now):
            return None
        outcome, record, ttl = apply(known.record, update, now)
        if record is None or record is known.record:
            # It need not be true of the record as it is now.
            return None
        expires_at = known.expires_at if ttl is None else now + ttl
        value = to_value(record, expires_at)
        if len(value) > room_in(connection.max_value_size):
            return None
        stored, cas = connection.store_now(connection.store(key, value, expiry_of(expires_at, now), known.cas))
        if stored is not _STORED:
            return None
        if cas is not None and len(value) <= MAX_KNOWN_SIZE and not is_finished(record):
            _put(self._known, message_id, Known(record, expires_at, cas, connection.server, now))
        return outcome

    def _carry_out(self, pool: Pool, jobs: list[Job]) -> None:
        """Carry out updates of messages of one server, in rounds: each
        sends what it can for all messages, and then reads all replies.
        """
        deadline = time.monotonic() + self.timeout / 1000

        def rounds(connection: Connection) -> None:
            while True:
                pending = [job for job in jobs if not job.done]
                if not pending:
                    return
                conflicts = max([job.conflicts for job in pending])
                if conflicts >= PATIENT_CONFLICTS:
                    if time.monotonic() > deadline:
                        raise BackendError(f"memcached at {pool.address}: others kept writing to the same status")
                    time.sleep(random.random() * min(0.0002 * 2**conflicts, 0.02))
                self._round(connection, pending)

        def again() -> bool:
            if any(job.sent and any(map(counts_twice, job.updates)) for job in jobs):
                return False
            for job in jobs:
                job.ask()
            return True

        pool.call(rounds, again=again)

    def _round(self, connection: Connection, jobs: list[Job]) -> None:
        now = now_ms()
        stores, gets, requests = [], [], []
        for job in jobs:
            known = job.known or self._guess(job, connection, now)
            value = None if known is None else job.work_out(known, now, connection.max_value_size)
            if known is not None and value is not None:
                stores.append((job, len(value)))
                requests.append(connection.store(job.key, value, expiry_of(job.expires_at, now), known.cas))
                job.sent = True
            elif known is not None and not job.may_guess:
                # It was read just now, and nothing is to be written.
                job.done = True
            else:
                job.ask()
                gets.append(job)
        # Long requests with short replies first: were it the other way
        # round, both sides could wait for the other to read.
        requests += [connection.get(job.key) for job in gets]
        if requests:
            connection.send(b"".join(requests))
        for job, size in stores:
            stored, cas = connection.read_stored()
            job.sent = False
            if stored is Stored.STORED:
                job.done = True
                if job.error is None:
                    after = Known(job.record, job.expires_at, cas, connection.server, now)
                    self._remember(job, after, size)
            elif stored is Stored.GONE:
                job.learn(ABSENT)
            else:
                job.conflicts += 1
                job.ask()
        for job in gets:
            item = connection.read_item()
            job.learn(ABSENT if item is None else Known(*from_value(item.value, item.ttl, now), item.cas))

    def _guess(self, job: Job, connection: Connection, now: int) -> Known | None:
        """What the item of a message holds, as far as can be told without
        reading it.  A wrong guess does no harm: its cas is refused.
        """
        if not job.may_guess:
            return None
        update = job.updates[0]
        known = self._known.pop(job.message_id, None)
        if known is not None and known.serves(update, connection.server, now):
            return known
        if update.kind is Kind.ENQUEUE and update.epoch.number <= 1:
            return ABSENT
        if update.origin is not None:
            return from_receipt(update.origin.enqueue, update.origin.receipt, connection.server)
        return None

    def _remember(self, job: Job, known: Known, size: int) -> None:
        record = known.record
        if known.cas is None or record is None:
            return
        # After an enqueue, the next to write is a worker; after the end, nobody.
        if job.updates[-1].kind is Kind.ENQUEUE:
            if len(job.updates) == 1 and record[VERSION] == "1":
                # What was made of nothing can be made anew of the enqueue alone.
                _put(self._receipts, job.message_id, to_receipt(record, known.cas, known.since, known.server))
        elif size <= MAX_KNOWN_SIZE and not is_finished(record):
            _put(self._known, job.message_id, known)

    def receipt(self, message_id: str) -> str | None:
        return self._receipts.pop(message_id, None)

    # Reading

    def read(self, message_id: str) -> Record | None:
        return self._take(message_id, _record_of)

    def read_many(self, message_ids: Sequence[str]) -> list[Record | None]:
        return self._take_many(message_ids, _record_of)

    def snapshot(self, message_id: str) -> Snapshot | None:
        return self._take(message_id, _snapshot_of)

    def snapshots(self, message_ids: Sequence[str]) -> list[Snapshot | None]:
        return self._take_many(message_ids, _snapshot_of)

    def _take(self, message_id: str, take: Take[T]) -> T | None:
        key, pool = self._place(message_id)
        try:
            value = pool.call(Connection.read_value, key)
        except BackendError:
            if self._fleet.goes_on():
                return None
            raise
        return None if value is None else take(message_id, value, now_ms())

    def _take_many(self, message_ids: Sequence[str], take: Take[T]) -> list[T | None]:
        place, found = self._place, dict[str, T | None]()
        error: BackendError | None = None
        groups = self._fleet.by_server(message_ids, lambda message_id: place(message_id)[1])
        for pool, group in groups:
            try:
                taken = self._take_from(pool, group, take)
            except BackendError as e:
                error = e
                continue
            if len(groups) == 1:
                return taken
            found.update(zip(group, taken))
        if error is not None and not self._fleet.goes_on():
            raise error
        return [found.get(message_id) for message_id in message_ids]

    def _take_from(self, pool: Pool, message_ids: list[str], take: Take[T]) -> list[T | None]:
        place = self._place
        found: list[T | None] = []
        for first in range(0, len(message_ids), READS_A_ROUND):
            ids = message_ids[first : first + READS_A_ROUND]
            values = pool.call(Connection.read_values, [place(message_id)[0] for message_id in ids])
            now = now_ms()
            found += [None if value is None else take(message_id, value, now) for message_id, value in zip(ids, values)]
        return found

    # Deleting and closing

    def delete(self, message_id: str) -> bool:
        self._known.pop(message_id, None)
        self._receipts.pop(message_id, None)
        key, pool = self._place(message_id)
        return pool.call(Connection.delete, key)

    def close(self) -> None:
        self._fleet.close()

    # Keys

    def _find_place(self, message_id: str) -> tuple[bytes, Pool]:
        # The prefix is known to be fit for a key.
        encoded = key_of(self._prefix, message_id).encode()
        return encoded, self._fleet.pool_of(encoded)


def _record_of(message_id: str, value: tuple[bytes, int | None], now: int) -> Record | None:
    return from_value(value[0], value[1], now)[0]


def _snapshot_of(message_id: str, value: tuple[bytes, int | None], now: int) -> Snapshot | None:
    lines, _ = split_value(value[0], value[1], now)
    return None if lines is None else take_texts(message_id, lines[2::2], lines[3::2], now)


def _never() -> bool:
    return False


def _put(mapping: OrderedDict[str, T], key: str, value: T) -> None:
    mapping[key] = value
    if len(mapping) > MAX_KNOWN:
        try:
            mapping.popitem(last=False)
        except KeyError:
            pass
