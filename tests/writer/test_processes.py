"""Tests of processes that end, or fork."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import dramatiq

from dramatiq_status import StatusRegistry, current_status
from dramatiq_status.backends import RedisBackend

from ..recording import (
    make_broker,
    run,
)


def test_a_script_that_only_sends_starts_no_thread(redis_url: str) -> None:
    # Given a script that sends a message and ends
    script = f"""
import threading, dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq_status import StatusMiddleware
from dramatiq_status.backends import RedisBackend
broker = RedisBroker(url={redis_url!r})
broker.add_middleware(StatusMiddleware(backend=RedisBackend(url={redis_url!r}, timeout=20_000)))
dramatiq.set_broker(broker)
@dramatiq.actor
def work(): ...
print(work.send().message_id)
assert threading.active_count() == 1, threading.enumerate()
"""
    # When it has run
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    # Then the status is stored, and the script had no further thread
    assert StatusRegistry.get(found.stdout.strip(), backend=RedisBackend(url=redis_url, timeout=20_000)).queued


def test_a_process_that_exits_stores_its_last_updates(redis_url: str) -> None:
    # Given a process that ends while one of its jobs runs, with a throttled write
    script = f"""
import sys, threading, dramatiq
from dramatiq.brokers.stub import StubBroker
from dramatiq_status import StatusMiddleware, current_progress, current_status
from dramatiq_status.backends import RedisBackend
broker = StubBroker()
backend = RedisBackend(url={redis_url!r}, timeout=20_000)
broker.add_middleware(StatusMiddleware(backend=backend, status_throttle=3_600_000))
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
    # Then the write is stored
    snapshot = StatusRegistry.read(found.stdout.strip(), backend=RedisBackend(url=redis_url, timeout=20_000))
    assert snapshot is not None and snapshot.working and (snapshot["progress"], snapshot["step"]) == (7, "last")


def test_both_processes_write_after_a_fork(redis_url: str) -> None:
    # Given a process that has sent a message and run it
    backend = RedisBackend(url=redis_url, timeout=20_000)
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
    # Then both processes can send and run further messages
    assert parent and os.waitstatus_to_exitcode(status) == 0
