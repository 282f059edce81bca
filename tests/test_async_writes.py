"""Async actors: nothing that a coroutine writes holds up the event loop."""

from __future__ import annotations

import asyncio
import threading

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker

from dramatiq_status import StatusRegistry, current_progress, current_status

from .recording import PATIENCE, Gate, RecordingBackend, join, make_broker, working


@pytest.fixture
def backend() -> RecordingBackend:
    # The time-out of the backend is longer than the test waits, so that a blocked event loop fails the test.
    return RecordingBackend(timeout=int(PATIENCE * 10_000))


@pytest.fixture
def broker(backend: RecordingBackend) -> StubBroker:
    return make_broker(backend, asyncio=True)


def test_writes_do_not_block_the_loop(backend: RecordingBackend, broker: StubBroker) -> None:
    # Given a store that hangs as soon as a job runs
    written, turned = threading.Event(), threading.Event()

    @dramatiq.actor(broker=broker)
    async def work() -> None:
        status, progress = current_status(), current_progress()
        # When an async actor makes each kind of write, and sends messages
        for number in range(100):
            status["number"] = number
            status.update(step="counting", number=number)
            progress.total = 100
            progress.increment()
            child.send_with_options(args=(number,), status={"number": number})
        progress.finish()
        StatusRegistry.get("parent", backend=backend).update(number=1)
        StatusRegistry.progress("parent", backend=backend).increment()
        written.set()
        # and then yields to other tasks
        await asyncio.to_thread(turned.wait, PATIENCE)

    @dramatiq.actor(broker=broker)
    async def bystander() -> None:
        await asyncio.to_thread(written.wait, PATIENCE)
        turned.set()

    @dramatiq.actor(broker=broker, queue_name="children")
    def child(number: int) -> None: ...

    messages = [work.send(), bystander.send()]
    gate = Gate(backend, holds=lambda updates: True)
    with working(broker, threads=3) as worker:
        assert gate.reached.wait(PATIENCE)
        # Then it ends, and another coroutine continues
        went_on = written.wait(PATIENCE) and turned.wait(PATIENCE)
        gate.open()
        assert went_on
        join(broker, worker)
    # And all writes are stored after the store answers again
    found = StatusRegistry.read(messages[0], backend=backend)
    assert found is not None and found.completed
    assert (found["number"], found["progress"], found["total"]) == (99, 100, 100)


def test_flush_in_a_thread_does_not_block_the_loop(backend: RecordingBackend, broker: StubBroker) -> None:
    # Given an async actor that waits in a thread until all is stored, and a store that hangs
    turned = threading.Event()
    flushed: list[bool] = []

    @dramatiq.actor(broker=broker)
    async def work() -> None:
        status = current_status()
        status["step"] = "one"
        flushed.append(await asyncio.to_thread(status.flush))

    @dramatiq.actor(broker=broker)
    async def bystander() -> None:
        await asyncio.sleep(0)
        turned.set()

    message = work.send()
    gate = Gate(backend)
    with working(broker, threads=2) as worker:
        assert gate.reached.wait(PATIENCE)
        # When another coroutine is ready to run
        bystander.send()
        # Then it runs while the first one still waits
        went_on = turned.wait(PATIENCE) and not flushed
        gate.open()
        assert went_on
        join(broker, worker)
    # And the first one has waited until all writes were stored
    found = StatusRegistry.read(message, backend=backend)
    assert flushed == [True] and found is not None and found["step"] == "one"
