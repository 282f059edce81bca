"""Tests of updates that are sent again."""

from __future__ import annotations

from collections.abc import Sequence

import dramatiq
import pytest

from dramatiq_status import BackendError, StatusMiddleware, StatusRegistry, current_progress, current_status
from dramatiq_status.backends import MemcachedBackend, StubBackend
from dramatiq_status.record import PROGRESS
from dramatiq_status.update import Kind, Outcome, Update

from ..recording import (
    PATIENCE,
    Broken,
    RecordingBackend,
    eventually,
    make_broker,
    run,
)
from .support import ENQUEUE_ID, MakeWriter, Silent, begin


@pytest.mark.usefixtures("short_pauses")
def test_a_message_keeps_two_updates_in_an_outage_of_any_length(make_writer: MakeWriter) -> None:
    # Given a store that does not answer, and a writer that tries it often
    backend = Silent(others=False)
    writer = make_writer(backend)
    buffer = begin(writer)
    # When a job increments its progress
    counted = 0
    while len(backend.calls) < 30:
        buffer.increment()
        counted += 1
    # Then there are two updates: the one that was sent without an answer, and one with everything after it
    assert max(backend.calls) <= 2
    # And no increment is lost
    backend.silent = False
    assert eventually(lambda: (backend.read("m") or {}).get(PROGRESS) == str(counted))


class Refusing(StubBackend):
    """A store that takes one update at a time, and once raises an error although it has carried out nothing."""

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


def test_updates_that_were_stored_singly_are_not_sent_again(
    make_writer: MakeWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a store that takes one update at a time, and does not answer in the middle
    monkeypatch.setattr("dramatiq_status.circuit_breaker.FIRST_PAUSE", 0.001)
    backend = Refusing({2})
    writer = make_writer(backend)
    for name in ("a", "b"):
        StubBackend.update_many(backend, [(name, Update(Kind.ENQUEUE, ENQUEUE_ID))])
    buffer, other = writer.outside("a"), writer.outside("b")
    # When two messages are incremented, the first one by two updates
    with writer._leadership.lock:
        buffer.write({}, 2)
        buffer.write({}, state=1)
        buffer.write({}, 4)
        other.increment(3)
    writer._wakeup.wake()
    # Then each increment counts once
    assert eventually(lambda: (backend.read("b") or {}).get(PROGRESS)) == "3"
    assert writer.drain(PATIENCE)
    assert [(backend.read(name) or {})[PROGRESS] for name in ("a", "b")] == ["6", "3"]


class Contended(StubBackend):
    """A store that once does not carry out the second half of the updates."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: list[Update] = []

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        if self.refused or len(updates) < 2:
            return super().update_many(updates)
        kept = len(updates) // 2
        self.refused = [update for _, update in updates[kept:]]
        return super().update_many(updates[:kept]) + [Outcome.UNAVAILABLE] * len(self.refused)


def test_only_updates_without_an_outcome_are_sent_again(
    make_writer: MakeWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a store that carries out the first of two updates of a message alone
    monkeypatch.setattr("dramatiq_status.writer.sender.LONGEST_PAUSE", 0.001)
    backend = Contended()
    writer = make_writer(backend)
    backend.update("m", Update(Kind.ENQUEUE, ENQUEUE_ID))
    buffer = writer.outside("m")
    # When both contain increments
    with writer._leadership.lock:
        buffer.write({}, 2)
        buffer.write({}, state=1)
        buffer.write({}, 3)
    writer._wakeup.wake()
    # Then each increment counts once
    assert eventually(lambda: backend.refused)
    assert writer.drain(PATIENCE)
    assert (backend.read("m") or {})[PROGRESS] == "5"


def test_an_increment_whose_reply_is_lost_counts_once() -> None:
    # Given a store that carries out updates and then raises an error
    backend = RecordingBackend()
    broker = make_broker(backend)

    @dramatiq.actor(broker=broker)
    def work() -> None:
        broken = Broken(backend, after=True)
        current_progress().increment(5)
        current_status()["step"] = 1
        eventually(lambda: broken.failures >= 2)
        broken.down = False

    # When the store is back
    message = work.send()
    run(broker)
    snapshot = StatusRegistry.read(message, backend=backend)
    # Then the increments that were sent again count once
    assert snapshot is not None and snapshot.completed and snapshot["progress"] == 5


def test_an_increment_counts_once_if_a_field_beside_it_is_too_large(
    memcached_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a parent, and a job whose record has hardly any room left in memcached
    backend = MemcachedBackend(servers=memcached_url.removeprefix("memcached://"), timeout=20_000)
    broker = make_broker(backend)
    (middleware,) = (m for m in broker.middleware if isinstance(m, StatusMiddleware))
    large = "x" * 60_000

    @dramatiq.actor(broker=broker)
    def parent() -> None: ...

    @dramatiq.actor(broker=broker)
    def work(parent_id: str) -> None:
        status = current_status()
        for n in range(16):
            status[f"field {n}"] = large
            status.flush()
        # When it writes more than fits, and increments its parent, in one batch
        with middleware._writer._leadership.lock:
            status["one"], status["two"], status["three"] = large, large, large
            StatusRegistry.progress(parent_id, broker=broker).increment(3)
        status.flush()
        StatusRegistry.get(parent_id, broker=broker).flush()

    above = parent.send()
    run(broker)
    message = work.send(above.message_id)
    run(broker)
    # Then the increment has counted once, and the log contains the missing field
    assert StatusRegistry.get(above, backend=backend)["progress"] == 3
    assert StatusRegistry.get(message, backend=backend).completed and message.message_id in caplog.text
    backend.close()
