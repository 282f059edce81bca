"""An actor for tests in which only the producer or only the worker has the middleware."""

from __future__ import annotations

import os
import sys

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Middleware, Retries

#: Message options of a process with the middleware that are no plain JSON.
OPTIONS = {"status": {"pair": (1, 2)}, "status_includes": {"message"}}


def make_broker(broker_url: str, *middleware: Middleware) -> dramatiq.Broker:
    """Make the same broker and actor in the worker and in the test."""
    broker = RedisBroker(url=broker_url, middleware=[Retries(min_backoff=1, max_backoff=2), *middleware])
    dramatiq.actor(fail_once, broker=broker, max_retries=1)
    return broker


def fail_once(list_name: str) -> None:
    """Fail in the first run, and signal the second one to the test."""
    client = broker.client  # type: ignore[attr-defined]
    if client.incr(f"{list_name}:runs") == 1:
        raise ValueError("once")
    client.rpush(list_name, "done")


# The broker that the command loads.
if "MIXED_BROKER" in os.environ:
    if os.environ["MIXED_ENCODER"] == "pickle":
        dramatiq.set_encoder(dramatiq.PickleEncoder())
    if "MIXED_STORE" in os.environ:
        from dramatiq_status import StatusMiddleware
        from dramatiq_status.backends import backend_from_url

        ours = [StatusMiddleware(backend=backend_from_url(os.environ["MIXED_STORE"], timeout=20_000))]
    else:
        # The package is not installed here.
        sys.modules["dramatiq_status"] = None  # type: ignore[assignment]
        ours = []
    broker = make_broker(os.environ["MIXED_BROKER"], *ours)
    dramatiq.set_broker(broker)
