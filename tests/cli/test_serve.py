"""The command that serves the dashboard, in a real process."""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from dramatiq_status.backends import SQLiteBackend
from dramatiq_status.cli.main import main

from ..jobs import Job
from ..recording import PATIENCE
from .terminals import COMMAND, environment


@contextmanager
def served(url: str, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start the server, and wait for its line; yield the process and its port."""
    command = [*COMMAND, "serve", "--url", url, "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        try:
            assert process.stderr is not None
            found = re.search(r"http://127\.0\.0\.1:(\d+)/", process.stderr.readline())
            assert found is not None
            yield process, int(found[1])
        finally:
            process.kill()


def ask(port: int, method: str, path: str, **headers: str) -> tuple[int, str]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def test_the_dashboard_is_served_to_this_machine(tmp_path: Path) -> None:
    with closing(SQLiteBackend(tmp_path / "status.db", timeout=20_000)) as backend:
        job = Job(backend).enqueue()
        url = f"sqlite:///{tmp_path}/status.db"
        with served(url) as (process, port):
            status, text = ask(port, "GET", "/")
            assert (status, job.message_id in text) == (200, True)
            # A request with the host name of another site is refused, and so is a request to delete a status
            assert ask(port, "GET", "/", Host=f"evil.example:{port}")[0] == 400
            assert ask(port, "POST", f"/{job.message_id}/delete")[0] == 403
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) in (0, 130, -signal.SIGINT)
        with served(url, "--write") as (_, port):
            assert ask(port, "POST", f"/{job.message_id}/delete")[0] == 200


def test_other_machines_are_served_only_with_allow_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path}/status.db"
    assert main(["serve", "--url", url, "--host", "0.0.0.0"]) == 2
    assert "--allow-all" in capsys.readouterr().err


def test_an_address_that_is_taken_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path}/status.db"
    with served(url) as (_, port):
        assert main(["serve", "--url", url, "--port", str(port)]) == 2
    assert f"127.0.0.1:{port} is taken" in capsys.readouterr().err
