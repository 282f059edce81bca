"""Conformance tests of requests to cancel messages."""

from __future__ import annotations

from functools import partial
from uuid import uuid4

import pytest

from ...backend import Query, StatusBackend
from ...cancel_log import mark_of
from ...decoding import take_snapshot
from ...errors import BackendError
from ...record import (
    CANCEL_REASON,
    CANCEL_REQUESTED_AT,
    CANCELLED,
    DEFAULT_LIVE_TTL,
    FAILED,
    QUEUED,
    STATE,
)
from ...snapshot import Snapshot
from ...update import Outcome, Update
from ..updates import cancel, enqueue, finish, start, write
from .store import PausableServer, StoreTests, listed, together, until_answered

#: Number of repetitions of a race.
ROUNDS = 8


class Cancels(StoreTests):
    """Tests of requests to cancel messages.  Each race ends in a state that follows from one of the possible orders."""

    def test_a_waiting_message_ends_at_once(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message that waits
        backend.update(message_id, enqueue(step="1"))
        # When it is cancelled
        outcome = backend.update(message_id, cancel(cr='"user left"'))
        # Then it has ended, and its snapshot has the reason and the time
        snapshot = snapshot_of(backend, message_id)
        assert (outcome, snapshot.state, snapshot.cancelled) == (Outcome.APPLIED, "failed", True)
        assert (snapshot.cancel_reason, snapshot["step"]) == ("user left", 1)
        assert snapshot.cancel_requested_at == snapshot.finished_at is not None

    def test_a_cancelled_message_lives_as_long_as_it_waits(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message with a delay of a day
        day = 86_400_000
        backend.update(message_id, enqueue(D=str(backend.now() + day)))
        # When it is cancelled
        backend.update(message_id, cancel())
        # Then its record lives until a worker gets the message
        ttl = self.ttl_of(backend, message_id)
        assert ttl is not None and ttl > DEFAULT_LIVE_TTL + day - self.ttl_tolerance - self.ttl_resolution
        # And after a worker has dropped the message, the record lives as long as that of any finished message
        dropped = backend.update(message_id, finish(0, 0, state=FAILED, ttl=60_000, c="true"))
        ttl = self.ttl_of(backend, message_id)
        assert dropped is Outcome.CANCELLED and ttl is not None and ttl <= 60_000 + 2 * self.ttl_resolution
        assert snapshot_of(backend, message_id).cancelled

    def test_no_run_of_a_cancelled_message_begins(self, backend: StatusBackend, message_id: str) -> None:
        # Given a cancelled message
        backend.update_many([(message_id, enqueue()), (message_id, cancel())])
        # When two workers begin to run it and write to it
        outcomes = backend.update_many([(message_id, start(1)), (message_id, write(1, 2)), (message_id, start(2))])
        # Then all three updates are refused, and the message stays cancelled
        assert outcomes == [Outcome.CANCELLED, Outcome.REFUSED, Outcome.CANCELLED]
        assert snapshot_of(backend, message_id).cancelled

    def test_a_message_that_was_asked_to_stop_is_not_retried(self, backend: StatusBackend, message_id: str) -> None:
        # Given a running message that was asked to stop
        backend.update_many([(message_id, enqueue()), (message_id, start(1)), (message_id, cancel())])
        # When its run fails and enqueues a retry
        backend.update(message_id, enqueue(generation=2, D="9", N="[8,1]", x='{"type":"E","message":"a"}'))
        # Then it has ended as cancelled, and the run keeps its exception
        snapshot = snapshot_of(backend, message_id)
        assert (snapshot.state, snapshot.cancelled) == ("failed", True)
        assert [(run.outcome, run.exception) for run in snapshot.runs] == [("retried", {"type": "E", "message": "a"})]
        # And the retry cannot begin
        assert backend.update(message_id, start(2, generation=2)) is Outcome.CANCELLED

    def test_a_batch_is_cancelled_in_one_call(self, backend: StatusBackend) -> None:
        # Given a waiting, a running, a completed and an unknown message
        waiting, running, completed, unknown = (uuid4().hex for _ in range(4))
        backend.update_many([(running, start(1)), (waiting, enqueue()), (completed, start(1)), (completed, finish(1))])
        # When all are cancelled
        outcomes = backend.update_many([(one, cancel()) for one in (waiting, running, completed, unknown)])
        # Then each has its own outcome
        assert outcomes == [Outcome.APPLIED, Outcome.REQUESTED, Outcome.REFUSED, Outcome.MISSING]

    def test_a_cancelled_message_is_listed_as_failed(self, listing: StatusBackend, message_id: str) -> None:
        # Given a message that waits
        actor = uuid4().hex
        listing.update(message_id, enqueue(a=f'"{actor}"'))
        # When it is cancelled
        listing.update(message_id, cancel())
        # Then lists have it among the failed messages only
        for state in (QUEUED, FAILED):
            assert listed(listing, Query(state, actor)) == ([message_id] if state == FAILED else [])

    @pytest.mark.parametrize("name", ["a", "Q", "L", "D", "p", "step"])
    def test_a_request_sets_no_field_except_the_reason(
        self, backend: StatusBackend, message_id: str, name: str
    ) -> None:
        # Given a message that waits, and one that runs
        running = f"{message_id}-running"
        backend.update_many([(message_id, enqueue(a='"actor"')), (running, start(1, a='"actor"'))])
        before = [backend.read(message_id), backend.read(running)]
        # When a request to cancel them has another field than the reason
        for one in (message_id, running):
            with pytest.raises(ValueError, match="reason"):
                backend.update(one, cancel(**{name: "5", "cr": '"user left"'}))
        # Then it is an error, and nothing has changed
        assert [backend.read(message_id), backend.read(running)] == before

    def test_workers_read_which_messages_were_cancelled(self, backend: StatusBackend, message_id: str) -> None:
        if type(backend).read_cancels is StatusBackend.read_cancels:
            pytest.skip("This backend has no log of cancelled messages.")
        # Given a waiting, a running and a completed message, and a reader of the log
        waiting, running, completed = (f"{message_id}{number}" for number in range(3))
        backend.update_many([(waiting, enqueue()), (running, start(1)), (completed, start(1)), (completed, finish(1))])
        position, _ = backend.read_cancels(None)
        # When they are cancelled
        for one in (waiting, running, completed):
            backend.update(one, cancel())
        # Then the log has the marks of the messages whose requests were accepted, once each
        position, marks = backend.read_cancels(position)
        assert sorted(marks) == sorted(map(mark_of, (waiting, running)))
        position, marks = backend.read_cancels(position)
        assert list(marks) == []
        # And a repeated request is logged again, and a new reader gets all marks
        backend.update_many([(waiting, cancel()), (running, cancel())])
        assert sorted(backend.read_cancels(position)[1]) == sorted(map(mark_of, (waiting, running)))
        assert {mark_of(waiting), mark_of(running)} <= set(backend.read_cancels(None)[1])

    def test_workers_receive_that_a_message_was_cancelled(self, backend: StatusBackend, message_id: str) -> None:
        # Given a subscription to the log, and a message that waits
        subscription = backend.subscribe_cancels()
        if subscription is None:
            pytest.skip("This backend does not publish changes of its log.")
        backend.update(message_id, enqueue())
        position, _ = backend.read_cancels(None)
        # When it is cancelled
        backend.update(message_id, cancel())
        # Then the subscription receives it, and the log has it
        assert subscription.wait(20)
        assert list(backend.read_cancels(position)[1]) == [mark_of(message_id)]
        subscription.close()

    def test_a_request_in_an_outage_is_an_error(
        self, outage: tuple[PausableServer, StatusBackend], message_id: str
    ) -> None:
        # Given a message that waits, in a store that hangs
        server, backend = outage
        until_answered(lambda: backend.update(message_id, enqueue()))
        server.pause()
        # When it is cancelled
        with pytest.raises(BackendError):
            backend.update(message_id, cancel())
        # Then the store has carried out the whole request or nothing of it, and it accepts the request again
        server.resume()
        record = until_answered(lambda: backend.read(message_id))
        assert record is not None
        assert (CANCELLED in record) == (CANCEL_REQUESTED_AT in record) == (record[STATE] == str(FAILED))
        outcome = until_answered(lambda: backend.update(message_id, cancel()))
        assert outcome in (Outcome.APPLIED, Outcome.CANCELLED)
        assert until_answered(lambda: snapshot_of(backend, message_id)).cancelled

    @pytest.mark.parametrize("first", [enqueue(), start(1)], ids=["waiting", "running"])
    def test_two_requests_at_the_same_time(self, backend: StatusBackend, message_id: str, first: Update) -> None:
        for number in range(ROUNDS):
            # Given a message
            one = f"{message_id}{number}"
            backend.update(one, first)
            # When two processes cancel it
            outcomes = race(backend, one, cancel(cr='"a"'), cancel(cr='"b"'))
            # Then one request counts, and the other one changes nothing
            record = backend.read(one)
            assert record is not None and record[CANCEL_REASON] in ('"a"', '"b"') and CANCEL_REQUESTED_AT in record
            ended = [Outcome.APPLIED, Outcome.CANCELLED]
            assert sorted(outcomes) == (ended if record[STATE] == str(FAILED) else [Outcome.REQUESTED] * 2)

    def test_a_request_against_the_start(self, backend: StatusBackend, message_id: str) -> None:
        for number in range(ROUNDS):
            # Given a message that waits
            one = f"{message_id}{number}"
            backend.update(one, enqueue())
            # When it is cancelled while a worker starts it
            outcomes = race(backend, one, cancel(), start(1))
            # Then either no run has begun, or the message runs with a request to cancel it
            snapshot = snapshot_of(backend, one)
            assert (*outcomes, snapshot.state, snapshot.cancelled) in (
                (Outcome.APPLIED, Outcome.CANCELLED, "failed", True),
                (Outcome.REQUESTED, Outcome.APPLIED, "working", False),
            )

    def test_a_request_against_the_end(self, backend: StatusBackend, message_id: str) -> None:
        for number in range(ROUNDS):
            # Given a running message
            one = f"{message_id}{number}"
            backend.update(one, start(1))
            # When it is cancelled while it completes
            requested, ended = race(backend, one, cancel(), finish(1))
            # Then it is completed, and its record has the request if the request came first
            snapshot = snapshot_of(backend, one)
            assert (snapshot.state, snapshot.cancelled, ended) == ("completed", False, Outcome.APPLIED)
            asked = snapshot.cancel_requested_at is not None
            assert requested is (Outcome.REQUESTED if asked else Outcome.REFUSED)

    def test_a_request_against_a_retry(self, backend: StatusBackend, message_id: str) -> None:
        for number in range(ROUNDS):
            # Given a running message
            one = f"{message_id}{number}"
            backend.update(one, start(1))
            # When it is cancelled while its retry is enqueued
            requested, _ = race(backend, one, cancel(), enqueue(generation=2, D="9", N="[8,1]"))
            # Then it has ended as cancelled, in both orders
            snapshot = snapshot_of(backend, one)
            assert (snapshot.state, snapshot.cancelled, snapshot.scheduled_at) == ("failed", True, None)
            assert requested in (Outcome.APPLIED, Outcome.REQUESTED)

    def test_a_request_against_a_redelivery(self, backend: StatusBackend, message_id: str) -> None:
        for number in range(ROUNDS):
            # Given a message whose worker was killed
            one = f"{message_id}{number}"
            backend.update(one, start(1))
            # When it is cancelled while another worker starts it
            requested, started = race(backend, one, cancel(), start(2))
            # Then the new run owns the status, and the record keeps the request
            record = backend.read(one)
            assert record is not None and CANCEL_REQUESTED_AT in record
            assert requested is Outcome.REQUESTED
            assert started in (Outcome.APPLIED, Outcome.REQUESTED)
            # And only the end of the new run ends the message: the end of the earlier run is refused
            assert backend.update(one, finish(1, state=FAILED, c="true")) is Outcome.REFUSED
            assert backend.update(one, finish(2, state=FAILED, c="true")) is Outcome.APPLIED
            assert snapshot_of(backend, one).cancelled

    def test_a_short_life_is_not_renewed(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message that waits, with a short time to live
        backend.update(message_id, enqueue(L="60000"))
        # When it is cancelled
        backend.update(message_id, cancel())
        # Then its record keeps its expiry
        ttl = self.ttl_of(backend, message_id)
        assert ttl is not None and ttl <= 60_000 + 2 * self.ttl_resolution


def snapshot_of(backend: StatusBackend, message_id: str) -> Snapshot:
    """Read a status, and assert that there is one."""
    snapshot = take_snapshot(message_id, backend.read(message_id), backend.now())
    assert snapshot is not None
    return snapshot


def race(backend: StatusBackend, message_id: str, *updates: Update) -> list[Outcome]:
    """Carry out updates at the same time, and return their outcomes in the order of the updates."""
    outcomes: dict[int, Outcome] = {}

    def carry_out(number: int, update: Update) -> None:
        outcomes[number] = backend.update(message_id, update)

    together(*[partial(carry_out, number, update) for number, update in enumerate(updates)])
    return [outcomes[number] for number in range(len(updates))]
