"""Connections that break, stop or return something unexpected."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from dramatiq_status.backends.memcached import MemcachedBackend
from dramatiq_status.errors import BackendError
from dramatiq_status.record import ATTEMPTS, PROGRESS
from dramatiq_status.testing.conformance import enqueue, outside, start, write
from dramatiq_status.update import Outcome

from ...servers import MemcachedServer
from .wire import LARGE, PATIENT, Dripping, Make, StartServer, Wire, hurry, once, server_of


def test_an_update_of_a_run_without_a_reply_is_sent_again_and_counts_once(
    wire: Wire, wired: MemcachedBackend, message_id: str
) -> None:
    # Given a connection that is cut after the server has stored an update, before its reply arrives
    wired.update(message_id, start(1))
    wire.meddle = once(lambda request: False, b"ms")
    # When the update is one of a run
    outcome = wired.update(message_id, write(1, 2, increment=1))
    # Then it is sent again, and counts once
    record = wired.read(message_id)
    assert outcome is Outcome.DUPLICATE and record is not None and record[PROGRESS] == "1"


@pytest.mark.parametrize("known", [True, False])
def test_an_increment_from_outside_without_a_reply_is_not_sent_again(
    wire: Wire, wired: MemcachedBackend, backend: MemcachedBackend, message_id: str, known: bool
) -> None:
    # Given a connection that is cut after the server has stored an update, before its reply arrives
    (wired if known else backend).update(message_id, start(1))
    wire.meddle = once(lambda request: False, b"ms")
    # When the update is an increment from outside, of which the record has no sequence number
    # Then the call raises an error, and does not send the increment again
    with pytest.raises(BackendError):
        wired.update(message_id, outside(increment=1))
    record = wired.read(message_id)
    assert record is not None and record[PROGRESS] == "1"


def test_a_batch_without_replies_is_sent_again_and_counts_once(wire: Wire, wired: MemcachedBackend) -> None:
    # Given messages of which some have cached items
    ids = [uuid4().hex for _ in range(10)]
    wired.update_many([(message_id, start(1)) for message_id in ids[:5]])
    # When the connection is cut in the middle of a batch
    wire.meddle = once(lambda request: False, b"ms")
    outcomes = wired.update_many([(message_id, write(1, 2, create=True, increment=1)) for message_id in ids])
    # Then all are stored, and each counts once
    found = wired.read_many(ids)
    assert outcomes == [Outcome.DUPLICATE] * 5 + [Outcome.APPLIED] * 5
    assert [record and (record[PROGRESS], record[ATTEMPTS]) for record in found] == [("1", "1")] * 10


def test_a_cas_is_void_after_a_restart_of_the_server(start_server: StartServer, message_id: str) -> None:
    # Given a worker that has cached an item and its cas
    server = start_server(MemcachedServer())
    worker, other = (MemcachedBackend(servers=server.address, timeout=PATIENT) for _ in range(2))
    worker.update(message_id, start(1))
    started = server.ask(b"stats\r\n")
    # When the server is restarted and counts from the beginning, so that another item gets the same cas
    server.restart()
    assert started != server.ask(b"stats\r\n")
    other.update(message_id, start(1, user_id="42"))
    cached = worker._items.take(message_id)
    assert cached is not None
    worker._items.put(message_id, cached, 1)
    assert server.ask(f"mg {worker.namespace}:{message_id} c\r\n".encode()) == b"HD c%d\r\n" % cached.cas
    worker.update(message_id, write(1, 2, step="1"))
    # Then the worker does not replace that item
    record = worker.read(message_id)
    assert record is not None and (record[":user_id"], record[":step"]) == ("42", "1")
    worker.close()
    other.close()


def test_a_silent_server_takes_one_time_out(wire: Wire, wired: MemcachedBackend, message_id: str) -> None:
    # Given a server that has stopped answering
    wired.update(message_id, start(1))
    hurry(wired, 0.2)
    wire.meddle = lambda request: b""
    causes = []

    # When the backend calls it
    def ask() -> None:
        with pytest.raises(BackendError) as caught:
            wired.update_many([(message_id, write(1, 2)), ("b", enqueue())])
        causes.append(caught.value.__cause__)

    # Then the call waits for one time-out, and sends no second request
    assert wire.round_trips(ask) == 1
    assert isinstance(causes[0], TimeoutError)


@pytest.mark.parametrize("greeted", [True, False])
@pytest.mark.parametrize("name", ["read", "read_many", "update", "update_many", "begin_update", "delete"])
def test_a_server_that_answers_a_byte_at_a_time(
    server: MemcachedServer, backend: MemcachedBackend, make: Make, greeted: bool, name: str
) -> None:
    # Given a server whose replies take far longer than a call may
    ids = [uuid4().hex for _ in range(10)]
    backend.update_many([(message_id, start(1, step=LARGE)) for message_id in ids])
    dripping = Dripping(server, greeted=greeted)
    slow = make(servers=dripping.address, timeout=500)
    calls: dict[str, Callable[[], Any]] = {
        "read": lambda: slow.read(ids[0]),
        "read_many": lambda: slow.read_many(ids),
        "update": lambda: slow.update(ids[0], outside(step="1")),
        "update_many": lambda: slow.update_many([(message_id, outside(step="1")) for message_id in ids]),
        "begin_update": lambda: slow.begin_update(uuid4().hex, enqueue())(),
        "delete": lambda: slow.delete(ids[0]),
    }
    # When the backend calls it
    # Then the call ends with its time-out, although each byte comes in time
    with pytest.raises(BackendError, match="timed out"):
        calls[name]()
    dripping.close()


def test_a_connection_with_unexpected_bytes_is_not_used(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an idle connection with bytes that are no reply to a request
    monkeypatch.setattr("dramatiq_status.backends._pool.IdlePool.idle_check", -1.0)
    backend = make()
    backend.update("a", enqueue())
    connection = server_of(backend).connect(time.monotonic() + 20)
    connection.send(b"mn\r\n")
    select.select([connection.socket], [], [], 10)
    server_of(backend).give(connection)
    # When a call needs a connection
    # Then it uses another one
    assert backend.read("a") is not None and server_of(backend).take_idle(time.monotonic()) is not connection


def test_an_idle_connection_is_used_again_after_its_check(
    wire: Wire, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a connection that was idle for a while
    monkeypatch.setattr("dramatiq_status.backends._pool.IdlePool.idle_check", -1.0)
    backend = make(servers=wire.address)
    backend.update("a", enqueue())
    # When it is checked and used
    # Then no new connection is made, and the socket blocks as before
    assert [wire.round_trips(lambda: backend.read("a")) for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize(
    "reply", [b"SERVER_ERROR out of memory storing object\r\n", b"CLIENT_ERROR bad\r\n", b"what\r\n"]
)
@pytest.mark.parametrize("name", ["update", "read", "delete"])
def test_an_error_of_the_server_is_raised_and_ends_no_connection_for_good(
    wire: Wire, wired: MemcachedBackend, reply: bytes, name: str
) -> None:
    # Given a server that answers with an error
    wire.meddle = lambda request: None if request.startswith((b"version", b"mn")) else reply
    calls: dict[str, Callable[[], Any]] = {
        "update": lambda: wired.update("a", enqueue()),
        "read": lambda: wired.read("a"),
        "delete": lambda: wired.delete("a"),
    }
    # When the backend calls it
    # Then the call raises this error, and the next call succeeds
    with pytest.raises(BackendError, match=reply.decode().strip()):
        calls[name]()
    wire.meddle = lambda request: None
    assert wired.read("a") is None


@pytest.mark.parametrize(
    "value", [b"x\r\nMN", b"EN\r\nMN\r\n", b"VA 1 t1\r\nx\r\nEN\r\nMN\r\n", b"\r\n" * 9, b"x" * 70_000]
)
def test_values_that_look_like_replies(server: MemcachedServer, backend: MemcachedBackend, value: bytes) -> None:
    # Given a value of another program among statuses
    backend.update_many([("a", enqueue()), ("c", enqueue())])
    assert server.ask(b"set %b 0 0 %d\r\n%b\r\n" % (backend._locate("b")[0], len(value), value)) == b"STORED\r\n"
    # When all are read in one call, with this value in the middle and at the end
    found = backend.read_many(["a", "b", "missing", "c"]), backend.read_many(["c", "b"])
    # Then only this value is no status
    assert [[record is not None for record in records] for records in found] == [
        [True, False, False, True],
        [True, False],
    ]
