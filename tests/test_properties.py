"""Property tests of updates: every store does what `apply` does, and `apply` has its own properties for all inputs."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import dramatiq
import pytest
from dogpile.cache import make_region
from dramatiq.brokers.redis import RedisBroker
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dramatiq_status.backend import DEFAULT_MAX_FIELD_SIZE, Query, StatusBackend
from dramatiq_status.backends import CacheBackend, MemcachedBackend, RedisBackend, SQLiteBackend, StubBackend
from dramatiq_status.backends.memcached import backend as memcached_module
from dramatiq_status.backends.memcached import rounds as rounds_module
from dramatiq_status.decoding import take_snapshot
from dramatiq_status.fields import encode_fields, encode_value
from dramatiq_status.history import MAX_HISTORY_SIZE, kept_runs, run_ended
from dramatiq_status.record import (
    ACTOR_NAME,
    CANCEL_REASON,
    COMPLETED,
    EARLIER_RUN,
    EXCEPTION,
    FAILED,
    FIRST_EXCEPTION,
    GENERATION,
    HEARTBEAT_AT,
    ORIGIN,
    QUEUE_NAME,
    RUN_ENDED,
    RUN_TOKEN,
    SCHEDULED_AT,
    SEQUENCE,
    STARTED_AT,
    STATE,
    STATUS_TTL,
    UNKNOWN_TOTAL,
    UPDATED_AT,
    VERSION,
    Record,
    State,
    from_document,
    is_finished,
    is_sound,
    number_text,
    to_document,
)
from dramatiq_status.transitions import OUTDATED
from dramatiq_status.update import Applied, Changes, EnqueueId, Kind, Outcome, Update
from dramatiq_status.update import apply as apply_update

from .backends.redis_hooks import FixedClock
from .servers import MemcachedServer, RedisServer

#: Whether each run has the same examples, so that a test that fails under CI fails elsewhere, too, with CI=1.
STABLE = os.environ.get("CI", "").lower() in {"1", "true"}

pure = settings(max_examples=150, derandomize=STABLE, deadline=None, suppress_health_check=[HealthCheck.too_slow])
stored = settings(
    max_examples=50,
    derandomize=STABLE,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

HOUR = 3_600_000
#: Memcached takes expiry far ahead as a date, so tests begin at the present moment.
NOW = time.time_ns() // 1_000_000

# Values of updates. There are few of each kind, so that equal ones are drawn often.

enqueue_ids = st.one_of(st.builds(EnqueueId, st.sampled_from([7, 8]), st.integers(1, 3)), st.just(EnqueueId(0, 0)))
runs = st.sampled_from([1, 2, 2**63])
sequences = st.integers(1, 6)
texts = st.sampled_from(["0", "1", '"a"', "null", "[1,2]", '"\\u0161"', "0.5"])
counts = st.one_of(st.integers(-5, 200), st.sampled_from([0.1, 0.25, 1e-7, 2**52])).map(number_text)
totals = st.one_of(counts, st.just(UNKNOWN_TOTAL))
increments = st.one_of(st.just(0), st.integers(-3, 10), st.sampled_from([0.1, 1.5, 2**40, 1e-7]))
ttls = st.integers(1, 50).map(lambda hours: hours * HOUR)
timestamps = st.integers(-2, 20).map(lambda hours: str(NOW + hours * HOUR))
live_ttls = ttls.map(str)
run_ends = st.sampled_from([run_ended(NOW, failed=True), run_ended(NOW, failed=False), "null", "[1,2]"])
user_fields = {":a": texts, ":b": texts, ":s": texts, ":ключ": texts}


#: Stored exceptions of all sizes around the maximum in a history, with escape sequences wherever they may be cut.
exceptions = st.one_of(
    texts,
    st.builds(
        lambda name, size, text: encode_value("x", {"type": name, "message": (text * 600)[:size]}, 1 << 20),
        st.sampled_from([*("E" * size for size in range(1, 9)), "E" * 480, "E" * 600, 'E"\\' * 170]),
        st.one_of(st.integers(0, 20), st.integers(440, 560)),
        st.sampled_from(["a", "\\", '"', "\u0161", "\t", 'a\\"', "ab\u0161"]),
    ),
)


def updated(*values: Any, **named: Any) -> Update:
    """Make an update with some of its fields."""
    return Update(*values, **named)


def fields(**own: st.SearchStrategy[str]) -> st.SearchStrategy[Record]:
    return st.fixed_dictionaries({}, optional={**user_fields, **own})


#: Changes of an update; most updates have none. Other updates set fields with these names to texts of every kind.
changes = st.one_of(
    st.none(),
    st.none(),
    st.builds(
        Changes,
        st.dictionaries(st.sampled_from([":a", ":b", ":ключ", "t"]), increments, max_size=3),
        st.frozensets(st.sampled_from([":a", ":b", ":s"]), max_size=2),
        st.booleans(),
    ),
)


enqueues = st.builds(
    updated,
    st.just(Kind.ENQUEUE),
    enqueue_ids,
    fields=fields(
        a=texts, E=timestamps, D=timestamps, L=live_ttls, T=live_ttls, x=exceptions, it=texts, p=counts, N=run_ends
    ),
)
starts = st.builds(
    updated,
    st.just(Kind.RUN),
    enqueue_ids,
    runs,
    sequences,
    start=st.just(True),
    create=st.booleans(),
    attempts=st.integers(1, 3),
    fields=fields(a=texts, S=timestamps, L=live_ttls, t=totals, p=counts),
    increment=increments,
    changes=changes,
)
writes = st.builds(
    updated,
    st.just(Kind.RUN),
    enqueue_ids,
    runs,
    sequences,
    create=st.booleans(),
    state=st.sampled_from([None, None, None, 0, 1]),
    attempts=st.integers(1, 3),
    fields=fields(p=counts, t=totals, R=counts, x=texts, D=timestamps, L=live_ttls),
    increment=increments,
    changes=changes,
)
ends = st.builds(
    updated,
    st.just(Kind.RUN),
    enqueue_ids,
    st.one_of(runs, st.just(0)),
    sequences,
    start=st.booleans(),
    create=st.booleans(),
    state=st.sampled_from([COMPLETED, FAILED]),
    attempts=st.integers(1, 3),
    fields=fields(F=timestamps, x=texts, it=texts, k=st.just("true"), c=st.just("true"), p=counts),
    increment=increments,
    ttl=ttls,
    changes=changes,
)
outsides = st.builds(
    updated,
    st.just(Kind.OUTSIDE),
    state=st.sampled_from([None, None, None, None, 0, 1, 2, 3]),
    fields=fields(p=counts, t=totals, **{"-:a": st.just("1"), "-:b": st.just("1")}),
    increment=increments,
    ttl=ttls,
    changes=changes,
)
heartbeats = st.builds(updated, st.just(Kind.HEARTBEAT), run_token=runs)
cancels = st.builds(updated, st.just(Kind.CANCEL), fields=st.one_of(st.just({}), st.just({CANCEL_REASON: '"a"'})))
withdrawals = st.builds(updated, st.just(Kind.WITHDRAWAL), enqueue_ids)
updates = st.one_of(enqueues, starts, starts, writes, writes, ends, outsides, heartbeats, cancels, withdrawals)


def with_names(update: Update, names: Record) -> Update:
    """Return an update, with names of the actor and the queue if it may create a record."""
    if update.kind is not Kind.ENQUEUE and not update.start and not update.create:
        return update
    own = {name: text for name, text in update.fields.items() if name not in (ACTOR_NAME, QUEUE_NAME)}
    return update._replace(fields={**own, **names})


named_updates = st.builds(
    with_names,
    updates,
    st.fixed_dictionaries({}, optional=dict.fromkeys((ACTOR_NAME, QUEUE_NAME), st.sampled_from(['"a"', '"b"']))),
)
histories = st.lists(updates, max_size=12)

#: Batches of updates of one message; None: it is deleted before.
batches = st.lists(
    st.tuples(st.sampled_from([0, 0, 1, 1500]), st.one_of(st.none(), st.lists(updates, min_size=1, max_size=5))),
    min_size=1,
    max_size=8,
)

# A store with a clock that tests set.


class Store(NamedTuple):
    backend: StatusBackend
    #: Function that sets the time of the store.
    set_now: Callable[[int], None]
    #: Function that returns the milliseconds until a record expires.
    ttl_of: Callable[[str], int | None]
    #: Whether records expire by the clock that tests set.
    expires_by_it: bool
    #: Tolerance of `ttl_of` in milliseconds, which includes the duration of an example.
    tolerance: int


@pytest.fixture(params=["stub", "redis", "memcached", "memcached without meta", "sqlite", "cache"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    if request.param == "stub":
        stub = StubBackend()
        yield Store(stub, lambda now: monkeypatch.setattr(stub, "now", lambda: now), stub.expires_in, True, 0)
    elif request.param == "sqlite":
        yield from sqlite_store(request.getfixturevalue("tmp_path"), monkeypatch)
    elif request.param == "cache":
        yield from cache_store(monkeypatch)
    elif request.param == "redis":
        yield from redis_store(RedisBackend(url=request.getfixturevalue("redis_url"), timeout=20_000))
    else:
        request.getfixturevalue("memcached_url")
        server = request.getfixturevalue("memcached_server")
        yield from memcached_store(server, monkeypatch, meta=request.param == "memcached")


def redis_store(backend: RedisBackend) -> Iterator[Store]:
    def set_now(now: int) -> None:
        backend.transport.clock = FixedClock(now)

    def ttl_of(message_id: str) -> int | None:
        found = int(backend.client.pttl(f"{backend.namespace}:{message_id}"))
        return None if found == -2 else found

    yield Store(backend, set_now, ttl_of, False, 30_000)
    backend.close()


def memcached_store(server: MemcachedServer, monkeypatch: pytest.MonkeyPatch, *, meta: bool) -> Iterator[Store]:
    backend = MemcachedBackend(servers=server.address, timeout=20_000, meta=meta)

    def set_now(now: int) -> None:
        for module in (memcached_module, rounds_module):
            monkeypatch.setattr(module, "now_ms", lambda: now)

    def ttl_of(message_id: str) -> int | None:
        reply = server.ask(f"mg {backend.namespace}:{message_id} t\r\n".encode()).split()
        return int(reply[1][1:]) * 1000 if reply[0] == b"HD" else None

    yield Store(backend, set_now, ttl_of, False, 30_000)
    backend.close()


def sqlite_store(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    backend = SQLiteBackend(directory / "status.db", timeout=20_000)

    def ttl_of(message_id: str) -> int | None:
        query = "SELECT expires_at FROM dramatiq_status_1 WHERE message_id = ?"
        found = backend._connections.call(lambda connection: connection.execute(query, (message_id,)).fetchall())
        left = found[0][0] - backend.now() if found else 0
        return left or None

    yield Store(backend, lambda now: monkeypatch.setattr(backend, "now", lambda: now), ttl_of, True, 0)
    backend.close()


def cache_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    # A cache that takes no time to live, so that its statuses expire by the test's clock alone.
    backend = CacheBackend(make_region().configure("dogpile.cache.memory"))

    def ttl_of(message_id: str) -> int | None:
        now = backend.now()
        record, expires_at = backend._fetch(backend._key_of(message_id), now)
        return None if record is None else expires_at - now

    yield Store(backend, lambda now: monkeypatch.setattr(backend, "now", lambda: now), ttl_of, True, 0)


def plain(record: Record | None) -> dict[str, Any] | None:
    """Return a decoded record, because stores may write one number in different ways."""
    return None if record is None else {name: json.loads(text) for name, text in record.items()}


def apply(record: Record | None, update: Update, now: int) -> Applied:
    """Apply an update as a store does: an expired record is gone."""
    applied = apply_update(record, update, now)
    return applied._replace(record=None) if applied.ttl == 0 else applied


def fold(
    history: list[Update], record: Record | None = None, now: Callable[[int], int] = lambda n: NOW + n
) -> Record | None:
    for n, update in enumerate(history):
        record = apply(record, update, now(n)).record
    return record


# Stores


@stored
@given(history=batches)
def test_every_store_does_what_apply_does(store: Store, history: list[tuple[int, list[Update] | None]]) -> None:
    check_against_apply(store, history)


def check_against_apply(store: Store, history: list[tuple[int, list[Update] | None]]) -> None:
    # Given a message, and updates of several of its runs and of other processes
    message_id = uuid4().hex
    now, record, ttl, renewed_at = NOW, None, 0, NOW
    for gap, batch in history:
        now += gap
        store.set_now(now)
        if batch is None:
            assert store.backend.delete(message_id) is (record is not None)
            record = None
            continue
        expected = []
        for update in batch:
            applied = apply(record, update, now)
            record = applied.record
            expected.append(applied.outcome)
            if applied.ttl is not None:
                ttl, renewed_at = applied.ttl, now
        # When the updates are sent to a store
        outcomes = store.backend.update_many([(message_id, update) for update in batch])
        # Then the outcomes and the record are those of `apply`
        assert outcomes == expected
        assert plain(store.backend.read(message_id)) == plain(record)
    # And the record has the right time to live
    found = store.ttl_of(message_id)
    assert (found is None) is (record is None)
    if found is not None:
        left = ttl - (now - renewed_at) if store.expires_by_it else ttl
        assert left - store.tolerance <= found <= left + min(store.tolerance, 2000)


class PiggybackBackend(RedisBackend):
    """A backend whose updates are attached to commands of a broker."""

    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.broker = RedisBroker(client=self.broker_client(), middleware=[], maintenance_chance=0)
        # The server then has both scripts.
        super().update_many([(uuid4().hex, Update(Kind.HEARTBEAT))])
        self.broker.do_qsize("q")

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        attacher, attached = self.update_attacher(self.broker), Attached(updates)
        assert attacher is not None
        message = dramatiq.Message[Any](
            queue_name="q", actor_name="a", args=(), kwargs={}, options={"redis_message_id": uuid4().hex}
        )
        assert attacher.attach(message, attached)
        self.broker.do_enqueue("q", message.options["redis_message_id"], message.encode())
        return attached.outcomes


class Attached:
    """Updates of a test, and their outcomes."""

    def __init__(self, updates: Sequence[tuple[str, Update]]) -> None:
        self._updates = updates
        self.outcomes: list[Outcome] = []

    def collect(self) -> Sequence[tuple[str, Update]]:
        return self._updates

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        self.outcomes = list(outcomes)

    def send_separately(self) -> None:
        raise AssertionError("The updates were not sent with the broker's command.")


@pytest.fixture
def piggyback_store(redis_url: str) -> Iterator[Store]:
    yield from redis_store(PiggybackBackend(url=redis_url, timeout=20_000))


@stored
@given(history=batches)
def test_updates_with_the_commands_of_a_broker_do_what_apply_does(
    piggyback_store: Store, history: list[tuple[int, list[Update] | None]]
) -> None:
    check_against_apply(piggyback_store, history)


@stored
@given(
    lives=st.lists(
        st.tuples(st.sampled_from(["retried", "requeued", "late", "overtaken", "lost"]), exceptions), max_size=14
    )
)
def test_every_store_keeps_the_history_of_runs(store: Store, lives: list[tuple[str, str]]) -> None:
    # Given a message, and the ends of its runs
    history, generation, overtaken = [Update(Kind.ENQUEUE, EnqueueId(7, 1))], 1, None
    for number, (end, exception) in enumerate(lives, start=1):
        started = {STARTED_AT: str(NOW + number)}
        history.append(
            Update(Kind.RUN, EnqueueId(7, generation), number, 1, start=True, attempts=number, fields=started)
        )
        if overtaken is not None:
            # The enqueue arrives after the start of its own run.
            history.append(overtaken)
            overtaken = None
        if end == "lost":
            continue
        generation += 1
        fields = {
            RUN_ENDED: run_ended(NOW + number, failed=end in ("retried", "overtaken")),
            SCHEDULED_AT: str(NOW + number),
        }
        if end in ("retried", "overtaken"):
            fields[EXCEPTION] = exception
        update = Update(Kind.ENQUEUE, EnqueueId(7, generation), fields=fields)
        if end == "overtaken":
            overtaken = update
        elif end != "late":
            history.append(update)
    history.append(Update(Kind.RUN, EnqueueId(7, generation), 99, 1, start=True, attempts=len(lives) + 1))
    if overtaken is not None:
        history.append(overtaken)
    # When a store has all updates
    message_id = uuid4().hex
    store.set_now(NOW)
    store.backend.update_many([(message_id, update) for update in history])
    # Then its record is equal to that of `apply` in each byte, because stores compare no decoded texts
    expected, found = fold(history, now=lambda n: NOW), store.backend.read(message_id)
    assert expected is not None and isinstance(found, dict) and found == expected
    # And the snapshot has the first and the last runs
    snapshot = take_snapshot(message_id, found, NOW)
    assert snapshot is not None
    kept = [text for name, text in found.items() if name.startswith(EARLIER_RUN) or name == FIRST_EXCEPTION]
    assert sum(map(len, kept)) <= MAX_HISTORY_SIZE
    attempts = [run.attempt for run in snapshot.runs]
    assert attempts[0] == 1 and attempts[-1] == len(lives) + 1 and attempts == sorted(set(attempts))
    if all(end not in ("retried", "overtaken") for end, _ in lives):
        assert attempts == [*kept_runs(len(lives) + 1), len(lives) + 1]
    names = {"retried": "retried", "requeued": "requeued", "late": "requeued", "overtaken": "retried", "lost": "lost"}
    assert [run.outcome for run in snapshot.runs[:-1]] == [names[lives[number - 1][0]] for number in attempts[:-1]]


@stored
@given(history=histories, cuts=st.sets(st.integers(0, 12)))
def test_batches_may_be_split_anywhere(store: Store, history: list[Update], cuts: set[int]) -> None:
    # Given updates, and a way to split them
    whole, split = uuid4().hex, uuid4().hex
    store.set_now(NOW)
    # When one message gets them in one call, and another one in several calls
    outcomes = store.backend.update_many([(whole, update) for update in history])
    edges = [0, *sorted(cut for cut in cuts if 0 < cut < len(history)), len(history)]
    split_outcomes = []
    for first, last in itertools.pairwise(edges):
        split_outcomes += store.backend.update_many([(split, update) for update in history[first:last]])
    # Then both have the same outcomes and records
    assert outcomes == split_outcomes
    assert plain(store.backend.read(whole)) == plain(store.backend.read(split))


@stored
@given(mixed=st.lists(st.tuples(st.integers(0, 2), updates), max_size=12))
def test_messages_of_a_batch_do_not_mix(store: Store, mixed: list[tuple[int, Update]]) -> None:
    # Given updates of three messages
    ids = [uuid4().hex for _ in range(3)]
    store.set_now(NOW)
    # When they are sent in one call
    store.backend.update_many([(ids[n], update) for n, update in mixed])
    # Then each message has its own updates
    expected = []
    for n in range(3):
        record = None
        for of, update in mixed:
            if of == n:
                record = apply(record, update, NOW).record
        expected.append(plain(record))
    assert [plain(record) for record in store.backend.read_many(ids)] == expected


@stored
@given(mixed=st.lists(st.tuples(st.integers(0, 2), named_updates), max_size=12))
def test_every_store_lists_what_it_has(store: Store, mixed: list[tuple[int, Update]]) -> None:
    if type(store.backend).find is StatusBackend.find:
        pytest.skip("This backend does not list.")
    # Given three messages, and updates that bring them into any state, queue and actor
    ids = [uuid4().hex for _ in range(3)]
    store.set_now(NOW)
    store.backend.update_many([(ids[n], update) for n, update in mixed])
    records = store.backend.read_many(ids)
    names = (None, "a", "b")
    for query in itertools.starmap(Query, itertools.product((None, 0, 1, 2, 3), names, names)):
        # When they are listed and counted
        found = store.backend.find(query, limit=1000, after=None)
        # Then the list has each message that the query selects once, in its present state
        wanted = {STATE: query.state, ACTOR_NAME: query.actor_name, QUEUE_NAME: query.queue_name}
        expected = {
            message_id: record
            for message_id, record in zip(ids, records)
            if record is not None
            and all(value is None or record.get(name) == json.dumps(value) for name, value in wanted.items())
        }
        mine = [(message_id, record) for message_id, record, _ in found if message_id in ids]
        assert dict(mine) == expected and len(mine) == len(expected), query
        assert store.backend.count(query) == len(found), query


# The pure function


@pure
@given(history=histories, update=st.one_of(starts, writes, ends.filter(lambda update: update.run_token != 0)))
def test_an_update_that_is_sent_again_is_a_duplicate(history: list[Update], update: Update) -> None:
    # Given an update that was stored
    first = apply(fold(history), update, NOW)
    assume(first.outcome is Outcome.APPLIED)
    # When it is sent again
    second = apply(first.record, update, NOW + 1)
    # Then it is a duplicate, and the record is unchanged
    assert second == (Outcome.DUPLICATE, first.record, None)


@pure
@given(increments=st.lists(st.integers(1, 9), min_size=1, max_size=6), data=st.data())
def test_a_run_may_repeat_itself_at_any_time(increments: list[int], data: st.DataObject) -> None:
    # Given the updates of a run
    enqueue_id = EnqueueId(7, 1)
    sent = [Update(Kind.RUN, enqueue_id, 1, 1, start=True, create=True)]
    sent += [Update(Kind.RUN, enqueue_id, 1, 2 + n, increment=step) for n, step in enumerate(increments)]
    # When older updates arrive again between the others
    record = None
    for n, update in enumerate(sent):
        record = apply(record, update, NOW).record
        for again in data.draw(st.lists(st.sampled_from(sent[: n + 1]), max_size=3)):
            record = apply(record, again, NOW).record
    # Then each update counts once
    assert record is not None and record["p"] == str(sum(increments))
    assert record[VERSION] == str(len(sent))


@pure
@given(history=histories, end=ends, update=st.one_of(starts, writes, ends, heartbeats))
def test_no_run_changes_a_finished_record(history: list[Update], end: Update, update: Update) -> None:
    # Given a finished message
    record = fold([*history, end])
    assume(record is not None and is_finished(record))
    assert record is not None
    # When a run of an enqueue that is not newer writes to it
    ours = record[ORIGIN] == str(update.enqueue_id.origin) and update.enqueue_id.generation <= int(record[GENERATION])
    assume(ours or update.kind is Kind.HEARTBEAT or not update.create)
    applied = apply(record, update, NOW)
    # Then it stays as it is; a cancelled message that a worker drops has another time to live
    assert applied.record == record and (applied.ttl is None or applied.outcome is Outcome.CANCELLED)
    assert applied.outcome is not Outcome.APPLIED


@pure
@given(history=histories, update=enqueues)
def test_a_late_enqueue_only_fills_gaps(history: list[Update], update: Update) -> None:
    # Given a record, and an enqueue that is not newer than it
    record = fold(history)
    assume(record is not None)
    assert record is not None
    enqueue_id = EnqueueId(int(record[ORIGIN]), min(update.enqueue_id.generation, int(record[GENERATION])))
    update = update._replace(enqueue_id=enqueue_id)
    # When it arrives
    applied = apply(record, update, NOW)
    # Then all values except the version and its time are unchanged, and so is the time to live
    assert (applied.outcome, applied.ttl) == (Outcome.LATE, None)
    assert applied.record is not None
    # (The enqueue may have the end of the earlier run.)
    for name in ("h1", "x1", "h2", "h3"):
        record.pop(name, None)
    kept = {name: text for name, text in applied.record.items() if name in record}
    assert {**kept, VERSION: "", UPDATED_AT: ""} == {**record, VERSION: "", UPDATED_AT: ""}


@pure
@given(history=histories, update=writes)
def test_only_the_owner_writes(history: list[Update], update: Update) -> None:
    # Given a record that another run owns, or none
    record = fold(history)
    assume(record is not None and record.get(RUN_TOKEN) != str(update.run_token))
    # When a run writes to it that neither starts nor ends
    applied = apply(record, update._replace(state=None), NOW)
    # Then it is refused
    assert applied == (Outcome.REFUSED, record, None)


@pure
@given(history=histories, update=updates)
def test_the_version_counts_every_change(history: list[Update], update: Update) -> None:
    # Given a record, or none
    record = fold(history)
    # When an update is applied to it
    applied = apply_update(record, update, NOW)
    # Then the version is one higher if the record has changed, and otherwise the same; a heartbeat is no change
    before = 0 if record is None else int(record[VERSION])
    after = 0 if applied.record is None else int(applied.record[VERSION])
    changed = applied.record != record and update.kind is not Kind.HEARTBEAT
    assert after == before + changed
    assert changed or update.kind is Kind.HEARTBEAT or applied.outcome is not Outcome.APPLIED


@pure
@given(history=histories, update=updates)
def test_apply_is_pure(history: list[Update], update: Update) -> None:
    # Given a record and an update
    record = fold(history)
    record_before, fields_before = record and dict(record), dict(update.fields)
    # When it is applied twice
    results = apply(record, update, NOW), apply(record, update, NOW)
    # Then record and update are unchanged, and both results are equal
    assert (record, update.fields) == (record_before, fields_before)
    assert results[0] == results[1]


@pure
@given(history=histories)
def test_apply_makes_sound_records(history: list[Update]) -> None:
    # Given no record
    record, alive = None, False
    for update in history:
        # When updates are applied
        before = record
        applied = apply(record, update, NOW)
        record, alive = applied.record, alive or applied.ttl is not None
        # Then the record is sound, can be decoded, and has a time to live
        if record is not None:
            assert alive and is_sound(record)
            snapshot = take_snapshot("m", record, NOW)
            assert snapshot is not None and str(snapshot) and snapshot.to_json()
            assert (RUN_TOKEN in record) is (SEQUENCE in record)
        # And a final state has the time to live of its update. A final state from outside keeps the time to live of a
        # finished record, and gives any other record its own `status_ttl`, if it has one
        if applied.outcome is Outcome.APPLIED and update.state in (COMPLETED, FAILED):
            expected: int | None = update.ttl
            if update.kind is Kind.OUTSIDE and before is not None:
                expected = None if is_finished(before) else int(before.get(STATUS_TTL, update.ttl))
            assert applied.ttl == expected


@pure
@given(enqueue=enqueues, start=starts)
def test_enqueue_and_start_may_arrive_in_any_order(enqueue: Update, start: Update) -> None:
    # Given an enqueue, without the fields that a late one loses, and the start that follows from it
    given = {name: text for name, text in enqueue.fields.items() if name not in OUTDATED - {SCHEDULED_AT}}
    enqueue = enqueue._replace(fields=given)
    # A start that may create the record has sums, and no increments.
    start = start._replace(enqueue_id=enqueue.enqueue_id, create=True, changes=None)
    # When they arrive in either order
    records = fold([enqueue, start]), fold([start, enqueue])
    # Then the record is the same, except for the version and the timestamps
    one, two = ({**(record or {}), VERSION: "", UPDATED_AT: "", HEARTBEAT_AT: ""} for record in records)
    assert one == two


@pure
@given(data=st.data())
def test_a_message_that_was_retried_is_completed_whatever_the_order(data: st.DataObject) -> None:
    # Given the updates of a message that failed once, each of which has all values of its run
    first, second = EnqueueId(7, 1), EnqueueId(7, 2)
    life = [
        Update(Kind.ENQUEUE, first, fields={":a": "1"}),
        Update(Kind.RUN, first, 1, 1, start=True, create=True),
        Update(Kind.RUN, first, 1, 2, create=True, fields={"p": "1"}),
        Update(Kind.ENQUEUE, second, fields={"x": '"E"'}),
        Update(Kind.RUN, second, 2, 1, start=True, create=True),
        Update(Kind.RUN, second, 2, 2, create=True, fields={"p": "2"}),
        Update(Kind.RUN, second, 2, 3, create=True, state=COMPLETED, fields={"p": "2"}),
    ]
    # When they arrive in any order, some of them twice
    arrived = [*data.draw(st.permutations(life)), *data.draw(st.lists(st.sampled_from(life), max_size=4))]
    snapshot = take_snapshot("m", fold(arrived), NOW)
    # Then the message is completed, with the fields of its enqueue
    assert snapshot is not None
    assert (snapshot.state, snapshot["a"], snapshot["progress"]) == (State.COMPLETED, 1, 2)


# Documents

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=8,
)
names = st.text(min_size=1, max_size=20).filter(str.isprintable).map(lambda name: "x" + name)


@pure
@given(history=histories, values=st.dictionaries(names, json_values, max_size=5))
def test_documents_come_back(history: list[Update], values: dict[str, Any]) -> None:
    # Given a record with any values that users may write
    encoded, _ = encode_fields(values, max_size=DEFAULT_MAX_FIELD_SIZE)
    # Most histories need a first enqueue: without one, too few leave a record for Hypothesis.
    record = fold([Update(Kind.ENQUEUE, EnqueueId(1, 1)), *history, Update(Kind.OUTSIDE, fields=encoded)])
    assume(record is not None)
    assert record is not None
    # When it is written as one text, and read
    # Then the record is the same
    assert from_document(to_document(record)) == record


@stored
@given(values=st.dictionaries(names, json_values, max_size=5))
def test_values_come_back_from_every_store(store: Store, values: dict[str, Any]) -> None:
    # Given any values that users may write
    encoded, _ = encode_fields(values, max_size=DEFAULT_MAX_FIELD_SIZE)
    message_id = uuid4().hex
    store.set_now(NOW)
    # When they are stored with the enqueue
    store.backend.update(message_id, Update(Kind.ENQUEUE, EnqueueId(7, 1), fields=encoded))
    # Then a reader gets the same values
    snapshot = take_snapshot(message_id, store.backend.read(message_id), NOW)
    assert snapshot is not None and dict(snapshot.fields) == values


@pure
@given(text=st.text(), record=st.dictionaries(st.text(), st.text()))
def test_no_text_is_too_odd_to_be_read(text: str, record: dict[str, str]) -> None:
    # Given a text of another program
    for document in (text, "\n".join(["dramatiq-status 1", text]), to_document(record)):
        # When it is read as a document
        found = from_document(document)
        # Then it is no record, or one to which updates can be applied
        if found is not None:
            apply(found, Update(Kind.OUTSIDE, increment=1), NOW)
            apply(found, Update(Kind.ENQUEUE, EnqueueId(7, 1)), NOW)


numbers = st.one_of(
    *[st.integers(0, 9).map(str)] * 4, st.integers().map(str), st.floats().map(repr), st.text(max_size=3)
)
#: Values that a field may have when a count is added to it.
oddities = st.sampled_from(
    ["9" * 5000, "0x10", "1e999", "1e", "1.", ".5", "+5", " 5", "5 ", "1_0", "007", "-0", "nan", ""]
)

odd_records = st.fixed_dictionaries(
    {STATE: st.sampled_from("0123"), "v": numbers, "e": st.sampled_from(["0", "7", "x"]), "n": numbers},
    optional={
        "r": st.sampled_from(["1", "x"]),
        **dict.fromkeys("qDLTAp", numbers),
        **dict.fromkeys([":a", "t"], st.one_of(numbers, oddities)),
    },
)


@pure
@given(record=odd_records.filter(is_sound), update=updates)
def test_a_sound_record_never_makes_apply_fail(record: Record, update: Update) -> None:
    # Given a record of the right form, with any values
    # When an update is applied to it
    applied = apply(record, update, NOW)
    # Then `apply` returns an outcome
    assert applied.outcome in Outcome


@stored
@given(record=odd_records, update=updates)
def test_redis_takes_the_same_for_numbers_as_we_do(redis_server: RedisServer, record: Record, update: Update) -> None:
    # Given a hash of the right form with any values, and another message
    backend = RedisBackend(url=redis_server.url, timeout=20_000)
    damaged, beside = uuid4().hex, uuid4().hex
    backend.client.hset(f"{backend.namespace}:{damaged}", mapping=record)
    backend.update(beside, Update(Kind.ENQUEUE, EnqueueId(7, 1)))
    # When both get an update
    outcomes = backend.update_many([(damaged, update), (beside, Update(Kind.OUTSIDE, increment=1))])
    # Then the hash is updated if it can be read, replaced if a record may be created, and unchanged otherwise
    assert outcomes == [apply(record if is_sound(record) else None, update, NOW).outcome, Outcome.APPLIED]
    # And the other message has its update
    assert backend.read(beside) is not None
    backend.close()
