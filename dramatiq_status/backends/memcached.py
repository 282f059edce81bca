"""The memcached backend: an item a message, rewritten by compare-and-set."""

from __future__ import annotations

import copy
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final, NamedTuple, TypeVar

from pymemcache.client.base import Client, PooledClient, normalize_server_spec
from pymemcache.client.hash import HashClient
from pymemcache.client.rendezvous import RendezvousHash
from pymemcache.exceptions import MemcacheError

from ..backend import StatusBackend, now_ms
from ..errors import BackendError
from ..record import (
    ARGS,
    EXCEPTION,
    KWARGS,
    RESULT,
    TRACEBACK,
    USER_PREFIX,
    Applied,
    Kind,
    Outcome,
    Record,
    Update,
    apply,
    from_document,
    is_finished,
    to_document,
)
from ._meta import Connection, Item, Pool, Stored

#: How many messages are written in one round trip at most, and how many
#: are read.  So many short requests fit into the sockets' buffers:
#: neither side then waits for the other to read first.
WRITES_A_ROUND: Final = 128
READS_A_ROUND: Final = 500

#: How many items, and receipts, a process remembers.
MAX_KNOWN: Final = 1024

#: The largest value that is remembered, in bytes.
MAX_KNOWN_SIZE: Final = 65_536

#: For how long a writer that is not a message's run believes that
#: nobody else has written since, in milliseconds: a wrong guess costs
#: it a third round trip, a right one saves it the first of two.
OUTSIDE_TRUST: Final = 1000

#: From how many conflicts on an update waits a moment before the next try.
PATIENT_CONFLICTS: Final = 3

#: The part of an item that is kept free for what the library itself has
#: to store, in bytes, and the longest field that it may hold.
RESERVED_SIZE: Final = 4096
SHORT_FIELD: Final = 512

#: The most seconds that memcached takes for a span; a larger number is
#: a date to it, which is good until 2038.
MAX_SPAN: Final = 2_592_000
MAX_DATE: Final = 2**31 - 1

MAX_KEY_SIZE: Final = 250
_HASHED: Final = "#"

_NAMES: Final = {ARGS: "args", KWARGS: "kwargs", TRACEBACK: "traceback", RESULT: "result", EXCEPTION: "exception"}

T = TypeVar("T")


class MemcachedBackend(StatusBackend):
    """Keeps statuses in memcached_ 1.6 or newer, on one server or many.

    An update by the run of a message, or the next one by the same
    process, takes one round trip where the server has the meta commands
    (1.6.10 and newer); an update of a message that this process does not
    know takes two, and so does every update without meta commands, by
    ``gets`` and ``cas``.  Updates of many messages share them.  Somebody
    else's write in between costs two more.  Reading takes one a server,
    for up to 500 messages.

    Memcached is a cache: it may forget a status before its time, when
    its memory is full or when it is restarted.  The next write of the
    running message restores it.

    Moments in a record come from the clock of the host that writes, expiry
    from the server's.

    It opens connections of its own, as many as there are threads that
    talk to memcached at the same time, with `timeout` as their
    time-outs.  They are safe across forks.  With many servers, each
    message lives on one of them; while that is down its statuses cannot
    be read or written, rather than live on another for a while.

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
        **parameters: Any,
    ) -> None:
        own = {name: parameters.pop(name) for name in ("timeout", "max_field_size") if name in parameters}
        super().__init__(namespace=namespace, **own)
        hasher, clients = _clients_of(client) if client is not None else _clients_for(servers, parameters)
        prefix = next(iter(clients.values())).key_prefix.decode("ascii") + namespace + ":"
        if len(prefix) + len(_HASHED) + 64 > MAX_KEY_SIZE or not prefix.isprintable() or " " in prefix:
            raise ValueError(f"key_prefix and namespace must be short and hold no spaces, not {prefix!r}.")
        self._prefix = prefix
        self._pools = {
            node: Pool(client, timeout=self.timeout / 1000, meta=meta) for node, client in clients.items()
        }
        self._only_pool = next(iter(self._pools.values())) if len(self._pools) == 1 else None
        # pymemcache's hash takes some 15 microseconds a server.
        self._node_of: Callable[[str], Any] = lru_cache(4096)(hasher.get_node)
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._receipts: OrderedDict[str, str] = OrderedDict()

    # Writing

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        jobs: dict[str, _Job] = {}
        for index, (message_id, update) in enumerate(updates):
            job = jobs.get(message_id)
            if job is None:
                job = jobs[message_id] = _Job(message_id, self._key(message_id))
            job.indexes.append(index)
            job.updates.append(update)
        for pool, group in self._by_server(jobs.values(), lambda job: job.key):
            for first in range(0, len(group), WRITES_A_ROUND):
                self._carry_out(pool, group[first : first + WRITES_A_ROUND])
        outcomes = [Outcome.REFUSED] * len(updates)
        for job in jobs.values():
            for index, outcome in zip(job.indexes, job.outcomes):
                outcomes[index] = outcome
        for job in jobs.values():
            if job.error is not None:
                raise job.error
        return outcomes

    def _carry_out(self, pool: Pool, jobs: list[_Job]) -> None:
        """Carry out updates of messages of one server, in rounds: each
        sends what it can for all messages, and then reads all replies.
        """
        deadline = time.monotonic() + self.timeout / 1000

        def rounds(connection: Connection) -> None:
            pending = jobs
            while pending := [job for job in pending if not job.done]:
                self._round(connection, pending)
                conflicts = max(job.conflicts for job in pending)
                if conflicts >= PATIENT_CONFLICTS:
                    if time.monotonic() > deadline:
                        raise BackendError(f"memcached at {pool.address}: others kept writing to the same status")
                    time.sleep(random.random() * min(0.0002 * 2**conflicts, 0.02))

        def again() -> bool:
            if any(job.sent and job.counts_twice for job in jobs):
                return False
            for job in jobs:
                job.ask()
            return True

        self._call(pool, rounds, again)

    def _round(self, connection: Connection, jobs: list[_Job]) -> None:
        now = now_ms()
        stores, gets, requests = [], [], []
        for job in jobs:
            if job.known is None and job.may_guess:
                job.known = self._guess(job, connection, now)
            known = job.known
            value = job.work_out(now, connection.max_value_size) if known is not None else None
            if known is not None and value is not None:
                stores.append((job, value))
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
        for job, value in stores:
            stored, cas = connection.read_stored()
            job.sent = False
            if stored is Stored.STORED:
                job.done = True
                self._remember(job, connection, now, cas, len(value))
            elif stored is Stored.GONE:
                job.learn(_Known(None, 0, None))
            else:
                job.conflicts += 1
                job.ask()
        for job in gets:
            job.learn(_known_from(connection.read_item(), now))

    def _guess(self, job: _Job, connection: Connection, now: int) -> _Known | None:
        """What the item of a message holds, as far as can be told without
        reading it.  A wrong guess does no harm: its cas is refused.
        """
        update = job.updates[0]
        known = self._known.pop(job.message_id, None)
        if known is not None and known.server == connection.server:
            if update.kind is not Kind.OUTSIDE or now - known.since < OUTSIDE_TRUST:
                return known
        if update.kind is Kind.ENQUEUE and update.epoch.number <= 1:
            return _Known(None, 0, None)
        if update.origin is not None:
            return _known_from_receipt(update.origin.enqueue, update.origin.receipt, connection.server)
        return None

    def _remember(self, job: _Job, connection: Connection, now: int, cas: int | None, size: int) -> None:
        if cas is None or job.record is None:
            return
        last = job.updates[-1]
        if last.kind is Kind.ENQUEUE:
            if len(job.updates) == 1 and job.known is not None and job.known.record is None:
                _put(self._receipts, job.message_id, f"{cas}-{now}-{connection.server}")
        elif size <= MAX_KNOWN_SIZE and not is_finished(job.record):
            if last.kind is not Kind.OUTSIDE or not job.conflicts:
                _put(self._known, job.message_id, _Known(job.record, job.expires_at, cas, connection.server, now))

    def receipt(self, message_id: str) -> str | None:
        return self._receipts.pop(message_id, None)

    # Reading

    def read_many(self, message_ids: Sequence[str]) -> list[Record | None]:
        found: dict[bytes, Record | None] = {}
        keys = [self._key(message_id) for message_id in message_ids]
        for pool, group in self._by_server(keys, lambda key: key):
            for first in range(0, len(group), READS_A_ROUND):
                some = group[first : first + READS_A_ROUND]
                found.update(zip(some, self._call(pool, lambda connection, some=some: _read(connection, some))))
        return [found[key] for key in keys]

    # Deleting and closing

    def delete(self, message_id: str) -> bool:
        self._known.pop(message_id, None)
        self._receipts.pop(message_id, None)
        key = self._key(message_id)
        return self._call(self._pool(key), lambda connection: connection.delete(key))

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()

    # Keys and connections

    def _key(self, message_id: str) -> bytes:
        key = self._prefix + message_id
        if len(key) > MAX_KEY_SIZE or not key.isascii() or not key.isprintable() or " " in key or _HASHED in key:
            # The ids that cannot be keys; and those that look like their
            # hashes, so that no two ids have the same key.
            key = self._prefix + _HASHED + sha256(message_id.encode("utf-8", "surrogatepass")).hexdigest()
        return key.encode("ascii")

    def _pool(self, key: bytes) -> Pool:
        return self._only_pool or self._pools[self._node_of(key.decode("ascii"))]

    def _by_server(self, items: Iterable[T], key_of: Callable[[T], bytes]) -> list[tuple[Pool, list[T]]]:
        if self._only_pool is not None:
            return [(self._only_pool, list(items))]
        groups: dict[Pool, list[T]] = {}
        for item in items:
            groups.setdefault(self._pool(key_of(item)), []).append(item)
        return list(groups.items())

    def _call(self, pool: Pool, call: Callable[[Connection], T], again: Callable[[], bool] = lambda: True) -> T:
        """Call with a connection; once again with a new one where the
        server has hung up on one that had been idle, if that can do no harm.
        """
        retried = False
        while True:
            used = False
            try:
                connection, used = pool.take()
                try:
                    result = call(connection)
                except BaseException:
                    # An interrupt (time limit, abort, shutdown) may have struck
                    # between a request and its reply: never use this one again.
                    connection.close()
                    raise
            except (MemcacheError, OSError) as e:
                if used and not retried and isinstance(e, _HUNG_UP) and again():
                    # The other idle ones are no younger.
                    pool.close()
                    retried = True
                    continue
                raise BackendError(f"memcached at {pool.address}: {type(e).__name__}: {e}") from e
            pool.give(connection)
            return result


class _Known(NamedTuple):
    """What an item holds: just read, or remembered, or guessed.

    Parameters:
      record: Its record, None for nothing that is one.
      expires_at: When it expires, in epoch milliseconds.
      cas: The number of its last write, None where there is no item.
      server: With what is remembered: the run of the server that the cas is from.
      since: With what is remembered: when it was stored.
    """

    record: Record | None
    expires_at: int
    cas: int | None
    server: str = ""
    since: int = 0


_ABSENT: Final = _Known(None, 0, None)


class _Job:
    """The updates of one message in a call, to be stored with one write."""

    __slots__ = (
        "conflicts",
        "done",
        "error",
        "expires_at",
        "indexes",
        "key",
        "known",
        "may_guess",
        "message_id",
        "outcomes",
        "record",
        "sent",
        "updates",
    )

    def __init__(self, message_id: str, key: bytes) -> None:
        self.message_id = message_id
        self.key = key
        self.indexes: list[int] = []
        self.updates: list[Update] = []
        self.known: _Known | None = None
        #: Whether `known` need not be what was read just now.
        self.may_guess = True
        #: Whether a value is on its way of which nobody knows yet if it was stored.
        self.sent = False
        self.done = False
        self.conflicts = 0
        self.outcomes: list[Outcome] = []
        self.record: Record | None = None
        self.expires_at = 0
        self.error: ValueError | None = None

    @property
    def counts_twice(self) -> bool:
        """Whether the store could not tell if it got these updates twice."""
        return any(update.kind is Kind.OUTSIDE and update.increment for update in self.updates)

    def learn(self, known: _Known) -> None:
        """Take what the server has just said for granted."""
        self.known = known
        self.may_guess = False

    def ask(self) -> None:
        """Forget what was known, so that the item is read."""
        self.known = None
        self.may_guess = False
        self.sent = False

    def work_out(self, now: int, limit: int) -> bytes | None:
        """Apply the updates to what is known, and return the value to
        store: None for nothing new.
        """
        value = self._apply(now, None)
        if value is not None and len(value) > limit - RESERVED_SIZE:
            value = self._apply(now, limit)
        return value

    def _apply(self, now: int, limit: int | None) -> bytes | None:
        """With a limit, what does not fit into an item is left out, and
        `error` tells: an item that is too large would not only be
        refused, the server would delete the one that is there.
        """
        assert self.known is not None
        record, expires_at = self.known.record, self.known.expires_at
        self.outcomes, self.error = [], None
        value = None
        for update in self.updates:
            if expires_at <= now:
                record = None
            applied = apply(record, update, now)
            if limit is not None and applied.record is not record:
                applied = self._fit(record, update, applied, now, limit)
            if applied.record is not record:
                assert applied.record is not None
                record, value = applied.record, b""
                if applied.ttl is not None:
                    expires_at = now + applied.ttl
            self.outcomes.append(applied.outcome)
        self.record, self.expires_at = record, expires_at
        return None if value is None or record is None else _to_value(record, expires_at)

    def _fit(self, record: Record | None, update: Update, applied: Applied, now: int, limit: int) -> Applied:
        assert applied.record is not None
        size = len(_to_value(applied.record, now))
        if size <= limit - RESERVED_SIZE:
            return applied
        if update.start or update.state is not None or update.kind in (Kind.ENQUEUE, Kind.HEARTBEAT):
            # What happened to the message is stored nevertheless.
            short = {name: text for name, text in update.fields.items() if len(text) <= SHORT_FIELD}
            essence = apply(record, update._replace(fields=short), now)
            if len(short) == len(update.fields) and size <= limit:
                return essence
            applied_size = len(_to_value(essence.record, now)) if essence.record else 0
        ...
