"""Fixtures for all tests. There is one real server of each kind for the whole run, and a fixture of a URL resets it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Protocol, TypeVar

import pytest
from cachelib import SimpleCache
from hypothesis import HealthCheck, settings

from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends import CacheBackend, MemcachedBackend, RedisBackend, SQLiteBackend, StubBackend

from .servers import (
    MemcachedServer,
    RabbitmqServer,
    RedisCluster,
    RedisSentinels,
    RedisServer,
    Server,
    ServerMissing,
    Servers,
)

# The asserts of this package then show the compared values, as the asserts of test files do.
pytest.register_assert_rewrite("dramatiq_status.testing.conformance")

ServerT = TypeVar("ServerT", bound="Server | Servers")


class StartServer(Protocol):
    """Type of the fixture `start_server`."""

    def __call__(self, server: ServerT) -> ServerT: ...


# Most property tests use real servers, so the duration of an example has no meaning.
settings.register_profile("servers", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("servers")


#: Fixtures that start servers, and parameters of tests for which fixtures start one.
SERVERS = {"start_server", "redis_server", "redis_cluster", "redis_sentinels", "memcached_server", "rabbitmq_server"}
STORES = {"redis", "memcached", "redis_url", "memcached_url"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a server, so that ``-m "not server"`` runs the others."""
    for item in items:
        case = getattr(item, "callspec", None)
        parameters = [] if case is None else [value for value in case.params.values() if isinstance(value, str)]
        if SERVERS.intersection(getattr(item, "fixturenames", ())) or STORES.intersection(parameters):
            item.add_marker("server")


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> Iterator[None]:
    """Let the processes that tests start be interrupted.

    A process that a shell has put into the background ignores Ctrl-C. Its child processes inherit this.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def started(server: ServerT) -> ServerT:
    """Start a server. If its program is missing, the test is skipped, or fails under CI=true."""
    try:
        return server.start()
    except ServerMissing as missing:
        server.close()
        if os.environ.get("CI", "").lower() in {"1", "true"}:
            raise
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    with started(RedisServer()) as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[RedisCluster]:
    """Yield three nodes, with the data of earlier tests: see `reset`."""
    with started(RedisCluster()) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def redis_sentinels() -> Iterator[RedisSentinels]:
    """Yield a master, its replica and three Sentinels, with the data of earlier tests: see `reset`."""
    with started(RedisSentinels()) as sentinels:
        yield sentinels


@pytest.fixture(scope="session")
def memcached_server() -> Iterator[MemcachedServer]:
    with started(MemcachedServer()) as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[RabbitmqServer]:
    with started(RabbitmqServer()) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """Return the URL of an empty Redis database without scripts."""
    redis_server.reset()
    return redis_server.url


@pytest.fixture
def redis_broker_url(redis_url: str, redis_server: RedisServer) -> str:
    """Return the URL of another empty database of the server of `redis_url`, for a broker beside the statuses."""
    return redis_server.database(1)


@pytest.fixture
def memcached_url(memcached_server: MemcachedServer) -> str:
    """Return the URL of an empty memcached."""
    memcached_server.reset()
    return memcached_server.url


@pytest.fixture
def rabbitmq_url(rabbitmq_server: RabbitmqServer) -> str:
    """Return the URL of a running RabbitMQ with the queues of earlier tests. A test uses its own names of queues."""
    rabbitmq_server.reset()
    return rabbitmq_server.url


def _make_backend(request: pytest.FixtureRequest, tmp_path: Path) -> StatusBackend:
    """Create the backend of an empty store, of the kind that the fixture's parameter names."""
    if request.param == "stub":
        return StubBackend()
    if request.param == "redis":
        return RedisBackend(url=request.getfixturevalue("redis_url"), timeout=20_000)
    if request.param == "memcached":
        request.getfixturevalue("memcached_url")
        return MemcachedBackend(servers=request.getfixturevalue("memcached_server").address, timeout=20_000)
    if request.param == "sqlite":
        return SQLiteBackend(tmp_path / "status.db", timeout=20_000)
    return CacheBackend(SimpleCache(threshold=0), timeout=20_000)


@pytest.fixture(params=["stub", "redis", "memcached", "sqlite", "cache"])
def every_backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StatusBackend]:
    """Yield the backend of an empty store of each kind, one after the other."""
    with closing(_make_backend(request, tmp_path)) as made:
        yield made


@pytest.fixture(params=["redis", "memcached", "sqlite"])
def shared_backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StatusBackend]:
    """Yield the backend of an empty store of each kind that processes can share, one after the other."""
    with closing(_make_backend(request, tmp_path)) as made:
        yield made


@pytest.fixture(params=["stub", "memcached", "redis"])
def polled_backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StatusBackend]:
    """Yield the backend of an empty store of three kinds, one after the other. Watchers poll it in short intervals."""
    with closing(_make_backend(request, tmp_path)) as made:
        made.poll_interval = (1, 20)
        yield made


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Yield a function that starts a server for one test: `start_server(RedisServer("--maxmemory", "2mb"))`."""
    with ExitStack() as stack:

        def start(server: ServerT) -> ServerT:
            stack.callback(started(server).close)
            return server

        yield start
