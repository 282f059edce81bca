"""Redis, and what only it has."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from uuid import uuid4

import fakeredis
import pytest
import redis
import redis.asyncio
import valkey.asyncio

from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends.redis import RedisBackend
from dramatiq_status.backends.redis.operations import READS_PER_CALL, UPDATES_PER_CALL
from dramatiq_status.backends.redis.requests import ServerError
from dramatiq_status.backends.redis.script import UPDATE
from dramatiq_status.checks import MAX_DURATION
from dramatiq_status.errors import BackendError
from dramatiq_status.record import HEARTBEAT_AT, PROGRESS, UPDATED_AT, number_text
from dramatiq_status.testing.conformance import (
    BackendConformance,
    enqueue,
    finish,
    heartbeat,
    outside,
    start,
    together,
    write,
)
from dramatiq_status.update import Outcome

from ..servers import RedisServer, open_sockets
from .redis_hooks import RedisHooks

#: Time-out of the backends, in milliseconds, that no test reaches by chance on a busy machine.
PATIENT = 20_000


@pytest.fixture
def backend(redis_url: str) -> Iterator[RedisBackend]:
    backend = RedisBackend(url=redis_url, timeout=PATIENT)
    yield backend
    backend.close()


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


class TestRedis(RedisHooks, BackendConformance):
    @pytest.fixture
    def backend(self, backend: RedisBackend) -> RedisBackend:
        return backend

    @pytest.fixture
    def make_backend(self, redis_url: str) -> Iterator[Callable[..., StatusBackend]]:
        made: list[RedisBackend] = []

        def make(**parameters: Any) -> StatusBackend:
            made.append(RedisBackend(url=redis_url, timeout=PATIENT, **parameters))
            return made[-1]

        yield make
        for backend in made:
            backend.close()

    @pytest.fixture
    def outage(self, start_server: Callable[[RedisServer], RedisServer]) -> Iterator[tuple[RedisServer, RedisBackend]]:
        server = start_server(RedisServer())
        backend = RedisBackend(url=server.url, timeout=300)
        yield server, backend
        backend.close()

    # The driver, and the server

    def test_a_backend_takes_a_client(self, redis_url: str, message_id: str) -> None:
        # Given a client with settings
        with redis.Redis.from_url(redis_url, decode_responses=False, encoding="latin-1") as client:
            backend = RedisBackend(client=client, timeout=PATIENT)
            # When a backend is made with it
            backend.update(message_id, enqueue(step='"žluť"'))
            # Then records can be written and read
            record = backend.read(message_id)
        assert record is not None and record[":step"] == '"žluť"'

    @pytest.mark.parametrize("protocol", [2, 3])
    def test_both_versions_of_the_protocol_work(self, redis_url: str, message_id: str, protocol: int) -> None:
        # Given a client with a certain version of the protocol
        with redis.Redis.from_url(redis_url, protocol=protocol) as client:
            backend = RedisBackend(client=client, timeout=PATIENT)
            # When a record is written
            backend.update(message_id, enqueue(step="1"))
            # Then it can be read
            record = backend.read(message_id)
            backend.close()
        assert record is not None and record[":step"] == "1"

    def test_connection_parameters_replace_a_url(
        self, redis_server: RedisServer, redis_url: str, message_id: str
    ) -> None:
        # Given connection parameters in place of a URL
        backend = RedisBackend(host="127.0.0.1", port=redis_server.port, timeout=PATIENT)
        # When a record is written
        outcome = backend.update(message_id, enqueue())
        backend.close()
        # Then it is stored in the database that they name
        assert outcome is Outcome.APPLIED and RedisBackend(url=redis_url, timeout=PATIENT).read(message_id) is not None

    def test_a_flushed_script_is_loaded_again(
        self, backend: RedisBackend, client: redis.Redis, message_id: str
    ) -> None:
        # Given a server that has forgotten the script
        backend.update(message_id, enqueue())
        client.script_flush()
        # When an update is written
        outcome = backend.update(message_id, start(1))
        # Then the script is loaded again
        assert outcome is Outcome.APPLIED and client.script_exists(UPDATE.sha) == [True]

    def test_a_script_that_is_flushed_between_begin_and_end_is_loaded_again(
        self, backend: RedisBackend, client: redis.Redis, message_id: str
    ) -> None:
        # Given a server without the script
        client.script_flush()
        # When an update is begun and completed
        complete = backend.begin_update(message_id, enqueue())
        # Then the script is loaded, and the update is stored
        assert complete() is Outcome.APPLIED

    def test_a_closed_connection_is_replaced(self, backend: RedisBackend, client: redis.Redis, message_id: str) -> None:
        # Given a connection in use that the server has closed
        backend.update(message_id, enqueue())
        kill_others(client)
        # When an update is written
        # Then another connection is opened
        assert backend.update(message_id, start(1)) is Outcome.APPLIED

    def test_an_increment_is_not_sent_twice(self, backend: RedisBackend, client: redis.Redis, message_id: str) -> None:
        # Given a connection that the server has closed, so that it is unknown whether the last request was carried out
        backend.update(message_id, start(1))
        kill_others(client)
        # When an increment from outside is written, which has no sequence number
        # Then the call raises an error and does not repeat the increment
        with pytest.raises(BackendError):
            backend.update(message_id, outside(increment=1))

    def test_an_error_of_the_server_is_the_cause(
        self, backend: RedisBackend, client: redis.Redis, message_id: str
    ) -> None:
        # Given a server that refuses further data
        maxmemory = client.config_get("maxmemory")["maxmemory"]
        client.config_set("maxmemory", 1)
        try:
            # When an update is written
            with pytest.raises(BackendError) as caught:
                backend.update(message_id, enqueue())
        finally:
            client.config_set("maxmemory", maxmemory)
        # Then the server's error is the cause of the BackendError, and the next update works
        assert isinstance(caught.value.__cause__, ServerError)
        assert (backend.read(message_id), backend.update(message_id, enqueue())) == (None, Outcome.APPLIED)

    def test_a_wrong_password_raises(self, start_server: Callable[[RedisServer], RedisServer], message_id: str) -> None:
        # Given a server that requires a password
        class Locked(RedisServer):
            # The server replies to the health check with an error until the password is set; any reply means that it is
            # up.
            hello = (b"PING\r\n", b"-NOAUTH")

        server = start_server(Locked("--requirepass", "secret"))
        # When the backend sends a wrong one
        backend = RedisBackend(url=server.url.replace("redis://", "redis://:wrong@"), timeout=PATIENT)
        # Then the call raises BackendError
        with pytest.raises(BackendError):
            backend.read(message_id)

    def test_connections_are_used_again(self, backend: RedisBackend, client: redis.Redis, message_id: str) -> None:
        # Given a backend that many threads have used at once
        together(*[lambda: [backend.read(message_id) for _ in range(20)] and None] * 8)
        before = len(client.client_list())
        # When it is used again
        for _ in range(100):
            backend.read(message_id)
        # Then no further connection is open, and at most one for each thread
        assert len(client.client_list()) == before <= 8 + 1

    def test_a_dead_threads_connection_is_used_again(
        self, backend: RedisBackend, client: redis.Redis, message_id: str
    ) -> None:
        # Other tests' clients may still be connected: redis-py 5.0.0 closes them no earlier than they are collected
        others = {connection["id"] for connection in client.client_list()}
        # Given threads that use the backend and end, one after the other
        for _ in range(20):
            thread = threading.Thread(target=backend.read, args=(message_id,))
            thread.start()
            thread.join()
        # When the connections are counted
        # Then there is one connection
        assert len({connection["id"] for connection in client.client_list()} - others) == 1

    def test_a_backend_that_is_gone_leaves_no_connection_open(self, redis_url: str, message_id: str) -> None:
        # Given a backend that was used
        backend = RedisBackend(url=redis_url, timeout=PATIENT)
        backend.read(message_id)
        used = open_sockets(*(link._connection._sock.fileno() for link in backend.transport.pool._idle))
        assert len(used) == 1
        # When the last reference to the backend is gone
        del backend
        gc.collect()
        # Then its connection is closed
        assert not used & open_sockets()

    @pytest.mark.parametrize(
        "updates, calls", [(1, 1), (UPDATES_PER_CALL, 1), (UPDATES_PER_CALL + 1, 2)], ids=["one", "full", "one more"]
    )
    def test_round_trips_of_updates(
        self, backend: RedisBackend, client: redis.Redis, message_id: str, updates: int, calls: int
    ) -> None:
        # Given a loaded script
        backend.update(message_id, enqueue())
        before = calls_of(client, "evalsha")
        # When updates are written
        backend.update_many([(message_id, outside(step="1"))] * updates)
        # Then they take the expected number of script calls
        assert calls_of(client, "evalsha") - before == calls

    def test_many_more_reads_than_a_call_takes(self, backend: RedisBackend) -> None:
        # Given two records that are far apart
        ids = [str(n) for n in range(2 * READS_PER_CALL + 1)]
        backend.update_many([(ids[0], enqueue(origin=1)), (ids[-1], enqueue(origin=2))])
        # When they are read in one call, with all ids between them
        found = backend.read_many(ids)
        # Then each record is in its place
        assert [(n, record["e"]) for n, record in enumerate(found) if record] == [(0, "1"), (2 * READS_PER_CALL, "2")]

    # The script

    def test_timestamps_come_from_the_server(self, backend: RedisBackend, client: redis.Redis, message_id: str) -> None:
        # Given the time of the server
        seconds, microseconds = client.time()
        before = seconds * 1000 + microseconds // 1000
        # When a record is written, and its worker sends a heartbeat
        backend.update_many([(message_id, start(1)), (message_id, heartbeat(1))])
        # Then its timestamps are whole milliseconds by the server's clock
        seconds, microseconds = client.time()
        after = seconds * 1000 + microseconds // 1000
        record = backend.read(message_id)
        assert record is not None
        assert before <= int(record[UPDATED_AT]) <= int(record[HEARTBEAT_AT]) <= after

    @pytest.mark.parametrize("write_first", [False, True])
    def test_a_backend_uses_the_clock_of_the_server(
        self, redis_url: str, message_id: str, monkeypatch: pytest.MonkeyPatch, write_first: bool
    ) -> None:
        # Given a host whose clock is an hour behind the server's
        right = time.time
        monkeypatch.setattr(time, "time", lambda: right() - 3600)
        with closing(RedisBackend(url=redis_url, timeout=PATIENT)) as backend:
            # When the backend makes its first call
            if write_first:
                backend.update(message_id, enqueue())
            else:
                backend.read(message_id)
            # Then the backend uses the server's clock, and so do its updates
            backend.update_many([(message_id, start(1)), (message_id, heartbeat(1))])
            record = backend.read(message_id)
            assert record is not None
            for timestamp in (backend.now(), int(record[UPDATED_AT]), int(record[HEARTBEAT_AT])):
                assert abs(timestamp / 1000 - right()) < 60

    def test_the_longest_times_to_live(self, backend: RedisBackend, message_id: str) -> None:
        # Given a message with a live_ttl of a hundred years
        backend.update(message_id, enqueue(L=str(MAX_DURATION)))
        left = [self.ttl_of(backend, message_id)]
        # When it runs, and its status_ttl is a hundred years, too
        backend.update_many([(message_id, start(1, L=str(MAX_DURATION))), (message_id, finish(1, ttl=MAX_DURATION))])
        left.append(self.ttl_of(backend, message_id))
        # Then Redis stores these times
        assert all(0 <= MAX_DURATION - (ttl or 0) < 60_000 for ttl in left)

    @pytest.mark.parametrize(
        "steps", [[0.1] * 10, [0.5, 0.5], [1e-9, 1], [2**53 - 1], [-3, 1.5], [1e15, 0.25], [7, -7]], ids=str
    )
    def test_sums_are_those_of_python(self, backend: RedisBackend, message_id: str, steps: list[float]) -> None:
        # Given a progress
        backend.update(message_id, start(1))
        # When numbers are added to it
        backend.update_many([(message_id, write(1, 2 + n, increment=step)) for n, step in enumerate(steps)])
        # Then the sum is Python's, and an integer if it is whole
        total: float = 0
        for step in steps:
            total += step
        record = backend.read(message_id)
        assert record is not None and json.loads(record[PROGRESS]) == total
        assert ("." in record[PROGRESS] or "e" in record[PROGRESS]) == (
            "." in number_text(total) or "e" in number_text(total)
        )

    def test_a_small_job_keeps_its_compact_encoding(
        self, backend: RedisBackend, client: redis.Redis, message_id: str
    ) -> None:
        # Given a message with the usual fields
        backend.update_many(
            [
                (message_id, enqueue(a='"import_rows"', Q='"default"', E="1795479267029", user_id="42")),
                (message_id, start(123456789, S="1795479267029", B="15000")),
                (message_id, write(123456789, 2, increment=5, t="100", step='"reading"')),
            ]
        )
        # When the encoding of its key is read
        # Then it is the compact encoding
        assert client.object("encoding", f"{backend.namespace}:{message_id}") in ("listpack", "ziplist")


def kill_others(client: redis.Redis) -> None:
    """Close all connections of a server except the client's own."""
    for connection in client.client_list():
        if int(connection["id"]) != client.client_id():
            client.client_kill_filter(_id=connection["id"])


def calls_of(client: redis.Redis, command: str) -> int:
    found = client.info("commandstats").get(f"cmdstat_{command}", {})
    return int(found.get("calls", 0))


def test_statuses_work_without_hiredis(redis_url: str) -> None:
    # Given an interpreter without hiredis
    script = f"""
import sys, threading
sys.modules["hiredis"] = None
from dramatiq_status import StatusRegistry
from dramatiq_status.backends import RedisBackend
from dramatiq_status.record import COMPLETED
from dramatiq_status.update import EnqueueId, Kind, Outcome, Update
backend = RedisBackend(url={redis_url!r}, timeout=20_000)
assert backend.update("m", Update(Kind.ENQUEUE, EnqueueId(7, 1), fields={{":a": "1"}})) is Outcome.APPLIED
end = Update(Kind.OUTSIDE, state=COMPLETED, increment=3)
watched = []
for snapshot in StatusRegistry.watch("m", backend=backend):
    watched.append((str(snapshot.state), snapshot["a"]))
    if len(watched) == 1:
        backend.update("m", end)
assert watched == [("queued", 1), ("completed", 1)], watched
assert [found and found.get("progress") for found in StatusRegistry.read_many(["m", "x"], backend=backend)] == [3, None]
assert [found.message_id for found in StatusRegistry.list(backend=backend)] == ["m"]
"""
    # When statuses are written, read and watched
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    # Then redis-py's own parser is used, with the version of the protocol that redis-py prefers
    assert ran.returncode == 0, ran.stderr


# Objects that are no clients


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: redis.asyncio.Redis(port=1), "must not be asynchronous, as redis.asyncio.client's Redis is"),
        (lambda: redis.asyncio.RedisCluster("127.0.0.1", 1), "must not be asynchronous, as redis.asyncio.cluster's"),
        (lambda: valkey.asyncio.Valkey(port=1), "must not be asynchronous, as valkey.asyncio.client's Valkey is"),
        (lambda: fakeredis.FakeAsyncRedis(), "must not be asynchronous"),
        (lambda: fakeredis.FakeRedis(), "must not be fakeredis's FakeRedis, .*TcpFakeServer .* StubBackend"),
        (lambda: redis.Sentinel([("127.0.0.1", 1)]), "of redis-py's, or a Valkey one, not a Sentinel"),
        (lambda: "redis://127.0.0.1", "of redis-py's, or a Valkey one, not a str"),
        (lambda: redis.Redis, "of redis-py's, or a Valkey one, not a "),
    ],
)
def test_other_clients_are_refused(make: Callable[[], Any], message: str) -> None:
    # Given a client whose connections the backend cannot make itself
    client = make()
    # When a backend is made with it
    # Then the error names the problem, and what to pass instead
    with pytest.raises(TypeError, match=f"^client .*{message}"):
        RedisBackend(client=client)


def test_statuses_work_with_fakeredis() -> None:
    # Given a server of fakeredis
    message_id = uuid4().hex
    server = fakeredis.TcpFakeServer(("127.0.0.1", 0), server_type="redis")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        # When a backend is made with its address
        with closing(RedisBackend(url=f"redis://127.0.0.1:{server.server_address[1]}", timeout=PATIENT)) as backend:
            outcomes = backend.update_many([(message_id, enqueue()), (message_id, start(1)), (message_id, write(1, 2))])
            # Then the backend stores and reads statuses there
            record = backend.read(message_id)
        assert outcomes == [Outcome.APPLIED] * 3 and record is not None
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
