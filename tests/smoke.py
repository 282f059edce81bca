"""Checks the installed package in an environment that has nothing else, without pytest and without a server.

python -I tests/smoke.py redis memcached

The arguments are the extras with which the package was installed.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from importlib import import_module
from importlib.metadata import entry_points, version
from pathlib import Path
from tempfile import TemporaryDirectory

import dramatiq
from dramatiq.brokers.stub import StubBroker

import dramatiq_status
from dramatiq_status import BackendError, StatusMiddleware, StatusRegistry, backends, track
from dramatiq_status.backends import SQLiteBackend

#: By extra: the backend that needs it, and a URL of a server that is not there.
DRIVERS = {
    "redis": ("RedisBackend", "redis://127.0.0.1:1"),
    "memcached": ("MemcachedBackend", "memcached://127.0.0.1:1"),
}


def run_a_job(path: Path) -> str:
    """Run a job to its end, and return its message id."""
    broker = StubBroker()
    broker.add_middleware(StatusMiddleware(backend=SQLiteBackend(path)))
    dramatiq.set_broker(broker)

    @dramatiq.actor
    def import_rows() -> None:
        for _ in track(range(3), step="reading"):
            pass

    worker = dramatiq.Worker(broker, worker_timeout=10)
    worker.start()
    try:
        snapshot = StatusRegistry.wait(import_rows.send())
    finally:
        # A thread that begins after this call never ends: see `wait_until_it_runs` in tests/recording.py.
        worker.stop(timeout=1_000)
    assert (snapshot.state, snapshot["step"], snapshot.progress) == ("completed", "reading", 1.0)
    return snapshot.message_id


def use_the_command(folder: Path, path: Path, message_id: str, extras: set[str]) -> None:
    command = [str(Path(sys.executable).parent / "dramatiq-status")]
    environ = {name: value for name, value in os.environ.items() if name != "DRAMATIQ_STATUS_URL"}
    url = f"sqlite:///{path}"
    where = ["--url", url]
    if "cli" in extras:
        (folder / "pyproject.toml").write_text(f'[tool.dramatiq-status]\nurl = "{url}"\n', encoding="utf-8")
        where = []
    printed = subprocess.check_output([*command, "get", message_id, "--json", *where], cwd=folder, env=environ)
    assert json.loads(printed)["status"] == "completed"


def use_the_drivers(extras: set[str]) -> None:
    for extra, (backend, url) in DRIVERS.items():
        if extra in extras:
            try:
                backends.backend_from_url(url).snapshot("none")
            except BackendError:
                continue
            raise AssertionError(f"{url} has replied.")
        try:
            getattr(backends, backend)
        except ImportError as e:
            assert f"dramatiq-status[{extra}]" in str(e)
        else:
            raise AssertionError(f"{backend} needs no driver.")


async def use_the_web(message_id: str) -> None:
    """Call the web application as a server does."""
    from dramatiq_status.web import allow_all, status_app

    sent = []

    async def receive() -> dict[str, object]:
        return {"type": "http.request"}

    async def send(event: dict[str, object]) -> None:
        sent.append(event)

    paths = f"/{message_id}", "/dramatiq-status.js"
    for path in paths:
        scope = {"type": "http", "method": "GET", "path": path, "root_path": "", "query_string": b"", "headers": []}
        await status_app(authorize=allow_all)(scope, receive, send)
    replies = [event["status"] for event in sent if event["type"] == "http.response.start"]
    assert replies == [200] * len(paths), replies


def main() -> None:
    extras = set(sys.argv[1:])
    if "all" in extras:
        extras |= {"redis", "memcached", "cli", "web"}
    assert Path(dramatiq_status.__file__).is_relative_to(sys.prefix)
    assert version("dramatiq-status") == dramatiq_status.__version__
    for found in entry_points(group="console_scripts"):
        if found.name == "dramatiq-status":
            found.load()
    with TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "status.db"
        message_id = run_a_job(path)
        use_the_command(folder, path, message_id, extras)
        use_the_drivers(extras)
        if "redis" in extras:
            # redis-py works without it, but slowly.
            import_module("hiredis")
        if "web" in extras:
            asyncio.run(use_the_web(message_id))


if __name__ == "__main__":
    main()
