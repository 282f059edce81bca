"""Tests of Snapshot: derived values, immutability, and damaged records."""

from __future__ import annotations

import copy
import inspect
import json
import math
import pickle
import sys
from datetime import datetime, timedelta, timezone
from typing import Any

import flask
import pytest
from django.core.serializers.json import DjangoJSONEncoder
from hypothesis import given
from hypothesis import strategies as st

from dramatiq_status import decoding as room
from dramatiq_status.decoding import take_snapshot, take_snapshots, take_texts
from dramatiq_status.fraction import fraction_of
from dramatiq_status.record import (
    ACTOR_NAME,
    ARGS,
    ATTEMPTS,
    ENQUEUED_AT,
    EXCEPTION,
    FINISHED_AT,
    GENERATION,
    HEARTBEAT_AT,
    HEARTBEAT_INTERVAL,
    KWARGS,
    LIVE_TTL,
    ORIGIN,
    PROGRESS,
    QUEUE_NAME,
    RATE,
    RATE_WRITTEN_AT,
    SCHEDULED_AT,
    SEQUENCE,
    SKIPPED,
    STARTED_AT,
    STATE,
    STATES,
    TOTAL,
    TRACEBACK,
    UPDATED_AT,
    VERSION,
    Record,
    is_sound,
)
from dramatiq_status.snapshot import Snapshot
from dramatiq_status.testing.updates import enqueue, start
from dramatiq_status.update import Kind, Update, apply

#: 2026-11-24 03:00:00.123 UTC, in epoch milliseconds.
NOW = 1_795_489_200_123

DAY = 86_400_000

MINIMUM: Record = {STATE: "1", VERSION: "3", ORIGIN: "7", GENERATION: "1"}


def snap(state: str = "working", fields: Record | None = None, *, now: int = NOW) -> Snapshot:
    record = {**MINIMUM, STATE: str([str(known) for known in STATES].index(state)), **(fields or {})}
    snapshot = take_snapshot("the id", record, now)
    assert snapshot is not None
    return snapshot


GETTERS = sorted(name for name, value in vars(Snapshot).items() if isinstance(value, property))

# States


@pytest.mark.parametrize("state", [str(state) for state in STATES])
def test_one_state_at_a_time(state: str) -> None:
    snapshot = snap(state)
    assert snapshot.state == snapshot["status"] == state
    flags = {name: getattr(snapshot, name) for name in ("queued", "working", "completed", "failed")}
    assert flags == {name: name == state for name in flags}
    assert snapshot.finished is (state in ("completed", "failed"))


@pytest.mark.parametrize(
    ("state", "attempts", "expected"),
    [("queued", "0", False), ("queued", "1", True), ("working", "1", False), ("failed", "3", False)],
)
def test_retrying_is_to_be_queued_after_a_run(state: str, attempts: str, expected: bool) -> None:
    assert snap(state, {ATTEMPTS: attempts}).retrying is expected


def test_a_message_that_was_never_run_is_not_retrying() -> None:
    assert (snap("queued").attempts, snap("queued").retrying) == (0, False)


@pytest.mark.parametrize(
    ("state", "ahead", "expected"),
    [("queued", 1, True), ("queued", 0, False), ("queued", -1, False), ("working", 1, False), ("failed", 1, False)],
)
def test_scheduled_is_to_be_queued_for_later(state: str, ahead: int, expected: bool) -> None:
    assert snap(state, {SCHEDULED_AT: str(NOW + ahead)}).scheduled is expected


def test_a_message_without_a_delay_is_not_scheduled() -> None:
    assert not snap("queued").scheduled


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({HEARTBEAT_AT: NOW - 45_000}, False),
        ({HEARTBEAT_AT: NOW - 45_001}, True),
        ({HEARTBEAT_AT: NOW + 99_999}, False),
        # Only heartbeats count, and not the start by the worker's clock or a later write.
        ({HEARTBEAT_AT: NOW - 45_000, STARTED_AT: NOW - 99_999}, False),
        ({HEARTBEAT_AT: NOW - 45_001, STARTED_AT: NOW + 99_999, UPDATED_AT: NOW}, True),
        ({UPDATED_AT: NOW - 99_999, HEARTBEAT_AT: NOW - 5}, False),
        # An interval of its own
        ({HEARTBEAT_AT: NOW - 300, HEARTBEAT_INTERVAL: 100}, False),
        ({HEARTBEAT_AT: NOW - 301, HEARTBEAT_INTERVAL: 100}, True),
        ({}, False),
    ],
)
def test_stalled_is_to_miss_three_heartbeats(fields: dict[str, int], expected: bool) -> None:
    assert snap(fields={name: str(value) for name, value in fields.items()}).stalled is expected


@pytest.mark.parametrize("state", ["completed", "failed"])
def test_a_finished_message_does_not_stall(state: str) -> None:
    assert not snap(state, {STARTED_AT: "1", HEARTBEAT_AT: "1", ENQUEUED_AT: "1", UPDATED_AT: "1"}).stalled


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({ENQUEUED_AT: NOW - DAY, UPDATED_AT: NOW - DAY}, False),
        ({ENQUEUED_AT: NOW - DAY - 1, UPDATED_AT: NOW - DAY - 1}, True),
        # The delay of a message, or of a retry, has just ended
        ({ENQUEUED_AT: NOW - 9 * DAY, UPDATED_AT: NOW - 9 * DAY, SCHEDULED_AT: NOW - DAY}, False),
        ({ENQUEUED_AT: NOW - 9 * DAY, UPDATED_AT: NOW - 9 * DAY, SCHEDULED_AT: NOW - DAY - 1}, True),
        # The message was put back, or another process has written to it, within the last day
        ({ENQUEUED_AT: NOW - 9 * DAY, UPDATED_AT: NOW - 5}, False),
        ({UPDATED_AT: NOW - DAY - 1}, True),
    ],
)
def test_a_message_that_is_queued_for_a_day_is_stalled(fields: dict[str, int], expected: bool) -> None:
    assert snap("queued", {name: str(value) for name, value in fields.items()}).stalled is expected


def test_skipped_is_a_bool() -> None:
    assert snap("completed", {SKIPPED: "true"}).skipped is True
    assert snap("completed").skipped is False


def test_an_exception_is_a_copy() -> None:
    snapshot = snap("failed", {EXCEPTION: '{"type":"Boom","message":"x"}'})
    found = snapshot.exception
    assert found == {"type": "Boom", "message": "x"}
    found["type"] = "changed"
    assert snapshot.exception == {"type": "Boom", "message": "x"}
    assert snap("failed").exception is None


# Progress


@pytest.mark.parametrize(
    ("progress", "total", "expected"),
    [
        (None, None, None), (None, 5, None), (0, None, None), (0, 9, 0.0), (1, 4, 0.25), (0.5, 1, 0.5),
        (150, None, None), (9, 4, 1.0), (-3, 4, 0.0), (0, 0, 1.0), (5, 0, 1.0), (1, -4, 1.0),
        (10**400, 3, 1.0), (-(10**400), 3, 0.0), (1, 10**400, 0.0), (10**400, 10**401, 0.1),
        (math.nan, 1, 0.0), (1, math.nan, 0.0), (math.inf, math.inf, 0.0), (math.inf, 1, 1.0), (-math.inf, 1, 0.0),
        ("5", 10, None), (5, "10", 0.05), ([], {}, None),
    ],
)  # fmt: skip
def test_a_fraction_is_clamped_and_never_nan(progress: Any, total: Any, expected: float | None) -> None:
    assert fraction_of(progress, total) == expected


numbers = st.one_of(st.integers(), st.floats())


@given(progress=numbers, total=numbers)
def test_a_fraction_is_from_zero_to_one(progress: float, total: float) -> None:
    found = fraction_of(progress, total)
    assert type(found) is float and 0.0 <= found <= 1.0


def test_a_progress_is_none_before_the_first_report() -> None:
    snapshot = snap()
    assert (snapshot.progress, snapshot.percent, snapshot.total, snapshot.get("progress")) == (None, None, None, None)


def test_a_total_that_was_not_set_is_a_hundred_as_soon_as_there_is_progress() -> None:
    assert (snap(fields={PROGRESS: "7"}).total, snap(fields={TOTAL: "8"}).total) == (100, 8)
    assert (snap(fields={PROGRESS: "7"}).percent, str(snap(fields={PROGRESS: "7"}))) == (7.0, "working (7%)")


def test_an_unknown_total_has_no_percentage() -> None:
    snapshot = snap(fields={PROGRESS: "250", TOTAL: "null", RATE: "2", HEARTBEAT_AT: str(NOW)})
    assert (snapshot.progress, snapshot.percent, snapshot.total, snapshot.time_remaining) == (None,) * 4
    assert (str(snapshot), snapshot["progress"], snapshot.rate) == ("working", 250, 2.0)


@pytest.mark.parametrize(("progress", "expected"), [("0", 0.0), ("1", 33.3), ("2", 66.6), ("3", 100.0), ("9", 100.0)])
def test_percent_has_one_decimal_place(progress: str, expected: float) -> None:
    assert snap(fields={PROGRESS: progress, TOTAL: "3"}).percent == expected


@pytest.mark.parametrize(
    ("progress", "total", "expected"),
    [
        ("2999", "3000", "99.9%"), ("9007199254740991", "9007199254740992", "99.9%"), ("0.9999999", "1", "99.9%"),
        ("3000", "3000", "100%"), ("1", "3001", "0%"), ("0.285", "1", "28.5%"), ("57", None, "57%"), ("0", "0", "100%"),
    ],
)  # fmt: skip
def test_a_hundred_percent_means_all(progress: str, total: str | None, expected: str) -> None:
    fields = {PROGRESS: progress, **({} if total is None else {TOTAL: total})}
    assert str(snap(fields=fields)) == f"working ({expected})"


@given(st.integers(0, 2**53), st.integers(1, 2**53))
def test_percentages_are_rounded_down(progress: int, total: int) -> None:
    percent = snap(fields={PROGRESS: str(progress), TOTAL: str(total)}).percent
    assert percent is not None and (percent == 100) is (progress >= total)
    assert progress >= total or percent - 1e-6 <= progress / total * 100 < percent + 0.1


# Time


def test_timestamps_are_aware_and_exact_to_the_millisecond() -> None:
    snapshot = snap(fields={STARTED_AT: str(NOW)})
    assert snapshot.started_at == datetime(2026, 11, 24, 3, 0, 0, 123_000, timezone.utc)
    assert snapshot["started_at"] == snapshot.started_at
    assert snapshot.enqueued_at is snapshot.finished_at is snapshot.scheduled_at is snapshot.heartbeat_at is None


@pytest.mark.parametrize("milliseconds", [0, -1, 1, 999, 1000, 253_402_300_799_999])
def test_timestamps_of_any_time_come_back(milliseconds: int) -> None:
    found = snap(fields={STARTED_AT: str(milliseconds)}).started_at
    assert found is not None
    assert (found - datetime(1970, 1, 1, tzinfo=timezone.utc)) / timedelta(milliseconds=1) == milliseconds


@pytest.mark.parametrize(
    ("state", "fields", "expected"),
    [
        ("working", {STARTED_AT: NOW - 1500}, 1500),
        ("completed", {STARTED_AT: NOW - 1500, FINISHED_AT: NOW - 500}, 1000),
        ("failed", {STARTED_AT: NOW - 1500, FINISHED_AT: NOW - 500}, 1000),
        # The clocks of two hosts
        ("working", {STARTED_AT: NOW + 1500}, 0),
        ("completed", {STARTED_AT: NOW, FINISHED_AT: NOW - 500}, 0),
        # No run, or a run that is over and will be followed by another one
        ("working", {}, None),
        ("failed", {FINISHED_AT: NOW}, None),
        ("queued", {STARTED_AT: NOW - 1500}, None),
    ],
)
def test_a_duration_is_never_negative(state: str, fields: dict[str, int], expected: int | None) -> None:
    duration = snap(state, {name: str(value) for name, value in fields.items()}).duration
    assert duration == (None if expected is None else timedelta(milliseconds=expected))


def test_the_duration_of_a_message_that_was_cancelled_before_its_retry_is_that_of_its_run() -> None:
    # Given a message whose run of 1 second has failed, and that waits for its retry
    record = apply(None, enqueue(), 1_000).record
    record = apply(record, start(9, S="2000"), 2_000).record
    record = apply(record, enqueue(generation=2, N="[3000,1]", D="200000"), 3_000).record
    # When it is cancelled later
    record = apply(record, Update(Kind.CANCEL), 100_000).record
    # Then the time between the two is not part of the duration
    assert record is not None
    found = take_snapshot("m", record, 200_000)
    assert found is not None
    assert (found.cancelled, found.duration, found.runs[-1].duration) == (True, *[timedelta(seconds=1)] * 2)


def moving(rate: str, **fields: str) -> Record:
    """Return the fields of a run at 40 of 100."""
    return {RATE: rate, PROGRESS: "40", UPDATED_AT: str(NOW), STARTED_AT: str(NOW), **fields}


def test_the_remaining_time_is_what_is_left_by_the_rate() -> None:
    assert snap(fields=moving("[2,15]")).time_remaining == timedelta(seconds=30)
    assert snap(fields={**moving("[2,15]"), TOTAL: "50"}).time_remaining == timedelta(seconds=5)


def test_the_remaining_time_is_never_negative() -> None:
    assert snap(fields={**moving("[2,15]"), PROGRESS: "140"}).time_remaining == timedelta(0)


@pytest.mark.parametrize(
    ("state", "fields"),
    [
        ("working", {PROGRESS: "40"}),
        ("working", moving("0")),
        ("working", moving("[0,15]")),
        ("working", moving("[-2,15]")),
        ("working", moving("[1e-9,15]")),
        ("queued", moving("[2,15]")),
        ("completed", moving("[2,15]")),
        ("working", {RATE: "[2,15]", UPDATED_AT: str(NOW)}),
    ],
    ids=["no-rate", "zero", "at-rest", "backwards", "more-than-a-century", "queued", "completed", "no-progress"],
)
def test_the_remaining_time_is_unknown(state: str, fields: Record) -> None:
    assert snap(state, fields).time_remaining is None


@pytest.mark.parametrize(
    "rate", ["[0,-5]", "[5,-5]", "[-2,15]", "-1", "NaN", "[1,1e400]", "[NaN,15]", '["a",15]', "1e400"]
)
@pytest.mark.parametrize("passed", [0, -60_000, 60_000])
def test_a_rate_that_another_program_has_stored_is_unknown(rate: str, passed: int) -> None:
    # Given a rate that no run writes, of now or of another time
    snapshot = snap(fields=moving(rate), now=NOW + passed)
    # When it is read
    # Then it is unknown
    assert snapshot.rate is None and snapshot.time_remaining is None


def test_the_largest_rate_stays_finite() -> None:
    assert snap(fields=moving("[1e300,1e300]"), now=NOW + 3_600_000).rate == 1e300
    assert snap(fields=moving("[1e300,1e3]"), now=NOW + 3_600_000).rate == pytest.approx(1e300 / 3.6)


def test_values_that_are_nested_too_deeply_for_an_encoder_are_cut() -> None:
    # Given values with the maximum depth for writers, and deeper ones
    deepest, deeper = "[" * 100 + "]" * 100, "[" * 101 + "]" * 101
    snapshot = snap(fields={":deepest": deepest, ":deeper": deeper})
    # When they are written as JSON
    found = json.loads(snapshot.to_json())
    # Then the first ones are complete, and the deeper ones are cut so that no encoder fails
    assert found["deepest"] == json.loads(deepest)
    assert found["deeper"] == json.loads("[" * 100 + "null" + "]" * 100)


# Fields


FULL: Record = {
    **MINIMUM, PROGRESS: "40", TOTAL: "80", ACTOR_NAME: '"import_rows"', QUEUE_NAME: '"default"', ENQUEUED_AT: str(NOW),
    UPDATED_AT: str(NOW), ATTEMPTS: "1", ":step": '"reading"', ":status": '"a user\'s"', ":nothing": "null",
}  # fmt: skip


def full() -> Snapshot:
    snapshot = take_snapshot("the id", FULL, NOW)
    assert snapshot is not None
    return snapshot


def test_fields_are_reached_by_their_names() -> None:
    snapshot = full()
    assert (snapshot["step"], snapshot["progress"], snapshot["actor_name"], snapshot["message_id"]) == (
        "reading", 40, "import_rows", "the id",
    )  # fmt: skip
    assert (snapshot.get("nothing", 5), snapshot.get("missing", 5), snapshot.get("missing")) == (None, 5, None)
    with pytest.raises(KeyError, match=r"^'missing'$"):
        snapshot["missing"]


def test_values_are_not_found_by_their_stored_names() -> None:
    # A user's field with that name is a different value
    assert [name for name in ("s", "v", "e", "n", "p", ":step") if name in full()] == []


def test_a_snapshot_contains_its_fields() -> None:
    snapshot = full()
    names = ["message_id", "status", "step", "nothing", "progress"]
    assert [name in snapshot for name in (*names, "missing", "started_at", 5, None)] == [True] * 5 + [False] * 4


def test_the_library_s_fields_win_over_users_of_their_names() -> None:
    # Such a field cannot be written by this package, but another program may have stored it
    assert full()["status"] == full().to_dict()["status"] == "working"


def test_a_snapshot_is_a_mapping_as_far_as_dict_is_concerned() -> None:
    snapshot = full()
    found = dict(snapshot)
    assert list(snapshot) == list(found) == list(snapshot.keys()) == list(snapshot.to_dict())
    assert {name: snapshot[name] for name in snapshot} == found
    assert all(name in snapshot for name in found)
    assert list(found)[:3] == ["message_id", "status", "progress"]
    assert found["enqueued_at"] == datetime(2026, 11, 24, 3, 0, 0, 123_000, timezone.utc)
    assert (found["percent"], found["finished"], found["step"]) == (50.0, False, "reading")


def test_fields_under_the_library_s_names_do_not_hide_them() -> None:
    # Given values that another program has stored under names that the library refuses
    snapshot = snap(fields={":percent": "200", ":scheduled_at": '"never"', ":step": '"reading"'})
    # Then they are not shown, and no call fails
    assert dict(snapshot)["percent"] is None and "scheduled_at" not in dict(snapshot)
    assert snapshot.to_dict()["step"] == "reading"


def test_users_fields_cannot_be_written() -> None:
    fields = full().fields
    assert fields["step"] == "reading"
    with pytest.raises(TypeError):
        fields["step"] = "x"  # type: ignore[index]


def test_to_dict_and_to_json_have_json_values() -> None:
    assert json.loads(full().to_json()) == {
        "message_id": "the id", "status": "working", "progress": 40, "total": 80, "actor_name": "import_rows",
        "queue_name": "default", "enqueued_at": "2026-11-24T03:00:00.123+00:00",
        "updated_at": "2026-11-24T03:00:00.123+00:00", "attempts": 1, "percent": 50.0, "finished": False,
        "retrying": False, "scheduled": False, "stalled": False, "duration": None, "time_remaining": None,
        "step": "reading", "nothing": None,
        "runs": [
            {"attempt": 1, "started_at": None, "ended_at": None, "outcome": None, "exception": None,
             "scheduled_at": None, "duration": None},
        ],
    }  # fmt: skip


def test_the_json_for_a_browser_shows_that_a_job_is_stalled() -> None:
    started = NOW - 90_000
    fields = {STARTED_AT: str(started), HEARTBEAT_AT: str(started), PROGRESS: "1", TOTAL: "null"}
    found = json.loads(snap(fields=fields).to_json())
    assert (found["stalled"], found["duration"], found["total"], found["percent"]) == (True, 90.0, None, None)
    fields = {STARTED_AT: str(NOW - 10_000), HEARTBEAT_AT: str(NOW), PROGRESS: "50", RATE: "5"}
    fields[RATE_WRITTEN_AT] = str(NOW)
    found = json.loads(snap(fields=fields).to_json())
    assert (found["stalled"], found["time_remaining"]) == (False, 10.0)


def test_every_encoder_writes_the_dict_alike() -> None:
    # Given a status with datetimes, durations, and numbers that JSON cannot express
    fields = {
        STARTED_AT: str(NOW - 1500),
        EXCEPTION: '{"type":"OSError","message":"no"}',
        ":rows": '[1,{"bad":NaN,"good":[2.5]}]',
        ":huge": "1e400",
    }
    snapshot = snap(fields=fields)
    # When the encoders of the standard library, of Flask and of Django write it
    app = flask.Flask(__name__)
    with app.app_context():
        by_flask = flask.jsonify(snapshot.to_dict()).get_data(as_text=True)
    by_django = json.dumps(snapshot.to_dict(), cls=DjangoJSONEncoder)
    # Then all texts are equal, and are valid JSON
    expected = json.loads(snapshot.to_json(), parse_constant=pytest.fail)
    assert json.loads(by_flask) == json.loads(by_django) == json.loads(json.dumps(snapshot.to_dict())) == expected
    assert (expected["rows"], expected["huge"], expected["duration"]) == ([1, {"bad": None, "good": [2.5]}], None, 1.5)


def test_names_may_be_selected_or_excluded() -> None:
    snapshot = full()
    assert snapshot.to_dict(only=("status", "percent", "missing")) == {"status": "working", "percent": 50.0}
    assert list(snapshot.to_dict(only=["step", "status"], exclude=["status"])) == ["step"]
    assert "step" not in snapshot.to_dict(exclude={"step"}) and "step" in snapshot.to_dict()
    assert json.loads(snapshot.to_json(only=["step"])) == {"step": "reading"}
    for parameter in ("only", "exclude"):
        with pytest.raises(TypeError, match=f"{parameter} must be an iterable of names, not the str 'step'"):
            snapshot.to_dict(**{parameter: "step"})


def test_private_values_are_left_out_on_request() -> None:
    stored = {ARGS: '["secret"]', KWARGS: '{"a":1}', TRACEBACK: '"File"', EXCEPTION: '{"type":"E","message":"no"}'}
    snapshot = snap(fields={**stored, ":step": '"reading"'})
    assert {"args", "kwargs", "traceback"} <= snapshot.to_dict().keys()
    found = json.loads(snapshot.to_json(private=False))
    assert found["exception"] == {"type": "E"} and found["step"] == "reading"
    assert found.keys().isdisjoint(("args", "kwargs", "traceback"))
    assert "secret" not in str(found) and "no" not in found["exception"].values()
    # And a user's own field with such a name is not left out
    assert snap(fields={":args": '"mine"'}).to_dict(private=False)["args"] == "mine"
    # And the snapshot still has all values
    assert snapshot.exception == {"type": "E", "message": "no"}


@pytest.mark.parametrize(
    ("fields", "text"), [({}, "working"), ({PROGRESS: "42"}, "working (42%)"), ({PROGRESS: "42.25"}, "working (42.2%)")]
)
def test_a_snapshot_as_text(fields: Record, text: str) -> None:
    assert str(snap(fields=fields)) == text
    assert repr(snap(fields=fields)) == f"<Snapshot of the id: {text}>"


# Frozen, copied, compared


@pytest.mark.parametrize("name", ["message_id", "state", "_values", "_now", "step", "anything"])
def test_a_snapshot_is_frozen(name: str) -> None:
    snapshot = full()
    with pytest.raises(AttributeError, match=f"{name!r}"):
        setattr(snapshot, name, "x")
    with pytest.raises(AttributeError, match=f"{name!r}"):
        delattr(snapshot, name)
    assert snapshot == full()


def test_values_of_a_snapshot_are_copies() -> None:
    # Given a snapshot with nested values
    deep = {"list": [{"a": [1]}, 2], "dict": {"b": {"c": 3}}}
    stored = {ARGS: '[["x"]]', KWARGS: '{"rows":[1]}', EXCEPTION: '{"type":"OSError","message":"no"}'}
    snapshot = snap(fields={":deep": json.dumps(deep), ":step": '"reading"', **stored})
    unchanged = snapshot.to_json()

    # When a caller changes all values that the snapshot returns
    def spoil(value: Any) -> None:
        for inner in list(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()):
            spoil(inner)
        if isinstance(value, dict):
            value["spoilt"] = True
        elif isinstance(value, list):
            value.append("spoilt")

    spoil(snapshot.to_dict())
    spoil(dict(snapshot.fields))
    spoil(snapshot.exception)
    for name in snapshot:
        spoil(snapshot[name])
        spoil(snapshot.get(name))
    # Then the snapshot is unchanged
    assert snapshot.to_json() == unchanged and snapshot["deep"] == deep


def test_a_field_that_is_nested_deeply_is_given_all_the_same() -> None:
    # Given a field of another program, nested as deep as the decoder can read
    depth = 400
    snapshot = snap(fields={":deep": "[" * depth + "]" * depth})
    # When it is read with little of the stack left
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + depth // 2)
    try:
        found = snapshot["deep"]
    finally:
        sys.setrecursionlimit(limit)
    # Then the value is complete
    for _ in range(depth - 1):
        (found,) = found
    assert found == []


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.copy,
        copy.deepcopy,
        *(lambda snapshot, n=n: pickle.loads(pickle.dumps(snapshot, n)) for n in range(pickle.HIGHEST_PROTOCOL + 1)),
    ],
    ids=["copy", "deepcopy", *(f"pickle-{n}" for n in range(pickle.HIGHEST_PROTOCOL + 1))],
)
def test_a_copy_is_the_same(duplicate: Any) -> None:
    snapshot = snap(fields=moving("[2,15]"))
    found = duplicate(snapshot)
    assert found == snapshot and hash(found) == hash(snapshot)
    assert [getattr(found, name) for name in GETTERS] == [getattr(snapshot, name) for name in GETTERS]


def test_snapshots_are_equal_where_message_and_values_are() -> None:
    # The time of the read makes no difference
    assert full() == take_snapshot("the id", FULL, NOW + 1)
    assert len({full(), take_snapshot("the id", FULL, NOW + 1)}) == 1
    assert full() != take_snapshot("another", FULL, NOW)
    assert full() != take_snapshot("the id", {**FULL, PROGRESS: "41"}, NOW)
    assert full() != "the id"


# Damage


def test_an_unknown_message_has_no_snapshot() -> None:
    assert take_snapshot("the id", None, NOW) is None


@pytest.mark.parametrize(
    "damage",
    [
        {STATE: "4"}, {STATE: "-1"}, {STATE: '"working"'}, {STATE: "1.0"}, {STATE: "true"}, {STATE: "null"},
        {STATE: ""}, {VERSION: '"3"'}, {VERSION: "null"}, {VERSION: ""}, {":step": "reading"}, {":step": ""},
        {":step": '"x'}, {":step": "1,2"}, {":step": "1],[2"}, {":step": "[" * 100_000}, {PROGRESS: "\uff19"},
        {PROGRESS: "NaN"}, {PROGRESS: "-1e999"}, {PROGRESS: "9" * 400}, {PROGRESS: "true"}, {":last": "1] "},
        {GENERATION: '"1"'}, {SEQUENCE: "[]"}, {LIVE_TTL: '"1"'}, {SCHEDULED_AT: "true"},
        {ATTEMPTS: "null"},
    ],
)  # fmt: skip
def test_a_damaged_record_has_no_snapshot_and_spoils_no_other(damage: Record) -> None:
    # Given a record that is damaged, among others
    records = [FULL, {**FULL, **damage}, None, FULL]
    # When they are decoded in one call
    found = take_snapshots(["a", "b", "c", "d"], records, NOW)
    # Then only the damaged one has no snapshot
    assert [snapshot and snapshot.message_id for snapshot in found] == ["a", None, None, "d"]
    assert found[0] is not None and found[0]["step"] == "reading"
    # And it has none if it is decoded alone
    assert take_snapshot("b", records[1], NOW) is None


@pytest.mark.parametrize("name", [STATE, VERSION])
def test_a_record_that_lacks_what_every_one_has_is_damaged(name: str) -> None:
    assert take_snapshot("the id", {stored: text for stored, text in FULL.items() if stored != name}, NOW) is None


json_texts = st.one_of(
    st.sampled_from(["null", "true", '""', '"x"', "[]", "{}", "[1,2]", '["x",1]', "0", "-1", "1e300", "1e999", "NaN"]),
    st.integers().map(str),
    st.sampled_from(["9" * 20, "9" * 308, "-" + "9" * 308, "9" * 400]),
)
library = st.dictionaries(st.sampled_from([*"tpaQESFUHBDRAxk", "ia", "ik", "it", "", ":x"]), json_texts, max_size=8)


@given(
    # Integers of more digits than this package writes can be read, but not calculated with
    fields=st.dictionaries(st.sampled_from("svnerqLTDAp"), json_texts.filter(lambda text: len(text) < 15), max_size=4),
    missing=st.sets(st.sampled_from(sorted(MINIMUM)), max_size=1),
)
def test_records_have_a_snapshot_if_updates_can_be_applied(fields: Record, missing: set[str]) -> None:
    # Given a record of any JSON values, which may lack required ones
    record = {name: text for name, text in {**MINIMUM, **fields}.items() if name not in missing}
    # When it is decoded twice, the second time with the cached names
    found = take_snapshot("the id", record, NOW), take_snapshot("the id", record, NOW)
    # Then there is a snapshot if an update can be applied to the record
    assert [snapshot is not None for snapshot in found] == [is_sound(record)] * 2


# Shapes


def test_of_two_fields_of_one_name_the_last_one_counts() -> None:
    # Given an item of another program
    names, texts = [*MINIMUM, ":a", STATE, ":b"], [*MINIMUM.values(), "1", "2", "3"]
    # When it is decoded
    snapshot = take_texts("the id", names, texts, NOW)
    # Then the snapshot has the values of the record that updates get
    assert snapshot is not None
    assert (snapshot.state, dict(snapshot.fields)) == ("completed", {"a": 1, "b": 3})
    assert snapshot == take_snapshot("the id", dict(zip(names, texts)), NOW)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_names_with_line_breaks_are_not_taken_for_others(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given records whose names are the same text if a line break joins them
    monkeypatch.setattr(room, "_shapes", {})
    fields = [{":a": "1", ":b": "2", ":c": "3"}, {":a\n:b": "1", ":c": "2"}, {":a": "1", ":b\n:c": "2"}]
    fields = fields[first:] + fields[:first]
    # When they are decoded one after the other
    found = take_snapshots(["m"] * 3, [{**MINIMUM, **some} for some in fields], NOW)
    # Then each snapshot has its own values
    for snapshot, some in zip(found, fields):
        assert snapshot is not None
        assert dict(snapshot.fields) == {name[1:]: int(text) for name, text in some.items()}


def test_a_snapshot_is_not_changed_by_the_next_of_its_shape() -> None:
    one, two = snap(fields={":step": "1"}), snap(fields={":step": "2"})
    assert (one["step"], two["step"]) == (1, 2)


def test_only_so_many_shapes_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an empty cache of shapes
    shapes: dict[str, Any] = {}
    monkeypatch.setattr(room, "_shapes", shapes)
    # When records have more shapes than the cache holds
    for number in range(room.MAX_SHAPES + 10):
        assert snap(fields={f":field {number}": str(number)})[f"field {number}"] == number
        assert 1 <= len(shapes) <= room.MAX_SHAPES
    # And when a record has very many names, or very long ones
    before = set(shapes)
    for fields in ({f":{number}": "1" for number in range(400)}, {":" + "x" * room.MAX_SHAPE_SIZE: "1"}):
        assert len(snap(fields=fields).fields) == len(fields)
    # Then its shape is not cached
    assert set(shapes) == before


@given(state=st.sampled_from("0123"), fields=library)
def test_any_stored_value_can_be_read(state: str, fields: Record) -> None:
    # Given a record with any JSON values, as another program may have written it
    snapshot = take_snapshot("the id", {**MINIMUM, STATE: state, **fields}, NOW)
    if snapshot is None:
        # Some records count as missing
        return
    # When all values are read
    for name in GETTERS:
        getattr(snapshot, name)
    # Then no read fails
    assert json.loads(snapshot.to_json())["message_id"] == "the id"
    assert set(snapshot) == set(snapshot.to_dict())
    assert str(snapshot) and repr(snapshot)


@pytest.mark.parametrize("name", [*"tSFHBx", "ia"])
def test_a_record_with_one_odd_value_is_still_seen(name: str) -> None:
    # An invalid value in an optional field does not hide the other fields.
    assert snap(fields={name: '"odd"', PROGRESS: "4"})["progress"] == 4
