"""The examples for web frameworks, as a user runs them: in a real browser, with a real worker and Redis."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from dramatiq_status import StatusRegistry
from dramatiq_status.backends import RedisBackend

from ..recording import PATIENCE, eventually
from ..servers import free_port
from .browser import Tab

EXAMPLES = Path(__file__).parents[2] / "examples"

#: The commands of the server and of the worker, by example; {port} is that of the server.
COMMANDS = {
    "fastapi": ("uvicorn fastapi_app:app --port {port}", "dramatiq fastapi_app --processes 1 --threads 2"),
    "flask": ("flask --app flask_app run --port {port}", "dramatiq flask_app --processes 1 --threads 2"),
    "django": (
        "django runserver --noreload 127.0.0.1:{port}",
        "dramatiq django_dramatiq.setup django_app.tasks --processes 1 --threads 2",
    ),
}


@contextmanager
def running(command: str, redis_url: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command of an example, in a process group of its own."""
    environment = {
        **os.environ,
        "REDIS_URL": redis_url,
        "DJANGO_SETTINGS_MODULE": "django_app.settings",
        "PYTHONPATH": str(EXAMPLES.parent),
    }
    words = [sys.executable, "-m", *command.split()]
    process = subprocess.Popen(
        words,
        cwd=EXAMPLES,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("example", COMMANDS)
def test_an_example_shows_the_bar_of_a_job_to_its_end(example: str, tab: Tab, redis_url: str) -> None:
    port = free_port()
    server, worker = COMMANDS[example]
    with running(server.format(port=port), redis_url), closing(RedisBackend(url=redis_url, timeout=20_000)) as backend:
        eventually(lambda: _listens(port))
        # Given a page that has sent a job, and a worker that stops in the middle of the job
        tab.open(f"http://127.0.0.1:{port}").until_state("queued")
        with running(worker, redis_url) as process:
            assert eventually(lambda: any(0 < (job.percent or 0) < 100 for job in StatusRegistry.list(backend=backend)))
            os.killpg(process.pid, signal.SIGSTOP)
            try:
                # Then the page shows how far the job is
                tab.until("() => (document.querySelector('dramatiq-status').snapshot.percent ?? 0) % 100 > 0")
            finally:
                os.killpg(process.pid, signal.SIGCONT)
            # And when the worker goes on, the page shows the end
            tab.until_state("completed")
        assert tab.text().startswith("Orders of MayCompleted100 of 100took ")


@pytest.mark.parametrize("example", COMMANDS)
def test_an_example_names_its_commands_and_needs_no_others(example: str) -> None:
    path = EXAMPLES / ("django_app/__init__.py" if example == "django" else f"{example}_app.py")
    text = path.read_text().partition('"""')[2].partition('"""')[0]
    # Given the commands above, without their options; Django starts its worker by a command of django_dramatiq
    names = ["python -m django runserver", "python -m django rundramatiq"] if example == "django" else COMMANDS[example]
    # Then the text of the example has them, and the server that it finds without a setting
    assert [name for name in names if f"    {name.partition(' --p')[0]}\n" not in text] == []
    assert "REDIS_URL" in text and "redis://127.0.0.1:6379/0" in text


def test_the_shortest_example_is_short() -> None:
    lines = (EXAMPLES / "fastapi_app.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 30
