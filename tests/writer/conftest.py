"""Fixtures of the tests of the writer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dramatiq_status.writer import Writer

from ..recording import PATIENCE


@pytest.fixture
def writers() -> Iterator[list[Writer]]:
    made: list[Writer] = []
    yield made
    for writer in made:
        writer.drain(PATIENCE)
