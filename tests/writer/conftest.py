"""Fixtures of the tests of the writer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dramatiq_status.backend import StatusBackend
from dramatiq_status.circuit_breaker import CircuitBreaker
from dramatiq_status.writer import Writer

from ..recording import PATIENCE
from .support import MakeWriter


@pytest.fixture
def make_writer() -> Iterator[MakeWriter]:
    """Yield a function that makes writers, which are drained after the test."""
    made: list[Writer] = []

    def make(backend: StatusBackend) -> Writer:
        made.append(Writer(backend, CircuitBreaker(type(backend).__name__)))
        return made[-1]

    yield make
    for writer in made:
        writer.drain(PATIENCE)


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let writers try a store that is down a thousand times a second."""
    monkeypatch.setattr("dramatiq_status.circuit_breaker.FIRST_PAUSE", 0.001)
    monkeypatch.setattr("dramatiq_status.circuit_breaker.LONGEST_PAUSE", 0.001)
