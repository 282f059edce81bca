"""Tests of the index of the Redis backend: it is correct, and its size is limited."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from dramatiq_status import StatusRegistry
from dramatiq_status.backend import Query
from dramatiq_status.backends.redis import RedisBackend
from dramatiq_status.cursor import Cursor
from dramatiq_status.errors import NotSupported
from dramatiq_status.record import FAILED, QUEUED, WORKING
from dramatiq_status.testing.conformance import enqueue, finish, heartbeat, outside, pages_of, start, write

from ..recording import eventually
from .redis_hooks import FixedClock

#: Time-out in milliseconds that no test reaches by chance, even on a busy machine.
PATIENT = 20_000

ALL = Query()


@pytest.fixture
def backend(redis_url: str) -> Iterator[RedisBackend]:
    backend = RedisBackend(url=redis_url, timeout=PATIENT)
    yield backend
    backend.close()


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


def sets_of(client: redis.Redis) -> dict[str, list[str]]:
    """Return the sets of the index, by state, time to live, queue and actor."""
    found = {}
    for key in client.keys("*"):
        if client.type(key) == "zset":
            found[key.partition("index:")[2]] = client.zrange(key, 0, -1)
    return found


def listed(backend: RedisBackend, query: Query = ALL, limit: int = 50) -> list[str]:
    """Return the ids of the first page."""
    return [found.message_id for found in backend.find(query, limit=limit, after=None)]


def page_by_page(backend: RedisBackend, limit: int) -> list[list[str]]:
    """Return the ids of all pages."""
    return [[found.message_id for found in page] for page in pages_of(backend, ALL, limit)]


def test_a_message_is_in_one_set(backend: RedisBackend, client: redis.Redis) -> None:
    # Given a message
    seen = []
    # When it goes through its life
    for update in (
        enqueue(a='"rows"', Q='"low"'),
        start(1),
        write(1, 2, step="1"),
        heartbeat(1),
        enqueue(generation=2),
        start(2, generation=2),
        finish(2, generation=2, ttl=60_000),
        outside(state=FAILED, ttl=90_000),
        enqueue(origin=8, a='"rows"', Q='"low"'),
    ):
        backend.update("m", update)
        seen.append(sets_of(client))
    # Then it is always in the set of its present state, and in no other
    queued, working = '0\n\n"low"\n"rows"', '1\n\n"low"\n"rows"'
    # A final state that is changed from outside keeps its expiry.
    completed, failed = '2\n60000\n"low"\n"rows"', '3\n60000\n"low"\n"rows"'
    names = [queued, working, working, working, queued, working, completed, failed, queued]
    assert seen == [{name: ["m"]} for name in names]


def test_plain_writes_do_not_touch_the_index(backend: RedisBackend, client: redis.Redis) -> None:
    # Given a running message
    backend.update_many([("m", start(1)), ("m", write(1, 2, step="1"))])
    client.config_resetstat()
    # When its run and other processes write to it
    backend.update_many([("m", write(1, 3, increment=1)), ("m", outside(increment=1, user="1")), ("m", heartbeat(1))])
    # Then the server has executed no command of sorted sets
    assert not [name for name in client.info("commandstats") if "_z" in name]


def test_the_key_space_is_never_scanned(backend: RedisBackend, client: redis.Redis) -> None:
    # Given some messages
    backend.update_many([(f"m{n}", enqueue(a=f'"actor{n % 3}"')) for n in range(100)])
    client.config_resetstat()
    # When they are listed and counted
    list(pages_of(backend, Query(QUEUED, "actor1"), limit=10))
    backend.count(ALL)
    # Then neither SCAN nor KEYS was called
    commands = {name.removeprefix("cmdstat_") for name in client.info("commandstats")}
    assert commands & {"scan", "keys", "sscan", "zscan", "hscan"} == set()
    assert "zrevrange" in commands


@pytest.mark.parametrize("states", [(QUEUED,), (QUEUED, WORKING)], ids=["one set", "two sets"])
def test_pages_are_pieces_of_the_whole_list(backend: RedisBackend, states: tuple[int, ...]) -> None:
    # Given many messages
    ids = [f"m{n:04}" for n in range(3000)]
    for first in range(0, len(ids), 100):
        updates = []
        for n, message_id in enumerate(ids[first : first + 100]):
            updates.append((message_id, enqueue() if states[n % len(states)] == QUEUED else start(1)))
        backend.update_many(updates)
    newest = ids[::-1]
    for limit in (50, 999, 1000):
        # When they are listed, page by page
        pages = page_by_page(backend, limit)
        # Then they are the pieces of the whole list
        assert pages == [newest[first : first + limit] for first in range(0, 3000, limit)]


@pytest.mark.parametrize("apart", [False, True], ids=["at the same time", "one after another"])
def test_pages_of_many_sets_are_pieces_of_the_whole_list(backend: RedisBackend, apart: bool) -> None:
    # Given messages of many actors, enqueued at the same time or one after another
    ids = [f"m{n:04}" for n in range(2400)]
    for first in range(0, len(ids), 100):
        numbers = range(first, first + 100)
        actors = [n // 6 if apart else n % 400 for n in numbers]
        backend.update_many([(ids[n], enqueue(a=f'"actor{actor}"')) for n, actor in zip(numbers, actors)])
    newest = ids[::-1]
    for limit in (50, 999):
        # When they are listed, page by page
        pages = page_by_page(backend, limit)
        # Then they are the pieces of the whole list
        assert pages == [newest[first : first + limit] for first in range(0, 2400, limit)]


@pytest.mark.parametrize("sets", [1, 3])
def test_pages_of_messages_with_the_same_timestamp(backend: RedisBackend, client: redis.Redis, sets: int) -> None:
    # Given messages with the same timestamp, and ids that Python, Lua and Redis might order differently
    ids = [f"{letter}{n}" for letter in ("a", "B", "-", "ä", "Z", "ž", "😀", "a-", "aB") for n in range(12)]
    backend.update_many([(message_id, enqueue(a=f'"actor{n % sets}"')) for n, message_id in enumerate(ids)])
    for name, members in sets_of(client).items():
        client.zadd("dramatiq-status index:" + name, dict.fromkeys(members, 1_795_479_267_029_000))
    newest = sorted(ids, key=str.encode, reverse=True)
    for limit in (1, 7, 100):
        # When they are listed, page by page
        pages = page_by_page(backend, limit)
        # Then each message is on one page, and the ids of a timestamp are ordered by their bytes
        assert pages == [newest[first : first + limit] for first in range(0, len(ids), limit)]


@pytest.mark.parametrize("sets", [1, 7])
def test_a_page_takes_as_many_commands_wherever_it_is(backend: RedisBackend, client: redis.Redis, sets: int) -> None:
    # Given many messages
    for first in range(0, 4000, 100):
        backend.update_many([(f"m{n}", enqueue(a=f'"actor{n % sets}"')) for n in range(first, first + 100)])
    whole = [found for page in pages_of(backend, ALL, 1000) for found in page]
    commands, ranges = [], []
    for place in (49, 1999, 3949):
        client.config_resetstat()
        # When a page is listed, wherever it is
        page = backend.find(ALL, limit=50, after=Cursor(whole[place].position, whole[place].message_id))
        assert page == whole[place + 1 : place + 51]
        # Then it takes the same number of commands
        stats = client.info("commandstats")
        commands.append({name: stats[name]["calls"] for name in stats if name.removeprefix("cmdstat_")[0] in "zh"})
        ranges.append(stats["cmdstat_zrevrange"]["calls"])
    assert max(sum(one.values()) for one in commands) - min(sum(one.values()) for one in commands) <= sets
    assert max(ranges) <= 3 * sets


def test_a_list_removes_lost_messages_from_the_index(backend: RedisBackend, client: redis.Redis) -> None:
    # Given messages of which the store has lost some, and others that are in another state than in the index
    backend.update_many([(f"m{n}", enqueue()) for n in range(10)])
    client.delete("dramatiq-status:m3", "dramatiq-status:m9")
    client.hset("dramatiq-status:m5", "s", "1")
    # When they are listed
    found = listed(backend, limit=4)
    # Then the page is full, and has none of these
    assert found == ["m8", "m7", "m6", "m4"]
    # And the index no longer contains the lost messages that the list has passed
    assert listed(backend) == ["m8", "m7", "m6", "m4", "m2", "m1", "m0"] and backend.count(ALL) == 7


def test_a_page_under_very_many_that_are_lost(backend: RedisBackend, client: redis.Redis) -> None:
    # Given a message, and newer ones that the store has lost, more of them than one call looks up
    lost = [f"m{n}" for n in range(6000)]
    backend.update_many([("old", enqueue()), *((message_id, enqueue()) for message_id in lost)])
    client.delete(*(f"dramatiq-status:{message_id}" for message_id in lost))
    # When a page is listed
    found = listed(backend, limit=1)
    # Then the page is full
    assert found == ["old"]


def test_each_count_finds_more_of_many_lost_messages(backend: RedisBackend, client: redis.Redis) -> None:
    # Given more waiting messages than one call checks, most of which the store has lost
    ids = [f"m{n}" for n in range(6000)]
    backend.update_many([(message_id, enqueue(a=f'"actor{n % 2}"')) for n, message_id in enumerate(ids)])
    client.delete(*(f"dramatiq-status:{message_id}" for message_id in ids[:5000]))
    # When they are counted again and again
    counts = [backend.count(ALL) for _ in range(20)]
    # Then each count finds more of the lost messages, until all are found
    assert counts == sorted(counts, reverse=True)
    assert 1000 < counts[0] < 6000 and counts[-1] == 1000


def test_finished_messages_leave_with_their_records(backend: RedisBackend, client: redis.Redis) -> None:
    # Given messages that live for different times after their end
    ends = {"short": 150, "long": 60_000}
    client.config_resetstat()
    for message_id, ttl in ends.items():
        backend.update_many([(message_id, start(1)), (message_id, finish(1, ttl=ttl))])
    assert client.info("commandstats")["cmdstat_zadd"]["calls"] == 4
    # When one of them has expired
    eventually(lambda: client.exists("dramatiq-status:short") == 0)
    # Then it is neither counted nor listed
    assert eventually(lambda: backend.count(ALL) == 1)
    assert listed(backend) == ["long"]


def test_a_later_end_removes_expired_messages_from_the_set(backend: RedisBackend, client: redis.Redis) -> None:
    # Given a message that was completed, whose time is over by the clock of the script
    backend.transport.clock = FixedClock(1_000_000)
    backend.update_many([("old", start(1)), ("old", finish(1, ttl=60_000))])
    # When other messages are completed later
    backend.transport.clock = FixedClock(1_061_000)
    ids = [f"new{n:02}" for n in range(16)]
    backend.update_many([(message_id, update) for message_id in ids for update in (start(1), finish(1, ttl=60_000))])
    # Then the set has only the later ones
    assert list(sets_of(client).values()) == [ids]


def test_max_listed_limits_each_set_of_the_index(redis_url: str, client: redis.Redis) -> None:
    # Given a backend that lists ten messages of a state, queue and actor
    backend = RedisBackend(url=redis_url, timeout=PATIENT, max_listed=10)
    # When each set gets more than ten
    backend.update_many([(f"m{n:02}", enqueue(a=f'"actor{n % 2}"')) for n in range(50)])
    # Then each set has the newest ten
    assert listed(backend) == [f"m{n}" for n in range(49, 29, -1)]
    assert (backend.count(ALL), backend.count(Query(actor_name="actor1"))) == (20, 10)
    # And the records of the other messages are complete
    assert backend.read("m00") is not None
    backend.close()


def test_odd_times_to_live_share_sets(backend: RedisBackend, client: redis.Redis) -> None:
    # Given messages with different times to live
    for n in range(300):
        backend.update_many([(f"m{n}", start(1)), (f"m{n}", finish(1, ttl=3_600_001 + 100 * n))])
    # Then there are few sets, and no set expires before its messages
    assert [name.split("\n")[1] for name in sets_of(client)] == ["3700000"]


def test_every_key_expires(backend: RedisBackend, client: redis.Redis) -> None:
    # Given messages in all states
    backend.update_many([("q", enqueue()), ("w", start(1)), ("c", start(1)), ("c", finish(1))])
    backend.update_many([("l", enqueue(L="2592000000", D=str(backend.now() + 1_000_000)))])
    # Then each record and each set of the index will expire, and so will the names of the sets
    ttls = {key: client.pttl(key) for key in client.keys("*")}
    registry = "dramatiq-status index:"
    assert min(ttls.values()) > 0
    # And a set expires after its records, and the names expire after each set
    assert ttls[registry + "0\n\n\n"] > client.pttl("dramatiq-status:l")
    assert ttls[registry] >= max(ttls.values()) - 1000
    # And when the sets are gone, a count removes their names
    for key in client.keys(registry + "?*"):
        client.delete(key)
    assert (backend.count(ALL), client.exists(registry)) == (0, 0)


def test_the_names_of_sets_come_back(backend: RedisBackend, client: redis.Redis) -> None:
    # Given a message, and an index that has lost the names of its sets
    backend.update("m", enqueue())
    client.delete("dramatiq-status index:")
    assert listed(backend) == []
    # When another message is stored some time later
    client.pexpire("dramatiq-status index:0\n\n\n", 60_000)
    backend.update("n", enqueue())
    # Then both are listed, and all keys of the index expire late enough
    assert listed(backend) == ["n", "m"]
    assert min(client.pttl(key) for key in client.keys("*index:*")) > client.pttl("dramatiq-status:n")


def test_names_of_deleted_sets_are_removed(backend: RedisBackend, client: redis.Redis) -> None:
    # Given the names of many deleted sets, and no reader that lists
    registry = "dramatiq-status index:"
    backend.update_many([(f"m{n}", enqueue(Q=f'"tenant{n}"')) for n in range(300)])
    client.delete(*client.keys(registry + "?*"))
    # When messages of other names are stored
    backend.update_many([(f"n{n}", enqueue(Q=f'"customer{n}"')) for n in range(300)])
    # Then most of the old names are removed, and none of the new ones
    names = client.smembers(registry)
    assert len(names) < 450 and sum("customer" in name for name in names) == 300


def test_a_set_is_not_cut_short(backend: RedisBackend, client: redis.Redis) -> None:
    # Given a message that may wait for a month
    backend.update("long", enqueue(L="2592000000"))
    before = client.pttl("dramatiq-status index:0\n\n\n")
    # When a message with a shorter time to live enters the same set
    backend.update("short", enqueue(L="60000"))
    # Then the set still lives as long as the first message
    assert client.pttl("dramatiq-status index:0\n\n\n") > before - 60_000


def test_a_backend_without_an_index_cannot_list(redis_url: str, client: redis.Redis) -> None:
    # Given a backend without an index
    backend = RedisBackend(url=redis_url, timeout=PATIENT, max_listed=0)
    backend.update_many([("m", enqueue()), ("m", start(1)), ("m", finish(1))])
    # When a list is read
    with pytest.raises(NotSupported, match="max_listed=0"):
        StatusRegistry.list(backend=backend)
    # Then the error has the reason, and the store has only the record
    assert client.keys("*") == ["dramatiq-status:m"]
    assert backend.delete("m") and client.keys("*") == []
    backend.close()


def test_lists_find_odd_names(backend: RedisBackend) -> None:
    # Given actors and queues with odd names
    names = ['"', "\n", "a b", "žluť", "*", "%d", "1\n\n"]
    for n, name in enumerate(names):
        backend.update(f"m{n}", enqueue(a=json.dumps(name), Q=json.dumps(name + "!")))
    # Then a list by each name has the right messages
    for n, name in enumerate(names):
        assert listed(backend, Query(None, name, name + "!")) == [f"m{n}"]


@pytest.mark.parametrize("bad", [-1, 1.5, "10", True], ids=repr)
def test_a_wrong_max_listed_raises(bad: Any) -> None:
    # Given a value that is no number of messages
    # When a backend is made with it
    # Then the error names the parameter
    with pytest.raises((TypeError, ValueError), match="max_listed"):
        RedisBackend(max_listed=bad)
