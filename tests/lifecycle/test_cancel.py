"""Cancelled messages of real workers: the ``dramatiq`` command on Redis and RabbitMQ."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from dramatiq_status import Cancellation, StatusRegistry

from ..servers import RedisServer
from .crew import Crew, send_signal, stop


@pytest.fixture(params=["redis", "rabbitmq"])
def crew(request: pytest.FixtureRequest, redis_server: RedisServer, redis_url: str, tmp_path: Path) -> Crew:
    """A crew with the broker that the parameter names, and the store after the comma."""
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
    # Given a message that was cancelled before any worker, and one that runs
    crew.send("listen")
    assert cancel(crew) is Cancellation.CANCELLED
    waiting = crew.message_id
    with crew.worker("first"):
        crew.send("listen")
        crew.heed("first", "began")
        # When the second one is cancelled
        assert cancel(crew) is Cancellation.REQUESTED
        found = crew.wait()
        # Then it has ended as cancelled, and was dropped by the broker
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
            # Then the run that owns the status ends it
            assert found.cancelled and (found.attempts, found["owner"]) == (2, "second")
            crew.heed("second", "settled")
            # And the other one stops when it comes back, and changes nothing
            send_signal(first, signal.SIGCONT)
            crew.heed("first", "settled")
            assert crew.read() == found
