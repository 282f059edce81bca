"""Tests that the benchmarks run, and that their own checks pass."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from benchmarks.__main__ import BENCHMARKS
from benchmarks.common import ROOT
from benchmarks.confirm import MODES
from benchmarks.throughput import work

#: Benchmarks that take too long for a test even with --quick, each with the reason.
SLOW = {
    "web": "starts a server of HTTP for each store, and waits until what it has read is stale",
    "read": "reads a thousand statuses at a time, in two placements",
    "batch": "reads a thousand statuses at a time, in two placements",
    "enqueue": "counts messages in three placements",
    "throughput": "starts a process with a worker for each kind of job",
    "confirm": "starts RabbitMQ, and nine processes with a worker for each broker",
    "piggyback": "starts RabbitMQ, and many processes with a worker",
    "outage": "waits for time-outs",
    "visibility": "looks for each of hundreds of writes, also beside a busy thread",
}


@pytest.mark.timeout(360)
def test_quick_benchmarks_run(redis_url: str, memcached_url: str) -> None:
    # Given the quick benchmarks, which start their servers themselves
    names = [name for name in BENCHMARKS if name not in SLOW]
    # When they are run
    command = [sys.executable, "-m", "benchmarks", "--quick", *names]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    # Then each prints its tables and its duration
    assert found.returncode == 0, found.stderr
    assert [line.split()[1] for line in found.stdout.splitlines() if line.startswith(".. ")] == names


@pytest.mark.parametrize("mode", MODES)
def test_workers_of_the_benchmark_of_confirmations_run(redis_url: str, mode: str) -> None:
    assert work({}, url=redis_url, mode=mode, jobs=20, sleep=0.0, broker_url="stub")["seconds"] > 0


@pytest.mark.parametrize("mode", ["client", "prepared", "piggyback", "piggyback+results"])
def test_workers_of_the_benchmark_of_broker_clients_run(redis_url: str, mode: str) -> None:
    assert work({}, url=redis_url, mode=mode, jobs=20, sleep=0.0)["seconds"] > 0


def test_the_list_of_slow_benchmarks_is_up_to_date() -> None:
    assert set(SLOW) < set(BENCHMARKS)


def test_the_readme_describes_each() -> None:
    readme = (ROOT / "benchmarks" / "README.rst").read_text()
    assert [name for name in BENCHMARKS if f"\n``{name}``" not in readme] == []


def test_the_readme_has_the_date_the_commit_and_the_command_of_each_table() -> None:
    # Given the sections of the README that have tables of figures
    readme = (ROOT / "benchmarks" / "README.rst").read_text()
    sections = re.split(r"^(.+)\n-+\n\n", readme, flags=re.MULTILINE)
    measured = {
        title: text for title, text in zip(sections[1::2], sections[2::2]) if re.search(r"^~+$", text, re.MULTILINE)
    }
    assert len(measured) >= 3
    # Then each begins with the date, the commit and the command
    begin = re.compile(r"Measured on \d+ \w+ 20\d\d, at commit [0-9a-f]{7}\b[^.]+? by ``python -m benchmarks\b")
    assert [title for title, text in measured.items() if not begin.match(text)] == []
