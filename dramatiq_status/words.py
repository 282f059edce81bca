"""A status in words, as the command line and the pages show it: its state, its numbers and its times.

``web/static/dramatiq-status.js`` has the same rules for the browser; ``tests/web/test_display.py`` compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from math import ceil
from typing import Any, Final, NamedTuple

from .runs import Run, RunOutcome
from .snapshot import Snapshot
from .times import UNITS, duration, measured

#: Words for states, the one that needs most attention first.
FAILED: Final = "Failed"
STALLED: Final = "Stalled"
RETRYING: Final = "Retrying"
WORKING: Final = "Working"
SCHEDULED: Final = "Scheduled"
QUEUED: Final = "Queued"
CANCELLED: Final = "Cancelled"
SKIPPED: Final = "Skipped"
COMPLETED: Final = "Completed"
UNKNOWN: Final = "Unknown"
OFFLINE: Final = "Offline"

STATES: Final = (
    *(FAILED, STALLED, RETRYING, WORKING, SCHEDULED, QUEUED),
    *(CANCELLED, SKIPPED, COMPLETED, UNKNOWN, OFFLINE),
)


def state_of(snapshot: Snapshot) -> str:
    """Return the word for the state of a message."""
    if snapshot.finished:
        if snapshot.failed:
            return CANCELLED if snapshot.cancelled else FAILED
        return SKIPPED if snapshot.skipped else COMPLETED
    if snapshot.stalled:
        return STALLED
    if snapshot.working:
        return WORKING
    return RETRYING if snapshot.retrying else SCHEDULED if snapshot.scheduled else QUEUED


def number(value: float) -> str:
    """Write a number, with one decimal place at most.

    >>> number(1284), number(1.75), number(10.0)
    ('1,284', '1.8', '10')
    """
    text = f"{value:,.1f}"
    return text.removesuffix(".0")


def rate_of(snapshot: Snapshot) -> str:
    """Return the rate of a running message, with a decimal place below 10; an empty text while it is unknown."""
    rate = snapshot.rate if snapshot.working else None
    return f"{number(rate) if rate < 10 else f'{rate:,.0f}'}/s" if rate else ""


def count_of(done: Any, total: Any, *, percent: float | None, is_over: bool) -> str:
    """Return the progress as a text.

    Parameters:
      done(Any): The progress that was reported.
      total(Any): The total that was reported.
      percent(float): Percentage of the progress.  If no total was reported, the percentage is shown instead of a count.
      is_over(bool): Whether the message is finished.

    >>> count_of(48, 60, percent=80.0, is_over=False), count_of(1284, None, percent=None, is_over=False)
    ('48 of 60', '1,284 so far')
    """
    if not isinstance(done, (int, float)):
        return ""
    if isinstance(total, (int, float)):
        return f"{number(done)} of {number(total)}"
    if percent is not None:
        return ""
    return number(done) if is_over else f"{number(done)} so far"


def attempt_of(state: str, snapshot: Snapshot) -> str:
    """Return the number of the last run as ``attempt 2``, or of the next run while the message waits for a retry.
    Return an empty text for the first run.
    """
    attempt = snapshot.attempts + (state == RETRYING)
    return f"attempt {attempt:,}" if attempt > 1 else ""


def time_of(state: str, snapshot: Snapshot, now: datetime) -> str:
    """Return the time that matters in a state.

    Parameters:
      state(str): One of :data:`STATES`.
      snapshot(Snapshot)
      now(datetime)
    """
    if state == WORKING:
        left = snapshot.time_remaining
        if snapshot.percent is not None:
            return "" if left is None else f"{duration(max(1.0, left.total_seconds()))} left"
        return "" if snapshot.started_at is None else f"for {duration(now - snapshot.started_at)}"
    due = snapshot.scheduled_at
    if state in (RETRYING, SCHEDULED):
        verb = "again" if state == RETRYING else "starts"
        # A countdown ends with 1 s, not with 0 s.
        return f"{verb} in {duration(ceil((due - now).total_seconds()))}" if due is not None and due > now else ""
    if state == STALLED:
        last = snapshot.heartbeat_at or snapshot.updated_at
        return "" if last is None else f"no sign of life for {duration(now - last)}"
    if state == QUEUED:
        since = due or snapshot.enqueued_at
        return "" if since is None else f"waiting for {duration(now - since)}"
    if state == FAILED:
        attempts = snapshot.attempts
        return f"after {attempts:,} attempt{'' if attempts == 1 else 's'}" if attempts else ""
    if state == CANCELLED:
        if not snapshot.attempts:
            return "never ran"
        return "" if snapshot.duration is None else f"stopped after {measured(snapshot.duration)}"
    if state == COMPLETED and snapshot.duration is not None:
        return f"took {measured(snapshot.duration)}"
    return ""


def age(length: timedelta | float) -> str:
    """Write an age in one unit.

    >>> age(0.5), age(200)
    ('now', '3 min ago')
    """
    seconds = length.total_seconds() if isinstance(length, timedelta) else length
    found = (f"{int(seconds // size):,} {name} ago" for name, size in UNITS if seconds >= size)
    return next(found, "now")


def life_of(snapshot: Snapshot, now: datetime) -> str:
    """Return the time from the first enqueue until now, or until the end; an empty text where it is unknown."""
    begin, end = snapshot.enqueued_at, snapshot.finished_at if snapshot.finished else now
    if begin is None or end is None:
        return ""
    if snapshot.finished:
        return f"{measured(end - begin)} from its enqueue to its end"
    return f"{duration(end - begin)} since it was enqueued"


class Step(NamedTuple):
    """One step in the life of a message: a wait, a run, or its end.

    Parameters:
      state(str): One of :data:`STATES`, for the glyph.
      title(str): Title of the step, such as ``Run 1 failed``.
      at(datetime): Time at which the step began; None where it is unknown.
      run(Run): None for a wait, for the end, and for runs that are left out.
      length(timedelta): None where a time is unknown, and for the end.
      text(str): The length in words: ``waited 30 s``, ``ran 12 s``, ``28 s so far``.
      short(str): The length for a timeline that is drawn to scale: ``waited 30 s``, ``run 1, 12 s``.
      until(datetime): Time until which the broker delayed the message.
    """

    state: str
    title: str
    at: datetime | None
    run: Run | None = None
    length: timedelta | None = None
    text: str = ""
    short: str = ""
    until: datetime | None = None


#: State whose glyph is shown, and verb of the title, by outcome of a run.
_OUTCOMES: Final = {
    RunOutcome.COMPLETED: (COMPLETED, "completed"),
    RunOutcome.FAILED: (FAILED, "failed"),
    RunOutcome.RETRIED: (FAILED, "failed"),
    RunOutcome.REQUEUED: (RETRYING, "went back"),
    RunOutcome.LOST: (STALLED, "was lost"),
    RunOutcome.SKIPPED: (SKIPPED, "was skipped"),
    RunOutcome.CANCELLED: (CANCELLED, "was cancelled"),
}


def steps_of(snapshot: Snapshot, now: datetime) -> Iterator[Step]:
    """Yield the steps in the life of a message, the oldest first.

    A wait ends with the next run.  Runs that the store has left out are one step, without a time.
    """
    since, attempt, due = snapshot.enqueued_at, 0, None if snapshot.runs else snapshot.scheduled_at
    title, state = "Enqueued", QUEUED
    for run in snapshot.runs:
        left_out = run.attempt - attempt - 1
        if left_out > 0:
            if not attempt:
                yield Step(state, title, since)
            yield Step(UNKNOWN, f"{left_out:,} {'run' if left_out == 1 else 'runs'} left out", None)
        else:
            yield _wait(state, title, since, run.started_at, due, is_over=True)
        yield _run(run, snapshot, now)
        since, attempt, due = run.ended_at, run.attempt, run.scheduled_at
        title, state = "Queued again", RETRYING
    last = snapshot.runs[-1].outcome if snapshot.runs else RunOutcome.REQUEUED
    if last not in (RunOutcome.RETRIED, RunOutcome.REQUEUED):
        return
    yield _wait(state, title, since, snapshot.finished_at or now, due, is_over=snapshot.finished)
    if snapshot.finished:
        # The message has ended without a further run.
        word = state_of(snapshot)
        yield Step(word, f"{word} without a run", snapshot.finished_at)


def _wait(
    state: str, title: str, since: datetime | None, end: datetime | None, due: datetime | None, *, is_over: bool
) -> Step:
    if since is None or end is None:
        return Step(state, title, since, until=due)
    length = max(timedelta(0), end - since)
    text = f"waited {measured(length)}" if is_over else f"waiting for {duration(length)}"
    return Step(state, title, since, length=length, text=text, short=text, until=due)


def _run(run: Run, snapshot: Snapshot, now: datetime) -> Step:
    if run.outcome is None:
        state = state_of(snapshot)
        title = f"Run {run.attempt} is {state.lower()}"
        if run.started_at is None:
            return Step(state, title, None, run)
        length = max(timedelta(0), now - run.started_at)
        text = f"{duration(length)} so far"
        return Step(state, title, run.started_at, run, length, text, f"run {run.attempt}, {text}")
    state, verb = _OUTCOMES[run.outcome]
    if run.duration is None:
        return Step(state, f"Run {run.attempt} {verb}", run.started_at, run)
    lasted = measured(run.duration)
    title, short = f"Run {run.attempt} {verb}", f"run {run.attempt}, {lasted}"
    return Step(state, title, run.started_at, run, run.duration, f"ran {lasted}", short)
