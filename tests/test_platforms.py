"""Where the package runs: on systems that do not fork, and from a zip file."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import dramatiq_status

PACKAGE = Path(dramatiq_status.__file__).parent

#: Script that removes functions that Linux has and Windows lacks.  It loads drivers before, because these look at the
#: platform as well.
TAKE_AWAY = """
import asyncio, os, socket, sqlite3, sys, zoneinfo
import dramatiq, pymemcache, redis
from dramatiq.brokers.stub import StubBroker

for module, name in ((os, "register_at_fork"), (os, "fork"), (socket, "MSG_DONTWAIT")):
    delattr(module, name)
sys.platform = "win32"
"""

#: Script that imports all modules, and runs a job on each store.
USE = """
import pkgutil, sys
from importlib import import_module

import dramatiq
import dramatiq_status
from dramatiq.brokers.stub import StubBroker
from dramatiq_status import StatusMiddleware, StatusRegistry, track
from dramatiq_status.backends import backend_from_url

for module in pkgutil.walk_packages(dramatiq_status.__path__, "dramatiq_status."):
    if "testing" not in module.name:
        import_module(module.name)

for url in sys.argv[1:]:
    broker = StubBroker()
    broker.add_middleware(StatusMiddleware(backend=backend_from_url(url)))

    @dramatiq.actor(broker=broker)
    def count():
        for _ in track(range(10)):
            pass

    message = count.send()
    worker = dramatiq.Worker(broker, worker_timeout=10, worker_threads=2)
    worker.start()
    snapshot = StatusRegistry.wait(message, broker=broker, timeout=20_000)
    worker.stop(timeout=1_000)
    assert (snapshot.state, snapshot.total, snapshot.progress) == ("completed", 10, 1.0)
    print("done")
"""


@pytest.fixture
def urls(redis_url: str, memcached_url: str, tmp_path: Path) -> list[str]:
    return [redis_url, memcached_url, f"sqlite:///{tmp_path / 'status.db'}"]


def use(script: str, urls: list[str], path: Path) -> str:
    """Run a script with the package from a path, and return what it has printed."""
    done = subprocess.run(
        [sys.executable, "-c", script, *urls],
        cwd=path.parent,
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_jobs_run_on_a_system_without_forks(urls: list[str]) -> None:
    # Given a Python without the functions that Windows does not have
    # When the package is imported, and jobs run
    # Then nothing is missing
    assert use(TAKE_AWAY + USE, urls, PACKAGE.parent).split() == ["done"] * 3


def test_jobs_run_from_a_zip_file(urls: list[str], tmp_path: Path) -> None:
    # Given the package in a zip file
    archive = tmp_path / "packages.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in PACKAGE.rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                packed.write(path, path.relative_to(PACKAGE.parent))
    # When it is imported from there, and jobs run
    printed = use(USE + "print(dramatiq_status.__file__)", urls, archive).split()
    # Then nothing is missing
    assert printed == [*["done"] * 3, str(archive / "dramatiq_status" / "__init__.py")]


def test_only_one_module_registers_hooks_of_forks() -> None:
    # Given the modules of the package
    # When they are searched for hooks that some systems do not have
    found = [path.name for path in PACKAGE.rglob("*.py") if "os.register_at_fork(" in path.read_text(encoding="utf-8")]
    # Then only the module that first checks whether they exist has them
    assert found == ["_process.py"]
