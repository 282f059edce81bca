"""Tests of ``cancel``, with a real worker and a real store."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker

from dramatiq_status import StatusMiddleware, current_status
from dramatiq_status.backends import SQLiteBackend

from ..recording import PATIENCE, eventually
from .terminals import on_pipe, on_terminal, screen_of


class Shop:
    """A worker with a job that checks whether it was cancelled, and a job that does not."""

    def __init__(self, path: Path) -> None:
        self.url = f"sqlite:///{path}"
        self.backend = SQLiteBackend(path, timeout=20_000)
        self.broker = StubBroker(middleware=[])
        self.broker.add_middleware(StatusMiddleware(backend=self.backend))
        self.may_end = threading.Event()

        @dramatiq.actor(broker=self.broker)
        def listens() -> None:
            while not self.may_end.wait(0.02):
                current_status().check_cancelled()

        @dramatiq.actor(broker=self.broker)
        def is_deaf() -> None:
            self.may_end.wait(PATIENCE)

        @dramatiq.actor(broker=self.broker)
        def waits() -> None:
            pass

        self.actors = {"listens": listens, "is_deaf": is_deaf, "waits": waits}
        self.worker = dramatiq.Worker(self.broker, worker_timeout=50, worker_threads=3)

    def send(self, name: str) -> str:
        message_id: str = self.actors[name].send().message_id
        return message_id

    def state(self, message_id: str) -> Any:
        snapshot = self.backend.snapshot(message_id)
        return snapshot and snapshot.state


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path / "status.db")
    yield shop
    shop.may_end.set()
    shop.worker.stop(timeout=5_000)
    shop.broker.close()
    shop.backend.close()


def test_waiting_finished_and_unknown_jobs_have_their_exit_statuses(shop: Shop) -> None:
    waiting, over = shop.send("waits"), shop.send("waits")
    # Given a job that waits: it ends at once, and a second request changes nothing
    for _ in range(2):
        done = on_pipe("cancel", waiting, "--reason", "user\x1bleft", "--url", shop.url)
        assert (done.status, done.output) == (0, f"Cancelled  {waiting}  waits  will not run, user\\x1bleft\n")
    # When a worker starts, then the job does not run
    shop.worker.start()
    eventually(lambda: shop.state(over) == "completed")
    text = on_pipe("get", waiting, "--url", shop.url)
    assert text.status == 1 and "never ran" in text.output and "Cancelled without a run" in text.output
    assert on_pipe("watch", waiting, "--url", shop.url).output.split("  ")[1:] == [
        "Cancelled", waiting, "waits", "user\\x1bleft", "never ran\n",
    ]  # fmt: skip
    # And a job that was over, and an unknown one, have their own exit statuses
    done = on_pipe("cancel", over, waiting, "--url", shop.url)
    assert done.status == 1 and f"{over}  waits  was over, " in done.output
    assert done.errors == "2 jobs: 1 cancelled, 1 were over\n"
    done = on_pipe("cancel", over, "no-such-job-at-all", "--url", shop.url)
    assert done.status == 3 and "no such job" in done.errors
    found = json.loads(on_pipe("cancel", over, "--json", "--url", shop.url).output)
    assert (found["cancellation"], found["status"], found["message_id"]) == ("finished", "completed", over)
    assert on_pipe("cancel", over, "--reason", "x" * 2000, "--url", shop.url).status == 2


def test_a_running_job_that_checks_ends_and_another_one_runs_on(shop: Shop) -> None:
    listening, deaf = shop.send("listens"), shop.send("is_deaf")
    shop.worker.start()
    eventually(lambda: shop.state(listening) == shop.state(deaf) == "working")
    # A job that checks whether it was cancelled ends
    done = on_pipe("cancel", listening, "--wait", "--url", shop.url)
    assert done.status == 0 and done.output.startswith(f"Cancelled  {listening}  listens  stopped after ")
    # A job that does not check is asked to stop, and runs on
    terminal = on_terminal("cancel", deaf, "--url", shop.url)
    lines = screen_of(terminal)
    assert terminal.status == 4
    assert lines[0].startswith(f" ◒ Working   is_deaf {deaf[:8]}  asked to stop, not seen for ")
    assert "--wait waits for it." in lines[2]
    # And with --wait the command ends after the job
    threading.Timer(0.5, shop.may_end.set).start()
    done = on_pipe("cancel", deaf, "--wait", "--url", shop.url)
    assert shop.may_end.is_set() and done.status == 1 and "was over" in done.output
