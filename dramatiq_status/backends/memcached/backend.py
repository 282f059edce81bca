"""The memcached backend: an item a message, rewritten by compare-and-set."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from hashlib import sha256
from typing import Any, Final, TypeVar

from ..._time import monotonic
from ...backend import StatusBackend, escape_namespace, now_ms
from ...decoding import take_texts
from ...errors import BackendError
from ...outage import logger
from ...record import TRUNCATED, Record, is_finished
from ...snapshot import Snapshot
from ...update import Kind, Outcome, Update, apply
from .._document import (
    ABSENT,
    Job,
    Known,
    counts_twice,
    expiry_of,
    from_value,
    room_in,
    split_value,
    to_value,
)
from .._keys import HASH_SIZE, HASHED, MAX_KEY_SIZE, key_of
from .protocol import Connection, Login, Stored
from .servers import Fleet, Pool, Steps, Talk, clients_for, clients_of, hung_up

#: How many messages are written in one round trip at most, and how many
#: are read.  So many short requests fit into the sockets' buffers:
#: neither side then waits for the other to read first.
WRITES_A_ROUND: Final = 128
READS_A_ROUND: Final = 500

#: How many items a process remembers.
MAX_KNOWN: Final = 1024

#: Of how many messages a process remembers the key and the server:
#: pymemcache's hash takes some 15 microseconds a server.
PLACES_KNOWN: Final = 16_384

#: The largest value that is remembered, in bytes; of larger ones, a process remembers a few.
MAX_KNOWN_SIZE: Final = 65_536
MAX_LARGE_KNOWN: Final = 16

#: Compare-and-set conflicts after which an update takes a turn before it reads again.
PATIENT_CONFLICTS: Final = 3

#: Seconds that an update leaves a contended item to a writer that has cached it.  The cache saves
#: that writer a round trip for each update, and each turn costs all writers some.
TURN_AFTER: Final = 0.01

#: Seconds between two attempts to take a turn, at first and after :data:`TURN_AGE` seconds.  Updates
#: that have waited longest try most often.
TURN_INTERVAL: Final = 0.004
SHORT_TURN_INTERVAL: Final = 0.0005
TURN_AGE: Final = 0.1

#: Seconds after which the server ends the turn of a writer that was killed.
TURN_TTL: Final = 2

#: Seconds for which a process expects an item to be contended still.
CONTENDED_FOR: Final = 0.2

#: Part of a call's time after which updates are given up that have found nothing but conflicts: alone in
#: their call, and where others wait for its end.
CONTENTION: Final = 0.8
CONTENTION_BESIDE_OTHERS: Final = 0.3

# An attribute of an Enum takes five times as long as a name.
_STORED: Final = Stored.STORED

T = TypeVar("T")

# Makes something of a message's value, its seconds left and the present moment.
Take = Callable[[str, tuple[bytes, "int | None"], int], "T | None"]


class MemcachedBackend(StatusBackend):
    """Keeps statuses in memcached_ 1.6 or newer, on one server or many.

    The next update of a message by the same process takes one round trip
    where the server has the meta commands (1.6.10 and newer); an update
    of a message that this process does not know takes two, and so does
    every update without meta commands, by ``gets`` and ``cas``.  A server that
    evicts nothing (``-M``) gets no meta commands.  Updates of many messages share round trips.  A
    write of another process in between costs two more.  Reading takes one a server,
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
    never moves to another.  While some of them are down, reads of their
    messages raise :class:`.BackendError`, as does what is written or deleted
    from outside of a worker; updates of running messages are kept and
    sent when their server is back.  The calls of a process try a server
    that has failed again after 0.1 seconds at first, later after 2.
    The log has one line for the beginning of a server's outage and one for its end.
    A call goes to all its servers at the same time and takes one `timeout`,
    for 128 updates or 500 reads a server.

    Many processes may write to one message.  After some conflicts a
    process takes a turn: it adds an item ``namespace%turn:...``, which lives for 2
    seconds at most.

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
        # Messages for which the log has a line about values that are not stored.
        self._told: OrderedDict[str, bool] = OrderedDict()
        self._large: OrderedDict[str, Known] = OrderedDict()
        # Messages that others write to at the same time, and until when that is expected, by the monotonic clock.
        self._contended: OrderedDict[str, float] = OrderedDict()

    # Writing

    def update(self, message_id: str, update: Update) -> Outcome:
        """Carry out one update; one round trip where this process was the
        last to write to the record.
        """
        outcome = self._rewrite(message_id, update)
        if outcome is None:
            whole = update.kind is Kind.OUTSIDE
            (outcome,), failures, troubles = self._attempt(((message_id, update),), whole=whole)
            for error in (*failures, *troubles.values()):
                raise error
        return outcome

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        deadline = monotonic() + self.timeout / 1000
        try:
            outcome = self._rewrite(*updates[0]) if len(updates) == 1 else None
        except BackendError as e:
            return self._unavailable(1, e, deadline)
        if outcome is not None:
            return [outcome]
        outcomes, failures, troubles = self._attempt(updates)
        for message_id, trouble in troubles.items():
            self._tell(message_id, trouble)
        if failures and all(outcome is Outcome.UNAVAILABLE for outcome in outcomes):
            return self._unavailable(len(outcomes), failures[0], deadline)
        return outcomes

    def _unavailable(self, count: int, error: BackendError, deadline: float) -> list[Outcome]:
        """Raise an error where nothing is stored, unless another one of several servers answers."""
        if not self._fleet.goes_on(deadline):
            raise error
        return [Outcome.UNAVAILABLE] * count

    def _tell(self, message_id: str, trouble: Exception) -> None:
        """Log once for each message that a value is not stored."""
        if message_id not in self._told:
            logger.error("Something of an update is not stored: %s", trouble)
        _put(self._told, message_id, True)

    def begin_update(self, message_id: str, update: Update) -> Callable[[], Outcome]:
        """Send what enqueues a message for the first time; its reply is
        read by what this returns.  Anything else is carried out at once.
        """
        deadline = monotonic() + self.timeout / 1000
        try:
            complete = self._begin(message_id, update)
        except BackendError as e:
            (outcome,) = self._unavailable(1, e, deadline)
            return lambda: outcome
        if complete is not None:
            return complete
        (outcome,) = self.update_many(((message_id, update),))
        return lambda: outcome

    def _attempt(
        self, updates: Sequence[tuple[str, Update]], *, whole: bool = False
    ) -> tuple[list[Outcome], list[BackendError], dict[str, Exception]]:
        """Carry out updates as far as their servers answer and their items have room.

        Returns:
          tuple: What became of each, what the servers raised that do not answer, and the
          trouble of single messages.
        """
        jobs: dict[str, Job] = {}
        for index, (message_id, update) in enumerate(updates):
            job = jobs.get(message_id)
            if job is None:
                job = jobs[message_id] = Job(message_id, self._place(message_id)[0], whole=whole)
            job.indexes.append(index)
            job.updates.append(update)
        groups = self._fleet.by_server(jobs.values(), lambda job: self._place(job.message_id)[1])
        errors = self._fleet.talk([self._talk_of(pool, group) for pool, group in groups])
        outcomes = [Outcome.UNAVAILABLE] * len(updates)
        troubles: dict[str, Exception] = {}
        for job in jobs.values():
            if job.done:
                if job.error is not None:
                    troubles[job.message_id] = job.error
                for index, outcome in zip(job.indexes, job.outcomes):
                    outcomes[index] = outcome
        return outcomes, [error for error in errors if error is not None], troubles

    def _talk_of(self, pool: Pool, jobs: list[Job]) -> tuple[Pool, Talk, Callable[[], bool]]:
        """Make the exchange with a server that carries out updates of its messages."""

        def again() -> bool:
            if any(job.sent and any(map(counts_twice, job.updates)) for job in jobs):
                return False
            for job in jobs:
                job.ask()
            return True

        return pool, lambda connection: self._carry_out(connection, jobs), again

    def _begin(self, message_id: str, update: Update) -> Callable[[], Outcome] | None:
        """Send an update that makes a record where there is none; None
        where it is no such update, is too large or could not be sent.
        """
        if update.kind is not Kind.ENQUEUE or update.enqueue_id.generation > 1:
            return None
        now = now_ms()
        _, record, ttl = apply(None, update, now)
        assert record is not None and ttl is not None
        expires_at = now + ttl
        (key, pool), value = self._place(message_id), to_value(record, expires_at)

        def send(connection: Connection) -> bool:
            if len(value) > room_in(connection.max_value_size):
                return False
            connection.send(connection.store(key, value, expiry_of(expires_at, now), None))
            return True

        begun = pool.begin(send)
        if begun is None:
            return None

        def complete() -> Outcome:
            try:
                stored, _ = begun(Connection.read_stored)
            except BackendError as e:
                if e.__cause__ is None or not hung_up(e.__cause__):
                    # The time of this call is over.
                    return self._unavailable(1, e, monotonic())[0]
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
        known = self._recall(message_id)
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
        if record is None or record is known.record or TRUNCATED in record:
            # The update was made for another record than the present one, or there is a list of dropped fields to keep.
            return None
        expires_at = known.expires_at if ttl is None else now + ttl
        value = to_value(record, expires_at)
        if len(value) > room_in(connection.max_value_size):
            return None
        stored, cas = connection.store_now(connection.store(key, value, expiry_of(expires_at, now), known.cas))
        if stored is not _STORED:
            return None
        if cas is not None and not is_finished(record):
            self._keep(message_id, Known(record, expires_at, cas, connection.server, now), len(value))
        return outcome

    def _carry_out(self, connection: Connection, jobs: list[Job]) -> Steps:
        """Carry out updates of messages of one server, in rounds: each
        sends what it can for all messages, and then reads all replies.
        """
        jobs = [job for job in jobs if not job.done]
        now = monotonic()
        # An attempt that is certain to fail is not made.
        contended = [job for job in jobs if self._is_contended(job.message_id, now)] if self._contended else []
        others = [job for job in jobs if job not in contended] if contended else jobs
        for first in range(0, len(others), WRITES_A_ROUND):
            if first:
                connection.renew()
            active = others[first : first + WRITES_A_ROUND]
            while active:
                yield from self._round(connection, active)
                # The others do not wait for messages that another process keeps writing to.
                contended += [job for job in active if job.conflicts >= PATIENT_CONFLICTS and not job.done]
                active = [job for job in active if not job.done and job.conflicts < PATIENT_CONFLICTS]
        if contended:
            patience = CONTENTION if len(jobs) == 1 else CONTENTION_BESIDE_OTHERS
            yield from self._contend(connection, contended, patience * connection.timeout)

    def _is_contended(self, message_id: str, now: float) -> bool:
        known = message_id in self._known or message_id in self._large
        return not known and self._contended.get(message_id, 0.0) > now

    def _contend(self, connection: Connection, jobs: list[Job], patience: float) -> Steps:
        """Carry out updates of messages that others keep writing to.

        A writer that has cached an item is always faster than one that reads it
        first, and of many that read, all but one have done so for nothing.  So an
        update takes a turn, one process at a time.  It then changes the cas
        before it reads: the fast writer has to read, too, and waits for a turn of its own.
        """
        began = monotonic()
        give_up_at = began + patience
        for job in jobs:
            # Without meta commands, all writers read first.
            job.retry_at = began + (random.uniform(0.5, 1.0) * TURN_AFTER if connection.meta else 0.0)
            # Another process may have been killed in the middle of its turn.
            job.turn_until = began + patience / 2
        while jobs:
            now = monotonic()
            ready = [job for job in jobs if job.known is not None or job.retry_at <= now]
            if now > give_up_at and not any(job.known is not None for job in ready):
                break
            if not ready:
                # Only before it reads: what was read is soon out of date.
                yield min(job.retry_at for job in jobs)
                continue
            yield from self._take_turns(connection, [job for job in ready if job.needs_turn(now)], now - began)
            ready = [job for job in ready if not job.needs_turn(now)]
            if ready:
                yield from self._round(connection, ready[:WRITES_A_ROUND])
            self._end_turns(connection, [job for job in jobs if job.done])
            jobs = [job for job in jobs if not job.done]
        for job in jobs:
            said = f"Others kept writing to the status of message {job.message_id!r}."
            job.fail(Outcome.UNAVAILABLE, BackendError(said))
        self._end_turns(connection, jobs)

    def _take_turns(self, connection: Connection, jobs: list[Job], waited: float) -> Steps:
        if not jobs:
            return
        connection.send(b"".join([b"add %b 0 %d 0\r\n\r\n" % (self._turn_of(job), TURN_TTL) for job in jobs]))
        yield None
        interval = max(TURN_INTERVAL * (1 - waited / TURN_AGE), SHORT_TURN_INTERVAL)
        for job in jobs:
            job.has_turn = connection.read_stored()[0] is _STORED
            if not job.has_turn:
                job.retry_at = monotonic() + random.uniform(0.5, 1.5) * interval

    def _end_turns(self, connection: Connection, jobs: list[Job]) -> None:
        for job in jobs:
            _put(self._contended, job.message_id, monotonic() + CONTENDED_FOR)
        turns = [job for job in jobs if job.has_turn]
        if turns:
            connection.send(b"".join([b"delete %b noreply\r\n" % self._turn_of(job) for job in turns]))

    def _turn_of(self, job: Job) -> bytes:
        # No key of a message has this sign behind its namespace.
        return f"{self._prefix[:-1]}%turn:{sha256(job.key).hexdigest()[:16]}".encode()

    def _round(self, connection: Connection, jobs: list[Job]) -> Steps:
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
        touched = [job.conflicts >= PATIENT_CONFLICTS or job.has_turn for job in gets]
        for job, touch in zip(gets, touched):
            requests.append((connection.touch(job.key) if touch else b"") + connection.get(job.key))
        if requests:
            connection.send(b"".join(requests))
            yield None
        for job, size in stores:
            self._learn_stored(connection, job, size, now)
        for job, touch in zip(gets, touched):
            if touch:
                connection.read_touched()
            item = connection.read_item()
            job.learn(ABSENT if item is None else Known(*from_value(item.value, item.ttl, now), item.cas))

    def _learn_stored(self, connection: Connection, job: Job, size: int, now: int) -> None:
        """Read what became of a value that was sent."""
        stored, cas = connection.read_stored()
        job.sent = False
        if stored is _STORED:
            job.done = True
            if job.error is None:
                self._remember(job, Known(job.record, job.expires_at, cas, connection.server, now), size)
        elif stored is Stored.GONE:
            job.learn(ABSENT)
        elif stored is Stored.REFUSED:
            if job.refused or job.whole:
                said = f"The server has no memory for the status of message {job.message_id!r}, {size} bytes."
                job.fail(Outcome.REFUSED, BackendError(said))
            # A smaller one may find room.
            job.refused = True
            job.ask()
        else:
            job.conflicts += 1
            job.ask()

    def _guess(self, job: Job, connection: Connection, now: int) -> Known | None:
        """What the item of a message holds, as far as can be told without
        reading it.  A wrong guess does no harm: its cas is refused.
        """
        if not job.may_guess:
            return None
        update = job.updates[0]
        known = self._recall(job.message_id)
        if known is not None and known.serves(update, connection.server, now):
            return known
        if update.kind is Kind.ENQUEUE and update.enqueue_id.generation <= 1:
            return ABSENT
        return None

    def _remember(self, job: Job, known: Known, size: int) -> None:
        # After an enqueue, the next to write is a worker; after the end, nobody.
        if known.cas is None or known.record is None or job.updates[-1].kind is Kind.ENQUEUE:
            return
        if not is_finished(known.record):
            self._keep(job.message_id, known, size)

    def _keep(self, message_id: str, known: Known, size: int) -> None:
        """Remember what an item holds."""
        if size <= MAX_KNOWN_SIZE:
            _put(self._known, message_id, known)
        else:
            _put(self._large, message_id, known, MAX_LARGE_KNOWN)

    def _recall(self, message_id: str) -> Known | None:
        """Take what is remembered of an item: after a write by it, or by another process, it is out of date."""
        known = self._known.pop(message_id, None)
        return self._large.pop(message_id, None) if known is None and self._large else known

    # Reading

    def read(self, message_id: str) -> Record | None:
        return self._take(message_id, _record_of)

    def read_many(self, message_ids: Sequence[str]) -> list[Record | BackendError | None]:
        return self._take_many(message_ids, _record_of)

    def snapshot(self, message_id: str) -> Snapshot | None:
        return self._take(message_id, _snapshot_of)

    def snapshots(self, message_ids: Sequence[str]) -> list[Snapshot | BackendError | None]:
        return self._take_many(message_ids, _snapshot_of)

    def _take(self, message_id: str, take: Take[T]) -> T | None:
        key, pool = self._place(message_id)
        value = pool.call(Connection.read_value, key)
        return None if value is None else take(message_id, value, now_ms())

    def _take_many(self, message_ids: Sequence[str], take: Take[T]) -> list[T | BackendError | None]:
        place, found = self._place, dict[str, T | BackendError | None]()
        groups = self._fleet.by_server(message_ids, lambda message_id: place(message_id)[1])
        if not groups:
            return []
        errors = self._fleet.talk(
            [(pool, partial(self._take_from, ids=ids, take=take, found=found), _always) for pool, ids in groups]
        )
        for (_, ids), error in zip(groups, errors):
            if error is not None:
                if all(errors):
                    raise error
                found.update(dict.fromkeys(ids, error))
        return [found[message_id] for message_id in message_ids]

    def _take_from(
        self, connection: Connection, ids: list[str], take: Take[T], found: dict[str, T | BackendError | None]
    ) -> Steps:
        place = self._place
        for first in range(0, len(ids), READS_A_ROUND):
            if first:
                connection.renew()
            some = ids[first : first + READS_A_ROUND]
            connection.ask_values([place(message_id)[0] for message_id in some])
            yield None
            values, now = connection.read_values(len(some)), now_ms()
            for message_id, value in zip(some, values):
                found[message_id] = None if value is None else take(message_id, value, now)

    # Deleting and closing

    def delete(self, message_id: str) -> bool:
        self._recall(message_id)
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


def _always() -> bool:
    return True


def _put(mapping: OrderedDict[str, T], key: str, value: T, most: int | None = None) -> None:
    mapping[key] = value
    if len(mapping) > (MAX_KNOWN if most is None else most):
        try:
            mapping.popitem(last=False)
        except KeyError:
            pass
