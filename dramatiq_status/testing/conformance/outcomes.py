"""What an update does, and the order of updates."""

from __future__ import annotations

from uuid import uuid4

import pytest

from ...backend import StatusBackend
from ...record import (
    ATTEMPTS,
    COMPLETED,
    EXCEPTION,
    FAILED,
    FINISHED_AT,
    HEARTBEAT_AT,
    HEARTBEAT_INTERVAL,
    PROGRESS,
    RATE,
    RUN_TOKEN,
    SEQUENCE,
    STATE,
    TOTAL,
    UPDATED_AT,
)
from ...update import Outcome
from ..updates import enqueue, finish, fold, heartbeat, outside, start, timeless, write
from .cases import CASES
from .store import StoreTests


class Outcomes(StoreTests):
    """Tests of single updates."""

    def test_the_unknown_reads_none(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message that was never enqueued
        # When it is read
        # Then there is nothing
        assert backend.read(message_id) is None

    def test_what_was_written_is_read(self, backend: StatusBackend, message_id: str) -> None:
        # Given an enqueued message
        assert backend.update(message_id, enqueue(a='"actor"', user_id="42")) is Outcome.APPLIED
        # When it is read
        record = backend.read(message_id)
        # Then all is there, and what the store itself adds
        assert record is not None
        assert {**record, UPDATED_AT: ""} == {
            "s": "0",
            "v": "1",
            "e": "7",
            "n": "1",
            "a": '"actor"',
            ":user_id": "42",
            "U": "",
        }

    def test_a_life(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message that runs, is retried and completed
        life = [
            enqueue(a='"actor"', E="1", user_id="42"),
            start(1, t="10"),
            write(1, 2, increment=3, step='"a"'),
            enqueue(generation=2, D="9", x='"E"'),
            start(2, generation=2),
            write(2, 2, generation=2, increment=5),
            finish(2, 3, generation=2, increment=5),
        ]
        # When all that is written
        outcomes = [backend.update(message_id, update) for update in life]
        # Then the store has what `apply` says
        assert (outcomes, timeless(backend.read(message_id))) == ([Outcome.APPLIED] * 7, timeless(fold(life)))

    @pytest.mark.parametrize("case", CASES)
    def test_outcomes(self, backend: StatusBackend, message_id: str, case: str) -> None:
        # Given a record
        given, update, expected = CASES[case]
        for one in given:
            backend.update(message_id, one)
        # When an update comes
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
        # Then nothing differs from an update in one go
        assert (outcome, timeless(backend.read(message_id))) == (expected, timeless(fold([*given, update])))

    def test_begun_updates_do_not_mix(self, backend: StatusBackend) -> None:
        # Given two updates that are begun, and another call between them
        first, second, third = uuid4().hex, uuid4().hex, uuid4().hex
        backend.update(third, start(1))
        complete_first = backend.begin_update(first, enqueue())
        read = backend.read(third)
        complete_second = backend.begin_update(second, outside(step="1"))
        # When they are completed in another order
        outcomes = complete_second(), complete_first()
        # Then everybody has their own reply
        assert read is not None and read[RUN_TOKEN] == "1"
        assert outcomes == (Outcome.MISSING, Outcome.APPLIED)

    # Order

    def test_a_late_enqueue_only_fills_gaps(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message that was started before its enqueue got here
        backend.update(message_id, start(1, step='"run"'))
        # When the enqueue arrives
        backend.update(message_id, enqueue(step='"enqueue"', user_id="42"))
        # Then the run's values stay, and the others are kept
        record = backend.read(message_id)
        assert record is not None
        assert (record[STATE], record[":step"], record[":user_id"]) == ("1", '"run"', "42")

    @pytest.mark.parametrize("origin, generation", [(7, 2), (8, 1)], ids=["same origin", "other origin"])
    def test_a_finished_message_starts_anew(
        self, backend: StatusBackend, message_id: str, origin: int, generation: int
    ) -> None:
        # Given a finished message
        for update in (enqueue(user_id="42"), start(1, step="1"), finish(1, p="100")):
            backend.update(message_id, update)
        # When it is enqueued again
        backend.update(message_id, enqueue(origin, generation, step="2"))
        # Then nothing is left of what was but the count of changes
        record = backend.read(message_id)
        assert record is not None and record.pop(UPDATED_AT)
        assert record == {"s": "0", "v": "4", "e": str(origin), "n": str(generation), ":step": "2"}

    def test_a_requeue_keeps_what_was_written(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message that ran
        for update in (enqueue(user_id="42"), start(1, step="1"), write(1, 2, p="5", t="10")):
            backend.update(message_id, update)
        # When it is put back into its queue, with what it carries since it was first enqueued
        backend.update(message_id, enqueue(generation=2, x='"E"', step='"old"'))
        # Then fields, progress and attempts are still there
        record = backend.read(message_id)
        assert record is not None
        names = (STATE, ATTEMPTS, PROGRESS, EXCEPTION, ":user_id", ":step", RUN_TOKEN)
        found = {name: record.get(name) for name in names}
        assert found == {"s": "0", "A": "1", "p": "5", "x": '"E"', ":user_id": "42", ":step": "1", "r": None}

    def test_a_new_run_starts_over(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message with a progress
        for update in (enqueue(), start(1, step="1"), write(1, 2, p="5", R="2", t="10")):
            backend.update(message_id, update)
        # When a new run starts
        backend.update(message_id, start(2))
        # Then progress and rate are gone, and what users wrote is not
        record = backend.read(message_id)
        assert record is not None
        found = {name: record.get(name) for name in (PROGRESS, RATE, TOTAL, ":step", ATTEMPTS)}
        assert found == {PROGRESS: None, RATE: None, TOTAL: "10", ":step": "1", ATTEMPTS: "2"}

    def test_what_was_counted_before_the_first_run_stays(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message on whose bar another one counts, and whose first run starts only then
        backend.update_many([(message_id, enqueue()), (message_id, outside(increment=3))])
        backend.update_many([(message_id, start(1, create=False)), (message_id, write(1, 2, increment=2))])
        # Then nothing that was counted is lost
        assert backend.read(message_id)[PROGRESS] == "5"  # type: ignore[index]
        # But for the next run, which starts over
        backend.update(message_id, start(2, create=False))
        assert PROGRESS not in backend.read(message_id)  # type: ignore[operator]

    def test_the_newer_run_owns_the_status(self, backend: StatusBackend, message_id: str) -> None:
        # Given two runs of one message
        for update in (enqueue(), start(1), start(2), write(2, 2, step='"newer"')):
            backend.update(message_id, update)
        before = backend.read(message_id)
        # When the older writes, ends and says that it runs
        late = [write(1, 2, step='"older"', increment=1), finish(1, 3, state=FAILED), heartbeat(1)]
        outcomes = [backend.update(message_id, update) for update in late]
        # Then nothing of that is stored
        assert (outcomes, backend.read(message_id)) == ([Outcome.REFUSED] * 3, before)

    @pytest.mark.parametrize("create", [False, True], ids=["", "whole"])
    def test_no_run_revives_a_finished_status(self, backend: StatusBackend, message_id: str, create: bool) -> None:
        # Given a finished message
        backend.update_many([(message_id, update) for update in (enqueue(), start(1), finish(1, 5))])
        before = backend.read(message_id)
        # When runs write to it
        late = [
            write(1, 6, create=create, step="1"),
            finish(1, 7, create=create, state=FAILED),
            start(2, create=create),
            write(2, 2, create=create, step="1"),
            finish(3, 1, create=create, state=FAILED),
        ]
        outcomes = [backend.update(message_id, update) for update in late]
        # Then nothing of that is stored
        assert (outcomes, backend.read(message_id)) == ([Outcome.REFUSED] * 5, before)

    def test_a_write_sent_twice_counts_once(self, backend: StatusBackend, message_id: str) -> None:
        # Given a run that counted to three
        backend.update_many([(message_id, start(1)), (message_id, write(1, 2, increment=3))])
        # When that is sent again
        backend.update(message_id, write(1, 2, increment=3))
        # Then it still is three
        record = backend.read(message_id)
        assert record is not None and record[PROGRESS] == "3"

    # From outside

    def test_an_outside_write_merges(self, backend: StatusBackend, message_id: str) -> None:
        # Given a running message
        backend.update(message_id, start(1, step="1", user_id="42"))
        # When somebody else writes
        backend.update(message_id, outside(step="2", label='"x"'))
        # Then field after field is merged, and the run still owns it
        record = backend.read(message_id)
        assert record is not None
        found = {name: record[name] for name in (STATE, RUN_TOKEN, SEQUENCE, ":step", ":user_id", ":label")}
        assert found == {STATE: "1", RUN_TOKEN: "1", SEQUENCE: "1", ":step": "2", ":user_id": "42", ":label": '"x"'}

    def test_an_outside_write_creates_nothing(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message that the store does not know
        # When somebody writes to it
        outcome = backend.update(message_id, outside(step="1", state=COMPLETED))
        # Then there still is nothing
        assert (outcome, backend.read(message_id)) == (Outcome.MISSING, None)

    def test_an_outside_end_is_dated_by_the_store(self, backend: StatusBackend, message_id: str) -> None:
        # Given a running message
        backend.update(message_id, start(1))
        # When somebody else says that it failed
        backend.update(message_id, outside(state=FAILED))
        # Then it has failed at the time of that update
        record = backend.read(message_id)
        assert record is not None and (record[STATE], record[FINISHED_AT]) == ("3", record[UPDATED_AT])

    def test_a_heartbeat_changes_one_timestamp(self, backend: StatusBackend, message_id: str) -> None:
        # Given a running message
        backend.update(message_id, start(1, B="15000"))
        before = backend.read(message_id)
        # When its worker says that it runs
        backend.update(message_id, heartbeat(1))
        # Then that timestamp is stored, and nothing else has changed
        after = backend.read(message_id)
        assert after is not None and before is not None and before[HEARTBEAT_INTERVAL] == "15000"
        assert int(before.pop(HEARTBEAT_AT)) <= int(after[HEARTBEAT_AT]) <= backend.now() + 60_000
        assert {**before, HEARTBEAT_AT: after[HEARTBEAT_AT]} == after

    def test_timestamps_are_of_the_backends_clock(self, backend: StatusBackend, message_id: str) -> None:
        # Given a record that was read once, so that the store's clock is known
        backend.read(message_id)
        # When it is changed
        earliest = backend.now()
        backend.update(message_id, enqueue())
        latest = backend.now()
        # Then the change is dated by that clock, give or take what the measurement can be off
        record = backend.read(message_id)
        assert record is not None and earliest - 1000 <= int(record[UPDATED_AT]) <= latest + 1000
