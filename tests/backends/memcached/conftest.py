"""Fixtures of the tests of the memcached backend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from dramatiq_status.backends.memcached import MemcachedBackend

from ...servers import MemcachedServer
from .wire import PATIENT, Make, Wire


@pytest.fixture
def server(memcached_server: MemcachedServer) -> MemcachedServer:
    memcached_server.reset()
    return memcached_server


@pytest.fixture
def make(server: MemcachedServer) -> Iterator[Make]:
    made: list[MemcachedBackend] = []

    def make_one(**parameters: Any) -> MemcachedBackend:
        made.append(MemcachedBackend(**{"servers": server.address, "timeout": PATIENT, **parameters}))
        return made[-1]

    yield make_one
    for backend in made:
        backend.close()


@pytest.fixture
def backend(make: Make) -> MemcachedBackend:
    return make()


@pytest.fixture
def message_id() -> str:
    return uuid4().hex


@pytest.fixture
def wire(server: MemcachedServer) -> Iterator[Wire]:
    wire = Wire(server)
    yield wire
    wire.close()


@pytest.fixture
def wired(wire: Wire, make: Make) -> MemcachedBackend:
    """Return a connected backend behind `wire`."""
    backend = make(servers=wire.address)
    backend.read("warm")
    return backend
