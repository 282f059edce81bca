"""The texts and the bar of a status, as the element shows them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from ..snapshot import Snapshot
from ..words import (
    CANCELLED,
    COMPLETED,
    FAILED,
    QUEUED,
    RETRYING,
    SCHEDULED,
    SKIPPED,
    STALLED,
    WORKING,
    attempt_of,
    count_of,
    rate_of,
    state_of,
    time_of,
)

#: Words of states by their names in the pages.
WORDS: Final = {
    word.lower(): word for word in (QUEUED, SCHEDULED, WORKING, RETRYING, STALLED, FAILED, CANCELLED, COMPLETED)
}


def seconds_since(then: datetime | None, now: datetime) -> float:
    """Return the seconds between two times, 0 if the first is unknown."""
    return 0.0 if then is None else (now - then).total_seconds()


def label_of(shown: dict[str, Any]) -> str:
    """Return the field ``label`` as a text, which is empty without a label."""
    label = shown.get("label")
    return "" if label is None else str(label)


def name_of(snapshot: Snapshot, shown: dict[str, Any]) -> str:
    """Return the name of a job: its label, or else its actor's name."""
    return label_of(shown) or snapshot.actor_name or "job"


@dataclass(frozen=True)
class StatusDisplay:
    """The texts and the bar of one status.

    Parameters:
      state(str): The state, or cancelled, retrying or stalled.
      glyph(str): The value of `state`, or scheduled.
      facts(str): Step, count and rate; the queue of a queued job; the start of a scheduled one; the reason of a
        cancellation.
      next(str): ``17 s left``, ``attempt 2, again in 24 s``, ``took 28 s``, ``skipped``.
      percent(float): Percentage at which the bar ends; None if it is unknown, and for a queued or scheduled job.
      sweep(bool): Whether the job runs and its percentage is unknown.
      error(tuple[str, str]): Type and text of the exception of a job that failed or waits for a retry, else None.
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
        """Percentage or word, error or facts, and `next`, as one text for screen readers."""
        value = f"{int(self.percent)}%" if self.state == "working" and self.percent is not None else self.word
        error = ": ".join(filter(None, self.error)) if self.error else ""
        return ", ".join(filter(None, (value, error or self.facts, self.next)))


def display_of(snapshot: Snapshot, shown: dict[str, Any], now: datetime, *, with_rate: bool = True) -> StatusDisplay:
    """Choose the texts and the bar of a status.

    Parameters:
      snapshot(Snapshot)
      shown(dict[str, Any]): The fields that may leave the server.
      now(datetime)
      with_rate(bool): Whether the facts contain the rate.
    """
    word = state_of(snapshot)
    state = {SCHEDULED: "queued", SKIPPED: "completed"}.get(word, word.lower())
    glyph = "scheduled" if word == SCHEDULED else state
    percent, sweep, error = snapshot.percent, False, None
    upcoming = time_of(word, snapshot, now)
    count = count_of(shown.get("progress"), shown.get("total"), percent=percent, is_over=snapshot.finished)
    step = shown.get("step")
    request = "" if snapshot.cancel_requested_at is None else "asked to stop"
    facts = [request, "" if step is None else str(step), count]
    exception = shown.get("exception")
    if word in (FAILED, RETRYING) and isinstance(exception, dict):
        error = (str(exception.get("type", "")), str(exception.get("message", "")))
    if word == SCHEDULED:
        facts, percent = [f"at {snapshot.scheduled_at:%H:%M} UTC"], None
    elif word == QUEUED:
        facts, percent = [snapshot.queue_name or ""], None
    elif word == WORKING:
        sweep = percent is None
        if with_rate:
            facts.append(rate_of(snapshot))
    elif word == RETRYING:
        upcoming = ", ".join(filter(None, (attempt_of(word, snapshot), upcoming)))
    elif word == CANCELLED:
        facts = [snapshot.cancel_reason or ""]
    elif word in (COMPLETED, SKIPPED):
        facts, percent = [count], 100.0
        if word == SKIPPED:
            upcoming = "skipped"
    return StatusDisplay(state, glyph, " · ".join(filter(None, facts)), upcoming, percent, sweep, error)
