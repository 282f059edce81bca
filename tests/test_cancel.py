"""Cancelled messages, as callers and actors see them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import nullcontext
from typing import Any

import dramatiq
import pytest
from dramatiq import group, pipeline
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Retries
from dramatiq_eager_broker import EagerBroker

from dramatiq_status import (
    BackendError,
    Cancellation,
    Cancelled,
    StatusMiddleware,
    StatusMissing,
    StatusRegistry,
    aio,
    cancels,
    current_status,
    track,
)
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends import RedisBackend
from dramatiq_status.cancel_log import MAX_MARKS
from dramatiq_status.options import enqueue_id_of
from dramatiq_status.testing import bound_status
from dramatiq_status.testing.updates import cancel, enqueue, finish, start

from .recording import PATIENCE, Broken, RecordingBackend, eventually, make_broker, working

CANCELLED, REQUESTED, FINISHED = Cancellation.CANCELLED, Cancellation.REQUESTED, Cancellation.FINISHED


def checking_job(broker: dramatiq.Broker) -> tuple[dramatiq.Actor[[], None], list[str | None]]:
    """Declare an actor that runs until its message is cancelled, and return it and the list of the reasons."""
    reasons: list[str | None] = []

    @dramatiq.actor(broker=broker)
    def job() -> None:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            time.sleep(0.001)
            try:
                current_status().check_cancelled()
            except Cancelled as e:
                reasons.append(e.reason)
                raise

    return job, reasons


@pytest.fixture
def backend() -> RecordingBackend:
    return RecordingBackend()


@pytest.fixture
def broker(backend: RecordingBackend) -> StubBroker:
    backend.cancel_interval = 20
    return make_broker(backend)


def status_middleware(broker: dramatiq.Broker) -> StatusMiddleware:
    return next(found for found in broker.middleware if isinstance(found, StatusMiddleware))


def wait_until_it_runs(message: dramatiq.Message[Any], broker: dramatiq.Broker) -> None:
    """Wait until the start of a run is stored. A request before that would end the message, because it still waits."""
    eventually(lambda: StatusRegistry.get(message, broker=broker).working)


def in_each_state(backend: StatusBackend) -> None:
    for message_id, updates in {
        "waiting": [enqueue()],
        "running": [start(1)],
        "completed": [start(1), finish(1)],
    }.items():
        backend.update_many([(message_id, update) for update in updates])


# Requests from outside of a worker


@pytest.mark.parametrize("is_async", [False, True], ids=["calls", "awaited"])
def test_cancel_returns_the_result_for_each_state(backend: RecordingBackend, is_async: bool) -> None:
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
    # Then each has its result, in one call
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
    # Then no message was cancelled
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


# In a worker


def test_a_waiting_message_is_never_run(broker: StubBroker, backend: RecordingBackend) -> None:
    # Given a queued and a delayed message that were cancelled before the worker boots, and another one
    runs: list[str] = []

    @dramatiq.actor(broker=broker)
    def job(name: str) -> None:
        runs.append(name)

    queued, delayed = job.send("queued"), job.send_with_options(args=("delayed",), delay=10)
    for message in (queued, delayed):
        assert StatusRegistry.cancel(message, broker=broker) is CANCELLED
    last = job.send("last")
    # When a worker gets them
    with working(broker):
        StatusRegistry.wait(last, broker=broker)
        broker.join("default")
    # Then it has dropped both, without a dead letter
    assert runs == ["last"] and not broker.dead_letters
    for message in (queued, delayed):
        snapshot = StatusRegistry.read(message, broker=broker)
        assert snapshot is not None and snapshot.cancelled and not snapshot.skipped
        assert (snapshot.attempts, snapshot.runs, snapshot.timeline[-1]) == (0, (), "cancelled")


def test_a_message_is_dropped_that_is_cancelled_while_the_worker_runs(
    broker: StubBroker, backend: RecordingBackend
) -> None:
    # Given a running worker, and a message that waits for a retry
    runs: list[int] = []

    @dramatiq.actor(broker=broker, max_retries=3, min_backoff=300, max_backoff=300)
    def job() -> None:
        runs.append(1)
        raise OSError("gone")

    with working(broker):
        message = job.send()
        for snapshot in StatusRegistry.watch(message, timeout=20_000, broker=broker):
            if snapshot.retrying:
                break
        # When it is cancelled
        assert StatusRegistry.cancel(message, reason="user left", broker=broker) is CANCELLED
        found = StatusRegistry.wait(message, timeout=1_000, broker=broker)
        broker.join("default")
    # Then the retry has not begun
    assert len(runs) == 1
    assert (found.cancelled, found.cancel_reason, found.exception) == (
        True,
        "user left",
        {"type": "OSError", "message": "gone"},
    )
    assert [run.outcome for run in found.runs] == ["retried"]
    assert found.timeline[-1] == "cancelled"


def test_an_actor_checks_whether_it_is_asked_to_stop(broker: StubBroker, backend: RecordingBackend) -> None:
    # Given a running actor that checks
    checks: list[bool] = []

    @dramatiq.actor(broker=broker, max_retries=3)
    def job() -> None:
        status = current_status()
        while not status.cancelled:
            checks.append(status.cancelled)
            time.sleep(0.005)
        status["last"] = "words"
        status.check_cancelled()

    with working(broker):
        message = job.send()
        eventually(lambda: len(checks) > 1)
        wait_until_it_runs(message, broker)
        reads = len(backend.calls)
        # When it is cancelled
        assert StatusRegistry.cancel(message, reason="user left", broker=broker) is REQUESTED
        found = StatusRegistry.wait(message, broker=broker)
        broker.join("default")
    # Then its message has ended as cancelled, once, with the fields that it wrote at its end
    assert (found.state, found.cancelled, found["last"], found.attempts) == ("failed", True, "words", 1)
    assert found.exception is None and not found.skipped
    assert found.cancel_requested_at is not None and found.cancel_seen_at is not None
    assert [run.outcome for run in found.runs] == ["cancelled"]
    assert found.to_dict()["cancelled"] is True and found.timeline[-1].startswith("run 1 cancelled after")
    # And a check takes no round trip
    assert len(backend.calls) - reads < 8


def test_an_actor_that_does_not_listen_is_completed(broker: StubBroker, backend: RecordingBackend) -> None:
    # Given an actor that does not check
    started, stop = threading.Event(), threading.Event()

    @dramatiq.actor(broker=broker)
    def job() -> None:
        started.set()
        assert stop.wait(PATIENCE)

    with working(broker):
        message = job.send()
        assert started.wait(PATIENCE)
        wait_until_it_runs(message, broker)
        assert StatusRegistry.cancel(message, broker=broker) is REQUESTED
        stop.set()
        found = StatusRegistry.wait(message, broker=broker)
    # Then it is completed, with `cancel_requested_at` and without `cancel_seen_at`
    assert (found.state, found.cancelled, found.cancel_seen_at) == ("completed", False, None)
    assert found.cancel_requested_at is not None


def test_an_actor_that_fails_after_a_request_is_not_retried(broker: StubBroker, backend: RecordingBackend) -> None:
    # Given an actor that has retries left, and fails after it was asked to stop
    started, stop, runs = threading.Event(), threading.Event(), []

    @dramatiq.actor(broker=broker, max_retries=3, min_backoff=10, max_backoff=10)
    def job() -> None:
        runs.append(1)
        started.set()
        assert stop.wait(PATIENCE)
        raise OSError("gone")

    with working(broker):
        message = job.send()
        assert started.wait(PATIENCE)
        wait_until_it_runs(message, broker)
        StatusRegistry.cancel(message, broker=broker)
        stop.set()
        found = StatusRegistry.wait(message, broker=broker)
        broker.join("default")
    # Then its retry was dropped
    assert len(runs) == 1 and found.cancelled
    assert found.runs[0].exception == {"type": "OSError", "message": "gone"}


@pytest.mark.parametrize("cancellable", [True, False])
def test_a_tracked_loop_stops_at_the_next_item(
    broker: StubBroker, backend: RecordingBackend, cancellable: bool
) -> None:
    # Given an actor with a loop that is tracked
    first, go_on, items = threading.Event(), threading.Event(), []

    @dramatiq.actor(broker=broker, max_retries=3)
    def job() -> None:
        for item in track(range(5), cancellable=cancellable):
            items.append(item)
            first.set()
            assert go_on.wait(PATIENCE)

    with working(broker):
        message = job.send()
        assert first.wait(PATIENCE)
        wait_until_it_runs(message, broker)
        # When the message is cancelled during the first item
        StatusRegistry.cancel(message, broker=broker)
        eventually(lambda: all(buffer.cancelled for buffer in list(status_middleware(broker)._writer.running)))
        go_on.set()
        found = StatusRegistry.wait(message, broker=broker)
    # Then the loop ends before the second one, unless it is protected
    assert items == ([0] if cancellable else [0, 1, 2, 3, 4])
    assert (found.cancelled, found.completed) == (cancellable, not cancellable)
    assert found.get("progress") == (1 if cancellable else 5)


def test_an_actor_cancels_itself(broker: StubBroker, backend: RecordingBackend) -> None:
    # Given an actor that raises the exception without a request
    @dramatiq.actor(broker=broker, max_retries=3)
    def job() -> None:
        raise Cancelled("nothing to do")

    message = job.send()
    with working(broker):
        found = StatusRegistry.wait(message, broker=broker)
        broker.join("default")
    # Then its message is cancelled, without a request
    assert (found.cancelled, found.attempts, found.cancel_requested_at) == (True, 1, None)


def test_a_cancelled_message_whose_run_begins_ends_after_its_refused_start(
    broker: StubBroker, backend: RecordingBackend
) -> None:
    # Given a worker that does not read the log in time
    backend.cancel_interval = 3_600_000
    runs: list[str] = []

    @dramatiq.actor(broker=broker, max_retries=3)
    def job() -> None:
        runs.append("begun")
        while True:
            time.sleep(0.001)
            current_status().check_cancelled()

    with working(broker):
        # When a message is cancelled, and the worker gets it
        message = job.message()
        broker.emit_before("enqueue", message, None)
        broker.emit_after("enqueue", message, None)
        assert StatusRegistry.cancel(message, broker=broker) is CANCELLED
        broker.queues["default"].put(message.encode())
        # Then its run begins, and ends itself as soon as its start is refused
        eventually(lambda: runs and not status_middleware(broker)._writer.running)
    found = StatusRegistry.read(message, broker=broker)
    assert runs == ["begun"] and found is not None and found.cancelled and found.attempts == 0


#: Message ids, as many as the log of memcached, a cache or the stub has marks.
OTHERS = [f"other-{number}" for number in range(MAX_MARKS)]


@pytest.mark.parametrize("polled_backend", ["stub", "memcached"], indirect=True)
def test_a_message_is_not_run_whose_mark_the_log_has_dropped(polled_backend: StatusBackend) -> None:
    # Given a message that waits, and was cancelled before as many others as the log has marks
    broker = make_broker(polled_backend)
    runs: list[str] = []

    @dramatiq.actor(broker=broker)
    def job(name: str) -> None:
        runs.append(name)

    first = job.send("cancelled")
    polled_backend.update_many([(name, enqueue()) for name in OTHERS])
    found = StatusRegistry.batch([first, *OTHERS], backend=polled_backend).cancel("user left")
    assert set(found.values()) == {CANCELLED}
    # When a worker begins, and gets it, and a message that was not cancelled
    with working(broker, threads=1):
        second = job.send("sent")
        assert StatusRegistry.wait(second, backend=polled_backend).completed
    # Then only the second one is run
    snapshot = StatusRegistry.read(first, backend=polled_backend)
    assert runs == ["sent"] and snapshot is not None and snapshot.cancelled and snapshot.attempts == 0


def test_a_running_message_sees_the_request_whose_mark_the_log_has_dropped(backend: RecordingBackend) -> None:
    # Given a message that runs, without heartbeats
    backend.cancel_interval = 20
    broker = make_broker(backend, heartbeat_interval=3_600_000)

    @dramatiq.actor(broker=broker)
    def job() -> None:
        while True:
            time.sleep(0.001)
            current_status().check_cancelled()

    message = job.send()
    backend.update_many([(name, enqueue()) for name in OTHERS])
    with working(broker, threads=1):
        wait_until_it_runs(message, broker)
        # When it is cancelled just before as many other messages as the log has marks
        backend.update_many([(name, cancel()) for name in (message.message_id, *OTHERS)])
        # Then it sees the request
        assert StatusRegistry.wait(message, broker=broker).cancelled


@pytest.mark.parametrize("servers", [1, 2])
def test_a_running_message_sees_the_request_whose_record_could_not_be_read_at_first(
    broker: StubBroker, backend: RecordingBackend, monkeypatch: pytest.MonkeyPatch, servers: int
) -> None:
    # Given a message that runs, and a store that answers the first read of the message's record with an error. A store
    # with several servers returns this error with the other records.
    failures = [BackendError("The store does not answer.")]
    read_many = backend.read_many

    def fail_once(message_ids: Sequence[str]) -> Any:
        if failures and threading.current_thread().name == "dramatiq-status-cancels":
            failure = failures.pop()
            if servers == 1:
                raise failure
            return [failure for _ in message_ids]
        return read_many(message_ids)

    monkeypatch.setattr(backend, "read_many", fail_once)

    job, reasons = checking_job(broker)
    message = job.send()
    with working(broker, threads=1):
        wait_until_it_runs(message, broker)
        # When it is cancelled
        StatusRegistry.cancel(message, reason="user left", broker=broker)
        # Then it sees the request and its reason
        assert StatusRegistry.wait(message, broker=broker).cancelled
    assert (reasons, failures) == (["user left"], [])


def test_a_message_that_is_sent_after_a_full_log_was_read_takes_no_read(
    backend: RecordingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker that has read a full log, and whose clock is right
    monkeypatch.setattr(cancels, "_CLOCK_SKEW", -1)
    broker = make_broker(backend)

    @dramatiq.actor(broker=broker)
    def job() -> None: ...

    before = job.message()
    backend.update_many([(name, enqueue()) for name in OTHERS])
    StatusRegistry.batch(OTHERS, backend=backend).cancel()
    read: list[str] = []
    read_many = backend.read_many
    backend.read_many = lambda ids: (read.extend(ids), read_many(ids))[1]  # type: ignore[method-assign]
    with working(broker):
        # When it gets a message that was made before the read, and one that is made later
        broker.enqueue(before)
        job.send()
        broker.join("default")
    # Then it reads the status of the first one alone
    assert set(read) == {before.message_id}


def test_an_unused_cancel_reads_no_record(broker: StubBroker, backend: RecordingBackend) -> None:
    # Given a worker, and no cancelled message
    reads: list[object] = []
    backend.read_many = lambda ids: reads.append(ids) or []  # type: ignore[method-assign, assignment, return-value]

    @dramatiq.actor(broker=broker)
    def job() -> None:
        for _ in track(range(10)):
            pass

    # When it runs messages
    messages = [job.send() for _ in range(20)]
    with working(broker):
        broker.join("default")
    # Then each run has sent its start and its end, and has read nothing
    assert reads == []
    assert all(len(backend.updates(message.message_id)) <= 4 for message in messages)


@pytest.mark.parametrize("is_inside", [True, False], ids=["inside", "outside"])
def test_a_coroutine_checks_by_its_own_handle_and_by_that_of_another_message(
    backend: RecordingBackend, is_inside: bool
) -> None:
    # Given a coroutine that checks whether its own message, or another one, was cancelled
    backend.cancel_interval = 20
    broker = make_broker(backend, asyncio=True)
    backend.update_many([("other", start(1))])
    started = threading.Event()

    @dramatiq.actor(broker=broker)
    async def job() -> None:
        status = aio.StatusRegistry.get(current_status().message_id if is_inside else "other", broker=broker)
        while True:
            assert await status.cancelled is False or is_inside
            await status.check_cancelled()
            started.set()
            await asyncio.sleep(0.005)

    message = job.send()
    with working(broker):
        assert started.wait(PATIENCE)
        wait_until_it_runs(message, broker)
        # When that message is cancelled
        cancelled = message.message_id if is_inside else "other"
        assert StatusRegistry.cancel(cancelled, "enough", broker=broker) is REQUESTED
        found = StatusRegistry.wait(message, broker=broker)
    # Then the coroutine ends, and its message is cancelled
    assert found.cancelled and found.cancel_reason == ("enough" if is_inside else None)


def test_a_unit_test_cancels_the_message_of_a_function() -> None:
    # Given a function of an actor, and its message in a block of a unit test
    with bound_status("m") as status:
        status.check_cancelled()
        # When the message is cancelled
        assert StatusRegistry.cancel("m", "user left") is REQUESTED
        # Then the function stops
        with pytest.raises(Cancelled, match="user left"):
            current_status().check_cancelled()
    # And without a message, nothing can cancel it
    current_status().check_cancelled()
    assert current_status().cancelled is False


def test_cancellations_where_statuses_are_sent_with_the_brokers_commands(redis_url: str) -> None:
    # Given a Redis broker whose commands are sent with the statuses
    backend = RedisBackend(url=redis_url, timeout=20_000)
    broker = RedisBroker(client=backend.broker_client(), middleware=[Retries(min_backoff=1, max_backoff=2)])
    broker.add_middleware(StatusMiddleware(backend=backend))
    runs: list[str] = []

    @dramatiq.actor(broker=broker, max_retries=3)
    def job(name: str) -> None:
        runs.append(name)
        while True:
            time.sleep(0.001)
            current_status().check_cancelled()

    # When a message is cancelled before it runs, and another one while it runs
    waiting = job.send("waiting")
    assert StatusRegistry.cancel(waiting, broker=broker) is CANCELLED
    with working(broker):
        running = job.send("running")
        wait_until_it_runs(running, broker)
        assert StatusRegistry.cancel(running, "user left", broker=broker) is REQUESTED
        found = StatusRegistry.wait(running, broker=broker)
        broker.join("default")
    # Then only the second one has run, and both have ended as cancelled
    assert runs == ["running"]
    assert (found.cancelled, found.attempts, found.cancel_reason) == (True, 1, "user left")
    first = StatusRegistry.read(waiting, broker=broker)
    assert first is not None and first.cancelled and first.attempts == 0
    broker.close()
    backend.close()


@pytest.mark.parametrize("fail_fast", [True, False])
def test_a_message_of_the_eager_broker_is_cancelled(backend: RecordingBackend, fail_fast: bool) -> None:
    # Given a broker that runs a message at once, and takes Cancelled for any exception
    broker = EagerBroker([Retries(max_retries=0), StatusMiddleware(backend=backend)], fail_fast=fail_fast)

    @dramatiq.actor(broker=broker)
    def job() -> None:
        raise Cancelled("enough")

    # When an actor raises it
    with pytest.raises(Cancelled) if fail_fast else nullcontext():
        job.send()
    # Then its message is cancelled
    ((message_id, _),) = {found[0]: found for call in backend.calls for found in call}.items()
    snapshot = StatusRegistry.read(message_id, backend=backend)
    assert snapshot is not None and snapshot.cancelled and snapshot.exception is None


def test_an_event_loop_cancels_a_batch_on_redis_in_one_round_trip(redis_url: str) -> None:
    # Given a waiting and a running message on Redis
    backend = RedisBackend(url=redis_url, timeout=20_000)
    in_each_state(backend)

    async def cancel() -> dict[str, Cancellation | None]:
        found = await aio.StatusRegistry.batch(["waiting", "running", "unknown"], backend=backend).cancel("enough")
        with pytest.raises(Cancelled, match="enough"):
            await aio.StatusRegistry.get("running", backend=backend).check_cancelled()
        return found

    # When an event loop cancels them
    calls_before = backend.client.info("commandstats")["cmdstat_evalsha"]["calls"]
    found = asyncio.run(cancel())
    # Then one call of the script has carried out all requests
    assert found == {"waiting": CANCELLED, "running": REQUESTED, "unknown": None}
    assert backend.client.info("commandstats")["cmdstat_evalsha"]["calls"] == calls_before + 1
    backend.close()


# The reason of a request that the worker finds in the outcome of an update


@pytest.mark.parametrize("found_by", ["heartbeat", "start", "refused start"])
def test_a_run_has_the_reason_of_a_request_that_the_log_does_not_have(
    every_backend: StatusBackend, monkeypatch: pytest.MonkeyPatch, found_by: str
) -> None:
    # Given a store that loses its log of cancelled messages
    monkeypatch.setattr(every_backend, "read_cancels", lambda position: (position, ()))
    broker = make_broker(every_backend, heartbeat_interval=20 if found_by == "heartbeat" else 3_600_000)
    job, reasons = checking_job(broker)
    # And a message that waits, runs, or has run in a worker that was killed
    message = job.send()
    if found_by == "start":
        every_backend.update(message.message_id, start(1, *enqueue_id_of(message.options)))
    # When it is cancelled, and runs
    if found_by != "heartbeat":
        StatusRegistry.cancel(message, "user left", broker=broker)
    with working(broker, threads=1):
        if found_by == "heartbeat":
            wait_until_it_runs(message, broker)
            StatusRegistry.cancel(message, "user left", broker=broker)
        eventually(lambda: reasons)
        broker.join("default")
    # Then its run ends with the reason
    found = StatusRegistry.read(message, broker=broker)
    assert reasons == ["user left"] and found is not None and found.cancelled


@pytest.mark.parametrize("how", ["track", "async track", "async check"])
def test_loops_and_coroutines_have_the_reason_of_a_request_that_the_log_does_not_have(
    backend: RecordingBackend, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    # Given a store that loses its log of cancelled messages
    monkeypatch.setattr(backend, "read_cancels", lambda position: (position, ()))
    broker = make_broker(backend, heartbeat_interval=20, asyncio=True)
    reasons: list[str | None] = []

    async def items() -> AsyncIterator[int]:
        for item in range(int(PATIENCE * 1000)):
            await asyncio.sleep(0.001)
            yield item

    @dramatiq.actor(broker=broker)
    async def job() -> None:
        status = aio.StatusRegistry.get(current_status().message_id, broker=broker)
        try:
            if how == "track":
                for _ in track(range(int(PATIENCE * 1000))):
                    await asyncio.sleep(0.001)
            elif how == "async track":
                async for _ in track(items()):
                    pass
            else:
                async for _ in items():
                    await status.check_cancelled()
        except Cancelled as e:
            reasons.append(e.reason)
            raise

    message = job.send()
    with working(broker, threads=1):
        wait_until_it_runs(message, broker)
        # When a running message is cancelled
        StatusRegistry.cancel(message, "user left", broker=broker)
        # Then its run ends with the reason
        assert StatusRegistry.wait(message, broker=broker).cancelled
    assert reasons == ["user left"]


@pytest.mark.parametrize("is_down", [False, True])
def test_an_outage_does_not_delay_a_run_that_ends_as_cancelled(
    broker: StubBroker, backend: RecordingBackend, monkeypatch: pytest.MonkeyPatch, is_down: bool
) -> None:
    # Given a store that fails, before or after the worker has noted an outage
    monkeypatch.setattr(backend, "read_cancels", lambda position: (position, ()))
    reads: list[str] = []
    reasons: list[str | None] = []
    store = Broken(backend)
    store.down = False

    def fail(message_id: str) -> Any:
        reads.append(message_id)
        raise BackendError("The store does not answer.")

    @dramatiq.actor(broker=broker)
    def job() -> None:
        message_id = current_status().message_id
        (buffer,) = status_middleware(broker)._writer.running
        eventually(lambda: buffer.cancelled)
        monkeypatch.setattr(backend, "snapshot", fail)
        store.down = is_down
        if is_down:
            current_status()["step"] = 1
            eventually(lambda: status_middleware(broker)._breaker.down)
        # When it checks twice whether it was cancelled
        for _ in range(2):
            with pytest.raises(Cancelled) as caught:
                current_status().check_cancelled()
            reasons.append(caught.value.reason)
        assert reads == ([] if is_down else [message_id])
        store.down = False

    message = job.send()
    StatusRegistry.cancel(message, "user left", broker=broker)
    with working(broker, threads=1):
        eventually(lambda: len(reasons) == 2)
    # Then it has no reason, after at most one read
    assert reasons == [None, None] and len(reads) == (0 if is_down else 1)


def test_a_request_without_a_reason_takes_no_read(
    broker: StubBroker, backend: RecordingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an actor that checks
    reads: list[str] = []
    job, reasons = checking_job(broker)
    message = job.send()
    with working(broker, threads=1):
        wait_until_it_runs(message, broker)
        monkeypatch.setattr(backend, "snapshot", reads.append)
        # When its message is cancelled without a reason, and the worker finds the request in the log
        StatusRegistry.cancel(message, broker=broker)
        eventually(lambda: reasons)
    # Then the actor ends without a read of its status
    assert (reasons, reads) == ([None], [])
