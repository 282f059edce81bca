"""Valkey: its server, and its client for Python, with and without redis-py beside it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends.redis import RedisBackend
from dramatiq_status.errors import BackendError
from dramatiq_status.testing.conformance import BackendConformance, enqueue

from ..servers import RedisServer, ServerMissing, ValkeyServer, free_port
from .redis_hooks import RedisHooks

valkey = pytest.importorskip("valkey")

#: Time-out in milliseconds that no test reaches by chance, even on a busy machine.
PATIENT = 20_000


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    server = ValkeyServer()
    try:
        server.start()
    except ServerMissing as missing:
        server.close()
        # Not every system on which the tests run has a package of it.
        pytest.skip(str(missing))
    with server:
        yield server


class TestValkey(RedisHooks, BackendConformance):
    @pytest.fixture
    def backend(self, server: ValkeyServer) -> Iterator[RedisBackend]:
        server.reset()
        backend = RedisBackend(client=valkey.Valkey(port=server.port, decode_responses=True), timeout=PATIENT)
        yield backend
        backend.close()

    @pytest.fixture
    def make_backend(self, server: ValkeyServer) -> Iterator[Callable[..., StatusBackend]]:
        made: list[RedisBackend] = []

        def make(**parameters: Any) -> StatusBackend:
            made.append(RedisBackend(client=valkey.Valkey(port=server.port), timeout=PATIENT, **parameters))
            return made[-1]

        yield make
        for backend in made:
            backend.close()

    @pytest.fixture
    def outage(self, server: ValkeyServer) -> Iterator[tuple[ValkeyServer, RedisBackend]]:
        server.reset()
        backend = RedisBackend(client=valkey.Valkey(port=server.port), timeout=300)
        yield server, backend
        backend.close()
        server.reset()

    def test_a_valkey_client_without_a_server_raises_an_error(self) -> None:
        # Given a client of a server that does not run
        backend = RedisBackend(client=valkey.Valkey(port=free_port()), timeout=300)
        for call in (backend.read, lambda m: backend.update(m, enqueue()), backend.delete, backend.subscribe):
            # When a call is made
            # Then the call raises BackendError, as with redis-py
            with pytest.raises(BackendError) as caught:
                call("m")
            assert caught.value.__cause__ is not None


def test_valkeys_client_is_enough(redis_server: RedisServer, redis_url: str) -> None:
    # Given a process that has no redis-py
    script = f"""
import sys
sys.modules["redis"] = None
from dramatiq_status.backends import RedisBackend
from dramatiq_status.testing.conformance import enqueue
for root, parameters in enumerate(({{"url": {redis_url!r}}}, {{"host": "127.0.0.1", "port": {redis_server.port}}})):
    backend = RedisBackend(timeout={PATIENT}, **parameters)
    subscription = backend.subscribe(["m"])
    backend.update("m", enqueue(root))
    print(type(backend.client).__name__, sorted(subscription.wait(20)))
    subscription.close()
"""
    # When it makes a Redis backend from a URL, or from parameters
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    # Then valkey-py is used
    assert (ran.stdout, ran.stderr) == ("Valkey ['m']\n" * 2, "")
