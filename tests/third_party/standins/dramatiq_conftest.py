"""The fixtures of Dramatiq's tests, which its source distribution lacks."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.rate_limits import backends as rate_limits
from dramatiq.results import backends as results

BACKENDS = ["redis", "stub"]


def in_place(broker: dramatiq.Broker) -> Iterator[dramatiq.Broker]:
    """Make a broker the default one for the length of a test, empty before and after."""
    broker.flush_all()
    broker.emit_after("process_boot")
    dramatiq.set_broker(broker)
    yield broker
    broker.flush_all()
    broker.close()


@pytest.fixture
def stub_broker() -> Iterator[dramatiq.Broker]:
    yield from in_place(StubBroker())


@pytest.fixture
def redis_broker() -> Iterator[dramatiq.Broker]:
    broker = RedisBroker()
    broker.client.flushall()
    yield from in_place(broker)


@pytest.fixture
def rabbitmq_broker() -> Iterator[dramatiq.Broker]:
    yield from in_place(RabbitmqBroker(host="127.0.0.1", max_priority=10))


def at_work(broker: dramatiq.Broker, timeout: int) -> Iterator[dramatiq.Worker]:
    worker = dramatiq.Worker(broker, worker_timeout=timeout, worker_threads=32)
    worker.start()
    yield worker
    worker.stop()


@pytest.fixture
def stub_worker(stub_broker: dramatiq.Broker) -> Iterator[dramatiq.Worker]:
    yield from at_work(stub_broker, 100)


@pytest.fixture
def redis_worker(redis_broker: dramatiq.Broker) -> Iterator[dramatiq.Worker]:
    yield from at_work(redis_broker, 1000)


@pytest.fixture
def rabbitmq_worker(rabbitmq_broker: dramatiq.Broker) -> Iterator[dramatiq.Worker]:
    yield from at_work(rabbitmq_broker, 1000)


@pytest.fixture(params=BACKENDS)
def rate_limiter_backend(request: pytest.FixtureRequest) -> Any:
    if request.param == "stub":
        return rate_limits.StubBackend()
    backend = rate_limits.RedisBackend()
    backend.client.flushall()
    return backend


@pytest.fixture
def redis_result_backend() -> Any:
    backend = results.RedisBackend()
    backend.client.flushall()
    return backend


@pytest.fixture(params=BACKENDS)
def result_backend(request: pytest.FixtureRequest) -> Any:
    return results.StubBackend() if request.param == "stub" else request.getfixturevalue("redis_result_backend")


@pytest.fixture
def start_cli() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Yield a function that starts the command with a broker. The command ends with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(broker: str, *, extra_args: Any = (), **options: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-m", "dramatiq", broker, *extra_args], **options)
        started.append(process)
        # The command does not announce that it is ready.
        time.sleep(1)
        return process

    yield start
    for process in started:
        process.terminate()
    for process in started:
        process.wait(60)
