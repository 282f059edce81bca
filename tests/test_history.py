"""Tests of the history of runs: in the record, in a snapshot, and of real messages on every store."""

from __future__ import annotations

import json
import threading
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import CurrentMessage, Retries, SkipMessage
from dramatiq_eager_broker import EagerBroker

from dramatiq_status import Snapshot, StatusMiddleware, StatusRegistry
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends import StubBackend
from dramatiq_status.decoding import take_snapshot
from dramatiq_status.history import MAX_EXCEPTION_SIZE, keep_run, run_ended
from dramatiq_status.record import EXCEPTION, FINISHED_AT, RUN_ENDED, SCHEDULED_AT, SKIPPED, STARTED_AT
from dramatiq_status.testing.updates import enqueue, finish, fold, heartbeat, named, start
from dramatiq_status.times import datetime_of, duration, measured

from .recording import PATIENCE, eventually, make_broker, run, working

NOW = 1_795_479_267_029
EMPTY = '{"type":"E","message":""}'


def snapshot_of(*updates: Any, now: int = NOW) -> Snapshot:
    found = take_snapshot("m", fold(list(updates), now=NOW), now)
    assert found is not None
    return found


def requeue(generation: int, ended_at: int, *, failed: bool, **fields: str) -> Any:
    update = enqueue(7, generation)
    return update._replace(fields={RUN_ENDED: run_ended(ended_at, failed=failed), **named(fields)})


def starting(run_token: int, generation: int, started_at: int) -> Any:
    update = start(run_token, 7, generation)
    return update._replace(fields={STARTED_AT: str(started_at)})


# In a record


def test_a_job_of_one_run_stores_no_history() -> None:
    # Given a message that has run once and has ended
    record = fold([enqueue(), start(1), finish(1)], now=NOW)
    # Then its record has no field of the history
    assert record is not None and not record.keys() & {"h1", "x1", RUN_ENDED}
    # And its run has the times of its own fields
    (only,) = snapshot_of(enqueue(), start(1), finish(1)).runs
    assert (only.attempt, only.outcome, only.exception) == (1, "completed", None)
    assert only.started_at is not None and only.ended_at is not None


def test_a_message_without_a_run_has_no_runs() -> None:
    assert snapshot_of(enqueue()).runs == ()


def test_runs_of_every_outcome() -> None:
    # Given a run that failed, one that put its message back, one whose worker died, and one that goes on
    boom = json.dumps({"type": "OSError", "message": "gone"}, separators=(",", ":"))
    found = snapshot_of(
        enqueue(),
        starting(1, 1, NOW + 1000),
        requeue(2, NOW + 13_000, failed=True, x=boom, D=str(NOW + 43_000)),
        starting(2, 2, NOW + 44_000),
        requeue(3, NOW + 45_000, failed=False),
        starting(3, 3, NOW + 46_000),
        heartbeat(3),
        starting(4, 3, NOW + 90_000),
        now=NOW + 95_000,
    )
    # Then the snapshot has each with its times
    assert [(run.attempt, run.outcome) for run in found.runs] == [
        (1, "retried"), (2, "requeued"), (3, "lost"), (4, None),
    ]  # fmt: skip
    first, second, third, last = found.runs
    assert first.exception == {"type": "OSError", "message": "gone"} and first.duration == timedelta(seconds=12)
    assert first.scheduled_at is not None and first.scheduled_at > (first.ended_at or first.scheduled_at)
    assert (second.exception, second.scheduled_at, second.duration) == (None, None, timedelta(seconds=1))
    assert third.ended_at is not None, "The time of its last heartbeat."
    assert (last.ended_at, last.duration, last.exception) == (None, None, None)
    # And the exception of the message is still the last one
    assert found.exception == {"type": "OSError", "message": "gone"}


def test_the_last_run_of_a_message_that_waits_for_its_retry() -> None:
    found = snapshot_of(enqueue(), starting(1, 1, NOW), requeue(2, NOW + 500, failed=True, x=EMPTY))
    (run,) = found.runs
    assert (run.outcome, run.duration, run.exception) == (
        "retried",
        timedelta(seconds=0.5),
        {"type": "E", "message": ""},
    )


def test_a_message_that_ends_while_it_waits_for_its_retry_keeps_its_run() -> None:
    # Given a message that was retried, and then skipped without a run
    skipped = finish(0, 0, generation=2)._replace(fields={SKIPPED: "true", FINISHED_AT: str(NOW)})
    found = snapshot_of(enqueue(), starting(1, 1, NOW), requeue(2, NOW + 1, failed=True), skipped)
    # Then the outcome of its run is not "skipped"
    assert found.skipped and [run.outcome for run in found.runs] == ["retried"]
    assert found.timeline[-1] == "skipped"


def test_a_message_that_is_sent_again_has_a_new_history() -> None:
    again = [enqueue(8), start(2, 8)]
    found = snapshot_of(
        enqueue(), start(1), requeue(2, NOW, failed=True), starting(2, 2, NOW), finish(2, generation=2), *again
    )
    assert [run.attempt for run in found.runs] == [1]


def test_an_enqueue_that_arrives_after_its_run_has_started() -> None:
    # Given a retry whose enqueue is stored after it has started
    late = requeue(2, NOW + 1, failed=True, x=EMPTY)
    found = snapshot_of(enqueue(), starting(1, 1, NOW), starting(2, 2, NOW + 5), late)
    # Then the earlier run has its end and its exception
    first, second = found.runs
    assert (first.outcome, first.ended_at, second.outcome) == ("retried", datetime_of(NOW + 1), None)
    assert first.exception == {"type": "E", "message": ""}


@pytest.mark.parametrize(
    "history",
    [
        "null",
        "5",
        "[]",
        '{"a":1}',
        "[1,2]",
        '["a",[1,1],1]',
        "[null,[9],5]",
        "[1,[1,[]],null]",
        "[1e400,[1e400,1e400],1]",
    ],
)
def test_a_history_of_another_program(history: str) -> None:
    # Given a record whose history another program has written
    record = {
        **(fold([enqueue(), start(1), requeue(2, NOW, failed=True), start(2, 7, 2)], now=NOW) or {}),
        "h1": history,
        "x1": history,
    }
    # Then the snapshot has the last run at least, and the next run is added
    found = take_snapshot("m", record, NOW)
    assert found is not None and found.runs[-1].attempt == 2 and found.timeline and found.to_json()
    keep_run(record, 3, requeued=True)
    assert record["h1"] == history and record["h2"] == "[5,null,null]"


def test_an_exception_is_cut_to_json() -> None:
    # Given exceptions of all lengths, with escape sequences everywhere
    for size in range(400, 600):
        for text in ("x", "\\", '"', "\n", "š"):
            exception = json.dumps({"type": "E", "message": text * size}, separators=(",", ":"))
            record = {"s": "0", "A": "1", RUN_ENDED: "[5,1]", EXCEPTION: exception, SCHEDULED_AT: "6"}
            # When the next run begins
            keep_run(record, 2, requeued=False)
            # Then the history has the beginning of the exception's text
            cut = json.loads(record["x1"])
            assert record["h1"] == "[null,[5,1],6]" and len(record["x1"]) <= MAX_EXCEPTION_SIZE
            assert (text * size).startswith(cut["message"].removesuffix("..."))
            assert len(cut["message"]) > 50


# In words


def test_a_timeline() -> None:
    boom = '{"type":"OSError","message":"gone"}'
    updates = [
        enqueue()._replace(fields={"E": str(NOW)}),
        starting(1, 1, NOW + 2000),
        requeue(2, NOW + 14_000, failed=True, x=boom),
        starting(2, 2, NOW + 44_000),
    ]
    assert snapshot_of(*updates, now=NOW + 49_000).timeline == (
        "enqueued", "waited 2.0 s", "run 1 failed after 12 s: OSError: gone", "waited 30 s", "run 2 running for 5 s",
    )  # fmt: skip
    assert snapshot_of(*updates[:3], now=NOW + 20_000).timeline[-1] == "waiting for 6 s"
    assert snapshot_of(updates[0], now=NOW + 3_600_000).timeline == ("enqueued", "waiting for 1 h")
    ended = finish(2, generation=2)._replace(fields={FINISHED_AT: str(NOW + 119_000)})
    assert snapshot_of(*updates, ended).timeline[-1] == "run 2 completed after 1 min 15 s"


def test_runs_that_are_left_out_are_counted() -> None:
    # Given 20 runs
    updates = [enqueue()]
    for number in range(1, 21):
        updates += [starting(number, number, NOW), requeue(number + 1, NOW + 1, failed=False)]
    found = snapshot_of(*updates[:-1])
    # Then the snapshot has the first one, and the last nine before the present one
    assert [run.attempt for run in found.runs] == [1, *range(11, 21)] and found.attempts == 20
    assert found.timeline[1:3] == ("run 1 requeued after under 0.1 s", "9 runs left out")


@pytest.mark.parametrize(
    ("seconds", "text", "whole"),
    [
        (-1, "0 s", "under 0.1 s"),
        (0.04, "0 s", "under 0.1 s"),
        (0.96, "1 s", "1.0 s"),
        (5, "5 s", "5.0 s"),
        (9.94, "9.9 s", "9.9 s"),
        (9.97, "10 s", "10 s"),
        (59.4, "59 s", "59 s"),
        (3600, "1 h", "1 h"),
        (90_061, "1 d 1 h", "1 d 1 h"),
    ],
)
def test_durations_in_words(seconds: float, text: str, whole: str) -> None:
    length = timedelta(seconds=seconds)
    assert (duration(length, exact=True), measured(length)) == (text, whole)


def test_json_of_runs() -> None:
    found = snapshot_of(
        enqueue(), starting(1, 1, NOW), requeue(2, NOW + 500, failed=True, x='{"type":"E","message":"secret"}')
    )
    (run,) = found.to_dict()["runs"]
    assert run["outcome"] == "retried" and run["duration"] == 0.5 and run["exception"]["message"] == "secret"
    # And without values that a visitor should not see
    (public,) = found.to_dict(private=False, only=("runs",))["runs"]
    assert public["exception"] == {"type": "E"} and "secret" not in found.to_json(private=False)


def test_runs_in_watch_and_of_the_children_of_a_batch() -> None:
    # Given a message that has failed once, and runs again
    backend = StubBackend()
    backend.update_many([("m", update) for update in (enqueue(), start(1), requeue(2, NOW, failed=True))])
    backend.update("m", starting(2, 2, NOW + 1))
    # When a program watches it, and reads it in a batch
    watched = next(iter(StatusRegistry.watch("m", backend=backend)))
    batch = StatusRegistry.batch(["m"], backend=backend).read()
    # Then both have its runs, and the JSON of the batch has them on request
    assert watched is not None and [run.outcome for run in watched.runs] == ["retried", None]
    assert batch.children["m"] is not None and batch.children["m"].runs == watched.runs
    (child,) = batch.to_dict(only=("runs",))["children"].values()
    assert [run["outcome"] for run in child["runs"]] == ["retried", None]


# Real messages


@pytest.fixture(params=["last", "first"])
def position(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def broker_of(backend: StatusBackend, position: str, *more: dramatiq.Middleware) -> StubBroker:
    ours = StatusMiddleware(backend=backend)
    others = [CurrentMessage(), Retries(min_backoff=1, max_backoff=2), *more]
    broker = StubBroker(middleware=[*others, ours] if position == "last" else [ours, *others])
    broker.fail_fast_default = False
    return broker


def read(message: dramatiq.Message[Any], backend: StatusBackend) -> Snapshot:
    found = StatusRegistry.read(message, backend=backend)
    assert found is not None
    return found


def test_a_message_that_is_retried_twice(every_backend: StatusBackend, position: str) -> None:
    # Given an actor that fails twice
    broker = broker_of(every_backend, position)
    left = [OSError("second"), OSError("first")]

    @dramatiq.actor(broker=broker, max_retries=5)
    def job() -> None:
        if left:
            raise left.pop()

    # When it is run
    message = job.send()
    run(broker)
    # Then each run is there with its own exception
    found = read(message, every_backend)
    assert [(r.attempt, r.outcome, r.exception and r.exception["message"]) for r in found.runs] == [
        (1, "retried", "first"), (2, "retried", "second"), (3, "completed", None),
    ]  # fmt: skip
    assert all(r.started_at and r.ended_at and r.started_at <= r.ended_at for r in found.runs)
    assert all(r.scheduled_at is not None for r in found.runs[:-1])


def test_a_message_that_fails_for_good(every_backend: StatusBackend, position: str) -> None:
    broker = broker_of(every_backend, position)

    @dramatiq.actor(broker=broker, max_retries=1)
    def job() -> None:
        raise OSError("always")

    message = job.send()
    run(broker)
    assert [(r.outcome, (r.exception or {}).get("message")) for r in read(message, every_backend).runs] == [
        ("retried", "always"), ("failed", "always"),
    ]  # fmt: skip


def test_a_message_that_its_own_run_puts_back(every_backend: StatusBackend, position: str) -> None:
    broker = broker_of(every_backend, position)
    runs: list[int] = []

    @dramatiq.actor(broker=broker)
    def job() -> None:
        runs.append(1)
        if len(runs) == 1:
            message = CurrentMessage.get_current_message()
            assert message is not None
            broker.enqueue(message.copy(options={}))

    message = job.send()
    run(broker, threads=1)
    assert len(runs) == 2
    assert [(r.outcome, r.exception) for r in read(message, every_backend).runs][-1] == ("completed", None)


def test_a_later_stage_of_a_pipeline_is_enqueued_when_the_earlier_stage_has_ended(every_backend: StatusBackend) -> None:
    # Given a pipeline, whose messages are all made before the first one is sent
    broker = make_broker(every_backend)
    ends: list[datetime] = []

    @dramatiq.actor(broker=broker, max_retries=1)
    def stage(*numbers: int) -> None:
        if not ends:
            time.sleep(0.3)
            ends.append(datetime.now(timezone.utc))
        elif len(ends) == 1:
            ends.append(datetime.now(timezone.utc))
            raise RuntimeError

    first, second = stage.message(), stage.message_with_options(pipe_ignore=True)
    dramatiq.pipeline([first, second], broker=broker).run()
    # When both stages run, and the second one is retried
    run(broker)
    # Then the second stage was enqueued after the end of the first one
    earlier, later = read(first, every_backend), read(second, every_backend)
    assert later.completed and later.attempts == 2
    assert later.enqueued_at is not None and later.started_at is not None and earlier.enqueued_at is not None
    assert earlier.enqueued_at < ends[0] - timedelta(milliseconds=250)
    assert ends[0] - timedelta(milliseconds=1) <= later.enqueued_at <= ends[1]


def test_a_retry_that_is_skipped(position: str) -> None:
    # Given a middleware that skips a retry
    class Skipper(dramatiq.Middleware):
        def before_process_message(self, broker: dramatiq.Broker, message: Any) -> None:
            if message.options.get("retries"):
                raise SkipMessage("no")

    backend = StubBackend()
    broker = broker_of(backend, position, Skipper())

    @dramatiq.actor(broker=broker, max_retries=3)
    def job() -> None:
        raise OSError("once")

    message = job.send()
    run(broker)
    # Then the message was skipped, and its first run was retried
    found = read(message, backend)
    assert found.skipped and found.runs[0].outcome == "retried"


def test_a_run_whose_worker_died(redis_url: str, redis_broker_url: str, every_backend: StatusBackend) -> None:
    # Given a message whose first delivery is never acknowledged, and which the broker delivers again
    middleware = StatusMiddleware(backend=every_backend)
    broker = RedisBroker(url=redis_broker_url, middleware=[middleware])

    @dramatiq.actor(broker=broker)
    def job() -> None:
        pass

    message = job.send()
    # When a worker begins it and dies
    dead = dramatiq.Message(**message.asdict())

    def begin() -> None:
        middleware.before_process_message(broker, dead)

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join(PATIENCE)
    eventually(lambda: read(message, every_backend).working)
    # And another worker takes it
    with working(broker):
        eventually(lambda: read(message, every_backend).finished)
    # Then the first run is lost
    assert [r.outcome for r in read(message, every_backend).runs] == ["lost", "completed"]


def test_a_broker_that_retries_inside_of_the_hooks() -> None:
    backend = StubBackend()
    others = [Retries(max_retries=2, min_backoff=1, max_backoff=2)]
    broker = EagerBroker([*others, StatusMiddleware(backend=backend)], fail_fast=False)
    left = [OSError("once")]

    @dramatiq.actor(broker=broker)
    def job() -> None:
        if left:
            raise left.pop()

    found = read(job.send(), backend)
    assert [(r.outcome, (r.exception or {}).get("message")) for r in found.runs][-1] == ("completed", None)
    assert found.runs[0].outcome == "retried"
