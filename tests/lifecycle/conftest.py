"""Fixtures of the tests of lifecycles."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends import MemcachedBackend, RedisBackend


@pytest.fixture(params=["redis", "memcached"])
def store(request: pytest.FixtureRequest) -> Iterator[StatusBackend]:
    """Yield the backend of a store behind a socket, with a time-out that is long enough for a busy machine."""
    backend: StatusBackend
    if request.param == "redis":
        backend = RedisBackend(url=request.getfixturevalue("redis_url"), timeout=20_000)
    else:
        request.getfixturevalue("memcached_url")
        server = request.getfixturevalue("memcached_server")
        backend = MemcachedBackend(servers=server.address, timeout=20_000)
    yield backend
    backend.close()
