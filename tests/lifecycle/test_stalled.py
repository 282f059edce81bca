"""Tests of workers without heartbeats: killed, frozen, or with a job that keeps the interpreter lock."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import dramatiq
import pytest

from dramatiq_status import StatusRegistry, current_status
from dramatiq_status.update import Kind

from ..recording import RecordingBackend, Updates, eventually, make_broker, run, working
from ..servers import RedisServer
from .crew import Crew, send_signal


@pytest.fixture(params=["redis", "rabbitmq"])
def crew(request: pytest.FixtureRequest, redis_server: RedisServer, redis_url: str) -> Crew:
    if request.param == "redis":
        return Crew(redis_server.database(1), redis_url)
    return Crew(request.getfixturevalue("rabbitmq_url"), redis_url)


def test_a_message_of_a_killed_worker_is_stalled(crew: Crew) -> None:
    # Given a message that runs in a worker
    crew.send()
    with crew.worker("first") as first:
        crew.heed("first", "began")
        eventually(lambda: crew.read().heartbeat_at)
        eventually(lambda: not crew.read().stalled)
        # When this worker is killed
        send_signal(first, signal.SIGKILL)
    # Then the message is soon shown as stalled, and its state is still working
    eventually(lambda: crew.read().stalled)
    snapshot = crew.read()
    assert snapshot.working and snapshot["owner"] == "first"
    # And when another worker takes it over, it is no longer stalled
    with crew.worker("second"):
        crew.heed("second", "began")
        eventually(lambda: not crew.read().stalled)
        snapshot = crew.read()
        assert (snapshot.working, snapshot.attempts) == (True, 2)
        assert (snapshot["owner"], snapshot["progress"]) == ("second", 1)
        crew.tell("second", "go on")
        crew.tell("second", "end")
        # And the message ends there
        snapshot = crew.wait()
    assert (snapshot.completed, snapshot.stalled, snapshot.attempts) == (True, False, 2)
    assert (snapshot["owner"], snapshot["late"], snapshot["progress"]) == ("second", "second", 51)


def test_watchers_show_that_a_worker_is_gone(redis_server: RedisServer, redis_url: str) -> None:
    # Given a message that is watched, alone and in a batch
    crew = Crew(redis_server.database(1), redis_url)
    crew.send()
    with crew.worker("first") as first:
        crew.heed("first", "began")
        alone = StatusRegistry.watch(crew.message_id, broker=crew.broker, timeout=20_000)
        batch = StatusRegistry.batch(crew.message_id, broker=crew.broker).watch(timeout=20_000)
        assert next(alone).working and next(batch).working
        # When its worker is killed
        send_signal(first, signal.SIGKILL)
    # Then both watchers show that the message stalls, although no update is sent any more
    assert next(snapshot for snapshot in alone if snapshot.stalled).working
    assert next(found for found in batch if found.stalled).working


def test_a_job_that_keeps_the_interpreter_lock_is_stalled_for_a_while(
    redis_server: RedisServer, redis_url: str, tmp_path: Path
) -> None:
    # Given a job in a call of C code that keeps the interpreter lock
    path = tmp_path / "pipe"
    os.mkfifo(path)
    crew = Crew(redis_server.database(1), redis_url)
    crew.send("hold", str(path))
    with crew.worker("first"):
        crew.heed("first", "began")
        with path.open("wb", buffering=0) as pipe:
            # When the call lasts longer than three heartbeats
            # Then the message is shown as stalled, as documented
            eventually(lambda: crew.read().stalled)
            # And when the call has ended
            pipe.write(b".")
        # Then the message is no longer stalled, and no write is lost
        eventually(lambda: not crew.read().stalled)
        assert crew.read().working
        crew.tell("first", "go on")
        crew.tell("first", "end")
        snapshot = crew.wait()
    assert (snapshot.completed, snapshot.attempts, snapshot["progress"]) == (True, 1, 51)


def test_a_busy_job_has_heartbeats() -> None:
    # Given a job that computes without a pause
    backend = RecordingBackend()
    broker = make_broker(backend, heartbeat_interval=20)

    @dramatiq.actor(broker=broker)
    def work() -> None:
        message_id, spins = current_status().message_id, 0
        # When it runs for a long time
        while len(backend.updates(message_id, Kind.HEARTBEAT)) < 3:
            spins = sum(range(1000))
        assert spins

    # Then its heartbeats are sent
    message = work.send()
    run(broker)
    snapshot = StatusRegistry.read(message, broker=broker)
    assert snapshot is not None and snapshot.completed


def test_the_heartbeats_of_many_jobs_take_one_round_trip() -> None:
    # Given jobs that run side by side, and one that is no longer running
    backend = RecordingBackend()
    broker = make_broker(backend, heartbeat_interval=20)
    go_on, begun = threading.Event(), threading.Barrier(6)

    @dramatiq.actor(broker=broker)
    def quick() -> None: ...

    @dramatiq.actor(broker=broker)
    def work() -> None:
        begun.wait(20)
        assert go_on.wait(20)

    quick.send()
    run(broker)
    messages = [work.send() for _ in range(5)]
    with working(broker, threads=5):
        begun.wait(20)
        before = len(backend.calls)
        # When heartbeats are sent
        backend.wait_for(lambda: any(_is_heartbeat(call) for call in backend.calls[before + 1 :]))
        go_on.set()
    # Then one call has the heartbeats of all running jobs, and no others
    call = next(call for call in backend.calls[before + 1 :] if _is_heartbeat(call))
    assert {message_id for message_id, _ in call} == {message.message_id for message in messages}
    assert all(update.kind is Kind.HEARTBEAT for _, update in call)


def _is_heartbeat(call: Updates) -> bool:
    return any(update.kind is Kind.HEARTBEAT for _, update in call)
