"""Fields and records that do not fit into an item, and the largest ones that do."""

from __future__ import annotations

import time
from uuid import uuid4

import pytest

from dramatiq_status.backends.memcached import MemcachedBackend
from dramatiq_status.backends.memcached.protocol import StoreReply
from dramatiq_status.record import PROGRESS, RESULT, Record, is_finished
from dramatiq_status.testing.conformance import finish, outside, start, write
from dramatiq_status.update import Kind, Outcome, Update

from ...servers import MemcachedServer
from .wire import LARGE, PATIENT, Make, StartServer, server_of


def text_of(size: int) -> str:
    return '"' + "x" * (size - 2) + '"'


def filled(backend: MemcachedBackend, message_id: str) -> Record:
    """Return a running message whose record has room for one more large field, not for two."""
    fields = {f":field{n}": LARGE for n in range(16)}
    assert backend.update(message_id, start(1)) is Outcome.APPLIED
    assert backend.update(message_id, Update(Kind.OUTSIDE, fields=fields)) is Outcome.APPLIED
    record = backend.read(message_id)
    assert record is not None
    return record


def test_an_update_that_makes_a_record_too_large_changes_nothing(backend: MemcachedBackend, message_id: str) -> None:
    # Given a large record
    before = filled(backend, message_id)
    # When an update would make it larger than an item may be
    with pytest.raises(ValueError, match=f"{message_id!r}.*'last' with 65000") as caught:
        backend.update(message_id, outside(one=LARGE, last=text_of(65_000)))
    # Then the error names the largest field, and the record is as it was
    assert "-I" in str(caught.value) and backend.read(message_id) == before


def test_fields_of_a_batch_that_fit_are_stored(
    backend: MemcachedBackend, message_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a large record and a small one
    other_id = uuid4().hex
    filled(backend, message_id)
    backend.update(other_id, start(1))
    # When a batch contains a field that is too large for the first, and other updates of both
    outcomes = backend.update_many(
        [
            (message_id, write(1, 2, increment=1)),
            (message_id, write(1, 3, two=LARGE, big=text_of(65_000))),
            (other_id, write(1, 2, step="1")),
            (message_id, write(1, 4, increment=1)),
        ]
    )
    # Then all other fields are stored, and the log and the status name this one
    assert outcomes == [Outcome.APPLIED] * 4
    assert message_id in caplog.text and "'big'" in caplog.text
    snapshot, other = backend.snapshot(message_id), backend.read(other_id)
    assert snapshot is not None and (snapshot["progress"], snapshot.truncated) == (2, ("big",))
    assert snapshot["two"] == LARGE[1:-1] and "big" not in snapshot
    assert other is not None and other[":step"] == "1"


def test_a_final_state_is_stored_without_a_result_that_is_too_large(backend: MemcachedBackend, message_id: str) -> None:
    # Given a large record
    filled(backend, message_id)
    # When its message is completed with a result that does not fit
    with pytest.raises(ValueError, match="'result'"):
        backend.update(message_id, finish(1, result=text_of(100_000)))
    # Then it is completed without the result
    record = backend.read(message_id)
    assert record is not None and is_finished(record) and RESULT not in record


def test_a_server_with_larger_items(start_server: StartServer, message_id: str) -> None:
    # Given a server that takes items of 2 MB
    backend = MemcachedBackend(servers=start_server(MemcachedServer("-I", "2m")).address, timeout=PATIENT)
    filled(backend, message_id)
    # When a record grows to more than 1 MB
    backend.update(message_id, outside(one=LARGE, two=LARGE, three=LARGE))
    # Then it is stored
    record = backend.read(message_id)
    assert record is not None and record[":three"] == LARGE
    backend.close()


def test_the_largest_value_is_stored(backend: MemcachedBackend) -> None:
    # Given the longest key, and a value of the maximum size
    connection = server_of(backend).connect(time.monotonic() + 20)
    key, value = b"k" * 250, b"x" * connection.max_value_size
    # When it is stored
    connection.send(connection.store(key, value, 1000, None))
    stored, _ = connection.read_stored()
    # Then memcached takes it
    assert stored is StoreReply.STORED
    connection.send(connection.get(key))
    item = connection.read_item()
    assert item is not None and item.value == value
    connection.close()


def test_large_records_are_written_and_read_in_one_call(make: Make) -> None:
    # Given more bytes than fit into the sockets' buffers, half of them to be read and half to be written
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
    # Then both calls end
    assert outcomes == [Outcome.APPLIED] * 20 and all(record and record[PROGRESS] == "1" for record in found)
