"""The examples, as a user runs them."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from select import select

import pytest

from .servers import MemcachedServer, RedisServer

ROOT = Path(__file__).parent.parent


def test_the_quick_start_shows_three_jobs() -> None:
    # When the quick start is run, without a terminal
    found = subprocess.run(
        [sys.executable, "examples/quickstart.py"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    # Then another process shows the statuses of three jobs
    heading, *lines, last = found.stdout.splitlines()
    one, other = re.findall(r"process (\d+)", heading, re.IGNORECASE)
    assert one != other
    moving = {line for line in lines if re.match(r"import_rows +working .* [\d.]+ %", line)}
    assert len(moving) > 3, found.stdout
    # And in the end one job is completed, one is completed in its second run, and one has failed
    ends = {line.split()[0]: line for line in lines if line and line[-1] != ":"}
    assert re.search("completed .*100.0 %$", ends["import_rows"])
    assert re.search("completed .*100.0 %  run 2$", ends["fetch_prices"])
    assert re.search("failed .*ValueError: who is Nobody", ends["send_report"])
    snapshot = json.loads(last)
    assert (snapshot["status"], snapshot["step"], snapshot["user_id"]) == ("completed", "done", 42)
    # And the other process has written a field before the jobs began
    assert str(snapshot["reader"]) == other
    # And no traceback of a failure is printed
    assert "Traceback" not in found.stderr


def test_the_quick_start_rewrites_its_lines_on_a_terminal() -> None:
    # When the quick start is run on a terminal
    terminal, end = os.openpty()
    with os.fdopen(terminal, "rb", buffering=0) as screen:
        command = [sys.executable, "examples/quickstart.py"]
        shown = b""
        # The test also keeps the slave end of the terminal open: without it, unread output could be lost.
        with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "TERM": "xterm"}, stdout=end) as process:
            ended = False
            while not ended or select([screen], [], [], 0.1)[0]:
                ended = process.poll() is not None
                if select([screen], [], [], 0.1)[0]:
                    shown += screen.read(65_536)
        os.close(end)
    # Then the three lines are overwritten again and again
    assert process.returncode == 0
    *_, picture = shown.split(b"\x1b[3A")
    assert shown.count(b"\x1b[3A") > 3
    assert [line.split()[1] for line in picture.splitlines()[:3]] == [b"completed", b"completed", b"failed"]


@pytest.fixture(params=["redis", "memcached"])
def environment(
    request: pytest.FixtureRequest,
    redis_server: RedisServer,
    redis_url: str,
    memcached_server: MemcachedServer,
    memcached_url: str,
) -> dict[str, str]:
    """Return the environment of an example whose statuses are in one of the stores."""
    return {
        **os.environ,
        "REDIS_URL": redis_server.database(0),
        "STATUS_STORE": request.param,
        "STATUS_URL": redis_server.database(1),
        "MEMCACHED_SERVER": memcached_server.address,
    }


def test_the_import_shows_its_progress(environment: dict[str, str], tmp_path: Path) -> None:

    def example(*arguments: str) -> str:
        command = [sys.executable, "examples/import_csv.py", *arguments]
        run = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, timeout=100, check=True
        )
        return run.stdout

    # Given 50,000 rows and a worker of the `dramatiq` command
    path, database = tmp_path / "orders.csv", tmp_path / "orders.sqlite3"
    example("generate", str(path))
    command = [sys.executable, "-m", "dramatiq", "examples.import_csv", "--processes", "1", "--threads", "2"]
    worker = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        # When they are imported, and another process follows
        message_id = example("send", str(path), str(database), "--pause", "10").strip()
        *seen, last = example("follow", message_id).splitlines()
    finally:
        worker.terminate()
        worker.wait(30)
    # Then the other process has shown its progress and its end
    final = json.loads(last)
    assert len({line for line in seen if line.startswith("working") and "/50000" in line}) > 5
    assert (final["status"], final["progress"], final["total"]) == ("completed", 50_000, 50_000)
    assert (final["rows"], final["rejected"], final["step"]) == (49_950, 50, "done")
    # And the database has the rows
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT count(*) FROM orders").fetchone() == (49_950,)


def test_the_progress_of_a_fan_out_never_decreases(environment: dict[str, str], tmp_path: Path) -> None:
    shown = tmp_path / "shown"

    def example(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "examples/fan_out.py", *arguments]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)

    # Given a job that sends messages for 300 pictures, and another process that follows it
    message_id = example("send", "300", "--pause", "20").communicate(timeout=60)[0].strip()
    following = example("follow", message_id)
    assert following.stdout is not None
    # When three worker processes run it, and make no picture before the follower has printed a line
    command = [sys.executable, "-m", "dramatiq", "examples.fan_out", "tests.hold", "--processes", "3", "--threads", "2"]
    held = {"dramatiq_worker_timeout": "50", "HOLD_ACTOR": "make_thumbnail", "HOLD_UNTIL": str(shown)}
    worker = subprocess.Popen(command, cwd=ROOT, env={**environment, **held})
    try:
        first = following.stdout.readline()
        shown.touch()
        *seen, last = following.communicate(timeout=100)[0].splitlines()
    finally:
        following.kill()
        worker.terminate()
        worker.wait(30)
    # Then the other process has shown a progress that never decreases
    bars = [int(line.partition("/")[0]) for line in (first, *seen)]
    assert bars == sorted(bars) and (bars[0], bars[-1]) == (0, 285)
    # And in the end each picture counts once, except for the broken ones
    assert json.loads(last) == {
        **{"made": 285, "of": 300, "status": "failed"},
        **{"queued": 0, "working": 0, "completed": 285, "failed": 15, "unknown": 0, "unavailable": 0},
    }
