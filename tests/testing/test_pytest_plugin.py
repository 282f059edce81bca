"""The fixtures that pytest loads, and the assertions about states, as the tests of an application use them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker

from dramatiq_status import State, StatusMiddleware, StatusMissing, StatusRegistry, StatusTimeout, current_status
from dramatiq_status.backends import SQLiteBackend, StubBackend
from dramatiq_status.testing import assert_status_sequence, stub_statuses, wait_for_final_state
from dramatiq_status.testing.updates import enqueue, start

from ..recording import make_stub_broker, working

#: An application whose statuses are in a file, and its `conftest.py`.
APPLICATION = """
import dramatiq
from dramatiq.brokers.stub import StubBroker
from dramatiq_status import StatusMiddleware, current_status
from dramatiq_status.backends import SQLiteBackend

broker = StubBroker()
broker.add_middleware(StatusMiddleware(backend=SQLiteBackend("status.db"), includes={"result"}))
dramatiq.set_broker(broker)

@dramatiq.actor(max_retries=2, min_backoff=1)
def load(path, failures):
    status = current_status()
    status["path"] = path
    if status.attempts <= failures:
        raise OSError("not there yet")
    return len(path)
"""
CONFTEST = """
import dramatiq, pytest
import application

@pytest.fixture
def stub_worker(status_broker, status_backend):
    worker = dramatiq.Worker(status_broker, worker_timeout=10)
    worker.start()
    yield worker
    worker.stop(timeout=1_000)
"""
TESTS = """
from application import broker, load
from dramatiq_status import StatusRegistry
from dramatiq_status.backends import StubBackend
from dramatiq_status.testing import assert_status_sequence, wait_for_final_state

def test_a_retry(status_backend, stub_worker):
    message = load.send("a.csv", failures=1)
    found = wait_for_final_state(message, "completed")
    assert (found["path"], found["result"]) == ("a.csv", 5)
    assert_status_sequence(message, ["queued", "working", "queued", "working", "completed"])
    assert isinstance(status_backend, StubBackend) and status_backend.snapshot(message.message_id)

def test_nothing_is_left_of_the_test_before(status_backend):
    assert StatusRegistry.list() == []
    message = load.send("b.csv", failures=0)
    assert_status_sequence(message, ["queued"])

def test_a_wrong_expectation(status_backend, stub_worker):
    wait_for_final_state(load.send("c.csv", failures=9), "completed")

def test_a_wrong_sequence(status_backend, stub_worker):
    message = load.send("d.csv", failures=0)
    wait_for_final_state(message)
    assert_status_sequence(message, ["queued", "completed"])

def test_the_store_of_the_application_has_nothing():
    assert StatusRegistry.list() == []
"""


def test_the_tests_of_an_application(pytester: pytest.Pytester) -> None:
    # Given an application with a store in a file, and its tests
    pytester.makepyfile(application=APPLICATION, conftest=CONFTEST, test_application=TESTS)
    # When they run in a process of their own
    done = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    # Then the right expectations pass, and the errors of the wrong ones name the runs
    done.assert_outcomes(passed=3, failed=2)
    done.stdout.fnmatch_lines(
        [
            "E *AssertionError: Message '*' of actor 'load' is failed and not completed: enqueued; waited *; run 1 "
            "failed after *: OSError: not there yet; *run 3 failed after *: OSError: not there yet.",
            "E *AssertionError: Message '*' of actor 'load' has had the states queued, working, completed and not "
            "queued, completed: enqueued; waited *; run 1 completed after *.",
        ]
    )


def test_tests_may_have_a_broker_of_their_own(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        "import pytest\nfrom dramatiq.brokers.stub import StubBroker\n"
        "@pytest.fixture\ndef status_broker():\n    return StubBroker()\n"
    )
    pytester.makepyfile(
        "from dramatiq_status import StatusRegistry\n"
        "def test_broker(status_broker, status_backend):\n"
        "    assert StatusRegistry.list(broker=status_broker) == []\n"
        "    assert status_broker.middleware[-1].backend is status_backend\n"
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_loading_the_plug_in_imports_no_other_module() -> None:
    script = (
        "import sys, pytest; before = set(sys.modules); import dramatiq_status.pytest_plugin;"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["dramatiq_status", "dramatiq_status.pytest_plugin"]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[StubBroker]:
    """Yield the default broker, with a store in a file and settings."""
    broker = make_stub_broker()
    with closing(SQLiteBackend(tmp_path / "status.db", timeout=20_000)) as backend:
        broker.add_middleware(StatusMiddleware(backend=backend, includes={"result", "traceback"}, status_ttl=5_000))
        dramatiq.set_broker(broker)
        yield broker
    dramatiq.set_broker(None)  # type: ignore[arg-type]


def declared(broker: StubBroker, outcome: int = 5) -> dramatiq.Actor[[], int]:
    @dramatiq.actor(broker=broker, max_retries=0)
    def load() -> int:
        current_status()["step"] = "loading"
        return 10 // outcome

    return load


def test_the_stub_has_the_settings_of_the_middleware_that_it_replaces(broker: StubBroker) -> None:
    # Given a middleware with settings, and an actor that was declared with it
    load, before = declared(broker), list(broker.middleware)
    # When a message is processed in the block
    with stub_statuses(broker) as backend, working(broker):
        message = load.send()
        found = wait_for_final_state(message, State.COMPLETED)
        assert found["result"] == 2
        assert 0 < (backend.expires_in(message.message_id) or 0) <= 5_000
    # Then the usual middleware is back, and its store has no status of the message
    assert [middleware for middleware in broker.middleware if isinstance(middleware, StatusMiddleware)] == before[-1:]
    assert StatusRegistry.read(message) is None
    with pytest.raises(StatusMissing, match=f"^There is no status for message '{message.message_id}': ") as caught:
        assert_status_sequence(message, ["queued"])
    assert caught.value.message_id == message.message_id


def test_a_broker_without_a_status_middleware_gets_one_for_the_block() -> None:
    broker = StubBroker()
    before = list(broker.middleware)
    with stub_statuses(broker):
        message = declared(broker).send()
        assert_status_sequence(message, [State.QUEUED], broker=broker)
    assert broker.middleware == before


def test_a_wrong_final_state_shows_the_traceback(broker: StubBroker) -> None:
    load = declared(broker, outcome=0)
    with stub_statuses(), working(broker):
        message = load.send()
        assert wait_for_final_state(message, "failed").failed
        with pytest.raises(AssertionError, match=r"is failed and not completed: .*\n(?s:.*)return 10 // outcome"):
            wait_for_final_state(message, "completed")
        assert_status_sequence(message, ["queued", "working", "failed"])


def test_a_wait_ends() -> None:
    with closing(StubBackend()) as backend:
        backend.update("job", enqueue(E="1"))
        with pytest.raises(StatusTimeout):
            wait_for_final_state("job", timeout=20, backend=backend)
        with pytest.raises(ValueError, match="'working': it is no final state"):
            wait_for_final_state("job", "working", backend=backend)


def test_a_run_that_was_lost_is_followed_by_another_working() -> None:
    with closing(StubBackend()) as backend:
        backend.update("job", enqueue(E="1"))
        for token in (1, 2):
            backend.update("job", start(token, attempts=token))
        assert_status_sequence("job", ["queued", "working", "working"], backend=backend)
