"""Tests of the order in which results and final states are stored."""

from __future__ import annotations

from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Retries
from dramatiq.results import ResultFailure, ResultMissing, Results
from dramatiq.results import backends as results
from dramatiq.results.backend import ResultBackend

from dramatiq_status import StatusMiddleware, StatusRegistry
from dramatiq_status.backends import RedisBackend
from dramatiq_status.record import COMPLETED, FAILED

from ..recording import PATIENCE, RecordingBackend, Updates, join, make_stub_broker, working
from ..servers import RedisServer
from .stage import Boom


@pytest.fixture(params=["first", "last"])
def position(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make_broker(ours: StatusMiddleware, theirs: ResultBackend, position: str) -> StubBroker:
    others = [Retries(max_retries=1, min_backoff=1, max_backoff=2), Results(backend=theirs, store_results=True)]
    return make_stub_broker(*([ours, *others] if position == "first" else [*others, ours]))


def result_of(message: dramatiq.Message[Any], backend: ResultBackend) -> object:
    """Return the result, the failure, or None if there is none yet."""
    try:
        return message.get_result(backend=backend)
    except (ResultFailure, ResultMissing) as e:
        return type(e)


@pytest.mark.parametrize("retried", [False, True], ids=["at-once", "retried"])
def test_the_result_is_stored_before_completed(position: str, retried: bool) -> None:
    # Given code that reads the result directly before the store gets the state `completed`
    seen: list[object] = []

    def look(updates: Updates) -> None:
        if any(update.state == COMPLETED for _, update in updates):
            seen.append(result_of(message, theirs))

    theirs = results.StubBackend()
    backend = RecordingBackend(timeout=int(PATIENCE * 1000))
    backend.before = look
    broker = make_broker(StatusMiddleware(backend=backend), theirs, position)
    runs: list[int] = []

    @dramatiq.actor(broker=broker)
    def work() -> str:
        runs.append(len(runs))
        if retried and len(runs) == 1:
            raise Boom
        return "the result"

    # When a message is processed, at the first or the second attempt
    message = work.send()
    with working(broker) as worker:
        join(broker, worker)
    # Then the result is stored at this time
    assert seen == ["the result"]


def test_readers_of_completed_get_the_result(
    position: str, redis_server: RedisServer, redis_url: str, redis_broker_url: str
) -> None:
    # Given statuses and results on Redis, and a worker
    theirs = results.RedisBackend(url=redis_broker_url)
    backend = RedisBackend(url=redis_url, timeout=20_000)
    broker = make_broker(StatusMiddleware(backend=backend), theirs, position)

    @dramatiq.actor(broker=broker)
    def work(number: int) -> int:
        return number

    with working(broker) as worker:
        # When a reader reads the status of one message after the other without a pause
        for number in range(50):
            message = work.send(number)
            while not StatusRegistry.get(message, backend=backend).completed:
                pass
            # Then the result is stored as soon as the status is `completed`
            assert result_of(message, theirs) == number
        join(broker, worker)
    backend.close()


def test_failed_is_stored_with_its_exception_before_the_result(position: str) -> None:
    # Given code that reads the result directly after the store has got the state `failed`
    seen: list[object] = []

    def look(updates: Updates) -> None:
        if any(update.state == FAILED for _, update in updates):
            snapshot = StatusRegistry.read(message, backend=backend)
            seen.extend((snapshot and snapshot.exception, result_of(message, theirs)))

    theirs = results.StubBackend()
    backend = RecordingBackend(timeout=int(PATIENCE * 1000))
    backend.after = look
    broker = make_broker(StatusMiddleware(backend=backend), theirs, position)

    @dramatiq.actor(broker=broker, max_retries=0)
    def work() -> None:
        raise Boom("broken")

    # When a message fails
    message = work.send()
    with working(broker) as worker:
        join(broker, worker)
    # Then its status has the exception. Dramatiq stores the failure later, after it has rejected the message
    assert seen == [{"type": "Boom", "message": "broken"}, ResultMissing]
    assert result_of(message, theirs) is ResultFailure
