"""The writer by itself: what it keeps while nobody answers, and how it gets over what should not happen."""

from __future__ import annotations

import contextlib
import itertools
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from types import FrameType
from typing import Any

import dramatiq
import pytest
from dramatiq.middleware import TimeLimitExceeded

from dramatiq_status import BackendError, StatusRegistry, current_status
from dramatiq_status.backends import StubBackend
from dramatiq_status.circuit_breaker import CircuitBreaker
from dramatiq_status.record import COMPLETED, PROGRESS, STATE, Record
from dramatiq_status.update import EnqueueId, Kind, Outcome, Update
from dramatiq_status.writer import Confirmation, Finish, MessageBuffer, Start, Write, Writer
from dramatiq_status.writer.leadership import Leadership

from ..recording import PATIENCE, Gate, RecordingBackend, eventually, make_broker, working

ENQUEUE_ID = EnqueueId(7, 1)


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
            return [Outcome.UNAVAILABLE] * len(updates)
        raise BackendError("It does not answer.")


def begin(writer: Writer, throttle: int = 0) -> MessageBuffer:
    buffer = writer.begin_run("m", run_token=5, enqueue_id=ENQUEUE_ID, throttle=throttle, base=dict)
    buffer.add(Start({}, 1))
    return buffer


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
    monkeypatch.setattr("dramatiq_status.circuit_breaker.FIRST_PAUSE", 0.001)
    monkeypatch.setattr("dramatiq_status.circuit_breaker.LONGEST_PAUSE", 0.001)
    backend = Silent(others=False)
    writer = Writer(backend, CircuitBreaker("Silent"))
    writers.append(writer)
    buffer = begin(writer)
    # When a job goes on counting
    counted = 0
    while len(backend.calls) < 30:
        buffer.increment()
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
    writer = Writer(backend, CircuitBreaker("Silent"))
    writers.append(writer)
    monkeypatch.setattr("dramatiq_status.writer.sender.LONGEST_PAUSE", 3600.0)
    buffer = begin(writer, throttle)
    eventually(lambda: backend.calls)
    # When the job goes on counting, and ends
    for _ in range(1000):
        buffer.increment()
        writer._wakeup.call()
    confirmation = Confirmation()
    buffer.finish(Finish(COMPLETED, {}, 60_000), confirmation)
    # Then it is not waited for, and the server is not asked at every turn
    assert not writer.confirm(buffer, confirmation)
    eventually(lambda: confirmation.stored is False)
    assert len(backend.calls) == 1
    # And all is there once it answers
    backend.silent = False
    assert writer.drain(PATIENCE)
    record = backend.read("m")
    assert record is not None and (record[PROGRESS], record[STATE]) == ("1000", str(COMPLETED))


def test_a_worker_that_ends_waits_for_a_record_whose_server_was_away(writers: list[Writer]) -> None:
    # Given a process that has counted on a message whose server was away, and that ends
    backend = Silent(others=True)
    writer = Writer(backend, CircuitBreaker("Silent"))
    writers.append(writer)
    writer.outside("parent").increment(3)
    eventually(lambda: backend.calls)
    ending = threading.Thread(target=writer.drain, args=(PATIENCE,))
    ending.start()
    eventually(lambda: writer._queue.drains)
    # When the server is back, and has the record from another process a moment later
    backend.silent = False
    calls = len(backend.calls)
    eventually(lambda: len(backend.calls) > calls)
    backend.update("parent", Update(Kind.ENQUEUE, ENQUEUE_ID))
    ending.join(PATIENCE)
    # Then the count is there
    record = backend.read("parent")
    assert record is not None and record.get(PROGRESS) == "3"


class Odd(float):
    """A number of a class of somebody's own."""

    def __repr__(self) -> str:
        return "odd"


class Rank(IntEnum):
    FIVE = 5


def test_numbers_of_derived_classes_count(writers: list[Writer]) -> None:
    # Given a job that counts with numbers of all kinds
    backend = StubBackend()
    writer = Writer(backend, CircuitBreaker("StubBackend"))
    writers.append(writer)
    backend.update("m", Update(Kind.ENQUEUE, ENQUEUE_ID))
    buffer = begin(writer)
    # When they reach the writer as they are
    for n in (Odd(2.5), 1, Rank.FIVE, Odd(0.5)):
        buffer._operations.append(n)
    buffer.write({":step": "1"}, Odd(1.0))
    # Then they add up
    assert buffer.flush(PATIENCE)
    assert backend.read("m")[PROGRESS] == "10"  # type: ignore[index]


def test_what_cannot_be_merged_is_dropped_alone(writers: list[Writer], caplog: pytest.LogCaptureFixture) -> None:
    # Given two jobs, and things that one should never have been able to write
    backend = StubBackend()
    writer = Writer(backend, CircuitBreaker("StubBackend"))
    writers.append(writer)
    backend.update_many([(name, Update(Kind.ENQUEUE, ENQUEUE_ID)) for name in ("m", "other")])
    buffer = writer.begin_run("m", run_token=5, enqueue_id=ENQUEUE_ID, throttle=0, base=dict)
    other = writer.begin_run("other", run_token=6, enqueue_id=ENQUEUE_ID, throttle=0, base=dict)
    refused: list[Any] = [object(), Odd("nan"), Write({PROGRESS: "many", ":bad": "1"}), Write({}, Odd("inf"))]
    # When they come between all that a run writes
    with caplog.at_level(logging.ERROR):
        buffer._operations.extend([refused[0], Start({}, 1), refused[1], 2])
        buffer._operations.extend([Write({":step": "1"}, 1), refused[2], 4, refused[3], 0.5])
        other.add(Start({}, 1))
        other.increment(3)
        confirmation = Confirmation()
        buffer.finish(Finish(COMPLETED, {":last": "1"}, 60_000), confirmation)
        buffer._operations.append(refused[0])
        # Then all else is stored, of the other job as well
        assert writer.confirm(buffer, confirmation) and other.flush(PATIENCE)
    record = backend.read("m")
    assert record is not None
    assert (record[STATE], record[PROGRESS], record[":step"], record[":last"], ":bad" in record) == (
        str(COMPLETED), "7.5", "1", "1", False,
    )  # fmt: skip
    assert (backend.read("other") or {})[PROGRESS] == "3"
    # And it is logged once
    assert [entry.levelname for entry in caplog.records] == ["ERROR"]
    assert "was written to message 'm' cannot be merged" in caplog.text


def test_a_message_whose_options_cannot_be_read_harms_nobody_else(
    writers: list[Writer], caplog: pytest.LogCaptureFixture
) -> None:
    # Given a run whose status the store has lost, and whose message cannot be read once more
    def unreadable() -> Record:
        raise ValueError("on purpose")

    backend = RecordingBackend()
    writer = Writer(backend, CircuitBreaker("RecordingBackend"))
    writers.append(writer)
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
    # Then all that the run has written is stored, and what others have written counts once
    assert buffer.flush(PATIENCE) and other.flush(PATIENCE)
    assert [(backend.read(name) or {})[PROGRESS] for name in ("m", "other")] == ["1", "3"]
    assert "what message 'm' was sent with cannot be read" in caplog.text.lower()


class Refusing(StubBackend):
    """Takes one update at a time, and answers some calls that nothing of theirs was carried out."""

    def __init__(self, unavailable: set[int]) -> None:
        super().__init__()
        self.calls = 0
        self._unavailable = unavailable

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        if len(updates) > 1:
            raise ValueError("one at a time")
        self.calls += 1
        if self.calls in self._unavailable:
            raise BackendError("It does not answer.")
        return super().update_many(updates)


def test_what_was_stored_one_by_one_is_not_sent_again(writers: list[Writer], monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a store that takes one update at a time, and does not answer in the middle
    monkeypatch.setattr("dramatiq_status.circuit_breaker.FIRST_PAUSE", 0.001)
    backend = Refusing({2})
    writer = Writer(backend, CircuitBreaker("Refusing"))
    writers.append(writer)
    for name in ("a", "b"):
        StubBackend.update_many(backend, [(name, Update(Kind.ENQUEUE, ENQUEUE_ID))])
    buffer, other = writer.outside("a"), writer.outside("b")
    # When two messages are counted on, by two updates of the first
    with writer._leadership.lock:
        buffer.write({}, 2)
        buffer.write({}, state=1)
        buffer.write({}, 4)
        other.increment(3)
    writer._wakeup.call()
    # Then each counts once
    assert eventually(lambda: (backend.read("b") or {}).get(PROGRESS)) == "3"
    assert writer.drain(PATIENCE)
    assert [(backend.read(name) or {})[PROGRESS] for name in ("a", "b")] == ["6", "3"]


class Picky(StubBackend):
    """Store that fails every call that has an update of a certain message, until it is cured."""

    def __init__(self) -> None:
        super().__init__()
        self.refuses: str | None = "m"
        self.calls = 0

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        self.calls += 1
        if any(message_id == self.refuses for message_id, _ in updates):
            raise BackendError("It does not take this one.")
        return super().update_many(updates)


def test_a_message_that_the_store_refuses_holds_up_no_other(
    writers: list[Writer], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a store that fails for one message, which is written to first
    monkeypatch.setattr("dramatiq_status.circuit_breaker.FIRST_PAUSE", 0.001)
    monkeypatch.setattr("dramatiq_status.writer.sender.LONGEST_PAUSE", 0.01)
    backend = Picky()
    writer = Writer(backend, CircuitBreaker("Picky"))
    writers.append(writer)
    buffer = begin(writer)
    # When others are written to, in the same call and later
    names = [f"other-{n}" for n in range(40)]
    others = [writer.begin_run(name, run_token=6, enqueue_id=ENQUEUE_ID, throttle=0, base=dict) for name in names]
    for other in others:
        other.add(Start({}, 1))
    # Then they are stored
    assert eventually(lambda: all(backend.read(name) for name in names))
    for other in others:
        other.increment(2)
    assert eventually(lambda: all((backend.read(name) or {}).get(PROGRESS) == "2" for name in names))
    # And the store counts as up, although it still refuses the one, which is tried again and logged once
    assert eventually(lambda: "does not take updates of message 'm'" in caplog.text)
    outages, calls = writer.breaker.health(0, 0).outages, backend.calls
    assert eventually(lambda: backend.calls > calls + 2)
    assert not writer.breaker.down
    assert writer.breaker.health(0, 0).outages == outages
    assert caplog.text.count("does not take updates of message 'm'") == 1
    # When the store takes it at last, then all of it is stored
    buffer.increment(3)
    backend.refuses = None
    assert eventually(lambda: (backend.read("m") or {}).get(PROGRESS)) == "3"


class Busy(StubBackend):
    """Fails while it is down.  Afterwards another message is written to whenever it takes updates, for some time."""

    def __init__(self) -> None:
        super().__init__()
        self.down = True
        self.writer: Writer | None = None
        self.taken: list[str] = []

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        if self.down:
            raise BackendError("It is down.")
        assert self.writer is not None
        self.taken += [message_id for message_id, _ in updates]
        if len(self.taken) < 100:
            buffer = self.writer.begin_run(
                f"other-{len(self.taken)}", run_token=6, enqueue_id=ENQUEUE_ID, throttle=0, base=dict
            )
            buffer.add(Start({}, 1))
        return super().update_many(updates)


def test_a_message_of_an_outage_is_stored_however_many_others_there_are(
    writers: list[Writer], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an outage in which single messages were sent
    monkeypatch.setattr("dramatiq_status.circuit_breaker.FIRST_PAUSE", 0.001)
    monkeypatch.setattr("dramatiq_status.circuit_breaker.LONGEST_PAUSE", 0.001)
    backend = Busy()
    backend.writer = writer = Writer(backend, CircuitBreaker("Busy"))
    writers.append(writer)
    buffers = [writer.begin_run(name, run_token=5, enqueue_id=ENQUEUE_ID, throttle=0, base=dict) for name in ("m", "n")]
    for buffer in buffers:
        buffer.add(Start({}, 1))
    assert eventually(lambda: all(buffer.suspect for buffer in buffers))
    # When it is over, and there is always another message to send
    backend.down = False
    assert eventually(lambda: len(backend.taken) >= 100 and {"m", "n"} <= set(backend.taken))
    # Then both were stored in between
    assert max(map(backend.taken.index, ("m", "n"))) < 50


class PickyAboutRuns(Picky):
    """Refuses what the run of one message writes; takes what others write to it."""

    def __init__(self) -> None:
        super().__init__()
        self.refusals = 0

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        if self.refuses is not None and all(update.kind is Kind.OUTSIDE for _, update in updates):
            return StubBackend.update_many(self, updates)
        try:
            return super().update_many(updates)
        except BackendError:
            self.refusals += 1
            raise


def test_a_parent_that_the_store_refuses_is_not_asked_for_all_the_time(
    writers: list[Writer], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a store that refuses a message, and counts as up
    monkeypatch.setattr("dramatiq_status.circuit_breaker.FIRST_PAUSE", 0.001)
    monkeypatch.setattr("dramatiq_status.writer.sender.LONGEST_PAUSE", 0.02)
    backend = PickyAboutRuns()
    writer = Writer(backend, CircuitBreaker("Picky"))
    writers.append(writer)
    buffer = begin(writer)
    other = writer.begin_run("other", run_token=6, enqueue_id=ENQUEUE_ID, throttle=0, base=dict)
    other.add(Start({}, 1))
    assert eventually(lambda: buffer.suspect and backend.read("other") is not None)
    # When a child increments its progress
    writer.outside("m").write({}, 2)
    # Then the writer tries both again, with pauses
    refusals = backend.refusals
    assert eventually(lambda: backend.refusals >= refusals + 3)
    # When the store takes the message, then the child's increment counts
    backend.refuses = None
    assert eventually(lambda: (backend.read("m") or {}).get(PROGRESS)) == "2"


class Contended(StubBackend):
    """Answers of the second half of a message's updates that they were not carried out, once."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: list[Update] = []

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        if self.refused or len(updates) < 2:
            return super().update_many(updates)
        kept = len(updates) // 2
        self.refused = [update for _, update in updates[kept:]]
        return super().update_many(updates[:kept]) + [Outcome.UNAVAILABLE] * len(self.refused)


def test_only_what_was_not_carried_out_is_sent_again(writers: list[Writer], monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a store that carries out the first of two updates of a message alone
    monkeypatch.setattr("dramatiq_status.writer.sender.LONGEST_PAUSE", 0.001)
    backend = Contended()
    writer = Writer(backend, CircuitBreaker("Contended"))
    writers.append(writer)
    backend.update("m", Update(Kind.ENQUEUE, ENQUEUE_ID))
    buffer = writer.outside("m")
    # When both bring increments
    with writer._leadership.lock:
        buffer.write({}, 2)
        buffer.write({}, state=1)
        buffer.write({}, 3)
    writer._wakeup.call()
    # Then each counts once
    assert eventually(lambda: backend.refused)
    assert writer.drain(PATIENCE)
    assert (backend.read("m") or {})[PROGRESS] == "5"


def test_a_sender_comes_to_its_end_while_others_write(writers: list[Writer]) -> None:
    # Given jobs that write faster than a sender can gather
    backend = StubBackend()
    writer = Writer(backend, CircuitBreaker("StubBackend"))
    writers.append(writer)
    backend.update_many([(name, Update(Kind.ENQUEUE, ENQUEUE_ID)) for name in ("m", "other")])
    buffer, other = writer.outside("m"), writer.outside("other")
    gathered: list[str] = []
    collect = MessageBuffer.collect

    def busy(self: MessageBuffer, now: float) -> float | None:
        due = collect(self, now)
        gathered.append(self.message_id)
        if len(gathered) < 1000:
            (buffer if self is other else other).increment()
        return due

    # When one gathers
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(MessageBuffer, "collect", busy)
        with writer._leadership.lock:
            buffer.increment()
            writer._queue.gather()
            # Then it looks at what was there when it began
            assert gathered == ["m"]


@pytest.mark.parametrize(
    "write", [MessageBuffer.increment, lambda buffer: buffer.write({}, 1)], ids=["increment", "write"]
)
def test_an_interrupt_as_the_writer_is_told_costs_one_increment_at_most(
    writers: list[Writer], monkeypatch: pytest.MonkeyPatch, write: Callable[[MessageBuffer], None]
) -> None:
    # Given a job that counts on another message's bar
    backend = StubBackend()
    backend.update("parent", Update(Kind.ENQUEUE, ENQUEUE_ID))
    writer = Writer(backend, CircuitBreaker("StubBackend"))
    writers.append(writer)
    buffer = writer.outside("parent")
    # When it is interrupted before the writer hears of it

    def interrupted(buffer: MessageBuffer) -> None:
        raise TimeLimitExceeded

    with monkeypatch.context() as patched:
        patched.setattr(buffer, "_put", interrupted)
        with pytest.raises(TimeLimitExceeded):
            write(buffer)
    # Then what is counted next is told
    for _ in range(10):
        buffer.increment()
    assert eventually(lambda: (backend.read("parent") or {}).get(PROGRESS) == "11")


class Strike:
    """An interrupt that strikes this thread before the n-th line of a function of the writer."""

    def __init__(self, functions: set[str], line: int) -> None:
        self.hit = False
        self._functions = functions
        self._left = line

    def __enter__(self) -> None:
        self._previous = sys.gettrace()
        sys.settrace(self._enter)

    def __exit__(self, *exception: object) -> None:
        sys.settrace(self._previous)

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any] | None:
        return self._count if frame.f_code.co_name in self._functions else None

    def _count(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any]:
        if event == "line":
            self._left -= 1
            if self._left == 0:
                self.hit = True
                raise TimeLimitExceeded
        return self._count


def test_an_interrupt_as_a_run_counts_its_own_progress_loses_no_final_state(writers: list[Writer]) -> None:
    # Given jobs that read their own progress, and are interrupted at any line of that
    for line in itertools.count(1):
        backend = StubBackend(timeout=1_000)
        backend.update("m", Update(Kind.ENQUEUE, ENQUEUE_ID))
        writer = Writer(backend, CircuitBreaker("StubBackend"))
        writers.append(writer)
        buffer, strike, confirmation = begin(writer), Strike({"_merge", "merge", "_merge_all"}, line), Confirmation()
        # No other thread merges meanwhile
        with writer._leadership.lock, contextlib.suppress(TimeLimitExceeded), strike:
            buffer.increment()
            buffer.counts()
        assert buffer.flush(PATIENCE)
        # When they end
        buffer.finish(Finish(COMPLETED, {}, 1_000_000), confirmation)
        # Then the final state is stored at once, with what was counted
        assert writer.confirm(buffer, confirmation)
        record = backend.read("m") or {}
        assert (record[STATE], record[PROGRESS]) == ("2", "1")
        if not strike.hit:
            break
    assert line > 5


def test_an_interrupt_as_a_message_is_postponed_loses_no_final_state(writers: list[Writer]) -> None:
    # Given runs that end while the server of their message does not answer
    backends: list[Silent] = []
    for line in itertools.count(1):
        backend = Silent(others=True)
        backend.update("m", Update(Kind.ENQUEUE, ENQUEUE_ID))
        writer = Writer(backend, CircuitBreaker("Silent"))
        writers.append(writer)
        backends.append(backend)
        buffer, strike, confirmation = begin(writer), Strike({"postpone"}, line), Confirmation()
        buffer.finish(Finish(COMPLETED, {}, 1_000_000), confirmation)
        # When an interrupt strikes at any line of what notes that
        with contextlib.suppress(TimeLimitExceeded), strike:
            writer.confirm(buffer, confirmation)
        backend.silent = False
        if not strike.hit:
            break
    assert line > 4
    # Then the final states are stored when the server is back
    for backend in backends:
        eventually(lambda backend=backend: (backend.read("m") or {}).get(STATE) == "2")


def test_an_interrupt_as_the_role_is_passed_on_leaves_nothing_unsent(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given two jobs, of which one is being stored by the thread that ran it
    backend = RecordingBackend(timeout=20_000)
    broker = make_broker(backend, heartbeat_interval=3_600_000)
    gate = Gate(backend, holds=lambda updates: any(update.state is not None for _, update in updates))
    write, written, seen = threading.Event(), threading.Event(), threading.Event()
    struck: list[str] = []
    pass_on = Leadership.pass_on

    def interrupted(self: Leadership) -> None:
        name = threading.current_thread().name
        if name != "dramatiq-status-writer" and not struck:
            struck.append(name)
            raise TimeLimitExceeded
        pass_on(self)

    monkeypatch.setattr(Leadership, "pass_on", interrupted)

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

    backend.update("other", Update(Kind.ENQUEUE, ENQUEUE_ID))
    with working(broker):
        judge.send("other")
        broker.join("default", timeout=int(PATIENCE * 1000))
        # Then nothing is raised, and it is stored, as soon as it can be
        backend.silent = False
        snapshot = eventually(lambda: (found := backend.snapshot("other")) and found.finished and found)
    assert raised == []
    assert (snapshot["status"], snapshot["reason"]) == ("failed", "late")
