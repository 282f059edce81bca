"""The writer by itself: what it keeps while nobody answers, and how it gets over what should not happen."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import dramatiq
import pytest
from dramatiq.middleware import TimeLimitExceeded

from dramatiq_status import BackendError, StatusRegistry, current_status
from dramatiq_status.backends import StubBackend
from dramatiq_status.outage import Outage
from dramatiq_status.record import COMPLETED, PROGRESS, STATE, Epoch, Kind, Outcome, Update
from dramatiq_status.writer import Barrier, Finish, Lane, Start, Writer

from .recording import PATIENCE, Gate, RecordingBackend, eventually, make_broker, working

EPOCH = Epoch(7, 1)


class Silent(StubBackend):
    """Answers that its server, one of many, does not; or not at all."""

    def __init__(self, *, others: bool) -> None:
        super().__init__()
        self.others = others
        self.silent = True
        self.calls: list[int] = []

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        self.calls.append(len(updates))
        if not self.silent:
            return super().update_many(updates)
        if self.others:
            return [Outcome.UNREACHED] * len(updates)
        raise BackendError("It does not answer.")


def begin(writer: Writer, throttle: int = 0) -> Lane:
    lane = writer.begin_run("m", run=5, epoch=EPOCH, throttle=throttle, base=dict)
    lane.add(Start({}, 1, None))
    return lane


@pytest.fixture
def writers() -> Iterator[list[Writer]]:
    made: list[Writer] = []
    yield made
    for writer in made:
        writer.drain(PATIENCE)


def test_an_outage_leaves_two_updates_a_message_however_long_it_is(
    writers: list[Writer], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a store that does not answer, and a writer that asks it often
    monkeypatch.setattr("dramatiq_status.outage.FIRST_PAUSE", 0.001)
    monkeypatch.setattr("dramatiq_status.outage.LONGEST_PAUSE", 0.001)
    backend = Silent(others=False)
    writer = Writer(backend, Outage("Silent"))
    writers.append(writer)
    lane = begin(writer)
    # When a job goes on counting
    counted = 0
    while len(backend.calls) < 30:
        lane.increment()
        counted += 1
    # Then there is what was sent and not answered, and all the rest in one
    assert max(backend.calls) <= 2
    # And nothing of it is lost
    backend.silent = False
    assert eventually(lambda: (backend.read("m") or {}).get(PROGRESS) == str(counted))


@pytest.mark.parametrize("throttle", [0, 3_600_000])
def test_one_server_of_many_is_left_alone(
    writers: list[Writer], monkeypatch: pytest.MonkeyPatch, throttle: int
) -> None:
    # Given a message whose server does not answer, while others do
    backend = Silent(others=True)
    writer = Writer(backend, Outage("Silent"))
    writers.append(writer)
    monkeypatch.setattr("dramatiq_status.writer.LONGEST_PAUSE", 3600.0)
    lane = begin(writer, throttle)
    eventually(lambda: backend.calls)
    # When the job goes on counting, and ends
    for _ in range(1000):
        lane.increment()
        writer._ring()
    barrier = Barrier()
    lane.finish(Finish(COMPLETED, {}, 60_000), barrier)
    # Then it is not waited for, and the server is not asked at every turn
    assert not writer.confirm(lane, barrier)
    eventually(lambda: barrier.stored is False)
    assert len(backend.calls) == 1
    # And all is there once it answers
    backend.silent = False
    assert writer.drain(PATIENCE)
    record = backend.read("m")
    assert record is not None and (record[PROGRESS], record[STATE]) == ("1000", str(COMPLETED))


def test_what_cannot_be_merged_harms_nobody_else(writers: list[Writer], caplog: pytest.LogCaptureFixture) -> None:
    # Given two jobs, and something that one should never have been able to write
    backend = StubBackend()
    writer = Writer(backend, Outage("StubBackend"))
    writers.append(writer)
    backend.update_many([(name, Update(Kind.ENQUEUE, EPOCH)) for name in ("m", "other")])
    lane = begin(writer)
    other = writer.begin_run("other", run=6, epoch=EPOCH, throttle=0, base=dict)
    assert lane.flush(PATIENCE)
    lane._operations.append(object())  # type: ignore[arg-type]
    # When both go on
    with caplog.at_level(logging.ERROR):
        assert not lane.flush(PATIENCE)
        other.add(Start({}, 1, None))
        other.increment(3)
        # Then the one is told that it is not stored, once, and the other is stored
        assert other.flush(PATIENCE)
    assert (backend.read("other") or {})[PROGRESS] == "3"
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    # And the one goes on with what comes next
    lane.increment(2)
    assert lane.flush(PATIENCE) and (backend.read("m") or {})[PROGRESS] == "2"


def test_an_interrupt_as_the_writer_is_told_costs_one_increment_at_most(
    writers: list[Writer], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a job that counts on another message's bar
    backend = StubBackend()
    backend.update("parent", Update(Kind.ENQUEUE, EPOCH))
    writer = Writer(backend, Outage("StubBackend"))
    writers.append(writer)
    lane = writer.outside("parent")
    # When it is interrupted before the writer hears of it

    def interrupted(lane: Lane) -> None:
        raise TimeLimitExceeded

    with monkeypatch.context() as patched:
        patched.setattr(lane, "_put", interrupted)
        with pytest.raises(TimeLimitExceeded):
            lane.increment()
    # Then what is counted next is told
    for _ in range(10):
        lane.increment()
    assert eventually(lambda: (backend.read("parent") or {}).get(PROGRESS) == "11")


def test_an_interrupt_as_the_role_is_passed_on_leaves_nothing_unsent(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given two jobs, of which one is being stored by the thread that ran it
    backend = RecordingBackend(timeout=20_000)
    broker = make_broker(backend, heartbeat_interval=3_600_000)
    gate = Gate(backend, holds=lambda updates: any(update.state is not None for _, update in updates))
    write, written, seen = threading.Event(), threading.Event(), threading.Event()
    struck: list[str] = []
    pass_on = Writer._pass_on

    def interrupted(self: Writer) -> None:
        name = threading.current_thread().name
        if name != "dramatiq-status-writer" and not struck:
            struck.append(name)
            raise TimeLimitExceeded
        pass_on(self)

    monkeypatch.setattr(Writer, "_pass_on", interrupted)

    @dramatiq.actor(broker=broker)
    def long() -> None:
        assert write.wait(PATIENCE)
        current_status()["step"] = "x"
        written.set()
        assert seen.wait(PATIENCE)

    @dramatiq.actor(broker=broker)
    def short() -> None:
        pass

    message = long.send()
    with working(broker):
        eventually(lambda: backend.field(message.message_id, STATE) == "1")
        short.send()
        assert gate.reached.wait(PATIENCE)
        # When the other one writes meanwhile, and that thread is interrupted before it tells anybody
        write.set()
        assert written.wait(PATIENCE)
        gate.open()
        # Then what was written is stored all the same
        eventually(lambda: backend.field(message.message_id, ":step"))
        seen.set()
        eventually(lambda: StatusRegistry.get(message, backend=backend).finished)
    assert struck


@pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
def test_a_state_of_another_message_is_written_without_waiting(down: bool) -> None:
    # Given a job that says what became of another message
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

    backend.update("other", Update(Kind.ENQUEUE, EPOCH))
    with working(broker):
        judge.send("other")
        broker.join("default", timeout=int(PATIENCE * 1000))
        # Then nothing is raised, and it is stored, as soon as it can be
        backend.silent = False
        snapshot = eventually(lambda: (found := backend.snapshot("other")) and found.finished and found)
    assert raised == []
    assert (snapshot["status"], snapshot["reason"]) == ("failed", "late")
