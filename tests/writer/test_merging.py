"""Tests of merging."""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import dramatiq
import pytest

from dramatiq_status import StatusRegistry
from dramatiq_status.backends import StubBackend
from dramatiq_status.record import COMPLETED, PROGRESS, STATE, TOTAL, Record
from dramatiq_status.update import Changes, Kind, Update
from dramatiq_status.writer import Confirmation, Finish, MessageBuffer, Start, Write

from ..recording import PATIENCE, Gate, RecordingBackend, eventually, make_broker, working
from .support import ENQUEUE_ID, MakeWriter, Silent, begin


class Odd(float):
    """A number of a class of the application."""

    def __repr__(self) -> str:
        return "odd"


class Rank(IntEnum):
    FIVE = 5


def test_increments_may_be_numbers_of_derived_classes(make_writer: MakeWriter) -> None:
    # Given a job that increments by numbers of all kinds
    backend = StubBackend()
    writer = make_writer(backend)
    backend.update("m", Update(Kind.ENQUEUE, ENQUEUE_ID))
    buffer = begin(writer)
    # When they reach the writer without a check
    for n in (Odd(2.5), 1, Rank.FIVE, Odd(0.5)):
        buffer._operations.append(n)
    buffer.write({":step": "1"}, Odd(1.0))
    # Then the progress is their sum
    assert buffer.flush(PATIENCE)
    assert backend.read("m")[PROGRESS] == "10"  # type: ignore[index]


def test_an_operation_that_cannot_be_merged_is_dropped_alone(
    make_writer: MakeWriter, caplog: pytest.LogCaptureFixture
) -> None:
    # Given two jobs, and operations of types that do not exist
    backend = StubBackend()
    writer = make_writer(backend)
    backend.update_many([(name, Update(Kind.ENQUEUE, ENQUEUE_ID)) for name in ("m", "other")])
    buffer = writer.begin_run("m", run_token=5, enqueue_id=ENQUEUE_ID, throttle=0, base=dict)
    other = writer.begin_run("other", run_token=6, enqueue_id=ENQUEUE_ID, throttle=0, base=dict)
    refused: list[Any] = [object(), Odd("nan"), Write({PROGRESS: "many", ":bad": "1"}), Write({}, Odd("inf"))]
    # When one job writes them between its other operations
    with caplog.at_level(logging.ERROR):
        buffer._operations.extend([refused[0], Start({}, 1), refused[1], 2])
        buffer._operations.extend([Write({":step": "1"}, 1), refused[2], 4, refused[3], 0.5])
        other.add(Start({}, 1))
        other.increment(3)
        confirmation = Confirmation()
        buffer.finish(Finish(COMPLETED, {":last": "1"}, 60_000), confirmation)
        buffer._operations.append(refused[0])
        # Then all other operations of both jobs are stored
        assert writer.confirm(buffer, confirmation) and other.flush(PATIENCE)
    record = backend.read("m")
    assert record is not None
    assert (record[STATE], record[PROGRESS], record[":step"], record[":last"], ":bad" in record) == (
        str(COMPLETED), "7.5", "1", "1", False,
    )  # fmt: skip
    assert (backend.read("other") or {})[PROGRESS] == "3"
    # And the log contains them once
    assert [entry.levelname for entry in caplog.records] == ["ERROR"]
    assert "was written to message 'm' cannot be merged" in caplog.text


def test_unreadable_options_of_a_message_affect_no_other_message(
    make_writer: MakeWriter, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a run whose status the store has lost, and whose message cannot be read again
    def unreadable() -> Record:
        raise ValueError("on purpose")

    backend = RecordingBackend()
    writer = make_writer(backend)
    backend.update_many([(name, Update(Kind.ENQUEUE, ENQUEUE_ID)) for name in ("m", "other")])
    buffer = writer.begin_run("m", run_token=5, enqueue_id=ENQUEUE_ID, throttle=0, base=unreadable)
    other = writer.outside("other")
    assert backend.delete("m")
    gate = Gate(backend)
    buffer.add(Start({}, 1))
    assert gate.reached.wait(PATIENCE)
    # When both write
    buffer.increment(1)
    other.increment(3)
    gate.open()
    # Then all that the run has written is stored, and the increments of other processes count once
    assert buffer.flush(PATIENCE) and other.flush(PATIENCE)
    assert [(backend.read(name) or {})[PROGRESS] for name in ("m", "other")] == ["1", "3"]
    assert "the fields of message 'm' cannot be encoded" in caplog.text.lower()


def finish_then_count(buffer: MessageBuffer) -> None:
    buffer.write({":step": "1"}, 3, changes=Changes(to_total=True))
    buffer.increment(2)


def finish_then_set_the_total(buffer: MessageBuffer) -> None:
    buffer.write({}, changes=Changes(to_total=True))
    buffer.write({TOTAL: "70"})


def finish_then_set_the_progress(buffer: MessageBuffer) -> None:
    buffer.write({}, changes=Changes(to_total=True))
    buffer.write({PROGRESS: "7"})


def finish_between_totals(buffer: MessageBuffer) -> None:
    buffer.write({TOTAL: "null"}, 4)
    buffer.write({}, changes=Changes(to_total=True))
    buffer.increment(3)


@pytest.mark.parametrize("is_lost", [False, True], ids=["stored", "lost"])
@pytest.mark.parametrize(
    ("write", "progress", "total"),
    [
        (finish_then_count, "52", "50"),
        (finish_then_set_the_total, "50", "70"),
        (finish_then_set_the_progress, "7", "50"),
        (finish_between_totals, "8", "5"),
    ],
)
def test_writes_after_the_end_of_a_count_come_after_it(
    make_writer: MakeWriter, write: Callable[[MessageBuffer], None], progress: str, total: str, is_lost: bool
) -> None:
    # Given a run whose first writes are on their way to the store, which may have lost its status
    backend = RecordingBackend()
    writer = make_writer(backend)
    backend.update("m", Update(Kind.ENQUEUE, ENQUEUE_ID))
    buffer = begin(writer)
    assert buffer.flush(PATIENCE)
    gate = Gate(backend)
    buffer.write({TOTAL: "50"}, 1)
    assert gate.reached.wait(PATIENCE)
    if is_lost:
        assert backend.delete("m")
    # When it ends its count, and writes more, with one merge for all
    write(buffer)
    counts = buffer.counts()
    gate.open()
    # Then the store and the run have all writes in their order
    assert buffer.flush(PATIENCE)
    record = backend.read("m") or {}
    assert (record[PROGRESS], record[TOTAL]) == (progress, total)
    assert (counts.progress, counts.total) == (int(progress), int(total))


def test_the_end_of_a_count_that_has_not_begun_holds_up_no_other_message(make_writer: MakeWriter) -> None:
    # Given two jobs
    backend = StubBackend()
    writer = make_writer(backend)
    backend.update_many([(name, Update(Kind.ENQUEUE, ENQUEUE_ID)) for name in ("m", "other")])
    buffer = writer.begin_run("m", run_token=5, enqueue_id=ENQUEUE_ID, throttle=0, base=dict)
    other = writer.begin_run("other", run_token=6, enqueue_id=ENQUEUE_ID, throttle=0, base=dict)
    for one in (buffer, other):
        one.add(Start({}, 1))
    # When one of them ends a count of unknown total before it has counted
    buffer.write({TOTAL: "null"})
    buffer.write({}, changes=Changes(to_total=True))
    other.increment(5)
    # Then both are stored
    assert buffer.flush(PATIENCE) and other.flush(PATIENCE)
    assert (backend.read("m") or {})[TOTAL] == "0" and (backend.read("other") or {})[PROGRESS] == "5"


@pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
def test_a_run_sets_the_state_of_another_message_without_waiting(down: bool) -> None:
    # Given a job that sets the state of another message
    backend = Silent(others=False)
    backend.silent = False
    broker = make_broker(backend)
    raised: list[Any] = []

    @dramatiq.actor(broker=broker)
    def judge(other: str) -> None:
        backend.silent = down
        try:
            StatusRegistry.get(other, backend=backend).update(status="failed", reason="late")
        except Exception as e:
            raised.append(e)

    backend.update("other", Update(Kind.ENQUEUE, ENQUEUE_ID))
    with working(broker):
        judge.send("other")
        broker.join("default", timeout=int(PATIENCE * 1000))
        # Then no error is raised, and the state is stored once the store is up
        backend.silent = False
        snapshot = eventually(lambda: (found := backend.snapshot("other")) and found.finished and found)
    assert raised == []
    assert (snapshot["status"], snapshot["reason"]) == ("failed", "late")
