"""Requests, their bytes and their replies, without a server."""

from __future__ import annotations

from typing import Any

import pytest

from dramatiq_status.backends.redis import requests
from dramatiq_status.backends.redis.clock import ServerClock
from dramatiq_status.backends.redis.keys import Keys, ShardedKeys
from dramatiq_status.backends.redis.protocol import UpdateCall
from dramatiq_status.backends.redis.requests import Command, Exchange, ReadRequest, Request, ScriptCall, pack
from dramatiq_status.backends.redis.script import UPDATE
from dramatiq_status.errors import BackendError
from dramatiq_status.testing.conformance.cases import CASES
from dramatiq_status.testing.updates import cancel, counting, deleting, enqueue, heartbeat, outside, start, write
from dramatiq_status.update import EnqueueId

from .redis_hooks import FixedClock

CLOCK: Any = FixedClock(1_000)

LOAD = pack("SCRIPT", "LOAD", UPDATE.text)


def an_update(*message_ids: str) -> UpdateCall:
    """Return a call for one update of each message."""
    updates = [(message_id, write(1, 2)) for message_id in message_ids]
    return UpdateCall(Keys("n", 0), 0, updates, range(len(updates)))


def exchanged(requests: list[Request], *replies: Any, clock: Any = CLOCK) -> Exchange:
    """Return an exchange that has taken replies, one after the other."""
    exchange, left = Exchange(requests, clock), list(replies)
    while left:
        taken = [left.pop(0) for _ in range(exchange.expected)]
        exchange.take(taken)
    return exchange


def test_updates_of_all_kinds_have_the_same_bytes_without_hiredis(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given updates of all kinds, alone and together
    updates = [update for given, update, _ in CASES.values() for update in (*given, update)]
    calls = [
        UpdateCall(Keys("n", 0), 0, [("m", update) for update in some], range(len(some)))
        for some in (*([update] for update in updates), updates)
    ]
    # When they are packed by hiredis, and without it
    packed = [call.pack(CLOCK) for call in calls]
    monkeypatch.setattr(requests, "hiredis", None)
    # Then the bytes are the same
    assert [call.pack(CLOCK) for call in calls] == packed


def test_each_request_gets_its_own_replies() -> None:
    # Given requests with different numbers of replies
    update, reads, ttl = an_update("m"), ReadRequest(0, ["n:a", "n:b"], [0, 1]), Command(0, "PTTL", "n:m")
    # When the replies arrive
    exchange = exchanged([update, reads, ttl], [1], ["s", "1"], [], 5)
    # Then each request has its own
    assert (update.replies, reads.replies, ttl.replies) == ([[1]], [["s", "1"], []], [5])
    assert (exchange.expected, exchange.answered, exchange.refusal) == (0, 3, None)


def test_an_exchange_that_has_not_ended_has_the_requests_that_were_answered() -> None:
    requests: list[Request] = [an_update("m"), an_update("m")]
    assert exchanged(requests, [1]).answered == 1
    assert requests[1].replies == ()


def test_an_unknown_script_is_loaded_once_for_all_requests() -> None:
    # Given a server without the script
    requests: list[Request] = [an_update("m"), Command(0, "PTTL", "n:m"), an_update("n")]
    exchange = exchanged(requests, Exception("NOSCRIPT"), 5, Exception("NOSCRIPT"))
    # When the requests for it are sent again
    again = Exchange(exchange.unknown, CLOCK)
    # Then the script comes before them, once
    assert again.packed == LOAD + requests[0].pack(CLOCK) + requests[2].pack(CLOCK)
    again.take(["sha"])
    again.take([[1]])
    again.take([[1]])
    assert [request.error for request in requests] == [None] * 3 and not again.unknown


def test_the_clock_is_measured_after_a_script_was_loaded() -> None:
    # Given a request whose script the server does not have, and a clock that was not measured
    request, clock = an_update("m"), ServerClock()
    exchanged([request], Exception("NOSCRIPT"))
    # When the script is loaded
    exchange = Exchange([request], clock)
    # Then the server's time comes after that
    assert exchange.packed == LOAD + pack("TIME") + request.pack(clock)
    exchange.take(["sha", ("1000", "500000")])
    assert 1_000_000 < clock.now() < 2_000_000


def test_a_script_that_is_unknown_after_it_was_loaded_is_an_error() -> None:
    request = an_update("m")
    exchanged([request], Exception("NOSCRIPT"))
    assert request.error is not None and request.unknown
    exchange = exchanged([request], "sha", Exception("NOSCRIPT"))
    assert not request.unknown and not exchange.unknown
    with pytest.raises(BackendError, match="NOSCRIPT"):
        request.result()


def test_an_error_belongs_to_its_request() -> None:
    # Given requests, one of which the server refuses
    requests: list[Request] = [an_update("m"), an_update("n")]
    # When the replies arrive
    exchange = exchanged(requests, Exception("OOM no room"), [1])
    # Then the other one has its reply
    assert "OOM" in str(requests[0].error) and requests[1].error is None and requests[1].result() == [1]
    assert str(exchange.refusal) == "OOM no room"


def test_a_refused_read_leaves_the_others_alone() -> None:
    reads = ReadRequest(0, ["n:a", "n:b"], [0, 1])
    exchange = exchanged([reads], Exception("WRONGTYPE"), ["s", "1"])
    assert (reads.error, exchange.refusal, reads.replies[1]) == (None, None, ["s", "1"])


def test_a_script_that_may_not_be_loaded_fails_all_requests_with_the_reason() -> None:
    requests: list[Request] = [an_update("m"), an_update("n")]
    exchanged(requests, Exception("NOSCRIPT"), Exception("NOSCRIPT"))
    exchanged(requests, Exception("NOPERM script|load"), Exception("NOSCRIPT"), Exception("NOSCRIPT"))
    assert ["NOPERM" in str(request.error) for request in requests] == [True, True]


def test_the_first_exchange_measures_the_clock() -> None:
    # Given a server whose time is unknown
    clock = ServerClock()
    # When an exchange queries it in its first round trip
    exchange = exchanged([Command(0, "PTTL", "n:m")], ("2000000000", "500000"), 5, clock=clock)
    # Then the clock is the server's
    assert exchange.packed.startswith(b"*1\r\n$4\r\nTIME\r\n")
    assert abs(clock.now() - 2_000_000_000_500) < 60_000


def test_a_request_to_a_node_that_gets_the_slot_comes_after_asking() -> None:
    update = UpdateCall(ShardedKeys("n", 100), 3, [("m", enqueue())], [0])
    listed = update.pack(CLOCK)
    update.arriving = True
    exchange = exchanged([update], "OK", [1])
    # The node may lack parts of the index, so the script must not change it.
    assert exchange.packed.startswith(b"*1\r\n$6\r\nASKING\r\n") and listed not in exchange.packed
    assert b" index:" in listed and b" index:" not in exchange.packed
    assert update.result() == [1]


def test_requests_are_split_by_message() -> None:
    # Given updates of two messages, one of them twice
    call = an_update("a", "b", "a")
    # When they are split
    parts = call.split()
    # Then the updates of a message stay together, in their order, and keep their positions
    assert [([message_id for message_id, _ in part.updates], list(part.positions)) for part in parts] == [
        (["a", "a"], [0, 2]),
        (["b"], [1]),
    ]
    assert parts[1].split() == (parts[1],)
    reads = ReadRequest(0, ["n:a", "n:b"], [4, 7]).split()
    assert [(read.keys, read.positions) for read in reads if isinstance(read, ReadRequest)] == [
        (("n:a",), (4,)),
        (("n:b",), (7,)),
    ]


def test_an_increment_from_outside_is_not_repeatable() -> None:
    def call(*updates: Any) -> UpdateCall:
        return UpdateCall(Keys("n", 0), 0, [("m", update) for update in updates], range(len(updates)))

    assert call(outside(step="1"), write(1, 2, increment=1)).repeatable
    assert not call(outside(step="1"), outside(increment=1)).repeatable


@pytest.mark.parametrize(
    "update",
    [
        *(outside(step='"é"'), outside(increment=0.5), outside(), outside(step="1", increment=-2, state=3)),
        *(enqueue(step="1"), write(1, 2, step="1"), write(1, 2, state=2), deleting(outside(), "step"), heartbeat(5)),
        *(counting(write(1, 2), rows=2), cancel(cr='"user left"')),
        # An enqueue, and a whole run
        *(enqueue(), enqueue(step='"é"'), enqueue(step="0", rows="[1, 2]"), start(3, create=False)._replace(state=2)),
        *(
            start(3, step='"é"', create=False)._replace(state=3),
            start(3, rows="1", create=False)._replace(state=2, ttl=1),
        ),
        # Updates of these kinds with values that are long, large or many
        *(
            enqueue(step="9" * 1023),
            enqueue(step="9" * 1024),
            enqueue(**{f"step{number}": "1" for number in range(130)}),
        ),
        *(enqueue()._replace(enqueue_id=EnqueueId(7, generation)) for generation in (255, 256)),
        start(3, rows="9" * 1024, create=False)._replace(state=2),
        # Almost a whole run
        *(start(3)._replace(state=2), start(3, create=False)._replace(state=2, increment=2)),
        *(start(3, create=False, sequence=2)._replace(state=2), start(3, create=False, attempts=2)._replace(state=2)),
        counting(start(3, create=False)._replace(state=2), rows=2),
    ],
)
@pytest.mark.parametrize("keys", [Keys("n", 10), Keys("é", 10), Keys("n", 0), ShardedKeys("n", 10)])
@pytest.mark.parametrize("clock", [CLOCK, ServerClock()])
def test_an_update_is_packed_as_every_script_call_is(keys: Keys, clock: Any, update: Any) -> None:
    shard = keys.shard_of("m")
    call = UpdateCall(keys, shard, [("m", update)], [0])
    assert call.pack(clock) == ScriptCall.pack(call, clock)
    call.arriving = True
    assert call.pack(clock) == ScriptCall.pack(call, clock)


@pytest.mark.parametrize(
    "update", [outside(step="1"), outside(increment=0.5), outside(step="1", rows="2", increment=-2)]
)
def test_an_update_from_outside_has_the_same_arguments_alone_and_with_others(update: Any) -> None:
    def arguments(*updates: Any) -> list[str]:
        call = UpdateCall(Keys("n", 0), 0, [("m", update) for update in updates], range(len(updates)))
        return call.arguments(CLOCK)

    # The first argument of a call is the time.
    assert arguments(update, write(1, 2)) == [*arguments(update), *arguments(write(1, 2))[1:]]
