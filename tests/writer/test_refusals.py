"""Tests of messages that the store refuses."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import dramatiq
import pytest

from dramatiq_status import BackendError, StatusMiddleware, StatusRegistry, current_status
from dramatiq_status.backends import StubBackend
from dramatiq_status.errors import StoreRefused
from dramatiq_status.record import ACTOR_NAME, PROGRESS
from dramatiq_status.testing.updates import enqueue
from dramatiq_status.update import Kind, Outcome, Update
from dramatiq_status.writer import Start, Writer

from ..recording import (
    PATIENCE,
    RecordingBackend,
    eventually,
    make_broker,
    make_stub_broker,
    run,
)
from .support import ENQUEUE_ID, MakeWriter, Silent, begin


class Picky(StubBackend):
    """A store that raises an error for each call with an update of one message, until a test ends that."""

    def __init__(self) -> None:
        super().__init__()
        self.refuses: str | None = "m"
        self.calls = 0

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        self.calls += 1
        if any(message_id == self.refuses for message_id, _ in updates):
            raise BackendError("The store does not take this message.")
        return super().update_many(updates)


def test_a_message_that_fails_alone_delays_no_other(
    make_writer: MakeWriter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a store that fails for one message, which is written to first
    monkeypatch.setattr("dramatiq_status.circuit_breaker.FIRST_PAUSE", 0.001)
    monkeypatch.setattr("dramatiq_status.writer.sender.LONGEST_PAUSE", 0.01)
    backend = Picky()
    writer = make_writer(backend)
    buffer = begin(writer)
    # When others are written to, in the same call and later
    names = [f"other-{n}" for n in range(40)]
    others = [begin(writer, name) for name in names]
    # Then the other messages are stored
    assert eventually(lambda: all(backend.read(name) for name in names))
    for other in others:
        other.increment(2)
    assert eventually(lambda: all((backend.read(name) or {}).get(PROGRESS) == "2" for name in names))
    # And the store counts as up, although it still fails for the first message, which is tried again and logged once
    assert eventually(lambda: "does not take updates of message 'm'" in caplog.text)
    outages, calls = writer.breaker.health(0, 0).outages, backend.calls
    assert eventually(lambda: backend.calls > calls + 2)
    assert not writer.breaker.down
    assert writer.breaker.health(0, 0).outages == outages
    assert caplog.text.count("does not take updates of message 'm'") == 1
    # When the store takes it, then all its updates are stored
    buffer.increment(3)
    backend.refuses = None
    assert eventually(lambda: (backend.read("m") or {}).get(PROGRESS)) == "3"


class Busy(StubBackend):
    """A store that raises errors while it is down.  Afterwards, each of 100 calls writes to another message."""

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


@pytest.mark.usefixtures("short_pauses")
def test_a_message_that_failed_in_an_outage_is_stored_despite_steady_traffic(make_writer: MakeWriter) -> None:
    # Given an outage in which single messages were sent
    backend = Busy()
    backend.writer = writer = make_writer(backend)
    buffers = [begin(writer, name) for name in ("m", "n")]
    assert eventually(lambda: all(buffer.failed_alone for buffer in buffers))
    # When it is over, and there is always another message to send
    backend.down = False
    assert eventually(lambda: len(backend.taken) >= 100 and {"m", "n"} <= set(backend.taken))
    # Then both were stored in between
    assert max(map(backend.taken.index, ("m", "n"))) < 50


class Shaky(StubBackend):
    """A store whose calls fail while it is down.  Afterwards, the first call with one message fails as well."""

    down = True
    has_failed = False

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        breaks = not self.down and not self.has_failed and any(message_id == "n" for message_id, _ in updates)
        if breaks:
            self.has_failed = True
        if self.down or breaks:
            raise BackendError("The connection broke.")
        return super().update_many(updates)


@pytest.mark.usefixtures("short_pauses")
def test_a_message_is_not_blamed_for_one_broken_connection(
    make_writer: MakeWriter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given an outage in which messages failed alone
    monkeypatch.setattr("dramatiq_status.writer.sender.LONGEST_PAUSE", 0.001)
    backend = Shaky()
    writer = make_writer(backend)
    buffers = [begin(writer, name) for name in ("m", "n")]
    assert eventually(lambda: all(buffer.failed_alone for buffer in buffers))
    # When it is over, and a connection breaks once
    backend.down = False
    assert eventually(lambda: backend.read("m") and backend.read("n"))
    # Then no message is logged as refused
    assert backend.has_failed and "does not take updates" not in caplog.text


class Reopening(StubBackend):
    """A store that refuses calls with message "m" until it has taken message "n".  Its first call waits."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        assert self.goes_on.wait(PATIENCE)
        if any(message_id == "m" for message_id, _ in updates) and self.read("n") is None:
            raise StoreRefused("It takes nothing yet.")
        return super().update_many(updates)


def test_a_store_that_takes_updates_again_in_the_middle_of_a_batch_gets_all(make_writer: MakeWriter) -> None:
    # Given a writer that sends, and two messages that it sends next
    backend = Reopening()
    writer = make_writer(backend)
    for name in ("first", "m", "n"):
        begin(writer, name)
    # When the store refuses the first one of them, and takes the second one
    backend.goes_on.set()
    # Then it gets both
    assert eventually(lambda: backend.read("m") and backend.read("n"))
    assert not writer.breaker.health(0, 0).dropped


@pytest.mark.usefixtures("short_pauses")
def test_an_outage_does_not_end_because_there_is_nothing_to_send(make_writer: MakeWriter) -> None:
    # Given an outage, and a message whose updates were sent with a command of the broker
    backend = Silent(others=False)
    writer = make_writer(backend)
    buffer = begin(writer)
    assert eventually(lambda: writer.breaker.down)
    updates = buffer.take(0.0)
    buffer.settle(updates, [Outcome.APPLIED] * len(updates))
    # When the writer tries the store again, also with another message
    calls = len(backend.calls)
    begin(writer, "other")
    assert eventually(lambda: len(backend.calls) > calls + 2)
    # Then the outage lasts
    assert 0 not in backend.calls and writer.breaker.down and writer.breaker.health(0, 0).outages == 1
    backend.silent = False


@pytest.mark.usefixtures("short_pauses")
def test_the_first_probe_of_each_outage_sends_many_messages(make_writer: MakeWriter) -> None:
    # Given an outage whose probes have failed, and that is over
    backend = Silent(others=False)
    StubBackend.update_many(backend, (("m", enqueue(*ENQUEUE_ID)),))
    writer = make_writer(backend)
    begin(writer)
    assert eventually(lambda: len(backend.calls) > 2)
    backend.silent = False
    assert eventually(lambda: not writer.breaker.down)
    # When the call of another thread begins the next outage
    with writer._leadership.lock:
        writer.breaker.failed(BackendError("It does not answer."))
        for name in ("one", "two", "three"):
            begin(writer, name)
        writer._queue.gather()
        # Then the first probe sends the updates of all messages
        assert writer._sender.send(list(writer._queue.ready))
        assert backend.calls[-1] == 3


class PickyAboutRuns(Picky):
    """A store that fails for the updates of one message's run, and takes updates from outside of the run."""

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


def test_a_parent_that_fails_alone_is_sent_with_pauses(
    make_writer: MakeWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a store that fails for one message, and counts as up
    monkeypatch.setattr("dramatiq_status.circuit_breaker.FIRST_PAUSE", 0.001)
    monkeypatch.setattr("dramatiq_status.writer.sender.LONGEST_PAUSE", 0.02)
    backend = PickyAboutRuns()
    writer = make_writer(backend)
    buffer = begin(writer)
    begin(writer, "other")
    assert eventually(lambda: buffer.failed_alone and backend.read("other") is not None)
    # When a child increments its progress
    writer.outside("m").write({}, 2)
    # Then the writer tries both again, with pauses
    refusals = backend.refusals
    assert eventually(lambda: backend.refusals >= refusals + 3)
    # When the store takes the message, then the child's increment counts
    backend.refuses = None
    assert eventually(lambda: (backend.read("m") or {}).get(PROGRESS)) == "2"


def test_an_update_that_raises_an_error_affects_no_other_message(caplog: pytest.LogCaptureFixture) -> None:
    # Given a store that raises an error for the updates of one message
    backend = RecordingBackend()
    broker = make_broker(backend)

    @dramatiq.actor(broker=broker)
    def work() -> None:
        current_status()["step"] = 1

    messages = [work.send() for _ in range(10)]
    bad = messages[3].message_id

    def refuse(updates: Any) -> None:
        if any(message_id == bad and update.kind is Kind.RUN for message_id, update in updates):
            raise ValueError("too large")

    backend.before = refuse
    # When all run
    run(broker, threads=4)
    # Then all other messages are completed
    states = [StatusRegistry.get(message, backend=backend).state for message in messages]
    assert states == ["completed"] * 3 + ["queued"] + ["completed"] * 6
    assert "too large" in caplog.text


def test_health_counts_an_update_that_cannot_be_stored_as_dropped() -> None:
    backend = RecordingBackend()
    middleware = StatusMiddleware(backend=backend)
    broker = make_stub_broker(middleware)

    @dramatiq.actor(broker=broker)
    def work() -> None:
        pass

    def refuse(updates: Any) -> None:
        if any(update.kind is Kind.RUN for _, update in updates):
            raise ValueError("too large")

    work.send()
    backend.before = refuse
    run(broker)
    health = middleware.health()
    assert health.up and health.dropped >= 1 and health.outages == 0


class RefusingOne(RecordingBackend):
    """A store that refuses the messages of one actor."""

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        if any(update.fields.get(ACTOR_NAME) == '"refused"' for _, update in updates):
            raise StoreRefused("It is not permitted.")
        return super().update_many(updates)


def test_a_refused_enqueue_affects_no_later_enqueue(caplog: pytest.LogCaptureFixture) -> None:
    # Given a store that refuses the messages of one actor
    backend = RefusingOne()
    middleware = StatusMiddleware(backend=backend)
    broker = make_stub_broker(middleware)

    @dramatiq.actor(broker=broker)
    def refused() -> None: ...

    @dramatiq.actor(broker=broker)
    def taken() -> None: ...

    # When messages of both are sent directly after each other
    refused.send()
    messages = [taken.send() for _ in range(3)]
    # Then the others are stored, the store counts as up, and the refused update is counted and logged
    assert [StatusRegistry.get(message, backend=backend).state for message in messages] == ["queued"] * 3
    health = middleware.health()
    assert (health.up, health.dropped, health.failures, health.outages) == (True, 1, 1, 0)
    assert caplog.text.count("It is not permitted.") == 1
