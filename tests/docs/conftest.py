"""Fixtures that pages use by name: a page says ``.. use: broker, orders``."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import AsyncIO

from dramatiq_status import StatusMiddleware, StatusRegistry, current_progress, current_status
from dramatiq_status.backends import StubBackend

from ..recording import PATIENCE, eventually, make_stub_broker, working


@pytest.fixture
def broker() -> StubBroker:
    """The default broker, in memory as its statuses are."""
    broker = make_stub_broker()
    broker.add_middleware(AsyncIO())
    broker.add_middleware(StatusMiddleware(backend=StubBackend()))
    dramatiq.set_broker(broker)
    return broker


@pytest.fixture
def orders() -> dict[str, Any]:
    """Functions of the application that pages are about."""
    names = ("insert", "check", "index", "shrink", "fetch")
    return {
        "read_rows": lambda path: list(range(100)),
        "iter_rows": lambda path: iter(range(500)),
        **dict.fromkeys(names, lambda value: None),
    }


@pytest.fixture
def running_job(broker: StubBroker) -> Iterator[dict[str, Any]]:
    """A job of the actor ``import_rows`` at 42 of 100: its ``message``, its ``message_id``, and ``finish()``, which
    lets it end.
    """
    go_on = threading.Event()

    @dramatiq.actor(broker=broker, actor_name="import_rows")
    def import_rows() -> None:
        current_progress().increment(42)
        current_status()["step"] = "reading"
        assert go_on.wait(PATIENCE)
        current_progress().finish()

    def finish() -> None:
        go_on.set()
        broker.join("default")

    with working(broker):
        message = import_rows.send()
        eventually(lambda: StatusRegistry.get(message).get("step"))
        yield {"message": message, "message_id": message.message_id, "finish": finish}
        finish()
