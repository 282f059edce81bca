"""Tests of `apply`."""

from __future__ import annotations

import pytest

from dramatiq_status.record import (
    ARGS,
    ATTEMPTS,
    COMPLETED,
    DEFAULT_LIVE_TTL,
    EXCEPTION,
    FAILED,
    FINISHED_AT,
    GENERATION,
    HEARTBEAT_AT,
    LIVE_TTL,
    LONGEST_TTL,
    ORIGIN,
    PROGRESS,
    QUEUED,
    RATE,
    RATE_WRITTEN_AT,
    RESULT,
    RUN_TOKEN,
    SCHEDULED_AT,
    SEQUENCE,
    SKIPPED,
    STATE,
    STATES,
    STATUS_TTL,
    STILL_CURRENT,
    TOTAL,
    TRACEBACK,
    UPDATED_AT,
    VERSION,
    WORKING,
    Record,
    is_finished,
    live_ttl_of,
)
from dramatiq_status.testing.updates import enqueue, finish, heartbeat, outside, start, write
from dramatiq_status.update import Applied, Outcome, Update, apply

NOW = 1_000_000
HOUR = 3_600_000
OTHER_ORIGIN = 8


def fold(*updates: Update, record: Record | None = None) -> Record:
    """Carry out updates, which all have to be stored, and return the record."""
    for update in updates:
        applied = apply(record, update, NOW)
        assert applied.outcome is Outcome.APPLIED, update
        record = applied.record
    assert record is not None
    return record


def assert_refused(record: Record, update: Update, outcome: Outcome = Outcome.REFUSED) -> None:
    assert apply(record, update, NOW + 1) == Applied(outcome, record, None)


QUEUED_RECORD = fold(enqueue(label='"x"'))
WORKING_RECORD = fold(start(1), record=QUEUED_RECORD)
COMPLETED_RECORD = fold(finish(1), record=WORKING_RECORD)
FAILED_RECORD = fold(finish(1, state=FAILED), record=WORKING_RECORD)


# A new run clears the progress


def test_a_new_run_starts_over() -> None:
    # Given a record with a progress of its first run, and its requeue
    traces = {PROGRESS: "40", RATE: "2", RATE_WRITTEN_AT: "9", FINISHED_AT: "9", SKIPPED: "true"}
    record = {**WORKING_RECORD, **traces, TOTAL: "80", ":step": '"reading"', RESULT: "1"}
    requeued = fold(enqueue(generation=2, **{SCHEDULED_AT: "99"}), record=record)
    # When another run begins
    new = fold(start(2, generation=2), record=requeued)
    # Then the fields of the first run are removed, and all others stay
    assert not {*traces, SCHEDULED_AT} & set(new)
    assert (HEARTBEAT_AT in requeued, new[HEARTBEAT_AT]) == (False, str(NOW))
    assert (new[STATE], new[ATTEMPTS], new[TOTAL], new[":step"], new[":label"], new[RESULT]) == (
        str(WORKING), "2", "80", '"reading"', '"x"', "1",
    )  # fmt: skip


def test_a_progress_from_before_the_first_run_stays() -> None:
    # Given a message whose progress another message has incremented before its first run
    record = fold(outside(increment=3), start(1), write(1, 2, increment=2), record=QUEUED_RECORD)
    # Then both increments count
    assert record[PROGRESS] == "5"
    # And another run starts over
    assert PROGRESS not in fold(start(2), record=record)


def test_a_requeue_keeps_the_progress_and_has_the_exception() -> None:
    # Given a running message with progress
    record = fold(write(1, 2, increment=40), record=WORKING_RECORD)
    # When it is requeued
    requeued = fold(enqueue(generation=2, **{EXCEPTION: '{"type":"E"}', SCHEDULED_AT: "99"}), record=record)
    # Then no run owns it, and its record has its progress and the exception
    assert not {RUN_TOKEN, SEQUENCE} & set(requeued)
    assert (requeued[STATE], requeued[PROGRESS], requeued[ATTEMPTS]) == (str(QUEUED), "40", "1")
    assert (requeued[EXCEPTION], requeued[SCHEDULED_AT]) == ('{"type":"E"}', "99")


def test_attempts_count_redeliveries_and_retries() -> None:
    # Given a message that was redelivered once, which Dramatiq does not count as a retry
    record = fold(start(2), record=WORKING_RECORD)
    # When it is retried
    record = fold(enqueue(generation=2), start(3, generation=2, attempts=2), record=record)
    # Then it has had three runs
    assert record[ATTEMPTS] == "3"


# The newer of two runs owns the status


def test_the_newer_run_owns_the_status() -> None:
    # Given a message that a second worker has started while the first one still runs it
    record = fold(start(2), record=WORKING_RECORD)
    # When the first run writes
    # Then all its updates are refused
    for late in (write(1, 2, increment=1), finish(1), finish(1, state=FAILED), heartbeat(1)):
        assert_refused(record, late)
    # And updates of the second run are stored
    assert fold(write(2, 2, increment=1), finish(2), record=record)[PROGRESS] == "1"


def test_a_run_does_not_own_its_message_after_a_requeue() -> None:
    # Given a message that a worker has requeued
    record = fold(enqueue(generation=2), record=WORKING_RECORD)
    # When the run writes, before and after the start of another run
    # Then all its updates are refused
    for found in (record, fold(start(2, generation=2), record=record)):
        for late in (write(1, 2, increment=1), finish(1), heartbeat(1), start(1)):
            assert_refused(found, late)


# A finished message stays finished


@pytest.mark.parametrize("record", [COMPLETED_RECORD, FAILED_RECORD], ids=["completed", "failed"])
def test_no_run_changes_a_finished_status(record: Record) -> None:
    # Given a finished message
    # When its own run or another one writes to it
    # Then the update is refused
    for late in (
        write(1, 10, increment=1),
        finish(1, 10, state=FAILED),
        start(2, create=False),
        start(2),
        heartbeat(1),
    ):
        assert_refused(record, late)


@pytest.mark.parametrize("state", [QUEUED, WORKING, COMPLETED, FAILED], ids=[state.value for state in STATES])
def test_a_write_from_outside_changes_the_state_only_if_it_has_one(state: int) -> None:
    for record in (QUEUED_RECORD, WORKING_RECORD, COMPLETED_RECORD):
        # Given a record of any state
        # When another process writes a field
        # Then the state has not changed
        new = fold(outside(seen="true"), record=record)
        assert (new[STATE], new[":seen"]) == (record[STATE], "true")
        # And when another process writes a state, the record has it
        new = fold(outside(state=state), record=record)
        assert new[STATE] == str(state)
        assert (FINISHED_AT in new) is is_finished(new)


@pytest.mark.parametrize(
    "update", [enqueue(generation=2), enqueue(generation=1, origin=OTHER_ORIGIN)], ids=["again", "anew"]
)
def test_a_finished_message_that_is_enqueued_again_has_a_new_record(update: Update) -> None:
    # Given a finished message
    # When it is enqueued again, as a retry or from the beginning
    new = fold(update, record=COMPLETED_RECORD)
    # Then only the number of changes is left of its old record
    assert new == {
        STATE: str(QUEUED), ORIGIN: str(update.enqueue_id.origin), GENERATION: str(update.enqueue_id.generation),
        VERSION: str(int(COMPLETED_RECORD[VERSION]) + 1), UPDATED_AT: str(NOW),
    }  # fmt: skip


def test_a_write_from_outside_creates_no_record() -> None:
    assert apply(None, outside(seen="true"), NOW) == Applied(Outcome.MISSING, None, None)
    assert apply(None, heartbeat(1), NOW) == Applied(Outcome.MISSING, None, None)


# Times to live


def test_all_updates_renew_the_expiry_of_an_unfinished_message() -> None:
    # Given a record with a `live_ttl` of two hours
    record = fold(enqueue(**{LIVE_TTL: str(2 * HOUR)}), start(1))
    # When it is updated
    # Then its time to live is two hours
    for update in (write(1, 2, increment=1), outside(seen="1"), heartbeat(1), enqueue(generation=2), start(2)):
        assert apply(record, update, NOW).ttl == 2 * HOUR


def test_a_finished_message_has_the_ttl_of_its_end() -> None:
    assert apply(WORKING_RECORD, finish(1, ttl=5), NOW).ttl == 5
    assert apply(WORKING_RECORD, outside(state=FAILED, ttl=6), NOW).ttl == 6


def test_a_write_from_outside_keeps_the_expiry_of_a_finished_message() -> None:
    assert apply(COMPLETED_RECORD, outside(increment=1), NOW).ttl is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, 5), ({STATUS_TTL: "9000"}, 9000), ({STATUS_TTL: "9" * 15}, LONGEST_TTL), ({STATUS_TTL: "null"}, 5)],
)
def test_an_end_from_outside_gives_the_status_ttl_of_the_message(fields: Record, expected: int) -> None:
    record = fold(enqueue(**fields), start(1))
    assert apply(record, outside(state=FAILED, ttl=5), NOW).ttl == expected


@pytest.mark.parametrize("state", [None, COMPLETED, FAILED])
def test_a_final_state_from_outside_keeps_the_expiry_of_a_finished_message(state: int | None) -> None:
    assert apply(COMPLETED_RECORD, outside(state=state, ttl=5), NOW).ttl is None


def test_writes_from_outside_keep_the_time_of_the_rate() -> None:
    # Given a run that has stored its rate
    record = fold(write(1, 2, **{RATE: "5", RATE_WRITTEN_AT: STILL_CURRENT}), record=WORKING_RECORD)
    # When other processes write several times
    for n in (1, 2, 3):
        record = {**(apply(record, outside(increment=1), NOW + n).record or {})}
        # Then the record has the time of the rate
        assert record[RATE_WRITTEN_AT] == str(NOW)
    # And the next rate of the run has a new time
    record = {**(apply(record, write(1, 3, **{RATE: "4", RATE_WRITTEN_AT: STILL_CURRENT}), NOW + 9).record or {})}
    record = {**(apply(record, outside(increment=1), NOW + 10).record or {})}
    assert record[RATE_WRITTEN_AT] == str(NOW + 9)


def test_a_late_enqueue_keeps_the_expiry() -> None:
    assert apply(WORKING_RECORD, enqueue(late="1"), NOW).ttl is None


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({}, DEFAULT_LIVE_TTL),
        ({LIVE_TTL: "5"}, 5),
        ({LIVE_TTL: "5", SCHEDULED_AT: str(NOW + 70)}, 75),
        ({LIVE_TTL: "5", SCHEDULED_AT: str(NOW)}, 5),
        ({LIVE_TTL: "5", SCHEDULED_AT: str(NOW - 70)}, 5),
        ({SCHEDULED_AT: str(NOW + 1)}, DEFAULT_LIVE_TTL + 1),
    ],
)
def test_a_delay_is_added_to_the_live_ttl(record: Record, expected: int) -> None:
    assert live_ttl_of(record, NOW) == expected


# Lost records


def test_a_run_restores_a_missing_record() -> None:
    # Given a store that has lost a record
    # When its run writes a part of its values
    # Then the outcome is MISSING
    update = write(1, 3, increment=1, p="41", label='"x"')
    assert apply(None, update, NOW) == Applied(Outcome.MISSING, None, None)
    # And when it writes all its values
    record = fold(update._replace(create=True, attempts=2, increment=0), record=None)
    # Then the store has a record again, and the run owns it
    assert (record[STATE], record[ATTEMPTS], record[PROGRESS], record[":label"]) == (str(WORKING), "2", "41", '"x"')
    assert fold(write(1, 4, increment=1), record=record)[PROGRESS] == "42"


def test_the_end_of_a_message_that_never_ran_creates_a_record() -> None:
    # Given a message of an unknown actor, whose enqueue was not stored
    # When it is rejected
    record = fold(finish(0, 0, state=FAILED)._replace(create=True))
    # Then it has failed, without a run
    assert record[STATE] == str(FAILED)
    assert not {ATTEMPTS, RUN_TOKEN, SEQUENCE} & set(record)


def test_a_start_replaces_the_record_of_another_origin() -> None:
    # Given a record of an enqueue with another origin than that of the run
    record = fold(enqueue(origin=OTHER_ORIGIN, old="1"))
    # When the run starts
    # Then the outcome is MISSING, and a start with all values replaces the record
    assert_refused(record, start(1, create=False), Outcome.MISSING)
    new = fold(start(1), record=record)
    assert (new[ORIGIN], ":old" in new) == ("7", False)


@pytest.mark.parametrize("state", [None, COMPLETED, FAILED])
def test_of_two_enqueues_the_run_that_started_last_owns_the_status(state: int | None) -> None:
    # Given a message that was enqueued twice, and two runs at once
    record = fold(
        enqueue(),
        start(1),
        enqueue(origin=OTHER_ORIGIN),
        start(2, origin=OTHER_ORIGIN),
        write(2, 2, increment=3),
    )
    # When the older run writes, ends, or is retried
    # Then the newer run still owns the status
    assert_refused(record, write(1, 2, increment=1)._replace(state=state, create=True))
    assert_refused(record, enqueue(generation=2, **{EXCEPTION: '"x"'}), Outcome.LATE)
    # And it still does if the store gets the start of the older run only now
    assert_refused(record, start(1, S="4"))
    assert_refused(record, start(1, S="4")._replace(state=state))
    # And the run of the retry owns it from its start
    assert fold(start(3, generation=2, S="6"), record=record)[ORIGIN] == "7"


def test_a_retry_keeps_the_record_of_an_enqueue_without_id() -> None:
    # Given a message of a process without the middleware, and a field from outside
    record = fold(
        start(1, origin=0, generation=0),
        outside(seen_by='"ann"'),
    )
    # When a worker requeues it
    new = fold(enqueue(generation=1, **{EXCEPTION: '"x"'}), record=record)
    # Then its record keeps the field and the attempts
    assert (new[STATE], new[ORIGIN], new[GENERATION], new[":seen_by"]) == (str(QUEUED), "7", "1", '"ann"')
    assert new[ATTEMPTS] == "1"


# No update is lost or counts twice


def test_fields_are_merged_and_increments_add_up() -> None:
    # Given writes of the run and from outside in turns
    record = fold(
        write(1, 2, increment=3, step='"a"', mine="1"),
        outside(increment=4, theirs="2"),
        write(1, 3, increment=0.5, step='"b"'),
        record=WORKING_RECORD,
    )
    # Then the record has all their fields, and the sum of their increments
    assert (record[PROGRESS], record[":step"], record[":mine"], record[":theirs"], record[":label"]) == (
        "7.5", '"b"', "1", "2", '"x"',
    )  # fmt: skip


def test_an_increment_is_added_to_a_progress_of_the_same_update() -> None:
    record = fold(write(1, 2, increment=40), record=WORKING_RECORD)
    assert fold(write(1, 3, increment=2, **{PROGRESS: "0"}), record=record)[PROGRESS] == "2"


def test_an_update_that_is_sent_again_counts_once() -> None:
    # Given an update whose reply was lost, and later updates
    record = fold(write(1, 2, increment=1), write(1, 3, increment=1), record=WORKING_RECORD)
    # When it is sent again
    # Then it is a duplicate
    for sequence in (1, 2, 3):
        assert_refused(record, write(1, sequence, increment=1), Outcome.DUPLICATE)
    finished = fold(finish(1, 4), record=record)
    assert_refused(finished, finish(1, 4), Outcome.DUPLICATE)


def test_a_late_enqueue_only_fills_gaps() -> None:
    # Given a run that has started and written a field before its enqueue arrived
    running = fold(start(1), write(1, 2, step='"a"'))
    # When the enqueue arrives
    late = enqueue(step='"old"', label='"x"', **{SCHEDULED_AT: "1", ARGS: "[]"})
    applied = apply(running, late, NOW)
    # Then it is late: only its fields that the record lacks are stored
    assert applied.outcome is Outcome.LATE and applied.record is not None
    assert applied.record == {
        **running, ARGS: "[]", ":label": '"x"', VERSION: str(int(running[VERSION]) + 1), UPDATED_AT: str(NOW),
    }  # fmt: skip
    # And when it arrives again, the record does not change
    assert apply(applied.record, late, NOW + 1) == Applied(Outcome.LATE, applied.record, None)


@pytest.mark.parametrize("state", [COMPLETED, FAILED])
def test_the_end_removes_the_fields_of_a_running_message(state: int) -> None:
    # Given a message in its second run, with fields of a running message
    fields = {RATE: "2", HEARTBEAT_AT: "9", SCHEDULED_AT: "9", EXCEPTION: '{"type":"E"}', TRACEBACK: '"..."'}
    # When it ends
    record = fold(finish(1, state=state), record={**WORKING_RECORD, **fields})
    # Then these fields are removed; the exception stays if the message has failed
    failure = {EXCEPTION, TRACEBACK} if state == FAILED else set()
    assert set(fields) & set(record) == failure


def test_a_heartbeat_changes_only_its_own_timestamp() -> None:
    # Given a running message
    # When its worker sends a heartbeat
    new = fold(heartbeat(1), record=WORKING_RECORD)
    # Then only the heartbeat's timestamp has changed
    assert new == {**WORKING_RECORD, HEARTBEAT_AT: str(NOW)}
