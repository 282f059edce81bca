"""Memcached, and what only it has."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from dramatiq_status.backend import StatusBackend, now_ms
from dramatiq_status.backends import MemcachedBackend
from dramatiq_status.backends._document import to_value
from dramatiq_status.backends.memcached.item import expiry_of
from dramatiq_status.record import GENERATION, ORIGIN, PROGRESS, RUN_TOKEN, SEQUENCE, STATE, VERSION, Record
from dramatiq_status.testing.conformance import (
    BackendConformance,
    PausableServer,
    enqueue,
    finish,
    outside,
    start,
    write,
)
from dramatiq_status.update import Outcome, Update

from ...servers import MemcachedServer
from .wire import refusing

#: A time-out that no test reaches by chance, in milliseconds.
PATIENT = 20_000


class MemcachedConformance(BackendConformance):
    """The conformance suite on memcached, with and without meta commands."""

    meta = True
    #: Resolution in milliseconds: memcached counts in seconds, and one second is added for the rounding of its clock.
    ttl_resolution = 2000

    @pytest.fixture
    def backend(self, memcached_server: MemcachedServer, memcached_url: str) -> Iterator[MemcachedBackend]:
        backend = MemcachedBackend(servers=memcached_server.address, timeout=PATIENT, meta=self.meta)
        yield backend
        backend.close()

    @pytest.fixture
    def make_backend(self, memcached_server: MemcachedServer) -> Iterator[Callable[..., MemcachedBackend]]:
        made: list[MemcachedBackend] = []

        def make(**parameters: Any) -> MemcachedBackend:
            made.append(
                MemcachedBackend(servers=memcached_server.address, timeout=PATIENT, meta=self.meta, **parameters)
            )
            return made[-1]

        yield make
        for backend in made:
            backend.close()

    @pytest.fixture
    def outage(self, start_server: Any) -> tuple[PausableServer, StatusBackend]:
        server = start_server(MemcachedServer())
        return server, MemcachedBackend(servers=server.address, timeout=300, meta=self.meta)

    @pytest.fixture(autouse=True)
    def find_server(self, memcached_server: MemcachedServer) -> None:
        self.server = memcached_server

    def server_of(self, backend: MemcachedBackend, message_id: str) -> MemcachedServer:
        """Return the server that has a message's item."""
        return self.server

    def ttl_of(self, backend: MemcachedBackend, message_id: str) -> int | None:
        server = self.server_of(backend, message_id)
        # On a busy machine, the server's clock is seconds late.
        time = re.search(rb"STAT time (\d+)", server.ask(b"stats\r\n"))
        assert time is not None
        late = now_ms() - int(time[1]) * 1000
        reply = server.ask(f"mg {backend.namespace}:{message_id} t\r\n".encode()).split()
        return int(reply[1][1:]) * 1000 - late if reply[0] == b"HD" else None

    def set_ttl(self, backend: MemcachedBackend, message_id: str, ttl: int) -> None:
        record = backend.read(message_id)
        assert record is not None
        now = now_ms()
        self._plant(backend, message_id, to_value(record, now + ttl), expiry_of(now + ttl, now))

    def damages(self) -> dict[str, Callable[[Any, str], None]]:
        later = now_ms() + 86_400_000

        def raw(value: bytes) -> Callable[[MemcachedBackend, str], None]:
            return lambda backend, message_id: self._plant(backend, message_id, value)

        def record(fields: Record) -> Callable[[MemcachedBackend, str], None]:
            return raw(to_value(fields, later))

        sound = {STATE: "1", VERSION: "1", ORIGIN: "7", GENERATION: "1", RUN_TOKEN: "1", SEQUENCE: "1"}

        def without(name: str) -> Callable[[MemcachedBackend, str], None]:
            return record({stored: text for stored, text in sound.items() if stored != name})

        return {
            "empty": raw(b""),
            "text": raw(b"x"),
            "number": raw(b"5"),
            "bytes": raw(b"\xff\xfe\r\nEND\r\n"),
            "replies": raw(b"END\r\nEN\r\nVA 2 c1 t1\r\n"),
            "not UTF-8": raw(b"%d\ndramatiq-status 1\ns\n\xff" % later),
            "no expiry": raw(b"dramatiq-status 1\ns\n1\nv\n1\ne\n7\nn\n1"),
            "another format": raw(b"%d\ndramatiq-status 0\ns\n1\nv\n1\ne\n7\nn\n1" % later),
            "half a record": raw(b"%d\ndramatiq-status 1\ns\n1\nv\n1\ne\n7\nn" % later),
            "unknown state": record({**sound, STATE: "4"}),
            "no state": without(STATE),
            "no version": without(VERSION),
            "version that is no number": record({**sound, VERSION: "x"}),
            "run without a sequence number": without(SEQUENCE),
        }

    def too_large(self) -> Update:
        return outside(big='"' + "x" * 1_100_000 + '"')

    def refusing(self, backend: StatusBackend, message_id: str) -> AbstractContextManager[None]:
        assert isinstance(backend, MemcachedBackend)
        return refusing(backend, self.server_of(backend, message_id), message_id)

    def _plant(self, backend: MemcachedBackend, message_id: str, value: bytes, expiry: int = 1000) -> None:
        key = f"{backend.namespace}:{message_id}".encode()
        request = b"set %b 0 %d %d\r\n%b\r\n" % (key, expiry, len(value), value)
        assert self.server_of(backend, message_id).ask(request) == b"STORED\r\n"

    def test_a_run_restores_its_record_after_a_restart_of_the_server(self, start_server: Any, message_id: str) -> None:
        # Given a record on a server that is restarted
        server = start_server(MemcachedServer())
        backend = MemcachedBackend(servers=server.address, timeout=PATIENT, meta=self.meta)
        backend.update_many([(message_id, enqueue(step="1")), (message_id, start(1))])
        server.restart()
        # When its run continues
        outcome = backend.update(message_id, write(1, 2, **{PROGRESS: "5"}))
        # Then the outcome is MISSING, and an update with all values is stored
        assert outcome is Outcome.MISSING
        assert backend.update(message_id, write(1, 2, create=True, **{PROGRESS: "5"})) is Outcome.APPLIED
        backend.close()


class TestMemcached(MemcachedConformance):
    def test_a_run_reads_its_item_once(
        self, memcached_server: MemcachedServer, make_backend: Callable[..., MemcachedBackend], message_id: str
    ) -> None:
        # Given an enqueued message, and a worker that receives it
        sender, worker = make_backend(), make_backend()
        sender.update(message_id, enqueue(step="1"))
        worker.read("warm-up")
        before = commands(memcached_server)
        # When the message is started, continues and ends
        for update in (start(1), write(1, 2, **{PROGRESS: "5"}), finish(1, 3)):
            worker.update(message_id, update)
        # Then the item was read before the first update, and each update was one command
        after = commands(memcached_server)
        assert after["cmd_get"] - before["cmd_get"] == 1
        assert after["cmd_set"] - before["cmd_set"] == 3
        # And all is stored
        record = sender.read(message_id)
        assert record is not None and (record[STATE], record[PROGRESS], record[":step"]) == ("2", "5", "1")

    def test_an_update_that_is_too_large_leaves_the_record(
        self, make_backend: Callable[..., MemcachedBackend], message_id: str
    ) -> None:
        # Given a running message
        backend = make_backend()
        backend.update_many([(message_id, start(1)), (message_id, write(1, 2, step="1"))])
        # When an update does not fit into an item (memcached would delete the item)
        with pytest.raises(ValueError, match="big"):
            backend.update(message_id, write(1, 3, big='"' + "x" * 1_100_000 + '"'))
        # Then the record is unchanged
        record = backend.read(message_id)
        assert record is not None and record[":step"] == "1"

    @pytest.mark.parametrize("servers", [[], 7])
    def test_wrong_servers_raise_an_error(self, servers: Any) -> None:
        # Given an empty list of servers, or a wrong type
        # When a backend is made
        # Then an error is raised at once
        with pytest.raises((TypeError, ValueError)):
            MemcachedBackend(servers=servers)


class TestMemcachedWithoutMeta(MemcachedConformance):
    meta = False


def commands(server: MemcachedServer) -> dict[str, int]:
    """Return the server's counters of commands."""
    lines = server.ask(b"stats\r\n").decode().splitlines()
    found = {parts[1]: parts[2] for parts in map(str.split, lines) if len(parts) == 3}
    return {name: int(found[name]) for name in ("cmd_get", "cmd_set")}
