"""Tests of deliveries with errors at their end: the broker refuses the retry, or gets no acknowledgement."""

from __future__ import annotations

from uuid import uuid4

import pytest

from ..conftest import StartServer
from ..recording import eventually
from ..servers import RedisServer
from .recorder import RecordingRedisBackend, RecordingStubBackend
from .scenarios import DONE, End, failed, skipped, unruly
from .stage import Stage, Unruly, make_middleware
from .test_scenarios import end_of


@pytest.fixture(params=["first", "last"])
def position(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_retry_that_the_broker_does_not_take_fails(start_server: StartServer, position: str) -> None:
    # Given a message whose broker is down when it fails
    server = start_server(RedisServer())
    stage = Stage(server.url, RecordingStubBackend(timeout=20_000), position=position, name=f"q-{uuid4()}")
    stage.steps["stop the broker"] = lambda rest: server.stop()
    with stage.working(threads=1):
        message_id = stage.send("stop the broker,raise")
        # When its retry cannot be enqueued
        eventually(lambda: stage.sequence(message_id) == "qwqf")
        # And its broker is back, and the message is acknowledged
        server.start()
        stage.audit.wait(message_id)
    # Then it has failed, because no worker runs it again
    assert end_of(stage, message_id) == failed("qwqf")
    stage.close()


def test_a_message_that_is_never_acknowledged_does_not_affect_the_next_one(
    redis_server: RedisServer, position: str
) -> None:
    # Given a worker, and a middleware that prevents the acknowledgement of a message
    name = f"q-{uuid4()}"
    backend = RecordingRedisBackend(url=redis_server.url, namespace=name, timeout=20_000)
    stage = Stage(redis_server.database(1), backend, position=position, name=name, heartbeat_interval=20)
    # (A StatusMiddleware ahead of that one has stored that it is completed.)
    states = "qwc" if position == "first" else "qw"
    with stage.working(threads=1):
        message_id = stage.send("progress:7", "progress:3", **unruly("before_ack", "nasty"))
        eventually(lambda: stage.sequence(message_id) == states)
        # When the same thread runs another message
        other_id = stage.send()
        stage.audit.wait(other_id)
        # Then the thread has no state of the first one, and no heartbeat is sent for it
        assert end_of(stage, other_id) == DONE
        assert not stage.middleware._writer.running
    assert stage.sequence(message_id) == states
    stage.broker.close()
    # And when the message is delivered again, its status shows the new run
    others = [middleware for middleware in make_middleware(retries=True) if not isinstance(middleware, Unruly)]
    again = Stage(redis_server.database(1), backend, position=position, name=name, middleware=others)
    with again.working(threads=1):
        again.audit.wait(message_id)
    assert end_of(again, message_id) == (DONE if position == "first" else End("qwc", 2))
    assert again.read(message_id)["progress"] == (7 if position == "first" else 3)
    again.close()


def test_enqueues_of_a_message_do_not_affect_the_next_one() -> None:
    # Given a thread that has run a message, which has sent another one
    stage = Stage("stub://", RecordingStubBackend(timeout=20_000))
    sent: list[str] = []

    def send(rest: str) -> None:
        message = stage.other.message_with_options(**unruly("before_process_message", "skip"))
        sent.append(message.message_id)
        stage.broker.enqueue(message)

    stage.steps["send one that is skipped"] = send
    with stage.working(threads=1):
        stage.audit.wait(stage.send("send one that is skipped"))
        # When the sent message is skipped on the same thread, by a middleware ahead of StatusMiddleware
        stage.audit.wait(sent[0])
    # Then it is completed, and does not count as put back
    assert end_of(stage, sent[0]) == skipped("qc", 0)
    stage.close()
