"""The shortcut of the update script for the start of a run after its enqueue, with or without the end of the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from uuid import uuid4

import pytest

from dramatiq_status.backends import RedisBackend
from dramatiq_status.record import COMPLETED, FAILED, Record, is_sound
from dramatiq_status.testing.updates import enqueue, start, timeless
from dramatiq_status.update import Update, apply, is_stored
from tests.servers import RedisServer

LISTED = {"a": '"actor"', "Q": '"queue"', "E": "5"}

ENQUEUED = enqueue(**LISTED, rows="1")

#: Values that a record may have besides the fields of an enqueue, by case.  The version is 2 unless a case names one.
FOUND: dict[str, Record] = {
    "as enqueued": {},
    "as enqueued with a delay": {"v": "1", "D": "99", "L": "60000", "p": "7"},
    "as enqueued with a broken delay": {"v": "1", "D": "x"},
    "as enqueued in a second generation": {"v": "1", "n": "2", "N": "[8,1]", "x": '{"type":"E","message":""}'},
    "a lifetime": {"L": "60000"},
    "counts": {"p": "7"},
    "broken counts": {"p": "0.5"},
    "a broken lifetime": {"L": "x"},
    "an empty version": {"v": ""},
    "a long version": {"v": "1" * 16},
    "leftovers of a run": {"R": "[1,2]", "W": "3", "F": "4", "k": "true", "N": "[1,0]", "H": "5"},
    "an exception": {"x": '{"type":"E","message":""}', "it": '["a"]'},
    "a request to cancel it": {"C": "5"},
    "a delay": {"D": "99"},
    "an earlier run": {"A": "1"},
    "a failed run": {"A": "1", "S": "5", "N": "[8,1]", "x": '{"type":"E","message":""}', "D": "99", "p": "7"},
    "a run put back": {"A": "6", "S": "5", "N": "[8,0]", "x": '{"type":"E","message":""}'},
    "a run without an end": {"A": "2", "S": "5"},
    "a run whose end is broken": {"A": "2", "N": "null", "x": "1"},
    "seven runs": {"A": "7", "N": "[8,1]", "x": '{"type":"E","message":""}'},
    "eight runs": {"A": "8", "N": "[8,1]", "x": '{"type":"E","message":""}'},
    "a long exception": {"A": "1", "N": "[8,1]", "x": '{"type":"E","message":"' + "a" * 500 + '"}'},
    "an exception of the maximum size": {"A": "1", "N": "[8,1]", "x": '{"type":"E","message":"' + "a" * 487 + '"}'},
    "broken attempts": {"A": "x"},
    "no attempts": {"A": "0"},
    "an empty number of attempts": {"A": ""},
    "a broken delay": {"D": "x"},
    "a long delay": {"D": "9" * 16},
    "another run": {"r": "3", "q": "1"},
    "a sequence alone": {"q": "x"},
    "another generation": {"n": "2"},
    "another origin": {"e": "8"},
    "another state": {"s": "2", "F": "3"},
}


def ended(state: int = COMPLETED, **fields: str) -> Update:
    """Return an update with a whole run."""
    return start(9, F="6", **fields)._replace(state=state, ttl=3_600_000)


ENDS = {
    "completed": ended(),
    "failed": ended(FAILED, x='{"type":"E","message":""}', it='["a"]'),
    "completed with an exception": ended(x="1", it="1"),
    "with a rate": ended(R="[1,2]", W="null", D="7", H="8", p="3"),
    "of another actor": ended(a='"other"', Q='"other"'),
    "cancelled": ended(FAILED, c="true"),
    "after other attempts": ended()._replace(attempts=3),
    "after a retry": ended()._replace(attempts=2),
    "failed after a retry": ended(FAILED, p="3")._replace(attempts=2),
    "with an increment": ended()._replace(increment=2),
    "without the right to create": ended()._replace(create=False),
    "without a token": ended()._replace(run_token=0),
    "of many fields": ended(**{f"field_{n}": "1" for n in range(998)}),
    "of too many fields for the shortcut": ended(**{f"field_{n}": "1" for n in range(998)}, t="1"),
}

STARTS = {
    "first": start(9),
    "after a retry": start(9, attempts=2, p="0"),
    "after two": start(9, attempts=3),
    "after six": start(9, attempts=7),
    "after seven": start(9, attempts=8),
    "after eight": start(9, attempts=9),
    "after missing ones": start(9, attempts=4),
    "with fields": start(9, R="5", W="null", H="8", x="1", a='"other"', Q='"other"', t="50"),
    "with a lifetime": start(9, attempts=2, L="3600000"),
    "with a delay": start(9, D=str(2_000_000_000_000)),
    "with an increment": start(9)._replace(increment=2),
    "without the right to create": start(9, create=False),
    "without a token": start(0),
}


@pytest.fixture(scope="module")
def backend(redis_server: RedisServer) -> Iterator[RedisBackend]:
    with closing(RedisBackend(url=redis_server.url, timeout=20_000)) as made:
        yield made


@pytest.mark.parametrize("found", FOUND)
def test_a_start_has_the_effect_of_apply(backend: RedisBackend, found: str) -> None:
    for name, update in {**STARTS, **ENDS}.items():
        check(backend, FOUND[found], name, update)


def check(backend: RedisBackend, found: Record, name: str, update: Update) -> None:
    # Given the record of a message
    message_id = uuid4().hex
    backend.update(message_id, ENQUEUED)
    if found:
        backend.client.hset(backend.keys.key_of(message_id), mapping={"v": "2", **found})
    before = stored(backend, message_id)
    # When a run of it is stored
    outcome = backend.update(message_id, update)
    # Then the record and its place in the lists are those of `apply`
    expected = apply(before if is_sound(before) else None, update, backend.now())
    after = stored(backend, message_id)
    assert (name, outcome) == (name, expected.outcome)
    assert after == before if expected.record is None else (name, timeless(after)) == (name, timeless(expected.record))
    if is_stored(outcome) and is_sound(before) and "s" not in found:
        assert expected.ttl is not None
        ttl = backend.client.pttl(backend.keys.key_of(message_id))
        assert expected.ttl - 100_000 < ttl <= expected.ttl + 10_000
        lives = "" if after["s"] == "1" else "3600000"
        assert sets_of(backend, message_id) == [f"{after['s']}\n{lives}\n{after.get('Q', '')}\n{after.get('a', '')}"]


def stored(backend: RedisBackend, message_id: str) -> Record:
    found = backend.client.hgetall(backend.keys.key_of(message_id))
    return {name.decode(): text.decode() for name, text in found.items()}


def sets_of(backend: RedisBackend, message_id: str) -> list[str]:
    """Return the names of the sets of the index that have a message."""
    prefix, client = backend.keys.indexes[0], backend.client
    names = [name.decode() for name in client.smembers(prefix)]
    return [name for name in names if client.zscore(prefix + name, message_id) is not None]
