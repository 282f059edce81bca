"""Tests of stores that are down for a while."""

from __future__ import annotations

import itertools
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import dramatiq
import pytest

from dramatiq_status import BackendError, StatusRegistry, current_progress, current_status
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends import RedisBackend

from ..recording import (
    PATIENCE,
    all_completed,
    answered,
    eventually,
    join,
    make_broker,
    run,
    working,
)
from ..servers import RedisServer, Server
from .support import TIMEOUT, a_memcached, a_redis


@contextmanager
def blackhole(port: int) -> Iterator[None]:
    """Let a port neither refuse nor make connections, as behind a firewall that drops packets."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(0)
        # Once the backlog is full, the kernel does not answer.
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
def test_jobs_run_while_the_store_is_down(
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
        # Given a job that has finished before the outage
        first = work.send(1)
        StatusRegistry.wait(first, backend=backend)
        # When the store refuses connections, or does not answer
        getattr(server, fault)()
        messages = [work.send(n) for n in range(2, 52)]
        broker.join(work.queue_name, timeout=60_000)
        worker.join()
        # Then all jobs have run
        assert sorted(done) == list(range(1, 52))
        # And a reader gets an error
        with pytest.raises(BackendError):
            StatusRegistry.read(first, backend=backend)
        # When the store is back
        if fault == "stop":
            server.start()
        else:
            server.resume()
        # Then it has every job's status, complete
        found = eventually(lambda: all_completed(messages, backend))
    assert [(s["n"], s["progress"], s.attempts) for s in found] == [(n, n, 1) for n in range(2, 52)]
    lines = [record.getMessage() for record in caplog.records if "status store" in record.getMessage()]
    assert ["does not answer" in line for line in lines] == [True, False]
    backend.close()


@pytest.mark.parametrize("store", [a_redis, a_memcached])
def test_jobs_run_while_connections_to_the_store_hang(start_server: Any, store: Any) -> None:
    # Given a store whose host does not answer connections
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
            # Then all jobs have run, and a reader gets an error
            assert sorted(done) == list(range(30))
            with pytest.raises(BackendError):
                StatusRegistry.read(messages[0], backend=backend)
        # And when the host is back, the store has every job's status
        server.start()
        found = eventually(lambda: all_completed(messages, backend))
    assert [snapshot["progress"] for snapshot in found] == list(range(30))
    backend.close()


#: Seconds of an outage; the environment variable OUTAGE_SECONDS sets another number.
OUTAGE = float(os.environ.get("OUTAGE_SECONDS", "2"))


#: Seconds between two jobs.
PACE = 0.004


def a_lasting_redis(start_server: Any) -> tuple[Server, StatusBackend]:
    server = start_server(RedisServer("--appendonly", "yes", "--appendfsync", "always"))
    return server, RedisBackend(url=server.url, timeout=TIMEOUT)


@pytest.mark.timeout(120 + 2 * OUTAGE)
@pytest.mark.parametrize(("store", "lasting"), [(a_lasting_redis, True), (a_memcached, False)])
def test_every_status_is_right_after_an_outage(
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
        # Given jobs that have finished, jobs that run, and jobs that wait
        finished = [send() for _ in range(50)]
        for job in finished:
            StatusRegistry.wait(job.message_id, backend=backend)
        jobs = [send(begin_before=True) for _ in range(8)]
        for _ in jobs:
            assert running.acquire(timeout=PATIENCE)
        jobs += [send() for _ in range(50)]
        # When the store is down, jobs run on, and further jobs are sent
        server.stop()
        gone.set()
        back_at = time.monotonic() + OUTAGE
        while time.monotonic() < back_at:
            jobs.append(send())
            time.sleep(PACE)
        # And the store is back, and further jobs are sent
        server.start()
        jobs += [send() for _ in range(50)]
        join(broker, worker)
        # Then every job's status is right
        for job in jobs:
            StatusRegistry.wait(job.message_id, backend=backend, missing_timeout=int(PATIENCE * 1000))
    found = StatusRegistry.read_many([job.message_id for job in jobs], backend=backend)
    assert [job.seen(snapshot) for job, snapshot in zip(jobs, found)] == [job.expected() for job in jobs]
    # And earlier statuses are there if the store is persistent
    before = StatusRegistry.read_many([job.message_id for job in finished], backend=backend)
    if lasting:
        assert [job.seen(snapshot) for job, snapshot in zip(finished, before)] == [job.expected() for job in finished]
    else:
        assert before == [None] * len(finished)
    # And the log has two lines about the outage
    lines = [record.getMessage() for record in caplog.records if "status store" in record.getMessage()]
    assert ["does not answer" in line for line in lines] == [True, False], lines
    backend.close()


class Job(NamedTuple):
    """A job of the test above, with the fields that its record must have."""

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


def test_a_read_in_a_job_raises_an_error_while_the_store_is_down(start_server: Any) -> None:
    # Given a job that writes a field, and reads it repeatedly while the store is down
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
        eventually(lambda: (found := look()) != "error" and seen.append(found) is None)
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
    # Then each read returns the last value, or raises an error because the store does not answer
    assert seen[0] == ("1", "1", True) and seen[1:3] == ["error"] * 2
    assert set(seen[1:]) == {"error", ("2", "2", True)}
    assert answered(lambda: StatusRegistry.read(message, backend=backend)).completed
