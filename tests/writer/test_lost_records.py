"""Tests of records that the store loses."""

from __future__ import annotations

import threading
from typing import Any

import dramatiq
from dramatiq.middleware import Middleware, MiddlewareError

from dramatiq_status import BackendError, StatusRegistry, current_progress, current_status
from dramatiq_status.backends import StubBackend
from dramatiq_status.update import Kind

from ..recording import (
    PATIENCE,
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
    """The error of a broker that refuses retries."""


class RefuseRetries(Middleware):
    """Middleware that refuses retries."""

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


def test_a_start_that_the_store_gets_late_costs_no_later_write() -> None:
    # Given a store that gets the enqueue and the start of a job late: it has no record when the start is sent again
    backend, late = RecordingBackend(), list[Any]()
    broker = make_broker(backend)
    began = threading.Event()

    def miss(updates: Any) -> None:
        if not late:
            late.extend(updates)
            raise BackendError("The reply is late.")
        assert backend.delete(late[0][0])
        backend.after = arrive

    def arrive(updates: Any) -> None:
        backend.after = lambda updates: None
        # The replies of these calls are lost.
        enqueued = backend.updates(late[0][0], Kind.ENQUEUE)
        StubBackend.update_many(backend, [(late[0][0], enqueued[0]), *late])
        began.set()

    @dramatiq.actor(broker=broker)
    def work() -> None:
        status, progress = current_status(), current_progress()
        progress.increment()
        backend.before = lambda updates: None if began.is_set() else miss(updates)
        status.flush()
        progress.increment(49)
        status["step"] = "last"
        assert began.wait(PATIENCE)

    # When it ends
    message = work.send()
    run(broker)
    # Then its status has all that it has written, and one run
    snapshot = StatusRegistry.read(message, backend=backend)
    assert snapshot is not None and snapshot.completed
    assert (snapshot["progress"], snapshot["step"], snapshot.attempts) == (50, "last", 1)
