"""A backend that is not ours: the example of one, and the conformance suite as its author uses it."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import dramatiq
import pytest

from dramatiq_status import BackendError, StatusRegistry, current_status, track
from dramatiq_status.backend import StatusBackend
from dramatiq_status.record import PROGRESS, VERSION
from dramatiq_status.testing.conformance import BackendConformance, concurrency, enqueue, finish, outside, start
from dramatiq_status.update import Outcome
from examples import third_party_backend
from examples.third_party_backend import DirectoryBackend

from ..recording import UNMEASURED, make_broker, working

EXAMPLES = Path(__file__).parents[2] / "examples"

#: Time-out in milliseconds that no test reaches by chance, even on a busy machine.
PATIENT = 20_000

#: Number of processes that write to one directory, and number of writes of each.
PROCESSES, WRITES = 4, 250

#: Script of another process that increments two messages in each call.
COUNT = f"""
import sys
from dramatiq_status.update import Kind, Outcome, Update
from third_party_backend import DirectoryBackend
path, *ids = sys.argv[1:]
backend = DirectoryBackend(path, timeout={PATIENT})
for _ in range({WRITES}):
    outcomes = backend.update_many([(message_id, Update(Kind.OUTSIDE, increment=1)) for message_id in ids])
    assert set(outcomes) == {{Outcome.APPLIED}}
"""


@pytest.fixture
def backend(tmp_path: Path) -> DirectoryBackend:
    return DirectoryBackend(tmp_path, timeout=PATIENT)


def file_of(backend: StatusBackend, message_id: str) -> Path:
    assert isinstance(backend, DirectoryBackend)
    return backend._file(message_id)


class TestDirectoryBackend(BackendConformance):
    @pytest.fixture(autouse=True)
    def fewer_writes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # A writer pauses while another one has the lock of the file. This number of writes also finds a backend without
        # a lock.
        monkeypatch.setattr(concurrency, "WRITES", 250)

    @pytest.fixture
    def make_backend(self, tmp_path: Path) -> Callable[..., StatusBackend]:
        return lambda **parameters: DirectoryBackend(tmp_path, timeout=PATIENT, **parameters)

    def ttl_of(self, backend: StatusBackend, message_id: str) -> int | None:
        file = file_of(backend, message_id)
        return int(file.read_bytes().split(b"\n")[0]) - backend.now() if file.exists() else None

    def set_ttl(self, backend: StatusBackend, message_id: str, ttl: int) -> None:
        file = file_of(backend, message_id)
        _, document = file.read_bytes().split(b"\n", 1)
        file.write_bytes(b"%d\n%s" % (backend.now() + ttl, document))

    def damages(self) -> dict[str, Callable[[Any, str], None]]:
        def plant(content: bytes) -> Callable[[Any, str], None]:
            def write(backend: Any, message_id: str) -> None:
                file_of(backend, message_id).write_bytes(content)

            return write

        contents = {"empty": b"", "a text": b"hello", "no record": b"9999999999999\nhello\n", "not UTF-8": b"\xff\n"}
        return {name: plant(content) for name, content in contents.items()}


FORGETFUL = """
import pytest

from dramatiq_status.backends import StubBackend
from dramatiq_status.testing.conformance import BackendConformance


class ForgetfulBackend(StubBackend):
    def read_many(self, message_ids):
        return [None] * len(message_ids)


class TestForgetfulBackend(BackendConformance):
    @pytest.fixture
    def backend(self):
        return ForgetfulBackend()
"""


def test_asserts_of_the_suite_show_what_they_have_compared(tmp_path: Path) -> None:
    # Given a backend that loses all records, and its tests
    register = 'import pytest\n\npytest.register_assert_rewrite("dramatiq_status.testing.conformance")\n'
    (tmp_path / "conftest.py").write_text(register, encoding="utf-8")
    (tmp_path / "test_forgetful.py").write_text(FORGETFUL, encoding="utf-8")
    # When two tests of two chapters of the suite are run
    tests = "test_a_write_from_outside_keeps_other_fields or test_read_many_keeps_the_order"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", "-k", tests, "."]
    run = subprocess.run(command, cwd=tmp_path, env=UNMEASURED, capture_output=True, text=True, timeout=110)
    # Then their failures show the values that were compared
    assert run.returncode == 1, run.stdout
    assert "assert None is not None" in run.stdout and "diff: None != '0'" in run.stdout


def test_processes_that_count_lose_no_increment(backend: DirectoryBackend, tmp_path: Path) -> None:
    # Given two running messages
    ids = [uuid4().hex, uuid4().hex]
    backend.update_many([(message_id, start(1)) for message_id in ids])
    # When several processes increment both at the same time
    command = [sys.executable, "-c", COUNT, str(tmp_path), *ids]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES)}
    counting = [subprocess.Popen(command, env=environment) for _ in range(PROCESSES)]
    codes = [process.wait(100) for process in counting]
    # Then the sums are exact
    assert codes == [0] * PROCESSES
    total = PROCESSES * WRITES
    found = [record and (record[PROGRESS], record[VERSION]) for record in backend.read_many(ids)]
    assert found == [(str(total), str(total + 1))] * 2


def test_writes_to_a_locked_directory_fail_in_time(backend: DirectoryBackend, tmp_path: Path) -> None:
    # Given a message, and another process that keeps the lock
    backend.update("m", enqueue())
    hasty = DirectoryBackend(tmp_path, timeout=50)
    with open(tmp_path / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # When the backend writes
        for write in (lambda: hasty.update("m", outside()), lambda: hasty.delete("m"), hasty.sweep):
            # Then it waits no longer than its time-out
            with pytest.raises(BackendError, match="locked for 50 milliseconds") as caught:
                write()
            assert isinstance(caught.value.__cause__, TimeoutError)
        # And readers do not wait
        assert hasty.read("m") is not None
    # And when the lock is free, writes succeed
    assert hasty.update("m", start(1)) is Outcome.APPLIED


def test_writes_to_a_deleted_directory_raise(tmp_path: Path) -> None:
    # Given a directory that was deleted
    backend = DirectoryBackend(tmp_path / "statuses")
    (tmp_path / "statuses").rmdir()
    # When the backend writes
    # Then it raises the error of an outage
    with pytest.raises(BackendError) as caught:
        backend.update("m", enqueue())
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_sweep_deletes_what_has_expired(backend: DirectoryBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given two messages of which one has expired
    now = 1_000_000
    monkeypatch.setattr(backend, "now", lambda: now)
    backend.update_many([("old", start(1)), ("old", finish(1, ttl=60_000)), ("new", enqueue())])
    now = 1_060_000
    # When the directory is swept
    backend.sweep()
    # Then the other one can be read
    assert [file_of(backend, message_id).exists() for message_id in ("old", "new")] == [False, True]


def test_a_job_stores_its_status(backend: DirectoryBackend) -> None:
    # Given a job whose status is in the directory
    broker = make_broker(backend)

    @dramatiq.actor(broker=broker)
    def work() -> None:
        for _ in track(range(10)):
            current_status()["step"] = "counting"

    # When it runs
    with working(broker):
        snapshot = StatusRegistry.wait(work.send(), broker=broker, timeout=PATIENT)
    # Then readers get its final status
    assert (str(snapshot), snapshot.total, snapshot["step"]) == ("completed (100%)", 10, "counting")


def test_only_the_owner_may_read_the_directory(tmp_path: Path) -> None:
    # Given a process that makes its files readable for all users, and a directory that the backend creates
    before = os.umask(0o022)
    try:
        backend = DirectoryBackend(tmp_path / "statuses")
        # When statuses are stored
        backend.update("m", enqueue())
    finally:
        os.umask(before)
    # Then only the owner can read the directory and its files
    assert backend.path.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in backend.path.iterdir()} == {0o600}
    # And no symbolic link in it is followed
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("new", "lock"):
        (backend.path / name).unlink(missing_ok=True)
        (backend.path / name).symlink_to(victim)
        with pytest.raises(BackendError):
            backend.update("m", outside(increment=1))
        (backend.path / name).unlink()
    assert victim.read_text() == "precious" and backend.update("m", outside(increment=1)) is Outcome.APPLIED


def test_the_suite_passes_in_a_project_of_its_own(tmp_path: Path) -> None:
    # Given another project, with the backend and the test in its docstring, and with pytest alone
    (tmp_path / "third_party_backend.py").write_bytes((EXAMPLES / "third_party_backend.py").read_bytes())
    found = re.search(r"\n\n((?:    .*\n|\n)+)", third_party_backend.__doc__ or "")
    assert found is not None
    (tmp_path / "test_backend.py").write_text(textwrap.dedent(found[1]), encoding="utf-8")
    others = ["gevent", "hypothesis", "pymemcache", "redis", "tests", "valkey"]
    (tmp_path / "conftest.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({others}))\n")
    # When the suite is run, without its long tests
    suite = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "-k", "not lost and not fork", "."],
        cwd=tmp_path,
        env={**UNMEASURED, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
    )
    # Then no test fails, and tests of features that the backend lacks are skipped with a reason
    assert suite.returncode == 0, suite.stdout
    assert re.search(r" [1-9]\d\d passed, \d+ skipped", suite.stdout), suite.stdout
    reasons = {line.rpartition(": ")[2] for line in suite.stdout.splitlines() if line.startswith("SKIPPED")}
    hooks = ("damages", "refusals", "refusing", "set_ttl", "too_large", "ttl_of")
    needed = (*(f"hook {hook}" for hook in hooks), "fixture make_backend", "fixture outage")
    cannot = (
        "This backend does not list.",
        "This backend has no subscriptions.",
        "This backend has no log of cancelled messages.",
        "This backend does not publish changes of its log.",
    )
    assert reasons == {*cannot, *(f"Needs the {name}." for name in needed)}


def test_bound_status_needs_no_pytest(tmp_path: Path) -> None:
    # Given an environment without pytest
    script = """
import sys
sys.modules["pytest"] = None
from dramatiq_status import current_status
from dramatiq_status.testing import bound_status
with bound_status() as status:
    current_status()["step"] = "reading"
assert status["step"] == "reading"
"""
    # When a unit test uses the helper
    # Then the test passes
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=60)
