"""Cancelled messages of real workers: the ``dramatiq`` command on Redis and RabbitMQ, and workers of this process."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import dramatiq
import pytest
from dramatiq import group, pipeline
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import AsyncIO, Callbacks, GroupCallbacks, Middleware, Pipelines, Retries
from dramatiq.rate_limits.backends import StubBackend as RateLimiterStub
from dramatiq.results import Results
from dramatiq.results.backends import StubBackend as StubResults

from dramatiq_status import Cancellation, Cancelled, StatusMiddleware, StatusRegistry
from dramatiq_status.backends import StubBackend

from ..recording import working
from ..servers import RedisServer
from .crew import Crew, send_signal, stop


@pytest.fixture(params=["redis", "rabbitmq"])
def crew(request: pytest.FixtureRequest, redis_server: RedisServer, redis_url: str, tmp_path: Path) -> Crew:
    """Return a crew with the broker that the parameter names, and the store after the comma."""
    broker, _, store = request.param.partition(", ")
    url = redis_server.database(1)
    if broker == "rabbitmq":
        url = request.getfixturevalue("rabbitmq_url") + "?heartbeat=2"
    stores = {"": "", "sqlite": f"sqlite:///{tmp_path}/statuses.db"}
    if store == "memcached":
        stores[store] = f"memcached://{request.getfixturevalue('memcached_server').address}"
    return Crew(url, redis_url, stores[store])


def cancel(crew: Crew) -> Cancellation:
    return StatusRegistry.cancel(crew.message_id, reason="user left", broker=crew.broker)


def test_a_message_that_waits_is_dropped_and_one_that_runs_stops_within_a_second(crew: Crew) -> None:
    # Given a message that was cancelled before a worker started, and one that runs
    crew.send("listen")
    assert cancel(crew) is Cancellation.CANCELLED
    waiting = crew.message_id
    with crew.worker("first"):
        crew.send("listen")
        crew.heed("first", "began")
        # When the second one is cancelled
        assert cancel(crew) is Cancellation.REQUESTED
        found = crew.wait()
        # Then it has ended as cancelled, and the broker has dropped it
        assert found.cancelled and (found.attempts, found.cancel_reason) == (1, "user left")
        assert found.cancel_requested_at is not None and found.cancel_seen_at is not None
        crew.heed("first", "settled")
        # And the first one has never run
        first = StatusRegistry.read(waiting, broker=crew.broker)
        assert first is not None and first.cancelled and first.attempts == 0
        crew.heed("first", "settled")


@pytest.mark.parametrize("crew", ["redis", "rabbitmq", "redis, memcached", "redis, sqlite"], indirect=True)
def test_a_message_is_not_run_again_whose_worker_was_killed_after_the_request(crew: Crew) -> None:
    # Given a running message that was asked to stop
    crew.send()
    with crew.worker("first") as first:
        crew.heed("first", "began")
        assert cancel(crew) is Cancellation.REQUESTED
        # When its worker is killed, and another one gets the message
        send_signal(first, signal.SIGKILL)
        first.wait()
        with crew.worker("second"):
            found = crew.wait()
            crew.heed("second", "settled")
    # Then it was not run again
    assert found.cancelled and (found.attempts, found["owner"]) == (1, "first")
    assert [run.outcome for run in found.runs] == ["lost"] and found.timeline[-1] == "cancelled"


def test_two_workers_with_one_message_both_stop(crew: Crew) -> None:
    # Given a message whose worker is frozen for so long that another one runs it
    crew.send("listen")
    with crew.worker("first") as first:
        crew.heed("first", "began")
        stop(first)
        with crew.worker("second"):
            crew.heed("second", "began")
            # When it is cancelled
            assert cancel(crew) is Cancellation.REQUESTED
            found = crew.wait()
            # Then the run that owns the status ends the message
            assert found.cancelled and (found.attempts, found["owner"]) == (2, "second")
            assert [run.outcome for run in found.runs] == ["lost", "cancelled"]
            crew.heed("second", "settled")
            # And the other run stops when its worker continues, and changes nothing
            send_signal(first, signal.SIGCONT)
            crew.heed("first", "settled")
            assert crew.read() == found


@pytest.fixture(params=["stub", "redis", "rabbitmq"])
def make_broker(request: pytest.FixtureRequest) -> Callable[[list[Middleware]], dramatiq.Broker]:
    """Return a function that makes a broker of a kind with the given middleware."""
    if request.param == "stub":
        return StubBroker
    url = request.getfixturevalue(f"{request.param}_url")
    kind = RedisBroker if request.param == "redis" else RabbitmqBroker
    return lambda middleware: kind(url=url, middleware=middleware)


# The stub broker has every order. The others have those in which StatusMiddleware is first or last.
@pytest.mark.parametrize(
    "make_broker, position, is_async",
    [
        *(("stub", position, False) for position in range(7)),
        *((kind, position, kind == "stub") for kind in ("stub", "redis", "rabbitmq") for position in (0, 6)),
    ],
    indirect=["make_broker"],
)
def test_a_cancelled_pipeline_ends_in_every_order_of_middleware(
    make_broker: Callable[..., dramatiq.Broker], position: int, is_async: bool
) -> None:
    # Given StatusMiddleware anywhere among retries, results and callbacks
    results, queue_name = StubResults(), f"q-{uuid4()}"
    middleware: list[Middleware] = [AsyncIO(), Callbacks(), Pipelines(), Retries(min_backoff=1, max_backoff=2)]
    middleware += [GroupCallbacks(RateLimiterStub()), Results(backend=results, store_results=True)]
    middleware.insert(position, StatusMiddleware(backend=StubBackend()))
    broker = make_broker(middleware)
    called: list[str] = []

    @dramatiq.actor(broker=broker, queue_name=queue_name)
    def callback(*values: object, **options: object) -> None:
        called.append("callback")

    def stage() -> None:
        called.append("stage")
        raise Cancelled("enough")

    async def async_stage() -> None:
        stage()

    options = {"max_retries": 3, "on_success": "callback", "on_failure": "callback", "queue_name": queue_name}
    actor = dramatiq.actor(broker=broker, actor_name="stage", **options)(async_stage if is_async else stage)
    first, second = actor.message(), callback.message()
    stages = pipeline([first, second], broker=broker)
    jobs = group([actor.message(), actor.message()], broker=broker)
    jobs.add_completion_callback(callback.message())
    # When the messages run, and raise Cancelled
    with working(broker):
        stages.run()
        jobs.run()
        found = StatusRegistry.wait(first, broker=broker)
        children = StatusRegistry.batch(jobs, broker=broker).wait()
        broker.join(queue_name)
        time.sleep(0.05)
        broker.join(queue_name)
    # Then each has ended once, and no callback or further stage has run
    assert called == ["stage"] * 3
    assert found.cancelled and [child is not None and child.cancelled for child in children.children.values()] == [
        True,
        True,
    ]
    assert StatusRegistry.read(second, broker=broker) is None
    broker.close()


@pytest.mark.parametrize("make_broker", ["stub", "redis", "rabbitmq"], indirect=True)
def test_a_message_is_cancelled_without_other_middleware(
    make_broker: Callable[..., dramatiq.Broker],
) -> None:
    # Given a broker with nothing but StatusMiddleware
    broker, queue_name = make_broker([StatusMiddleware(backend=StubBackend())]), f"q-{uuid4()}"

    @dramatiq.actor(broker=broker, queue_name=queue_name)
    def job() -> None:
        raise Cancelled("enough")

    # When an actor raises Cancelled
    with working(broker):
        message = job.send()
        found = StatusRegistry.wait(message, broker=broker)
        broker.join(queue_name)
    # Then its message has ended once
    assert found.cancelled and [run.outcome for run in found.runs] == ["cancelled"]
    broker.close()
