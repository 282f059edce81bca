"""Redis Cluster: three nodes, and slots that move."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends.redis import RedisBackend
from dramatiq_status.testing.conformance import BackendConformance

from ..servers import RedisCluster
from .redis_hooks import RedisHooks

#: Enough for a busy machine: most tests are not about time-outs.
PATIENT = 20_000


@pytest.fixture
def client(redis_cluster: RedisCluster) -> Iterator[redis.RedisCluster]:
    """A client of an empty cluster."""
    redis_cluster.reset()
    (host, port), *_ = redis_cluster.addresses
    client = redis.RedisCluster(host, port, decode_responses=True)
    yield client
    client.close()


@pytest.fixture
def backend(client: redis.RedisCluster) -> Iterator[RedisBackend]:
    backend = RedisBackend(client=client, timeout=PATIENT)
    yield backend
    backend.close()


class TestRedisCluster(RedisHooks, BackendConformance):
    @pytest.fixture
    def backend(self, backend: RedisBackend) -> RedisBackend:
        return backend

    @pytest.fixture
    def make_backend(
        self, client: redis.RedisCluster, redis_cluster: RedisCluster
    ) -> Iterator[Callable[..., StatusBackend]]:
        made: list[RedisBackend] = []

        def make(**parameters: Any) -> StatusBackend:
            made.append(RedisBackend(cluster_nodes=redis_cluster.addresses, timeout=PATIENT, **parameters))
            return made[-1]

        yield make
        for backend in made:
            backend.close()

    @pytest.fixture
    def outage(self, redis_cluster: RedisCluster) -> Iterator[tuple[RedisCluster, RedisBackend]]:
        redis_cluster.reset()
        backend = RedisBackend(cluster_nodes=redis_cluster.addresses, timeout=300)
        yield redis_cluster, backend
        backend.close()
        redis_cluster.resume()
