"""Tests of heartbeats."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq

from dramatiq_status import BackendError, StatusMiddleware, StatusRegistry, current_status
from dramatiq_status.circuit_breaker import CircuitBreaker
from dramatiq_status.update import EnqueueId, Kind, Update
from dramatiq_status.writer import Start, Writer

from ..recording import (
    PATIENCE,
    Broken,
    RecordingBackend,
    eventually,
    make_broker,
    run,
    working,
)


def test_a_running_message_has_heartbeats_and_they_restore_its_record() -> None:
    # Given a worker with a short heartbeat interval
    backend = RecordingBackend()
    broker = make_broker(backend, heartbeat_interval=20)
    seen: list[Any] = []

    @dramatiq.actor(broker=broker)
    def work() -> None:
        eventually(lambda: backend.updates(None, Kind.HEARTBEAT))
        seen.append(current_status().read())
        assert current_status().delete()
        eventually(lambda: backend.read(current_status().message_id))

    # When a job runs for longer, and its record is lost
    message = work.send()
    run(broker)
    # Then it has heartbeats, and one of them has restored the record
    assert seen[0].heartbeat_at is not None and seen[0].working and not seen[0].stalled
    snapshot = StatusRegistry.read(message, backend=backend)
    assert snapshot is not None and snapshot.completed and snapshot.heartbeat_at is None


def test_heartbeats_are_sent_directly_after_an_outage() -> None:
    # Given a job with one heartbeat an hour
    backend = RecordingBackend()
    broker = make_broker(backend, heartbeat_interval=3_600_000)
    go_on, end = threading.Event(), threading.Event()

    @dramatiq.actor(broker=broker)
    def work() -> None:
        assert go_on.wait(PATIENCE)
        current_status()["step"] = 1
        assert end.wait(PATIENCE)

    message = work.send()
    with working(broker):
        backend.wait_for(lambda: backend.writes(message.message_id))
        # When the store fails for its updates
        broken = Broken(backend)
        go_on.set()
        eventually(lambda: broken.failures)
        # And the store is back
        broken.down = False
        # Then a heartbeat is sent at once
        backend.wait_for(lambda: backend.updates(message.message_id, Kind.HEARTBEAT))
        end.set()


@contextmanager
def a_quiet_job() -> Iterator[tuple[RecordingBackend, StatusMiddleware, str]]:
    """Run a job until the end of the block. The job writes nothing, and has one heartbeat an hour."""
    backend = RecordingBackend()
    broker = make_broker(backend, heartbeat_interval=3_600_000)
    (middleware,) = (m for m in broker.middleware if isinstance(m, StatusMiddleware))
    end = threading.Event()

    @dramatiq.actor(broker=broker)
    def work() -> None:
        assert end.wait(PATIENCE)

    message = work.send()
    with working(broker):
        backend.wait_for(lambda: backend.writes(message.message_id))
        yield backend, middleware, message.message_id
        end.set()


def test_failed_heartbeats_are_sent_after_the_outage() -> None:
    with a_quiet_job() as (backend, middleware, message_id):
        # When the hour is over, and the store does not answer
        broken = Broken(backend)
        middleware._writer._heartbeats.due_at = 0.0
        middleware._writer._wakeup.wake()
        eventually(lambda: broken.failures >= 2)
        # And the store is back
        broken.down = False
        # Then a heartbeat is sent although nothing else is written
        backend.wait_for(lambda: backend.updates(message_id, Kind.HEARTBEAT))


def test_heartbeats_probe_a_store_that_is_down() -> None:
    with a_quiet_job() as (backend, middleware, message_id):
        # When the hour is over during a pause of the circuit breaker, because another thread's call has failed
        middleware._breaker.failed(BackendError("for this test"))
        middleware._writer._heartbeats.due_at = 0.0
        middleware._writer._wakeup.wake()
        # Then a heartbeat is sent after the pause
        backend.wait_for(lambda: backend.updates(message_id, Kind.HEARTBEAT))


def test_a_message_whose_thread_has_died_has_no_heartbeats() -> None:
    # Given a run whose thread was killed, and another one
    backend = RecordingBackend()
    writer = Writer(backend, CircuitBreaker("a store"), heartbeat_interval=20)
    for message_id in ("dead", "alive"):
        backend.update(message_id, Update(Kind.ENQUEUE, EnqueueId(1, 1)))

    def begin(message_id: str) -> None:
        buffer = writer.begin_run(message_id, run_token=7, enqueue_id=EnqueueId(1, 1), throttle=0, base=dict)
        buffer.add(Start({}, 1))
        writer.running[buffer] = None

    thread = threading.Thread(target=begin, args=("dead",))
    thread.start()
    thread.join()
    begin("alive")
    # When heartbeats are sent
    backend.wait_for(lambda: backend.updates("alive", Kind.HEARTBEAT))
    # Then the message of the dead thread has none
    assert backend.updates("dead", Kind.HEARTBEAT) == []
    for buffer in list(writer.running):
        buffer.close()
    assert writer.drain(PATIENCE)
