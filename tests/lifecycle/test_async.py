"""Async actors: coroutines that succeed, fail, are cancelled, share their loop, and outlive their messages."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import Iterator
from contextvars import Context, copy_context
from typing import Any
from uuid import uuid4

import dramatiq
import pytest
from dramatiq.middleware import AsyncIO

from dramatiq_status import current_progress, current_status
from dramatiq_status.context import current_binding

from ..recording import eventually
from .recorder import Recorder, RecordingRedisBackend, RecordingStubBackend
from .scenarios import DONE, RETRIED, failed
from .stage import PATIENCE, Boom, Stage, make_middleware
from .test_scenarios import end_of


@pytest.fixture(params=["first", "last"])
def position(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["stub", "redis"])
def stage(request: pytest.FixtureRequest, position: str) -> Iterator[Stage]:
    """Yield a stage for coroutines. Its worker is not started yet, because a test declares its actors first."""
    backend: Recorder = RecordingStubBackend(timeout=20_000)
    url = "stub://"
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")
        backend = RecordingRedisBackend(url=server.url, namespace=f"s-{uuid4()}", timeout=20_000)
        url = server.database(1)
    middleware = [AsyncIO(), *make_middleware(retries=True)]
    stage = Stage(url, backend, position=position, name=f"q-{uuid4()}", middleware=middleware)
    yield stage
    stage.close()


def perform(stage: Stage, actor: dramatiq.Actor[..., Any], *messages: dict[str, Any]) -> list[str]:
    """Send messages with these options, work until Dramatiq is done with them, and return their ids."""
    with stage.working():
        ids = [actor.send_with_options(**options).message_id for options in messages or ({},)]
        for message_id in ids:
            stage.audit.wait(message_id)
    return ids


def test_a_coroutine_writes_before_and_after_a_pause(stage: Stage) -> None:
    # Given a coroutine that writes on both sides of a pause
    @dramatiq.actor(broker=stage.broker, queue_name=stage.name)
    async def work() -> None:
        status, progress = current_status(), current_progress()
        status["step"] = "before"
        progress.increment(40)
        await asyncio.sleep(0.01)
        assert current_status() is status
        status.update(step="behind")
        progress.increment(2)

    # When it runs
    (message_id,) = perform(stage, work)
    # Then the final status has all its writes
    assert end_of(stage, message_id) == DONE
    last = stage.read(message_id)
    assert (last["step"], last["progress"]) == ("behind", 42)


def test_a_coroutine_that_raises_is_retried(stage: Stage) -> None:
    runs = []

    # Given a coroutine that fails the first time
    @dramatiq.actor(broker=stage.broker, queue_name=stage.name, max_retries=3)
    async def work() -> None:
        runs.append(current_status().message_id)
        current_progress().increment(len(runs))
        await asyncio.sleep(0.01)
        if len(runs) == 1:
            raise Boom

    # When it runs
    (message_id,) = perform(stage, work)
    # Then its state was never `failed`, and the count of the first run is gone
    assert runs == [message_id] * 2
    assert end_of(stage, message_id) == RETRIED
    assert stage.read(message_id)["progress"] == 2


def test_a_coroutine_that_exceeds_its_time_limit_fails(stage: Stage) -> None:
    # Given a coroutine that cleans up when it is cancelled
    @dramatiq.actor(broker=stage.broker, queue_name=stage.name, max_retries=0, time_limit=200)
    async def work() -> None:
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            await asyncio.sleep(0.01)
            current_status()["step"] = "cleaned up"

    # When its time limit passes
    (message_id,) = perform(stage, work)
    # Then it has failed with the time limit's exception, and the writes of its cleaning up are stored
    assert end_of(stage, message_id) == failed(exception="TimeLimitExceeded")
    assert stage.read(message_id)["step"] == "cleaned up"


def write_in_every_way() -> None:
    """Make each kind of write, after the end of the run."""
    status, progress = current_status(), current_progress()
    status["late"] = True
    status.update(late=True, status="completed", progress=99)
    progress.increment()
    progress.total = 7
    progress.finish()
    status.flush()


@pytest.mark.parametrize(("stage", "position"), [("stub", "first"), ("redis", "last")], indirect=True)
@pytest.mark.parametrize("retried", [False, True], ids=["not-retried", "retried"])
def test_late_writes_of_a_coroutine_are_refused(stage: Stage, retried: bool) -> None:
    over, wrote = threading.Event(), threading.Event()
    runs: list[str] = []

    # Given a coroutine that ignores its cancellation, and goes on after Dramatiq has given it up
    @dramatiq.actor(broker=stage.broker, queue_name=stage.name, max_retries=int(retried), time_limit=100)
    async def work() -> None:
        runs.append(current_status().message_id)
        current_progress().progress = 40 + len(runs)
        if len(runs) == 2:
            return
        try:
            await asyncio.sleep(PATIENCE)
        except asyncio.CancelledError:
            try:
                while not over.is_set():
                    await asyncio.sleep(0.01)
                write_in_every_way()
            finally:
                wrote.set()

    with stage.working():
        message_id = work.send().message_id
        stage.audit.wait(message_id)
        expected = RETRIED if retried else failed(exception="RuntimeError")
        assert end_of(stage, message_id) == expected
        before = stage.backend.read(message_id)
        # When it writes after the end
        over.set()
        assert wrote.wait(PATIENCE)
        # All earlier updates are stored when another message is done
        stage.audit.wait(stage.send())
    # Then the final status has none of these writes
    assert stage.backend.read(message_id) == before
    assert end_of(stage, message_id) == expected
    assert stage.read(message_id)["progress"] == (42 if retried else 41)


def test_late_writes_of_a_task_are_refused(stage: Stage) -> None:
    over, wrote = threading.Event(), threading.Event()
    tasks = set()

    async def linger() -> None:
        try:
            while not over.is_set():
                await asyncio.sleep(0.01)
            write_in_every_way()
        finally:
            wrote.set()

    # Given a coroutine whose task runs on after its end
    @dramatiq.actor(broker=stage.broker, queue_name=stage.name)
    async def work() -> None:
        tasks.add(asyncio.create_task(linger()))

    with stage.working():
        message_id = work.send().message_id
        stage.audit.wait(message_id)
        before = stage.backend.read(message_id)
        # When the task writes after the end of the message
        over.set()
        assert wrote.wait(PATIENCE)
        stage.audit.wait(stage.send())
    # Then the final status has none of these writes
    assert stage.backend.read(message_id) == before
    assert end_of(stage, message_id) == DONE


@pytest.fixture
def no_log() -> Iterator[None]:
    """Log nothing, because pytest keeps every record, with its exception."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


# Dramatiq's stub keeps the exceptions of its dead letters
@pytest.mark.parametrize("stage", ["redis"], indirect=True)
@pytest.mark.usefixtures("no_log")
def test_code_that_outlives_a_message_does_not_keep_its_exception(stage: Stage) -> None:
    left: list[Context] = []
    raised: list[weakref.ref[Boom]] = []

    # Given an actor that raises, and leaves an object behind that holds its context
    @dramatiq.actor(broker=stage.broker, queue_name=stage.name, max_retries=0)
    async def work() -> None:
        left.append(copy_context())
        exception = Boom("with all its frames")
        raised.append(weakref.ref(exception))
        raise exception

    # When Dramatiq is done with the message
    (message_id,) = perform(stage, work)
    assert end_of(stage, message_id) == failed()
    # Then its exception, and all objects that it refers to, are freed
    eventually(lambda: gc.collect() >= 0 and raised[0]() is None)
    assert left[0].run(lambda: current_status().message_id) == message_id


def test_tasks_and_threads_of_a_coroutine_inherit_its_message(stage: Stage) -> None:
    # Given a coroutine whose tasks and threads write
    async def task(name: str) -> None:
        await asyncio.sleep(0.01)
        current_status()[name] = "task"
        current_progress().increment()

    def thread(name: str) -> None:
        current_status()[name] = "thread"
        current_progress().increment()

    @dramatiq.actor(broker=stage.broker, queue_name=stage.name)
    async def work() -> None:
        tasks = [asyncio.create_task(task(f"task {number}")) for number in range(3)]
        await asyncio.gather(*tasks, *(asyncio.to_thread(thread, f"thread {number}") for number in range(3)))

    # When it runs
    (message_id,) = perform(stage, work)
    # Then all of them have written to its status
    assert end_of(stage, message_id) == DONE
    last = stage.read(message_id)
    written = {f"{who} {number}": who for who in ("task", "thread") for number in range(3)}
    assert (last.fields, last["progress"]) == (written, 6)


def test_coroutines_on_one_loop_do_not_mix(stage: Stage) -> None:
    met: list[str] = []

    # Given two messages whose coroutines run at the same time, and take turns
    @dramatiq.actor(broker=stage.broker, queue_name=stage.name)
    async def work() -> None:
        mine = current_status().message_id
        met.append(mine)
        while len(met) < 2:
            await asyncio.sleep(0.001)
        for _ in range(20):
            await asyncio.sleep(0)
            assert current_status().message_id == mine
            current_status()["whose"] = mine
            current_progress().increment()

    # When they run
    ids = perform(stage, work, {}, {})
    # Then each has written only to its own status
    assert sorted(met) == sorted(ids)
    assert [end_of(stage, message_id) for message_id in ids] == [DONE, DONE]
    assert [(stage.read(found)["whose"], stage.read(found)["progress"]) for found in ids] == [(i, 20) for i in ids]


def test_a_coroutine_sends_another_message(stage: Stage) -> None:
    sent: list[str] = []
    bound: list[str] = []

    # Given a coroutine that sends a message
    @dramatiq.actor(broker=stage.broker, queue_name=stage.name)
    async def work() -> None:
        bound.append(current_status().message_id)
        sent.append(stage.send("say:step=child"))
        bound.append(current_status().message_id)
        await asyncio.sleep(0.01)
        current_status()["step"] = "parent"

    # When it runs
    with stage.working():
        message_id = work.send().message_id
        stage.audit.wait(message_id)
        stage.audit.wait(sent[0])
    # Then each message has its own status, and the coroutine still has its handle
    assert bound == [message_id] * 2
    assert [end_of(stage, found) for found in (message_id, *sent)] == [DONE, DONE]
    assert [stage.read(found)["step"] for found in (message_id, *sent)] == ["parent", "child"]
    assert current_binding() is None
