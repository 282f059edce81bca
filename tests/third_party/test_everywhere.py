"""What the script does before it runs a suite: our middleware on every broker, and the outcome of every test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .__main__ import HERE, SUITES, broken, outcomes_of, unpack

SCRIPT = """
import sys
assert "dramatiq" not in sys.modules and "threading" not in sys.modules, "It is too late to patch."
import dramatiq
from dramatiq.brokers.stub import StubBroker
broker = StubBroker(middleware=[])
assert [type(middleware).__name__ for middleware in broker.middleware] == ["StatusMiddleware"]
broker.logger.critical("Unexpected failure in before_ack of %r.", broker.middleware[0])
broker.logger.critical("Unexpected failure in before_ack of <Retries>.")
"""


def test_every_broker_has_the_middleware(tmp_path: Path) -> None:
    # Given a process with the script's module in its path, as all processes that it starts
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")},
        "PYTHONPATH": f"{HERE / 'site'}{os.pathsep}{HERE.parent.parent}",
        "EVERYWHERE_STORE": "memory://",
        "EVERYWHERE_TROUBLE": str(tmp_path / "trouble"),
    }
    start = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', sys.argv[1]]).returncode)"
    # When it makes a broker
    process = subprocess.run(
        [sys.executable, "-c", start, SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    # Then the broker has the middleware, and errors of the middleware are recorded
    assert process.returncode == 0, process.stderr
    trouble = (tmp_path / "trouble").read_text()
    assert trouble.count("Unexpected failure") == 1 and "StatusMiddleware" in trouble


def test_each_test_has_an_outcome(tmp_path: Path) -> None:
    # Given the report of a suite
    (tmp_path / "test_a.py").write_text(
        """
import unittest
import pytest
@pytest.mark.parametrize("n", [1, 2])
def test_one(n): assert n == 1
class TestTwo:
    def test_two(self): pytest.skip()
class Three(unittest.TestCase):
    def test_three(self): pass
@pytest.fixture
def bad(): raise ValueError
def test_four(bad): ...
"""
    )
    report = ("-o", "junit_family=xunit1", f"--junitxml={tmp_path / 'report.xml'}")
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), *report]
    subprocess.run([*run, "test_a.py"], cwd=tmp_path, capture_output=True, timeout=60)
    # When it is read, then each test has its name and its outcome
    found = outcomes_of(tmp_path / "report.xml")
    assert found == {
        "test_a.py::test_one[1]": "passed",
        "test_a.py::test_one[2]": "failed",
        "test_a.py::TestTwo::test_two": "skipped",
        "test_a.py::Three::test_three": "passed",
        "test_a.py::test_four": "failed",
    }
    # And only a test that has passed before can be broken
    assert broken({**found, "test_a.py::Three::test_three": "failed"}, found) == ["test_a.py::Three::test_three"]
    assert broken({}, {"gone": "passed", "failed before": "failed"}) == ["gone"]


@pytest.mark.parametrize("name", SUITES)
def test_all_standins_are_there(name: str, tmp_path: Path) -> None:
    # Given a clone of a suite that has its own fixtures
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / "conftest.py").write_text("own")
    # When it is laid out, it keeps its fixtures
    root = unpack(name, str(tmp_path / "clone"), tmp_path / "out")
    assert [path.name for path in root.iterdir()] == ["conftest.py"]
    # And there are stand-ins for the fixtures that a source distribution lacks
    assert all((HERE / "standins" / ours).exists() for ours in SUITES[name].standins.values() if ours)
