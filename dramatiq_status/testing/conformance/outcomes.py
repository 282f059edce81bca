"""Outcomes of updates, and their order."""

from __future__ import annotations

from uuid import uuid4

import pytest

from ...backend import StatusBackend
from ...record import (
    ACTOR_NAME,
    ATTEMPTS,
    COMPLETED,
    EXCEPTION,
    FAILED,
    FINISHED_AT,
    GENERATION,
    HEARTBEAT_AT,
    HEARTBEAT_INTERVAL,
    ORIGIN,
    PROGRESS,
    RATE,
    RUN_TOKEN,
    SEQUENCE,
    STATE,
    TOTAL,
    UPDATED_AT,
    VERSION,
)
from ...update import Outcome
from ..updates import enqueue, finish, fold, heartbeat, outside, start, timeless, write
from .cases import CASES
from .store import StoreTests


class Outcomes(StoreTests):
    """Tests of single updates."""

    def test_an_unknown_message_has_no_record(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message that was never enqueued
        # When its record is read
        # Then there is none
        assert backend.read(message_id) is None

    def test_a_record_has_all_fields_of_its_enqueue(self, backend: StatusBackend, message_id: str) -> None:
        # Given an enqueued message
        assert backend.update(message_id, enqueue(a='"actor"', user_id="42")) is Outcome.APPLIED
        # When its record is read
        record = backend.read(message_id)
        # Then it has all fields of the enqueue, and those that the store adds
        assert record is not None
        assert {**record, UPDATED_AT: ""} == {
            STATE: "0",
            VERSION: "1",
            ORIGIN: "7",
            GENERATION: "1",
            ACTOR_NAME: '"actor"',
            ":user_id": "42",
            UPDATED_AT: "",
        }

    def test_a_message_that_is_retried_and_completed(self, backend: StatusBackend, message_id: str) -> None:
        # Given the updates of a message that runs, is retried and completed
        life = [
            enqueue(a='"actor"', E="1", user_id="42"),
            start(1, t="10"),
            write(1, 2, increment=3, step='"a"'),
            enqueue(generation=2, D="9", x='"E"'),
            start(2, generation=2),
            write(2, 2, generation=2, increment=5),
            finish(2, 3, generation=2, increment=5),
        ]
        # When the store has carried them out
        outcomes = [backend.update(message_id, update) for update in life]
        # Then the record is that of `apply`
        assert (outcomes, timeless(backend.read(message_id))) == ([Outcome.APPLIED] * 7, timeless(fold(life)))

    @pytest.mark.parametrize("case", CASES)
    def test_outcomes(self, backend: StatusBackend, message_id: str, case: str) -> None:
        # Given a record
        given, update, expected = CASES[case]
        for one in given:
            backend.update(message_id, one)
        # When the store carries out an update
        outcome = backend.update(message_id, update)
        # Then its outcome and the record are those of `apply`
        assert (outcome, timeless(backend.read(message_id))) == (expected, timeless(fold([*given, update])))

    @pytest.mark.parametrize("case", CASES)
    def test_outcomes_of_begun_updates(self, backend: StatusBackend, message_id: str, case: str) -> None:
        # Given a record
        given, update, expected = CASES[case]
        backend.update_many([(message_id, one) for one in given])
        # When an update is begun and completed
        outcome = backend.begin_update(message_id, update)()
        # Then its outcome and the record are those of `apply`
        assert (outcome, timeless(backend.read(message_id))) == (expected, timeless(fold([*given, update])))

    def test_begun_updates_get_their_own_outcomes(self, backend: StatusBackend) -> None:
        # Given two updates that are begun, with another call between them
        first, second, third = uuid4().hex, uuid4().hex, uuid4().hex
        backend.update(third, start(1))
        complete_first = backend.begin_update(first, enqueue())
        read = backend.read(third)
        complete_second = backend.begin_update(second, outside(step="1"))
        # When they are completed in another order
        outcomes = complete_second(), complete_first()
        # Then each call has its own reply
        assert read is not None and read[RUN_TOKEN] == "1"
        assert outcomes == (Outcome.MISSING, Outcome.APPLIED)

    # Order

    def test_a_late_enqueue_only_fills_gaps(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message whose run started before its enqueue arrived
        backend.update(message_id, start(1, step='"run"'))
        # When the enqueue arrives
        backend.update(message_id, enqueue(step='"enqueue"', user_id="42"))
        # Then the state and the fields of the run stay, and the other field is stored
        record = backend.read(message_id)
        assert record is not None
        assert (record[STATE], record[":step"], record[":user_id"]) == ("1", '"run"', "42")

    @pytest.mark.parametrize("origin, generation", [(7, 2), (8, 1)], ids=["same origin", "other origin"])
    def test_a_finished_message_starts_again(
        self, backend: StatusBackend, message_id: str, origin: int, generation: int
    ) -> None:
        # Given a finished message
        for update in (enqueue(user_id="42"), start(1, step="1"), finish(1, p="100")):
            backend.update(message_id, update)
        # When it is enqueued again
        backend.update(message_id, enqueue(origin, generation, step="2"))
        # Then the new record keeps only the version of the old one
        record = backend.read(message_id)
        assert record is not None and record.pop(UPDATED_AT)
        assert record == {
            STATE: "0",
            VERSION: "4",
            ORIGIN: str(origin),
            GENERATION: str(generation),
            ":step": "2",
        }

    def test_a_requeue_keeps_fields_and_progress(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message that ran
        for update in (enqueue(user_id="42"), start(1, step="1"), write(1, 2, p="5", t="10")):
            backend.update(message_id, update)
        # When it is requeued, with a field of its first enqueue
        backend.update(message_id, enqueue(generation=2, x='"E"', step='"old"'))
        # Then the record has the same fields, progress and attempts
        record = backend.read(message_id)
        assert record is not None
        names = (STATE, ATTEMPTS, PROGRESS, EXCEPTION, ":user_id", ":step", RUN_TOKEN)
        found = {name: record.get(name) for name in names}
        assert found == dict(zip(names, ("0", "1", "5", '"E"', "42", "1", None)))

    def test_a_new_run_clears_progress_and_rate(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message with a progress
        for update in (enqueue(), start(1, step="1"), write(1, 2, p="5", R="2", t="10")):
            backend.update(message_id, update)
        # When a new run starts
        backend.update(message_id, start(2))
        # Then progress and rate are removed, and the user's fields stay
        record = backend.read(message_id)
        assert record is not None
        found = {name: record.get(name) for name in (PROGRESS, RATE, TOTAL, ":step", ATTEMPTS)}
        assert found == {PROGRESS: None, RATE: None, TOTAL: "10", ":step": "1", ATTEMPTS: "2"}

    def test_a_progress_from_before_the_first_run_stays(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message whose progress another message has incremented before its first run
        backend.update_many([(message_id, enqueue()), (message_id, outside(increment=3))])
        # When its first run increments the progress, too
        backend.update_many([(message_id, start(1, create=False)), (message_id, write(1, 2, increment=2))])
        # Then both increments count
        assert backend.read(message_id)[PROGRESS] == "5"  # type: ignore[index]
        # And the next run clears the progress
        backend.update(message_id, start(2, create=False))
        assert PROGRESS not in backend.read(message_id)  # type: ignore[operator]

    def test_the_newer_run_owns_the_status(self, backend: StatusBackend, message_id: str) -> None:
        # Given two runs of one message
        for update in (enqueue(), start(1), start(2), write(2, 2, step='"newer"')):
            backend.update(message_id, update)
        before = backend.read(message_id)
        # When the older one writes, ends and sends a heartbeat
        late = [write(1, 2, step='"older"', increment=1), finish(1, 3, state=FAILED), heartbeat(1)]
        outcomes = [backend.update(message_id, update) for update in late]
        # Then none of these updates is stored
        assert (outcomes, backend.read(message_id)) == ([Outcome.REFUSED] * 3, before)

    @pytest.mark.parametrize("create", [False, True], ids=["", "whole"])
    def test_no_run_revives_a_finished_status(self, backend: StatusBackend, message_id: str, create: bool) -> None:
        # Given a finished message
        backend.update_many([(message_id, update) for update in (enqueue(), start(1), finish(1, 5))])
        before = backend.read(message_id)
        # When its run and other runs write to it
        late = [
            write(1, 6, create=create, step="1"),
            finish(1, 7, create=create, state=FAILED),
            start(2, create=create),
            write(2, 2, create=create, step="1"),
            finish(3, 1, create=create, state=FAILED),
        ]
        outcomes = [backend.update(message_id, update) for update in late]
        # Then none of these updates is stored
        assert (outcomes, backend.read(message_id)) == ([Outcome.REFUSED] * 5, before)

    def test_an_update_that_is_sent_twice_counts_once(self, backend: StatusBackend, message_id: str) -> None:
        # Given a run with an increment of three
        backend.update_many([(message_id, start(1)), (message_id, write(1, 2, increment=3))])
        # When the increment is sent again
        backend.update(message_id, write(1, 2, increment=3))
        # Then the progress is three
        record = backend.read(message_id)
        assert record is not None and record[PROGRESS] == "3"

    # From outside

    def test_a_write_from_outside_keeps_other_fields(self, backend: StatusBackend, message_id: str) -> None:
        # Given a running message
        backend.update(message_id, start(1, step="1", user_id="42"))
        # When another process writes
        backend.update(message_id, outside(step="2", label='"x"'))
        # Then only its fields have changed, and the run still owns the status
        record = backend.read(message_id)
        assert record is not None
        found = {name: record[name] for name in (STATE, RUN_TOKEN, SEQUENCE, ":step", ":user_id", ":label")}
        assert found == {STATE: "1", RUN_TOKEN: "1", SEQUENCE: "1", ":step": "2", ":user_id": "42", ":label": '"x"'}

    def test_a_write_from_outside_creates_no_record(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message without a record
        # When another process writes to it
        outcome = backend.update(message_id, outside(step="1", state=COMPLETED))
        # Then it has no record
        assert (outcome, backend.read(message_id)) == (Outcome.MISSING, None)

    def test_an_end_from_outside_has_a_timestamp_of_the_store(self, backend: StatusBackend, message_id: str) -> None:
        # Given a running message
        backend.update(message_id, start(1))
        # When another process sets its state to failed
        backend.update(message_id, outside(state=FAILED))
        # Then its end has the time of this update
        record = backend.read(message_id)
        assert record is not None and (record[STATE], record[FINISHED_AT]) == ("3", record[UPDATED_AT])

    def test_a_heartbeat_changes_one_timestamp(self, backend: StatusBackend, message_id: str) -> None:
        # Given a running message
        backend.update(message_id, start(1, B="15000"))
        before = backend.read(message_id)
        # When its worker sends a heartbeat
        backend.update(message_id, heartbeat(1))
        # Then the heartbeat's timestamp is stored, and nothing else has changed
        after = backend.read(message_id)
        assert after is not None and before is not None and before[HEARTBEAT_INTERVAL] == "15000"
        assert int(before.pop(HEARTBEAT_AT)) <= int(after[HEARTBEAT_AT]) <= backend.now() + 60_000
        assert {**before, HEARTBEAT_AT: after[HEARTBEAT_AT]} == after

    def test_timestamps_are_of_the_backends_clock(self, backend: StatusBackend, message_id: str) -> None:
        # Given a backend that has read a record, and so has measured the clock of the store
        backend.read(message_id)
        # When the record is changed
        earliest = backend.now()
        backend.update(message_id, enqueue())
        latest = backend.now()
        # Then the change has a timestamp of this clock, up to the error of the measurement
        record = backend.read(message_id)
        assert record is not None and earliest - 1000 <= int(record[UPDATED_AT]) <= latest + 1000
