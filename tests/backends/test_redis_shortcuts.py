"""The shortcut of the update script for a run whose start and end arrive in one update."""

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

#: What a record may have besides the fields of an enqueue.
FOUND: dict[str, Record] = {
    "as enqueued": {},
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
    "another run": {"r": "3", "q": "1"},
    "a sequence alone": {"q": "x"},
    "another generation": {"n": "2"},
    "another origin": {"e": "8"},
    "another state": {"s": "2", "F": "3"},
}


def ended(state: int = COMPLETED, **fields: str) -> Update:
    """A whole run."""
    return start(9, F="6", **fields)._replace(state=state, ttl=3_600_000)


ENDS = {
    "completed": ended(),
    "failed": ended(FAILED, x='{"type":"E","message":""}', it='["a"]'),
    "completed with an exception": ended(x="1", it="1"),
    "with a rate": ended(R="[1,2]", W="null", D="7", H="8", p="3"),
    "of another actor": ended(a='"other"', Q='"other"'),
    "cancelled": ended(FAILED, c="true"),
    "after other attempts": ended()._replace(attempts=3),
    "with an increment": ended()._replace(increment=2),
    "without the right to create": ended()._replace(create=False),
    "without a token": ended()._replace(run_token=0),
    "of many fields": ended(**{f"field_{n}": "1" for n in range(998)}),
    "of too many fields for the shortcut": ended(**{f"field_{n}": "1" for n in range(998)}, t="1"),
}


@pytest.fixture(scope="module")
def backend(redis_server: RedisServer) -> Iterator[RedisBackend]:
    with closing(RedisBackend(url=redis_server.url, timeout=20_000)) as made:
        yield made


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("found", FOUND)
def test_a_whole_run_has_the_effect_that_apply_says(backend: RedisBackend, found: str, end: str) -> None:
    # Given the record of a message
    message_id, update = uuid4().hex, ENDS[end]
    backend.update(message_id, ENQUEUED)
    if FOUND[found]:
        backend.client.hset(backend.keys.key_of(message_id), mapping=FOUND[found])
    before = stored(backend, message_id)
    # When a run of it is stored
    outcome = backend.update(message_id, update)
    # Then the record and its place in the lists are what `apply` says
    expected = apply(before if is_sound(before) else None, update, backend.now())
    after = stored(backend, message_id)
    assert outcome is expected.outcome
    assert after == before if expected.record is None else timeless(after) == timeless(expected.record)
    if is_stored(outcome) and is_sound(before) and "s" not in FOUND[found]:
        assert 3_500_000 < backend.client.pttl(backend.keys.key_of(message_id)) <= 3_600_000
        assert sets_of(backend, message_id) == [f"{after['s']}\n3600000\n{after.get('Q', '')}\n{after.get('a', '')}"]


def stored(backend: RedisBackend, message_id: str) -> Record:
    found = backend.client.hgetall(backend.keys.key_of(message_id))
    return {name.decode(): text.decode() for name, text in found.items()}


def sets_of(backend: RedisBackend, message_id: str) -> list[str]:
    """The names of the sets of the index that have a message."""
    prefix, client = backend.keys.indexes[0], backend.client
    names = [name.decode() for name in client.smembers(prefix)]
    return [name for name in names if client.zscore(prefix + name, message_id) is not None]
