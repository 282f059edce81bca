"""Memcached as it looks on the wire: round trips, conflicts, sizes, keys and connections."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pymemcache.client.base import Client, PooledClient
from pymemcache.client.hash import HashClient

from dramatiq_status.backend import MAX_NAMESPACE_SIZE, now_ms
from dramatiq_status.backends.memcached import MemcachedBackend
from dramatiq_status.backends.memcached import backend as backend_module
from dramatiq_status.backends.memcached import item as item_module
from dramatiq_status.backends.memcached import rounds as rounds_module
from dramatiq_status.backends.memcached.item import MAX_SPAN, expiry_of
from dramatiq_status.backends.memcached.protocol import Stored
from dramatiq_status.backends.memcached.server import Server
from dramatiq_status.errors import BackendError
from dramatiq_status.record import ATTEMPTS, PROGRESS, RESULT, STATE, VERSION, Record, is_finished
from dramatiq_status.testing.conformance import enqueue, finish, heartbeat, outside, start, together, write
from dramatiq_status.update import Kind, Outcome, Update

from ...servers import MemcachedServer

#: Enough for a busy machine: most tests are not about time-outs.
PATIENT = 20_000

DAY = 86_400_000

StartServer = Callable[[MemcachedServer], MemcachedServer]
Make = Callable[..., MemcachedBackend]

#: What to do with a request: None to pass it on, bytes for an answer of
#: one's own, False to cut the connection when the server has answered.
Meddle = Callable[[bytes], "bytes | bool | None"]


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


class Wire:
    """Stands between clients and a server, keeps their requests, and meddles where a test wants it to."""

    def __init__(self, server: MemcachedServer) -> None:
        self.server = server
        #: What came from a client between two answers.
        self.requests: list[bytes] = []
        self.meddle: Meddle = lambda request: None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self.server.port)) as server:
            try:
                self._pass_on(client, server)
            except OSError:
                return

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        asked = cut = False
        while True:
            for ready in select.select([client, server], [], [])[0]:
                data = ready.recv(1 << 20)
                if not data or (cut and ready is server):
                    return
                if ready is server:
                    asked = False
                    client.sendall(data)
                    continue
                if asked:
                    # The rest of a long request.
                    self.requests[-1] += data
                else:
                    self.requests.append(data)
                answer = self.meddle(data)
                if isinstance(answer, bytes):
                    client.sendall(answer)
                    continue
                asked, cut = True, cut or answer is False
                server.sendall(data)

    def round_trips(self, call: Callable[[], Any]) -> int:
        """How many a call takes."""
        before = len(self.requests)
        call()
        return len(self.requests) - before

    def close(self) -> None:
        # Closing alone leaves the thread that waits for clients waiting.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def wire(server: MemcachedServer) -> Iterator[Wire]:
    wire = Wire(server)
    yield wire
    wire.close()


@pytest.fixture
def wired(wire: Wire, make: Make) -> MemcachedBackend:
    """A backend behind `wire` that has its connection already."""
    backend = make(servers=wire.address)
    backend.read("warm")
    return backend


def once(meddle: Meddle, mark: bytes) -> Meddle:
    """Meddle with the first request that begins with `mark` only."""
    left = [mark]

    def meddle_once(request: bytes) -> bytes | bool | None:
        if left and request.startswith(mark):
            left.pop()
            return meddle(request)
        return None

    return meddle_once


def server_of(backend: MemcachedBackend) -> Server:
    assert backend._servers.only is not None
    return backend._servers.only


def hurry(backend: MemcachedBackend, timeout: float) -> None:
    """Give the only connection, which was made in peace, and all new ones so many seconds for a call."""
    server = server_of(backend)
    connection = server.take_idle(time.monotonic())
    assert connection is not None
    server.timeout = connection.timeout = timeout
    connection.has_short_timeout = True
    server.give(connection)


def seconds_left(server: MemcachedServer, key: str) -> int | None:
    reply = server.ask(f"mg {key} t\r\n".encode()).split()
    return int(reply[1][1:]) if reply[0] == b"HD" else None


# Time to live


@pytest.mark.parametrize(
    "left, expected",
    [
        (-5, 1),
        (0, 1),
        (1, 2),
        (999, 2),
        (1_000, 2),
        (1_001, 3),
        (60_000, 61),
        (MAX_SPAN * 1000 - 1000, MAX_SPAN),
        (MAX_SPAN * 1000, 1_700_000_000 + MAX_SPAN),
        (40 * DAY + 1, 1_700_000_000 + 40 * DAY // 1000 + 1),
        (100_000 * DAY, MAX_SPAN),
    ],
)
def test_expiry_is_never_too_early(left: int, expected: int) -> None:
    # Given a moment at which an item expires
    now = 1_700_000_000_000
    # When it is said in memcached's terms
    # Then it is rounded up, never to "for ever", and a date where it is far away
    assert expiry_of(now + left, now) == expected


@pytest.mark.parametrize("ttl", [1, 1_500, 60_000, MAX_SPAN * 1000, 40 * DAY])
def test_the_server_gets_the_expiry(start_server: StartServer, message_id: str, ttl: int) -> None:
    # Given a message that finishes with a time to live, and a server whose clock has just been set
    server = start_server(MemcachedServer())
    backend = MemcachedBackend(servers=server.address, timeout=PATIENT)
    # When it is stored
    backend.update_many([(message_id, start(1)), (message_id, finish(1, ttl=ttl))])
    # Then memcached keeps it for that long
    left = seconds_left(server, f"{backend.namespace}:{message_id}")
    assert left is not None and ttl / 1000 - 60 < left <= ttl / 1000 + 3
    backend.close()


@pytest.mark.parametrize("skew", [-DAY, DAY], ids=["behind", "ahead"])
def test_a_host_with_another_clock(
    backend: MemcachedBackend, message_id: str, monkeypatch: pytest.MonkeyPatch, skew: int
) -> None:
    # Given a status that lives for an hour
    backend.update_many([(message_id, start(1)), (message_id, finish(1))])
    # When a host reads it whose clock is a day off
    for module in (backend_module, rounds_module):
        monkeypatch.setattr(module, "now_ms", lambda: now_ms() + skew)
    # Then it is there
    assert backend.read(message_id) is not None
    assert backend.update(message_id, outside(step="1")) is Outcome.APPLIED


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


def test_round_trips_of_others(wire: Wire, wired: MemcachedBackend, backend: MemcachedBackend, message_id: str) -> None:
    # Given a message that somebody else runs
    backend.update(message_id, start(1))
    calls: list[Callable[[], Any]] = [
        lambda: wired.update(message_id, outside(step="1")),
        lambda: wired.update(message_id, outside(step="2")),
        lambda: wired.read(message_id),
        lambda: wired.delete(message_id),
    ]
    # When one writes from outside, reads and deletes
    # Then the first write reads, and nothing else takes more than one
    assert [wire.round_trips(call) for call in calls] == [2, 1, 1, 1]


def test_batches_share_round_trips(wire: Wire, wired: MemcachedBackend, backend: MemcachedBackend) -> None:
    # Given messages of which some are known, some are not, and some do not exist
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
    # Then all messages share the same few
    assert trips == [1, 0, 2, 1, 1]


def test_without_meta_the_old_commands_do(wire: Wire, make: Make, message_id: str) -> None:
    # Given a server that does not know the meta commands
    wire.meddle = lambda request: b"ERROR\r\nERROR\r\nERROR\r\n" if request.startswith(b"mn") else None
    backend = make(servers=wire.address)
    # When a message is followed
    outcomes = [backend.update(message_id, update) for update in (enqueue(), start(1), write(1, 2, increment=2))]
    # Then that works, and no meta command is sent
    record = backend.read(message_id)
    assert outcomes == [Outcome.APPLIED] * 3 and record is not None and record[PROGRESS] == "2"
    assert {request.split()[0] for request in wire.requests} == {b"version", b"mn", b"add", b"gets", b"cas"}


@pytest.mark.parametrize(
    "version, meta", [("1.6.6", False), ("1.6.9", False), ("1.6.10", True), ("mcrouter 38", False)]
)
def test_only_todays_meta_commands_are_used(wire: Wire, make: Make, version: str, meta: bool) -> None:
    # Given a server of a certain version
    wire.meddle = lambda request: f"VERSION {version}\r\n".encode() if request.startswith(b"version") else None
    # When a connection is made
    connection = server_of(make(servers=wire.address)).connect(time.monotonic() + 20)
    # Then it uses the meta commands if they are the ones that it knows
    assert connection.meta is meta
    connection.close()


def test_a_server_without_cas_is_refused(start_server: StartServer) -> None:
    # Given a server that does not number its writes
    backend = MemcachedBackend(servers=start_server(MemcachedServer("-C")).address, timeout=PATIENT)
    # When it is used
    # Then that is an error, for updates would be lost
    with pytest.raises(BackendError, match="-C"):
        backend.read("a")


# Somebody else writes too


def test_a_write_in_between_is_merged(backend: MemcachedBackend, make: Make, message_id: str) -> None:
    # Given a worker that remembers its record
    backend.update(message_id, start(1))
    # When somebody else writes before its next write
    make().update(message_id, outside(step="1", increment=5))
    outcome = backend.update(message_id, write(1, 2, increment=1))
    # Then both are stored
    record = backend.read(message_id)
    assert outcome is Outcome.APPLIED and record is not None
    assert (record[":step"], record[PROGRESS], record[VERSION]) == ("1", "6", "3")


def test_a_refusal_is_not_taken_from_memory(backend: MemcachedBackend, make: Make, message_id: str) -> None:
    # Given a process that remembers a run
    backend.update(message_id, start(1))
    # When another run takes over, and this process writes for both
    make().update(message_id, start(2))
    outcomes = [backend.update(message_id, heartbeat(2)), backend.update(message_id, write(1, 2))]
    # Then the store decides
    assert outcomes == [Outcome.APPLIED, Outcome.REFUSED]


def test_an_item_that_is_gone(backend: MemcachedBackend, server: MemcachedServer, message_id: str) -> None:
    # Given a worker that remembers its record
    backend.update(message_id, start(1))
    # When memcached loses it
    server.ask(b"flush_all\r\n")
    outcomes = [backend.update(message_id, write(1, 2)), backend.update(message_id, write(1, 3, create=True))]
    # Then that is seen, and a whole update restores it
    assert outcomes == [Outcome.MISSING, Outcome.APPLIED]
    assert backend.read(message_id) is not None


def test_two_create_at_once(wire: Wire, wired: MemcachedBackend, backend: MemcachedBackend, message_id: str) -> None:
    # Given a worker that finds nothing, and another writer that is quicker
    def be_quicker(request: bytes) -> None:
        backend.update(message_id, enqueue(user_id="42"))

    wire.meddle = once(be_quicker, b"ms")
    # When the worker creates the record
    outcome = wired.update(message_id, start(1, step="1"))
    # Then nothing is written over
    record = wired.read(message_id)
    assert outcome is Outcome.APPLIED and record is not None
    assert (record[":user_id"], record[":step"], record[STATE]) == ("42", "1", "1")


def test_a_late_enqueue(backend: MemcachedBackend, make: Make, message_id: str) -> None:
    # Given a message that runs already
    make().update(message_id, start(1))
    # When its enqueue is stored, by a process that cannot know
    outcome = backend.update(message_id, enqueue(user_id="42"))
    # Then its fields only fill gaps
    record = backend.read(message_id)
    assert outcome is Outcome.LATE and record is not None and (record[":user_id"], record[STATE]) == ("42", "1")


COUNT = """
import sys
from dramatiq_status.backends.memcached import MemcachedBackend
from dramatiq_status.update import Kind, Outcome, Update
backend = MemcachedBackend(servers=sys.argv[1], timeout=20_000)
for _ in range(2_000):
    assert backend.update(sys.argv[2], Update(Kind.OUTSIDE, increment=1)) is Outcome.APPLIED
"""


def test_two_processes_count(server: MemcachedServer, backend: MemcachedBackend, message_id: str) -> None:
    # Given a running message
    backend.update(message_id, start(1))
    # When two processes and this one count at the same time
    command = [sys.executable, "-c", COUNT, server.address, message_id]
    others = [subprocess.Popen(command) for _ in range(2)]
    for n in range(1_000):
        backend.update(message_id, write(1, 2 + n, increment=1))
    codes = [other.wait(60) for other in others]
    # Then the sum is exact
    record = backend.read(message_id)
    assert codes == [0, 0] and record is not None and record[PROGRESS] == "5000"


def test_a_batch_under_contention(make: Make) -> None:
    # Given a few messages
    ids = [uuid4().hex for _ in range(5)]
    make().update_many([(message_id, start(1)) for message_id in ids])

    # When several write to all of them in batches, each message twice
    def count() -> None:
        backend = make()
        for _ in range(200):
            backend.update_many([(message_id, outside(increment=1)) for message_id in [*ids, *ids]])

    together(count, count, count)
    # Then nothing is lost
    found = make().read_many(ids)
    assert [record and record[PROGRESS] for record in found] == ["1200"] * 5


def test_others_who_never_stop(wire: Wire, make: Make, message_id: str) -> None:
    # Given somebody who always writes first
    backend = make(servers=wire.address, timeout=200)
    backend.read("warm")
    make().update(message_id, start(1))
    wire.meddle = lambda request: b"EX\r\n" if request.startswith(b"ms") else None
    # When one writes to the same record
    # Then that ends in an error, not in a busy loop
    with pytest.raises(BackendError, match="Others kept writing"):
        backend.update(message_id, outside(step="1"))
    # And a batch tells of which message, so that nothing else is sent again
    other_id = uuid4().hex
    direct = make()
    direct.update(other_id, start(1))
    wire.meddle = lambda request: b"EX\r\n" if request.startswith(b"ms") and message_id.encode() in request else None
    updates = [(message_id, outside(step="1")), (other_id, outside(increment=1))]
    assert backend.update_many(updates[:1]) == [Outcome.UNAVAILABLE]
    assert backend.update_many(updates) == [Outcome.UNAVAILABLE, Outcome.APPLIED]
    wire.meddle = lambda request: None
    assert backend.update(message_id, outside(step="1")) is Outcome.APPLIED


# The cache of items


def test_what_is_remembered_is_bounded(backend: MemcachedBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a process that remembers little
    monkeypatch.setattr(item_module, "MAX_CACHED", 10)
    ids = [uuid4().hex for _ in range(50)]
    # When it enqueues and runs many messages
    backend.update_many([(message_id, enqueue()) for message_id in ids])
    backend.update_many([(message_id, start(1)) for message_id in ids])
    # Then it remembers the last ones, until they end, and all of them work
    assert len(backend._items) == 10
    assert backend.update_many([(message_id, finish(1)) for message_id in ids]) == [Outcome.APPLIED] * 50
    assert len(backend._items) == 0


# Enqueues whose reply is read later


def test_a_begun_enqueue_is_on_its_way(wire: Wire, wired: MemcachedBackend, message_id: str) -> None:
    # Given an enqueue that was begun
    complete = wired.begin_update(message_id, enqueue())
    # When others look, before it is completed
    # Then it is stored already
    deadline = time.monotonic() + 20
    while wired.read(message_id) is None and time.monotonic() < deadline:
        time.sleep(0.001)
    assert wired.read(message_id) is not None
    # And it is completed without another request
    outcomes: list[Outcome] = []
    assert wire.round_trips(lambda: outcomes.append(complete())) == 0
    assert outcomes == [Outcome.APPLIED]


def test_a_begun_enqueue_whose_broker_takes_its_time(backend: MemcachedBackend, message_id: str) -> None:
    # Given a short time-out, and an enqueue that was begun
    backend.update("other", enqueue())
    hurry(backend, 0.3)
    complete = backend.begin_update(message_id, enqueue())
    # When the broker takes longer than that
    time.sleep(0.4)
    # Then the reply is none the worse for it
    assert complete() is Outcome.APPLIED


def test_a_begun_enqueue_over_a_closed_connection(start_server: StartServer, message_id: str) -> None:
    # Given a server that was restarted while nobody looked
    server = start_server(MemcachedServer())
    backend = MemcachedBackend(servers=server.address, timeout=PATIENT)
    backend.update("other", enqueue())
    server.restart()
    # When an enqueue is begun over the old connection
    outcome = backend.begin_update(message_id, enqueue())()
    # Then it is stored over a new one
    assert outcome is Outcome.APPLIED and backend.read(message_id) is not None
    backend.close()


def test_a_begun_enqueue_that_is_never_answered(start_server: StartServer, message_id: str) -> None:
    # Given a server that goes silent
    server = start_server(MemcachedServer())
    backend = MemcachedBackend(servers=server.address, timeout=200)
    backend.update("other", enqueue())
    server.pause()
    # When an enqueue is begun
    complete = backend.begin_update(message_id, enqueue())
    # Then that is known at its end
    with pytest.raises(BackendError, match="timed out") as caught:
        complete()
    assert isinstance(caught.value.__cause__, TimeoutError)
    # And the reply that comes late is nobody's
    server.resume()
    assert backend.read("other") is not None
    backend.close()


def test_an_enqueue_that_is_too_large_to_be_begun(
    backend: MemcachedBackend, message_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Given an enqueue with more fields than an item can hold
    queued = enqueue(**{f"field{n}": LARGE for n in range(20)})
    # When it is begun
    outcome = backend.begin_update(message_id, queued)()
    # Then the message is queued all the same, and both the log and the status name what is missing
    snapshot = backend.snapshot(message_id)
    assert outcome is Outcome.APPLIED and snapshot is not None and snapshot.queued
    assert len(snapshot.truncated) == 3 and all(f"'{name}'" in caplog.text for name in snapshot.truncated)


# Sizes

LARGE = '"' + "x" * 60_000 + '"'


def text_of(size: int) -> str:
    return '"' + "x" * (size - 2) + '"'


def filled(backend: MemcachedBackend, message_id: str) -> Record:
    """A running message whose record has room for one more large field, not for two."""
    fields = {f":field{n}": LARGE for n in range(16)}
    assert backend.update(message_id, start(1)) is Outcome.APPLIED
    assert backend.update(message_id, Update(Kind.OUTSIDE, fields=fields)) is Outcome.APPLIED
    record = backend.read(message_id)
    assert record is not None
    return record


def test_a_record_that_would_be_too_large_is_left_alone(backend: MemcachedBackend, message_id: str) -> None:
    # Given a large record
    before = filled(backend, message_id)
    # When an update would make it larger than an item may be
    with pytest.raises(ValueError, match=f"{message_id!r}.*'last' with 65000") as caught:
        backend.update(message_id, outside(one=LARGE, last=text_of(65_000)))
    # Then the error names the largest field, and the record is as it was
    assert "-I" in str(caught.value) and backend.read(message_id) == before


def test_what_fits_of_a_batch_is_stored(
    backend: MemcachedBackend, message_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a large record, and another one
    other_id = uuid4().hex
    filled(backend, message_id)
    backend.update(other_id, start(1))
    # When a batch has something for it that is too large, and other things
    outcomes = backend.update_many(
        [
            (message_id, write(1, 2, increment=1)),
            (message_id, write(1, 3, two=LARGE, big=text_of(65_000))),
            (other_id, write(1, 2, step="1")),
            (message_id, write(1, 4, increment=1)),
        ]
    )
    # Then the rest is stored, and the log and the status name the field that is not
    assert outcomes == [Outcome.APPLIED] * 4
    assert message_id in caplog.text and "'big'" in caplog.text
    snapshot, other = backend.snapshot(message_id), backend.read(other_id)
    assert snapshot is not None and (snapshot["progress"], snapshot.truncated) == (2, ("big",))
    assert snapshot["two"] == LARGE[1:-1] and "big" not in snapshot
    assert other is not None and other[":step"] == "1"


def test_an_end_is_stored_without_what_is_too_large(backend: MemcachedBackend, message_id: str) -> None:
    # Given a large record
    filled(backend, message_id)
    # When its message is completed with a result that is too large
    with pytest.raises(ValueError, match="'result'"):
        backend.update(message_id, finish(1, result=text_of(100_000)))
    # Then it is completed, without the result
    record = backend.read(message_id)
    assert record is not None and is_finished(record) and RESULT not in record


def test_a_server_with_larger_items(start_server: StartServer, message_id: str) -> None:
    # Given a server that takes items of 2 MB
    backend = MemcachedBackend(servers=start_server(MemcachedServer("-I", "2m")).address, timeout=PATIENT)
    filled(backend, message_id)
    # When a record grows beyond one
    backend.update(message_id, outside(one=LARGE, two=LARGE, three=LARGE))
    # Then it is stored
    record = backend.read(message_id)
    assert record is not None and record[":three"] == LARGE
    backend.close()


def test_the_largest_value_is_stored(backend: MemcachedBackend) -> None:
    # Given the longest key, and a value of the size that is held possible
    connection = server_of(backend).connect(time.monotonic() + 20)
    key, value = b"k" * 250, b"x" * connection.max_value_size
    # When it is stored
    connection.send(connection.store(key, value, 1000, None))
    stored, _ = connection.read_stored()
    # Then memcached takes it
    assert stored is Stored.STORED
    connection.send(connection.get(key))
    item = connection.read_item()
    assert item is not None and item.value == value
    connection.close()


def test_large_records_in_a_batch(make: Make) -> None:
    # Given more than the sockets' buffers hold: half of it to be read, half to be written
    backend, other = make(), make()
    ids = [uuid4().hex for _ in range(20)]
    fields = {f":field{n}": LARGE for n in range(10)}
    for n, message_id in enumerate(ids):
        (backend if n % 2 else other).update_many(
            [(message_id, start(1)), (message_id, Update(Kind.OUTSIDE, fields=fields))]
        )
    # When all are updated in one call, and read in another
    outcomes = backend.update_many([(message_id, outside(increment=1)) for message_id in ids])
    found = backend.read_many(ids)
    # Then neither side waits for the other for ever
    assert outcomes == [Outcome.APPLIED] * 20 and all(record and record[PROGRESS] == "1" for record in found)


# Keys


def test_no_id_is_a_command(backend: MemcachedBackend) -> None:
    # Given ids that would be something else on the wire
    ids = ["a\r\nflush_all", "a\nb", "a b", "\x00", "#" + "0" * 64, "x" * 2_000, "\ud800"]
    backend.update("other", enqueue())
    # When they are used as they are
    outcomes = [backend.update(message_id, enqueue(mark=f'"{n}"')) for n, message_id in enumerate(ids)]
    # Then each is a key of its own, and nothing else happens
    found = backend.read_many(ids)
    assert outcomes == [Outcome.APPLIED] * len(ids)
    assert [record and record[":mark"] for record in found] == [f'"{n}"' for n in range(len(ids))]
    assert backend.read("other") is not None


def test_an_id_that_looks_like_another_ones_key(backend: MemcachedBackend) -> None:
    # Given an id that cannot be a key
    backend.update("a b", enqueue())
    # When another id is the very hash that stands for it
    _, _, hashed = backend._locate("a b")[0].decode().partition(":")
    # Then that is another message
    assert hashed.startswith("#") and backend.read(hashed) is None


def test_plain_ids_are_plain_keys(make: Make) -> None:
    # Given the longest namespace and the longest plain id
    backend = make(namespace="n" * MAX_NAMESPACE_SIZE)
    # When it becomes a key
    # Then people find it there
    assert backend._locate("x" * 200)[0] == b"n" * MAX_NAMESPACE_SIZE + b":" + b"x" * 200


# Connections


def test_a_reply_that_never_came(wire: Wire, wired: MemcachedBackend, message_id: str) -> None:
    # Given a connection that is cut after the server has stored an update, before it said so
    wired.update(message_id, start(1))
    wire.meddle = once(lambda request: False, b"ms")
    # When it was a run's
    outcome = wired.update(message_id, write(1, 2, increment=1))
    # Then it is sent again, and counts once
    record = wired.read(message_id)
    assert outcome is Outcome.DUPLICATE and record is not None and record[PROGRESS] == "1"


@pytest.mark.parametrize("known", [True, False])
def test_a_reply_that_never_came_to_whom_nobody_knows(
    wire: Wire, wired: MemcachedBackend, backend: MemcachedBackend, message_id: str, known: bool
) -> None:
    # Given a connection that is cut after the server has stored an update, before it said so
    (wired if known else backend).update(message_id, start(1))
    wire.meddle = once(lambda request: False, b"ms")
    # When it was somebody's of whom the record knows nothing
    # Then nobody can tell, and it is not counted twice
    with pytest.raises(BackendError):
        wired.update(message_id, outside(increment=1))
    record = wired.read(message_id)
    assert record is not None and record[PROGRESS] == "1"


def test_a_batch_whose_replies_never_came(wire: Wire, wired: MemcachedBackend) -> None:
    # Given messages of which some are known
    ids = [uuid4().hex for _ in range(10)]
    wired.update_many([(message_id, start(1)) for message_id in ids[:5]])
    # When the connection is cut in the middle of a batch
    wire.meddle = once(lambda request: False, b"ms")
    outcomes = wired.update_many([(message_id, write(1, 2, create=True, increment=1)) for message_id in ids])
    # Then all are stored, and each counts once
    found = wired.read_many(ids)
    assert outcomes == [Outcome.DUPLICATE] * 5 + [Outcome.APPLIED] * 5
    assert [record and (record[PROGRESS], record[ATTEMPTS]) for record in found] == [("1", "1")] * 10


def test_a_cas_of_before_a_restart(start_server: StartServer, message_id: str) -> None:
    # Given a worker that remembers a record and its cas
    server = start_server(MemcachedServer())
    worker, other = (MemcachedBackend(servers=server.address, timeout=PATIENT) for _ in range(2))
    worker.update(message_id, start(1))
    started = server.ask(b"stats\r\n")
    # When the server is restarted, counts anew, and the same cas means something else
    server.restart()
    assert started != server.ask(b"stats\r\n")
    other.update(message_id, start(1, user_id="42"))
    cached = worker._items.take(message_id)
    assert cached is not None
    worker._items.put(message_id, cached, 1)
    assert server.ask(f"mg {worker.namespace}:{message_id} c\r\n".encode()) == b"HD c%d\r\n" % cached.cas
    worker.update(message_id, write(1, 2, step="1"))
    # Then the worker does not write over it
    record = worker.read(message_id)
    assert record is not None and (record[":user_id"], record[":step"]) == ("42", "1")
    worker.close()
    other.close()


def test_a_silent_server_costs_one_time_out(wire: Wire, wired: MemcachedBackend, message_id: str) -> None:
    # Given a server that answers nothing any more
    wired.update(message_id, start(1))
    hurry(wired, 0.2)
    wire.meddle = lambda request: b""
    causes = []

    # When it is asked for something
    def ask() -> None:
        with pytest.raises(BackendError) as caught:
            wired.update_many([(message_id, write(1, 2)), ("b", enqueue())])
        causes.append(caught.value.__cause__)

    # Then it is waited for once, and asked nothing else
    assert wire.round_trips(ask) == 1
    assert isinstance(causes[0], TimeoutError)


class Dripping:
    """A server that answers a byte at a time: from the start, or as soon as it has `greeted`."""

    def __init__(self, server: MemcachedServer, *, greeted: bool) -> None:
        self._server = server
        self._greeted = greeted
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.over = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self.over.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._server.port)) as server:
            try:
                while request := client.recv(65_536):
                    server.sendall(request)
                    reply = server.recv(65_536)
                    if self._greeted and request.startswith((b"version", b"mn")):
                        client.sendall(reply)
                        continue
                    for n in range(len(reply)):
                        client.sendall(reply[n : n + 1])
                        if self.over.wait(0.2):
                            return
            except OSError:
                return

    def close(self) -> None:
        self.over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


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
    # When it is asked for something
    began = time.monotonic()
    with pytest.raises(BackendError, match="timed out"):
        calls[name]()
    # Then the call ends with its time, not with the reply
    assert time.monotonic() - began < 3
    dripping.close()


def test_what_nobody_asked_for(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an idle connection on which something has come
    monkeypatch.setattr("dramatiq_status.backends._pool.IDLE_CHECK", -1.0)
    backend = make()
    backend.update("a", enqueue())
    connection = server_of(backend).connect(time.monotonic() + 20)
    connection.send(b"mn\r\n")
    select.select([connection.socket], [], [], 10)
    server_of(backend).give(connection)
    # When one is needed
    # Then it is another one
    assert backend.read("a") is not None and server_of(backend).take_idle(time.monotonic()) is not connection


def test_an_idle_connection_that_is_well_is_used_again(wire: Wire, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a connection that was idle for a while
    monkeypatch.setattr("dramatiq_status.backends._pool.IDLE_CHECK", -1.0)
    backend = make(servers=wire.address)
    backend.update("a", enqueue())
    # When it is looked at, and used
    # Then it is the same, and blocks as before
    assert [wire.round_trips(lambda: backend.read("a")) for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize(
    "reply", [b"SERVER_ERROR out of memory storing object\r\n", b"CLIENT_ERROR bad\r\n", b"what\r\n"]
)
@pytest.mark.parametrize("name", ["update", "read", "delete"])
def test_errors_are_errors(wire: Wire, wired: MemcachedBackend, reply: bytes, name: str) -> None:
    # Given a server that answers with an error
    wire.meddle = lambda request: None if request.startswith((b"version", b"mn")) else reply
    calls: dict[str, Callable[[], Any]] = {
        "update": lambda: wired.update("a", enqueue()),
        "read": lambda: wired.read("a"),
        "delete": lambda: wired.delete("a"),
    }
    # When it is asked for something
    # Then that is raised, as what it is, and the next call is as always
    with pytest.raises(BackendError, match=reply.decode().strip()):
        calls[name]()
    wire.meddle = lambda request: None
    assert wired.read("a") is None


@pytest.mark.parametrize(
    "value", [b"x\r\nMN", b"EN\r\nMN\r\n", b"VA 1 t1\r\nx\r\nEN\r\nMN\r\n", b"\r\n" * 9, b"x" * 70_000]
)
def test_values_that_look_like_replies(server: MemcachedServer, backend: MemcachedBackend, value: bytes) -> None:
    # Given a foreign value among statuses
    backend.update_many([("a", enqueue()), ("c", enqueue())])
    assert server.ask(b"set %b 0 0 %d\r\n%b\r\n" % (backend._locate("b")[0], len(value), value)) == b"STORED\r\n"
    # When all are read in one call, it being the last and in the middle
    found = backend.read_many(["a", "b", "missing", "c"]), backend.read_many(["c", "b"])
    # Then it is not taken for a reply
    assert [[record is not None for record in records] for records in found] == [
        [True, False, False, True],
        [True, False],
    ]


# Servers and clients


@pytest.fixture
def two_servers(start_server: StartServer) -> list[MemcachedServer]:
    return [start_server(MemcachedServer()) for _ in range(2)]


def items_on(server: MemcachedServer) -> int:
    stats = dict(line.split(b" ")[1:] for line in server.ask(b"stats\r\n").split(b"\r\n")[:-2])
    return int(stats[b"curr_items"])


def test_two_servers_share_the_messages(two_servers: list[MemcachedServer]) -> None:
    # Given two servers
    addresses = [server.address for server in two_servers]
    backend = MemcachedBackend(servers=addresses, timeout=PATIENT)
    ids = [uuid4().hex for _ in range(100)]
    marks = [f'"{message_id}"' for message_id in ids]
    # When messages are written in one call
    outcomes = backend.update_many([(message_id, enqueue(mark=f'"{message_id}"')) for message_id in ids])
    # Then both have some, whoever asks finds them, and the order is kept
    counts = [items_on(server) for server in two_servers]
    assert outcomes == [Outcome.APPLIED] * 100 and sum(counts) == 100 and min(counts) > 10
    for other in (
        backend,
        MemcachedBackend(servers=addresses[::-1], timeout=PATIENT),
        MemcachedBackend(client=HashClient(addresses), timeout=PATIENT),
        MemcachedBackend(client=HashClient(addresses, use_pooling=True), timeout=PATIENT),
    ):
        assert [record and record[":mark"] for record in other.read_many(ids)] == marks
        assert other.update(ids[0], outside(step="1")) is Outcome.APPLIED
        other.close()


def hash_client(server: tuple[str, int], **parameters: Any) -> HashClient:
    return HashClient([server], **parameters)


@pytest.mark.parametrize("kind", [Client, PooledClient, hash_client])
def test_clients_are_taken(server: MemcachedServer, message_id: str, kind: Any) -> None:
    # Given a client of one's own, with settings of its own
    client = kind(("127.0.0.1", server.port), key_prefix=b"app:", timeout=0.001, no_delay=False)
    backend = MemcachedBackend(client=client, timeout=PATIENT)
    # When it is passed
    backend.update(message_id, enqueue())
    # Then its server and prefix are used
    assert seconds_left(server, f"app:{backend.namespace}:{message_id}") is not None
    assert backend.read(message_id) is not None
    backend.close()


@pytest.mark.parametrize(
    "parameters, error, message",
    [
        ({"client": "127.0.0.1:11211"}, TypeError, "HashClient, not str"),
        ({"servers": []}, ValueError, "at least one server"),
        ({"client": Client(("127.0.0.1", 1), key_prefix="x" * 200)}, ValueError, "key_prefix"),
    ],
    ids=["client", "servers", "key_prefix"],
)
def test_bad_parameters(parameters: dict[str, Any], error: type[Exception], message: str) -> None:
    # Given something that says of no server how to reach it
    # When a backend is made of it
    # Then that is refused at once
    with pytest.raises(error, match=message):
        MemcachedBackend(**parameters)


def test_a_unix_socket(tmp_path: Path, message_id: str) -> None:
    # Given a server on a socket in the file system
    class OnASocket(MemcachedServer):
        def _command(self) -> list[str]:
            return [*super()._command()[:1], "-s", str(tmp_path / "socket"), "-u", "root"]

        def ask(self, request: bytes, *, timeout: float = 5.0) -> bytes:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(timeout)
                connection.connect(str(tmp_path / "socket"))
                connection.sendall(request)
                return connection.recv(65536)

        def _listens(self) -> bool:
            # Its socket is in a directory of this test, where no other run has one.
            return True

    with OnASocket():
        backend = MemcachedBackend(servers=f"unix:{tmp_path}/socket", timeout=PATIENT)
        # When a message is written and read
        backend.update(message_id, enqueue())
        # Then that works as elsewhere
        assert backend.read(message_id) is not None
        backend.close()
