"""Tests of the middleware's health, and of the log."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import dramatiq
import pytest

from dramatiq_status import BackendError, StatusMiddleware, current_status
from dramatiq_status.circuit_breaker import CircuitBreaker
from dramatiq_status.update import Kind

from ..recording import (
    Broken,
    RecordingBackend,
    eventually,
    make_broker,
    make_stub_broker,
    run,
    working,
)


def test_calls_that_fail_at_the_same_time_are_one_attempt() -> None:
    # Given a store that is down
    outage = CircuitBreaker("a store")
    outage.failed(BackendError("one"))
    again_at = outage.retry_at
    # When calls fail that were made at the same time
    for _ in range(8):
        outage.failed(BackendError("another"))
    # Then they do not delay the next attempt
    assert outage.retry_at == again_at


def test_health_shows_an_outage() -> None:
    # Given a store that is down while jobs run, and a writer that keeps five messages
    backend = RecordingBackend()
    middleware = StatusMiddleware(backend=backend, max_pending=5)
    broker = make_stub_broker(middleware)

    @dramatiq.actor(broker=broker)
    def work() -> None:
        pass

    assert middleware.health() == (True, None, 0, 0, 0, 0, 0)
    for _ in range(20):
        work.send()
    broken = Broken(backend)
    before = datetime.now(timezone.utc)
    with working(broker) as worker:
        broker.join(work.queue_name, timeout=20_000)
        worker.join()
        # When the health is read
        down = eventually(lambda: (health := middleware.health()).dropped and health)
        # Then it has the beginning of the outage, and the numbers of pending and dropped updates
        assert not down.up and before <= down.down_since <= datetime.now(timezone.utc)
        assert down.pending_updates >= down.pending_messages >= 1
        assert down.failures >= 1 and down.outages == 1
        # And when the store is back, no update is pending, and the counters remain
        broken.down = False
        up = eventually(lambda: (health := middleware.health()).up and not health.pending_updates and health)
    assert (up.down_since, up.pending_messages, up.outages) == (None, 0, 1)
    assert up.dropped >= down.dropped and up.failures >= down.failures


def test_a_message_logs_each_trouble_once(caplog: pytest.LogCaptureFixture) -> None:
    # Given a run whose updates cannot be stored, and a handle that writes to it after its end
    backend = RecordingBackend()
    broker = make_broker(backend)
    handles: list[Any] = []

    @dramatiq.actor(broker=broker)
    def work() -> None:
        handles.append(current_status())
        for n in range(20):
            current_status()["n"] = n
            current_status().flush()

    def refuse(updates: Any) -> None:
        if any(update.kind is Kind.RUN for _, update in updates):
            raise ValueError("too large")

    work.send()
    backend.before = refuse
    run(broker)
    for n in range(20):
        handles[0]["n"] = n
    assert caplog.text.count("cannot be stored") == 2, "one line contains this text twice"
    assert caplog.text.count("has ended") == 1


def test_wrong_fields_of_a_message_are_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    # Given a message of a program without this package's checks
    backend = RecordingBackend()
    broker = make_broker(backend)

    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    message = work.message().copy(options={"status": {f"n{n}": float("nan") for n in range(900)} | {"status": 7}})
    broker.queues[work.queue_name].put(message.encode())
    # When it runs
    run(broker)
    # Then one line has their number, each time that the worker reads them
    assert 1 <= caplog.text.count("901 of 901 fields are ignored") <= 2
