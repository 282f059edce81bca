"""Tests of the threads that send."""

from __future__ import annotations

import threading
import time
from typing import Any

import dramatiq
import pytest

from dramatiq_status import BackendError, StatusMiddleware, StatusRegistry, current_progress, current_status
from dramatiq_status.backends import StubBackend
from dramatiq_status.circuit_breaker import FIRST_PAUSE, LONGEST_PAUSE, CircuitBreaker
from dramatiq_status.record import COMPLETED
from dramatiq_status.update import EnqueueId, Kind, Update
from dramatiq_status.writer import Confirmation, Finish, MessageBuffer, Start, Writer

from ..recording import (
    PATIENCE,
    Broken,
    Gate,
    RecordingBackend,
    eventually,
    join,
    make_broker,
    run,
    working,
)
from .support import ENQUEUE_ID, MakeWriter


def test_a_leader_finishes_while_other_threads_write(make_writer: MakeWriter) -> None:
    # Given jobs that write faster than a leader can collect
    backend = StubBackend()
    writer = make_writer(backend)
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

    # When a leader collects
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(MessageBuffer, "collect", busy)
        with writer._leadership.lock:
            buffer.increment()
            writer._queue.gather()
            # Then it collects the buffers that had signalled when it began
            assert gathered == ["m"]


def test_many_messages_share_a_round_trip() -> None:
    # Given a writer whose first call is blocked
    backend = RecordingBackend()
    broker = make_broker(backend)
    gate = Gate(backend)
    begun = threading.Semaphore(0)

    @dramatiq.actor(broker=broker)
    def work() -> None:
        for _ in range(100):
            current_progress().increment()
        begun.release()

    messages = [work.send() for _ in range(8)]
    with working(broker, threads=8) as worker:
        assert gate.reached.wait(20)
        for _ in messages:
            assert begun.acquire(timeout=20)
        # When the call ends
        gate.open()
        broker.join(work.queue_name, timeout=20_000)
        worker.join()
    # Then few calls contain all updates
    calls = [call for call in backend.calls if any(update.kind is Kind.RUN for _, update in call)]
    assert len(calls) <= 8
    assert all(StatusRegistry.get(message, backend=backend)["progress"] == 100 for message in messages)


def test_an_outage_takes_few_calls() -> None:
    # Given a store that is down
    backend = RecordingBackend()
    broker = make_broker(backend)
    broken = Broken(backend)

    @dramatiq.actor(broker=broker)
    def work() -> None:
        current_progress().increment()
        current_status()["step"] = 1
        current_status().flush()

    # When many messages are sent and processed
    begin = time.monotonic()
    for _ in range(500):
        work.send()
    with working(broker, threads=8) as worker:
        join(broker, worker)
        failures, lasted = broken.failures, time.monotonic() - begin
        broken.down = False
    # Then each call follows a pause of the circuit breaker
    allowed, at, pause = 1, 0.0, FIRST_PAUSE
    while at + pause <= lasted:
        allowed, at, pause = allowed + 1, at + pause, min(pause * 2, LONGEST_PAUSE)
    assert 1 <= failures <= allowed


def test_threads_wait_for_one_time_out_of_the_store_only() -> None:
    # Given a store that does not answer until the first time-out is over, and then counts as down
    backend = RecordingBackend(timeout=60_000)
    broker = make_broker(backend)
    down, reached, over = threading.Event(), threading.Event(), threading.Event()

    def be_silent(updates: Any) -> None:
        if down.is_set():
            reached.set()
            assert over.wait(PATIENCE)
            raise BackendError("The time is out.")

    backend.before = be_silent

    @dramatiq.actor(broker=broker)
    def work() -> None:
        current_status()["step"] = 1
        current_status().flush()

    messages = [work.send() for _ in range(100)]
    down.set()
    with working(broker, threads=8) as worker:
        assert reached.wait(PATIENCE)
        # When the outage begins
        over.set()
        # Then all jobs are done, although the next time-out is longer than the test's patience
        join(broker, worker)
        down.clear()
        for message in messages:
            assert StatusRegistry.wait(message, backend=backend).completed


def test_a_thread_that_waits_for_its_final_state_sends_it() -> None:
    # Given a worker whose writer has nothing to do
    backend = RecordingBackend()
    broker = make_broker(backend)
    senders: dict[str, list[str]] = {}

    def note(updates: Any) -> None:
        for message_id, update in updates:
            if update.state is not None:
                senders.setdefault(message_id, []).append(threading.current_thread().name)

    backend.after = note
    threads: dict[str, str] = {}

    @dramatiq.actor(broker=broker)
    def work() -> None:
        current_status().flush()
        threads[current_status().message_id] = threading.current_thread().name

    # When jobs end, one after the other
    for _ in range(5):
        work.send()
    run(broker, threads=1)
    # Then each job's thread has sent the final state itself, once
    assert senders == {message_id: [thread] for message_id, thread in threads.items()} and len(senders) == 5


def test_threads_that_wait_share_the_next_call() -> None:
    # Given a leader whose call is blocked, and threads that wait for their final states
    backend = RecordingBackend(timeout=60_000)
    # (No heartbeat wakes the writer's thread.)
    broker = make_broker(backend, heartbeat_interval=3_600_000)
    reached, go_on = threading.Event(), threading.Event()
    begun = threading.Semaphore(0)
    (middleware,) = (m for m in broker.middleware if isinstance(m, StatusMiddleware))

    def hold(updates: Any) -> None:
        if any(update.state is not None for _, update in updates) and not reached.is_set():
            reached.set()
            assert go_on.wait(PATIENCE)

    backend.before = hold

    @dramatiq.actor(broker=broker)
    def work(others: int) -> None:
        if others:
            for _ in range(others):
                assert begun.acquire(timeout=PATIENCE)
            # From here on, the writer's thread has nothing to do.
            current_status().flush()
        else:
            begun.release()
            assert reached.wait(PATIENCE)

    messages = [work.send(5), *(work.send(0) for _ in range(5))]
    with working(broker, threads=6) as worker:
        eventually(lambda: len(middleware._writer._leadership.waiting) == 5)
        # When the call ends
        go_on.set()
        # Then all final states are stored long before the time-out
        join(broker, worker)
    assert [StatusRegistry.get(message, backend=backend).state for message in messages] == ["completed"] * 6


class Threadless(Writer):
    """A writer without a thread of its own."""

    def _ensure_thread(self) -> None:
        pass


def test_a_worker_thread_sends_only_updates_that_may_be_sent_twice() -> None:
    # Given a writer without a thread, and an increment of another message that waits
    backend = RecordingBackend()
    writer = Threadless(backend, CircuitBreaker("a store"))
    backend.update("parent", Update(Kind.ENQUEUE, EnqueueId(1, 1)))
    parent = writer.outside("parent")
    parent.increment(3)
    # When a worker's thread, which an interrupt may strike, stores its final state itself
    buffer = writer.begin_run("child", run_token=7, enqueue_id=EnqueueId(2, 1), throttle=0, base=dict)
    confirmation = Confirmation()
    buffer.add(Start({}, 1))
    buffer.finish(Finish(COMPLETED, {}, 1000), confirmation)
    assert writer.confirm(buffer, confirmation)
    # Then it has left the increment to the writer's thread
    assert {message_id for call in backend.calls[1:] for message_id, _ in call} == {"child"}
    assert list(writer._queue.ready) == [parent]
