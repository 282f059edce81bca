"""Messages that belong together, rolled up."""

from __future__ import annotations

import copy
import json
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
from dramatiq import group, pipeline
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import SkipMessage
from dramatiq.results import Results
from dramatiq.results.backends import StubBackend as StubResults
from hypothesis import given
from hypothesis import strategies as st

from dramatiq_status import (
    BackendError,
    Snapshot,
    State,
    StatusMissing,
    StatusRegistry,
    StatusTimeout,
    aio,
    current_progress,
    current_status,
)
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends import RedisBackend, StubBackend
from dramatiq_status.batch import Batch, chains_of
from dramatiq_status.decoding import take_snapshot
from dramatiq_status.following import BatchWatcher
from dramatiq_status.record import PROGRESS, SKIPPED, TOTAL
from dramatiq_status.rollup import BatchSnapshot, Rollup
from dramatiq_status.update import EnqueueId, Kind, Update

from .recording import RecordingBackend, make_broker, run, working

QUEUED, WORKING, COMPLETED, FAILED = range(4)


def put(
    backend: StatusBackend, message_id: str, state: int, progress: float | None = None, *, skipped: bool = False
) -> None:
    """Store the status of a message in a state, with a progress out of 100, as after a new enqueue."""
    enqueue_id = EnqueueId(hash(message_id) & 0xFFFFFF | 1, 1)
    backend.delete(message_id)
    backend.update(message_id, Update(Kind.ENQUEUE, enqueue_id))
    fields = {TOTAL: "100"}
    if progress is not None:
        fields[PROGRESS] = str(progress)
    if skipped:
        fields[SKIPPED] = "true"
    if state != QUEUED:
        backend.update(message_id, Update(Kind.RUN, enqueue_id, 1, 1, start=True, fields=fields))
    if state >= COMPLETED:
        backend.update(message_id, Update(Kind.RUN, enqueue_id, 1, 2, state=state))


@pytest.fixture
def backend() -> RecordingBackend:
    backend = RecordingBackend()
    backend.poll_interval = (1, 5)
    return backend


@pytest.fixture(params=["polled", pytest.param("told", marks=pytest.mark.server)])
def store(request: pytest.FixtureRequest) -> Iterator[StatusBackend]:
    """Yield a store that watchers poll, and one that publishes changes."""
    if request.param == "polled":
        backend: StatusBackend = StubBackend()
        backend.poll_interval = (1, 5)
    else:
        backend = RedisBackend(url=request.getfixturevalue("redis_url"), timeout=20_000)
    yield backend
    backend.close()


@pytest.fixture
def broker(backend: RecordingBackend) -> StubBroker:
    return make_broker(backend)


@pytest.fixture
def work(broker: StubBroker) -> Any:
    @dramatiq.actor(broker=broker, queue_name="default")
    def work(deed: str = "return", *results: Any) -> None:
        if deed == "fail":
            raise ValueError(deed)
        if deed == "skip":
            raise SkipMessage
        if deed == "say failed":
            current_status().update(status="failed")

    return work


# The messages of a batch


def test_a_batch_has_the_messages_of_groups_and_pipelines_in_order(broker: StubBroker, work: Any) -> None:
    # Given messages, alone, in groups and in pipelines, nested
    a, b, c, d, e, f, g = (work.message() for _ in range(7))
    members = [
        a,
        group([b, group([c], broker=broker), pipeline([d, e], broker=broker)], broker=broker),
        [f, "x"],
        (m for m in [g, a, "x"]),
    ]
    # When a batch is made of them
    batch = StatusRegistry.batch(members, broker=broker)
    # Then the batch has each message once, in their order
    assert batch.message_ids == (*(message.message_id for message in (a, b, c, d, e, f)), "x", g.message_id)
    assert len(batch) == 8 and "8" in repr(batch)


@pytest.mark.parametrize("kind", ["group", "pipeline", "message", "id", "status", "snapshot"])
def test_a_batch_of_one_message(backend: RecordingBackend, broker: StubBroker, work: Any, kind: str) -> None:
    # Given one message, in each form that a batch takes
    message = work.send()
    given = {
        "group": lambda: group([message], broker=broker),
        "pipeline": lambda: pipeline([message], broker=broker),
        "message": lambda: message,
        "id": lambda: message.message_id,
        "status": lambda: StatusRegistry.get(message, broker=broker),
        "snapshot": lambda: StatusRegistry.read(message, broker=broker),
    }[kind]()
    # When a batch is made of it
    # Then the batch has this message. (A group and a pipeline have a broker themselves.)
    batch = StatusRegistry.batch(given, broker=None if kind in ("group", "pipeline") else broker)
    assert batch.message_ids == (message.message_id,) and batch.read().queued


@pytest.mark.parametrize("registry", [StatusRegistry, aio.StatusRegistry])
def test_a_batch_uses_the_broker_of_its_groups_and_pipelines(
    backend: RecordingBackend, broker: StubBroker, work: Any, registry: Any
) -> None:
    # Given groups and pipelines of a broker that is not the default one
    first, second, third = (work.message() for _ in range(3))
    one, two = group([first], broker=broker), pipeline([second, third], broker=broker)
    # When a batch is made of them, nested and with other messages
    batch = registry.batch(part for part in [["x"], [one], (two,)])
    # Then the batch uses their broker's backend
    assert batch._backend is backend
    assert batch.message_ids == ("x", first.message_id, second.message_id, third.message_id)
    # And if they have different brokers, an error is raised, unless the call names a broker
    other = group([work.message()], broker=make_broker(StubBackend()))
    with pytest.raises(ValueError, match="different backends"):
        registry.batch([one, other])
    assert len(registry.batch([one, other], broker=broker)) == len(registry.batch([one, other], backend=backend)) == 2


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (7, TypeError, "not of a int"),
        (None, TypeError, "NoneType"),
        (b"abc", TypeError, "bytes"),
        ({"a": "b"}, TypeError, "dict"),
        (["a", [7]], TypeError, "int"),
        (["a", ""], ValueError, "empty"),
        ("a\nb", ValueError, "control"),
    ],
)
def test_wrong_arguments_of_a_batch_raise(
    backend: RecordingBackend, given: Any, error: type[Exception], text: str
) -> None:
    # Given a wrong argument
    # When a batch is made of it
    # Then the error names the problem
    with pytest.raises(error, match=text):
        StatusRegistry.batch(given, backend=backend)


# The roll-up


def rolled_up(*states: int | None, progress: float | None = None) -> BatchSnapshot:
    """Return the roll-up of messages in these states; None stands for an unknown message."""
    backend = StubBackend()
    for n, state in enumerate(states):
        if state is not None:
            put(backend, str(n), state, progress)
    return StatusRegistry.batch([str(n) for n in range(len(states))], backend=backend).read()


@pytest.mark.parametrize(
    ("states", "expected", "finished"),
    [
        ((QUEUED, QUEUED), "queued", False),
        ((QUEUED, WORKING), "working", False),
        ((QUEUED, COMPLETED), "working", False),
        ((WORKING, COMPLETED), "working", False),
        ((COMPLETED, COMPLETED), "completed", True),
        ((FAILED, QUEUED), "failed", False),
        ((FAILED, WORKING), "failed", False),
        ((FAILED, COMPLETED), "failed", True),
        ((None, None), None, False),
        ((None, QUEUED), "queued", False),
        ((None, WORKING), "working", False),
        ((None, COMPLETED), "working", False),
        ((None, FAILED), "failed", False),
        ((), "completed", True),
    ],
)
def test_the_state_of_a_batch(states: tuple[int | None, ...], expected: str | None, finished: bool) -> None:
    # Given messages in some states
    # When they are rolled up
    found = rolled_up(*states)
    # Then the batch has this state
    assert (found.state, found.finished) == (expected, finished)
    names = ("queued", "working", "completed", "failed")
    assert [name for name in names if getattr(found, name)] == ([expected] if expected else [])
    # And it counts the messages by state, and unknown ones separately
    assert found.counts == {
        **{name: states.count(n) for n, name in enumerate(names)},
        "unknown": states.count(None),
        "unavailable": 0,
    }
    assert found.missing == tuple(str(n) for n, state in enumerate(states) if state is None)


@pytest.mark.parametrize(
    ("states", "progress", "expected"),
    [
        ((WORKING, WORKING), 30, 0.3),
        ((WORKING, QUEUED), 30, 0.15),
        ((COMPLETED, QUEUED), 30, 0.5),
        ((COMPLETED, COMPLETED), None, 1.0),
        ((FAILED, FAILED), None, 0.0),
        ((FAILED, COMPLETED), 30, 0.65),
        ((None, WORKING), 30, 0.15),
        ((None, None), None, 0.0),
        ((WORKING, WORKING), 300, 1.0),
        ((WORKING, WORKING), -300, 0.0),
        ((), None, 1.0),
    ],
)
def test_the_progress_of_a_batch_is_the_mean(
    states: tuple[int | None, ...], progress: float | None, expected: float
) -> None:
    # Given messages with the progress of each
    # When they are rolled up
    found = rolled_up(*states, progress=progress)
    # Then the progress of the batch is the mean
    assert found.progress == pytest.approx(expected) and found.percent == pytest.approx(expected * 100)


def test_a_batch_snapshot_has_the_snapshots_of_its_messages() -> None:
    # Given messages, one unknown
    found = rolled_up(WORKING, None, FAILED, progress=25)
    # Then the batch snapshot has their snapshots, in order
    assert list(found.children) == ["0", "1", "2"]
    first, second, third = found.children.values()
    assert first is not None and (first.message_id, first.percent) == ("0", 25.0)
    assert second is None and third is not None and third.failed
    # And it cannot be changed
    with pytest.raises(TypeError):
        found.children["0"] = None  # type: ignore[index]
    with pytest.raises(AttributeError):
        found.progress = 1.0  # type: ignore[misc]
    # And it can be copied and pickled
    assert copy.deepcopy(found) == pickle.loads(pickle.dumps(found)) == found
    # And it can be in a set, in which equal ones count once
    assert len({found, copy.deepcopy(found), rolled_up(WORKING, WORKING)}) == 2


def test_a_batch_snapshot_as_json_and_as_text() -> None:
    # Given messages
    found = rolled_up(WORKING, None, progress=25)
    # When they are written as JSON
    parsed = json.loads(found.to_json())
    # Then the JSON has all values
    assert parsed["status"] == "working" and parsed["progress"] == 0.125 and parsed["finished"] is False
    assert parsed["counts"] == {"queued": 0, "working": 1, "completed": 0, "failed": 0, "unknown": 1, "unavailable": 0}
    assert parsed["children"]["0"]["progress"] == 25 and parsed["children"]["1"] is None
    assert isinstance(found.to_dict()["children"]["0"], dict)
    # And the text for people is short
    assert str(found) == "working (12.5%: 1 working, 1 unknown)"
    assert (str(rolled_up(None)), str(rolled_up())) == ("unknown (0%: 1 unknown)", "completed (100%)")


def test_a_batch_with_a_failure_has_no_percentage() -> None:
    # Given messages of which some failed, one of them after its progress had reached its total
    found = rolled_up(FAILED, COMPLETED, FAILED, progress=100)
    # When the batch is written as a text
    # Then the text has the number of messages in each state
    assert (str(found), found.finished) == ("failed (3 of 3 finished: 1 completed, 2 failed)", True)
    others = rolled_up(FAILED, WORKING, COMPLETED, None, progress=100)
    assert str(others) == "failed (2 of 4 finished: 1 working, 1 completed, 1 failed, 1 unknown)"


@pytest.mark.parametrize("all_but", [1, 10_000])
def test_a_batch_has_a_hundred_percent_only_if_all_messages_have(all_but: int) -> None:
    # Given messages of which one is not quite complete
    ids = [str(n) for n in range(all_but + 1)]
    record = {"s": "1", "v": "1", "e": "1", "n": "1", "r": "1", "q": "1"}
    snapshots = [take_snapshot(message_id, {**record, PROGRESS: "100"}, 1) for message_id in ids[1:]]
    snapshots.append(take_snapshot(ids[0], {**record, PROGRESS: str(2**53 - 1), TOTAL: str(2**53)}, 1))
    # When they are rolled up
    found = Rollup([(message_id,) for message_id in ids]).take(snapshots)
    # Then the batch has less than 100 %
    assert found.progress < 1.0 and found.percent == 99.9 and str(found).startswith("working (99.9%")


def test_a_batch_shows_a_stalled_message() -> None:
    # Given messages that run
    found = rolled_up(WORKING, WORKING, None)
    assert not found.stalled
    # When one of them has had no heartbeat for long
    child = found.children["0"]
    assert child is not None
    values = {**child._values, "H": 1}
    later = Snapshot("0", values, child._now)
    # Then the batch is shown as stalled
    assert Rollup([("0",), ("1",)]).take([later, found.children["1"]]).stalled


def test_a_batch_is_read_in_one_round_trip(backend: RecordingBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given many messages
    asked: list[int] = []
    read = backend.read_many

    def counting(ids: Any) -> Any:
        asked.append(len(ids))
        return read(ids)

    monkeypatch.setattr(backend, "read_many", counting)
    batch = StatusRegistry.batch([str(n) for n in range(500)] * 2, backend=backend)
    # When they are read
    batch.read()
    # Then one round trip reads all of them
    assert asked == [500]
    # And an empty batch reads nothing from the store
    assert StatusRegistry.batch([], backend=backend).read().finished and asked == [500]


# Messages that the store cannot read


#: Value in the place of a message whose server does not answer.
AWAY = BackendError("away")


def chained(*states: int | BackendError | None) -> BatchSnapshot:
    """Return the roll-up of a pipeline with stages in these states; an error stands for a stage that cannot be read."""
    backend = StubBackend()
    ids = [str(n) for n in range(len(states))]
    for message_id, state in zip(ids, states):
        if isinstance(state, int):
            put(backend, message_id, state)
    snapshots = [state if isinstance(state, BackendError) else backend.snapshot(i) for i, state in zip(ids, states)]
    return Rollup([tuple(ids)]).take(snapshots)


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ((AWAY, AWAY), None),
        ((AWAY, None), None),
        ((AWAY, QUEUED), "queued"),
        ((AWAY, WORKING), "working"),
        ((AWAY, COMPLETED), "working"),
        ((AWAY, FAILED), "failed"),
    ],
)
def test_a_batch_with_an_unavailable_message_is_not_finished(states: tuple[Any, ...], expected: str | None) -> None:
    # Given messages of which one cannot be read
    backend = StubBackend()
    if isinstance(states[1], int):
        put(backend, "1", states[1])
    # When they are rolled up
    found = Rollup([("0",), ("1",)]).take([AWAY, AWAY if states[1] is AWAY else backend.snapshot("1")])
    # Then it counts neither as unknown nor as missing, and the batch is not finished
    unavailable = tuple(str(n) for n, state in enumerate(states) if state is AWAY)
    assert (found.state, found.finished, found.unavailable) == (expected, False, unavailable)
    assert (found.counts["unavailable"], found.counts["unknown"]) == (len(unavailable), states.count(None))
    assert (found.missing, found.children["0"]) == (("1",) if states[1] is None else (), None)
    assert found.to_dict()["counts"] == found.counts and f"{len(unavailable)} unavailable" in str(found)


@pytest.mark.parametrize(
    ("states", "missing"),
    [
        ((AWAY, None, None), ()),
        ((None, AWAY, None), ()),
        ((COMPLETED, AWAY, None), ()),
        ((COMPLETED, None, AWAY), ()),
        ((AWAY, COMPLETED, None), ("2",)),
        ((COMPLETED, AWAY, COMPLETED), ()),
    ],
)
def test_pipelines_with_an_unavailable_stage(states: tuple[Any, ...], missing: tuple[str, ...]) -> None:
    # Given a pipeline of which one stage cannot be read
    # When it is rolled up
    found = chained(*states)
    # Then a stage is missing only if it follows a completed one, and no later stage may have a status
    assert (found.missing, found.finished) == (missing, False)
    assert found.unavailable == tuple(str(n) for n, state in enumerate(states) if state is AWAY)


def test_messages_that_were_read_as_finished_are_not_unavailable() -> None:
    # Given a batch that has read one message as finished, and another one at half of its total
    backend = StubBackend()
    put(backend, "a", COMPLETED)
    put(backend, "b", WORKING, 50)
    rollup = Rollup([("a",), ("b",)])
    before = rollup.take(backend.snapshots(["a", "b"]))
    # When neither can be read any more
    found = rollup.take([AWAY, AWAY])
    # Then the first one counts as before, and the progress stays
    assert (found.unavailable, found.state, found.progress) == (("b",), "working", before.progress)
    # And when both can be read again, the batch has their states
    put(backend, "b", COMPLETED)
    assert rollup.take(backend.snapshots(["a", "b"])).completed


# What a batch keeps between reads


def test_a_message_that_finishes_does_not_reduce_the_progress(backend: RecordingBackend) -> None:
    # Given two messages, one with much more progress
    put(backend, "a", WORKING, 90)
    put(backend, "b", WORKING, 40)
    batch = StatusRegistry.batch(["a", "b"], backend=backend)
    seen = [batch.read().progress]
    # When this one fails, and the other one completes without reaching its total
    put(backend, "a", FAILED, 90)
    seen.append(batch.read().progress)
    put(backend, "b", COMPLETED, 40)
    seen.append(batch.read().progress)
    # Then the progress has not decreased
    assert seen == pytest.approx([0.65, 0.65, 0.95])


def test_messages_that_expire_after_they_were_read_still_count(backend: RecordingBackend) -> None:
    # Given messages of which some have finished, and were read as finished
    for message_id, state in {"a": COMPLETED, "b": FAILED, "c": WORKING}.items():
        put(backend, message_id, state, 50)
    batch = StatusRegistry.batch(["a", "b", "c"], backend=backend)
    before = batch.read()
    # When their statuses expire
    backend.delete("a")
    backend.delete("b")
    # Then they still count, with their last snapshots
    assert batch.read() == before
    # And the batch finishes when the last one does
    put(backend, "c", COMPLETED)
    found = batch.read()
    assert (found.state, found.finished, found.counts["unknown"]) == ("failed", True, 0)
    # But in a batch that has not read them before, they are unknown
    found = StatusRegistry.batch(["a", "b", "c"], backend=backend).read()
    assert (found.state, found.finished, found.missing) == ("working", False, ("a", "b"))


def test_a_lost_record_does_not_reduce_the_progress(backend: RecordingBackend) -> None:
    # Given a message that runs
    put(backend, "a", WORKING, 50)
    batch = StatusRegistry.batch(["a"], backend=backend)
    assert batch.read().progress == 0.5
    # When the store has lost its record
    backend.delete("a")
    # Then it is unknown, and the progress stays
    found = batch.read()
    assert (found.state, found.progress, found.missing) == (None, 0.5, ("a",))


def test_a_message_that_is_enqueued_again_is_not_finished(backend: RecordingBackend) -> None:
    # Given a message that was read as finished
    put(backend, "a", COMPLETED)
    batch = StatusRegistry.batch(["a"], backend=backend)
    assert batch.read().finished
    # When it is enqueued again, and its record is lost
    put(backend, "a", QUEUED)
    assert batch.read().queued
    backend.delete("a")
    # Then it no longer counts as finished
    assert batch.read().state is None


steps = st.tuples(st.integers(0, 2), st.sampled_from(["advance", "complete", "fail", "expire"]), st.integers(0, 40))


@given(st.lists(steps, max_size=25))
def test_the_progress_never_decreases(history: list[tuple[int, str, int]]) -> None:
    # Given messages that advance, finish and expire in any order
    backend = StubBackend()
    reached, over = [0, 0, 0], [False, False, False]
    batch = StatusRegistry.batch(["0", "1", "2"], backend=backend)
    seen = [batch.read()]
    # When the batch is read after each step
    for n, deed, by in history:
        if deed == "expire":
            backend.delete(str(n))
        elif not over[n]:
            reached[n] += by
            over[n] = deed != "advance"
            put(backend, str(n), {"advance": WORKING, "complete": COMPLETED, "fail": FAILED}[deed], reached[n])
        seen.append(batch.read())
    # Then its progress never decreases, and finished messages stay finished
    assert [found.progress for found in seen] == sorted(found.progress for found in seen)
    assert [found.finished for found in seen] == sorted(found.finished for found in seen)


states = st.sampled_from([None, QUEUED, WORKING, COMPLETED, FAILED])


@given(st.lists(st.lists(st.tuples(states, st.integers(0, 100)), min_size=1, max_size=4), max_size=4))
def test_the_counts_of_a_batch_are_consistent(chains: list[list[tuple[int | None, int]]]) -> None:
    # Given chains of messages in any states
    backend, ids = StubBackend(), []
    for n, chain in enumerate(chains):
        ids.append(tuple(f"{n}.{k}" for k in range(len(chain))))
        for message_id, (state, progress) in zip(ids[-1], chain):
            if state is not None:
                put(backend, message_id, state, progress)
    # When they are rolled up
    found = Batch(backend, ids).read()
    # Then the counts are those of the messages
    assert sum(found.counts.values()) == len(found.children) == sum(map(len, ids))
    assert 0.0 <= found.progress <= 1.0
    # And the batch is finished only if no message runs or is missing
    assert found.finished == (not (found.counts["queued"] or found.counts["working"] or found.missing))
    assert found.completed == (found.finished and not found.counts["failed"])
    # And when all messages are completed, so is the batch
    backend_later = StubBackend()
    for chain_ids in ids:
        for message_id in chain_ids:
            put(backend_later, message_id, COMPLETED)
    later = Batch(backend_later, ids).read()
    assert later.completed and later.progress == 1.0


# Pipelines


def stages(*states: int | None, skipped: int | None = None) -> BatchSnapshot:
    """Return the roll-up of a pipeline whose stages "0", "1", ... are in these states."""
    backend = StubBackend()
    for n, state in enumerate(states):
        if state is not None:
            put(backend, str(n), state, skipped=n == skipped)
    return Batch(backend, [tuple(map(str, range(len(states))))]).read()


@pytest.mark.parametrize(
    ("states", "expected", "finished", "missing", "progress"),
    [
        ((None, None, None), None, False, ("0",), 0),
        ((QUEUED, None, None), "queued", False, (), 0),
        ((WORKING, None, None), "working", False, (), 0),
        # The next stage must have a status.
        ((COMPLETED, None, None), "working", False, ("1",), 1 / 3),
        ((COMPLETED, QUEUED, None), "working", False, (), 1 / 3),
        ((COMPLETED, COMPLETED, COMPLETED), "completed", True, (), 1),
        # Dramatiq enqueues a stage before it acknowledges the stage before it.
        ((WORKING, QUEUED, None), "working", False, (), 0),
        # The later stages are never enqueued.
        ((FAILED, None, None), "failed", True, (), 0),
        ((COMPLETED, FAILED, None), "failed", True, (), 1 / 3),
        # An actor that sets the state `failed` itself does not stop a pipeline.
        ((FAILED, WORKING, None), "failed", False, (), 0),
        ((FAILED, COMPLETED, COMPLETED), "failed", True, (), 2 / 3),
        # The earlier stages have expired: the later stages were enqueued after them.
        ((None, QUEUED, None), "working", False, (), 1 / 3),
        ((None, None, COMPLETED), "completed", True, (), 1),
        ((None, COMPLETED, None), "working", False, ("2",), 2 / 3),
    ],
)
def test_unknown_stages_of_a_pipeline_are_not_missing(
    states: tuple[int | None, ...], expected: str | None, finished: bool, missing: tuple[str, ...], progress: float
) -> None:
    # Given a pipeline with stages in these states
    # When it is rolled up
    found = stages(*states)
    # Then only stages count as missing that should have a status
    assert (found.state, found.finished, found.missing) == (expected, finished, missing)
    assert found.progress == pytest.approx(progress)


@pytest.mark.parametrize("state", [COMPLETED, FAILED])
def test_a_skipped_stage_ends_its_pipeline(state: int) -> None:
    # Given a pipeline whose second stage was skipped
    # When it is rolled up
    found = stages(COMPLETED, state, None, skipped=1)
    # Then the batch waits for no further stage
    assert found.finished and found.missing == ()
    assert (found.state, found.progress) == (("completed", 1.0) if state == COMPLETED else ("failed", 1 / 3))


def test_a_pipeline_in_a_group(backend: RecordingBackend, broker: StubBroker, work: Any) -> None:
    # Given a group of a message and a pipeline whose second stage fails
    first, second, third = work.message(), work.message("fail"), work.message()
    alone = work.message()
    members = group([alone, pipeline([first, second, third], broker=broker)], broker=broker)
    batch = StatusRegistry.batch(members)
    assert batch.read().state is None
    # When the group is sent
    members.run()
    # Then the message and the first stage are queued, and the later stages are unknown
    found = batch.read()
    assert (found.state, found.counts["queued"], found.counts["unknown"]) == ("queued", 2, 2)
    # And when all have run
    run(broker)
    # Then the batch is finished, although the last stage was never enqueued, and no error is raised
    found = batch.wait()
    assert (found.state, found.finished, found.progress) == ("failed", True, 0.5)
    assert {name: count for name, count in found.counts.items() if count} == {"completed": 2, "failed": 1, "unknown": 1}


@pytest.mark.parametrize(
    ("deed", "state", "counts"),
    [
        ("return", "completed", {"completed": 3}),
        ("skip", "completed", {"completed": 1, "unknown": 2}),
        ("say failed", "failed", {"completed": 2, "failed": 1}),
        ("fail", "failed", {"failed": 1, "unknown": 2}),
    ],
)
def test_a_batch_waits_for_a_pipeline_that_dramatiq_runs(
    broker: StubBroker, work: Any, deed: str, state: str, counts: dict[str, int]
) -> None:
    # Given a pipeline whose first stage returns, is skipped, sets the state `failed`, or raises
    members = pipeline([work.message(deed), work.message(), work.message()], broker=broker)
    batch = StatusRegistry.batch(members)
    # When wait() is called while the pipeline runs
    members.run()
    with working(broker):
        found = batch.wait(timeout=20_000)
    # Then the wait ends
    assert found.finished and found.state == state
    assert {name: count for name, count in found.counts.items() if count} == counts


def test_a_batch_does_not_raise_for_a_failed_message(
    backend: RecordingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a group that stores results, of which one fails
    broker = make_broker(backend, Results(backend=StubResults(), store_results=True))

    @dramatiq.actor(broker=broker)
    def work(n: int) -> int:
        return 1 // n

    monkeypatch.setattr("dramatiq.broker.global_broker", broker)
    members = group([work.message(n) for n in range(3)]).run()
    run(broker)
    # When Dramatiq's own method counts the finished messages
    # Then it raises
    with pytest.raises(Exception, match="ZeroDivision"):
        _ = members.completed_count
    # And a batch raises nothing
    found = StatusRegistry.batch(members).wait()
    assert found.failed and found.counts["completed"] == 2


# Parents and their bars


def test_children_count_on_the_progress_of_a_completed_parent(store: StatusBackend) -> None:
    broker = make_broker(store)

    # Given a parent that sends its children and returns
    @dramatiq.actor(broker=broker)
    def parent(n: int) -> None:
        current_progress().total = n
        messages = [child.message(current_status().message_id) for _ in range(n)]
        current_status()["children"] = [message.message_id for message in messages]
        group(messages, broker=broker).run()

    @dramatiq.actor(broker=broker)
    def child(parent_id: str) -> None:
        assert children_may_run.wait(20)
        StatusRegistry.progress(parent_id, broker=broker).increment()

    children_may_run = threading.Event()
    message = parent.send(50)
    with working(broker, threads=4):
        before = StatusRegistry.wait(message, broker=broker, timeout=20_000)
        assert before.completed and before.progress is None and before.total == 50
        # When the children increment its progress after it is completed
        children_may_run.set()
        assert StatusRegistry.batch(before["children"], broker=broker).wait(timeout=20_000).completed
    # Then its progress has each increment, and it is still completed
    after = StatusRegistry.read(message, broker=broker)
    assert after is not None and after.completed and (after["progress"], after.progress) == (50, 1.0)
    assert after.finished_at == before.finished_at


# Waiting and watching


def test_watch_shows_each_message_that_finishes(store: StatusBackend) -> None:
    broker = make_broker(store)
    go_on = threading.Semaphore(0)

    # Given jobs, each of which waits for the test
    @dramatiq.actor(broker=broker)
    def work() -> None:
        current_progress().progress = 50
        current_status().flush()
        assert go_on.acquire(timeout=20)

    members = group([work.message() for _ in range(3)], broker=broker).run()
    # When they are watched
    seen: list[BatchSnapshot] = []
    with working(broker, threads=3):
        for found in StatusRegistry.batch(members).watch(timeout=20_000):
            seen.append(found)
            if found.progress >= (1 + found.counts["completed"]) / 3 - 1 / 6 and found.counts["queued"] == 0:
                go_on.release()
    # Then the watcher receives the end of each job, the progress never decreases, and the watch ends
    assert [found.progress for found in seen] == sorted(found.progress for found in seen)
    assert {found.counts["completed"] for found in seen} >= {0, 3}
    assert seen[-1].completed and seen[-1].progress == 1.0 and not any(found.finished for found in seen[:-1])


def test_wait_returns_when_the_last_message_finishes(store: StatusBackend) -> None:
    broker = make_broker(store)

    @dramatiq.actor(broker=broker)
    def work(n: int) -> None:
        assert n != 3

    # Given messages that are sent while a caller waits for them
    messages = [work.message(n) for n in range(20)]
    batch = StatusRegistry.batch(messages, broker=broker)
    found: list[BatchSnapshot] = []
    waiting = threading.Thread(target=lambda: found.append(batch.wait(timeout=20_000, missing_timeout=20_000)))
    waiting.start()
    # When they run
    with working(broker):
        for message in messages:
            broker.enqueue(message)
        waiting.join(20)
    # Then wait() returns when all have finished
    assert found and found[0].finished and found[0].failed
    assert (found[0].counts["completed"], found[0].counts["failed"]) == (19, 1)


def test_wait_raises_after_its_timeout(store: StatusBackend) -> None:
    # Given a message that runs
    put(store, "a", WORKING)
    # When it is waited for
    # Then the wait ends
    with pytest.raises(StatusTimeout, match=r"batch of 1 messages .* 20 milliseconds"):
        StatusRegistry.batch(["a"], backend=store).wait(timeout=20)
    with pytest.raises(StatusTimeout):
        list(StatusRegistry.batch(["a"], backend=store).watch(timeout=20))


def test_wait_raises_for_missing_messages(store: StatusBackend) -> None:
    # Given unknown messages and finished messages in one batch
    put(store, "a", COMPLETED)
    put(store, "d", FAILED)
    batch = StatusRegistry.batch(["a", "b", "c", "d"], backend=store)
    # When wait() is called for them
    # Then wait() raises StatusMissing
    with pytest.raises(StatusMissing) as caught:
        batch.wait(timeout=20_000, missing_timeout=20)
    assert caught.value.message_id == "b"
    # And a watcher receives a roll-up of the other messages before the error
    seen = []
    with pytest.raises(StatusMissing):
        for found in batch.watch(missing_timeout=20):
            seen.append(found.counts["unknown"])
    assert seen == [2]
    # And if all are unknown, a watcher receives only the error
    with pytest.raises(StatusMissing):
        next(StatusRegistry.batch(["x", "y"], backend=store).watch(missing_timeout=20))


def test_an_empty_batch_is_finished(backend: RecordingBackend) -> None:
    # Given no messages
    batch = StatusRegistry.batch([], backend=backend)
    # When wait() is called for them
    # Then it returns at once
    assert batch.wait().completed and [found.progress for found in batch.watch()] == [1.0]


def test_watch_continues_after_an_outage_except_at_the_first_read(
    backend: RecordingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a store that fails after its first answer
    put(backend, "a", WORKING)
    answers = iter([True])
    read, failed = backend.read_many, threading.Event()

    def failing(ids: Any) -> Any:
        if next(answers, False) or failed.is_set():
            return read(ids)
        failed.set()
        put(backend, "a", COMPLETED)
        raise BackendError("away")

    monkeypatch.setattr(backend, "read_many", failing)
    # When a batch is watched meanwhile
    # Then the watch continues after the outage
    assert [found.state for found in StatusRegistry.batch(["a"], backend=backend).watch()] == ["working", "completed"]
    # But the first read raises the error
    failed.clear()
    with pytest.raises(BackendError):
        StatusRegistry.batch(["a"], backend=backend).wait()


# Decisions of a watcher, by a clock that the test sets


class Watching:
    """A watcher of three messages, with its own roll-up and clock."""

    def __init__(self, chains: list[tuple[str, ...]], **parameters: Any) -> None:
        self.backend = StubBackend()
        self.rollup = Rollup(chains)
        self.now = 0.0
        self.watcher = BatchWatcher(3, 0.0, **{"timeout": None, "missing_timeout": 1000, **parameters})

    def look(self, after: float = 0.0, **puts: int | None) -> bool:
        self.now += after
        for message_id, state in puts.items():
            if state is None:
                self.backend.delete(message_id)
            else:
                put(self.backend, message_id, state)
        ids = self.rollup.message_ids
        found = [take_snapshot(message_id, self.backend.read(message_id), self.backend.now()) for message_id in ids]
        return self.watcher.observe(self.rollup.take(found), self.now)


def test_only_changes_are_shown() -> None:
    # Given a watcher
    watching = Watching([("a",), ("b",)])
    # When the watcher reads
    # Then it shows each change, from the first known message to the last
    shown = [
        watching.look(),
        watching.look(a=QUEUED),
        watching.look(),
        watching.look(b=WORKING),
        watching.look(a=COMPLETED),
        watching.look(),
    ]
    assert shown == [False, True, False, True, True, False] and not watching.watcher.finished
    assert watching.look(b=FAILED) and watching.watcher.finished


def test_missing_messages_are_given_up_when_all_others_have_finished() -> None:
    # Given two messages, one of them unknown, the other running for long
    watching = Watching([("a",), ("b",)])
    watching.look(a=WORKING)
    assert watching.watcher.time_left(0.0) == float("inf")
    watching.look(after=100)
    # When the other message has ended
    watching.look(a=COMPLETED)
    # Then the time for the missing one starts
    assert watching.watcher.time_left(100.0) == 1.0
    watching.look(after=0.9)
    with pytest.raises(StatusMissing, match="'b'"):
        watching.look(after=0.2)


def test_messages_that_appear_one_by_one_are_not_given_up() -> None:
    # Given messages, of which each second another one appears and finishes at once
    watching = Watching([(str(n),) for n in range(10)])
    # When all of them together take longer than one message may be missing
    for n in range(10):
        watching.look(after=0.9, **{str(n): COMPLETED})
    # Then the watcher has waited for all of them
    assert watching.watcher.finished


def test_a_next_stage_that_does_not_appear_is_given_up() -> None:
    # Given a pipeline whose second stage is not tracked
    watching = Watching([("a", "b")])
    watching.look(a=COMPLETED)
    # When it does not appear within the time for missing messages
    # Then the watch raises StatusMissing
    with pytest.raises(StatusMissing, match="'b'"):
        watching.look(after=1.0)


def test_watchers_ignore_published_versions_that_they_have_read() -> None:
    # Given a watcher that has read a batch
    watching = Watching([("a",), ("b",)])
    watching.look(a=QUEUED)
    version = take_snapshot("a", watching.backend.read("a"), 0)
    assert version is not None
    new_version: Callable[[dict[str, int]], int | None] = watching.watcher.new_version
    # When the versions that it has read are published
    # Then the batch has no new version
    assert new_version({"a": version.version}) is None and new_version({}) is None
    # But after any other version it has
    assert new_version({"a": version.version + 1}) == watching.watcher.version + 1
    assert new_version({"a": version.version, "b": 1}) is not None and new_version({"a": 0}) is not None


def test_chains_are_found_in_nested_groups_and_pipelines() -> None:
    # Given nested groups and pipelines
    # When their messages are collected
    # Then they are in order, and the messages of a pipeline are together
    assert list(chains_of(["a", ["b", iter(["c"])], []])) == [("a",), ("b",), ("c",)]
    assert list(chains_of("abc")) == [("abc",)]
    # And a message in a pipeline that is also given alone counts as a stage
    assert Rollup([("b",), ("a", "b"), ()]).message_ids == ("b", "a")
    assert Rollup([]).take(()).state is State.COMPLETED
