"""Round trips of updates and reads, the cache of items, and enqueues whose reply is read later."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from typing import Any
from uuid import uuid4

import pytest

from dramatiq_status.backends.memcached import MemcachedBackend
from dramatiq_status.backends.memcached import item as item_module
from dramatiq_status.errors import BackendError
from dramatiq_status.record import PROGRESS, Record, is_finished
from dramatiq_status.testing.conformance import enqueue, finish, heartbeat, outside, start, write
from dramatiq_status.testing.conformance.store import until_answered
from dramatiq_status.update import Outcome

from ...recording import answered
from ...servers import MemcachedServer
from .wire import LARGE, PATIENT, Make, StartServer, Wire, hurry, server_of

# Round trips


def test_a_run_reads_before_its_first_update(wire: Wire, wired: MemcachedBackend, make: Make) -> None:
    # Given a producer and a worker
    message_id, worker = uuid4().hex, make(servers=wire.address)
    worker.read("warm")
    # When a message is enqueued, run and completed
    trips = [wire.round_trips(lambda: wired.update(message_id, enqueue(user_id="42")))]
    for update in (start(1), write(1, 2, increment=1), heartbeat(1), write(1, 3, step="1"), finish(1, 4)):
        trips.append(wire.round_trips(lambda update=update: worker.update(message_id, update)))  # type: ignore[misc]
    # Then the worker read the item once, before its first update
    assert trips == [1, 2, 1, 1, 1, 1]
    reads = [request for request in wire.requests if request.startswith(b"mg") and message_id.encode() in request]
    assert len(reads) == 1
    record = worker.read(message_id)
    assert record is not None and is_finished(record) and (record[":user_id"], record[PROGRESS]) == ("42", "1")


def test_a_writer_from_outside_reads_before_its_first_update_only(
    wire: Wire, wired: MemcachedBackend, backend: MemcachedBackend, message_id: str
) -> None:
    # Given a message that another process runs
    backend.update(message_id, start(1))
    calls: list[Callable[[], Any]] = [
        lambda: wired.update(message_id, outside(step="1")),
        lambda: wired.update(message_id, outside(step="2")),
        lambda: wired.read(message_id),
        lambda: wired.delete(message_id),
    ]
    # When the backend writes to it from outside, reads it and deletes it
    # Then the first write takes two round trips, and each other call one
    assert [wire.round_trips(call) for call in calls] == [2, 1, 1, 1]


def test_batches_share_round_trips(wire: Wire, wired: MemcachedBackend, backend: MemcachedBackend) -> None:
    # Given messages with cached items, messages without, and one that does not exist
    ids = [uuid4().hex for _ in range(100)]
    enqueues = [(message_id, enqueue()) for message_id in ids]
    starts = [(message_id, update) for message_id in ids for update in (start(1), write(1, 2, increment=1))]
    # When they are written and read in batches
    trips = [
        wire.round_trips(lambda: wired.update_many(enqueues)),
        wire.round_trips(lambda: backend.update_many(starts)),
        wire.round_trips(lambda: wired.update_many([(message_id, outside(step="1")) for message_id in ids])),
        wire.round_trips(lambda: wired.update_many([(message_id, write(1, 3)) for message_id in [*ids, "unknown"]])),
        wire.round_trips(lambda: wired.read_many([*ids, "unknown"])),
    ]
    # Then all messages of a batch share its round trips
    assert trips == [1, 0, 2, 1, 1]


def test_a_server_without_meta_commands_gets_gets_and_cas(wire: Wire, make: Make, message_id: str) -> None:
    # Given a server without meta commands
    wire.meddle = lambda request: b"ERROR\r\nERROR\r\nERROR\r\n" if request.startswith(b"mn") else None
    backend = make(servers=wire.address)
    # When a message is enqueued and run
    outcomes = [backend.update(message_id, update) for update in (enqueue(), start(1), write(1, 2, increment=2))]
    # Then its updates are stored, and no meta command is sent
    record = backend.read(message_id)
    assert outcomes == [Outcome.APPLIED] * 3 and record is not None and record[PROGRESS] == "2"
    assert {request.split()[0] for request in wire.requests} == {b"version", b"mn", b"add", b"gets", b"cas"}


@pytest.mark.parametrize(
    "version, meta", [("1.6.6", False), ("1.6.9", False), ("1.6.10", True), ("mcrouter 38", False)]
)
def test_meta_commands_are_used_from_version_1_6_10_on(wire: Wire, make: Make, version: str, meta: bool) -> None:
    # Given a server of a certain version
    wire.meddle = lambda request: f"VERSION {version}\r\n".encode() if request.startswith(b"version") else None
    # When a connection is made
    connection = server_of(make(servers=wire.address)).connect(time.monotonic() + 20)
    # Then it uses the meta commands from 1.6.10 on
    assert connection.meta is meta
    connection.close()


def test_a_server_without_cas_is_refused(start_server: StartServer) -> None:
    # Given a server without cas
    backend = MemcachedBackend(servers=start_server(MemcachedServer("-C")).address, timeout=PATIENT)
    # When the backend reads from it
    # Then it raises an error, because updates would be lost
    with pytest.raises(BackendError, match="-C"):
        backend.read("a")


# The cache of items


def test_the_cache_of_items_is_bounded(backend: MemcachedBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a process that caches up to ten items
    monkeypatch.setattr(item_module, "MAX_CACHED", 10)
    ids = [uuid4().hex for _ in range(50)]
    # When it enqueues and runs many messages
    backend.update_many([(message_id, enqueue()) for message_id in ids])
    backend.update_many([(message_id, start(1)) for message_id in ids])
    # Then it caches the last ten items until their messages end, and all updates are stored
    assert len(backend._items) == 10
    assert backend.update_many([(message_id, finish(1)) for message_id in ids]) == [Outcome.APPLIED] * 50
    assert len(backend._items) == 0


# Enqueues whose reply is read later


def test_a_begun_enqueue_is_sent_at_once(wire: Wire, wired: MemcachedBackend, message_id: str) -> None:
    # Given an enqueue that was begun
    complete = wired.begin_update(message_id, enqueue())
    # When another call reads the message before the enqueue is completed
    # Then it is stored already
    deadline = time.monotonic() + 20
    while wired.read(message_id) is None and time.monotonic() < deadline:
        time.sleep(0.001)
    assert wired.read(message_id) is not None
    # And the enqueue is completed without another request
    outcomes: list[Outcome] = []
    assert wire.round_trips(lambda: outcomes.append(complete())) == 0
    assert outcomes == [Outcome.APPLIED]


def test_the_time_of_the_broker_does_not_count_for_a_begun_enqueue(backend: MemcachedBackend, message_id: str) -> None:
    # Given a short time-out, and an enqueue that was begun
    backend.update("other", enqueue())
    hurry(backend, 0.3)
    numbers = count(1)

    def enqueue_slowly() -> Outcome:
        answered(lambda: backend.read("other"))
        complete = backend.begin_update(message_id, enqueue(next(numbers)))
        # When the broker takes longer than that
        time.sleep(0.4)
        return complete()

    # Then the enqueue is completed
    assert answered(enqueue_slowly) is Outcome.APPLIED


def test_a_begun_enqueue_over_a_closed_connection_is_sent_again(start_server: StartServer, message_id: str) -> None:
    # Given a server that was restarted while its connection was idle
    server = start_server(MemcachedServer())
    backend = MemcachedBackend(servers=server.address, timeout=PATIENT)
    backend.update("other", enqueue())
    server.restart()
    # When an enqueue is begun over the old connection
    outcome = backend.begin_update(message_id, enqueue())()
    # Then it is stored over a new one
    assert outcome is Outcome.APPLIED and backend.read(message_id) is not None
    backend.close()


def test_a_begun_enqueue_without_a_reply_raises_an_error_at_its_end(start_server: StartServer, message_id: str) -> None:
    # Given a server that stops answering
    server = start_server(MemcachedServer())
    backend = MemcachedBackend(servers=server.address, timeout=200)

    def read_after_a_late_reply() -> Record | None:
        answered(lambda: backend.update("other", enqueue()))
        server.pause()
        # When an enqueue is begun
        complete = backend.begin_update(message_id, enqueue())
        # Then its completion raises an error
        with pytest.raises(BackendError, match="timed out") as caught:
            complete()
        assert isinstance(caught.value.__cause__, TimeoutError)
        # And the next call does not read the late reply
        server.resume()
        return backend.read("other")

    assert until_answered(read_after_a_late_reply) is not None
    backend.close()


def test_a_begun_enqueue_that_is_too_large_is_stored_in_part(
    backend: MemcachedBackend, message_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Given an enqueue with more fields than an item can hold
    queued = enqueue(**{f"field{n}": LARGE for n in range(20)})
    # When it is begun
    outcome = backend.begin_update(message_id, queued)()
    # Then the message is queued, and both the log and the status name the fields that are missing
    snapshot = backend.snapshot(message_id)
    assert outcome is Outcome.APPLIED and snapshot is not None and snapshot.queued
    assert len(snapshot.truncated) == 3 and all(f"'{name}'" in caplog.text for name in snapshot.truncated)
