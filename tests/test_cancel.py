"""Cancelled messages, as callers and actors see them."""

from __future__ import annotations

import asyncio

import dramatiq
import pytest
from dramatiq import group, pipeline

from dramatiq_status import BackendError, Cancellation, StatusMissing, StatusRegistry, aio
from dramatiq_status.backend import StatusBackend
from dramatiq_status.testing.updates import enqueue, finish, start

from .recording import Broken, RecordingBackend, make_broker

CANCELLED, REQUESTED, FINISHED = Cancellation.CANCELLED, Cancellation.REQUESTED, Cancellation.FINISHED


@pytest.fixture
def backend() -> RecordingBackend:
    return RecordingBackend()


def in_each_state(backend: StatusBackend) -> None:
    for message_id, updates in {
        "waiting": [enqueue()],
        "running": [start(1)],
        "completed": [start(1), finish(1)],
    }.items():
        backend.update_many([(message_id, update) for update in updates])


# From outside


@pytest.mark.parametrize("is_async", [False, True], ids=["calls", "awaited"])
def test_the_answer_says_what_was_found(backend: RecordingBackend, is_async: bool) -> None:
    # Given a waiting, a running and a completed message
    in_each_state(backend)

    def cancel(message_id: str) -> Cancellation:
        if is_async:
            return asyncio.run(aio.StatusRegistry.cancel(message_id, "user left", backend=backend))
        return StatusRegistry.cancel(message_id, "user left", backend=backend)

    # When each is cancelled twice
    for message_id, expected in {"waiting": CANCELLED, "running": REQUESTED, "completed": FINISHED}.items():
        assert (cancel(message_id), cancel(message_id)) == (expected, expected)
        snapshot = StatusRegistry.read(message_id, backend=backend)
        assert snapshot is not None
        # Then the first two have the reason, and the last one stays as it is
        assert snapshot.cancel_reason == (None if expected is FINISHED else "user left")
        assert snapshot.cancelled is (expected is CANCELLED)
    # And an unknown message is an error
    with pytest.raises(StatusMissing):
        cancel("unknown")


@pytest.mark.parametrize("is_async", [False, True], ids=["calls", "awaited"])
def test_a_batch_is_cancelled_in_one_call(backend: RecordingBackend, is_async: bool) -> None:
    # Given messages in each state, and an unknown one
    in_each_state(backend)
    ids = ["waiting", "running", "completed", "unknown"]
    before = len(backend.calls)
    # When they are cancelled
    if is_async:
        found = asyncio.run(aio.StatusRegistry.batch(ids, backend=backend).cancel("user left"))
    else:
        found = StatusRegistry.batch(ids, backend=backend).cancel("user left")
    # Then each has its answer, of one call
    assert found == {"waiting": CANCELLED, "running": REQUESTED, "completed": FINISHED, "unknown": None}
    assert len(backend.calls) == before + 1
    assert StatusRegistry.batch([], backend=backend).cancel() == {}


def test_an_outage_is_an_error_and_leaves_nothing_half_done(backend: RecordingBackend) -> None:
    # Given a store that is down
    in_each_state(backend)
    broken = Broken(backend)
    # When messages are cancelled
    for call in (
        lambda: StatusRegistry.cancel("waiting", backend=backend),
        lambda: StatusRegistry.batch(["waiting", "running"], backend=backend).cancel(),
    ):
        with pytest.raises(BackendError):
            call()
    # Then none was
    broken.down = False
    assert [
        snapshot is not None and snapshot.cancel_requested_at
        for snapshot in StatusRegistry.read_many(["waiting", "running"], backend=backend)
    ] == [None, None]


@pytest.mark.parametrize(
    "reason, error",
    [(42, TypeError), ("x" * 1024, ValueError), (b"x", TypeError)],
    ids=["number", "too long", "bytes"],
)
def test_a_reason_is_a_short_text(backend: RecordingBackend, reason: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="reason"):
        StatusRegistry.cancel("waiting", reason, backend=backend)  # type: ignore[arg-type]


def test_a_group_of_pipelines_is_cancelled_before_its_later_stages_have_a_status(backend: RecordingBackend) -> None:
    # Given a pipeline of two stages in a group, of which the first waits
    broker = make_broker(backend)

    @dramatiq.actor(broker=broker)
    def stage(*values: int) -> int:
        return 1

    stages = pipeline([stage.message(1), stage.message()], broker=broker)
    group([stages], broker=broker).run()
    # When the group is cancelled
    found = StatusRegistry.batch(group([stages], broker=broker), backend=backend).cancel()
    # Then the first stage has ended, and the second one is unknown
    assert list(found.values()) == [CANCELLED, None]
