"""Names that the library shares with users: ``result``, ``args``, ``kwargs`` and ``traceback``."""

from __future__ import annotations

from typing import Any

import dramatiq
import pytest
from dramatiq.results import Results
from dramatiq.results.backends import StubBackend as StubResults

from dramatiq_status import StatusRegistry, current_status
from dramatiq_status.backend import StatusBackend
from dramatiq_status.options import INCLUDES
from dramatiq_status.testing import bound_status

from .recording import make_broker, run

SHARED = {"result": [1], "args": "mine", "kwargs": {"a": 1}, "traceback": None}


@pytest.mark.parametrize("includes", [(), INCLUDES], ids=["nothing included", "all included"])
def test_users_may_write_fields_with_the_names_of_includes(every_backend: StatusBackend, includes: Any) -> None:
    broker = make_broker(every_backend, Results(backend=StubResults()), includes=includes)

    # Given a job that writes them and fails, in each of two runs
    @dramatiq.actor(broker=broker, max_retries=1)
    def work(failures: int) -> str:
        status = current_status()
        status.update(SHARED)
        if status["attempts"] <= failures:
            raise ValueError("once more")
        return "returned"

    # When it has run, and another job that always fails
    messages = [work.send(1), work.send(2)]
    run(broker)
    # Then a reader finds the written values by name, in dict(snapshot) and in snapshot.fields
    for message, state in zip(messages, ("completed", "failed")):
        snapshot = StatusRegistry.get(message, backend=every_backend).read()
        assert snapshot is not None and snapshot.state == state
        assert {name: snapshot[name] for name in SHARED} == SHARED
        assert {name: snapshot.to_dict()[name] for name in SHARED} == SHARED == snapshot.fields


def test_the_result_is_what_the_last_run_wrote_or_returned(every_backend: StatusBackend) -> None:
    broker = make_broker(every_backend, Results(backend=StubResults()), includes={"result"})

    # Given jobs that return a value, some of which also write a field `result`, in this run or in an earlier one
    @dramatiq.actor(broker=broker, max_retries=1)
    def work(writes: int) -> str:
        status = current_status()
        if status["attempts"] <= writes:
            status["result"] = "written"
        if status["attempts"] == 1:
            raise ValueError("once")
        return "returned"

    # When they have run, one of them sent with a field `result`
    messages = [work.send(0), work.send(1), work.send(2), work.send_with_options(args=(0,), status={"result": "none"})]
    run(broker)
    # Then `result` is what the last run has written, or else what it has returned
    found = [StatusRegistry.get(message, backend=every_backend) for message in messages]
    assert [status["result"] for status in found] == ["returned", "returned", "written", "returned"]
    # And other processes may write it, too
    found[0]["result"] = None
    snapshot = found[0].read()
    assert snapshot is not None and snapshot["result"] is None and "result" in snapshot
    assert snapshot.fields["result"] is None


def test_a_written_result_stays_after_a_retry(every_backend: StatusBackend) -> None:
    broker = make_broker(every_backend)

    # Given a job that writes a result in its first run alone
    @dramatiq.actor(broker=broker, max_retries=1)
    def work() -> None:
        status = current_status()
        if status["attempts"] == 1:
            status["result"] = "half"
            raise ValueError("once")

    # When it has run twice
    message = work.send()
    run(broker)
    # Then the result stays, as any field
    assert StatusRegistry.get(message, backend=every_backend)["result"] == "half"


def test_includes_are_read_by_their_names(every_backend: StatusBackend) -> None:
    broker = make_broker(every_backend, includes=INCLUDES - {"result"})

    # Given a job with all includes, which writes one of the names
    @dramatiq.actor(broker=broker)
    def work(a: int, *, b: int) -> None:
        current_status()["kwargs"] = "mine"
        raise ValueError("boo")

    # When it has failed
    message = work.send(1, b=2)
    run(broker)
    # Then the other names have the library's values
    snapshot = StatusRegistry.get(message, backend=every_backend).read()
    assert snapshot is not None and (snapshot["args"], snapshot["kwargs"]) == ([1], "mine")
    assert "ValueError: boo" in snapshot["traceback"] and set(snapshot.fields) == {"kwargs"}
    assert "args" in snapshot and snapshot.to_dict()["args"] == [1] and snapshot.to_dict()["kwargs"] == "mine"


def test_detached_handles_keep_a_result() -> None:
    # Given a function that is called without a worker
    with bound_status() as status:
        # When it writes a field `result`
        current_status()["result"] = 7
        # Then the handle has it
        assert status["result"] == 7 and status.to_dict()["result"] == 7
