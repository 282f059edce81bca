"""Tests of a store with many servers, one of which does not answer."""

from __future__ import annotations

import threading

import pytest

from dramatiq_status.record import COMPLETED, PROGRESS, STATE
from dramatiq_status.update import Kind, Update
from dramatiq_status.writer import Confirmation, Finish

from ..recording import PATIENCE, eventually
from .support import ENQUEUE_ID, MakeWriter, Silent, begin


@pytest.mark.parametrize("throttle", [0, 3_600_000])
def test_a_server_that_does_not_answer_gets_no_further_calls(
    make_writer: MakeWriter, monkeypatch: pytest.MonkeyPatch, throttle: int
) -> None:
    # Given a message whose server does not answer, while other servers do
    backend = Silent(others=True)
    writer = make_writer(backend)
    monkeypatch.setattr("dramatiq_status.writer.sender.LONGEST_PAUSE", 3600.0)
    buffer = begin(writer, throttle=throttle)
    eventually(lambda: backend.calls)
    # When the job increments its progress, and ends
    for _ in range(1000):
        buffer.increment()
        writer._wakeup.wake()
    confirmation = Confirmation()
    buffer.finish(Finish(COMPLETED, {}, 60_000), confirmation)
    # Then no thread waits for the server, and few calls go to it
    assert not writer.confirm(buffer, confirmation)
    eventually(lambda: confirmation.stored is False)
    assert len(backend.calls) == 1
    # And the record is complete once it answers
    backend.silent = False
    assert writer.drain(PATIENCE)
    record = backend.read("m")
    assert record is not None and (record[PROGRESS], record[STATE]) == ("1000", str(COMPLETED))


def test_a_drain_waits_for_a_record_whose_server_was_unavailable(make_writer: MakeWriter) -> None:
    # Given a process that has incremented a message whose server was unavailable, and that ends
    backend = Silent(others=True)
    writer = make_writer(backend)
    writer.outside("parent").increment(3)
    eventually(lambda: backend.calls)
    ending = threading.Thread(target=writer.drain, args=(PATIENCE,))
    ending.start()
    eventually(lambda: writer._queue.drains)
    # When the server is back, and has the record from another process a moment later
    backend.silent = False
    calls = len(backend.calls)
    eventually(lambda: len(backend.calls) > calls)
    backend.update("parent", Update(Kind.ENQUEUE, ENQUEUE_ID))
    ending.join(PATIENCE)
    # Then the increment is stored
    record = backend.read("parent")
    assert record is not None and record.get(PROGRESS) == "3"
