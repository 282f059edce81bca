"""Tests of values that another program has stored, published or enqueued: they affect only the status of their own
message.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest
import redis
from dogpile.cache import make_region
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dramatiq_status import Snapshot, StatusRegistry, aio
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends import CacheBackend, MemcachedBackend, RedisBackend, SQLiteBackend
from dramatiq_status.cursor import Cursor, encode
from dramatiq_status.decoding import take_snapshot
from dramatiq_status.options import ENQUEUE_ID_OPTION, ENQUEUED_AT_OPTION, HEARTBEAT_OPTION
from dramatiq_status.record import ATTEMPTS, ENQUEUED_AT, PROGRESS
from dramatiq_status.update import Changes, Kind, Outcome, Update

from . import mixed_app
from .jobs import Job
from .recording import PATIENCE
from .servers import MemcachedServer, RedisCluster

ROOT_DIRECTORY = Path(__file__).parent.parent

#: Int that Python refuses to convert to a text.
TOO_LONG = 10**5000

settled = settings(
    max_examples=80,
    derandomize=os.environ.get("CI", "").lower() in {"1", "true"},
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# Stored values: JSON texts at the limits of Python, Lua and JSON, and bytes that are no JSON.

texts = st.one_of(
    st.sampled_from(
        [
            *("0", "1", "3", "-5", "NaN", "-Infinity", "1e400", "-1e308", "1e300", "9" * 15, "9" * 16, "9" * 400),
            *("9" * 4300, "9" * 4301, "true", "null", "{}", "[]", "[0,-5]", "[1,0]", "[1e300,1e300,1e300]", "[0,0,0]"),
            *("[" * 150 + "]" * 150, "[" * 900 + "]" * 900, '[["a"],5,"a"]', '{"type":5}', '"\\ud800"', '"a"', ""),
        ]
    ),
    st.text(max_size=5),
).map(str.encode)
stored = st.one_of(texts, st.binary(max_size=6))
names = st.one_of(st.sampled_from([*"svenrqLTaQEDSFUHBptRWAxkd", "ia", "ik", "it", ":a", "-:a"]), st.text(max_size=2))
forged_fields = st.dictionaries(names.map(str.encode), stored, max_size=4)

SOUND = {b"s": b"1", b"v": b"1", b"e": b"7", b"n": b"1", b"r": b"5", b"q": b"1", b"p": b"5"}


class Store(NamedTuple):
    """A store, and how another program writes there.

    Parameters:
      backend: The backend of the store.
      plant: Puts fields that are added to a sound record, or a value in its place, under the key of a message.
    """

    backend: StatusBackend
    plant: Callable[[str, dict[bytes, bytes], Any], None]


@pytest.fixture(params=["redis", "redis cluster", "memcached", "memcached without meta", "sqlite", "cache"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    kind = request.param
    if kind == "redis":
        backend: Any = RedisBackend(url=request.getfixturevalue("redis_url"), timeout=20_000)
        plant = planting_in_redis(backend, backend.client)
    elif kind == "redis cluster":
        cluster: RedisCluster = request.getfixturevalue("redis_cluster")
        cluster.reset()
        backend = RedisBackend(cluster_nodes=cluster.addresses, timeout=20_000)
        plant = planting_in_redis(backend, redis.RedisCluster(*cluster.addresses[0]))
    elif kind == "sqlite":
        backend = SQLiteBackend(tmp_path / "status.db", timeout=20_000)
        plant = planting_in_sqlite(tmp_path / "status.db")
    elif kind == "cache":
        region = make_region().configure("dogpile.cache.memory")
        backend = caching = CacheBackend(region)

        def plant(message_id: str, fields: dict[bytes, bytes], value: Any) -> None:
            whole = value if value is not None else document(fields).decode(errors="surrogateescape")
            region.set(caching._key_of(message_id), whole)

    else:
        request.getfixturevalue("memcached_url")
        server: MemcachedServer = request.getfixturevalue("memcached_server")
        backend = MemcachedBackend(servers=server.address, timeout=20_000, meta=kind == "memcached")

        def plant(message_id: str, fields: dict[bytes, bytes], value: Any) -> None:
            whole = value if isinstance(value, bytes) else document(fields)
            key = f"{backend.namespace}:{message_id}".encode()
            assert server.ask(b"set %b 0 1000 %d\r\n%b\r\n" % (key, len(whole), whole)) == b"STORED\r\n"

    with closing(backend):
        yield Store(backend, plant)


def document(fields: dict[bytes, bytes]) -> bytes:
    """Return a record as a document, for stores with one value a message. The empty name stands for its expiry."""
    record = {**SOUND, **fields}
    expires_at = record.pop(b"", b"%d" % 10**13)
    return b"\n".join([expires_at, b"dramatiq-status 1", *(text for item in record.items() for text in item)])


def planting_in_redis(backend: RedisBackend, client: Any) -> Callable[[str, dict[bytes, bytes], Any], None]:
    def plant(message_id: str, fields: dict[bytes, bytes], value: Any) -> None:
        key = backend.keys.key_of(message_id)
        client.delete(key)
        if value is None:
            client.hset(key, mapping={**SOUND, **fields})
        elif isinstance(value, bytes):
            client.set(key, value)
        else:
            client.rpush(key, str(value))

    return plant


def planting_in_sqlite(path: Path) -> Callable[[str, dict[bytes, bytes], Any], None]:
    columns = ("document", "expires_at", "listed_until", "position", "state", "actor", "queue")

    def plant(message_id: str, fields: dict[bytes, bytes], value: Any) -> None:
        text = document(fields).split(b"\n", 1)[1]
        row = dict(zip(columns, (text, 10**13, 10**13, 5, "1", None, None)))
        if value is not None:
            row.update(dict.fromkeys(columns[len(fields) :], value))
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(
                f"UPDATE dramatiq_status_1 SET {', '.join(f'{name} = ?' for name in row)} WHERE message_id = ?",
                (*row.values(), message_id),
            )

    return plant


def refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON.")


def look_at(snapshot: Snapshot) -> None:
    """Read all that a snapshot has, as a page does."""
    for name in dir(Snapshot):
        if not name.startswith("_"):
            getattr(snapshot, name)
    assert str(snapshot) and repr(snapshot) and dict(snapshot)
    assert json.loads(snapshot.to_json(), parse_constant=refuse)["status"] == snapshot.state


@settled
@example(fields={b":a": b"1", b":b": b"1", b":c": b"1"}, expiry=None, value=0.5)
@given(
    fields=forged_fields,
    expiry=st.none() | texts,
    value=st.one_of(
        *[st.none()] * 3, stored, st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(max_size=3)
    ),
)
def test_forged_records_do_not_affect_other_messages(
    store: Store, fields: dict[bytes, bytes], expiry: bytes | None, value: Any
) -> None:
    backend = store.backend
    # Given a message under whose key another program has stored a value, between two messages of this package
    jobs = [Job(backend).enqueue().start() for _ in range(3)]
    first, forged, last = (job.message_id for job in jobs)
    # (The value may also be the expiry of a document.)
    store.plant(forged, fields if expiry is None else {**fields, b"": expiry}, value)
    # When all are read in one call
    found = StatusRegistry.read_many([first, forged, last], backend=backend)
    # Then the two are unchanged, and the other one is shown as far as it can be read
    assert [snapshot is not None and snapshot.working for snapshot in (found[0], found[2])] == [True, True]
    if found[1] is not None:
        look_at(found[1])
    batch = StatusRegistry.batch([first, forged, last], backend=backend).read()
    assert json.loads(batch.to_json(), parse_constant=refuse)["counts"]["working"] >= 2
    assert str(batch) and 0 <= batch.percent <= 100
    if isinstance(backend, RedisBackend | SQLiteBackend):
        listed = StatusRegistry.list(limit=1000, backend=backend)
        assert {first, last} <= {snapshot.message_id for snapshot in listed}
        for snapshot in listed:
            look_at(snapshot)
        assert StatusRegistry.count(backend=backend) >= 2
    # And when all are updated in one call
    outcomes = backend.update_many(
        [(message_id, Update(Kind.OUTSIDE, increment=1, fields={":n": "1"})) for message_id in (first, forged, last)]
    )
    # Then the updates of the two are stored
    assert outcomes[0] == outcomes[2] == Outcome.APPLIED
    for job in jobs:
        job.finish()
    assert [StatusRegistry.get(message_id, backend=backend).completed for message_id in (first, last)] == [True, True]
    for message_id in (first, forged, last):
        backend.delete(message_id)


SOUND_RECORD = {name.decode(): value.decode() for name, value in SOUND.items()}


@pytest.mark.parametrize("field", [{":step": "no JSON"}, {ATTEMPTS: '"one"'}, {PROGRESS: '"much"'}])
def test_a_damaged_status_is_shown_as_unknown(field: dict[str, str]) -> None:
    assert take_snapshot("1", SOUND_RECORD, 0) is not None
    assert take_snapshot("1", {**SOUND_RECORD, **field}, 0) is None


@pytest.mark.parametrize("time", ['"noon"', "9" * 30, "null"])
def test_a_wrong_time_is_shown_as_missing(time: str) -> None:
    snapshot = take_snapshot("1", {**SOUND_RECORD, ENQUEUED_AT: time}, 0)
    assert snapshot is not None and snapshot.enqueued_at is None


# Channels

VERSIONS = ["9" * 4301, "-5", "nan", "\u0663", "1_0", b"\xff", ""]


def test_forged_changes_end_no_watch(redis_url: str) -> None:
    with closing(RedisBackend(url=redis_url, timeout=20_000)) as backend:
        # Given a watcher that waits
        job, other = Job(backend).enqueue(), Job(backend).enqueue()
        with closing(backend.subscribe((job.message_id, other.message_id))) as subscription:
            for version in VERSIONS:
                # When another program publishes a text on the channel of the message
                backend.client.publish(backend.keys.key_of(job.message_id), version)
                # Then the watcher reads the message
                assert list(subscription.wait(PATIENCE)) == [job.message_id]
            # And later changes are received
            other.start()
            assert other.message_id in subscription.wait(PATIENCE)


def test_forged_changes_end_no_watch_in_an_event_loop(redis_url: str) -> None:
    backend = RedisBackend(url=redis_url, timeout=20_000)
    # Given two messages that are watched over one connection, and read only after a published change
    backend.recheck_interval = 3_600_000
    forged, other = Job(backend).enqueue().start(), Job(backend).enqueue().start()
    seen: dict[str, list[Snapshot]] = {forged.message_id: [], other.message_id: []}

    async def watch(job: Job) -> None:
        async for snapshot in aio.StatusRegistry.watch(job.message_id, backend=backend, timeout=60_000):
            seen[job.message_id].append(snapshot)

    def publish() -> None:
        for version in VERSIONS:
            backend.client.publish(backend.keys.key_of(forged.message_id), version)

    async def main() -> None:
        watches = [asyncio.create_task(watch(job)) for job in (forged, other)]
        while sum(int(client["sub"]) for client in await asyncio.to_thread(backend.client.client_list)) < 2:
            await asyncio.sleep(0.01)
        # When another program publishes a text on the channel of one of them
        await asyncio.to_thread(publish)
        # Then the watchers receive both ends
        for job in (forged, other):
            await asyncio.to_thread(job.finish)
        await asyncio.gather(*watches)
        await aio.close(backend=backend)

    asyncio.run(main())
    assert all(snapshots[-1].completed for snapshots in seen.values())
    backend.close()


# The index


class Index(NamedTuple):
    """An index with one message, and how another program writes there."""

    backend: RedisBackend
    client: Any
    registry: bytes
    job: Job


@pytest.fixture(params=["redis", "redis cluster"])
def index(request: pytest.FixtureRequest) -> Iterator[Index]:
    if request.param == "redis":
        backend = RedisBackend(url=request.getfixturevalue("redis_url"), timeout=20_000)
        client: Any = backend.client
    else:
        cluster: RedisCluster = request.getfixturevalue("redis_cluster")
        cluster.reset()
        backend = RedisBackend(cluster_nodes=cluster.addresses, timeout=20_000)
        client = redis.RedisCluster(*cluster.addresses[0])
    with closing(backend), closing(client):
        job = Job(backend).enqueue()
        (registry,) = [key for key in client.scan_iter("* index:*") if client.type(key) == b"set"]
        yield Index(backend, client, registry, job)


# Scores


@pytest.mark.parametrize("kind", ["redis", "redis cluster"])
@pytest.mark.parametrize("score", ["+inf", "-inf", "1e300", "-1e300", "-5", "1795479267029000.5"])
@pytest.mark.parametrize("limit", [1, 50])
def test_forged_scores_move_only_their_own_message(
    kind: str, score: str, limit: int, request: pytest.FixtureRequest
) -> None:
    if kind == "redis":
        backend = RedisBackend(url=request.getfixturevalue("redis_url"), timeout=20_000)
        client: Any = backend.client
    else:
        cluster = request.getfixturevalue("redis_cluster")
        cluster.reset()
        backend = RedisBackend(cluster_nodes=cluster.addresses, timeout=20_000)
        client = redis.RedisCluster(*cluster.addresses[0])
    # Given messages in the index, of which another program has moved one
    jobs = [Job(backend).enqueue() for _ in range(4)]
    forged = jobs[0].message_id
    (index,) = [key for key in client.scan_iter("*index:*0\n*") if client.zscore(key, forged) is not None]
    client.zadd(index, {forged: score, "nothing": score})
    # When they are listed, page by page
    page, shown = StatusRegistry.list(limit=limit, backend=backend), []
    while page:
        shown += [snapshot.message_id for snapshot in page]
        page = StatusRegistry.list(limit=limit, after=page[-1], backend=backend)
    # Then at most this message is missing in the list
    # (The clocks of the nodes order messages of the same time.)
    assert sorted({*shown, forged}) == sorted(job.message_id for job in jobs) and len(shown) == len(set(shown))
    assert 3 <= StatusRegistry.count(backend=backend) <= 4
    # And its next change of state lists it
    jobs[0].start()
    assert forged in {snapshot.message_id for snapshot in StatusRegistry.list(backend=backend)}
    backend.close()


# Names in the index

FOREIGN = [
    *(
        "foreign",
        "",
        "0",
        "1\n\n",
        "9\n\n\n",
        "0\n60000\n\n",
        "2\n\n\n",
        "x\ny\nz\nw",
        "0\n\n\n\n\n",
        b"\xff\n\n\n",
        b"\x00",
    ),
    *("2\n" + "9" * 16 + "\n\n", "2\n" + "9" * 4301 + "\n\n", "2\n-5\n\n", "2\n1e3\n\n"),
]


@pytest.mark.parametrize("after", [None, encode(Cursor(5, "m"))], ids=["first page", "far page"])
def test_foreign_names_in_the_index_are_removed(index: Index, after: str | None) -> None:
    backend, client, registry, job = index
    # Given an index to whose set of names another program has added names
    ours = client.smembers(registry)
    client.sadd(registry, *FOREIGN)
    # When the messages are listed, or counted
    listed = StatusRegistry.list(after=after, backend=backend)
    assert after or [snapshot.message_id for snapshot in listed] == [job.message_id]
    client.sadd(registry, *FOREIGN)
    assert StatusRegistry.count(backend=backend) == 1
    # Then only this package's names are left
    assert client.smembers(registry) == ours
    # And event loops can list and count, too
    client.sadd(registry, *FOREIGN)

    async def main() -> None:
        assert len(await aio.StatusRegistry.list(after=after, backend=backend)) == (after is None)
        assert await aio.StatusRegistry.count(backend=backend) == 1
        await aio.close(backend=backend)

    asyncio.run(main())
    # And messages can change their states
    client.sadd(registry, *FOREIGN)
    job.start().finish()
    job.requeue()
    assert StatusRegistry.count(backend=backend) == 1


@pytest.mark.parametrize("kind", ["zset", "string"])
def test_lists_replace_a_forged_set_of_names(index: Index, kind: str) -> None:
    backend, client, registry, job = index
    # Given an index with a value of another type in place of its set of names
    client.delete(registry)
    client.zadd(registry, {"foreign": 1}) if kind == "zset" else client.set(registry, "foreign")
    # When a message enters a state in which there was none
    job.start()
    # Then the message is listed
    assert [snapshot.message_id for snapshot in StatusRegistry.list(backend=backend)] == [job.message_id]
    # And while no message comes, lists and counts are empty
    client.delete(registry)
    client.set(registry, "foreign")
    assert (StatusRegistry.list(backend=backend), StatusRegistry.count(backend=backend)) == ([], 0)


def test_lists_replace_a_forged_set_of_messages(index: Index) -> None:
    backend, client, registry, job = index
    # Given a value of another type in place of the set of working messages, and of the message's present set
    client.set(registry + b'1\n\n"default"\n"work"', "foreign")
    client.set(registry + b'0\n\n"default"\n"work"', "foreign")
    assert (StatusRegistry.list(backend=backend), StatusRegistry.count(backend=backend)) == ([], 0)
    # When the message starts
    job.start()
    # Then the message is listed
    assert [snapshot.message_id for snapshot in StatusRegistry.list(backend=backend)] == [job.message_id]
    assert StatusRegistry.count(backend=backend) == 1


def test_a_forged_score_does_not_trim_a_set(redis_url: str) -> None:
    # Given a small index with a finished message, and another one with a forged score
    with closing(RedisBackend(url=redis_url, timeout=20_000, max_listed=100)) as backend:
        other, to_other = (
            Job(backend).enqueue().start().finish(),
            Update(Kind.OUTSIDE, fields={"Q": '"other"'}, changes=Changes()),
        )
        backend.update(other.message_id, to_other)
        forged = Job(backend).enqueue().start().finish()
        (key,) = backend.client.scan_iter("*index:2*default*")
        backend.client.zadd(key, {forged.message_id: "+inf"})
        # When the second message gets the queue of the first one
        backend.update(forged.message_id, to_other)
        # Then both are listed
        assert StatusRegistry.count(backend=backend) == 2


# Numbers of callers


@pytest.mark.parametrize("number", [10**15, TOO_LONG, -TOO_LONG], ids=["16 digits", "5,001 digits", "negative"])
def test_large_limits_of_a_page_are_refused(every_backend: StatusBackend, number: int) -> None:
    with pytest.raises(ValueError, match=r"^limit must have at most 15 digits"):
        StatusRegistry.list(backend=every_backend, limit=number)


PACK = """
from dramatiq_status.backends.redis.requests import pack
from dramatiq_status.backend import Query
from dramatiq_status.backends import RedisBackend
from dramatiq_status.cursor import Cursor

for attempt in (
    lambda: pack("SET", 10**5000),
    lambda: RedisBackend(port=1).find(Query(), limit=1, after=Cursor(10**5000, "m")),
    lambda: RedisBackend(db=10**5000),
    lambda: RedisBackend(max_listed=10**5000),
):
    try:
        attempt()
    except ValueError as e:
        print("ValueError")
"""


def test_numbers_that_crash_hiredis_are_refused() -> None:
    # When numbers are passed at which hiredis crashes
    ran = subprocess.run([sys.executable, "-c", PACK], capture_output=True, text=True, timeout=60, cwd=ROOT_DIRECTORY)
    # Then an error is raised before they are sent
    assert (ran.returncode, ran.stdout.split()) == (0, ["ValueError"] * 4), ran.stderr


# Messages from the queue

# The largest int that Python reads from JSON.  It has 4,300 digits; hiredis crashes at the next int, which has 4,301.
LONG = 10**4300 - 1

options = st.fixed_dictionaries(
    {},
    optional={
        "retries": st.sampled_from([LONG, -LONG, 1e308, "5", None, True, [1], {}]),
        ENQUEUE_ID_OPTION: st.sampled_from(
            [[LONG, 1], [1, LONG], LONG, [5, 10**15 - 1], "x", [[1], 1], {"1": 1}, [0.5, 1]]
        ),
        HEARTBEAT_OPTION: st.sampled_from([LONG, -1, 0, "x", [1]]),
        ENQUEUED_AT_OPTION: st.sampled_from([LONG, -1, "x", [1]]),
        "status": st.sampled_from(
            [{"progress": LONG}, {"x": LONG}, {"total": "x", 5: 5}, [1], LONG, {"status": "completed"}]
        ),
        "status_ttl": st.sampled_from([LONG, -1, 1e400, "x", [1]]),
        "status_throttle": st.sampled_from([LONG, -1, "x", {}]),
        "status_includes": st.sampled_from([["message", LONG], LONG, [["x"]], "message"]),
        "track_status": st.sampled_from([LONG, "x", [1]]),
    },
)


@settings(parent=settled, max_examples=60)
@given(forged=options, timestamp=st.sampled_from([0, LONG, -LONG, None, "x", 1e308, [1]]))
def collect(forged: dict[str, Any], timestamp: Any) -> None:
    COLLECTED.append((forged, timestamp))


COLLECTED: list[tuple[dict[str, Any], Any]] = []


@pytest.mark.parametrize("store", ["redis", "memcached"])
def test_forged_messages_end_no_worker(
    redis_url: str, redis_broker_url: str, store: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    backend: StatusBackend = RedisBackend(url=redis_url, timeout=20_000)
    if store == "memcached":
        redis_url = request.getfixturevalue("memcached_url")
        backend = MemcachedBackend(servers=request.getfixturevalue("memcached_server").address, timeout=20_000)
    COLLECTED.clear()
    collect()
    broker = mixed_app.make_broker(redis_broker_url)
    client = redis.Redis.from_url(redis_broker_url, socket_timeout=2 * PATIENCE)
    actor = broker.get_actor("fail_once")
    # Given a queue with forged messages among sound ones
    messages = []
    for number, (forged, timestamp) in enumerate(COLLECTED):
        messages.append(actor.send(f"sound {number}"))
        fields = {**actor.message(f"forged {number}").asdict(), "options": forged, "message_timestamp": timestamp}
        fields["options"]["redis_message_id"] = redis_id = f"forged-{number}"
        client.hset("dramatiq:default.msgs", redis_id, json.dumps(fields))
        client.rpush("dramatiq:default", redis_id)
    messages.append(actor.send("last"))
    command = [sys.executable, "-m", "dramatiq", "tests.mixed_app", "--processes", "1", "--threads", "2"]
    environment = {
        **os.environ,
        "MIXED_BROKER": redis_broker_url,
        "MIXED_ENCODER": "json",
        "MIXED_STORE": redis_url,
        "dramatiq_worker_timeout": "50",
    }
    # When a worker runs them
    log = tmp_path / "log"
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, cwd=ROOT_DIRECTORY, env=environment, stderr=stderr) as worker,
    ):
        try:
            found = [
                StatusRegistry.wait(message, backend=backend, timeout=40_000, missing_timeout=40_000)
                for message in messages
            ]
        finally:
            worker.terminate()
    # Then the sound messages have run to their ends in that process, and their statuses show this
    assert all(snapshot.completed for snapshot in found)
    assert [snapshot.attempts for snapshot in found] == [2] * len(found)
    assert log.read_text().count("is ready for action") == 1 and "unexpected" not in log.read_text()
    backend.close()
    broker.close()
