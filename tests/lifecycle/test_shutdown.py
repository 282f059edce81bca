"""Messages whose worker stops, in this process; test_command.py tests the command."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import dramatiq
import pytest
from dramatiq.brokers.redis import RedisBroker

from dramatiq_status import StatusMiddleware, StatusRegistry, current_progress, current_status
from dramatiq_status.backends import RedisBackend
from dramatiq_status.circuit_breaker import CircuitBreaker
from dramatiq_status.record import COMPLETED, PROGRESS, STATE
from dramatiq_status.update import EnqueueId, Kind, Update
from dramatiq_status.writer import Writer

from ..recording import UNMEASURED, Broken, RecordingBackend, eventually, make_broker, run, start_worker, working
from ..servers import RedisServer
from .recorder import RecordingRedisBackend
from .scenarios import DONE, RETRIED, failed
from .stage import PATIENCE, Stage
from .test_scenarios import end_of

StageMaker = Callable[..., Stage]


@pytest.fixture(params=["first", "last"])
def position(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(redis_server: RedisServer, position: str) -> Iterator[StageMaker]:
    """Yield a function that makes a stage on Redis, whose worker is not started yet. Dramatiq's stub would lose the
    messages that a worker gives back.
    """
    with ExitStack() as stack:

        def make_it(*, retries: bool = True) -> Stage:
            name = f"q-{uuid4()}"
            backend = RecordingRedisBackend(url=redis_server.url, namespace=name, timeout=20_000)
            stage = Stage(redis_server.database(1), backend, position=position, name=name, retries=retries)
            stack.callback(stage.close)
            return stage

        yield make_it


def send_and_wait(stage: Stage, *script: str, **options: object) -> str:
    """Send a message, and wait until it has come to its step ``say:step=running``."""
    message_id = stage.send(*script, **options)
    eventually(lambda: stage.sequence(message_id) and stage.read(message_id).get("step") == "running")
    return message_id


def test_a_message_that_is_interrupted_by_a_shutdown_is_retried(make: StageMaker) -> None:
    stage = make()
    # Given a message with the option ``notify_shutdown``
    with stage.working():
        message_id = send_and_wait(stage, "say:step=running,loop", "return", notify_shutdown=True)
        # When its worker stops
    # Then it is back in its queue, or the stopping worker has run it again
    assert stage.sequence(message_id) in ("qwq", "qwqw", "qwqwc")
    assert stage.backend.history(message_id)[2].exception == {"type": "Shutdown", "message": ""}
    # And another worker completes it
    with stage.working():
        stage.audit.wait(message_id)
    assert end_of(stage, message_id) == RETRIED
    # And the interrupted run has its exception
    interrupted = stage.read(message_id).runs[0]
    assert (interrupted.outcome, interrupted.exception) == ("retried", {"type": "Shutdown", "message": ""})
    assert interrupted.started_at is not None and interrupted.ended_at is not None


def test_a_message_that_is_interrupted_and_may_not_be_retried_fails(make: StageMaker) -> None:
    stage = make()
    # Given a message with the option notify_shutdown, and without retries
    with stage.working():
        message_id = send_and_wait(stage, "say:step=running,loop", notify_shutdown=True, max_retries=0)
        # When its worker stops
    # Then it has failed, and is not run again
    assert end_of(stage, message_id) == failed(exception="Shutdown")


def test_a_message_that_is_interrupted_without_retries_fails(make: StageMaker) -> None:
    stage = make(retries=False)
    # Given a message with the option notify_shutdown, and a broker without Retries
    with stage.working():
        message_id = send_and_wait(stage, "say:step=running,loop", notify_shutdown=True)
        # When its worker stops
    # Then Dramatiq has acknowledged it, and its state is `failed`
    assert end_of(stage, message_id) == failed(exception="Shutdown")


def test_a_message_that_is_not_interrupted_ends_before_the_worker(make: StageMaker) -> None:
    stage = make()
    going_down = threading.Event()
    stage.steps["until the end"] = lambda rest: going_down.wait(PATIENCE)
    # Given a message that runs, and one that waits behind it in the memory of the worker
    with stage.working(threads=1) as worker:
        running = send_and_wait(stage, "say:step=running,until the end,say:step=done")
        waiting = stage.send("say:step=second")
        eventually(lambda: not worker.work_queue.empty())
        # When the worker stops
        stopping = threading.Thread(target=worker.stop)
        stopping.start()
        eventually(lambda: not any(thread.running for thread in worker.workers))
        going_down.set()
        stopping.join()
    # Then the first one has ended in the usual way, and the second one waits for another worker
    assert end_of(stage, running) == DONE
    assert stage.read(running)["step"] == "done"
    assert stage.sequence(waiting) == "q"
    # And another worker gets it
    with stage.working():
        stage.audit.wait(waiting)
    assert end_of(stage, waiting) == DONE


class Long:
    """A job that writes at one signal of the test, and ends at another one."""

    def __init__(self) -> None:
        self.backend = RecordingBackend()
        self.broker = make_broker(self.backend, heartbeat_interval=20)
        self.go_on, self.end, self.message_id = threading.Event(), threading.Event(), ""

        @dramatiq.actor(broker=self.broker)
        def work() -> None:
            self.message_id = current_status().message_id
            assert self.go_on.wait(PATIENCE)
            current_progress().increment(7)
            assert self.end.wait(PATIENCE)

        work.send()

    def check_that_it_goes_on(self) -> None:
        """Check that a job has heartbeats, and that its writes are stored while it runs."""
        heard = len(self.backend.updates(self.message_id, Kind.HEARTBEAT))
        self.backend.wait_for(lambda: len(self.backend.updates(self.message_id, Kind.HEARTBEAT)) > heard)
        self.go_on.set()
        self.backend.wait_for(lambda: self.backend.field(self.message_id, PROGRESS) == "7")
        self.end.set()
        assert StatusRegistry.wait(self.message_id, backend=self.backend).completed


def test_a_job_goes_on_when_another_worker_of_its_process_stops() -> None:
    # Given a job that runs in one of two workers of a process
    job = Long()
    with working(job.broker, threads=1):
        eventually(lambda: job.message_id)
        # When the other worker stops
        with working(job.broker, threads=1):
            pass
        # Then the job still has heartbeats, and its writes are stored
        job.check_that_it_goes_on()


def test_a_job_that_outlives_its_worker_is_stored() -> None:
    # Given a job
    job = Long()
    worker = start_worker(job.broker, threads=1)
    eventually(lambda: job.message_id)
    # When its worker no longer waits for it
    worker.stop(timeout=1)
    # Then its status is updated until it ends
    job.check_that_it_goes_on()
    worker.join()


def test_a_handle_that_outlives_its_worker_writes() -> None:
    # Given a handle to another message that a job has left behind, and a worker that has stopped
    backend = RecordingBackend()
    broker = make_broker(backend)
    handles: list[Any] = []

    @dramatiq.actor(broker=broker)
    def work(other_id: str = "") -> None:
        if other_id:
            handles.append(StatusRegistry.progress(other_id, broker=broker))

    other = work.send()
    work.send(other.message_id)
    run(broker)
    # When the handle increments the progress
    handles[0].increment(3)
    # Then the increment is stored, too
    backend.wait_for(lambda: backend.field(other.message_id, PROGRESS) == "3")


def test_writes_while_the_thread_of_the_writer_ends_are_stored() -> None:
    # Given a writer whose thread is about to end while another thread writes
    backend = RecordingBackend()
    writer = Writer(backend, CircuitBreaker("a store"))
    backend.update("m", Update(Kind.ENQUEUE, EnqueueId(1, 1)))
    buffer = writer.outside("m")
    buffer.increment(1)
    assert buffer.flush(PATIENCE)

    class Crossing:
        """A stand-in for the lock that guards the end of the thread."""

        def __enter__(self) -> None:
            if backend.field("m", PROGRESS) == "1":
                buffer.increment(2)

        def __exit__(self, *error: object) -> None: ...

    writer._start_lock = Crossing()  # type: ignore[assignment]
    # When the writer is drained
    assert writer.drain(PATIENCE)
    # Then the write is stored nevertheless
    backend.wait_for(lambda: backend.field("m", PROGRESS) == "3")
    assert writer.drain(PATIENCE)


def test_updates_are_stored_if_the_store_returns_while_the_worker_stops(start_server: Any) -> None:
    # Given jobs that have ended while their store was down
    server = start_server(RedisServer())
    backend = RedisBackend(url=server.url, timeout=500)
    broker = make_broker(backend)
    done = threading.Semaphore(0)

    @dramatiq.actor(broker=broker)
    def work() -> None:
        current_progress().increment(3)
        done.release()

    messages = [work.send() for _ in range(50)]
    server.stop()
    worker = start_worker(broker)
    for _ in messages:
        assert done.acquire(timeout=PATIENCE)
    broker.join(work.queue_name, timeout=int(PATIENCE * 1000))
    # When their worker stops and has failed to send their updates, and the store comes back
    writer = next(found._writer for found in broker.middleware if isinstance(found, StatusMiddleware))
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    eventually(lambda: writer._queue.drains)
    tried = writer.breaker._failures
    eventually(lambda: writer.breaker._failures > tried + 1)
    server.start()
    stopping.join()
    # Then all updates are stored when the worker has stopped
    found = StatusRegistry.read_many(messages, backend=backend)
    assert [(one.state, one["progress"]) for one in found if one is not None] == [("completed", 3)] * 50
    backend.close()


def test_updates_that_are_lost_when_the_worker_stops_are_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given jobs that have ended while their store was down
    monkeypatch.setattr("dramatiq_status.middleware.SHUTDOWN_TIMEOUT", 0.5)
    backend = RecordingBackend()
    broker = make_broker(backend)
    broken = Broken(backend)

    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    messages = [work.send() for _ in range(7)]
    # When their worker stops, and the store does not come back
    run(broker)
    # Then the log has the number of lost updates
    found = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(found) == 1 and " 7 updates of 7 messages in the last 0.5 seconds" in found[0]
    # And if the process goes on, and the store comes back, all updates are stored
    broken.down = False
    backend.wait_for(lambda: all(backend.field(message.message_id, STATE) == str(COMPLETED) for message in messages))


def test_a_command_that_stops_stores_updates_if_the_store_returns(
    start_server: Any, redis_url: str, tmp_path: Path
) -> None:
    # Given a worker process whose store is down, and that has run a job
    server = start_server(RedisServer())
    script = tmp_path / "late_app.py"
    script.write_text(
        f"""
import dramatiq, pathlib
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Middleware
from dramatiq_status import StatusMiddleware, current_status
from dramatiq_status.backends import RedisBackend
here = pathlib.Path({str(tmp_path)!r})
class Stopping(Middleware):
    def after_worker_shutdown(self, broker, worker):
        (here / "stopping").touch()
broker = RedisBroker(url={redis_url!r})
broker.add_middleware(StatusMiddleware(backend=RedisBackend(url={server.url!r}, timeout=20_000)))
broker.add_middleware(Stopping())
dramatiq.set_broker(broker)
@dramatiq.actor
def work():
    current_status()["done"] = True
    (here / "done").touch()
"""
    )
    server.stop()
    broker = RedisBroker(url=redis_url)  # type: ignore[no-untyped-call]
    message: Any = dramatiq.Message("default", "work", (), {}, {})
    broker.enqueue(message)
    process = subprocess.Popen(
        [sys.executable, "-m", "dramatiq", "late_app", "--path", str(tmp_path), "-p", "1", "-t", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=UNMEASURED,
    )
    try:
        eventually((tmp_path / "done").exists)
        # When it gets the signal to stop, and the store comes back a moment later
        process.terminate()
        eventually((tmp_path / "stopping").exists)
        server.start()
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
    # Then the final state is stored
    backend = RedisBackend(url=server.url, timeout=20_000)
    snapshot = StatusRegistry.read(message.message_id, backend=backend)
    assert snapshot is not None and snapshot.completed and snapshot["done"]
    backend.close()
