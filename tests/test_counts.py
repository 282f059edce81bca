"""Tests of increments of fields and totals, of deletions of fields, and of pickled handles."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import json
import logging
import multiprocessing
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from hypothesis import given, settings
from hypothesis import strategies as st

from dramatiq_status import (
    Progress,
    StatusMissing,
    StatusRegistry,
    aio,
    current_progress,
    current_status,
)
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends import RedisBackend, StubBackend
from dramatiq_status.record import COMPLETED, Record, count_on
from dramatiq_status.testing import bound_status
from dramatiq_status.update import Changes, EnqueueId, Kind, Update
from dramatiq_status.writer import Confirmation, Enqueue, Finish, MessageBuffer, Start

from .recording import RecordingBackend, make_broker, run
from .test_properties import STABLE

ENQUEUE_ID = EnqueueId(7, 1)


@pytest.fixture
def backend(shared_backend: StatusBackend) -> StatusBackend:
    return shared_backend


def perform(backend: StatusBackend, job: Callable[[], Any], **options: Any) -> dict[str, Any]:
    """Run a job, and return what its status then holds."""
    broker = make_broker(backend)
    dramatiq.set_broker(broker)

    @dramatiq.actor(broker=broker, **options)
    def work() -> None:
        job()

    message = work.send_with_options(status={"given": 1, "rows": 10, "text": "a"})
    run(broker)
    return dict(StatusRegistry.wait(message, backend=backend))


# In a run


def test_a_run_counts_on_fields_and_deletes_fields(backend: StatusBackend) -> None:
    # Given an actor that counts on fields, on its total, and deletes fields
    def job() -> None:
        status, progress = current_status(), current_progress()
        for _ in range(3):
            status.increment("rows", 500)
            status.increment("bytes", 0.5)
            status.increment("bytes")
            progress.add_total(7)
        status.increment("progress", 2)
        status.increment("total", 1)
        assert (progress.progress, progress.total) == (2, 22)
        status.update(step="1", none=None)
        del status["step"]
        status.unset("given", "never there")
        status.increment("none")
        assert "given" not in status and status["rows"] == 1510

    # When it has run
    found = perform(backend, job)
    # Then the status has all changes
    names = ("rows", "bytes", "progress", "total", "none", "text")
    assert {name: found[name] for name in names} == {
        "rows": 1510, "bytes": 4.5, "progress": 2, "total": 22, "none": 1, "text": "a",
    }  # fmt: skip
    assert not {"given", "step", "never there"} & found.keys()


def test_children_add_to_the_total_of_their_parent(backend: StatusBackend) -> None:
    # Given a parent, and children that run on many threads
    broker = make_broker(backend)

    @dramatiq.actor(broker=broker)
    def child() -> None:
        StatusRegistry.progress("parent", backend=backend).add_total(2)
        StatusRegistry.get("parent", backend=backend).increment("rows", 500)

    backend.update("parent", Update(Kind.ENQUEUE, ENQUEUE_ID, fields={"t": "null"}))
    for _ in range(400):
        child.send()
    # When all messages have run
    run(broker, threads=8)
    # Then no change is lost
    parent = StatusRegistry.read("parent", backend=backend)
    assert parent is not None and (parent.total, parent["rows"]) == (800, 200_000)


def test_a_retry_does_not_restore_deleted_fields(backend: StatusBackend) -> None:
    seen: list[set[str]] = []

    # Given a message that was sent with fields, of which its first run and another process delete one each
    def job() -> None:
        status = current_status()
        seen.append({"given", "text", "rows"} & status.to_dict().keys())
        if len(seen) == 1:
            del status["given"]
            # A thread has no run: it writes from outside.
            with ThreadPoolExecutor() as threads:
                threads.submit(lambda: StatusRegistry.get(status.message_id, backend=backend).unset("rows")).result()
        if len(seen) < 3:
            raise RuntimeError

    # When it is retried twice
    found = perform(backend, job, max_retries=2, min_backoff=1)
    # Then both fields stay deleted
    assert seen == [{"given", "text", "rows"}, {"text"}, {"text"}]
    assert "given" not in found and "rows" not in found and found["text"] == "a"


def test_counting_on_a_text_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    # Given an actor that counts on a text, again and again
    def job() -> None:
        for n in range(3):
            current_status().increment("text", 5)
            current_status().update(step=n)
            current_status().flush()

    # When it runs
    with caplog.at_level(logging.WARNING):
        found = perform(RecordingBackend(), job)
    # Then its status is right, and the log has one line
    assert (found["status"], found["text"], found["step"]) == ("completed", "a", 2)
    assert [record.getMessage().count("'text'") for record in caplog.records] == [1]


# From outside


def test_counts_and_deletions_from_outside_of_a_worker(backend: StatusBackend) -> None:
    # Given a message
    backend.update("m", Update(Kind.ENQUEUE, ENQUEUE_ID, fields={":text": '"a"', ":step": "1", ":gone": "1"}))
    status, progress = (get("m", backend=backend) for get in (StatusRegistry.get, StatusRegistry.progress))
    asynchronous = aio.StatusRegistry.get("m", backend=backend), aio.StatusRegistry.progress("m", backend=backend)

    async def write() -> None:
        await asynchronous[0].increment("rows", 2)
        await asynchronous[0].increment("progress", 3)
        await asynchronous[1].add_total(4)
        await asynchronous[0].increment("total", 1)
        await asynchronous[0].unset("gone")
        with pytest.raises(ValueError, match="'text' of message 'm'"):
            await asynchronous[0].increment("text")
        await aio.close()

    # When other processes increment its fields and delete some
    status.increment("rows")
    progress.add_total(5)
    del status["step"]
    asyncio.run(write())
    # Then the status has all changes
    found = dict(status.read() or ())
    assert (found["rows"], found["total"], found["progress"], found["text"]) == (3, 10, 3, "a")
    assert not {"step", "gone"} & found.keys()
    # And increments of a text, and changes of an unknown message, raise errors
    with pytest.raises(ValueError, match="'text' of message 'm'"):
        status.increment("text")
    for write_to in (lambda s: s.increment("rows"), lambda s: s.unset("step")):
        with pytest.raises(StatusMissing):
            write_to(StatusRegistry.get("nobody", backend=backend))


@pytest.mark.parametrize(
    ("write", "error", "text"),
    [
        (lambda status: status.increment("attempts"), ValueError, "'attempts'"),
        (lambda status: status.increment("status"), ValueError, "'status'"),
        (lambda status: status.increment(5), TypeError, "strings"),
        (lambda status: status.increment("rows", "5"), TypeError, "'rows'"),
        (lambda status: status.increment("rows", True), TypeError, "'rows'"),
        (lambda status: status.increment("rows", float("nan")), ValueError, "'rows'"),
        (lambda status: status.increment("total", -1), ValueError, "'total'"),
        (lambda status: status.unset("step", "status"), ValueError, "'status'"),
        (lambda status: status.unset("progress"), ValueError, "'progress'"),
        (lambda status: status.unset("total"), ValueError, "'total'"),
        (lambda status: status.unset("heartbeat_at"), ValueError, "'heartbeat_at'"),
        (lambda status: status.unset(5), TypeError, "strings"),
        (lambda status: Progress(status._channel).add_total(-1), ValueError, "'total'"),
        (lambda status: Progress(status._channel).add_total("1"), TypeError, "'total'"),
    ],
)
def test_wrong_counts_and_deletions_raise(write: Any, error: type[Exception], text: str) -> None:
    # Given a status
    with bound_status() as status:
        status.update(step="1", rows=2)
        before = status.read()
        # When a wrong count or deletion is written
        # Then an error is raised, and the status is unchanged
        with pytest.raises(error, match=text):
            write(status)
        assert status.read() == before


def test_a_forked_process_counts_and_deletes(redis_url: str) -> None:
    # Given an actor that forks a process, which counts and deletes
    def count() -> None:
        current_status().increment("rows", 5)
        current_status().increment("text", 5)
        current_progress().add_total(3)
        del current_status()["given"]
        assert current_progress().total == 3

    def job() -> None:
        process = multiprocessing.get_context("fork").Process(target=count)
        process.start()
        process.join()
        assert process.exitcode == 0

    # When it has run
    backend = RedisBackend(url=redis_url, timeout=20_000)
    found = perform(backend, job)
    # Then the status has all changes
    assert (found["rows"], found["total"], found["text"]) == (15, 3, "a") and "given" not in found
    backend.close()


# Merging in a message buffer


class NoWriter:
    """A writer that sends only when the test lets it."""

    def __init__(self) -> None:
        self.running: dict[Any, None] = {}

    def put(self, buffer: MessageBuffer) -> None:
        pass


names = st.sampled_from([":a", ":b"])
steps = st.one_of(
    st.tuples(st.just("set"), names, st.sampled_from(["5", "0.5", "null", '"text"'])),
    st.tuples(st.just("count"), st.sampled_from([":a", ":b", "t"]), st.integers(-3, 9)),
    st.tuples(st.just("delete"), names, st.none()),
    st.tuples(st.sampled_from(["progress", "increment"]), st.just("p"), st.integers(0, 9)),
    *[st.tuples(st.just("send"), st.sampled_from(["stored", "lost reply", "not sent"]), st.none())] * 2,
    st.tuples(st.just("lose"), st.just(""), st.none()),
    st.tuples(st.just("requeue"), st.just(""), st.none()),
)

GIVEN = {":a": "3", ":b": '"b"', "t": "null"}


def written(record: Record, kind: str, name: str, value: Any) -> None:
    """Apply one step to a record at once."""
    if kind in ("set", "progress"):
        record[name] = str(value)
    elif kind == "delete":
        record.pop(name, None)
    elif kind in ("count", "increment"):
        record[name] = count_on(record.get(name), value) or record[name]


def send(buffer: MessageBuffer, backend: StubBackend, fate: str) -> bool:
    updates = buffer.take(0.0)
    if fate == "not sent":
        return True
    outcomes = backend.update_many([("m", update) for update in updates])
    return True if fate == "lost reply" else buffer.settle(updates, outcomes)


@settings(max_examples=400, derandomize=STABLE, deadline=None)
@given(history=st.lists(steps, max_size=14), late=st.booleans())
def test_merged_writes_equal_single_writes(history: list[tuple[str, str, Any]], late: bool) -> None:
    # Given the buffer of a run, which may begin before its enqueue is stored, and of a second one after a requeue
    backend = StubBackend()
    enqueue = Update(Kind.ENQUEUE, ENQUEUE_ID, fields=GIVEN)
    if not late:
        backend.update("m", enqueue)
    buffer, run_token = _begin(ENQUEUE_ID, 1), 1
    expected = dict(GIVEN)
    # When the runs write, while replies and records are lost
    for kind, name, value in history:
        if kind == "send":
            send(buffer, backend, name)
            if late and name != "not sent":
                late = False
                backend.update("m", enqueue)
        elif kind == "lose":
            # Only the store has the values of an earlier run.
            if run_token == 1:
                backend.delete("m")
                buffer.restore()
        elif kind == "requeue":
            buffer.add(Enqueue(EnqueueId(7, run_token + 1), GIVEN))
            while send(buffer, backend, "stored"):
                pass
            run_token += 1
            buffer = _begin(EnqueueId(7, run_token), run_token)
            expected.pop("p", None)
        else:
            written(expected, kind, name, value)
            _write(buffer, kind, name, value)
    buffer.finish(Finish(COMPLETED, {}, 1000), Confirmation())
    while send(buffer, backend, "stored"):
        pass
    # Then the record is the same as if each step had been applied at once
    record = backend.read("m") or {}
    assert {name: record.get(name) for name in (":a", ":b", "t")} == {
        name: expected.get(name) for name in (":a", ":b", "t")
    }
    assert json.loads(record.get("p", "0")) == json.loads(expected.get("p", "0"))


def _begin(enqueue_id: EnqueueId, run_token: int) -> MessageBuffer:
    buffer = MessageBuffer(NoWriter(), "m", kind=Kind.RUN, run_token=run_token, enqueue_id=enqueue_id, base=GIVEN.copy)  # type: ignore[arg-type]
    buffer.repeatable = True
    buffer.add(Start({}, run_token))
    return buffer


def _write(buffer: MessageBuffer, kind: str, name: str, value: Any) -> None:
    if kind == "increment":
        buffer.increment(value)
    elif kind == "count":
        buffer.write({}, changes=Changes({name: value}))
    elif kind == "delete":
        buffer.write({}, changes=Changes(deleted=frozenset((name,))))
    else:
        buffer.write({name: str(value)})


# Copied and pickled handles


def test_a_job_that_uses_no_registry_can_pickle_its_handles() -> None:
    # Given a process that imports no more than a worker needs
    script = """
        import pickle
        import dramatiq
        from dramatiq.brokers.stub import StubBroker
        from dramatiq_status import StatusMiddleware, current_progress, current_status
        from dramatiq_status.backends import StubBackend

        broker = StubBroker(middleware=[StatusMiddleware(backend=StubBackend())])

        @dramatiq.actor(broker=broker)
        def work():
            print(len(pickle.dumps((current_status(), current_progress()))) < 1000, flush=True)

        work.send()
        worker = dramatiq.Worker(broker, worker_timeout=10)
        worker.start()
        broker.join("default")
        worker.stop(timeout=1_000)
        """
    # When a job pickles its handles
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60)
    # Then each is its message id
    assert done.stdout == "True\n", done.stderr


def test_handles_are_pickled_as_their_message_id() -> None:
    # Given a broker with statuses, and handles from all sources
    backend = RecordingBackend()
    pickled: list[bytes] = []

    def job() -> None:
        status, progress = current_status(), current_progress()
        of_aio = aio.StatusRegistry.get(status.message_id), aio.StatusRegistry.progress(status.message_id)
        pickled.append(pickle.dumps((status, progress, *of_aio)))
        # A copy in the run is a handle of the run.
        copied = copy.deepcopy({"status": status, "progress": progress, "aio": of_aio})
        copied["status"]["copied"] = True
        copied["progress"].increment(2)
        assert pickle.loads(pickled[0])[0]._channel is status._channel
        assert copied["aio"][0]._channel is of_aio[0]._channel

    found = perform(backend, job)
    assert (found["copied"], found["progress"]) == (True, 2)
    handles = (StatusRegistry.get(found["message_id"]), aio.StatusRegistry.get(found["message_id"]))
    for raw in (pickled[0], pickle.dumps((handles[0], StatusRegistry.progress(found["message_id"]), *handles[1:]))):
        # When they are unpickled outside of the run
        status, progress, of_aio, *_ = pickle.loads(raw)
        # Then they read and write as handles of the registry do
        progress.increment()
        status.increment("rows")
        assert (status["rows"], progress.total) == (dict(handles[0].read() or ())["rows"], 100)
        assert asyncio.run(of_aio.state) == "completed"
    assert dict(handles[0].read() or ())["progress"] == 4


def test_a_copy_keeps_its_store(broker: StubBroker) -> None:
    # Given a handle of a store that no broker has
    backend = StubBackend()
    backend.update("m", Update(Kind.ENQUEUE, ENQUEUE_ID))
    # When it is copied
    copied = copy.deepcopy(StatusRegistry.get("m", backend=backend))
    # Then the copy has the same store
    copied["step"] = 1
    assert StatusRegistry.get("m", backend=backend)["step"] == 1
    # But an unpickled one uses the default broker
    with pytest.raises(RuntimeError, match="StatusMiddleware"):
        pickle.loads(pickle.dumps(copied))


@pytest.fixture
def broker() -> StubBroker:
    broker = StubBroker()
    dramatiq.set_broker(broker)
    return broker


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda handles: pickle.loads(pickle.dumps(handles))])
def test_detached_handles_are_copied_with_their_values(clone: Any) -> None:
    def copied() -> None:
        # Given detached handles
        with bound_status() as status:
            status["step"] = 1
            # When they are copied
            found, progress = clone((status, current_progress()))
            # Then the copies share their values, and the originals keep their own
            progress.add_total(5)
            del found["step"]
            assert (found.total, "step" in found, status["step"], current_progress().total) == (5, False, 1, 100)

    contextvars.Context().run(copied)
