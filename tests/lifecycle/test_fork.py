"""Tests of processes that an actor forks: their writes to the message are stored, even if they are killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from dramatiq.middleware import TimeLimitExceeded

from dramatiq_status import BackendError, Snapshot, Status, StatusRegistry, current_progress, current_status
from dramatiq_status._process import note_interrupt, raise_thread_exception
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends import MemcachedBackend, RedisBackend, SQLiteBackend
from dramatiq_status.options import _token
from dramatiq_status.update import EnqueueId, Kind, Update

from ..recording import (
    PATIENCE,
    Gate,
    RecordingBackend,
    answered,
    eventually,
    join,
    make_broker,
    run,
    start_worker,
    working,
)
from ..servers import MemcachedServer, RedisServer, Server

HOUR = 3_600_000

fork = multiprocessing.get_context("fork")


@pytest.fixture
def backend(shared_backend: StatusBackend) -> StatusBackend:
    return shared_backend


def perform(backend: StatusBackend, job: Callable[[], Any], *, attempts: int = 1, **options: Any) -> Snapshot:
    """Run a job that forks, and read its status."""
    broker = make_broker(backend, **options)
    dramatiq.set_broker(broker)

    @dramatiq.actor(broker=broker, max_retries=attempts - 1)
    def work() -> None:
        job()

    message = work.send()
    run(broker)
    return answered(lambda: StatusRegistry.wait(message, backend=backend))  # type: ignore[no-any-return]


def count(n: int) -> int:
    current_progress().increment()
    return n


def make_pool() -> Pool:
    """Make a pool whose processes end at once when they are terminated, as they do where coverage is not measured.

    Coverage handles SIGTERM in Python.  A process that receives it just before it waits for a semaphore never runs the
    handler, and the pool waits for the process forever.
    """
    return fork.Pool(4, initializer=signal.signal, initargs=(signal.SIGTERM, signal.SIG_DFL))


@pytest.mark.parametrize("throttle", [0, HOUR])
def test_a_pool_counts_to_the_end(backend: StatusBackend, throttle: int) -> None:
    # Given a job that increments its progress, as do the four processes of its pool, which are killed at their end
    def job() -> None:
        current_progress().total = 110
        for n in range(10):
            count(n)
        with make_pool() as pool:
            pool.map(count, range(100), chunksize=25)

    # When it runs
    snapshot = perform(backend, job, status_throttle=throttle)
    # Then each increment counts once
    assert (snapshot.state, snapshot["progress"], snapshot.total) == ("completed", 110, 110)


def count_on(message_id: str) -> None:
    StatusRegistry.progress(message_id).increment()


def test_a_pool_counts_on_another_message(backend: StatusBackend) -> None:
    # Given a job whose pool increments the progress of another message
    def job() -> None:
        with make_pool() as pool:
            pool.map(count_on, ["parent"] * 100, chunksize=25)

    backend.update("parent", Update(Kind.ENQUEUE, EnqueueId(1, 1)))
    # When it runs
    perform(backend, job)
    # Then each increment counts
    assert StatusRegistry.get("parent", backend=backend)["progress"] == 100


def test_an_executor_counts_to_the_end(backend: StatusBackend) -> None:
    # Given a job whose executor's processes increment its progress
    def job() -> None:
        with ProcessPoolExecutor(2, mp_context=fork) as pool:
            list(pool.map(count, range(50)))

    # When it runs
    # Then each increment counts
    assert perform(backend, job)["progress"] == 50


def fork_off(child: Callable[[], Any]) -> None:
    """Fork a child that calls a function and exits at once, and wait for it."""
    pid = os.fork()
    if pid == 0:
        done = False
        try:
            child()
            done = True
        finally:
            os._exit(0 if done else 1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_child_writes_from_outside(backend: StatusBackend) -> None:
    # Given a job whose child makes each kind of write, by each handle
    def child() -> None:
        status = current_status()
        status["field"] = "child"
        status.update(one=1, status="failed")
        current_progress().increment(2)
        StatusRegistry.progress(status.message_id).increment(3)
        assert status.flush() and current_progress().progress >= 9
        assert StatusRegistry.read(status.message_id)["progress"] == 12  # type: ignore[index]

    def job() -> None:
        current_progress().increment(7)
        current_status().flush()
        fork_off(child)
        current_status()["parent"] = True
        current_progress().increment(1)

    # When it runs
    snapshot = perform(backend, job)
    # Then all writes are stored, and only the parent sets the final state
    assert dict(snapshot.fields) == {"field": "child", "one": 1, "parent": True}
    assert (snapshot.state, snapshot["progress"], snapshot.attempts) == ("completed", 13, 1)


def test_a_child_sets_a_state_by_handles_of_the_registry_only(backend: StatusBackend) -> None:
    backend.update_many([(other, Update(Kind.ENQUEUE, EnqueueId(1, 1))) for other in ("first", "second")])
    states = fork.Queue()

    # Given a job whose child sets the state of the running message, and of two others
    def child(first: Status) -> None:
        own, second = current_status(), StatusRegistry.get("second", backend=backend)
        for status in (own, first, second, StatusRegistry.get(own.message_id, backend=backend)):
            status.update(status="failed")
            states.put(str(StatusRegistry.get(status.message_id, backend=backend).state))
        states.close()
        states.join_thread()

    def job() -> None:
        first = StatusRegistry.get("first", backend=backend)
        # The child inherits the writer's buffer for this message.
        first["step"] = 1
        first.flush()
        fork_off(lambda: child(first))

    # When it runs
    perform(backend, job)
    # Then the handle of the run has no effect, and all others have
    assert [states.get(timeout=PATIENCE) for _ in range(4)] == ["working", "failed", "failed", "failed"]


def test_a_child_sends_a_message(backend: StatusBackend) -> None:
    sent = fork.Queue()

    # Given a job whose child sends a message
    def child() -> None:
        actor = dramatiq.get_broker().get_actor("work")
        message = actor.message()
        dramatiq.get_broker().enqueue(message)
        sent.put(message.message_id)
        sent.close()
        sent.join_thread()

    # When it runs
    perform(backend, lambda: fork_off(child))
    # Then the status of that message is stored
    assert StatusRegistry.get(sent.get(timeout=20), backend=backend).state == "queued"


@pytest.mark.parametrize("attempts", [1, 2])
def test_increments_of_a_child_are_not_erased_by_a_late_start(
    backend: StatusBackend, monkeypatch: pytest.MonkeyPatch, attempts: int
) -> None:
    # Given a store that is slow for the updates of the parent, and a job that forks at once
    update_many, attempt = backend.update_many, []

    def slow(updates: Any) -> Any:
        time.sleep(0.05)
        return update_many(updates)

    def child() -> None:
        monkeypatch.undo()
        for n in range(5):
            count(n)

    def job() -> None:
        attempt.append(1)
        current_progress().increment(7)
        if len(attempt) < attempts:
            raise ValueError("on purpose")
        fork_off(child)

    # When it runs, for the first time or again
    monkeypatch.setattr(backend, "update_many", slow)
    snapshot = perform(backend, job, attempts=attempts)
    # Then the progress has the increments of both processes
    assert (snapshot.state, snapshot.attempts, snapshot["progress"]) == ("completed", attempts, 12)


def a_redis(start_server: Any) -> tuple[Server, StatusBackend]:
    server = start_server(RedisServer())
    return server, RedisBackend(url=server.url, timeout=500)


def a_memcached(start_server: Any) -> tuple[Server, StatusBackend]:
    server = start_server(MemcachedServer())
    return server, MemcachedBackend(servers=server.address, timeout=500)


@pytest.mark.parametrize("store", [a_redis, a_memcached])
def test_writes_of_a_child_in_an_outage_are_stored_or_raise(start_server: Any, store: Any) -> None:
    # Given a job whose child writes while the store is down, and when it is back
    server, backend = store(start_server)
    answered(lambda: backend.update("other", Update(Kind.ENQUEUE, EnqueueId(1, 1))))
    told, back = fork.Event(), fork.Event()
    # What additions that raised an error may have added: on a busy machine, a reply may be late.
    unsure = fork.Value("i", 0)

    def write(call: Callable[..., Any], amount: int = 0) -> None:
        """Repeat a write, which may add an amount, until it raises no error."""

        def attempt() -> bool:
            unsure.value += amount
            call(*[amount] if amount else [])
            unsure.value -= amount
            return True

        answered(attempt)

    def child(other: Any) -> None:
        for call in (current_progress().increment, lambda: current_status().update(a=1), other.increment):
            with pytest.raises(BackendError):
                call()
        told.set()
        assert back.wait(PATIENCE)
        write(current_progress().increment, 2)
        write(lambda: current_status().update(b=2))
        write(other.increment, 3)

    def bring_back() -> None:
        assert told.wait(PATIENCE)
        server.resume()
        back.set()

    def job() -> None:
        other = StatusRegistry.progress("other", backend=backend)
        write(other.increment, 1)
        current_progress().increment(1)
        eventually(lambda: current_progress().flush() and other.flush())
        server.pause()
        bringing = threading.Thread(target=bring_back)
        bringing.start()
        fork_off(lambda: child(other))
        bringing.join()

    # When it runs
    snapshot = perform(backend, job)
    # Then each write that raised no error is stored
    assert (snapshot.state, snapshot["b"], snapshot.get("a")) == ("completed", 2, None)
    assert 3 <= snapshot["progress"] <= 3 + unsure.value
    assert 4 <= answered(lambda: StatusRegistry.get("other", backend=backend)["progress"]) <= 4 + unsure.value
    backend.close()


def test_threads_of_a_child_write_side_by_side(backend: StatusBackend) -> None:
    # Given a job whose child is killed as soon as each of its threads has counted
    def child() -> None:
        progress = current_progress()
        threads = [threading.Thread(target=lambda: [progress.increment() for _ in range(25)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    # When it runs
    # Then each increment counts
    assert perform(backend, lambda: fork_off(child))["progress"] == 100


def test_an_interrupt_before_a_fork_is_not_lost() -> None:
    # Given a job that forks while the store is slow, and is interrupted as it does
    backend = RecordingBackend(timeout=20_000)
    broker = make_broker(backend)
    gate = Gate(backend)
    threads: list[int] = []
    ended: list[str] = []

    @dramatiq.actor(broker=broker)
    def work() -> None:
        threads.append(threading.get_ident())
        current_progress().increment()
        try:
            fork_off(lambda: None)
            eventually(lambda: False)
        except TimeLimitExceeded:
            ended.append("interrupted")

    work.send()
    with working(broker) as worker:
        assert gate.reached.wait(PATIENCE)
        eventually(lambda: threads and "before_fork" in stack_of(threads[0]))
        raise_thread_exception(threads[0], TimeLimitExceeded)
        gate.open()
        join(broker, worker)
    # Then the interrupt ends the job
    assert ended == ["interrupted"]


def test_an_interrupt_while_a_fork_waits_for_a_file_is_not_lost(tmp_path: Path) -> None:
    # Given a job that forks while another thread uses a SQLite file, which is closed before a fork
    backend = SQLiteBackend(tmp_path / "statuses.db", timeout=20_000)
    broker = make_broker(RecordingBackend())
    begun, done = threading.Event(), threading.Event()
    threads: list[int] = []
    ended: list[str] = []

    def use(connection: object) -> None:
        begun.set()
        done.wait(PATIENCE)

    @dramatiq.actor(broker=broker)
    def work() -> None:
        threads.append(threading.get_ident())
        try:
            fork_off(lambda: None)
            eventually(lambda: False)
        except TimeLimitExceeded:
            ended.append("interrupted")

    user = threading.Thread(target=backend._connections.call, args=(use,))
    user.start()
    assert begun.wait(PATIENCE)
    work.send()
    with working(broker) as worker:
        eventually(lambda: threads and "begin_fork" in stack_of(threads[0]))
        # When an interrupt strikes while it waits
        raise_thread_exception(threads[0], TimeLimitExceeded)
        done.set()
        join(broker, worker)
    # Then the interrupt ends the job
    assert ended == ["interrupted"]
    user.join()
    backend.close()


def stack_of(thread: int) -> list[str]:
    """Return the names of the functions on the stack of a thread."""
    return [frame.name for frame in traceback.extract_stack(sys._current_frames()[thread])]


def test_an_interrupt_in_a_fork_does_not_strike_the_next_job(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a job that ends right after an interrupt has struck in a hook of its fork
    monkeypatch.setattr("dramatiq_status._process.RAISE_DELAY", 1.0)
    backend = RecordingBackend(timeout=20_000)
    broker = make_broker(backend)
    before = set(threading.enumerate())

    @dramatiq.actor(broker=broker)
    def forks() -> None:
        note_interrupt(TimeLimitExceeded())
        fork_off(lambda: None)

    @dramatiq.actor(broker=broker)
    def next_one() -> None:
        # When the next job runs at the time at which the interrupt would be raised again
        eventually(lambda: not any(isinstance(t, threading.Timer) for t in {*threading.enumerate()} - before))
        current_status()["struck"] = False

    messages = [forks.send(), next_one.send()]
    worker = start_worker(broker, threads=1)
    join(broker, worker)
    worker.stop()
    # Then it runs to its end
    assert [str(StatusRegistry.read(message, backend=backend)) for message in messages] == ["completed", "completed"]


def test_children_draw_tokens_of_their_own() -> None:
    # Given processes of one parent
    drawn = fork.Queue()
    for _ in range(2):
        fork_off(lambda: (drawn.put(_token.getrandbits(31)), drawn.close(), drawn.join_thread()))
    # When each has drawn a token, like the parent
    tokens = {drawn.get(timeout=20), drawn.get(timeout=20), _token.getrandbits(31)}
    # Then all tokens differ, because a run with the same token would own another one's status
    assert len(tokens) == 3
