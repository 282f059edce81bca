"""Tests of records that the store loses."""

from __future__ import annotations

from typing import Any

import dramatiq
from dramatiq.middleware import Middleware, MiddlewareError

from dramatiq_status import StatusRegistry, current_progress, current_status
from dramatiq_status.update import Kind

from ..recording import (
    RecordingBackend,
    make_broker,
    run,
)


def test_a_lost_record_is_restored_with_all_values() -> None:
    # Given a job whose record the store loses while it runs
    backend = RecordingBackend()
    broker = make_broker(backend)

    @dramatiq.actor(broker=broker)
    def work() -> None:
        status = current_status()
        status.update(step="one", total=50)
        current_progress().increment(7)
        status.flush()
        assert status.delete()
        status["other"] = 2

    # When it writes again
    message = work.send_with_options(status={"user_id": 42})
    run(broker)
    # Then the record is complete again
    found = StatusRegistry.get(message, backend=backend).to_dict()
    assert {name: found[name] for name in ("status", "user_id", "step", "other", "progress", "total", "attempts")} == {
        "status": "completed", "user_id": 42, "step": "one", "other": 2, "progress": 7, "total": 50, "attempts": 1,
    }  # fmt: skip
    assert found["actor_name"] == "work" and found["enqueued_at"] <= found["started_at"]


def lose_at_next_enqueue(backend: RecordingBackend) -> None:
    """Delete the record of a message directly before its next enqueue is carried out."""

    def lose(updates: Any) -> None:
        if any(update.kind is Kind.ENQUEUE for _, update in updates):
            backend.before = lambda updates: None
            for message_id, _ in updates:
                assert backend.delete(message_id)

    backend.before = lose


def test_a_record_that_is_lost_before_a_retry_is_restored() -> None:
    # Given a job that writes and fails, and a store that loses its record before the enqueue of the retry
    backend = RecordingBackend()
    broker = make_broker(backend)

    @dramatiq.actor(broker=broker, max_retries=1)
    def work() -> None:
        status = current_status()
        if status.get("step") is None:
            status.update(step="one", total=50)
            status.flush()
            lose_at_next_enqueue(backend)
            raise ValueError("on purpose")

    # When it is retried
    message = work.send_with_options(status={"user_id": 42})
    run(broker)
    # Then the record is complete again, with the number of attempts
    snapshot = StatusRegistry.read(message, backend=backend)
    assert snapshot is not None and snapshot.completed and snapshot.attempts == 2
    assert dict(snapshot.fields) == {"user_id": 42, "step": "one"} and snapshot.total == 50
    queued = [update.fields for update in backend.updates(message.message_id, Kind.ENQUEUE)]
    assert queued[1]["A"] == "1" and snapshot.enqueued_at is not None and snapshot.actor_name == "work"


class RetryRefused(MiddlewareError):
    """Raised by a broker that refuses retries."""


class RefuseRetries(Middleware):
    """Refuses retries."""

    def before_enqueue(self, broker: dramatiq.Broker, message: Any, delay: int | None) -> None:
        if message.options.get("retries"):
            raise RetryRefused


def test_a_record_that_is_lost_before_a_refused_retry_is_restored() -> None:
    # Given a job that increments its progress and fails, a store that loses its record before the enqueue of the retry,
    # and a broker that refuses the retry
    backend = RecordingBackend()
    broker = make_broker(backend)
    broker.add_middleware(RefuseRetries())

    @dramatiq.actor(broker=broker, max_retries=1)
    def work() -> None:
        current_progress().increment(5)
        current_status().flush()
        lose_at_next_enqueue(backend)
        raise ValueError("on purpose")

    # When it is run
    message = work.send()
    run(broker)
    # Then its state is failed, with the progress of its only run
    snapshot = StatusRegistry.read(message, backend=backend)
    assert snapshot is not None and snapshot.failed and snapshot.attempts == 1
    assert snapshot["progress"] == 5
