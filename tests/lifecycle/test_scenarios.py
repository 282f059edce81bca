"""Every scenario, wherever our middleware stands, with and without Retries, on Dramatiq's brokers and our stores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from dramatiq_status.snapshot import Snapshot

from .recorder import Recorder, RecordingMemcachedBackend, RecordingRedisBackend, RecordingStubBackend
from .scenarios import SCENARIOS, End, Scenario
from .stage import POSITIONS, Stage

#: The brokers and the stores next to them.
BROKERS = ("stub", "stub, memcached", "redis", "rabbitmq")


@pytest.fixture(scope="module", params=BROKERS)
def broker(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=POSITIONS)
def position(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=[True, False], ids=["retries", "no-retries"])
def retries(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest, broker: str, position: str, retries: bool) -> Iterator[Stage]:
    """Yield one stage and its worker for all scenarios; each scenario reads its own messages only."""
    backend: Recorder = RecordingStubBackend(timeout=20_000)
    url = "stub://"
    if broker == "stub, memcached":
        server = request.getfixturevalue("memcached_server")
        backend = RecordingMemcachedBackend(servers=server.address, namespace=f"s-{uuid4()}", timeout=20_000)
    elif broker != "stub":
        redis_server = request.getfixturevalue("redis_server")
        backend = RecordingRedisBackend(url=redis_server.url, namespace=f"s-{uuid4()}", timeout=20_000)
        url = redis_server.database(1)
    if broker == "rabbitmq":
        url = request.getfixturevalue("rabbitmq_server").url
    stage = Stage(url, backend, position=position, name=f"q-{uuid4()}", retries=retries)
    with stage.working():
        yield stage
    stage.close()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_readers_see_the_states_of_each_scenario(stage: Stage, scenario: Scenario) -> None:
    check_scenario(stage, scenario)


def test_a_message_that_waits_for_its_retry_has_the_exception(stage: Stage) -> None:
    # Given a message that is retried twice, for different reasons
    message_id = stage.send("raise:first", "retry:20", "return")
    # When Dramatiq is done with it
    stage.audit.wait(message_id)
    # Then its status has the exception of the last run, until a run succeeds
    seen = [
        (snapshot.state, snapshot.attempts, snapshot.exception, snapshot.scheduled_at is not None)
        for snapshot in stage.backend.history(message_id)
        if not snapshot.working
    ]
    first, second = {"type": "Boom", "message": "first"}, {"type": "Retry", "message": "later"}
    if stage.retries:
        assert seen == [
            ("queued", 0, None, False),
            ("queued", 1, first, True),
            ("queued", 2, second, True),
            ("completed", 3, None, False),
        ]
    else:
        assert seen == [("queued", 0, None, False), ("failed", 1, first, False)]


def check_scenario(stage: Stage, scenario: Scenario, *, refused: End | None = None) -> None:
    """Check what readers see of a scenario, and of the message that a middleware refuses in it."""
    # Given a worker, and the order of StatusMiddleware and the middleware that makes the difference
    order = [type(middleware).__name__ for middleware in stage.broker.middleware]
    ahead = scenario.cause in order and order.index("StatusMiddleware") < order.index(str(scenario.cause))
    expected = scenario.expected(retries=stage.retries, ahead=ahead)
    if refused is not None and expected.states == "q":
        expected = refused
    # When the scenario is performed
    sent = scenario.perform(stage, scenario)
    if expected.states not in ("", "q"):
        for message_id in sent.values():
            stage.audit.wait(message_id)
    # Then the store has had the states of the scenario, and the message has its end
    ends = {role: expected if role == "it" else scenario.others for role in sent}
    assert {role: end_of(stage, message_id) for role, message_id in sent.items()} == ends
    # And the last of them was in the store when the message was acknowledged or rejected (a delivery that requeues
    # it may be acknowledged after the next delivery)
    last = {message_id: ends[role].states[-1] for role, message_id in sent.items() if len(ends[role].states) > 1}
    assert [message_id for message_id, state in last.items() if state not in stage.at_ack[message_id]] == []


def end_of(stage: Stage, message_id: str) -> End:
    """Return what a reader sees of a message, and check what all statuses of its kind have."""
    states = stage.sequence(message_id)
    if not states:
        return End("", 0)
    last = stage.read(message_id)
    for snapshot in stage.backend.history(message_id):
        check(snapshot)
    exception = last.exception and last.exception["type"]
    return End(states, last.attempts, exception, last.skipped)


def check(snapshot: Snapshot) -> None:
    """Check what holds for every status in every scenario."""
    fields: dict[str, Any] = snapshot.to_dict()
    assert snapshot.enqueued_at is not None
    assert ("finished_at" in fields) is snapshot.finished
    assert ("skipped" in fields) <= snapshot.finished
    assert ("scheduled_at" in fields) <= snapshot.queued
    assert ("heartbeat_at" in fields) <= snapshot.working
    assert ("started_at" in fields) is (snapshot.attempts > 0) or snapshot.queued
    assert not (snapshot.completed and snapshot.exception)
