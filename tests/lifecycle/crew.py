"""Two workers of the ``dramatiq`` command, whose steps and deaths a test controls.

The command loads this module, too: with ``CREW_NAME`` in the environment, it has a broker and its actors.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import dramatiq
import redis
from dramatiq.middleware import Middleware

from dramatiq_status import Snapshot, StatusMiddleware, StatusRegistry, current_progress, current_status
from dramatiq_status.backends import backend_from_url

from ..recording import eventually
from .stage import PATIENCE, make_broker

ROOT = Path(__file__).parent.parent.parent

#: Interval between heartbeats, in milliseconds.
HEARTBEAT_INTERVAL = 300


class Signals:
    """Signals between the test and its workers, as lists in Redis."""

    def __init__(self, url: str, name: str) -> None:
        # Newer versions of redis-py have a default time-out of some seconds.
        self._client = redis.Redis.from_url(url, socket_timeout=2 * PATIENCE)
        self._name = name

    def say(self, who: str, word: str) -> None:
        self._client.rpush(f"{self._name}:{who}:{word}", 1)

    def heed(self, who: str, word: str) -> None:
        found = cast(Any, self._client.blpop([f"{self._name}:{who}:{word}"], timeout=PATIENCE))
        assert found is not None, f"{who} never sent {word!r}"


class Settled(Middleware):
    """Middleware behind StatusMiddleware that signals a stored final state."""

    def before_ack(self, broker: dramatiq.Broker, message: Any) -> None:
        signals.say(who, "settled")

    before_nack = before_ack


def work(deed: str = "return", *arguments: str) -> None:
    """Signal the start of the run, and continue after the test's signal."""
    status, progress = current_status(), current_progress()
    status["owner"] = who
    progress.progress = 1
    status.flush()
    signals.say(who, "began")
    if deed == "hold" and who == "first":
        hold(*arguments)
    while deed == "listen":
        status.check_cancelled()
        time.sleep(0.01)
    signals.heed(who, "go on")
    status.update(owner=who, late=who, total=7)
    progress.increment(50)
    status.flush()
    signals.say(who, "wrote")
    signals.heed(who, "end")
    if deed == "fail" and who == "first":
        raise ValueError(who)


def hold(path: str) -> None:
    """Keep the interpreter lock until the test writes to a pipe."""
    pipe = os.open(path, os.O_RDONLY)
    # PyDLL does not release the interpreter lock while it calls a function.
    ctypes.PyDLL(None).read(pipe, ctypes.create_string_buffer(1), 1)
    os.close(pipe)


def make_crew(broker_url: str, store_url: str, name: str, *, behind: list[Middleware]) -> tuple[dramatiq.Broker, Any]:
    """Make the same broker and actor in the workers and in the test."""
    backend = backend_from_url(store_url, namespace=name, timeout=20_000)
    middleware = [StatusMiddleware(backend=backend, heartbeat_interval=HEARTBEAT_INTERVAL), *behind]
    broker = make_broker(broker_url, middleware, namespace=name)
    return broker, dramatiq.actor(work, broker=broker, queue_name=name)


if "CREW_NAME" in os.environ:
    who = os.environ["CREW_WHO"]
    signals = Signals(os.environ["CREW_SIGNALS"], os.environ["CREW_NAME"])
    broker, _ = make_crew(
        os.environ["CREW_BROKER"], os.environ["CREW_STORE"], os.environ["CREW_NAME"], behind=[Settled()]
    )
    dramatiq.set_broker(broker)


# The test's part


class Crew:
    """A message, and the workers that run it.

    Parameters:
      broker_url(str)
      redis_url(str): URL of the Redis with the signals.
      store_url(str): URL of the store; by default the Redis with the signals.
    """

    def __init__(self, broker_url: str, redis_url: str, store_url: str = "") -> None:
        self.name = f"crew-{uuid4()}"
        self._urls = broker_url, redis_url, store_url or redis_url
        self.broker, self._work = make_crew(broker_url, self._urls[2], self.name, behind=[])
        self._signals = Signals(redis_url, self.name)
        self.message_id = ""

    def send(self, *arguments: str) -> None:
        self.message_id = self._work.send(*arguments).message_id

    @contextmanager
    def worker(self, who: str) -> Iterator[subprocess.Popen[bytes]]:
        """Start a worker of one process and one thread, which is killed at the end of the block."""
        environment = {
            **os.environ,
            "CREW_NAME": self.name,
            "CREW_WHO": who,
            "CREW_BROKER": self._urls[0],
            "CREW_SIGNALS": self._urls[1],
            "CREW_STORE": self._urls[2],
            "dramatiq_worker_timeout": "50",
        }
        command = [sys.executable, "-m", "dramatiq", "tests.lifecycle.crew", "--processes", "1", "--threads", "1"]
        process = subprocess.Popen(command, cwd=ROOT, env=environment)
        try:
            yield process
        finally:
            send_signal(process, signal.SIGKILL)
            process.wait(PATIENCE)

    def tell(self, who: str, word: str) -> None:
        self._signals.say(who, word)

    def heed(self, who: str, word: str) -> None:
        """Wait for a signal of a worker."""
        self._signals.heed(who, word)

    def read(self) -> Snapshot:
        snapshot = StatusRegistry.read(self.message_id, broker=self.broker)
        assert snapshot is not None
        return snapshot

    def wait(self) -> Snapshot:
        return StatusRegistry.wait(self.message_id, broker=self.broker, timeout=int(PATIENCE * 1000))


def send_signal(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to a process and to all processes that it has started."""
    if process.poll() is not None:
        return
    for pid in (*children_of(process.pid), process.pid):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def stop(process: subprocess.Popen[bytes]) -> None:
    """Freeze a worker, all of its processes and threads."""
    pids = (process.pid, *children_of(process.pid))
    send_signal(process, signal.SIGSTOP)
    eventually(lambda: all(_is_stopped(pid) for pid in pids))


def _is_stopped(pid: int) -> bool:
    states = [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in Path(f"/proc/{pid}/task").iterdir()]
    return set(states) == {"T"}


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started, directly or indirectly, the innermost first."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except FileNotFoundError:
        return []
    return [descendant for child in map(int, found) for descendant in (*children_of(child), child)]
