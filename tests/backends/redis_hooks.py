"""Hooks of the conformance suite for Redis backends: they read and write the server without the backend."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends.redis import RedisBackend


class RedisHooks:
    """Hooks for a backend whose client can access all keys."""

    def ttl_of(self, backend: StatusBackend, message_id: str) -> int | None:
        assert isinstance(backend, RedisBackend)
        found = int(backend.client.pttl(backend.keys.key_of(message_id)))
        # PTTL returns -1 for a key without an expiry, and every record must have one.
        assert found != -1
        return None if found < 0 else found

    def set_ttl(self, backend: StatusBackend, message_id: str, ttl: int) -> None:
        assert isinstance(backend, RedisBackend)
        assert backend.client.pexpire(backend.keys.key_of(message_id), ttl)

    def refusals(self, backend: StatusBackend) -> dict[str, AbstractContextManager[Any]]:
        assert isinstance(backend, RedisBackend)
        client = backend.client
        nodes = {"target_nodes": client.ALL_NODES} if hasattr(client, "nodes_manager") else {}

        @contextmanager
        def forbidden(*commands: str) -> Iterator[None]:
            client.execute_command("ACL SETUSER", "default", *(f"-{command}" for command in commands), **nodes)
            try:
                yield
            finally:
                client.execute_command("ACL SETUSER", "default", *(f"+{command}" for command in commands), **nodes)

        return {"NOPERM": forbidden("hgetall", "evalsha")}

    @contextmanager
    def refusing(self, backend: StatusBackend, message_id: str) -> Iterator[None]:
        # A user who may use the keys of the index, and those of other messages.
        assert isinstance(backend, RedisBackend)
        client = backend.client
        nodes = {"target_nodes": client.ALL_NODES} if hasattr(client, "nodes_manager") else {}
        prefix, _, _ = backend.keys.key_of(message_id).partition(message_id)
        # On a cluster, the pattern allows the hash tags of all shards.
        allowed = (f"~{re.sub('{.*}', '{*}', prefix)}[^{message_id[0]}]*", f"~{backend.namespace}[^:]*")
        client.execute_command("ACL SETUSER", "default", "resetkeys", *allowed, **nodes)
        try:
            yield
        finally:
            client.execute_command("ACL SETUSER", "default", "resetkeys", "~*", **nodes)

    def damages(self) -> dict[str, Callable[[Any, str], None]]:
        def hash_of(**fields: str) -> Callable[[RedisBackend, str], None]:
            return lambda backend, message_id: (
                backend.client.hset(backend.keys.key_of(message_id), mapping=fields) and None
            )

        def a_string(backend: RedisBackend, message_id: str) -> None:
            backend.client.set(backend.keys.key_of(message_id), "x")

        def a_list(backend: RedisBackend, message_id: str) -> None:
            backend.client.lpush(backend.keys.key_of(message_id), "x")

        return {
            "string": a_string,
            "list": a_list,
            "foreign hash": hash_of(foo="bar"),
            "unknown state": hash_of(s="4", v="1", e="7", n="1"),
            "state of more than a digit": hash_of(s="01", v="1", e="7", n="1"),
            "no state": hash_of(v="1", e="7", n="1", r="1", q="1"),
            "no version": hash_of(s="1", e="7", n="1", r="1", q="1"),
            "version that is no number": hash_of(s="1", v="x", e="7", n="1", r="1", q="1"),
            "no origin": hash_of(s="1", v="1", n="1", r="1", q="1"),
            "no number": hash_of(s="1", v="1", e="7", r="1", q="1"),
            "run without a sequence number": hash_of(s="1", v="1", e="7", n="1", r="1"),
            "sequence that is no number": hash_of(s="1", v="1", e="7", n="1", r="1", q="x"),
            "delay that is no number": hash_of(s="0", v="1", e="7", n="1", r="1", q="1", D="x"),
            "live ttl that is no number": hash_of(s="0", v="1", e="7", n="1", r="1", q="1", L="x"),
        }


class FixedClock:
    """A server's clock that stands still."""

    known = True

    def __init__(self, now: int) -> None:
        self._now = now

    def now(self) -> int:
        return self._now

    def texts(self) -> tuple[str, str]:
        return str(self._now), str(self._now * 1000)
