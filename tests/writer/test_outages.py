"""A store that is down: jobs go on, and nothing is lost."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from typing import Any, NamedTuple

import dramatiq
import pytest
from dramatiq.middleware import Middleware, MiddlewareError

from dramatiq_status import BackendError, StatusMiddleware, StatusRegistry, current_progress, current_status
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends import MemcachedBackend, RedisBackend
from dramatiq_status.circuit_breaker import FIRST_PAUSE, LONGEST_PAUSE, CircuitBreaker
from dramatiq_status.record import COMPLETED
from dramatiq_status.update import EnqueueId, Kind, Outcome, Update
from dramatiq_status.writer import Backlog, Confirmation, Finish, Start, Writer

from ..recording import (
    PATIENCE,
    Broken,
    Gate,
    RecordingBackend,
    eventually,
    join,
    make_broker,
    make_stub_broker,
    run,
    working,
)
from ..servers import MemcachedServer, RedisServer, Server

#: How long a call may take where the store is stopped or paused in a test, in milliseconds.
TIMEOUT = 500


def a_redis(start_server: Any) -> tuple[Server, StatusBackend]:
    server = start_server(RedisServer())
    return server, RedisBackend(url=server.url, timeout=TIMEOUT)


def a_memcached(start_server: Any) -> tuple[Server, StatusBackend]:
    server = start_server(MemcachedServer())
    return server, MemcachedBackend(servers=server.address, timeout=TIMEOUT)


@contextmanager
def blackhole(port: int) -> Iterator[None]:
    """A port where connections are not refused, and never made: as behind a firewall that drops them."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(0)
        # What the kernel does not take any more it leaves unanswered.
        for _ in range(100):
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0.2)
            try:
                filler.connect(("127.0.0.1", port))
            except TimeoutError:
                break
        else:
            pytest.skip("This kernel takes any number of connections.")
        yield


@pytest.mark.parametrize("fault", ["stop", "pause"])
@pytest.mark.parametrize("store", [a_redis, a_memcached])
def test_jobs_go_on_without_a_store(
    start_server: Any, caplog: pytest.LogCaptureFixture, store: Any, fault: str
) -> None:
    caplog.set_level(logging.INFO, logger="dramatiq_status")
    server, backend = store(start_server)
    broker = make_broker(backend)
    done: list[int] = []

    @dramatiq.actor(broker=broker)
    def work(n: int) -> None:
        current_progress().increment(n)
        current_status()["n"] = n
        current_status().flush()
        done.append(n)

    with working(broker) as worker:
        # Given a job that has finished while the store was there
        first = work.send(1)
        StatusRegistry.wait(first, backend=backend)
        # When it goes away, by refusing or by silence
        getattr(server, fault)()
        messages = [work.send(n) for n in range(2, 52)]
        broker.join(work.queue_name, timeout=60_000)
        worker.join()
        # Then all jobs were done
        assert sorted(done) == list(range(1, 52))
        # And who reads is told
        with pytest.raises(BackendError):
            StatusRegistry.read(first, backend=backend)
        # When it is back
        if fault == "stop":
            server.start()
        else:
            server.resume()
        # Then every job's status is there, whole
        found = eventually(lambda: all_finished(messages, backend))
    assert [(s["n"], s["progress"], s.attempts) for s in found] == [(n, n, 1) for n in range(2, 52)]
    lines = [record.getMessage() for record in caplog.records if "status store" in record.getMessage()]
    assert ["does not answer" in line for line in lines] == [True, False]
    backend.close()


@pytest.mark.parametrize("store", [a_redis, a_memcached])
def test_a_store_that_cannot_even_be_connected_to(start_server: Any, store: Any) -> None:
    # Given a store whose host leaves connections unanswered
    server, backend = store(start_server)
    server.stop()
    broker = make_broker(backend)
    done: list[int] = []

    @dramatiq.actor(broker=broker)
    def work(n: int) -> None:
        current_progress().increment(n)
        current_status().flush()
        done.append(n)

    with working(broker) as worker:
        with blackhole(server.port):
            # When jobs are sent and run
            messages = [work.send(n) for n in range(30)]
            join(broker, worker)
            # Then all were done, and who reads is told
            assert sorted(done) == list(range(30))
            with pytest.raises(BackendError):
                StatusRegistry.read(messages[0], backend=backend)
        # And when the host is back, every job's status is there
        server.start()
        found = eventually(lambda: all_finished(messages, backend))
    assert [snapshot["progress"] for snapshot in found] == list(range(30))
    backend.close()


def all_finished(messages: list[Any], backend: Any) -> list[Any] | None:
    try:
        found = StatusRegistry.read_many(messages, backend=backend)
    except BackendError:
        return None
    return found if all(snapshot is not None and snapshot.completed for snapshot in found) else None


def test_what_was_stored_unheard_is_not_counted_twice() -> None:
    # Given a store that carries updates out and then breaks
    backend = RecordingBackend()
    broker = make_broker(backend)

    @dramatiq.actor(broker=broker)
    def work() -> None:
        broken = Broken(backend, after=True)
        current_progress().increment(5)
        current_status()["step"] = 1
        eventually(lambda: broken.failures >= 2)
        broken.down = False

    # When it is back
    message = work.send()
    run(broker)
    snapshot = StatusRegistry.read(message, backend=backend)
    # Then what was sent again counts once
    assert snapshot is not None and snapshot.completed and snapshot["progress"] == 5


def test_a_lost_record_is_restored_whole() -> None:
    # Given a job whose record the store loses in the middle
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

    # When it goes on
    message = work.send_with_options(status={"user_id": 42})
    run(broker)
    # Then all is there again
    found = StatusRegistry.get(message, backend=backend).to_dict()
    assert {name: found[name] for name in ("status", "user_id", "step", "other", "progress", "total", "attempts")} == {
        "status": "completed", "user_id": 42, "step": "one", "other": 2, "progress": 7, "total": 50, "attempts": 1,
    }  # fmt: skip
    assert found["actor_name"] == "work" and found["enqueued_at"] <= found["started_at"]


def test_one_that_cannot_be_stored_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    # Given a store that takes no offence at all but one message
    backend = RecordingBackend()
    broker = make_broker(backend)

    @dramatiq.actor(broker=broker)
    def work() -> None:
        current_status()["step"] = 1

    messages = [work.send() for _ in range(10)]
    bad = messages[3].message_id

    def refuse(updates: Any) -> None:
        if any(message_id == bad and update.kind is Kind.RUN for message_id, update in updates):
            raise ValueError("too large")

    backend.before = refuse
    # When all run
    run(broker, threads=4)
    # Then all others are completed
    states = [StatusRegistry.get(message, backend=backend).state for message in messages]
    assert states == ["completed"] * 3 + ["queued"] + ["completed"] * 6
    assert "too large" in caplog.text


def test_what_is_kept_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    # Given a store that is down, and a writer that keeps the updates of five messages
    backend = RecordingBackend()
    broker = make_broker(backend, max_pending=5)

    # In the order in which they run: Dramatiq 1 shuffles what it has fetched
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
        # When it is back
        broken.down = False
        eventually(lambda: "answers again" in caplog.text)
    # Then the last are there
    states = [StatusRegistry.get(message_id, backend=backend).state for message_id in ids]
    assert 1 <= states.count("completed") <= 10 and states[-1] == "completed"
    # And it is said how many are not
    assert "updates were dropped" in caplog.text and " 0 updates were dropped" not in caplog.text


def long_texts() -> int:
    """Count the bytes of all long texts that the dicts of this process hold."""
    gc.collect()
    texts = {
        id(text): len(text)
        for found in gc.get_objects()
        if isinstance(found, dict)
        for text in list(found.values())
        if isinstance(text, str) and text.startswith('"xxxx')
    }
    return sum(texts.values())


@pytest.mark.parametrize("store", [a_redis, a_memcached])
def test_an_outage_keeps_a_bounded_number_of_bytes(
    start_server: Any, caplog: pytest.LogCaptureFixture, store: Any
) -> None:
    # Given a store that is down, and a writer that keeps one million bytes
    server, backend = store(start_server)
    middleware = StatusMiddleware(backend=backend, max_pending_bytes=1_000_000)
    broker = make_stub_broker(middleware)
    # In the order in which they run: Dramatiq 1 shuffles what it has fetched
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
        # Then no more is in memory, but for what the writer's thread has yet to measure
        assert long_texts() <= 1_000_000 and most <= 1_000_000 + 20 * 240_000
        # And when the store is back, it has the statuses of the last jobs
        server.start()
        eventually(lambda: middleware.health().up and not middleware.health().pending_messages)
    states = [snapshot.state for snapshot in StatusRegistry.read_many(ids, backend=backend) if snapshot]
    assert states == ["completed"] * 4
    assert [bool(StatusRegistry.read(message_id, backend=backend)) for message_id in ids[-4:]] == [True] * 4
    # And the log and the counters have what was dropped
    assert sum("more than 1000000 bytes" in record.getMessage() for record in caplog.records) == 1
    assert middleware.health().dropped >= 56
    backend.close()


def test_a_backlog_measures_what_has_changed() -> None:
    # Given two runs and an end that wait in an outage
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
    # Then nothing is too much
    assert backlog.pop_excess() is None
    # When the first writes more
    runs[0].write({":other": "x" * 3000})
    backlog.note(runs[0])
    backlog.measure()
    # Then the one that has ended is the one to drop, and the rest is within the limits
    assert (backlog.pop_excess(), backlog.pop_excess(), len(backlog)) == (runs[1], None, 2)
    # When the other writes more, too
    runs[2].write({":other": "x" * 3000})
    backlog.note(runs[2])
    backlog.measure()
    # Then the one that has waited longest is dropped
    assert (backlog.pop_excess(), backlog.pop_excess()) == (runs[0], None)
    # When what waits is stored
    runs[2].take(0.0)
    runs[2].settle([Outcome.APPLIED])
    backlog.note(runs[2])
    backlog.measure()
    # Then nothing is left
    assert len(backlog) == 0 and backlog.has_room


def test_many_messages_share_a_round_trip() -> None:
    # Given a writer that is held up by its first call
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
        # When it may go on
        gate.open()
        broker.join(work.queue_name, timeout=20_000)
        worker.join()
    # Then few calls have carried it all
    calls = [call for call in backend.calls if any(update.kind is Kind.RUN for _, update in call)]
    assert len(calls) <= 8
    assert all(StatusRegistry.get(message, backend=backend)["progress"] == 100 for message in messages)


def test_heartbeats() -> None:
    # Given a worker that often says what runs
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
    # Then it was said, and the record came back by it
    assert seen[0].heartbeat_at is not None and seen[0].working and not seen[0].stalled
    snapshot = StatusRegistry.read(message, backend=backend)
    assert snapshot is not None and snapshot.completed and snapshot.heartbeat_at is None


def test_a_script_that_exits_at_once(redis_url: str) -> None:
    # Given a script that sends a message and is done
    script = f"""
import threading, dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq_status import StatusMiddleware
from dramatiq_status.backends import RedisBackend
broker = RedisBroker(url={redis_url!r})
broker.add_middleware(StatusMiddleware(backend=RedisBackend(url={redis_url!r})))
dramatiq.set_broker(broker)
@dramatiq.actor
def work(): ...
print(work.send().message_id)
assert threading.active_count() == 1, threading.enumerate()
"""
    # When it has run
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    # Then the status is stored, and there was no thread
    assert StatusRegistry.get(found.stdout.strip(), backend=RedisBackend(url=redis_url)).queued


def test_a_worker_that_exits_in_the_middle(redis_url: str) -> None:
    # Given a process that works, and ends while a job still runs that has written something that is held back
    script = f"""
import sys, threading, dramatiq
from dramatiq.brokers.stub import StubBroker
from dramatiq_status import StatusMiddleware, current_progress, current_status
from dramatiq_status.backends import RedisBackend
broker = StubBroker()
broker.add_middleware(StatusMiddleware(backend=RedisBackend(url={redis_url!r}), status_throttle=3_600_000))
dramatiq.set_broker(broker)
written = threading.Event()
@dramatiq.actor
def work():
    current_progress().increment(1)
    current_status().flush()
    current_progress().increment(6)
    current_status().update(step="last")
    written.set()
    threading.Event().wait()
print(work.send().message_id)
dramatiq.Worker(broker, worker_timeout=10, worker_threads=1).start()
assert written.wait(30)
"""
    # When it has ended
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    # Then that is stored
    snapshot = StatusRegistry.read(found.stdout.strip(), backend=RedisBackend(url=redis_url))
    assert snapshot is not None and snapshot.working and (snapshot["progress"], snapshot["step"]) == (7, "last")


def lose_at_next_enqueue(backend: RecordingBackend) -> None:
    """Delete the records of the next update that enqueues a message, before it is carried out."""

    def lose(updates: Any) -> None:
        if any(update.kind is Kind.ENQUEUE for _, update in updates):
            backend.before = lambda updates: None
            for message_id, _ in updates:
                assert backend.delete(message_id)

    backend.before = lose


def test_a_record_that_is_lost_before_its_retry() -> None:
    # Given a job that has written something, fails, and is retried; the store loses its record just then
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
    # Then everything is there again, and it is known that it has run before
    snapshot = StatusRegistry.read(message, backend=backend)
    assert snapshot is not None and snapshot.completed and snapshot.attempts == 2
    assert dict(snapshot.fields) == {"user_id": 42, "step": "one"} and snapshot.total == 50
    queued = [update.fields for update in backend.updates(message.message_id, Kind.ENQUEUE)]
    assert queued[1]["A"] == "1" and snapshot.enqueued_at is not None and snapshot.actor_name == "work"


class RetryRefused(MiddlewareError):
    """Raised by a broker that takes no retries."""


class RefuseRetries(Middleware):
    """Lets no retry into its queue."""

    def before_enqueue(self, broker: dramatiq.Broker, message: Any, delay: int | None) -> None:
        if message.options.get("retries"):
            raise RetryRefused


def test_a_record_that_is_lost_before_a_retry_that_the_broker_refuses() -> None:
    # Given a job that counts and fails, a store that loses its record just then, and a broker that takes no retry
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
    # Then it has failed with the progress of its only run
    snapshot = StatusRegistry.read(message, backend=backend)
    assert snapshot is not None and snapshot.failed and snapshot.attempts == 1
    assert snapshot["progress"] == 5


def test_after_a_fork(redis_url: str) -> None:
    # Given a process that has used the store, as sender and as worker
    backend = RedisBackend(url=redis_url)
    broker = make_broker(backend)

    @dramatiq.actor(broker=broker)
    def work(who: str) -> None:
        current_status()["who"] = who

    def go(who: str) -> Any:
        message = work.send(who)
        run(broker)
        return StatusRegistry.get(message, backend=backend)

    assert go("before")["who"] == "before"
    # When it forks
    pid = os.fork()
    if pid == 0:
        done = False
        try:
            done = all(go("child")["who"] == "child" for _ in range(20))
        finally:
            os._exit(0 if done else 1)
    parent = all(go("parent")["who"] == "parent" for _ in range(20))
    _, status = os.waitpid(pid, 0)
    # Then both go on by themselves
    assert parent and os.waitstatus_to_exitcode(status) == 0


#: Seconds for which a store is away in the middle of a run, by the environment variable OUTAGE_SECONDS.
OUTAGE = float(os.environ.get("OUTAGE_SECONDS", "2"))

#: Seconds between two jobs that are sent.
PACE = 0.004


def a_lasting_redis(start_server: Any) -> tuple[Server, StatusBackend]:
    server = start_server(RedisServer("--appendonly", "yes", "--appendfsync", "always"))
    return server, RedisBackend(url=server.url, timeout=TIMEOUT)


@pytest.mark.timeout(120 + 2 * OUTAGE)
@pytest.mark.parametrize(("store", "lasting"), [(a_lasting_redis, True), (a_memcached, False)])
def test_an_outage_in_the_middle(
    start_server: Any, caplog: pytest.LogCaptureFixture, store: Any, lasting: bool
) -> None:
    caplog.set_level(logging.INFO, logger="dramatiq_status")
    server, backend = store(start_server)
    broker = make_broker(backend)
    gone, running = threading.Event(), threading.Semaphore(0)
    tried: set[int] = set()

    @dramatiq.actor(broker=broker)
    def work(n: int, outcome: str, begin_before: bool) -> None:
        status, progress = current_status(), current_progress()
        status.update(n=n, outcome=outcome)
        if begin_before:
            status.flush()
            running.release()
            assert gone.wait(PATIENCE)
        for _ in range(n % 5 + 1):
            progress.increment()
        if outcome == "fail" or (outcome == "retry" and n not in tried):
            tried.add(n)
            raise ValueError("on purpose")
        status["last"] = -n

    numbers = itertools.count()

    def send(*, begin_before: bool = False) -> Job:
        n = next(numbers)
        outcome = ("complete", "fail", "retry")[n % 3]
        options = {"max_retries": 1} if outcome == "retry" else {}
        message = work.send_with_options(args=(n, outcome, begin_before), status={"user": n * 2}, **options)
        return Job(message.message_id, n, outcome)

    with working(broker, threads=8) as worker:
        # Given jobs that have finished, some that run, and some that wait
        finished = [send() for _ in range(50)]
        for job in finished:
            StatusRegistry.wait(job.message_id, backend=backend)
        jobs = [send(begin_before=True) for _ in range(8)]
        for _ in jobs:
            assert running.acquire(timeout=PATIENCE)
        jobs += [send() for _ in range(50)]
        # When the store goes away, jobs go on, and come all the time
        server.stop()
        gone.set()
        back_at = time.monotonic() + OUTAGE
        while time.monotonic() < back_at:
            jobs.append(send())
            time.sleep(PACE)
        # And it is back, and some come yet
        server.start()
        jobs += [send() for _ in range(50)]
        join(broker, worker)
        # Then every job's status is right
        for job in jobs:
            StatusRegistry.wait(job.message_id, backend=backend, missing_timeout=int(PATIENCE * 1000))
    found = StatusRegistry.read_many([job.message_id for job in jobs], backend=backend)
    assert [job.seen(snapshot) for job, snapshot in zip(jobs, found)] == [job.expected() for job in jobs]
    # And those of before are as the store has kept them
    before = StatusRegistry.read_many([job.message_id for job in finished], backend=backend)
    if lasting:
        assert [job.seen(snapshot) for job, snapshot in zip(finished, before)] == [job.expected() for job in finished]
    else:
        assert before == [None] * len(finished)
    # And two lines have said it all
    lines = [record.getMessage() for record in caplog.records if "status store" in record.getMessage()]
    assert ["does not answer" in line for line in lines] == [True, False], lines
    backend.close()


class Job(NamedTuple):
    """A job of the test above, and what its record holds in the end."""

    message_id: str
    n: int
    outcome: str

    def expected(self) -> dict[str, Any]:
        fields = {"n": self.n, "outcome": self.outcome, "progress": self.n % 5 + 1, "exception": None, "attempts": 1}
        if self.outcome == "fail":
            fields["exception"] = {"type": "ValueError", "message": "on purpose"}
        if self.outcome == "retry":
            fields["attempts"] = 2
        return {
            **fields,
            "status": "failed" if self.outcome == "fail" else "completed",
            "user": self.n * 2,
            "last": None if self.outcome == "fail" else -self.n,
            "actor_name": "work",
        }

    def seen(self, snapshot: Any) -> dict[str, Any] | None:
        return None if snapshot is None else {name: snapshot.get(name) for name in self.expected()}


def test_calls_of_an_outage_are_few() -> None:
    # Given a store that is down
    backend = RecordingBackend()
    broker = make_broker(backend)
    broken = Broken(backend)

    @dramatiq.actor(broker=broker)
    def work() -> None:
        current_progress().increment()
        current_status()["step"] = 1
        current_status().flush()

    # When very many messages are sent and processed
    begin = time.monotonic()
    for _ in range(500):
        work.send()
    with working(broker, threads=8) as worker:
        join(broker, worker)
        failures, lasted = broken.failures, time.monotonic() - begin
        broken.down = False
    # Then it was asked only where a pause of the circuit breaker had ended
    allowed, at, pause = 1, 0.0, FIRST_PAUSE
    while at + pause <= lasted:
        allowed, at, pause = allowed + 1, at + pause, min(pause * 2, LONGEST_PAUSE)
    assert 1 <= failures <= allowed


def test_nobody_waits_for_a_second_time_out() -> None:
    # Given a store that says nothing until the first time-out is over, and is then known to be down
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
        # When that is so
        over.set()
        # Then all jobs are done, although the next time-out is longer than the test's patience
        join(broker, worker)
        down.clear()
        for message in messages:
            assert StatusRegistry.wait(message, backend=backend).completed


def test_a_thread_that_waits_sends_for_itself() -> None:
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

    # When jobs end, one at a time
    for _ in range(5):
        work.send()
    run(broker, threads=1)
    # Then each one's thread has sent its final state itself, once
    assert senders == {message_id: [thread] for message_id, thread in threads.items()} and len(senders) == 5


def test_who_waits_while_another_sends_is_served_next() -> None:
    # Given a thread that sends a final state and is held up, and others that wait with theirs
    backend = RecordingBackend(timeout=60_000)
    # (no heartbeat comes to their help)
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
            # From here on the writer has nothing to do.
            current_status().flush()
        else:
            begun.release()
            assert reached.wait(PATIENCE)

    messages = [work.send(5), *(work.send(0) for _ in range(5))]
    with working(broker, threads=6) as worker:
        eventually(lambda: len(middleware._writer._leadership.waiting) == 5)
        # When it goes on
        go_on.set()
        # Then all are served long before their time is out
        join(broker, worker)
    assert [StatusRegistry.get(message, backend=backend).state for message in messages] == ["completed"] * 6


class Threadless(Writer):
    """Sends only what others send for it."""

    def _ensure_thread(self) -> None:
        pass


def test_a_worker_s_thread_sends_only_what_may_be_sent_twice() -> None:
    # Given a writer whose thread does nothing, and an increment of another message that waits
    backend = RecordingBackend()
    writer = Threadless(backend, CircuitBreaker("a store"))
    backend.update("parent", Update(Kind.ENQUEUE, EnqueueId(1, 1)))
    parent = writer.outside("parent")
    parent.increment(3)
    # When a worker's thread, which may be interrupted in the middle, stores its final state itself
    buffer = writer.begin_run("child", run_token=7, enqueue_id=EnqueueId(2, 1), throttle=0, base=dict)
    confirmation = Confirmation()
    buffer.add(Start({}, 1))
    buffer.finish(Finish(COMPLETED, {}, 1000), confirmation)
    assert writer.confirm(buffer, confirmation)
    # Then it has left that to the thread
    assert {message_id for call in backend.calls[1:] for message_id, _ in call} == {"child"}
    assert list(writer._queue.ready) == [parent]


def test_running_messages_are_heard_of_as_soon_as_an_outage_has_ended() -> None:
    # Given a job that says once an hour that it runs
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
        # When the store does not take what it writes
        broken = Broken(backend)
        go_on.set()
        eventually(lambda: broken.failures)
        # And is back
        broken.down = False
        # Then it is said at once
        backend.wait_for(lambda: backend.updates(message.message_id, Kind.HEARTBEAT))
        end.set()


@contextmanager
def a_quiet_job() -> Iterator[tuple[RecordingBackend, StatusMiddleware, str]]:
    """A job that runs until the block ends, writes nothing, and says once an hour that it runs."""
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


def test_heartbeats_that_fail_are_sent_when_the_store_is_back() -> None:
    with a_quiet_job() as (backend, middleware, message_id):
        # When the hour is over, and the store does not answer
        broken = Broken(backend)
        middleware._writer._heartbeats.due_at = 0.0
        middleware._writer._wakeup.call()
        eventually(lambda: broken.failures >= 2)
        # And is back
        broken.down = False
        # Then it is said although nothing else is written
        backend.wait_for(lambda: backend.updates(message_id, Kind.HEARTBEAT))


def test_heartbeats_that_an_outage_holds_back_are_sent_when_it_may_be_over() -> None:
    with a_quiet_job() as (backend, middleware, message_id):
        # When the hour is over while nobody may try the store, because another thread's call has failed
        middleware._breaker.failed(BackendError("for this test"))
        middleware._writer._heartbeats.due_at = 0.0
        middleware._writer._wakeup.call()
        # Then it is said as soon as somebody may
        backend.wait_for(lambda: backend.updates(message_id, Kind.HEARTBEAT))


def test_nothing_is_said_for_a_thread_that_has_died() -> None:
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
    # When it is said what runs
    backend.wait_for(lambda: backend.updates("alive", Kind.HEARTBEAT))
    # Then it is not among that
    assert backend.updates("dead", Kind.HEARTBEAT) == []
    for buffer in list(writer.running):
        buffer.close()
    assert writer.drain(PATIENCE)


def test_an_increment_beside_what_is_too_large_counts_once(
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
        # When it writes more than fits, and counts on its parent, in one batch
        with middleware._writer._leadership.lock:
            status["one"], status["two"], status["three"] = large, large, large
            StatusRegistry.progress(parent_id, broker=broker).increment(3)
        status.flush()
        StatusRegistry.get(parent_id, broker=broker).flush()

    above = parent.send()
    run(broker)
    message = work.send(above.message_id)
    run(broker)
    # Then that has counted once, and it was said that something is missing
    assert StatusRegistry.get(above, backend=backend)["progress"] == 3
    assert StatusRegistry.get(message, backend=backend).completed and message.message_id in caplog.text
    backend.close()


def test_many_calls_that_fail_at_once_are_one_try() -> None:
    # Given a store that is down
    outage = CircuitBreaker("a store")
    outage.failed(BackendError("one"))
    again_at = outage.retry_at
    # When the calls fail that were made at the same time
    for _ in range(8):
        outage.failed(BackendError("another"))
    # Then it is tried again no later
    assert outage.retry_at == again_at


def test_a_read_in_a_job_never_says_that_a_field_is_missing(start_server: Any) -> None:
    # Given a job that writes a field, and looks for it again and again while the store is away
    server, backend = a_redis(start_server)
    broker = make_broker(backend)
    seen: list[Any] = []

    def look() -> Any:
        try:
            return current_status().get("step"), current_status()["step"], current_status().read() is not None
        except BackendError:
            return "error"

    @dramatiq.actor(broker=broker)
    def work() -> None:
        status = current_status()
        status["step"] = "1"
        seen.append(look())
        server.pause()
        status["step"] = "2"
        seen.append(look())
        seen.append(look())
        server.resume()
        while seen[-1] == "error":
            seen.append(look())

    # When it runs
    message = work.send()
    run(broker)
    # Then it finds the field as it was last written, or gets the error that the store does not answer
    assert seen[0] == ("1", "1", True) and seen[1:3] == ["error"] * 2
    assert set(seen[1:]) == {"error", ("2", "2", True)}
    assert StatusRegistry.read(message, backend=backend).completed


def test_health_tells_of_an_outage() -> None:
    # Given a store that is down while jobs run, and a writer that keeps few of their updates
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
        # When an operator looks
        down = eventually(lambda: (health := middleware.health()).dropped and health)
        # Then it is said since when, and what waits and was dropped
        assert not down.up and before <= down.down_since <= datetime.now(timezone.utc)
        assert down.pending_updates >= down.pending_messages >= 1
        assert down.failures >= 1 and down.outages == 1
        # And when it is back, nothing waits, and the counters stay
        broken.down = False
        up = eventually(lambda: (health := middleware.health()).up and not health.pending_updates and health)
    assert (up.down_since, up.pending_messages, up.outages) == (None, 0, 1)
    assert up.dropped >= down.dropped and up.failures >= down.failures


def test_an_update_that_is_refused_counts_as_dropped() -> None:
    backend = RecordingBackend()
    middleware = StatusMiddleware(backend=backend)
    broker = make_stub_broker(middleware)

    @dramatiq.actor(broker=broker)
    def work() -> None:
        pass

    def refuse(updates: Any) -> None:
        if any(update.kind is Kind.RUN for _, update in updates):
            raise ValueError("too large")

    work.send()
    backend.before = refuse
    run(broker)
    health = middleware.health()
    assert health.up and health.dropped >= 1 and health.outages == 0


def test_a_message_logs_each_trouble_once(caplog: pytest.LogCaptureFixture) -> None:
    # Given a run whose updates cannot be stored, and that somebody writes to after its end
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
    assert caplog.text.count("cannot be stored") == 2, "one line that says it twice"
    assert caplog.text.count("is finished") == 1


def test_many_wrong_fields_of_a_message_are_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    # Given a message of a program that checks nothing
    backend = RecordingBackend()
    broker = make_broker(backend)

    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    message = work.message().copy(options={"status": {f"n{n}": float("nan") for n in range(900)} | {"status": 7}})
    broker.queues[work.queue_name].put(message.encode())
    # When it runs
    run(broker)
    # Then a line counts them, each time that the worker reads them
    assert 1 <= caplog.text.count("901 of 901 fields are ignored") <= 2
