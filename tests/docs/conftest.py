"""Fixtures that pages use by name: a page has ``.. use: broker, orders``."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import AsyncIO

from dramatiq_status import Snapshot, StatusMiddleware, StatusRegistry, current_progress, current_status
from dramatiq_status.backends import StubBackend
from dramatiq_status.decoding import take_snapshot
from dramatiq_status.record import ENQUEUED_AT, EXCEPTION
from dramatiq_status.testing.updates import enqueue, fold, write

from ..recording import PATIENCE, eventually, make_stub_broker, working
from ..test_history import NOW, requeue, starting
from .pages import ROOT


@pytest.fixture
def broker() -> StubBroker:
    """Return the default broker. It keeps its messages and its statuses in memory."""
    broker = make_stub_broker()
    broker.add_middleware(AsyncIO())
    broker.add_middleware(StatusMiddleware(backend=StubBackend()))
    dramatiq.set_broker(broker)
    return broker


@pytest.fixture
def stub_worker(broker: StubBroker, status_backend: StubBackend) -> Iterator[dramatiq.Worker]:
    """Yield a running worker of the default broker."""
    with working(broker) as worker:
        yield worker


@pytest.fixture
def orders() -> dict[str, Any]:
    """Return the functions of the example application of the pages."""
    names = ("insert", "check", "index", "shrink", "fetch")
    return {
        "read_rows": lambda path: list(range(100)),
        "iter_rows": lambda path: iter(range(500)),
        **dict.fromkeys(names, lambda value: None),
    }


@pytest.fixture
def running_job(broker: StubBroker) -> Iterator[dict[str, Any]]:
    """Yield a job of the actor ``import_rows`` at 42 of 100: its ``message``, its ``message_id``, and the function
    ``finish``, which ends the job.
    """
    go_on = threading.Event()

    @dramatiq.actor(broker=broker, actor_name="import_more" if "import_rows" in broker.actors else "import_rows")
    def import_rows() -> None:
        current_progress().increment(42)
        current_status()["step"] = "reading"
        assert go_on.wait(PATIENCE)
        current_progress().finish()

    def finish() -> None:
        go_on.set()
        eventually(lambda: not broker.queues["default"].unfinished_tasks)

    with working(broker):
        message = import_rows.send()
        eventually(lambda: StatusRegistry.get(message).get("step"))
        yield {"message": message, "message_id": message.message_id, "finish": finish}
        finish()


@pytest.fixture
def retried_snapshot() -> Snapshot:
    """Return a job whose first run has failed, and whose second run has gone on for 5 seconds."""
    gone = json.dumps({"type": "OSError", "message": "gone"}, separators=(",", ":"))
    updates = [
        enqueue(**{ENQUEUED_AT: str(NOW)}),
        starting(1, 1, NOW + 2_000),
        requeue(2, NOW + 14_000, failed=True, **{EXCEPTION: gone}),
        starting(2, 2, NOW + 44_000),
        write(2, 2, p="50", t="100"),
    ]
    found = take_snapshot("8f3a21c4-77de-4b0e-9f5b-0f6d2c1f5e11", fold(updates, now=NOW + 46_000), NOW + 49_000)
    assert found is not None
    return found


@pytest.fixture
def fresh_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pip install this checkout where a page installs ``dramatiq-status``."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.rst", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "dramatiq_status", source / "dramatiq_status", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", "."]
    subprocess.run([*pip, *build], cwd=source, check=True)
    monkeypatch.setenv("PIP_FIND_LINKS", str(source / "dist"))
    # To compile all modules takes seconds, and Python compiles each module that it imports.
    monkeypatch.setenv("PIP_NO_COMPILE", "1")
