"""A message of memcached to which other processes write all the time, or that the server refuses."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

import dramatiq
import pytest

from dramatiq_status import StatusRegistry, current_status
from dramatiq_status.backends.memcached import MemcachedBackend
from dramatiq_status.errors import BackendError, StoreRefused
from dramatiq_status.record import PROGRESS, STATE
from dramatiq_status.testing.conformance import enqueue, finish, outside, start, write
from dramatiq_status.update import Kind, Outcome, Update

from ...conftest import StartServer
from ...recording import make_broker, working
from ...servers import MemcachedServer
from .wire import LARGE, PATIENT, Make, Wire

#: Program that writes a number of fields and increments to a message, after a line on its standard input.
WRITER = """
import sys
from dramatiq_status.backends.memcached import MemcachedBackend
from dramatiq_status.update import Kind, Outcome, Update
address, message_id, name, count, meta = sys.argv[1:]
backend = MemcachedBackend(servers=address, timeout=20_000, meta=meta == "True")
backend.read(message_id)
print("ready", flush=True)
sys.stdin.readline()
for n in range(int(count)):
    update = Update(Kind.OUTSIDE, fields={f":{name}-{n}": str(n)}, increment=1)
    assert backend.update(message_id, update) is Outcome.APPLIED
"""

#: Program that writes one field as fast as it can, until it is killed.
HOT_WRITER = """
import itertools, sys
from dramatiq_status.backends.memcached import MemcachedBackend
from dramatiq_status.errors import BackendError
from dramatiq_status.update import Kind, Update
backend = MemcachedBackend(servers=sys.argv[1], timeout=20_000)
for n in itertools.count():
    backend.update(sys.argv[2], Update(Kind.OUTSIDE, fields={":hot": str(n)}))
    if n == 100:
        print("ready", flush=True)
"""


def spawn(*command: Any) -> subprocess.Popen[str]:
    """Start a writer and wait until it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", *map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("writers, count, meta", [(8, 250, True), (8, 100, False), (2, 2_000, True)])
def test_many_writers_of_one_message(
    server: MemcachedServer, backend: MemcachedBackend, message_id: str, writers: int, count: int, meta: bool
) -> None:
    # Given a running message
    backend.update(message_id, start(1))
    # When many processes write fields and increments to it as fast as they can
    processes = [spawn(WRITER, server.address, message_id, f"w{n}", count, meta) for n in range(writers)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    codes = [process.wait(100) for process in processes]
    for process in processes:
        process.communicate()
    # Then no process has failed, and all fields and increments are stored
    record = backend.read(message_id)
    assert codes == [0] * writers and record is not None and record[PROGRESS] == str(writers * count)
    assert sum(name.startswith(":w") for name in record) == writers * count


@pytest.fixture
def hot(server: MemcachedServer, backend: MemcachedBackend) -> Iterator[str]:
    """Yield a message to which another process writes all the time."""
    hot = uuid4().hex
    backend.update(hot, start(1))
    process = spawn(HOT_WRITER, server.address, hot)
    yield hot
    process.kill()
    process.communicate()


@pytest.mark.parametrize("meta", [True, False])
def test_a_fast_writer_lets_other_processes_write(make: Make, hot: str, meta: bool) -> None:
    # Given a message to which another process writes all the time
    backend = make(meta=meta)
    # When this process writes to it
    for _ in range(30):
        assert backend.update(hot, outside(increment=1)) is Outcome.APPLIED
    # Then each of its updates is stored
    record = backend.read(hot)
    assert record is not None and record[PROGRESS] == "30"


def test_a_contended_message_holds_up_no_other_message_of_a_worker(
    make: Make, backend: MemcachedBackend, hot: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a worker whose jobs increment one message, and write to another one, to which another process also writes
    caplog.set_level(logging.INFO, logger="dramatiq_status")
    writer = make(timeout=500)
    broker = make_broker(writer)
    counter = uuid4().hex
    backend.update(counter, start(1))
    ended: list[tuple[str, Any]] = []

    class Look(dramatiq.Middleware):
        def after_ack(self, broker: dramatiq.Broker, message: dramatiq.Message[Any]) -> None:
            ended.append((message.message_id, backend.read(message.message_id)))

    broker.add_middleware(Look())

    @dramatiq.actor(broker=broker)
    def work(n: int) -> None:
        StatusRegistry.get(hot, backend=writer).update(**{f"job{n % 10}": n})
        StatusRegistry.progress(counter, backend=writer).increment()
        current_status()["n"] = n

    with working(broker, threads=4) as worker:
        for n in range(200):
            work.send(n)
        broker.join(work.queue_name, timeout=60_000)
        worker.join()
    # When all jobs have run
    record = backend.read(counter)
    # Then each increment counts once, and no final state is late
    assert record is not None and record[PROGRESS] == "200"
    assert len(ended) == 200 and {found[STATE] for _, found in ended if found} == {"2"}
    # And no outage was logged
    assert "does not answer" not in caplog.text


# Messages that do not fit


@pytest.fixture
def full(start_server: StartServer) -> MemcachedServer:
    """Return a server that has no memory left for large items, and evicts nothing."""
    server = start_server(MemcachedServer("-m", "2", "-M"))
    for size in range(40_000, 130_000, 6_000):
        for n in range(100):
            value = b"x" * size
            if server.ask(b"set %d-%d 0 0 %d\r\n%b\r\n" % (size, n, size, value)).startswith(b"SERVER_ERROR"):
                break
    return server


def test_a_server_without_memory_refuses_one_message(full: MemcachedServer, caplog: pytest.LogCaptureFixture) -> None:
    # Given a server without memory for large items, and messages that run
    backend = MemcachedBackend(servers=full.address, timeout=PATIENT)
    ids = [uuid4().hex for _ in range(10)]
    backend.update_many([(message_id, start(1, step="1")) for message_id in ids])
    # When each message gets increments, and one of them a large field each time
    for sequence in range(2, 12):
        large = (ids[0], write(1, sequence, increment=1, large=LARGE))
        outcomes = backend.update_many([large, *[(message_id, outside(increment=1)) for message_id in ids]])
        assert outcomes == [Outcome.APPLIED] * 11
    # Then all counts are exact, and the status and one line of the log name the missing field
    assert [record and record[PROGRESS] for record in backend.read_many(ids)] == ["20", *["10"] * 9]
    snapshot = backend.snapshot(ids[0])
    assert snapshot is not None and snapshot.truncated == ("large",) and snapshot["step"] == 1
    assert sum("'large'" in line.getMessage() for line in caplog.records) == 1
    # And a direct write of the field raises an error and changes nothing
    with pytest.raises(BackendError, match="no memory"):
        backend.update(ids[1], outside(large=LARGE))
    record = backend.read(ids[1])
    assert record is not None and record[":step"] == "1" and record[STATE] == "1"
    backend.close()


def test_jobs_on_a_server_without_memory(full: MemcachedServer, caplog: pytest.LogCaptureFixture) -> None:
    # Given a worker with jobs, one of which writes a value for which the server has no memory
    backend = MemcachedBackend(servers=full.address, timeout=PATIENT)
    broker = make_broker(backend)
    counter = uuid4().hex
    backend.update(counter, start(1))

    @dramatiq.actor(broker=broker)
    def work(n: int) -> None:
        if n % 10 == 5:
            current_status()["large"] = LARGE[1:-1]
        StatusRegistry.progress(counter, backend=backend).increment()

    ids = []
    with working(broker, threads=4) as worker:
        ids = [work.send(n).message_id for n in range(50)]
        broker.join(work.queue_name, timeout=60_000)
        worker.join()
    # When all jobs have run
    found = [StatusRegistry.read(message_id, backend=backend) for message_id in ids]
    # Then all are completed and counted once, and no outage was logged
    assert all(snapshot is not None and snapshot.completed for snapshot in found)
    assert [bool(snapshot and snapshot.truncated) for snapshot in found] == [n % 10 == 5 for n in range(50)]
    record = backend.read(counter)
    assert record is not None and record[PROGRESS] == "50"
    assert "does not answer" not in caplog.text
    backend.close()


@pytest.mark.parametrize("reply", ["out of memory storing object", "object too large for cache"])
def test_a_message_that_is_always_refused_holds_up_no_other(
    wire: Wire, wired: MemcachedBackend, backend: MemcachedBackend, reply: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a message that a server always refuses, and another one
    refused, other = uuid4().hex, uuid4().hex
    backend.update_many([(message_id, start(1)) for message_id in (refused, other)])

    def meddle(request: bytes) -> bytes | None:
        # It reads its requests one by one, as a server does.
        if refused.encode() not in request or not request.startswith(b"ms "):
            return None
        others = request.partition(b"\r\nms ")[2]
        return f"SERVER_ERROR {reply}\r\n".encode() + (wire.server.ask(b"ms " + others) if others else b"")

    wire.meddle = meddle
    # When both are written together, and the first one alone
    outcomes = wired.update_many([(refused, outside(increment=1)), (other, outside(increment=1))])
    # Then the first one is refused and not unavailable, so that the writer does not send it again
    assert outcomes == [Outcome.UNSTORABLE, Outcome.APPLIED]
    with pytest.raises(StoreRefused, match=f"no memory for the status of message '{refused}'"):
        wired.update_many([(refused, outside(increment=1))])
    with pytest.raises(StoreRefused, match="no memory"):
        wired.update(refused, outside(increment=1))
    record = backend.read(other)
    assert record is not None and record[PROGRESS] == "1"
    # And only the writer logs it
    assert not caplog.records


# What is left out


def state_of(backend: MemcachedBackend, message_id: str) -> tuple[Any, ...]:
    """Return the state, the names of users' fields, and the names of missing fields."""
    snapshot = backend.snapshot(message_id)
    assert snapshot is not None
    return str(snapshot.state), sorted(snapshot.fields), sorted(snapshot.truncated)


def test_as_many_fields_as_fit(backend: MemcachedBackend, message_id: str, caplog: pytest.LogCaptureFixture) -> None:
    # Given 25 fields that do not fit into one item
    names = [f"field{n:02}" for n in range(25)]
    fields = {f":{name}": LARGE for name in names}
    whole = Update(Kind.RUN, run_token=1, sequence=2, fields=fields)
    updates: Sequence[Update] = [enqueue(), start(1), whole, finish(1)]
    # When they are written in one update, one after the other, and by an update that restores a lost record
    backend.update_many([(message_id, update) for update in updates])
    one_by_one = uuid4().hex
    backend.update(one_by_one, start(1))
    for n, (name, text) in enumerate(fields.items()):
        backend.update_many([(one_by_one, Update(Kind.RUN, run_token=1, sequence=2 + n, fields={name: text}))])
    backend.update_many([(one_by_one, finish(1, 99))])
    restored = uuid4().hex
    whole = finish(1, create=True)
    backend.update_many([(restored, whole._replace(fields={**whole.fields, **fields}))])
    # Then each state is right, as many fields as fit are stored, and the status and the log name the others
    for found in (message_id, one_by_one, restored):
        state, kept, missing = state_of(backend, found)
        assert state == "completed" and len(kept) == 17 and sorted(kept + missing) == names
        assert sum(found in line.getMessage() for line in caplog.records) == 1


def test_an_old_value_is_not_shown_for_a_new_one(backend: MemcachedBackend, message_id: str) -> None:
    # Given a message with large fields and a small one
    fields = {f":field{n}": LARGE for n in range(17)}
    backend.update_many([(message_id, start(1)), (message_id, write(1, 2, value="1", other="1"))])
    backend.update_many([(message_id, Update(Kind.RUN, run_token=1, sequence=3, fields=fields))])
    # When the small field gets a value that does not fit
    backend.update_many([(message_id, write(1, 4, value=LARGE, other="2"))])
    # Then readers do not find its old value
    snapshot = backend.snapshot(message_id)
    assert snapshot is not None and "value" not in snapshot and snapshot["other"] == 2
    assert snapshot.truncated == ("value",) and snapshot["truncated"] == ["value"]
    assert snapshot.to_dict()["truncated"] == ["value"] and '"truncated": ["value"]' in snapshot.to_json()
    # And a late enqueue or a retry does not restore the old value
    for update in (enqueue(value="0"), enqueue(generation=2, value="0"), start(2, generation=2)):
        backend.update_many([(message_id, update)])
        snapshot = backend.snapshot(message_id)
        assert snapshot is not None and "value" not in snapshot and snapshot.truncated == ("value",)
    # And after a value that fits, readers find this one, and no field is missing
    assert backend.update(message_id, write(2, 2, generation=2, value="3")) is Outcome.APPLIED
    snapshot = backend.snapshot(message_id)
    assert snapshot is not None and snapshot["value"] == 3 and snapshot.truncated == ()
    assert "truncated" not in snapshot.to_dict()


def test_a_full_item_takes_short_fields_and_its_end(backend: MemcachedBackend, message_id: str) -> None:
    # Given an item without room for users' fields
    fields = {f":field{n:05}": '"' + "x" * 50 + '"' for n in range(20_000)}
    backend.update(message_id, start(1))
    backend.update_many([(message_id, Update(Kind.RUN, run_token=1, sequence=2, fields=fields))])
    # When its run increments the progress and ends
    for sequence in range(3, 50):
        assert backend.update_many([(message_id, write(1, sequence, increment=1))]) == [Outcome.APPLIED]
    backend.update_many([(message_id, finish(1, 60))])
    # Then both are stored, and no list of missing fields takes their room
    snapshot = backend.snapshot(message_id)
    assert snapshot is not None and snapshot.completed and snapshot["progress"] == 47
    assert 0 < len(snapshot.truncated) <= 100
