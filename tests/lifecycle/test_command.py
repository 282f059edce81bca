"""The life cycle under the ``dramatiq`` command: processes of their own, and their deaths."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from ..recording import eventually
from ..servers import RedisServer
from .app import make_stage
from .scenarios import SCENARIOS, Scenario
from .stage import Stage
from .test_scenarios import end_of

ROOT = Path(__file__).parent.parent.parent

#: Scenarios of one message that need no code in the test's process.
NAMES = (
    "1 success",
    "3 an exception, retried, then success",
    "4 retries exhausted",
    "5 no retries allowed",
    "6 an exception of throws=",
    "7 Retry without delay",
    "10d skipped by the actor",
    "11 time limit, retried",
    "14 delayed",
    "15 a pipeline",
    "17 an unknown actor",
    "23c the actor sends its own id",
    "the actor says failed and returns",
)
CHOSEN = [scenario for scenario in SCENARIOS if scenario.name in NAMES]


@contextmanager
def command(
    stage: Stage, url: str, store: str, position: str, *arguments: str, gevent: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker of two processes."""
    environment = {
        **os.environ,
        "STAGE_BROKER": url,
        "STAGE_STORE": store,
        "STAGE_POSITION": position,
        "STAGE_NAME": stage.name,
        "STAGE_RETRIES": str(stage.retries),
        "dramatiq_worker_timeout": "50",
    }
    start = [sys.executable, "-m", "dramatiq"]
    if gevent:
        start = [str(Path(sys.executable).with_name("dramatiq-gevent"))]
    worker = subprocess.Popen(
        [*start, "tests.lifecycle.app", "--processes", "2", "--threads", "4", *arguments], cwd=ROOT, env=environment
    )
    try:
        yield worker
    finally:
        worker.terminate()
        worker.wait(30)


@pytest.fixture(params=["redis", "rabbitmq"])
def broker_url(request: pytest.FixtureRequest, redis_server: RedisServer) -> str:
    if request.param == "redis":
        return redis_server.database(1)
    return str(request.getfixturevalue("rabbitmq_server").url)


def check(stage: Stage, scenarios: list[Scenario]) -> None:
    """Perform all scenarios at once, and compare the states of each."""
    sent = {scenario.name: scenario.perform(stage, scenario)["it"] for scenario in scenarios}
    expected = {scenario.name: scenario.expected(retries=stage.retries, ahead=False).states for scenario in scenarios}
    for name, message_id in sent.items():
        eventually(lambda name=name, message_id=message_id: len(stage.sequence(message_id)) >= len(expected[name]))
    assert {name: stage.sequence(message_id) for name, message_id in sent.items()} == expected


@pytest.mark.parametrize(
    ("broker_url", "position"), [("redis", "first"), ("rabbitmq", "last")], indirect=["broker_url"]
)
def test_scenarios_under_the_command(redis_server: RedisServer, redis_url: str, broker_url: str, position: str) -> None:
    # Given two worker processes
    stage = make_stage(broker_url, redis_url, position=position, name=f"q-{uuid4()}")
    with command(stage, broker_url, redis_url, position):
        # When messages of all kinds run in them
        # Then a reader finds the right states of each message
        check(stage, CHOSEN)
    stage.close()


def test_scenarios_under_the_command_without_retries(redis_server: RedisServer, redis_url: str) -> None:
    # Given two worker processes whose broker does not retry
    url = redis_server.database(1)
    stage = make_stage(url, redis_url, position="last", name=f"q-{uuid4()}", retries=False)
    with command(stage, url, redis_url, "last"):
        # When messages of all kinds run in them
        # Then a reader finds the right states of each message
        check(stage, CHOSEN)
    stage.close()


@pytest.mark.parametrize("gevent", [False, True], ids=["threads", "gevent"])
def test_memcached_under_the_command(
    redis_server: RedisServer, redis_url: str, memcached_url: str, gevent: bool
) -> None:
    # Given two worker processes whose statuses are in memcached
    url = redis_server.database(1)
    stage = make_stage(url, memcached_url, position="last", name=f"q-{uuid4()}")
    scenarios = [scenario for scenario in CHOSEN if not gevent or "time limit" not in scenario.name]
    with command(stage, url, memcached_url, "last", gevent=gevent):
        # When messages of all kinds run in them
        sent = {scenario.name: scenario.perform(stage, scenario)["it"] for scenario in scenarios}
        # Then each message has the right end
        expected = {scenario.name: scenario.end._replace(states=scenario.end.states[-1]) for scenario in scenarios}
        for message_id in sent.values():
            eventually(lambda message_id=message_id: stage.sequence(message_id) in ("c", "f"))
        assert {name: end_of(stage, message_id) for name, message_id in sent.items()} == expected
    stage.close()


def test_scenarios_under_the_command_with_gevent(redis_server: RedisServer, redis_url: str) -> None:
    # Given workers whose threads are greenlets
    url = redis_server.database(1)
    stage = make_stage(url, redis_url, position="last", name=f"q-{uuid4()}")
    with command(stage, url, redis_url, "last", gevent=True):
        # When messages run in them, many at a time
        # Then a reader finds the right states of each message
        check(stage, [scenario for scenario in CHOSEN if "time limit" not in scenario.name])
    stage.close()


def test_messages_of_a_killed_worker_run_again(redis_server: RedisServer, redis_url: str, broker_url: str) -> None:
    stage = make_stage(broker_url, redis_url, position="last", name=f"q-{uuid4()}")
    # Given a message that runs in a worker
    message_id = stage.send("progress:7,loop", "progress:3")
    with command(stage, broker_url, redis_url, "last") as worker:
        eventually(lambda: stage.sequence(message_id) == "qw" and stage.read(message_id).get("progress") == 7)
        # When all processes of this worker are killed
        for pid in (*children_of(worker.pid), worker.pid):
            os.kill(pid, signal.SIGKILL)
        worker.wait(30)
    # Then the message still counts as running
    assert stage.sequence(message_id) == "qw"
    # And when another worker takes the message over, its status follows the new run
    with command(stage, broker_url, redis_url, "last"):
        eventually(lambda: stage.sequence(message_id) == "qwc")
    last = stage.read(message_id)
    assert (last.attempts, last["progress"]) == (2, 3)
    stage.close()


def test_messages_of_a_stopped_worker_are_retried(redis_server: RedisServer, redis_url: str, broker_url: str) -> None:
    stage = make_stage(broker_url, redis_url, position="last", name=f"q-{uuid4()}")
    # Given a message with the option notify_shutdown, which is retried
    message_id = stage.send("progress:7,loop", "progress:3", notify_shutdown=True)
    # (A second process, which stops a moment later, could take the retry and interrupt it, too.)
    with command(stage, broker_url, redis_url, "last", "--processes", "1"):
        eventually(lambda: stage.sequence(message_id) == "qw" and stage.read(message_id).get("progress") == 7)
        # When its worker gets the signal to stop
    # Then the message is back in its queue, or has run again before the process ended
    assert stage.sequence(message_id) in ("qwq", "qwqw", "qwqwc")
    with command(stage, broker_url, redis_url, "last"):
        eventually(lambda: stage.sequence(message_id) == "qwqwc")
    stage.close()


def test_messages_of_a_worker_that_stops_too_late_run_again(
    redis_server: RedisServer, redis_url: str, broker_url: str
) -> None:
    stage = make_stage(broker_url, redis_url, position="last", name=f"q-{uuid4()}")
    # Given a message without the option notify_shutdown, which runs on
    message_id = stage.send("progress:7,loop", "progress:3")
    # (With a second process, RabbitMQ would redeliver the message at once.)
    alone = ("--processes", "1", "--worker-shutdown-timeout", "500")
    with command(stage, broker_url, redis_url, "last", *alone):
        eventually(lambda: stage.sequence(message_id) == "qw" and stage.read(message_id).get("progress") == 7)
        # When its worker gets the signal to stop, and does not wait for the message
    # Then the message still counts as running
    assert stage.sequence(message_id) == "qw"
    # And when another worker takes the message over, its status follows the new run
    with command(stage, broker_url, redis_url, "last"):
        eventually(lambda: stage.sequence(message_id) == "qwc")
    last = stage.read(message_id)
    assert (last.attempts, last["progress"]) == (2, 3)
    stage.close()


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started, directly or indirectly, the innermost first."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return [descendant for child in map(int, found) for descendant in (*children_of(child), child)]
