"""The examples, as a user runs them."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from .servers import MemcachedServer, RedisServer

ROOT = Path(__file__).parent.parent


def test_quickstart() -> None:
    # When the quick start is run
    found = subprocess.run(
        [sys.executable, "examples/quickstart.py"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    # Then it shows how three jobs go
    lines = found.stdout.splitlines()
    assert any("working" in line and "50.0 %" in line for line in lines)
    assert any("retrying" in line for line in lines)
    assert any("failed" in line and "ValueError" in line for line in lines)
    assert json.loads(lines[-1])["status"] == "completed"


@pytest.mark.parametrize("store", ["redis", "memcached"])
def test_import_csv(
    redis_server: RedisServer,
    redis_url: str,
    memcached_server: MemcachedServer,
    memcached_url: str,
    tmp_path: Path,
    store: str,
) -> None:
    environment = {
        **os.environ,
        "REDIS_URL": redis_server.database(0),
        "STATUS_STORE": store,
        "STATUS_URL": redis_server.database(1),
        "MEMCACHED_SERVER": memcached_server.address,
    }

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
    # Then that has seen it move, and end
    final = json.loads(last)
    assert len({line for line in seen if line.startswith("working") and "/50000" in line}) > 5
    assert (final["status"], final["progress"], final["total"]) == ("completed", 50_000, 50_000)
    assert (final["rows"], final["rejected"], final["step"]) == (49_950, 50, "done")
    # And the rows are where they belong
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT count(*) FROM orders").fetchone() == (49_950,)


@pytest.mark.parametrize("store", ["redis", "memcached"])
def test_fan_out(
    redis_server: RedisServer,
    redis_url: str,
    memcached_server: MemcachedServer,
    memcached_url: str,
    store: str,
) -> None:
    environment = {
        **os.environ,
        "REDIS_URL": redis_server.database(0),
        "STATUS_STORE": store,
        "STATUS_URL": redis_server.database(1),
        "MEMCACHED_SERVER": memcached_server.address,
    }

    def example(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "examples/fan_out.py", *arguments]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)

    # Given a job that will hand out 300 pictures, and another process that follows it
    message_id = example("send", "300", "--pause", "20").communicate(timeout=60)[0].strip()
    following = example("follow", message_id)
    # When three worker processes do it
    command = [sys.executable, "-m", "dramatiq", "examples.fan_out", "--processes", "3", "--threads", "2"]
    worker = subprocess.Popen(command, cwd=ROOT, env={**environment, "dramatiq_worker_timeout": "50"})
    try:
        *seen, last = following.communicate(timeout=100)[0].splitlines()
    finally:
        following.kill()
        worker.terminate()
        worker.wait(30)
    # Then that has seen the bar move, and never go back
    bars = [int(line.partition("/")[0]) for line in seen]
    assert bars == sorted(bars) and len(set(bars)) > 1
    # And in the end each picture was counted once, but for those that are broken
    assert json.loads(last) == {
        **{"made": 285, "of": 300, "status": "failed"},
        **{"queued": 0, "working": 0, "completed": 285, "failed": 15, "unknown": 0},
    }
