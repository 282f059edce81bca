"""Tests of the number of StatusMiddlewares on a broker, and of several brokers in one process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq_eager_broker import EagerBroker

from dramatiq_status import Cancelled, StatusError, StatusMiddleware, StatusRegistry, StatusSetupError, current_status
from dramatiq_status.backends import StubBackend

from .recording import RecordingBackend, make_broker, make_stub_broker, run, working

BROKERS: dict[str, Callable[..., dramatiq.Broker]] = {
    "stub": StubBroker,
    "redis": RedisBroker,
    "rabbitmq": lambda **options: RabbitmqBroker(url="amqp://127.0.0.1:1", **options),
    "eager": EagerBroker,
}


def ours() -> StatusMiddleware:
    return StatusMiddleware(backend=StubBackend())


def declare(broker: dramatiq.Broker) -> dramatiq.Actor[[], None]:
    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    return work


class Subclass(StatusMiddleware):
    """Middleware of an application, derived from StatusMiddleware."""


@pytest.mark.parametrize("kind", BROKERS)
def test_a_second_middleware_is_refused_when_an_actor_is_declared(kind: str) -> None:
    # Given a broker with two instances of StatusMiddleware
    first = ours()
    for second in (ours(), Subclass(backend=StubBackend()), first):
        broker = BROKERS[kind](middleware=[first])
        broker.add_middleware(second)
        # When an actor or a queue is declared
        # Then an error is raised that names what to do
        with pytest.raises(StatusSetupError, match=r"add one only.*move-to-another-store"):
            declare(broker)
        if kind != "eager":
            with pytest.raises(StatusSetupError):
                broker.declare_queue("other")
    assert issubclass(StatusSetupError, StatusError)


@pytest.mark.parametrize("declared", ["actor", "queue"])
def test_a_second_middleware_is_refused_when_it_is_added(declared: str) -> None:
    # Given a broker with one StatusMiddleware, and with a declared queue or actor
    broker = StubBroker(middleware=[ours()])
    if declared == "actor":
        declare(broker)
    else:
        broker.declare_queue("default")
    # When a second one is added
    # Then an error is raised at once
    with pytest.raises(StatusSetupError):
        broker.add_middleware(ours())


def test_a_second_middleware_is_refused_when_a_worker_starts() -> None:
    # Given a broker to whose list of middleware other code has added a second StatusMiddleware
    broker = StubBroker(middleware=[ours()])
    declare(broker)
    broker.middleware.append(ours())
    # When a worker starts
    # Then an error is raised
    with pytest.raises(StatusSetupError):
        dramatiq.Worker(broker).start()


def test_a_second_middleware_is_refused_under_the_command(tmp_path: Path) -> None:
    # Given an application that adds two instances of StatusMiddleware
    (tmp_path / "tasks.py").write_text(
        """
import dramatiq
from dramatiq.brokers.stub import StubBroker
from dramatiq_status import StatusMiddleware
from dramatiq_status.backends import StubBackend
broker = StubBroker()
broker.add_middleware(StatusMiddleware(backend=StubBackend()))
broker.add_middleware(StatusMiddleware(backend=StubBackend()))
dramatiq.set_broker(broker)
dramatiq.actor(lambda: None, actor_name="work")
"""
    )
    # When its workers are started
    command = [sys.executable, "-m", "dramatiq", "tasks", "--processes", "1", "--threads", "1"]
    worker = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=60)
    # Then they end, and log the reason
    assert worker.returncode and "StatusSetupError" in worker.stderr and "add one only" in worker.stderr


def test_one_middleware_is_accepted() -> None:
    for make in BROKERS.values():
        declare(make(middleware=[ours()]))


@pytest.mark.parametrize("is_declared_first", [False, True], ids=["declared later", "declared first"])
@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, (Cancelled,)),
        ({"throws": None}, (Cancelled,)),
        ({"throws": KeyError}, (KeyError, Cancelled)),
        ({"throws": KeyError | ValueError}, (KeyError | ValueError, Cancelled)),
        ({"throws": (KeyError, ValueError)}, (KeyError, ValueError, Cancelled)),
        ({"throws": (Cancelled, KeyError)}, (Cancelled, KeyError)),
    ],
    ids=["none", "None", "class", "union", "tuple", "tuple with Cancelled"],
)
def test_actors_throw_cancelled(options: dict[str, Any], expected: tuple[Any, ...], is_declared_first: bool) -> None:
    # Given a broker, and an actor that is declared before or after the middleware is added
    broker = StubBroker()
    if not is_declared_first:
        broker.add_middleware(ours())

    @dramatiq.actor(broker=broker, **options)
    def work() -> None: ...

    if is_declared_first:
        broker.add_middleware(ours())
    # Then Dramatiq does not retry it after Cancelled, nor after the exceptions of its own option
    assert work.options["throws"] == expected


def test_two_brokers_have_a_middleware_and_a_store_each() -> None:
    # Given two brokers of one process, whose actors send messages to each other
    backends = [RecordingBackend(), RecordingBackend()]
    brokers = [make_broker(backend) for backend in backends]
    actors: list[Any] = []

    def make(number: int) -> Any:
        @dramatiq.actor(broker=brokers[number], actor_name=f"work-{number}")
        def work(left: int, parent: str | None) -> None:
            status = current_status()
            status["broker"] = number
            if left:
                status["child"] = actors[not number].send(left - 1, status.message_id).message_id
            status["parent"] = parent

        return work

    actors.extend(map(make, range(2)))
    # When jobs run on both at once
    roots = [actors[n % 2].send(5, None) for n in range(40)]
    with working(brokers[0], threads=4), working(brokers[1], threads=4):
        # Then each has its status in the store of its own broker, and nowhere else
        for n, root in enumerate(roots):
            message_id, parent, number = root.message_id, None, n % 2
            for _ in range(6):
                snapshot = StatusRegistry.wait(message_id, broker=brokers[number], timeout=20_000)
                assert (snapshot.state, snapshot["broker"], snapshot["parent"]) == ("completed", number, parent)
                assert StatusRegistry.read(message_id, broker=brokers[not number]) is None
                parent, message_id, number = message_id, snapshot.get("child"), 1 - number
            assert message_id is None


def test_readers_find_messages_during_a_move_to_another_store() -> None:
    # Given messages that a process with the old store has sent, and workers with the new one
    old, new = RecordingBackend(), RecordingBackend()
    producer, worker = make_broker(old), make_broker(new)
    sent = declare(producer).send_with_options(status={"user_id": 42})
    declare(worker)

    def read() -> Any:
        snapshot = StatusRegistry.read(sent, backend=new)
        return StatusRegistry.read(sent, backend=old) if snapshot is None else snapshot

    # When readers look into both stores, they find the message before it runs and after
    assert read().queued
    worker.queues["default"].put(sent.encode())
    run(worker)
    assert read().completed and read()["user_id"] == 42 and read().actor_name == "work"


def test_two_brokers_may_share_one_middleware() -> None:
    # Given one middleware that two brokers share
    backend = StubBackend()
    middleware = StatusMiddleware(backend=backend)
    brokers = [make_stub_broker(middleware), make_stub_broker(middleware)]
    actors = [declare(broker) for broker in brokers]
    # When jobs run on both
    messages = [actor.send() for actor in actors]
    for broker in brokers:
        run(broker)
    # Then all messages are completed
    snapshots = StatusRegistry.read_many(messages, backend=backend)
    assert [snapshot and snapshot.state for snapshot in snapshots] == ["completed"] * 2
