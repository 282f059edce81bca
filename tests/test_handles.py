"""Tests of Status and Progress inside and outside of actors."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import inspect
import json
import threading
import weakref
from collections.abc import AsyncIterator
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Middleware, SkipMessage

from dramatiq_status import (
    Status,
    StatusMissing,
    StatusOptionError,
    StatusRegistry,
    aio,
    current_progress,
    current_status,
    track,
)
from dramatiq_status.context import current_binding
from dramatiq_status.snapshot import Snapshot
from dramatiq_status.testing import bound_status
from dramatiq_status.update import Kind, Update, apply

from .jobs import Job
from .recording import RecordingBackend, make_broker, raised_by, run


@pytest.fixture
def backend() -> RecordingBackend:
    return RecordingBackend()


@pytest.fixture
def broker(backend: RecordingBackend) -> StubBroker:
    return make_broker(backend, asyncio=True)


def final(backend: RecordingBackend, message: dramatiq.Message[Any]) -> dict[str, Any]:
    found = StatusRegistry.get(message, backend=backend).to_dict()
    assert found
    return found


def test_values_keep_their_types(backend: RecordingBackend, broker: StubBroker) -> None:
    # Given an actor that writes values of many kinds
    values = {"text": "7", "number": 7, "float": 0.5, "none": None, "deep": {"a": [1, "žluť", {}]}, "yes": True}

    @dramatiq.actor(broker=broker)
    def work() -> None:
        status = current_status()
        status.update(values)
        status["one"] = "1"

    # When it has run
    message = work.send()
    run(broker)
    # Then readers get the written values
    found = final(backend, message)
    assert {name: found[name] for name in values} == values and found["one"] == "1"


def test_a_run_reads_its_own_writes(backend: RecordingBackend, broker: StubBroker) -> None:
    # Given an actor that reads what it has just written
    seen: list[Any] = []

    @dramatiq.actor(broker=broker)
    def work() -> None:
        status, progress = current_status(), current_progress()
        status["step"] = "reading"
        progress.total = 50
        progress.increment(20)
        progress.decrement(10)
        seen.extend([status["step"], status.get("none", 1), status.progress, status.state, "step" in status])
        seen.extend([progress.progress, progress.total, progress.fraction, status.working, bool(status)])

    # When it has run
    work.send()
    run(broker)
    # Then the run has read its own writes
    assert seen == ["reading", 1, 0.2, "working", True, 10, 50, 0.2, True, True]


def test_a_second_loop_starts_from_zero(backend: RecordingBackend, broker: StubBroker) -> None:
    # Given an actor with two counts
    @dramatiq.actor(broker=broker)
    def work() -> None:
        for _ in track(range(7), step="one"):
            pass
        current_status().update(step="two", total=50, progress=0)
        current_progress().increment(5)

    # When it has run
    message = work.send()
    run(broker)
    # Then the status shows the last count
    found = final(backend, message)
    assert (found["step"], found["progress"], found["total"]) == ("two", 5, 50)


def test_track_sets_the_total_of_an_iterable_without_a_length(backend: RecordingBackend, broker: StubBroker) -> None:
    # Given an actor that tracks an iterable without a length
    @dramatiq.actor(broker=broker)
    def work() -> None:
        for _ in track(n for n in range(13)):
            pass

    # When it has run
    message = work.send()
    run(broker)
    # Then the total is the number of items
    found = final(backend, message)
    assert (found["progress"], found["total"]) == (13, 13)


@pytest.mark.parametrize(
    ("write", "error", "text"),
    [
        (lambda status: status.update(step=object()), TypeError, "'step' of type object"),
        (lambda status: status.update(step={1: 2}), TypeError, "int"),
        (lambda status: status.update(step=float("nan")), ValueError, "'step' of type float"),
        (lambda status: status.update(step="x" * 70_000), ValueError, "65536"),
        (lambda status: status.update(attempts=7), ValueError, "'attempts'"),
        (lambda status: status.update(status="done"), ValueError, "'done'"),
        (lambda status: status.update(status="queued"), ValueError, "Retry"),
        (lambda status: status.update({7: 7}), TypeError, "strings"),
        (lambda status: status.update({"": 7}), ValueError, "empty"),
        (lambda status: status.update({"a\nb": 7}), ValueError, "printable"),
        (lambda status: status.update(progress="7"), TypeError, "'progress'"),
        (lambda status: status.update(total=-1), ValueError, "'total'"),
        (lambda status: status.update(total=float("inf")), ValueError, "'total'"),
        (lambda status: current_progress().increment("1"), TypeError, "'increment'"),  # type: ignore[arg-type]
        (lambda status: current_progress().decrement(None), TypeError, "'decrement'"),  # type: ignore[arg-type]
    ],
)
def test_wrong_values_raise_where_they_are_written(
    backend: RecordingBackend, broker: StubBroker, write: Any, error: type[Exception], text: str
) -> None:
    raised: list[BaseException | None] = []

    # Given an actor that writes a wrong value between two good ones
    @dramatiq.actor(broker=broker)
    def work() -> None:
        status = current_status()
        status["before"] = 1
        raised.append(raised_by(lambda: write(status)))
        status["after"] = 2

    # When it has run
    message = work.send()
    run(broker)
    # Then only the line with the wrong value has raised an error
    (found,) = raised
    assert isinstance(found, error) and text in str(found)
    stored = final(backend, message)
    assert (stored["status"], stored["before"], stored["after"]) == ("completed", 1, 2)


def test_async_actors_write_to_their_own_status(backend: RecordingBackend, broker: StubBroker) -> None:
    # Given a coroutine that writes from tasks and threads that inherit its context
    @dramatiq.actor(broker=broker)
    async def work() -> None:
        async def child() -> None:
            current_status()["task"] = True
            current_progress().increment()

        await asyncio.gather(*(asyncio.create_task(child()) for _ in range(3)))
        await asyncio.to_thread(lambda: current_progress().increment(4))
        current_status()["self"] = current_status().message_id

    # When two of them run at the same time
    messages = [work.send() for _ in range(2)]
    run(broker)
    # Then each has written to its own status
    for message in messages:
        found = final(backend, message)
        assert (found["task"], found["progress"], found["self"]) == (True, 7, message.message_id)


def test_threads_write_by_a_handle_that_they_are_passed(backend: RecordingBackend, broker: StubBroker) -> None:
    inherited: list[str] = []

    # Given an actor that passes its handle to threads, and another thread that calls current_status()
    @dramatiq.actor(broker=broker)
    def work() -> None:
        progress = current_progress()
        threads = [threading.Thread(target=lambda: [progress.increment() for _ in range(10_000)]) for _ in range(8)]
        threads.append(threading.Thread(target=lambda: inherited.append(current_status().message_id)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    # When it has run
    message = work.send()
    run(broker)
    # Then no increment is lost, and threads inherit nothing
    assert final(backend, message)["progress"] == 80_000 and inherited == [""]


def test_actors_that_call_actors_and_send_messages(backend: RecordingBackend, broker: StubBroker) -> None:
    sent: list[Any] = []

    # Given an actor that calls another actor's function, and sends it a message
    @dramatiq.actor(broker=broker)
    def other(name: str) -> None:
        current_status()[name] = current_status().message_id

    @dramatiq.actor(broker=broker)
    def work() -> None:
        other.fn("called")
        sent.append(other.send("sent"))
        current_status()["self"] = True

    # When both messages have run
    message = work.send()
    run(broker)
    # Then each message has its own fields
    outer, inner = final(backend, message), final(backend, sent[0])
    assert outer["called"] == message.message_id and outer["self"] is True and "sent" not in outer
    assert inner["sent"] == sent[0].message_id and inner["actor_name"] == "other"


def test_children_count_on_their_parents_bar(backend: RecordingBackend, broker: StubBroker) -> None:
    # Given children that count on a parent's bar and write to it
    @dramatiq.actor(broker=broker)
    def child(parent: str) -> None:
        StatusRegistry.progress(parent, backend=backend).increment()
        StatusRegistry.get(parent, backend=backend)["seen"] = True

    @dramatiq.actor(broker=broker)
    def parent() -> None:
        current_progress().total = 20

    message = parent.send()
    run(broker)
    # When they have run
    for _ in range(20):
        child.send(message.message_id)
    run(broker, threads=8)
    # Then the parent has each increment
    found = final(backend, message)
    assert (found["progress"], found["seen"]) == (20, True)


def test_a_run_reads_its_own_writes_to_another_message(backend: RecordingBackend, broker: StubBroker) -> None:
    # Given an actor whose writes are kept for an hour, and that reads what it has written to another message
    seen: list[Any] = []

    @dramatiq.actor(broker=broker, status_throttle=3_600_000)
    def work(parent: str) -> None:
        status = StatusRegistry.get(parent, backend=backend)
        progress = StatusRegistry.progress(parent, backend=backend)
        for n in range(3):
            progress.increment()
            status.update(n=n)
            seen.append((progress.progress, status["n"]))

    @dramatiq.actor(broker=broker)
    def parent() -> None: ...

    message = parent.send()
    run(broker)
    # When it has run
    work.send(message.message_id)
    run(broker)
    # Then the run has read its own writes
    assert seen == [(1, 0), (2, 1), (3, 2)]


def test_no_handle_stays_bound_after_a_message(backend: RecordingBackend) -> None:
    left: list[Any] = []

    # Given a middleware before StatusMiddleware in the list, and jobs with every kind of end
    class Probe(Middleware):
        def before_process_message(self, broker: Any, message: Any) -> None:
            left.append(current_binding())
            if message.args == ("skip",):
                raise SkipMessage

    broker = make_broker(backend, Probe())

    @dramatiq.actor(broker=broker)
    def work(what: str) -> None:
        if what == "raise":
            raise ValueError

    # When they run one after the other on one thread
    for what in ("return", "raise", "skip", "return", "skip"):
        work.send(what)
    run(broker, threads=1)
    # Then no job finds the handle of an earlier one
    assert left == [None] * 5


def test_writes_from_outside_of_a_worker(backend: RecordingBackend, broker: StubBroker) -> None:
    # Given a message that waits
    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    message = work.send()
    status = StatusRegistry.get(message, backend=backend)
    progress = StatusRegistry.progress(message, backend=backend)
    # When other processes write to it
    status["owner"] = "me"
    status.update(number=7, force=True)
    progress.increment(3)
    progress.total = 6
    # Then each write is stored at once
    assert status.flush() and status.queued and not status.finished
    assert json.loads(status.to_json())["number"] == 7 and str(status) == "queued (50%)"
    assert progress.to_dict() == {"progress": 3, "total": 6, "fraction": 0.5, "rate": None}
    progress.finish()
    assert status.progress == 1.0
    # And they can set its state, and delete it
    status["status"] = "failed"
    assert status.failed and not status.completed and status["finished_at"] is not None
    assert status.delete() and not status and status.state is None


def test_a_handle_has_what_a_snapshot_has(backend: RecordingBackend) -> None:
    # Given a message that waits for another run
    job = Job(backend).enqueue().start()
    backend.update(job.message_id, Update(Kind.OUTSIDE, fields={":step": '"reading"', "p": "3", "t": "4"}))
    status = StatusRegistry.get(job.message_id, backend=backend)
    snapshot = status.read()
    assert snapshot is not None
    # A cursor is a position in a list: a handle is not from a list.
    names = {name for name, value in vars(Snapshot).items() if isinstance(value, property)} - {"cursor"}
    assert {"percent", "attempts", "retrying", "stalled", "fields"} <= names
    # Each of these depends on the time of the read.
    of_now = {"duration", "time_remaining", "timeline"}
    # Then its handles have each attribute of a snapshot, with the same type, docstring and value
    for name in names:
        assert inspect.getdoc(getattr(Status, name)) == inspect.getdoc(getattr(Snapshot, name))
        for handles in (Status, aio.handles.Status):
            (_, annotation) = inspect.get_annotations(handles)[name].split("[", 1)
            returned = inspect.get_annotations(vars(Snapshot)[name].fget)["return"]
            assert annotation.removesuffix("]") in (returned, f"{returned} | None"), name
        if name not in of_now:
            assert getattr(status, name) == getattr(snapshot, name)

    async def read_all() -> dict[str, Any]:
        waiting = aio.StatusRegistry.get(job.message_id, backend=backend)
        return {name: await getattr(waiting, name) for name in names - of_now}

    assert asyncio.run(read_all()) == {name: getattr(snapshot, name) for name in names - of_now}
    # And a handle of an unknown message has them, too
    unknown = StatusRegistry.get("nobody", backend=backend)
    assert (unknown.percent, unknown.attempts, unknown.retrying, dict(unknown.fields)) == (None, 0, False, {})
    with pytest.raises(TypeError, match="not iterable"):
        iter(unknown)  # type: ignore[call-overload]


def test_handles_of_unknown_messages(backend: RecordingBackend) -> None:
    # Given the handle of an unknown message
    status = StatusRegistry.get("nobody", backend=backend)
    # Then the handle has no values
    assert (status.state, status.progress, status.to_dict(), status.to_json(), str(status), status.get("a", 1)) == (
        None, None, {}, "{}", "unknown", 1,
    )  # fmt: skip
    with pytest.raises(KeyError):
        status["step"]
    # And writes raise StatusMissing
    with pytest.raises(StatusMissing, match="nobody"):
        status["step"] = 1
    with pytest.raises(StatusMissing):
        StatusRegistry.progress("nobody", backend=backend).increment()


@pytest.mark.parametrize(
    ("write", "error", "text"),
    [
        (lambda: current_status().update(status="queued"), ValueError, "Retry"),
        (lambda: current_status().update(status="done"), ValueError, "'done'"),
        (lambda: current_status().update(step=object()), TypeError, "'step' of type object"),
        (lambda: current_progress().increment("1"), TypeError, "'increment'"),  # type: ignore[arg-type]
        (lambda: current_progress().increment(10**400), ValueError, "'increment'"),
        (lambda: current_progress().decrement(None), TypeError, "'decrement'"),  # type: ignore[arg-type]
    ],
)
def test_detached_handles_refuse_what_bound_ones_refuse(write: Any, error: type[Exception], text: str) -> None:
    # Given no worker
    with bound_status() as status:
        status["step"] = "before"
        # When a value is written that a worker would refuse
        # Then the same error is raised, and no value changes
        with pytest.raises(error, match=text):
            write()
        assert status.working and status["step"] == "before" and status.progress is None


def test_detached_handles_of_one_call_share_their_values() -> None:
    # Given no worker, and a function that holds a handle
    def work(found: list[Any]) -> None:
        status = current_status()
        current_status()["step"] = "reading"
        for _ in track(range(4)):
            found.append((status["step"], current_progress().progress, current_progress().total))
            for _ in track(range(2)):
                pass
        current_progress().increment(4)
        found.append((current_status().progress, current_status()["progress"]))

    # When the function is called twice in one context
    first: list[Any] = []
    second: list[Any] = []
    contextvars.Context().run(lambda: (work(first), work(second)))
    # Then all its handles have the same values, and the second call finds no value of the first
    assert first == second == [("reading", n, 4) for n in range(4)] + [(1.0, 8)]


def test_detached_values_end_with_the_call() -> None:
    channels: list[weakref.ref[Any]] = []

    def work() -> None:
        status, progress = current_status(), current_progress()
        progress.increment(status.get("done", 0) + 1)
        status["done"] = 1
        channels.append(weakref.ref(status._channel))

    def long_lived() -> None:
        # Given a process that calls an actor's function over and over
        for _ in range(10):
            work()
        # When a handle is read after that
        # Then it has no values
        assert current_progress().progress == 0 and "done" not in current_status()
        assert [channel() for channel in channels] == [None] * 10

    contextvars.Context().run(long_lived)


def test_a_kept_exception_does_not_share_detached_values() -> None:
    kept: list[BaseException] = []

    def fail() -> None:
        status = current_status()
        status["secret"] = 1
        for _ in track([1, 2]):
            current_progress().increment(40)
            raise RuntimeError(status)

    def read() -> tuple[bool, int | float, int | float | None]:
        return "secret" in current_status(), current_progress().progress, current_progress().total

    def serve() -> None:
        for _ in range(3):
            # Given a request that fails, and whose exception is kept, as a log or a debugger does
            try:
                fail()
            except RuntimeError as e:
                kept.append(e)
            # When the next request runs on the same thread, in the same context
            # Then it finds no values
            assert read() == (False, 0, 100)

    contextvars.Context().run(serve)
    assert [error.args[0]["secret"] for error in kept] == [1, 1, 1]


def test_called_functions_have_detached_values_of_their_own() -> None:
    # Given a loop in a function that holds a handle
    status, found = current_status(), []

    def work() -> None:
        found.append((current_status().get("done"), current_progress().progress))
        inner = current_status()
        inner["done"] = True

    for _ in track(range(3)):
        status["done"] = "outer"
        # When the loop calls another function again and again
        work()
    # Then each call begins without values
    assert found == [(None, 0)] * 3 and (status["done"], current_progress().progress) == ("outer", 3)


def test_detached_loops_share_the_values_of_handles_in_them() -> None:
    # Given functions without a variable that holds a handle
    def loop() -> list[Any]:
        found = []
        for _ in track(range(4), step="reading"):
            found.append((current_progress().fraction, current_progress().total, current_status()["step"]))
        return found

    async def pages() -> AsyncIterator[int]:
        for n in range(4):
            yield n

    async def loop_asynchronously() -> list[Any]:
        found = []
        async for _ in track(pages(), total=4, step="reading"):
            await asyncio.sleep(0)
            found.append((current_progress().fraction, current_progress().total, current_status()["step"]))
        return found

    # When their loops call current_status()
    # Then these handles have the values of the loop
    expected = [(n / 4, 4, "reading") for n in range(4)]
    assert loop() == expected and asyncio.run(loop_asynchronously()) == expected
    # And after the loop there are no values
    assert current_progress().fraction is None


def test_detached_calls_leave_no_garbage() -> None:
    class Large:
        pass

    references = []

    def work() -> None:
        large = Large()
        references.append(weakref.ref(large))
        status, progress = current_status(), current_progress()
        for n in track(range(4)):
            status["n"] = progress.progress
            if n == 2:
                break
        for _ in track([1]):
            current_progress().increment()

    # Given a disabled garbage collector
    gc.disable()
    try:
        # When a function has run
        work()
        # Then its variables are freed
        assert references[0]() is None
    finally:
        gc.enable()


def test_untracked_messages_share_no_values(backend: RecordingBackend) -> None:
    broker = make_broker(backend)
    held: list[Any] = []
    seen: list[Any] = []

    # Given an untracked actor whose handle other code keeps
    @dramatiq.actor(broker=broker, track_status=False)
    def work() -> None:
        status = current_status()
        held.append(status)
        seen.append((current_status().message_id, current_status().get("done")))
        current_status()["done"] = True

    # When it runs twice on one thread
    for _ in range(2):
        work.send()
    run(broker, threads=1)
    # Then the second run finds no value of the first, and no value is stored
    assert seen == [("", None)] * 2 and [status["done"] for status in held] == [True, True]
    assert backend.updates() == []


def test_messages_share_no_values_with_detached_handles(backend: RecordingBackend, broker: StubBroker) -> None:
    # Given a context that holds a detached handle
    status = current_status()
    status["detached"] = True

    @dramatiq.actor(broker=broker)
    def work() -> None:
        current_status()["bound"] = "detached" not in current_status()

    # When a message is sent and processed
    message = work.send()
    run(broker)
    # Then the message and the handle share no values
    assert final(backend, message)["bound"] is True and "detached" not in final(backend, message)
    assert "bound" not in status and current_binding() is None
    # And inside of bound_status(), its values are used
    with bound_status() as bound:
        current_status()["inside"] = True
    assert bound["inside"] and "inside" not in status and "detached" not in bound
    assert current_status()["detached"]


def test_threads_may_share_detached_handles(monkeypatch: pytest.MonkeyPatch) -> None:
    met = threading.Barrier(2)

    def slow(record: Any, update: Any, now: int) -> Any:
        # Given two threads, each of which reads before the other one writes
        with contextlib.suppress(threading.BrokenBarrierError):
            met.wait(0.2)
        return apply(record, update, now)

    with bound_status() as status:
        progress = current_progress()
        monkeypatch.setattr("dramatiq_status.channel.apply", slow)
        threads = [threading.Thread(target=progress.increment) for _ in range(2)]
        # When both increment one handle
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # Then no increment is lost
        assert status["progress"] == 2


def test_detached_handles_write_to_no_store() -> None:
    # Given no worker
    # When an actor's function is called
    with bound_status() as status:
        for _ in track(range(5), step="reading"):
            pass
        current_status().update(status="failed")
        current_progress().increment()
    # Then a test can read what the function wrote
    assert (status["step"], status["progress"], status["total"], status.state) == ("reading", 6, 5, "failed")
    assert status.flush() and status.delete() and not status
    # And outside of the block there are no values
    assert current_status().message_id == "" and current_progress().progress == 0
    assert list(track([1, 2])) == [1, 2]
    assert "nothing" in repr(current_status()) and "nothing" in repr(current_progress())


def test_handles_as_text(backend: RecordingBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given handles, and a store that must not be called
    status, progress = (get("m", backend=backend) for get in (StatusRegistry.get, StatusRegistry.progress))
    monkeypatch.setattr(backend, "read_many", lambda ids: pytest.fail("A repr reads no store."))
    # When they are printed, for example by a debugger
    # Then the store is not called
    assert (repr(status), repr(progress)) == ("<Status of m>", "<Progress of m>")


def test_a_run_has_a_thousand_fields_at_most() -> None:
    # Given a job that writes a field for each row
    backend = RecordingBackend()
    broker = make_broker(backend)
    errors: list[BaseException | None] = []

    @dramatiq.actor(broker=broker)
    def work() -> None:
        status = current_status()
        for n in range(1000):
            status[f"row{n}"] = n
        errors.append(raised_by(lambda: status.update(row1000=1)))
        errors.append(raised_by(lambda: status.increment("row1001")))
        errors.append(raised_by(lambda: status.update({f"more{n}": n for n in range(1001)})))
        # A write to an existing field, and a new field in the place of a deleted one, are allowed
        status["row0"] = "again"
        del status["row1"]
        status["row1000"] = 1000

    message = work.send()
    run(broker)
    # Then each write with too many fields raises an error, and the other writes are stored
    assert [type(error) for error in errors] == [ValueError] * 3
    status = StatusRegistry.get(message, backend=backend)
    assert status.state == "completed"
    assert [status.get(name) for name in ("row0", "row1", "row999", "row1000", "row1001")] == [
        "again",
        None,
        999,
        1000,
        None,
    ]
    # And a message with more fields cannot be sent
    with pytest.raises(StatusOptionError, match="1001"):
        work.send_with_options(status={f"row{n}": n for n in range(1001)})
