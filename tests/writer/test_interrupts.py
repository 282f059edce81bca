"""Tests of interrupts that strike in the writer."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import dramatiq
import pytest
from dramatiq.middleware import TimeLimitExceeded

from dramatiq_status import StatusRegistry, current_status
from dramatiq_status.backends import StubBackend
from dramatiq_status.record import COMPLETED, PROGRESS, STATE
from dramatiq_status.update import Kind, Outcome, Update
from dramatiq_status.writer import Confirmation, Finish, MessageBuffer
from dramatiq_status.writer.leadership import Leadership
from dramatiq_status.writer.whole_run import release_run

from ..recording import PATIENCE, Gate, RecordingBackend, eventually, make_broker, working
from .support import ENQUEUE_ID, MakeWriter, Silent, begin


@pytest.mark.parametrize(
    "write", [MessageBuffer.increment, lambda buffer: buffer.write({}, 1)], ids=["increment", "write"]
)
def test_an_interrupt_before_the_signal_loses_at_most_one_increment(
    make_writer: MakeWriter, monkeypatch: pytest.MonkeyPatch, write: Callable[[MessageBuffer], None]
) -> None:
    # Given a job that increments another message's progress
    backend = StubBackend()
    backend.update("parent", Update(Kind.ENQUEUE, ENQUEUE_ID))
    writer = make_writer(backend)
    buffer = writer.outside("parent")
    # When it is interrupted before it signals the writer

    def interrupted(buffer: MessageBuffer) -> None:
        raise TimeLimitExceeded

    with monkeypatch.context() as patched:
        patched.setattr(buffer, "_put", interrupted)
        with pytest.raises(TimeLimitExceeded):
            write(buffer)
    # Then the next increment signals the writer
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


def test_an_interrupt_in_merging_loses_no_final_state(make_writer: MakeWriter) -> None:
    # Given jobs that read their own progress, each interrupted at another line of the merging
    for line in itertools.count(1):
        backend = StubBackend(timeout=1_000)
        backend.update("m", Update(Kind.ENQUEUE, ENQUEUE_ID))
        writer = make_writer(backend)
        buffer, strike, confirmation = begin(writer), Strike({"_merge", "merge", "_merge_all"}, line), Confirmation()
        # No other thread merges meanwhile
        with writer._leadership.lock, contextlib.suppress(TimeLimitExceeded), strike:
            buffer.increment()
            buffer.counts()
        assert buffer.flush(PATIENCE)
        # When they end
        buffer.finish(Finish(COMPLETED, {}, 1_000_000), confirmation)
        # Then the final state is stored at once, with the increment
        assert writer.confirm(buffer, confirmation)
        record = backend.read("m") or {}
        assert (record[STATE], record[PROGRESS]) == ("2", "1")
        if not strike.hit:
            break
    assert line > 5


@pytest.mark.parametrize("flushed", [False, True], ids=["alone", "with a later flush"])
def test_an_interrupt_in_sending_a_whole_run_loses_no_final_state(make_writer: MakeWriter, flushed: bool) -> None:
    # Given jobs that have ended before their start was sent, each interrupted at another line of the sending of both
    functions = {"_freeze_run", "_end_run", "whole_run", "release_run", "remove_run", "_begin_merging", "merge"}
    for line in itertools.count(1):
        backend = StubBackend(timeout=1_000)
        backend.update("m", Update(Kind.ENQUEUE, ENQUEUE_ID))
        writer = make_writer(backend)
        buffer, strike, confirmation = begin(writer), Strike(functions, line), Confirmation()
        with writer._leadership.lock, contextlib.suppress(TimeLimitExceeded):
            buffer.finish(Finish(COMPLETED, {"F": "6"}, 1_000_000), confirmation)
            with strike:
                assert buffer.can_take_all()
                updates = buffer.take(0.0)
                if flushed:
                    # A thread of the run waits for its writes
                    buffer.unstored()
                outcomes = backend.update_many([("m", update) for update in updates])
                assert not buffer.settle(updates, outcomes)
                assert confirmation.stored
        # When the acknowledgement goes on
        assert confirmation.stored or writer.confirm(buffer, confirmation)
        # Then the final state is stored once, and the start with it
        record = backend.read("m") or {}
        assert (record[STATE], record["A"], record["F"]) == ("2", "1", "6")
        assert writer.drain(PATIENCE)
        assert buffer.unstored() is None
        if not strike.hit:
            break
    assert line > 10


def test_a_flush_while_the_operations_of_a_whole_run_are_removed(
    make_writer: MakeWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a job that has ended before its start was sent
    writer = make_writer(StubBackend(timeout=1_000))
    buffer, late = begin(writer), []
    real = release_run

    def release(operations: Any) -> None:
        # A thread of the run waits for its writes just now
        real(operations)
        late.append(buffer.unstored())

    monkeypatch.setattr("dramatiq_status.writer.buffer.release_run", release)
    with writer._leadership.lock:
        buffer.finish(Finish(COMPLETED, {"F": "6"}, 1_000_000), Confirmation())
        updates = buffer.take(0.0)
        # When its update is stored
        assert not buffer.settle(updates, [Outcome.APPLIED])
    # Then the waiting thread continues as well
    assert late[0] is not None and late[0].wait(PATIENCE)


def test_the_update_of_a_whole_run_creates_a_record_that_is_lost(make_writer: MakeWriter) -> None:
    # Given a job that has ended before its start was sent, and a store that has lost its record
    backend = StubBackend(timeout=1_000)
    writer = make_writer(backend)
    buffer, confirmation = begin(writer), Confirmation()
    with writer._leadership.lock:
        buffer.finish(Finish(COMPLETED, {"F": "6"}, 1_000_000), confirmation)
        # When the only update finds no record
        updates = buffer.take(0.0)
        outcomes = backend.update_many([("m", update) for update in updates])
        assert outcomes == [Outcome.MISSING]
        # Then the update is kept, with all values of the run, and can be sent again
        assert buffer.settle(updates, outcomes)
    assert writer.confirm(buffer, confirmation)
    record = backend.read("m") or {}
    assert (record[STATE], record["A"], record["F"]) == ("2", "1", "6")


def test_an_interrupt_in_postponing_loses_no_final_state(make_writer: MakeWriter) -> None:
    # Given runs that end while the server of their message does not answer
    backends: list[Silent] = []
    for line in itertools.count(1):
        backend = Silent(others=True)
        backend.update("m", Update(Kind.ENQUEUE, ENQUEUE_ID))
        writer = make_writer(backend)
        backends.append(backend)
        buffer, strike, confirmation = begin(writer), Strike({"postpone"}, line), Confirmation()
        buffer.finish(Finish(COMPLETED, {}, 1_000_000), confirmation)
        # When an interrupt strikes at another line of the postponement in each
        with contextlib.suppress(TimeLimitExceeded), strike:
            writer.confirm(buffer, confirmation)
        backend.silent = False
        if not strike.hit:
            break
    assert line > 4
    # Then the final states are stored when the server is back
    for backend in backends:
        eventually(lambda backend=backend: (backend.read("m") or {}).get(STATE) == "2")


def test_an_interrupt_before_the_leadership_is_passed_on_leaves_nothing_unsent(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given two jobs, and the leader, which stores the final state of the first
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
        # When the second writes meanwhile, and the leader is interrupted before it passes the leadership on
        write.set()
        assert written.wait(PATIENCE)
        gate.open()
        # Then the write is stored nevertheless
        eventually(lambda: backend.field(message.message_id, ":step"))
        seen.set()
        eventually(lambda: StatusRegistry.get(message, backend=backend).finished)
    assert struck
