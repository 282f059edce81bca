"""What an update does to a record: the pure function, without any store."""

from __future__ import annotations

import pytest

from dramatiq_status.record import (
    COMPLETED,
    DEFAULT_LIVE_TTL,
    FAILED,
    QUEUED,
    WORKING,
    Applied,
    Epoch,
    Kind,
    Outcome,
    Record,
    State,
    Update,
    apply,
    from_document,
    is_sound,
    live_ttl_of,
    number_of,
    number_text,
    to_document,
)

NOW = 1_000_000
FIRST, SECOND, OTHER = Epoch(7, 1), Epoch(7, 2), Epoch(8, 1)

#: A message that waits, one that runs, and one that is finished.
WAITING: Record = {"s": "0", "v": "1", "e": "7", "n": "1", "U": "5"}
RUNNING: Record = {"s": "1", "v": "2", "e": "7", "n": "1", "r": "11", "q": "4", "A": "1", "S": "6", "U": "6"}
FINISHED: Record = {**RUNNING, "s": "2", "v": "3", "F": "7", "p": "100"}


def after(record: Record | None, update: Update) -> Applied:
    """What becomes of a record; the given one stays as it is."""
    before = None if record is None else dict(record)
    applied = apply(record, update, NOW)
    assert record == before
    return applied


def changed(applied: Applied, before: Record) -> Record:
    """What is new in a record, and None for what is gone, the count of changes and their moment left out."""
    assert applied.record is not None
    assert (applied.record["v"], applied.record["U"]) == (str(int(before["v"]) + 1), str(NOW))
    new = {name: text for name, text in applied.record.items() if before.get(name) != text}
    gone = {name: None for name in before if name not in applied.record}
    return {name: text for name, text in {**new, **gone}.items() if name not in ("v", "U")}  # type: ignore[dict-item]


# Enqueues


def test_an_enqueue_makes_a_record() -> None:
    # Given nothing
    # When a message is enqueued
    applied = after(None, Update(Kind.ENQUEUE, FIRST, fields={"a": '"actor"', ":step": "1"}))
    # Then it waits, for a week
    record = {"a": '"actor"', ":step": "1", "s": "0", "e": "7", "n": "1", "v": "1", "U": str(NOW)}
    assert applied == (Outcome.APPLIED, record, DEFAULT_LIVE_TTL)


def test_a_late_enqueue_fills_gaps() -> None:
    # Given a running message with a field
    record = {**RUNNING, ":step": "2"}
    # When its enqueue arrives, with that field and another one
    applied = after(record, Update(Kind.ENQUEUE, FIRST, fields={":step": "1", "a": '"actor"', "D": "9", "x": '"E"'}))
    # Then only what was missing is new, and nothing that was meant for the wait
    assert changed(applied, record) == {"a": '"actor"'}
    assert (applied.outcome, applied.ttl) == (Outcome.ASIDE, None)


def test_a_late_enqueue_that_brings_nothing_changes_nothing() -> None:
    # Given a record that has all that its enqueue brings
    record = {**RUNNING, ":step": "2"}
    # When that arrives
    # Then not even the version changes
    assert after(record, Update(Kind.ENQUEUE, FIRST, fields={":step": "1"})) == (Outcome.ASIDE, record, None)


def test_a_requeue() -> None:
    # Given a message that runs
    record = {**RUNNING, ":step": "2", "p": "5", "R": "1", "H": "8", "D": "3", "x": '"old"'}
    # When it goes back to its queue
    fields = {"D": str(NOW + 5000), "x": '"new"', "it": '"tb"', ":step": "1", ":user_id": "42"}
    applied = after(record, Update(Kind.ENQUEUE, SECOND, fields=fields))
    # Then it waits, nobody owns it, its failure is stored, and what was written is kept
    gone = dict.fromkeys("rqRH")
    new = {"s": "0", "n": "2", "D": str(NOW + 5000), "x": '"new"', "it": '"tb"', ":user_id": "42"}
    assert changed(applied, record) == {**new, **gone}
    # And it lives for its delay on top of the week
    assert (applied.outcome, applied.ttl) == (Outcome.APPLIED, DEFAULT_LIVE_TTL + 5000)


@pytest.mark.parametrize("epoch", [SECOND, OTHER], ids=["same root", "other root"])
def test_a_finished_message_is_enqueued_anew(epoch: Epoch) -> None:
    # Given a finished message
    # When it is enqueued again
    applied = after({**FINISHED, ":step": "2"}, Update(Kind.ENQUEUE, epoch, fields={":user_id": "42"}))
    # Then nothing is left of it but the count of changes
    record = {":user_id": "42", "s": "0", "v": "4", "e": str(epoch.root), "n": str(epoch.number), "U": str(NOW)}
    assert applied == (Outcome.APPLIED, record, DEFAULT_LIVE_TTL)


def test_a_message_without_an_epoch_can_be_told_from_itself() -> None:
    # Given a message that a process without our middleware has enqueued, and that was started
    record = after(None, Update(Kind.RUN, run=11, place=1, start=True, create=True)).record
    # When it starts again
    applied = after(record, Update(Kind.RUN, run=12, place=1, start=True, create=True))
    # Then that is its second run
    assert applied.record is not None and (applied.record["r"], applied.record["A"]) == ("12", "2")


# Starts


def test_a_start() -> None:
    # Given a delayed message
    record = {**WAITING, "D": "9", ":step": "1"}
    # When a worker begins with it
    applied = after(record, Update(Kind.RUN, FIRST, 11, 1, start=True, fields={"S": "8"}))
    # Then it runs, for the first time
    assert changed(applied, record) == {"s": "1", "r": "11", "q": "1", "A": "1", "S": "8", "D": None}
    assert (applied.outcome, applied.ttl) == (Outcome.APPLIED, DEFAULT_LIVE_TTL)


def test_a_new_run_starts_over() -> None:
    # Given a message that runs, with all that a run leaves behind
    left = {"p": "5", "R": "1", "F": "7", "k": "true", "D": "3", "H": "8", "ir": "1"}
    record = {**RUNNING, **left, "t": "10", "x": '"E"', ":step": "1"}
    # When a newer run starts
    applied = after(record, Update(Kind.RUN, FIRST, 12, 1, start=True))
    # Then that is gone; the total, the failure and the user's fields stay
    assert changed(applied, record) == {"r": "12", "q": "1", "A": "2", **dict.fromkeys(left)}


@pytest.mark.parametrize("stored, said, expected", [("1", 1, "2"), ("1", 5, "5"), ("7", 2, "8"), (None, 1, "1")])
def test_attempts_count_at_least_what_the_broker_says(stored: str | None, said: int, expected: str) -> None:
    # Given a message that ran a number of times, as far as the store knows
    record = WAITING if stored is None else {**WAITING, "A": stored}
    # When a worker starts it that knows of another number
    applied = after(record, Update(Kind.RUN, FIRST, 11, 1, start=True, attempts=said))
    # Then the larger one counts
    assert applied.record is not None and applied.record["A"] == expected


@pytest.mark.parametrize("record", [None, {**WAITING, "e": "6"}, FINISHED], ids=["unknown", "other root", "finished"])
def test_a_start_that_knows_all_makes_the_record(record: Record | None) -> None:
    # Given no record of this enqueue
    # When its run starts, with all that it knows
    update = Update(Kind.RUN, SECOND, 11, 1, start=True, create=True, attempts=3, fields={":step": "1"})
    applied = after(record, update)
    # Then that is the record
    version = "1" if record is None else str(int(record["v"]) + 1)
    assert applied.record == {
        **{"s": "1", "e": "7", "n": "2", "r": "11", "q": "1", "A": "3", ":step": "1"},
        **{"v": version, "U": str(NOW)},
    }


@pytest.mark.parametrize("record", [None, {**WAITING, "e": "6"}, FINISHED], ids=["unknown", "other root", "finished"])
def test_a_start_that_does_not_know_all_is_asked_for_it(record: Record | None) -> None:
    # Given no record of this enqueue
    # When its run starts, and does not know whether there is one
    # Then nothing is stored
    assert after(record, Update(Kind.RUN, SECOND, 11, 1, start=True)) == (Outcome.MISSING, record, None)


@pytest.mark.parametrize(
    "record", [{**WAITING, "n": "2"}, FINISHED], ids=["enqueued again since", "finished"]
)
def test_a_start_that_comes_too_late(record: Record) -> None:
    # Given a message that went on without this run
    # When that starts
    # Then it is refused
    assert after(record, Update(Kind.RUN, FIRST, 12, 1, start=True, create=True)) == (Outcome.REFUSED, record, None)


# Writes of a run


def test_a_write_of_the_owner() -> None:
    # Given a running message
    record = {**RUNNING, "p": "5", ":step": "1"}
    # When its run writes
    applied = after(record, Update(Kind.RUN, FIRST, 11, 5, fields={":step": "2", "t": "10"}, increment=2))
    # Then field after field is written, and the increment added
    assert changed(applied, record) == {":step": "2", "t": "10", "p": "7", "q": "5"}
    assert (applied.outcome, applied.ttl) == (Outcome.APPLIED, DEFAULT_LIVE_TTL)


def test_an_increment_is_added_to_what_the_same_update_sets() -> None:
    # Given a running message with a progress
    # When one update sets another one and adds to it
    applied = after({**RUNNING, "p": "5"}, Update(Kind.RUN, FIRST, 11, 5, fields={"p": "0"}, increment=2))
    # Then that is the sum
    assert applied.record is not None and applied.record["p"] == "2"


@pytest.mark.parametrize("place", [3, 4])
@pytest.mark.parametrize("record", [RUNNING, FINISHED], ids=["running", "finished"])
def test_a_write_that_was_stored_already(record: Record, place: int) -> None:
    # Given a record that has seen the run's fourth update
    # When that comes again, or an older one
    # Then it is a duplicate
    update = Update(Kind.RUN, FIRST, 11, place, create=True, increment=1)
    assert after(record, update) == (Outcome.DUPLICATE, record, None)


@pytest.mark.parametrize("create", [False, True], ids=["", "whole"])
@pytest.mark.parametrize(
    "record, run", [(RUNNING, 10), (WAITING, 11), (FINISHED, 11), (FINISHED, 12)], ids=["older", "none", "end", "other"]
)
def test_a_write_of_who_does_not_own_it(record: Record, run: int, create: bool) -> None:
    # Given a message that another run owns, or none, or that is finished
    # When a run writes
    # Then it is refused, even if it knows the whole record
    update = Update(Kind.RUN, FIRST, run, 9, create=create, fields={":step": "1"})
    assert after(record, update) == (Outcome.REFUSED, record, None)


def test_a_write_restores_a_lost_record() -> None:
    # Given a message whose record the store has lost
    # When its run writes all that it knows
    applied = after(None, Update(Kind.RUN, FIRST, 11, 5, create=True, attempts=2, fields={"p": "5"}))
    # Then it is back
    record = {"s": "1", "A": "2", "e": "7", "n": "1", "r": "11", "q": "5", "p": "5", "v": "1", "U": str(NOW)}
    assert applied == (Outcome.APPLIED, record, DEFAULT_LIVE_TTL)


@pytest.mark.parametrize("state", [QUEUED, WORKING])
def test_a_state_of_a_run_that_is_not_final_lets_it_live(state: int) -> None:
    # Given a running message
    # When its run writes a state that is not final
    applied = after(RUNNING, Update(Kind.RUN, FIRST, 11, 5, state=state, ttl=1000))
    # Then that is stored, and its life is not that of a finished message
    assert applied.record is not None
    assert (applied.record["s"], applied.record["r"], applied.ttl) == (str(state), "11", DEFAULT_LIVE_TTL)


# Ends


@pytest.mark.parametrize("state, left", [(COMPLETED, set()), (FAILED, {"x", "it"})], ids=["completed", "failed"])
def test_an_end(state: int, left: set[str]) -> None:
    # Given a running message that has failed before
    record = {**RUNNING, "D": "3", "R": "1", "H": "8", "x": '"E"', "it": '"tb"', "p": "5"}
    # When it ends
    applied = after(record, Update(Kind.RUN, FIRST, 11, 5, state=state, ttl=1234, fields={"F": "9"}))
    # Then what only a running message has is gone, and of a completed one its failures too
    gone = dict.fromkeys({"D", "R", "H", "x", "it"} - left)
    assert changed(applied, record) == {"s": str(state), "q": "5", "F": "9", **gone}
    assert (applied.outcome, applied.ttl) == (Outcome.APPLIED, 1234)


@pytest.mark.parametrize(
    "record, run, outcome",
    [
        (WAITING, 11, Outcome.APPLIED),  # Its start was not stored.
        (WAITING, 0, Outcome.APPLIED),  # It was dead-lettered before it ran.
        (RUNNING, 0, Outcome.APPLIED),
        (RUNNING, 10, Outcome.REFUSED),  # An older run.
        (FINISHED, 12, Outcome.REFUSED),
        (FINISHED, 0, Outcome.REFUSED),
        ({**WAITING, "n": "2"}, 11, Outcome.REFUSED),  # It was enqueued again since.
        ({**RUNNING, "n": "0"}, 12, Outcome.APPLIED),  # A run of an older enqueue.
        ({**FINISHED, "n": "0"}, 12, Outcome.MISSING),
        ({**RUNNING, "e": "6"}, 12, Outcome.MISSING),
        (None, 11, Outcome.MISSING),
    ],
)
def test_who_may_end(record: Record | None, run: int, outcome: Outcome) -> None:
    # Given a record
    # When a run of the first enqueue ends
    # Then that is stored where it has the right to
    assert after(record, Update(Kind.RUN, FIRST, run, 9, state=FAILED)).outcome is outcome


# From outside


def test_an_outside_write() -> None:
    # Given a running message
    record = {**RUNNING, "p": "5", ":step": "1"}
    # When somebody else writes
    applied = after(record, Update(Kind.OUTSIDE, fields={":step": "2"}, increment=-1.5))
    # Then it is merged, and the run still owns it
    assert changed(applied, record) == {":step": "2", "p": "3.5"}
    assert (applied.outcome, applied.ttl) == (Outcome.APPLIED, DEFAULT_LIVE_TTL)


def test_an_outside_write_after_the_end_leaves_the_expiry() -> None:
    # Given a finished message
    # When somebody writes to it
    applied = after(FINISHED, Update(Kind.OUTSIDE, fields={":step": "2"}, ttl=1))
    # Then it lives as long as it would have
    assert (changed(applied, FINISHED), applied.ttl) == ({":step": "2"}, None)


@pytest.mark.parametrize("record, moment", [(RUNNING, str(NOW)), (FINISHED, "7")], ids=["running", "finished"])
def test_an_outside_end_is_dated_once(record: Record, moment: str) -> None:
    # Given a message that is finished, or not
    # When somebody says that it failed
    applied = after(record, Update(Kind.OUTSIDE, state=FAILED, ttl=1234))
    # Then it has failed when it first finished
    assert applied.record is not None
    assert (applied.record["s"], applied.record["F"], applied.ttl) == ("3", moment, 1234)


@pytest.mark.parametrize("state", [QUEUED, WORKING])
def test_somebody_outside_may_revive_a_message(state: int) -> None:
    # Given a finished message
    # When somebody says that it is not
    applied = after(FINISHED, Update(Kind.OUTSIDE, state=state))
    # Then it lives again
    assert changed(applied, FINISHED) == {"s": str(state), "F": None}
    assert applied.ttl == DEFAULT_LIVE_TTL


def test_an_outside_write_makes_no_record() -> None:
    # Given nothing
    # When somebody writes to it
    # Then there still is nothing
    assert after(None, Update(Kind.OUTSIDE, create=True, state=COMPLETED)) == (Outcome.MISSING, None, None)


# Heartbeats


def test_a_heartbeat() -> None:
    # Given a running message
    # When its worker says that it runs
    # Then that moment is stored; a version counts changes that a watcher wants to see
    applied = after(RUNNING, Update(Kind.HEARTBEAT, run=11))
    assert applied == (Outcome.APPLIED, {**RUNNING, "H": str(NOW)}, DEFAULT_LIVE_TTL)


@pytest.mark.parametrize(
    "record, run, outcome",
    [
        (RUNNING, 10, Outcome.REFUSED),
        (WAITING, 11, Outcome.REFUSED),
        (FINISHED, 11, Outcome.REFUSED),
        (None, 11, Outcome.MISSING),
    ],
    ids=["older", "waiting", "finished", "unknown"],
)
def test_other_heartbeats(record: Record | None, run: int, outcome: Outcome) -> None:
    # Given a message that this run does not own
    # When it says that it runs
    # Then nothing is stored
    assert after(record, Update(Kind.HEARTBEAT, run=run)) == (outcome, record, None)


# Times to live


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({}, DEFAULT_LIVE_TTL),
        ({"L": "60000"}, 60_000),
        ({"L": "60000", "D": str(NOW + 5)}, 60_005),
        ({"L": "60000", "D": str(NOW - 5)}, 60_000),
    ],
    ids=["default", "its own", "delay", "delay that is over"],
)
def test_live_ttl(fields: Record, expected: int) -> None:
    # Given an unfinished record
    # When its time to live is asked for
    # Then it is its own, on top of what is left of the delay
    assert live_ttl_of({**WAITING, **fields}, NOW) == expected


# Texts


@pytest.mark.parametrize(
    "value, text",
    [(3, "3"), (3.0, "3"), (-0.0, "0"), (0.5, "0.5"), (-1.25, "-1.25"), (1e-7, "1e-07"), (2**53, "9007199254740992")],
)
def test_numbers(value: float, text: str) -> None:
    # Given a number
    # When it is written and read
    # Then it is the same, and whole ones are whole
    assert (number_text(value), number_of(text)) == (text, value)


def test_a_document() -> None:
    # Given a record
    record = {**RUNNING, ":step": '"a\\nb"', ":": "null", ":a\u2028b": "1"}
    # When it is written as one text
    document = to_document(record)
    # Then that is what is read
    assert from_document(document) == record


@pytest.mark.parametrize(
    "damage",
    [
        lambda document: "",
        lambda document: "junk",
        lambda document: document.replace("dramatiq-status 1", "dramatiq-status 2"),
        lambda document: document.rpartition("\n")[0],
        lambda document: document + "\n",
        lambda document: "dramatiq-status 1",
        lambda document: document.partition("\n")[2],
    ],
    ids=["empty", "junk", "another format", "cut off", "too long", "nothing in it", "no mark"],
)
def test_a_damaged_document(damage: object) -> None:
    # Given a text that is not a record
    assert callable(damage)
    document = damage(to_document(RUNNING))
    # When it is read
    # Then there is nothing
    assert from_document(document) is None


@pytest.mark.parametrize(
    "change",
    [
        *[{"s": "4"}, {"s": "01"}, {"s": None}, {"v": None}, {"v": "x"}, {"v": "1.5"}, {"v": "nan"}, {"e": None}],
        *[{"n": None}, {"n": "1.5"}, {"q": None}, {"q": "x"}, {"L": "x"}, {"D": "1e3"}, {"A": "x"}],
        *[{"p": "x"}, {"p": "nan"}, {"p": "inf"}, {"p": "-1e999"}],
    ],
    ids=str,
)
def test_what_is_not_sound(change: dict[str, str | None]) -> None:
    # Given a record with something missing, or of the wrong form
    record = {name: text for name, text in {**RUNNING, **change}.items() if text is not None}
    # When it is checked
    # Then nobody works with it
    assert not is_sound(record)


@pytest.mark.parametrize("change", [{}, {"p": "0.5"}, {"p": "1e+17"}, {"L": "5"}, {"D": "-5"}, {":x": "junk"}], ids=str)
def test_what_is_sound(change: Record) -> None:
    # Given a record
    # When it is checked
    # Then updates can be applied to it
    assert is_sound({**RUNNING, **change})


@pytest.mark.parametrize("state", State)
def test_states_equal_their_names(state: State) -> None:
    # Given a state
    # When it is compared, and written
    # Then it is its name
    assert state == state.value == str(state) == f"{state}"


def test_finished_states() -> None:
    # Given the four states
    # When they are asked whether they are final
    # Then two are
    assert [state.finished for state in State] == [False, False, True, True]
