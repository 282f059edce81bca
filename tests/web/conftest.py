"""Fixtures of the web's tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from dramatiq_status.backends import RedisBackend

from ..jobs import Job


@pytest.fixture
def backend(redis_url: str) -> Iterator[RedisBackend]:
    """An empty Redis."""
    with closing(RedisBackend(url=redis_url, timeout=5_000)) as made:
        yield made


@pytest.fixture
def job(backend: RedisBackend) -> Job:
    """A job that works."""
    return Job(backend).enqueue().start().write(step="reading", user_id=42)
