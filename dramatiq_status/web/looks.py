"""What a person reads of a status: its state, what it does and when, as the element shows them.

``static/dramatiq-status.js`` has the same rules for the browser; ``tests/web/test_looks.py`` compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from ..snapshot import Snapshot

WORDS: Final = {
    **{"queued": "Queued", "scheduled": "Scheduled", "working": "Working", "retrying": "Retrying"},
    **{"stalled": "Stalled", "failed": "Failed", "completed": "Completed"},
}

_UNITS: Final = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def duration(seconds: float, *, exact: bool = False) -> str:
    """Format a duration: two units at most, seconds only below 20 minutes, tenths only if `exact`.

    >>> duration(9060), duration(80), duration(0.42, exact=True), duration(0.42)
    ('2 h 31 min', '1 min 20 s', '0.4 s', '0 s')
    """
    seconds = max(0.0, seconds)
    if seconds < 10 and exact:
        return f"{number(round(seconds, 1))} s"
    left = int(seconds + 0.5) if seconds < 1200 else int(seconds / 60 + 0.5) * 60
    found: list[str] = []
    for name, size in _UNITS:
        count, left = divmod(left, size)
        if count or (size == 1 and not found):
            found.append(f"{count:,} {name}")
        elif found:
            break
    return " ".join(found[:2])


def number(value: float) -> str:
    """Format a number, with one decimal place at most."""
    text = f"{value:,.1f}"
    return text.removesuffix(".0")


def age(seconds: float) -> str:
    """Format an age: one unit."""
    if seconds < 1:
        return "now"
    for name, size in _UNITS:
        if seconds >= size:
            return f"{int(seconds // size):,} {name} ago"
    return "now"


def seconds_since(then: datetime | None, now: datetime) -> float:
    """Return the seconds between two times, 0 if the first is unknown."""
    return 0.0 if then is None else (now - then).total_seconds()


@dataclass(frozen=True)
class Look:
    """What is shown of a status.

    Parameters:
      state(str): The state, or retrying or stalled.
      glyph(str): The state, or scheduled.
      facts(str): What the job does.
      next(str): What comes, and when.
      percent(float): Where the bar ends; None for none.
      sweep(bool): Whether the job runs and its total is unknown.
      error(tuple[str, str]): Type and text of the exception.
      spoken(str): All of it as one text.
    """

    state: str
    glyph: str
    facts: str
    next: str
    percent: float | None
    sweep: bool
    error: tuple[str, str] | None

    @property
    def word(self) -> str:
        """The state as a word."""
        return WORDS[self.glyph]

    @property
    def spoken(self) -> str:
        """All of it as one text, for screen readers."""
        value = f"{int(self.percent)}%" if self.state == "working" and self.percent is not None else self.word
        error = ": ".join(filter(None, self.error)) if self.error else ""
        return ", ".join(filter(None, (value, error or self.facts, self.next)))


def look_at(snapshot: Snapshot, shown: dict[str, Any], now: datetime, *, with_rate: bool = True) -> Look:
    """Work out what to show.

    Parameters:
      snapshot(Snapshot)
      shown(dict[str, Any]): The fields that may leave the server.
      now(datetime)
      with_rate(bool): Whether the facts contain the rate.
    """
    state = "stalled" if snapshot.stalled else "retrying" if snapshot.retrying else snapshot.state.value
    glyph, percent, sweep, error, upcoming = state, snapshot.percent, False, None, ""
    done, total = shown.get("progress"), shown.get("total")
    count = ""
    if isinstance(done, (int, float)):
        if isinstance(total, (int, float)):
            count = f"{number(done)} of {number(total)}"
        elif percent is None:
            count = f"{number(done)} so far"
    step = shown.get("step")
    facts = ["" if step is None else str(step), count]
    due = -seconds_since(snapshot.scheduled_at, now) if snapshot.scheduled_at else 0.0
    exception = shown.get("exception")
    if state in ("failed", "retrying") and isinstance(exception, dict):
        error = (str(exception.get("type", "")), str(exception.get("message", "")))
    if state == "queued":
        facts, percent = [snapshot.queue_name or ""], None
        if due > 0:
            glyph, upcoming = "scheduled", f"starts in {duration(due)}"
            facts = [f"at {snapshot.scheduled_at:%H:%M}"]
        elif snapshot.enqueued_at:
            upcoming = f"waiting for {duration(seconds_since(snapshot.scheduled_at or snapshot.enqueued_at, now))}"
    elif state == "working":
        sweep = percent is None
        if snapshot.rate and with_rate:
            facts.append(f"{number(snapshot.rate) if snapshot.rate < 10 else f'{snapshot.rate:,.0f}'}/s")
        if sweep and snapshot.started_at:
            upcoming = f"for {duration(seconds_since(snapshot.started_at, now))}"
        elif not sweep and snapshot.time_remaining is not None:
            upcoming = f"{duration(max(1.0, snapshot.time_remaining.total_seconds()))} left"
    elif state == "retrying":
        upcoming = f"attempt {snapshot.attempts + 1}" + (f", again in {duration(due)}" if due > 0 else "")
    elif state == "stalled":
        upcoming = f"no sign of life for {duration(seconds_since(snapshot.heartbeat_at or snapshot.updated_at, now))}"
    elif state == "failed":
        upcoming = f"after {snapshot.attempts} attempt{'' if snapshot.attempts == 1 else 's'}"
    else:
        facts, percent = [count], 100.0
        if snapshot.skipped:
            upcoming = "skipped"
        elif snapshot.duration is not None:
            upcoming = f"took {duration(snapshot.duration.total_seconds(), exact=True)}"
    return Look(state, glyph, " · ".join(filter(None, facts)), upcoming, percent, sweep, error)
