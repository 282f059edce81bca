"""The fixtures of dramatiq-abort's tests, which its source distribution lacks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq_abort.backends import StubBackend

from .fixtures import in_place, stub_worker

__all__ = ["stub_worker"]


@pytest.fixture
def stub_broker() -> Iterator[dramatiq.Broker]:
    # join() shall not raise the exception of an aborted job.
    yield from in_place(StubBroker(fail_fast_default=False))


@pytest.fixture
def stub_event_backend() -> Any:
    return StubBackend()


@pytest.fixture
def event_backend(stub_event_backend: Any) -> Any:
    return stub_event_backend
