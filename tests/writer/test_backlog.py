"""Tests of the limits of the backlog."""

from __future__ import annotations

import gc
from typing import Any

import dramatiq
import pytest

from dramatiq_status import StatusMiddleware, StatusRegistry, current_status
from dramatiq_status.circuit_breaker import CircuitBreaker
from dramatiq_status.record import COMPLETED
from dramatiq_status.update import EnqueueId, Outcome
from dramatiq_status.writer import Backlog, Confirmation, Finish, Start, Writer

from ..recording import (
    Broken,
    RecordingBackend,
    eventually,
    make_broker,
    make_stub_broker,
    working,
)
from .support import a_memcached, a_redis


def test_an_outage_keeps_a_limited_number_of_messages(caplog: pytest.LogCaptureFixture) -> None:
    # Given a store that is down, and a writer that keeps the updates of five messages
    backend = RecordingBackend()
    broker = make_broker(backend, max_pending=5)

    # Ids in the order in which the jobs run: Dramatiq 1 shuffles fetched messages
    ids: list[str] = []

    @dramatiq.actor(broker=broker)
    def work() -> None:
        ids.append(current_status().message_id)

    for _ in range(20):
        work.send()
    broken = Broken(backend)
    with working(broker) as worker:
        broker.join(work.queue_name, timeout=20_000)
        worker.join()
        # When the store is back
        broken.down = False
        eventually(lambda: "answers again" in caplog.text)
    # Then it has the statuses of the last jobs
    states = [StatusRegistry.get(message_id, backend=backend).state for message_id in ids]
    assert 1 <= states.count("completed") <= 10 and states[-1] == "completed"
    # And the log contains the number of dropped updates
    assert "updates were dropped" in caplog.text and " 0 updates were dropped" not in caplog.text


def long_texts() -> int:
    """Count the bytes of all long texts that the dicts of this process hold."""
    gc.collect()
    texts = {
        id(text): len(text)
        for found in gc.get_objects()
        # Not isinstance(): it would make Django load its settings for a lazy object of a test that ran before.
        if issubclass(type(found), dict)
        for text in list(found.values())
        if type(text) is str and text.startswith('"xxxx')
    }
    return sum(texts.values())


@pytest.mark.parametrize("store", [a_redis, a_memcached])
def test_an_outage_keeps_a_limited_number_of_bytes(
    start_server: Any, caplog: pytest.LogCaptureFixture, store: Any
) -> None:
    # Given a store that is down, and a writer that keeps one million bytes
    server, backend = store(start_server)
    middleware = StatusMiddleware(backend=backend, max_pending_bytes=1_000_000)
    broker = make_stub_broker(middleware)
    # Ids in the order in which the jobs run: Dramatiq 1 shuffles fetched messages
    ids: list[str] = []
    most = 0

    @dramatiq.actor(broker=broker)
    def work() -> None:
        nonlocal most
        ids.append(current_status().message_id)
        current_status().update({f"text{n}": "x" * 60_000 for n in range(4)})
        if not len(ids) % 10:
            most = max(most, long_texts())

    for _ in range(60):
        work.send()
    server.stop()
    # When jobs write fourteen million bytes
    with working(broker, threads=1) as worker:
        broker.join(work.queue_name, timeout=60_000)
        worker.join()
        eventually(lambda: middleware.health().pending_messages <= 4)
        # Then no more is in memory, except for writes that the writer's thread has yet to measure
        assert long_texts() <= 1_000_000 and most <= 1_000_000 + 20 * 240_000
        # And when the store is back, it has the statuses of the last jobs
        server.start()
        eventually(lambda: middleware.health().up and not middleware.health().pending_messages)
    states = [snapshot.state for snapshot in StatusRegistry.read_many(ids, backend=backend) if snapshot]
    assert states == ["completed"] * 4
    assert [bool(StatusRegistry.read(message_id, backend=backend)) for message_id in ids[-4:]] == [True] * 4
    # And the log and the counters contain the dropped updates
    assert sum("more than 1000000 bytes" in record.getMessage() for record in caplog.records) == 1
    assert middleware.health().dropped >= 56
    backend.close()


def test_a_backlog_drops_finished_messages_first() -> None:
    # Given three runs whose updates wait in an outage
    writer = Writer(RecordingBackend(), CircuitBreaker("Broken"), max_pending=3, max_pending_bytes=10_000)
    runs = [writer.begin_run(str(n), run_token=5, enqueue_id=EnqueueId(1, 1), throttle=0, base=dict) for n in range(3)]
    backlog = Backlog(3, 10_000, lambda buffer: buffer.count_unsent() > 0)
    for buffer in runs:
        buffer.add(Start({}, 1))
        buffer.write({":text": "x" * 3000})
        backlog.note(buffer)
    backlog.measure()
    assert (len(backlog), backlog.has_room, backlog.pop_excess()) == (3, False, None)
    # When the same text is written again, and the second run ends
    runs[0].write({":text": "x" * 3000})
    runs[1].finish(Finish(COMPLETED, {}, 1_000_000), Confirmation())
    for buffer in runs[:2]:
        backlog.note(buffer)
    backlog.measure()
    # Then none is dropped
    assert backlog.pop_excess() is None
    # When the first run writes more
    runs[0].write({":other": "x" * 3000})
    backlog.note(runs[0])
    backlog.measure()
    # Then the run that has ended is dropped, and the others are within the limits
    assert (backlog.pop_excess(), backlog.pop_excess(), len(backlog)) == (runs[1], None, 2)
    # When the third run writes more, too
    runs[2].write({":other": "x" * 3000})
    backlog.note(runs[2])
    backlog.measure()
    # Then the run that has waited for longest is dropped
    assert (backlog.pop_excess(), backlog.pop_excess()) == (runs[0], None)
    # When the last update is stored
    runs[2].settle(runs[2].take(0.0), [Outcome.APPLIED])
    backlog.note(runs[2])
    backlog.measure()
    # Then the backlog is empty
    assert len(backlog) == 0 and backlog.has_room
