"""The checker finds each kind of contradiction, and none in right statuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest

from .checker import Checker
from .facts import Fact
from .history import World
from .watcher import Sight

JOB: Final = {"number": 7, "steps": 5, "children": 0}
PARENT: Final = {"number": 7, "steps": 0, "children": 2}

Change = Callable[[list[Fact], dict[str, Any], list[Sight]], None]


def fact(t: float, what: str, message_id: str = "m", **values: Any) -> Fact:
    return {"t": t, "pid": 1, "what": what, "id": message_id, **values}


def decided(t: float, decision: str, message_id: str = "m", *, run: str = "r1", **values: Any) -> Fact:
    known = {"exception": None, "skipped": False}
    return fact(t, "decided", message_id, run=run, decision=decision, **{**known, **values})


def one_run(job: dict[str, Any]) -> list[Fact]:
    """Return the facts of a message that was completed at once."""
    return [
        fact(1.0, "planned", job=job),
        fact(1.1, "enqueuing", origin="a"),
        fact(1.2, "enqueued"),
        fact(2.0, "began", run="r1", retries=0),
        fact(2.1, "entered", run="r1"),
        fact(2.3, "did", run="r1"),
        decided(3.0, "completed"),
        fact(3.1, "acked", run="r1"),
    ]


def final() -> dict[str, Any]:
    """Return the status of this message at the end."""
    return {"status": "completed", "run": "r1", "last": "r1", "begun": 7, "user": 7, "progress": 5, "attempts": 1}


def sight(at: float, **values: Any) -> Sight:
    return Sight(at, at - 0.1, "poll", values or None)


def sights() -> list[Sight]:
    """Return the sights of a reader of this message."""
    return [
        sight(1.3, status="queued"),
        sight(2.2, status="working", attempts=1, progress=2, run="r1"),
        sight(3.3, **final()),
    ]


def found(facts: list[Fact], stored: dict[str, Any] | None, seen: list[Sight], **world: bool) -> list[str]:
    facts = sorted([*facts, fact(99.0, "end")], key=lambda fact: fact["t"])
    checker = Checker(World(facts, **{"lossy": False, "failover": False, **world}), {"m": stored}, {"m": seen})
    return [finding.what for finding in checker.check()]


def test_nothing_is_found_where_all_is_right() -> None:
    assert found(one_run(JOB), final(), sights()) == []


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"status": "working"}, "wrong state"),
        ({"status": "failed"}, "wrong state"),
        ({"run": "r0"}, "fields of another run"),
        ({"last": "r0"}, "last field is missing"),
        ({"begun": None}, "throttled field is missing"),
        ({"user": None}, "field of the enqueue is missing"),
        ({"progress": 4}, "wrong progress"),
        ({"progress": 6}, "wrong progress"),
        ({"attempts": 2}, "wrong attempts"),
        ({"exception": {"type": "Boom"}}, "wrong exception"),
        ({"skipped": True}, "wrong skip"),
    ],
)
def test_a_wrong_end_is_found(changed: dict[str, Any], what: str) -> None:
    assert found(one_run(JOB), {**final(), **changed}, []) == [what]


def test_a_status_that_is_gone_is_found_unless_the_store_has_lost_it() -> None:
    begins = fact(5.0, "fault begins", "", number=1)
    ends = fact(6.0, "fault ended", "", number=1, target="store", kind="kill")
    # A store that keeps its data over a crash
    assert found([*one_run(JOB), begins, ends], None, []) == ["unknown"]
    # And one that does not
    assert found([*one_run(JOB), begins, ends], None, [], lossy=True) == []


def test_a_final_state_that_died_with_its_worker_is_found_unless_the_store_was_away() -> None:
    killed = fact(4.0, "killed", "", pids=[1])
    begins = fact(2.5, "fault begins", "", number=1)
    ends = fact(6.0, "fault ended", "", number=1, target="store", kind="freeze")
    stored = {**final(), "status": "working"}
    assert found([*one_run(JOB), killed], stored, []) == ["wrong state"]
    assert found([*one_run(JOB), killed, begins, ends], stored, []) == []
    # A worker sends what it has kept as soon as the store is back
    late = fact(30.0, "killed", "", pids=[1])
    assert found([*one_run(JOB), late, begins, ends], stored, []) == ["wrong state"]


def test_a_worker_that_has_time_to_end_logs_its_unsent_updates() -> None:
    terminated = fact(3.5, "terminated", "", pids=[1])
    outage = [
        fact(2.5, "fault begins", "", number=1),
        fact(20.0, "fault ended", "", number=1, target="store", kind="freeze"),
    ]
    said = {"t": 9.0, "pid": 1, "what": "log", "level": "ERROR", "text": "It has not taken 3 updates.", "trace": None}
    stored = {**final(), "status": "working"}
    assert found([*one_run(JOB), terminated, *outage], stored, []) == ["lost without a word"]
    assert found([*one_run(JOB), terminated, *outage, said], stored, []) == []
    # A process that is frozen to its end cannot log
    frozen = fact(3.05, "frozen", "", pids=[1])
    assert found([*one_run(JOB), frozen, terminated, *outage], stored, []) == []


@pytest.mark.parametrize(("progress", "whats"), [(1, ["wrong bar"]), (2, []), (3, ["wrong bar"])])
def test_a_bar_counts_each_child_once(progress: int, whats: list[str]) -> None:
    facts = one_run(PARENT)
    for child, at in (("c1", 10.0), ("c2", 11.0)):
        facts += [
            fact(at, "began", child, run=child, retries=0),
            fact(at + 0.1, "counting", "m", child=child, run=child),
            decided(at + 0.2, "completed", child, run=child),
            fact(at + 0.3, "acked", child, run=child),
        ]
    assert found(facts, {**final(), "progress": progress}, []) == whats


def test_a_field_from_outside_that_is_gone_is_found() -> None:
    wrote = fact(2.2, "wrote", name="seen_by", value="ann", began=2.15)
    assert found([*one_run(JOB), wrote], {**final(), "seen_by": "ann"}, []) == []
    assert found([*one_run(JOB), wrote], final(), []) == ["field from outside is missing"]


@pytest.mark.parametrize(
    ("seen", "what"),
    [
        ([sight(1.9, status="working", attempts=1)], "poll: working without a cause"),
        ([sight(2.9, status="failed", attempts=1)], "poll: failed without a cause"),
        ([sight(3.3, **final()), sight(3.5, status="working", attempts=1, progress=5)], "poll: left its end"),
        ([sight(3.3, **final()), sight(3.5, **{**final(), "progress": 4})], "poll: progress goes back"),
        ([sight(2.5, status="working", attempts=2), sight(2.6, status="working", attempts=1)], "poll: fewer attempts"),
        ([sight(2.5, status="working", attempts=1), sight(2.6)], "poll: forgotten"),
        ([Sight(2.5, 2.4, "watch", trouble="StatusMissing")], "watch: StatusMissing"),
    ],
)
def test_impossible_sights_are_found(seen: list[Sight], what: str) -> None:
    assert found(one_run(JOB), final(), seen) == [what]


def test_a_message_is_forgotten_only_if_its_enqueue_ended_in_an_error_and_no_run_had_begun() -> None:
    waits, runs, unknown = sight(1.2, status="queued"), sight(2.5, status="working", attempts=1), sight(2.6)
    refused = fact(1.3, "refused", exception="ConnectionError")
    interrupted = fact(1.3, "interrupted", exception="Shutdown")
    assert found([*one_run(JOB), refused], final(), [waits, unknown]) == []
    assert found([*one_run(JOB), interrupted], final(), [waits, unknown]) == ["poll: forgotten"]
    assert found([*one_run(JOB), refused], final(), [runs, unknown]) == ["poll: forgotten"]


def test_a_message_that_was_finished_may_run_again_where_it_was_delivered_twice() -> None:
    twice = [
        fact(4.0, "began", run="r2", retries=0),
        fact(4.1, "entered", run="r2"),
        fact(4.2, "did", run="r2"),
        decided(5.0, "completed", run="r2"),
    ]
    seen = [sight(3.3, **final()), sight(4.3, status="working", attempts=2, progress=1, run="r2")]
    assert found([*one_run(JOB), *twice], {**final(), "run": "r2", "last": "r2", "attempts": 2}, seen) == []


def test_errors_that_the_library_logs_are_found() -> None:
    logged = {"t": 2.5, "pid": 1, "what": "log", "level": "ERROR", "text": "cannot be merged", "trace": None}
    assert found([*one_run(JOB), logged], final(), []) == ["error in the log"]


def test_an_acknowledgement_that_is_held_is_found_unless_its_process_was_frozen() -> None:
    held = fact(9.0, "held", run="r1", seconds=4.0)
    assert found([*one_run(JOB), held], final(), []) == ["acknowledgement held"]
    frozen = [fact(6.0, "frozen", "", pids=[1]), fact(8.0, "thawed", "", pids=[1])]
    assert found([*one_run(JOB), held, *frozen], final(), []) == []


def test_a_run_whose_beginning_was_not_written_down_counts() -> None:
    # Given a witness that an interrupt struck before it had written that the run began
    facts = [f for f in one_run(JOB) if f["what"] != "began"]
    # Then the end of the run is known
    world = World(facts, lossy=False, failover=False)
    assert [run.state for run in world.history("m").final_runs] == ["completed"]
