"""Several writers to one message."""

from __future__ import annotations

import subprocess
import sys
from uuid import uuid4

import pytest

from dramatiq_status.backends.memcached import MemcachedBackend
from dramatiq_status.errors import BackendError
from dramatiq_status.record import PROGRESS, STATE, VERSION
from dramatiq_status.testing.conformance import enqueue, heartbeat, outside, start, together, write
from dramatiq_status.testing.conformance.store import until_answered
from dramatiq_status.update import Outcome

from ...recording import answered, eventually
from ...servers import MemcachedServer
from .wire import Make, Wire, once


def test_a_write_in_between_is_merged(backend: MemcachedBackend, make: Make, message_id: str) -> None:
    # Given a worker that has cached the item
    backend.update(message_id, start(1))
    # When another process writes before the worker's next write
    make().update(message_id, outside(step="1", increment=5))
    outcome = backend.update(message_id, write(1, 2, increment=1))
    # Then both are stored
    record = backend.read(message_id)
    assert outcome is Outcome.APPLIED and record is not None
    assert (record[":step"], record[PROGRESS], record[VERSION]) == ("1", "6", "3")


def test_a_refusal_comes_from_the_store_and_not_from_the_cache(
    backend: MemcachedBackend, make: Make, message_id: str
) -> None:
    # Given a process that has cached the item of a run
    backend.update(message_id, start(1))
    # When another run takes over, and this process writes for both
    make().update(message_id, start(2))
    outcomes = [backend.update(message_id, heartbeat(2)), backend.update(message_id, write(1, 2))]
    # Then the server's record decides
    assert outcomes == [Outcome.APPLIED, Outcome.REFUSED]


def test_a_run_restores_an_item_that_memcached_has_lost(
    backend: MemcachedBackend, server: MemcachedServer, message_id: str
) -> None:
    # Given a worker that has cached the item
    backend.update(message_id, start(1))
    # When memcached loses the item
    server.ask(b"flush_all\r\n")
    outcomes = [backend.update(message_id, write(1, 2)), backend.update(message_id, write(1, 3, create=True))]
    # Then the next update finds none, and a whole update restores it
    assert outcomes == [Outcome.MISSING, Outcome.APPLIED]
    assert backend.read(message_id) is not None


def test_two_writers_create_an_item_at_the_same_time(
    wire: Wire, wired: MemcachedBackend, backend: MemcachedBackend, message_id: str
) -> None:
    # Given a worker that finds no item, and another writer that is faster
    def be_quicker(request: bytes) -> None:
        backend.update(message_id, enqueue(user_id="42"))

    wire.meddle = once(be_quicker, b"ms")
    # When the worker creates the record
    outcome = wired.update(message_id, start(1, step="1"))
    # Then the record has the fields of both
    record = wired.read(message_id)
    assert outcome is Outcome.APPLIED and record is not None
    assert (record[":user_id"], record[":step"], record[STATE]) == ("42", "1", "1")


def test_a_late_enqueue_fills_gaps(backend: MemcachedBackend, make: Make, message_id: str) -> None:
    # Given a message that runs already
    make().update(message_id, start(1))
    # When another process stores its enqueue
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


def test_increments_of_several_processes_add_up(
    server: MemcachedServer, backend: MemcachedBackend, message_id: str
) -> None:
    # Given a running message
    backend.update(message_id, start(1))
    # When this process and two others increment the progress at the same time
    command = [sys.executable, "-c", COUNT, server.address, message_id]
    others = [subprocess.Popen(command) for _ in range(2)]
    for n in range(1_000):
        backend.update(message_id, write(1, 2 + n, increment=1))
    codes = [other.wait(60) for other in others]
    # Then the sum is exact
    record = backend.read(message_id)
    assert codes == [0, 0] and record is not None and record[PROGRESS] == "5000"


def test_increments_of_batches_add_up(make: Make) -> None:
    # Given a few messages
    ids = [uuid4().hex for _ in range(5)]
    make().update_many([(message_id, start(1)) for message_id in ids])

    # When several threads write to all of them in batches, twice to each message
    def count() -> None:
        backend = make()
        for _ in range(200):
            backend.update_many([(message_id, outside(increment=1)) for message_id in [*ids, *ids]])

    together(count, count, count)
    # Then no increment is lost
    found = make().read_many(ids)
    assert [record and record[PROGRESS] for record in found] == ["1200"] * 5


def test_an_update_that_only_finds_conflicts_ends_with_an_error(wire: Wire, make: Make, message_id: str) -> None:
    # Given another process that always writes first
    backend = make(servers=wire.address, timeout=200)
    until_answered(lambda: backend.read("warm"))
    make().update(message_id, start(1))
    wire.meddle = lambda request: b"EX\r\n" if request.startswith(b"ms") else None

    def complaint() -> bool:
        # When the backend writes to the same record
        with pytest.raises(BackendError) as caught:
            backend.update(message_id, outside(step="1"))
        return "Other processes kept writing" in str(caught.value)

    # Then the update ends with an error, which names the cause unless a reply was late
    eventually(complaint)
    # And a call for a batch returns UNAVAILABLE for this message alone, so that the writer sends no other update again
    other_id = uuid4().hex
    direct = make()
    direct.update(other_id, start(1))
    wire.meddle = lambda request: b"EX\r\n" if request.startswith(b"ms") and message_id.encode() in request else None
    updates = [(message_id, outside(step="1")), (other_id, outside(increment=1))]
    # (In a tuple, UNAVAILABLE counts as an answer.)
    assert answered(lambda: tuple(backend.update_many(updates[:1]))) == (Outcome.UNAVAILABLE,)
    assert answered(lambda: tuple(backend.update_many(updates))) == (Outcome.UNAVAILABLE, Outcome.APPLIED)
    wire.meddle = lambda request: None
    assert answered(lambda: backend.update(message_id, outside(step="1"))) is Outcome.APPLIED
