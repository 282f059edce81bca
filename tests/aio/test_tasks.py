"""Waiting for the tasks of an event loop, and cancelling them."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine, Iterator
from contextlib import aclosing, closing
from functools import partial
from typing import Any

import pytest

from dramatiq_status import aio
from dramatiq_status.aio.connector import Connector
from dramatiq_status.aio.redis import RedisSubscription
from dramatiq_status.aio.tasks import end_of, within
from dramatiq_status.backends import RedisBackend

from ..jobs import Job
from ..recording import PATIENCE
from .test_redis import connections, named, until
from .test_registry import in_loop


@pytest.fixture
def backend(redis_url: str) -> Iterator[RedisBackend]:
    with closing(named(redis_url, timeout=20_000)) as backend:
        yield backend


def test_a_cancellation_is_never_forgotten() -> None:
    # Given a task that waits for other work
    async def main() -> None:
        for ticks in range(5):
            gate = asyncio.Event()
            task = asyncio.create_task(within(PATIENCE, gate.wait()))
            await asyncio.sleep(0.01)
            # When the work ends, and the task is cancelled at about the same time
            gate.set()
            for _ in range(ticks):
                await asyncio.sleep(0)
            cancelled = task.cancel()
            # Then the task is cancelled, unless it has ended before
            await asyncio.wait([task])
            assert task.cancelled() or not cancelled

    in_loop(main)


def test_work_that_loses_a_cancellation_ends() -> None:
    # Given work that loses its first cancellation, as `asyncio.wait_for` before Python 3.12 may do
    async def lose_one() -> None:
        try:
            await asyncio.sleep(PATIENCE)
        except asyncio.CancelledError:
            await asyncio.sleep(PATIENCE)

    async def main() -> None:
        # When its time is over, then the waiting task gets the error
        with pytest.raises(TimeoutError, match="10 milliseconds"):
            await within(0.01, lose_one())
        # And when the waiting task is cancelled again and again
        before = asyncio.all_tasks()
        task = asyncio.create_task(within(PATIENCE, lose_one()))
        await asyncio.sleep(0.01)
        while not task.done():
            task.cancel()
            await asyncio.sleep(0)
        # Then the work has ended before the task
        assert task.cancelled() and asyncio.all_tasks() == before

    in_loop(main)


def test_a_connection_is_closed_after_the_driver_has_ended(backend: RedisBackend) -> None:
    # Given a task that connects
    connector = Connector.of(backend.transport)
    assert connector is not None
    outcomes: list[object] = []

    async def main(turns: int, more: int) -> None:
        before = asyncio.all_tasks()
        connecting = asyncio.create_task(connector.connect())
        for _ in range(turns):
            await asyncio.sleep(0)
        # When it and the driver's task are cancelled, and it is cancelled again some turns of the loop later
        tasks = {connecting} | asyncio.all_tasks() - before
        for task in tasks:
            task.cancel()
        for _ in range(more):
            await asyncio.sleep(0)
        connecting.cancel()
        await asyncio.wait(tasks)
        outcomes.extend(task.cancelled() or task.exception() for task in tasks)
        if not connecting.cancelled():
            await connecting.result().disconnect()

    for turns in range(30):
        for more in range(5):
            in_loop(partial(main, turns, more))
    # Then no task has failed
    assert set(outcomes) <= {True, None}


def test_work_in_an_event_loop_has_a_timeout() -> None:
    async def main() -> None:
        # Given work that takes too long, work that fails, and work that does neither
        # When a task waits for the work
        # Then the task gets the error or the result
        with pytest.raises(TimeoutError, match="10 milliseconds"):
            await within(0.01, asyncio.sleep(PATIENCE))
        with pytest.raises(ZeroDivisionError):
            await within(PATIENCE, fail())
        assert await within(PATIENCE, asyncio.sleep(0, "done")) == "done"

    async def fail() -> None:
        raise ZeroDivisionError

    in_loop(main)


async def fail_when_cancelled() -> None:
    try:
        await asyncio.sleep(PATIENCE)
    except asyncio.CancelledError:
        await asyncio.sleep(0)
        raise OSError from None


@pytest.mark.parametrize(
    "wait",
    [lambda: within(PATIENCE, fail_when_cancelled()), lambda: end_of(asyncio.create_task(fail_when_cancelled()))],
    ids=["within", "end_of"],
)
def test_no_exception_of_a_cancelled_task_is_logged(wait: Callable[[], Coroutine[Any, Any, None]]) -> None:
    logged: list[dict[str, Any]] = []

    async def main(turns: int) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))
        # Given a task that waits for another task, which fails when it is cancelled
        task = asyncio.create_task(wait())
        await asyncio.sleep(0.01)
        # When the waiting task is cancelled, and cancelled again some turns of the loop later
        task.cancel()
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        del task
        gc.collect()
        await asyncio.sleep(0)

    for turns in range(5):
        in_loop(partial(main, turns))
    # Then asyncio has nothing to log
    assert logged == []


def test_a_watch_ends_although_its_subscription_loses_a_cancellation(
    jobs: RedisBackend, backend: RedisBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a subscription whose driver loses a cancellation, as `async-timeout` may do on Python 3.10
    receive = RedisSubscription.receive

    async def lose_one(subscription: RedisSubscription) -> tuple[str, int | None]:
        try:
            return await receive(subscription)
        except asyncio.CancelledError:
            return await receive(subscription)

    monkeypatch.setattr(RedisSubscription, "receive", lose_one)

    async def main() -> None:
        # When the last watch is broken off
        async with aclosing(aio.StatusRegistry.watch(Job(jobs).enqueue().message_id, backend=backend)) as found:
            assert (await anext(found)).queued
            await until(lambda: connections(jobs)["listens"] == 1)
        # Then it ends, and its subscription with it
        await until(lambda: not connections(jobs)["listens"])

    in_loop(main)


def test_a_closing_that_is_cancelled_closes_all_connections(jobs: RedisBackend, backend: RedisBackend) -> None:
    async def main(turns: int) -> None:
        # Given connections for calls and for changes
        watch = aio.StatusRegistry.watch(Job(jobs).enqueue().message_id, backend=backend)
        assert (await anext(watch)).queued
        await until(lambda: connections(jobs) == {"listens": 1, "asks": 1})
        # When they are being closed, and the closing is cancelled
        closing = asyncio.create_task(aio.close(backend=backend))
        for _ in range(turns):
            await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
        # Then they are closed, if the closing has begun
        if turns:
            await until(lambda: not connections(jobs))

    for turns in range(5):
        in_loop(partial(main, turns))
