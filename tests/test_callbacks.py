"""Tests that a message finds the earlier writes of the run that has sent it."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AsyncIO, Callbacks, GroupCallbacks, Middleware, Pipelines, Retries
from dramatiq.rate_limits.backends import StubBackend as StubRateLimiterBackend

from dramatiq_status import StatusMiddleware, StatusRegistry, current_progress, current_status
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends import RedisBackend, StubBackend
from dramatiq_status.snapshot import Snapshot

from .recording import PATIENCE, eventually, working

CALLERS = 40


@pytest.fixture(params=["stub", "redis"])
def backend(request: pytest.FixtureRequest) -> Iterator[StatusBackend]:
    backend: StatusBackend
    if request.param == "redis":
        backend = RedisBackend(url=request.getfixturevalue("redis_url"), timeout=20_000)
    else:
        backend = StubBackend()
    yield backend
    backend.close()


class Crew:
    """Callers that leave fields and progress, and callbacks that read them before the callers are acknowledged.

    Parameters:
      broker(dramatiq.Broker)
      backend(StatusBackend)
    """

    def __init__(self, broker: dramatiq.Broker, backend: StatusBackend) -> None:
        self.broker = broker
        self.found: list[Snapshot | None] = []
        self.read = read = defaultdict[str, threading.Event](threading.Event)

        def look_at(message_id: str) -> None:
            self.found.append(StatusRegistry.get(message_id, backend=backend).read())
            read[message_id].set()

        def write() -> str:
            current_status().update(step="writing", rows=3)
            current_progress().total = 10
            current_status().flush()
            # The throttle delays this write for a long time.
            current_progress().increment(4)
            return current_status().message_id

        @dramatiq.actor(broker=broker, queue_name="callbacks")
        def callback(message_id: str) -> None:
            look_at(message_id)

        @dramatiq.actor(broker=broker, queue_name="callbacks", track_status=False)
        def on_success(message: dict[str, Any], result: object) -> None:
            look_at(message["message_id"])

        @dramatiq.actor(broker=broker, status_throttle=600_000)
        def caller() -> str:
            return write()

        @dramatiq.actor(broker=broker, status_throttle=600_000)
        def sender() -> None:
            callback.send(write())

        @dramatiq.actor(broker=broker, status_throttle=600_000)
        async def async_caller() -> str:
            return write()

        @dramatiq.actor(broker=broker, status_throttle=600_000)
        async def async_sender() -> None:
            message_id = await asyncio.to_thread(write)
            await asyncio.to_thread(current_status().flush)
            callback.send(message_id)

        self.async_sender = async_sender
        self.callback, self.on_success = callback, on_success
        self.caller, self.sender, self.async_caller = caller, sender, async_caller

    def check(self) -> None:
        """Check that each callback has found all that its caller had written."""
        eventually(lambda: len(self.found) == CALLERS)
        found = [dict(snapshot) for snapshot in self.found if snapshot is not None]
        assert len(found) == CALLERS
        assert {tuple(map(snapshot.get, ("status", "step", "rows", "progress", "total"))) for snapshot in found} == {
            ("working", "writing", 3, 4, 10)
        }


class HoldCallers(Middleware):
    """Middleware that delays the acknowledgement of a caller until its callback has read it."""

    crew: Crew

    def before_ack(self, broker: dramatiq.Broker, message: Any) -> None:
        if message.queue_name == "default":
            assert self.crew.read[message.message_id].wait(PATIENCE)


@pytest.fixture
def crew(backend: StatusBackend, redis_broker_url: str) -> Iterator[Crew]:
    hold = HoldCallers()
    middleware = [
        hold,
        AsyncIO(),
        Retries(max_retries=0),
        Callbacks(),
        Pipelines(),
        GroupCallbacks(StubRateLimiterBackend()),
    ]
    broker = RedisBroker(url=redis_broker_url, middleware=middleware)
    broker.add_middleware(StatusMiddleware(backend=backend))
    hold.crew = crew = Crew(broker, backend)
    with working(broker, threads=CALLERS + 2):
        yield crew
    broker.close()


def test_a_success_callback_reads_what_its_caller_has_written(crew: Crew) -> None:
    for _ in range(CALLERS):
        crew.caller.send_with_options(on_success=crew.on_success)
    crew.check()


def test_a_success_callback_reads_what_an_async_caller_has_written(crew: Crew) -> None:
    for _ in range(CALLERS):
        crew.async_caller.send_with_options(on_success=crew.on_success)
    crew.check()


def test_the_next_stage_of_a_pipeline_reads_what_the_one_before_has_written(crew: Crew) -> None:
    for _ in range(CALLERS):
        dramatiq.pipeline([crew.caller.message(), crew.callback.message()], broker=crew.broker).run()
    crew.check()


def test_the_callback_of_a_group_reads_what_all_members_have_written(crew: Crew) -> None:
    for _ in range(CALLERS // 4):
        members = [crew.caller.message() for _ in range(4)]
        group = dramatiq.group(members, broker=crew.broker)
        for member in members:
            group.add_completion_callback(crew.callback.message(member.message_id))
        group.run()
    crew.check()


def test_a_message_reads_what_its_sender_has_written_before(crew: Crew) -> None:
    for _ in range(CALLERS):
        crew.sender.send()
    crew.check()


def test_a_message_reads_what_a_coroutine_has_flushed_before(crew: Crew) -> None:
    for _ in range(CALLERS):
        crew.async_sender.send()
    crew.check()
