"""Every scenario with the statuses on a Redis Cluster, and on a master of Sentinels."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest
import redis

from ..servers import RedisCluster, RedisSentinels, RedisServer
from .recorder import RecordingRedisBackend
from .scenarios import SCENARIOS, Scenario
from .stage import Stage
from .test_scenarios import end_of


@pytest.fixture(scope="module", params=["cluster", "sentinels"])
def stage(request: pytest.FixtureRequest, redis_server: RedisServer) -> Iterator[Stage]:
    """Yield one stage and its worker for all scenarios; each scenario reads its own messages only."""
    namespace = f"s-{uuid4()}"
    if request.param == "cluster":
        cluster: RedisCluster = request.getfixturevalue("redis_cluster")
        cluster.reset()
        client = redis.RedisCluster(*cluster.addresses[0])
        backend = RecordingRedisBackend(client=client, namespace=namespace, timeout=20_000)
    else:
        sentinels: RedisSentinels = request.getfixturevalue("redis_sentinels")
        sentinels.reset()
        backend = RecordingRedisBackend(
            sentinels=sentinels.addresses, service_name=sentinels.service_name, namespace=namespace, timeout=20_000
        )
    stage = Stage(redis_server.database(1), backend, name=f"q-{uuid4()}")
    with stage.working():
        yield stage
    stage.close()
    backend.client.close()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_readers_see_the_states_of_each_scenario(stage: Stage, scenario: Scenario) -> None:
    # Given a worker
    expected = scenario.expected(retries=True, ahead=False)
    # When the scenario is performed
    sent = scenario.perform(stage, scenario)
    if expected.states not in ("", "q"):
        for message_id in sent.values():
            stage.audit.wait(message_id)
    # Then the store has had the states of the scenario, and the message has its end
    seen = {role: end_of(stage, message_id) for role, message_id in sent.items()}
    assert seen == {role: expected if role == "it" else scenario.others for role in sent}
