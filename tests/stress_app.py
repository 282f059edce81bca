"""What the ``dramatiq`` command loads for the stress test: one actor, and a count of what is logged."""

from __future__ import annotations

import logging
import os
from typing import Any

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Middleware

from dramatiq_status import StatusMiddleware, current_progress, current_status
from dramatiq_status.backends import RedisBackend

#: Number of increments of each job.
INCREMENTS = 10

#: The Redis lists, in the broker's database, that hold the processes that have booted, and what they logged.
BOOTED = "stress:booted"
LOGGED = "stress:logged"


class Tattler(logging.Handler):
    """Log handler that sends warnings and errors to the test."""

    def __init__(self, client: redis.Redis) -> None:
        super().__init__(logging.WARNING)
        self._client = client

    def emit(self, record: logging.LogRecord) -> None:
        self._client.rpush(LOGGED, f"{record.levelname} {record.name}: {record.getMessage()}")


class TattlerMiddleware(Middleware):
    """Middleware that adds the log handler in each worker process, after Dramatiq has set up its own logging."""

    def after_process_boot(self, broker: Any) -> None:
        client = redis.Redis.from_url(os.environ["STRESS_BROKER"])
        logging.getLogger().addHandler(Tattler(client))
        client.rpush(BOOTED, os.getpid())


def make_broker(broker_url: str, store_url: str) -> RedisBroker:
    """Make the same broker in the workers and in the test. In the store's database, statuses piggyback."""
    # On a busy machine, a call may take longer than the default time-out, which is logged.
    backend = RedisBackend(url=store_url, timeout=20_000)
    broker = RedisBroker(**({"client": backend.broker_client()} if broker_url == store_url else {"url": broker_url}))
    broker.add_middleware(TattlerMiddleware())
    broker.add_middleware(StatusMiddleware(backend=backend))
    return broker


def work(number: int) -> None:
    """Write fields around and between increments."""
    status, progress = current_status(), current_progress()
    status.update(number=number, step="begun")
    for _ in range(INCREMENTS):
        progress.increment()
    status["step"] = "done"


if "STRESS_BROKER" in os.environ:
    dramatiq.set_broker(make_broker(os.environ["STRESS_BROKER"], os.environ["STRESS_STORE"]))
    dramatiq.actor(work)
