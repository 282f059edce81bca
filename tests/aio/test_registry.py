"""Tests of dramatiq_status.aio on every kind of store: it does the same as the synchronous registry."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar
from unittest.mock import ANY

import dramatiq
import pytest
from dramatiq import group

import dramatiq_status
from dramatiq_status import (
    BackendError,
    NotSupported,
    Snapshot,
    State,
    StatusMissing,
    StatusRegistry,
    StatusTimeout,
    aio,
    current_status,
)
from dramatiq_status.aio.backend import AsyncBackend
from dramatiq_status.aio.hub import CHANGES_PER_TURN, AutoResetEvent
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends import MemcachedBackend, StubBackend
from dramatiq_status.batch import Batch

from ..jobs import Job
from ..recording import PATIENCE, make_broker, run

T = TypeVar("T")

#: Time in milliseconds that is longer than any test.
NEVER = 3_600_000

#: More changes than the hub processes before other tasks run.
MANY = 10 * CHANGES_PER_TURN


def in_loop(main: Callable[[], Awaitable[T]]) -> T:
    """Run a test's coroutine in a loop of its own."""

    async def patiently() -> T:
        return await asyncio.wait_for(main(), PATIENCE * 2)

    return asyncio.run(patiently())


async def answered_in_loop(ask: Callable[[], Awaitable[T]]) -> T:
    """Repeat a call of an event loop until servers answer in time, which they may not on a busy machine."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return await ask()
        except BackendError:
            assert time.monotonic() < deadline, "No server has answered in time."


async def begun_in_loop(watch: Callable[[], AsyncIterator[T]]) -> tuple[T, AsyncIterator[T]]:
    """Begin to watch, again if the first read has no answer in time, and return what it finds and the watch."""

    async def begin() -> tuple[T, AsyncIterator[T]]:
        watching = watch()
        return await anext(watching), watching

    return await answered_in_loop(begin)


@pytest.fixture
def backend(polled_backend: StatusBackend) -> StatusBackend:
    return polled_backend


class TestSameAsElsewhere:
    @pytest.mark.parametrize(
        ("here", "there"),
        [(aio.StatusRegistry, StatusRegistry), (aio.Batch, Batch)],
        ids=["StatusRegistry", "Batch"],
    )
    def test_asynchronous_signatures_equal_the_others(self, here: type, there: type) -> None:
        # Given the synchronous and the asynchronous registry
        # When their public names are compared
        # Then names, parameters, kinds and defaults are the same
        assert signatures_of(here) == signatures_of(there)

    def test_methods_that_read_the_store_are_coroutines(self) -> None:
        # Given the public methods of the registry
        plain = {"get", "progress", "batch"}
        # When they are called
        # Then the methods that read the store are coroutines, except for watch()
        for name in dir(aio.StatusRegistry):
            if not name.startswith("_") and name not in plain | {"watch"}:
                assert inspect.iscoroutinefunction(getattr(aio.StatusRegistry, name)), name

    @pytest.mark.parametrize("name", ["Status", "Progress"])
    def test_asynchronous_handles_have_the_same_names(self, name: str) -> None:
        # Given the synchronous and the asynchronous handles
        here, there = getattr(aio, name), getattr(dramatiq_status, name)
        # When their public names are compared
        # Then names and parameters are the same, except for set(), which takes the place of setting a property
        assert signatures_of(here) == signatures_of(there) | ({"set": ANY} if name == "Progress" else {})

    def test_handles_read_what_was_written(self, backend: StatusBackend) -> None:
        # Given a message that runs
        job = Job(backend).enqueue().start()

        async def main() -> None:
            status = aio.StatusRegistry.get(job.message_id, backend=backend)
            # When it is written to
            await status.update({"a": 1}, b="x")
            # Then each way to read returns the written values
            assert await status["a"] == 1
            assert await status.get("b") == "x" and await status.get("c", "none") == "none"
            assert await status.state is State.WORKING
            states = [await status.queued, await status.working, await status.completed, await status.failed]
            assert states == [False, True, False, False] and not await status.finished
            assert (await status.to_dict())["b"] == "x" and '"a": 1' in await status.to_json()
            assert await status.progress is None and await status.flush()
            assert status.message_id == job.message_id and job.message_id in repr(status)
            with pytest.raises(KeyError, match="c"):
                await status["c"]
            # And its progress counts
            progress = aio.StatusRegistry.progress(job.message_id, backend=backend)
            await progress.increment(3)
            await progress.decrement()
            assert await progress.progress == 2 and await progress.total == 100 and await progress.fraction == 0.02
            await progress.set(progress=1, total=4)
            assert await progress.to_dict() == {"progress": 1, "total": 4, "fraction": 0.25, "rate": None}
            await progress.finish()
            assert await progress.fraction == 1.0 and await progress.rate is None and job.message_id in repr(progress)
            # And the message can be deleted, and is unknown then
            assert await status.delete() and not await status.delete()
            assert await status.read() is None and await status.state is None and await status.progress is None
            assert await status.to_dict() == {} and await status.to_json() == "{}" and await status.get("a") is None
            assert await progress.progress == 0
            with pytest.raises(KeyError):
                await status["a"]
            with pytest.raises(StatusMissing):
                await status.update(a=1)
            with pytest.raises(StatusMissing):
                await progress.increment()

        in_loop(main)

    def test_operators_that_cannot_be_awaited_raise(self) -> None:
        # Given a handle
        status = aio.StatusRegistry.get("m", backend=StubBackend())
        # When an operator is used that Python cannot await
        # Then the handle raises an error in place of a wrong answer
        with pytest.raises(TypeError, match="read"):
            bool(status)
        with pytest.raises(TypeError):
            "a" in status  # type: ignore[operator] # noqa: B015
        with pytest.raises(TypeError):
            list(status)  # type: ignore[call-overload]
        with pytest.raises(TypeError):
            status["a"] = 1  # type: ignore[index]

    def test_wrong_fields_raise(self) -> None:
        # Given a handle
        status = aio.StatusRegistry.get("m", backend=StubBackend())

        async def main() -> None:
            # When a value is written that cannot be stored
            # Then the error is that of the synchronous handle
            with pytest.raises(TypeError, match="field"):
                await status.update(field=object())
            with pytest.raises(ValueError, match="stalled"):
                await status.update(stalled=True)
            with pytest.raises(TypeError, match="increment"):
                await aio.StatusRegistry.progress("m", backend=StubBackend()).increment("1")  # type: ignore[arg-type]

        in_loop(main)

    def test_reads_return_snapshots_in_order(self, backend: StatusBackend) -> None:
        # Given messages, one of them unknown
        jobs = [Job(backend).enqueue() for _ in range(3)]
        ids = [jobs[2].message_id, "nobody", jobs[0].message_id]

        async def main() -> None:
            # When they are read
            found = await aio.StatusRegistry.read_many(ids, backend=backend)
            one = await aio.StatusRegistry.read(ids[0], backend=backend)
            # Then the results are those of the synchronous registry
            assert found == StatusRegistry.read_many(ids, backend=backend)
            assert one == found[0] and await aio.StatusRegistry.read("nobody", backend=backend) is None
            assert await aio.StatusRegistry.read_many([], backend=backend) == []
            assert await aio.StatusRegistry.delete(ids[0], backend=backend)
            assert not await aio.StatusRegistry.delete(ids[0], backend=backend)

        in_loop(main)

    def test_lists_return_snapshots_and_counts(self, backend: StatusBackend) -> None:
        # Given messages
        for _ in range(3):
            Job(backend).enqueue().start()

        async def main() -> None:
            # When they are listed
            # Then the results are those of the synchronous registry
            if isinstance(backend, MemcachedBackend):
                with pytest.raises(NotSupported):
                    await aio.StatusRegistry.list(backend=backend)
                return
            found = await aio.StatusRegistry.list("working", limit=2, backend=backend)
            assert found == StatusRegistry.list("working", limit=2, backend=backend) and len(found) == 2
            assert await aio.StatusRegistry.count("working", "work", "default", backend=backend) == 3
            assert await aio.StatusRegistry.count("failed", backend=backend) == 0
            with pytest.raises(ValueError, match="limit"):
                await aio.StatusRegistry.list(limit=0, backend=backend)

        in_loop(main)

    def test_wait_finds_the_backend_of_a_broker(self) -> None:
        # Given a broker with statuses, and a message
        broker = make_broker(StubBackend())

        @dramatiq.actor(broker=broker)
        def work() -> None: ...

        message = work.send()
        run(broker)

        async def main() -> None:
            # When wait() gets the message itself
            # Then its backend is found
            assert (await aio.StatusRegistry.wait(message, broker=broker)).completed
            await aio.close(broker=broker)

        in_loop(main)

    def test_wrong_arguments_of_watch_raise_at_once(self) -> None:
        # Given a wrong duration, and a wrong id
        # When watch() is called
        # Then the error is raised at once, and not at the first step
        with pytest.raises(ValueError, match="timeout"):
            aio.StatusRegistry.watch("m", timeout=-1, backend=StubBackend())
        with pytest.raises(TypeError, match="message_id"):
            aio.StatusRegistry.watch(7, backend=StubBackend())  # type: ignore[arg-type]

    def test_asynchronous_actors_write_in_order(self, backend: StatusBackend) -> None:
        # Given an asynchronous actor that writes to its own status by both kinds of handles, and to another message's
        broker = make_broker(backend, asyncio=True)
        other = Job(backend).enqueue()
        seen: list[Any] = []

        @dramatiq.actor(broker=broker, status_throttle=NEVER)
        async def work() -> None:
            own = aio.StatusRegistry.get(current_status().message_id)
            current_status().update(step="a")
            await own.update(step="b")
            current_status().update(more=1)
            seen.append((await own["step"], await own["more"]))
            await aio.StatusRegistry.progress(other.message_id).increment(5)
            await aio.StatusRegistry.get(other.message_id).update(parent=True)
            await aio.StatusRegistry.get(other.message_id).flush()
            seen.append(await aio.StatusRegistry.progress(other.message_id).progress)

        dramatiq.set_broker(broker)
        # When it runs
        message = work.send()
        run(broker)
        # Then all writes are stored in order
        assert seen == [("b", 1), 5]
        snapshot = StatusRegistry.read(message, backend=backend)
        assert snapshot is not None and snapshot.completed and snapshot["step"] == "b"


class TestWatching:
    def test_watch_shows_all_states_from_the_present_one_to_the_final_one(self, backend: StatusBackend) -> None:
        # Given a message that waits
        job = Job(backend).enqueue()
        steps = iter([job.start, lambda: job.write(step="a"), lambda: job.write(step="b"), job.finish])

        async def main() -> list[Any]:
            # When it is watched, and changes after each snapshot
            seen = []
            async for found in aio.StatusRegistry.watch(job.message_id, backend=backend):
                seen.append((found.state, found.get("step")))
                await asyncio.to_thread(next(steps, lambda: None))
            return seen

        # Then the watcher receives each state once
        assert in_loop(main) == [
            (State.QUEUED, None),
            (State.WORKING, None),
            (State.WORKING, "a"),
            (State.WORKING, "b"),
            (State.COMPLETED, "b"),
        ]

    def test_slow_watchers_get_the_newest_snapshot_and_delay_no_other(self, backend: StatusBackend) -> None:
        # Given a watcher that does not take the next snapshot, and other watchers
        job = Job(backend).enqueue().start()

        async def main() -> None:
            slow = aio.StatusRegistry.watch(job.message_id, backend=backend)
            assert (await anext(slow)).working
            others = [asyncio.create_task(last_of(job, backend)) for _ in range(5)]
            # When the job changes many times
            for n in range(50):
                await asyncio.to_thread(job.write, n=n)
            await asyncio.to_thread(job.finish)
            # Then the other watchers receive the end
            assert [found["n"] for found in await asyncio.gather(*others)] == [49] * 5
            # And the slow one receives the end alone
            assert [(found.state, found["n"]) async for found in slow] == [(State.COMPLETED, 49)]

        in_loop(main)

    def test_wait_returns_the_final_snapshot(self, backend: StatusBackend) -> None:
        # Given an unknown message that is waited for
        job = Job(backend)

        async def main() -> None:
            waiting = asyncio.create_task(
                aio.StatusRegistry.wait(job.message_id, missing_timeout=NEVER, backend=backend)
            )
            # When it is enqueued, runs and fails
            await asyncio.to_thread(lambda: job.enqueue().start().finish(3))
            # Then wait() returns its final snapshot
            assert (await waiting).failed
            # And it returns the final snapshot of a message that has ended before, too
            assert (await aio.StatusRegistry.wait(job.message_id, backend=backend)).failed

        in_loop(main)

    def test_watch_raises_for_a_missing_message(self, backend: StatusBackend) -> None:
        # Given an unknown message
        async def main() -> None:
            # When it is watched
            # Then the watch raises StatusMissing
            with pytest.raises(StatusMissing):
                async for _ in aio.StatusRegistry.watch("nobody", missing_timeout=20, backend=backend):
                    pytest.fail("An unknown message has no snapshot.")

        in_loop(main)

    @pytest.mark.parametrize("timeout", [0, 30])
    def test_watch_raises_after_its_timeout(self, backend: StatusBackend, timeout: int) -> None:
        # Given a message that does not end
        job = Job(backend).enqueue()

        async def main() -> list[Any]:
            seen = []
            # When it is watched for a moment
            with pytest.raises(StatusTimeout):
                async for found in aio.StatusRegistry.watch(job.message_id, timeout=timeout, backend=backend):
                    seen.append(found.state)
            return seen

        # Then the watch yields the present state, and raises StatusTimeout
        assert in_loop(main) == [State.QUEUED]

    @pytest.mark.parametrize("together", [False, True])
    def test_watch_keeps_the_interval(self, backend: StatusBackend, together: bool) -> None:
        # Given a backend with a watch_interval of an hour
        backend.watch_interval = NEVER
        job = Job(backend).enqueue().start()

        async def main() -> int:
            watched: AsyncIterator[object] = aio.StatusRegistry.watch(job.message_id, timeout=200, backend=backend)
            if together:
                watched = aio.StatusRegistry.batch([job.message_id], backend=backend).watch(timeout=200)
            seen = 0
            # When a message changes after each snapshot
            with pytest.raises(StatusTimeout):
                async for _ in watched:
                    seen += 1
                    await asyncio.to_thread(job.write, n=seen)
            return seen

        # Then the watcher receives the first change no earlier than its time-out, and no second one
        assert in_loop(main) <= 2

    def test_watch_shows_that_a_message_is_stalled(self, backend: StatusBackend) -> None:
        # Given a job whose worker is gone, so that no heartbeat comes any more
        job = Job(backend).enqueue().start(heartbeat_interval=50).beat()
        backend.recheck_interval = 20

        async def main() -> None:
            # When it is watched
            async for found in aio.StatusRegistry.watch(job.message_id, backend=backend):
                if found.stalled:
                    break
            # Then the watcher shows that the job stalls, although its record has not changed
            assert found.version == 2

        in_loop(main)

    def test_watch_shows_the_changes_of_a_batch(self, backend: StatusBackend) -> None:
        # Given messages that belong together
        jobs = [Job(backend).enqueue() for _ in range(3)]
        steps = iter([jobs[0].start, jobs[0].finish, jobs[1].finish, lambda: jobs[2].finish(3)])

        async def main() -> None:
            batch = aio.StatusRegistry.batch([job.message_id for job in jobs], backend=backend)
            assert len(batch) == 3 and batch.message_ids == tuple(job.message_id for job in jobs)
            assert (await batch.read()).queued and "3" in repr(batch)
            # When they are watched, and change after each snapshot
            seen = []
            async for found in batch.watch():
                seen.append((found.state, found.counts["completed"]))
                await asyncio.to_thread(next(steps, lambda: None))
            # Then the watcher receives each change
            assert seen == [
                (State.QUEUED, 0),
                (State.WORKING, 0),
                (State.WORKING, 1),
                (State.WORKING, 2),
                (State.FAILED, 2),
            ]
            assert (await batch.wait()).failed

        in_loop(main)

    def test_wait_for_an_empty_batch_and_for_a_group(self) -> None:
        # Given a group of a broker with statuses, and an empty batch
        broker = make_broker(StubBackend())

        @dramatiq.actor(broker=broker)
        def work() -> None: ...

        messages = group([work.message(), work.message()], broker=broker)
        messages.run()
        run(broker)

        async def main() -> None:
            # When wait() is called for them
            # Then the group's backend is found by its broker, and the empty batch is finished
            assert (await aio.StatusRegistry.batch(messages).wait()).completed
            nothing = aio.StatusRegistry.batch([], broker=broker)
            assert (await nothing.read()).completed and (await nothing.wait()).completed

        in_loop(main)

    def test_wait_raises_for_a_batch_with_a_missing_message(self, backend: StatusBackend) -> None:
        # Given a message that has ended, and an unknown one
        job = Job(backend).enqueue().finish()

        async def main() -> None:
            batch = aio.StatusRegistry.batch([job.message_id, "nobody"], backend=backend)
            # When wait() is called for them
            # Then wait() raises StatusMissing
            with pytest.raises(StatusMissing, match="nobody"):
                await batch.wait(missing_timeout=20)

        in_loop(main)

    def test_watch_raises_the_error_of_the_first_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Given a store that does not answer
        backend = StubBackend()
        monkeypatch.setattr(backend, "read_many", away)

        async def main() -> None:
            # When a watch begins
            # Then the watch raises BackendError at once
            with pytest.raises(BackendError, match="away"):
                await aio.StatusRegistry.wait("m", timeout=None, backend=backend)
            with pytest.raises(BackendError, match="away"):
                await aio.StatusRegistry.batch(["m", "n"], backend=backend).wait(timeout=None)

        in_loop(main)

    def test_watch_continues_after_an_outage(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Given a message that is watched
        backend = StubBackend()
        backend.poll_interval = (1, 5)
        job = Job(backend).enqueue()

        async def main() -> None:
            snapshots = aio.StatusRegistry.watch(job.message_id, backend=backend)
            assert (await anext(snapshots)).queued
            # When some reads fail, and the message ends meanwhile
            looks = iter(range(5))
            read = backend.read_many
            monkeypatch.setattr(backend, "read_many", lambda ids: read(ids) if next(looks, None) is None else away(ids))
            job.start().finish()
            # Then the watcher receives the end
            assert [found.state async for found in snapshots] == [State.COMPLETED]

        in_loop(main)

    def test_watch_raises_after_its_timeout_in_an_outage(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Given a message that is watched for a moment
        backend = StubBackend()
        job = Job(backend).enqueue()

        async def main() -> None:
            snapshots = aio.StatusRegistry.watch(job.message_id, timeout=50, backend=backend)
            assert (await anext(snapshots)).queued
            # When the store does not come back
            monkeypatch.setattr(backend, "read_many", away)
            # Then the watch raises StatusTimeout nevertheless
            with pytest.raises(StatusTimeout):
                await anext(snapshots)

        in_loop(main)

    def test_watch_raises_the_unexpected_error_of_a_backend(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Given a backend that raises an unexpected error while a message is watched
        backend = StubBackend()
        backend.poll_interval = (1, 5)
        job = Job(backend).enqueue()

        def broken(ids: Sequence[str]) -> Any:
            raise ZeroDivisionError

        async def main() -> None:
            snapshots = aio.StatusRegistry.watch(job.message_id, backend=backend)
            assert (await anext(snapshots)).queued
            monkeypatch.setattr(backend, "read_many", broken)
            # When the watcher waits for the next change
            # Then the watch raises this error, and does not wait forever
            with pytest.raises(ZeroDivisionError):
                await anext(snapshots)
            # And the next watch works
            monkeypatch.undo()
            job.finish()
            assert (await last_of(job, backend)).completed

        in_loop(main)

    def test_watch_raises_when_all_tasks_are_cancelled(self, backend: StatusBackend) -> None:
        # Given a watcher of a message
        job, other = Job(backend).enqueue(), Job(backend).enqueue().finish()

        async def main() -> None:
            tests = asyncio.all_tasks()
            snapshots = aio.StatusRegistry.watch(job.message_id, backend=backend)
            assert (await anext(snapshots)).queued
            # When all tasks except its own are cancelled, including the tasks that read for it
            cancel_all_but(tests)
            # Then the watch raises an error, and does not wait forever
            with pytest.raises(BackendError, match="cancelled"):
                await anext(snapshots)
            # And a watch that begins later works
            assert (await last_of(other, backend)).completed

        in_loop(main)

    def test_watch_works_after_all_tasks_were_cancelled(self) -> None:
        # Given a watcher of a message
        backend = StubBackend()
        job, other = Job(backend).enqueue(), Job(backend).enqueue().finish()

        async def main() -> None:
            tests = asyncio.all_tasks()
            first = aio.StatusRegistry.watch(job.message_id, backend=backend)
            assert (await anext(first)).queued
            # When all tasks except its own are cancelled, and another watch begins at once
            cancel_all_but(tests)
            await asyncio.sleep(0)
            # Then the new watch works
            assert (await last_of(other, backend)).completed

        in_loop(main)

    def test_a_cancelled_watch_does_not_affect_another_one(self, backend: StatusBackend) -> None:
        # Given two watchers of a message
        job = Job(backend).enqueue()

        async def main() -> None:
            impatient = aio.StatusRegistry.watch(job.message_id, backend=backend)
            assert (await anext(impatient)).queued
            patient = asyncio.create_task(last_of(job, backend))
            # When one watch is cancelled
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(impatient), 0.05)
            with pytest.raises(StopAsyncIteration):
                await anext(impatient)
            # Then the other one goes on
            await asyncio.to_thread(lambda: job.start().finish())
            assert (await patient).completed

        in_loop(main)


class TestTurns:
    def test_a_message_that_changes_all_the_time_does_not_delay_others(self) -> None:
        # Given a subscription that has received many changes of one message at once
        heard: list[int] = []

        class Subscription:
            async def add(self, message_ids: Sequence[str]) -> None: ...

            async def remove(self, message_ids: Sequence[str]) -> None: ...

            async def receive(self) -> tuple[str, int | None]:
                if len(heard) == MANY:
                    await asyncio.Event().wait()
                heard.append(len(heard))
                return "busy", len(heard)

            async def close(self) -> None: ...

        class Telling(AsyncBackend):
            async def subscribe(self) -> Subscription:
                return Subscription()

        backend = StubBackend()
        Job(backend, "busy").enqueue()

        async def main() -> None:
            hub = Telling(backend).hub
            hub.join("busy", AutoResetEvent())
            turns = set()
            # When other tasks wait for their turn meanwhile
            while len(heard) < MANY:
                await asyncio.sleep(0)
                turns.add(len(heard))
            # Then they run after each share of the changes
            assert turns == set(range(0, MANY + 1, CHANGES_PER_TURN))
            await hub.close()

        in_loop(main)


async def last_of(job: Job, backend: StatusBackend) -> Snapshot:
    """Watch a job to its end."""
    return [found async for found in aio.StatusRegistry.watch(job.message_id, backend=backend)][-1]


def signatures_of(face: type) -> dict[str, Any]:
    """Return the public names of a class, with the parameters, kinds and defaults of what can be called."""
    found = {name: getattr(face, name) for name in dir(face) if not name.startswith("_")}
    return {
        name: callable(value) and [(p.name, p.kind, p.default) for p in inspect.signature(value).parameters.values()]
        for name, value in found.items()
    }


def cancel_all_but(tasks: set[asyncio.Task[Any]]) -> None:
    """Cancel all other tasks of the loop, as some programs do at their end."""
    for task in asyncio.all_tasks() - tasks:
        task.cancel()


def away(message_ids: Sequence[str]) -> Any:
    raise BackendError("away")
