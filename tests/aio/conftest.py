"""Fixtures of the tests of event loops."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from dramatiq_status.backends import RedisBackend

from ..conftest import StartServer
from ..servers import RedisServer


@pytest.fixture
def server(start_server: StartServer) -> RedisServer:
    """Return a server that the tests pause and restart."""
    return start_server(RedisServer())


@pytest.fixture
def patient(server: RedisServer) -> Iterator[RedisBackend]:
    """Yield a backend with a time-out that is longer than any pause of a test."""
    with closing(RedisBackend(url=server.url, timeout=20_000)) as backend:
        yield backend


@pytest.fixture
def jobs(redis_url: str) -> Iterator[RedisBackend]:
    """Yield the backend of the jobs that are watched."""
    with closing(RedisBackend(url=redis_url, timeout=20_000)) as backend:
        yield backend
