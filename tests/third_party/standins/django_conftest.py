"""The fixtures of django_dramatiq's tests, which its source distribution lacks."""

from __future__ import annotations

from collections.abc import Iterator

import dramatiq
import pytest


@pytest.fixture(autouse=True)
def broker() -> Iterator[dramatiq.Broker]:
    """Yield the one broker of the project; what a test adds to it goes with the test."""
    broker = dramatiq.get_broker()
    actors, middleware = dict(broker.actors), list(broker.middleware)
    broker.flush_all()
    yield broker
    broker.flush_all()
    broker.actors, broker.middleware = actors, middleware


@pytest.fixture
def worker(broker: dramatiq.Broker) -> Iterator[dramatiq.Worker]:
    worker = dramatiq.Worker(broker, worker_timeout=100)
    worker.start()
    yield worker
    worker.stop()
