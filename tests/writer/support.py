"""Stores and buffers for the tests of the writer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dramatiq_status import BackendError
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends import MemcachedBackend, RedisBackend, StubBackend
from dramatiq_status.update import EnqueueId, Outcome, Update
from dramatiq_status.writer import MessageBuffer, Start, Writer

from ..servers import MemcachedServer, RedisServer, Server

ENQUEUE_ID = EnqueueId(7, 1)


class Silent(StubBackend):
    """A store that does not answer. With `others`, it has other servers, which answer."""

    def __init__(self, *, others: bool) -> None:
        super().__init__()
        self.others = others
        self.silent = True
        self.calls: list[int] = []

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        self.calls.append(len(updates))
        if not self.silent:
            return super().update_many(updates)
        if self.others:
            return [Outcome.UNAVAILABLE] * len(updates)
        raise BackendError("It does not answer.")


#: A function that makes a writer with a circuit breaker of its own.
MakeWriter = Callable[[StatusBackend], Writer]


def begin(writer: Writer, name: str = "m", *, throttle: int = 0) -> MessageBuffer:
    """Begin a run of a message."""
    buffer = writer.begin_run(name, run_token=5, enqueue_id=ENQUEUE_ID, throttle=throttle, base=dict)
    buffer.add(Start({}, 1))
    return buffer


#: Milliseconds that a call may take in tests that stop or pause the store.
TIMEOUT = 500


def a_redis(start_server: Any) -> tuple[Server, StatusBackend]:
    server = start_server(RedisServer())
    return server, RedisBackend(url=server.url, timeout=TIMEOUT)


def a_memcached(start_server: Any) -> tuple[Server, StatusBackend]:
    server = start_server(MemcachedServer())
    return server, MemcachedBackend(servers=server.address, timeout=TIMEOUT)
