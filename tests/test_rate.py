"""How fast a progress moves, and how long it will still take: by clocks of the tests' own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dramatiq_status.backends import StubBackend
from dramatiq_status.circuit_breaker import CircuitBreaker
from dramatiq_status.decoding import take_snapshot
from dramatiq_status.rate import MIN_INTERVAL, TIME_CONSTANT, TRUSTED_AFTER, RateMeter, slowed
from dramatiq_status.record import HEARTBEAT_AT, PROGRESS, RATE, STARTED_AT, STATE, TOTAL
from dramatiq_status.snapshot import Snapshot
from dramatiq_status.update import EnqueueId, Kind, Outcome, Update, apply
from dramatiq_status.writer import MessageBuffer, Start, Write, Writer

#: Half-life of a rate, in seconds without progress.
HALF_LIFE = TIME_CONSTANT * math.log(2)

gaps = st.floats(MIN_INTERVAL, 100)
steps = st.integers(0, 10**6)


def measured(steps: Sequence[tuple[float, float]], meter: RateMeter | None = None) -> tuple[RateMeter, float]:
    """Return a meter that has measured steps, and the time. A step has seconds, and the units done in them."""
    meter, at, count = meter or RateMeter(), 0.0, 0.0
    meter.begin(0, 0.0)
    for passed, done in steps:
        at, count = at + passed, count + done
        meter.observe(count, at)
    return meter, at


def rate_of(*steps: tuple[float, float]) -> float:
    meter, at = measured(steps)
    rate = meter.rate_at(at)
    assert rate is not None
    return rate


# The meter


@given(st.lists(gaps, min_size=1, max_size=30), st.floats(0.001, 1e6))
def test_a_constant_speed_is_the_rate(gaps: list[float], speed: float) -> None:
    # Given progress at one speed, however seldom it is reported
    # When the rate is read
    # Then it is this speed, from the first report on
    assert rate_of(*((gap, gap * speed) for gap in gaps)) == pytest.approx(speed, rel=1e-6)


@given(st.lists(st.tuples(gaps, steps), min_size=1, max_size=30))
def test_the_rate_lies_among_the_speeds(found: list[tuple[float, int]]) -> None:
    # Given progress at many speeds
    speeds = [done / passed for passed, done in found]
    # When the rate is read
    # Then it is between the slowest and the fastest of them
    assert min(speeds) * (1 - 1e-6) - 1e-9 <= rate_of(*found) <= max(speeds) * (1 + 1e-6) + 1e-9


@given(st.lists(st.tuples(gaps, st.integers(-1000, 1000)), min_size=1, max_size=30), st.floats(0, 1e5))
def test_a_rate_is_never_negative(found: list[tuple[float, int]], later: float) -> None:
    # Given progress that also goes back
    meter, at = measured(found)
    # When the rate is read, at once or later
    rate = meter.rate_at(at + later)
    # Then it is not negative
    assert rate is not None and rate >= 0


@given(st.lists(st.tuples(st.floats(0, MIN_INTERVAL / 100), steps), min_size=1, max_size=50))
def test_reports_in_quick_succession_are_measured_together(found: list[tuple[float, int]]) -> None:
    # Given reports that follow each other too closely to measure a speed between two of them
    meter, at = measured(found)
    assert meter.rate_at(at) is None
    # When enough time has passed
    total = sum(done for _, done in found)
    meter.observe(total, 10.0)
    # Then the rate includes all of them
    assert meter.rate_at(10.0) == pytest.approx(total / 10)


def test_a_pause_halves_the_rate_once_each_half_life() -> None:
    # Given a steady speed
    steady = [(1.0, 10.0)] * 600
    # When no progress was made for one half-life, or two
    # Then a half, or a quarter, of the rate is left
    assert rate_of(*steady, (HALF_LIFE, 0)) == pytest.approx(5)
    assert rate_of(*steady, (2 * HALF_LIFE, 0)) == pytest.approx(2.5)
    # And the number of reports during the pause makes no difference
    assert rate_of(*steady, *[(HALF_LIFE / 4, 0)] * 4) == pytest.approx(5)


def test_the_rate_comes_back_after_a_pause() -> None:
    # Given a pause of a minute in the middle of steady work
    paused = [(1.0, 10.0)] * 60 + [(60.0, 0.0)]
    # When the work has gone on for a while
    # Then the rate rises to the speed that it had, and never beyond it
    after = [rate_of(*paused, *[(1.0, 10.0)] * seconds) for seconds in range(0, 91, 15)]
    assert after == sorted(after) and after[0] < 0.5
    assert after[3] == pytest.approx(10, rel=0.06) and after[-1] == pytest.approx(10, rel=0.01) and max(after) <= 10


def test_a_slow_start_is_forgotten() -> None:
    # Given a minute of slow work
    # When another minute of fast work follows
    # Then the rate is that of the second minute; a mean since the start would be 50
    assert rate_of(*[(1.0, 1.0)] * 60, *[(1.0, 100.0)] * 60) == pytest.approx(100, rel=0.03)


def test_a_rate_is_unknown_until_there_is_a_first_speed() -> None:
    # Given a meter without any observation
    meter = RateMeter()
    # Then its rate is unknown
    assert not meter.begun and meter.rate_at(0.0) is None and meter.text_at(0.0) is None
    # And its first observation is only the beginning, because the time before it is unknown
    meter.observe(1000, 50.0)
    assert meter.begun and meter.rate_at(50.0) is None
    meter.observe(1010, 51.0)
    assert meter.rate_at(51.0) == pytest.approx(10)


# Silence


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0.1, 1e4))
def test_silence_only_slows(rate: float, silence: float, more: float, patience: float) -> None:
    # Given a rate and a silence
    # When the silence goes on
    # Then the rate falls or stands, and is not negative
    assert 0 <= slowed(rate, silence + more, patience) <= slowed(rate, silence, patience) <= rate


def test_a_rate_stands_for_as_long_as_progress_usually_takes() -> None:
    # Given a job that reports every minute
    meter, at = measured([(60.0, 600.0)] * 10)
    # When it reports nothing for a minute
    # Then its rate stays, and falls from then on
    assert meter.rate_at(at + 59) == pytest.approx(10)
    assert meter.rate_at(at + 120) == pytest.approx(5)
    # And the rate of a job that reports each second falls sooner
    meter, at = measured([(1.0, 10.0)] * 100)
    assert meter.rate_at(at + TIME_CONSTANT) == pytest.approx(10)
    assert meter.rate_at(at + 4 * TIME_CONSTANT) == pytest.approx(2.5)


# What a run stores


class Clock:
    """A stand-in for the module `time` in the writer."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("buffer", "merging"):
        monkeypatch.setattr(f"dramatiq_status.writer.{module}.time", clock)
    return clock


class Idle(Writer):
    """A writer that sends nothing by itself."""

    def put(self, buffer: MessageBuffer) -> None:
        pass


class Run:
    """A run whose writes the test sends."""

    def __init__(self, clock: Clock, *, attempts: int = 1, backend: StubBackend | None = None) -> None:
        self.clock = clock
        self.backend = backend or StubBackend()
        enqueue_id = EnqueueId(1, attempts)
        self.buffer = MessageBuffer(
            Idle(self.backend, CircuitBreaker("StubBackend")),
            "m",
            kind=Kind.RUN,
            run_token=attempts,
            enqueue_id=enqueue_id,
        )
        self.backend.update("m", Update(Kind.ENQUEUE, enqueue_id))
        self.buffer.add(Start({}, attempts))

    def write(self, **fields: str) -> None:
        names = {"progress": PROGRESS, "total": TOTAL}
        self.buffer.add(Write({names.get(name, f":{name}"): text for name, text in fields.items()}))
        # The writer merges the operations, as it does after a signal.
        self.buffer.collect(self.clock.now)

    def send(self, *, after: float = 0) -> Snapshot:
        """Send what was written, so many seconds later, and look at the status."""
        self.clock.now += after
        updates = self.buffer.take(self.clock.now)
        outcomes = [self.backend.update("m", update) for update in updates]
        assert set(outcomes) <= {Outcome.APPLIED}
        self.buffer.settle(updates, outcomes)
        snapshot = take_snapshot("m", self.backend.read("m"), self.backend.now())
        assert snapshot is not None
        return snapshot


def test_a_run_stores_its_rate(clock: Clock) -> None:
    # Given a run with a total
    run = Run(clock)
    run.write(total="100")
    assert run.send().rate is None
    # When it has counted to 20 in ten seconds
    for _ in range(20):
        run.buffer.increment()
    snapshot = run.send(after=10)
    # Then its status has the rate and the time that remains
    assert snapshot.rate == snapshot["rate"] == snapshot.to_dict()["rate"] == 2
    assert snapshot.time_remaining == timedelta(seconds=40)


def test_a_progress_that_is_set_has_a_rate_too(clock: Clock) -> None:
    # Given a run that sets its progress, each time with the total
    run = Run(clock)
    for second in range(11):
        run.write(progress=str(5 * second), total="100")
        snapshot = run.send()
        clock.now += 1
    # Then its rate is measured as well
    assert snapshot.rate == pytest.approx(5)
    # And also if the total grows while more work is found
    for second in range(11, 21):
        run.write(progress=str(5 * second), total=str(100 * second))
        snapshot = run.send()
        clock.now += 1
    assert snapshot.rate == pytest.approx(5)


@pytest.mark.parametrize("start", [{"progress": "0", "total": "7"}, {"progress": "0"}, {"progress": "3"}])
def test_a_new_leg_starts_over(clock: Clock, start: dict[str, str]) -> None:
    # Given a run with a rate
    run = Run(clock)
    run.write(progress="0", total="100")
    run.send()
    run.buffer.increment(50)
    assert run.send(after=10).rate == 5
    # When a new count begins
    run.write(**start)
    snapshot = run.send()
    # Then the old rate is gone
    assert (snapshot.rate, snapshot["rate"], snapshot.time_remaining) == (None, None, None)
    assert run.buffer.counts()[2] is None
    # And the new rate is measured from there
    run.buffer.increment(30)
    assert run.send(after=3).rate == 10


def test_a_leg_is_measured_from_where_it_begins(clock: Clock) -> None:
    # Given a run that has spent ten minutes before its first count begins
    run = Run(clock)
    clock.now += 600
    run.write(total="100")
    run.send()
    # When its progress is 30 after three seconds
    clock.now += 3
    run.write(progress="30")
    # Then its rate is that of this time
    assert run.send().rate == 10


@pytest.mark.parametrize(
    "first", ["total, progress", "increment, total", "total and progress", "increment, flush, total"]
)
def test_work_that_is_taken_up_is_no_speed(clock: Clock, first: str) -> None:
    # Given a run that sets the progress at which it resumes its work, before or after the total
    run = Run(clock)
    if first == "total, progress":
        run.write(total="10000")
        run.send(after=0.01)
        run.write(progress="5000")
    elif first == "total and progress":
        run.write(total="10000", progress="5000")
    else:
        run.buffer.increment(5000)
        if "flush" in first:
            run.send(after=0.01)
        run.write(total="10000")
    assert run.send(after=0.01).rate is None
    # When its progress increases by 20 a second, for ten seconds
    for _ in range(10):
        run.buffer.increment(20)
        snapshot = run.send(after=1)
    # Then its rate is 20, without the progress that it had found
    assert snapshot.rate == pytest.approx(20, rel=0.02)
    assert snapshot.time_remaining is not None and snapshot.time_remaining > timedelta(seconds=230)


def test_only_the_first_progress_takes_up_work(clock: Clock) -> None:
    # Given a run with a total that sets its progress at once, and often after that
    run = Run(clock)
    run.write(total="10000")
    for tenth in range(1, 101):
        run.write(progress=str(tenth))
        snapshot = run.send(after=0.1)
    # When it has done so for ten seconds
    # Then its rate is that of this time
    assert snapshot.rate == pytest.approx(10, rel=0.02)


def test_the_rate_is_unknown_after_a_first_count_out_of_nowhere(clock: Clock) -> None:
    # Given a run that has set neither progress nor total
    run = Run(clock)
    run.buffer.increment(1000)
    # When it counts for the first time
    # Then the rate is unknown
    assert run.send(after=60).rate is None
    run.buffer.increment(10)
    assert run.send(after=1).rate == 10


def test_a_retry_starts_over(clock: Clock) -> None:
    # Given a run with a rate
    run = Run(clock)
    run.write(progress="0")
    run.buffer.increment(50)
    assert run.send(after=10).rate == 5
    # When the message runs again
    again = Run(clock, attempts=2, backend=run.backend)
    # Then the new run has no rate
    snapshot = again.send()
    assert (snapshot.attempts, snapshot.rate, snapshot.get("progress")) == (2, None, None)


def test_other_writes_show_that_no_progress_is_made(clock: Clock) -> None:
    # Given a run with a rate
    run = Run(clock)
    run.write(progress="0")
    run.buffer.increment(100)
    assert run.send(after=10).rate == 10
    # When it writes other fields for a minute without progress
    for second in range(60):
        run.write(step=str(second))
        snapshot = run.send(after=1)
    # Then its rate has fallen
    assert snapshot.rate == pytest.approx(10 * TIME_CONSTANT / 60)


def test_a_lost_record_is_restored_with_the_rate(clock: Clock) -> None:
    # Given a run with a rate, whose record the store has lost
    run = Run(clock)
    run.write(progress="0")
    run.buffer.increment(100)
    run.send(after=10)
    run.backend.clear()
    # When it writes again
    run.write(step="1")
    (update,) = run.buffer.take(clock.now)
    assert run.buffer.settle([update], [run.backend.update("m", update)])
    # Then the rate comes back with everything else
    assert run.send().rate == 10


@pytest.mark.parametrize("first", [0.5, 5.0, 30.0])
def test_the_remaining_time_is_plausible_after_a_slow_start(clock: Clock, first: float) -> None:
    # Given a run whose first item of many takes as long as all others together
    run = Run(clock)
    run.write(progress="0", total="100001")
    run.send()
    run.buffer.increment()
    snapshot = run.send(after=first)
    # When only the first item is done
    # Then there is a rate, and the time that remains is unknown, because it would be absurdly long
    assert snapshot.rate == pytest.approx(1 / first, rel=0.001) and snapshot.time_remaining is None
    # When the other items follow
    longest = 0.0
    for _ in range(19):
        run.buffer.increment(5000)
        snapshot = run.send(after=first / 20)
        remaining = snapshot.time_remaining
        longest = max(longest, remaining.total_seconds() if remaining is not None else 0.0)
    # Then the time that remains is always plausible, and right in the end
    assert 0 < longest < 40 * first
    assert snapshot.time_remaining is not None and snapshot.time_remaining <= timedelta(seconds=first)


def test_a_rate_is_trusted_after_some_time(clock: Clock) -> None:
    # Given a run that takes a week
    run = Run(clock)
    run.write(progress="0", total="604800")
    run.send()
    # When it has gone on for some seconds at one speed
    seen = []
    for _ in range(12):
        run.buffer.increment()
        seen.append(run.send(after=1).time_remaining is not None)
    # Then the time that remains is known from then on
    first = seen.index(True)
    assert first == math.ceil(TRUSTED_AFTER) - 1 and all(seen[first:])
    # And in a new count it is unknown until that has gone on for some seconds, too
    run.write(progress="0")
    run.buffer.increment()
    assert run.send(after=1).time_remaining is None


def test_little_time_remains_from_the_first_report_on(clock: Clock) -> None:
    # Given a run that has done a tenth in half a second
    run = Run(clock)
    run.write(progress="0", total="100")
    run.send()
    run.buffer.increment(10)
    # Then the time that remains is known
    assert run.send(after=0.5).time_remaining == timedelta(seconds=4.5)


# What a reader sees


def read(rate: str, *, silent: int = 0, state: int = 1, heartbeat: int | None = None) -> Snapshot:
    """Return a status at 40 of 100 whose last write was so many milliseconds ago."""
    timestamp = 1_000_000_000_000
    fields = {PROGRESS: "40", TOTAL: "100", RATE: rate, STARTED_AT: str(timestamp)}
    update = Update(Kind.RUN, EnqueueId(1, 1), 1, 1, start=True, create=True, fields=fields)
    record = apply(None, update, timestamp).record
    assert record is not None
    record[HEARTBEAT_AT] = str(timestamp + silent)
    if heartbeat is not None:
        record[HEARTBEAT_AT] = str(heartbeat)
    record[STATE] = str(state)
    snapshot = take_snapshot("m", record, timestamp + silent)
    assert snapshot is not None
    return snapshot


@pytest.mark.parametrize(
    ("rate", "silent", "expected", "remaining"),
    [
        ("10", 0, 10.0, 6),
        ("10", 15_000, 10.0, 6),
        ("10", 60_000, 2.5, 24),
        ("[10,120.0]", 60_000, 10.0, 6),
        ("[10,120.0]", 240_000, 5.0, 12),
        ("[10,15,0.5]", 0, 10.0, 6),
        ("[10,15,0.25]", 0, 10.0, None),
        ("[10,15,0.5]", 60_000, 2.5, None),
        ('[10,15,"x"]', 0, 10.0, 6),
        ("[10,15,1,1]", 0, None, None),
        ("0", 0, 0.0, None),
        ("1e-300", 0, 1e-300, None),
        ("null", 0, None, None),
        ("[1]", 0, None, None),
        ('"fast"', 0, None, None),
    ],
)
def test_a_reader_gets_the_present_rate(rate: str, silent: int, expected: float | None, remaining: int | None) -> None:
    # Given a rate that a run has stored some time ago
    snapshot = read(rate, silent=silent)
    # Then a reader gets the present rate, and the time that remains by it
    assert snapshot.rate == expected
    assert snapshot.time_remaining == (None if remaining is None else timedelta(seconds=remaining))


@pytest.mark.parametrize("case", [{"state": 0}, {"heartbeat": 1}])
def test_nothing_remains_where_nothing_runs(case: dict[str, Any]) -> None:
    # Given a message that waits, or whose worker is gone
    # When the time that remains is read
    # Then it is unknown
    assert read("10", **case).time_remaining is None
