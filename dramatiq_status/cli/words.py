"""A status in words: its state, its numbers, and its times."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from ..snapshot import Snapshot
from ..times import span
from .text import clean, pad

#: Names of states as people read them, from the one that needs attention most.
FAILED: Final = "Failed"
STALLED: Final = "Stalled"
RETRYING: Final = "Retrying"
WORKING: Final = "Working"
SCHEDULED: Final = "Scheduled"
QUEUED: Final = "Queued"
SKIPPED: Final = "Skipped"
COMPLETED: Final = "Completed"
UNKNOWN: Final = "Unknown"
OFFLINE: Final = "Offline"

STATES: Final = (FAILED, STALLED, RETRYING, WORKING, SCHEDULED, QUEUED, SKIPPED, COMPLETED, UNKNOWN, OFFLINE)


#: Least time from the end of a job to a change of its bar by another message, and the longest time since this change.
_MOVED: Final = timedelta(milliseconds=300)
_STILL: Final = timedelta(seconds=10)


class Facts(NamedTuple):
    """The texts about one job.  All are clean; a text is empty where the store does not have the fact.

    Parameters:
      state(str): One of :data:`STATES`.
      name(str): The field ``label`` of the job, or else its actor's name.
      message_id(str)
      percent(int): From 0 to 100; None without a total.
      step(str)
      done(str): ``48 of 60``, or ``1,284 so far``.
      rate(str): ``1.7/s``.
      reason(str): Type and message of the last exception of a job that failed or waits for its retry.
      attempt(str): ``attempt 2``, from the second one on.
      time(str): ``17 s left``, ``again in 24 s``, ``took 28 s``.
      moves(bool): Whether the job is over, and other messages still count on its bar.
    """

    state: str
    name: str
    message_id: str
    percent: int | None = None
    step: str = ""
    done: str = ""
    rate: str = ""
    reason: str = ""
    attempt: str = ""
    time: str = ""
    moves: bool = False

    @property
    def detail(self) -> str:
        """The reason, or else the step, the count, the rate and the attempt."""
        if self.reason:
            return self.reason
        return " · ".join(filter(None, (self.step, self.done, self.rate, self.attempt)))

    def line(self, *, is_over: bool) -> str:
        """Return the facts as one line for a pipe, with two spaces between them.

        Parameters:
          is_over(bool): Whether the job is over: the line then has no percentage.
        """
        percent = "" if self.percent is None or is_over else f"{self.percent}%"
        parts = (pad(self.state, 9), self.message_id, self.name, percent, self.detail, self.time)
        return "  ".join(filter(None, parts))


def facts_of(message_id: str, snapshot: Snapshot | None, now: datetime) -> Facts:
    """Put a status into words.

    Parameters:
      message_id(str)
      snapshot(Snapshot): None for an unknown message.
      now(datetime)
    """
    if snapshot is None:
        return Facts(UNKNOWN, "", clean(message_id))
    state = state_of(snapshot)
    is_over = snapshot.finished or state == RETRYING
    moves = _moves(snapshot, now)
    exception = snapshot.exception if is_over and state != COMPLETED else None
    return Facts(
        state,
        name_of(snapshot),
        clean(message_id),
        None if snapshot.percent is None else int(snapshot.percent),
        "" if snapshot.finished else clean(_text_of(snapshot.get("step"))),
        _count_of(snapshot),
        f"{number(snapshot.rate)}/s" if snapshot.working and snapshot.rate else "",
        "" if exception is None else reason_of(exception),
        f"attempt {snapshot.attempts}" if snapshot.attempts > 1 else "",
        "" if moves else time_of(state, snapshot, now),
        moves,
    )


def _moves(snapshot: Snapshot, now: datetime) -> bool:
    """Return whether a completed job's bar has moved since its end, a short time ago, and is not full."""
    end, last = snapshot.finished_at, snapshot.updated_at
    if not snapshot.completed or snapshot.percent in (None, 100.0) or end is None or last is None:
        return False
    return last - end > _MOVED and now - last < _STILL


def state_of(snapshot: Snapshot) -> str:
    """Return the word for the state of a message."""
    if snapshot.finished:
        return SKIPPED if snapshot.skipped else FAILED if snapshot.failed else COMPLETED
    if snapshot.stalled:
        return STALLED
    if snapshot.working:
        return WORKING
    return RETRYING if snapshot.retrying else SCHEDULED if snapshot.scheduled else QUEUED


def name_of(snapshot: Snapshot) -> str:
    """Return the name of a job: its field ``label``, or else its actor's name."""
    return clean(_text_of(snapshot.get("label")) or snapshot.actor_name or "")


def reason_of(exception: dict[str, str]) -> str:
    """Return the type and the message of an exception in one line."""
    kind, message = str(exception.get("type") or "Exception"), str(exception.get("message") or "")
    return clean(f"{kind}: {message}" if message else kind)


def time_of(state: str, snapshot: Snapshot, now: datetime) -> str:
    """Return the time that matters in a state."""
    remaining, duration = snapshot.time_remaining, snapshot.duration
    if state == WORKING and remaining is not None:
        return f"{seconds(remaining)} left" if remaining >= timedelta(seconds=1) else ""
    if state == WORKING and duration is not None:
        return f"for {seconds(duration)}" if duration >= timedelta(seconds=1) else ""
    if state in (RETRYING, SCHEDULED) and snapshot.scheduled_at is not None:
        return f"{'again' if state == RETRYING else 'starts'} in {seconds(snapshot.scheduled_at - now)}"
    if state == STALLED:
        last = snapshot.heartbeat_at or snapshot.updated_at
        return "" if last is None else f"no sign of life for {seconds(now - last)}"
    if state == QUEUED and snapshot.enqueued_at is not None:
        return f"waiting for {seconds(now - snapshot.enqueued_at)}"
    if state == FAILED and snapshot.attempts > 1:
        return f"after {snapshot.attempts} attempts"
    if state == COMPLETED and duration is not None:
        return f"took {span(duration)}"
    return ""


def number(value: float) -> str:
    """Write a number for people.

    >>> number(1284), number(1.75), number(98.4), number(10.0)
    ('1,284', '1.7', '98', '10')
    """
    if isinstance(value, int) or value >= 10 or value == int(value):
        return f"{int(value):,}"
    return f"{int(value * 10) / 10:g}"


def ago(time: datetime, now: datetime) -> str:
    """Return the age of a time.

    >>> now = datetime(2026, 11, 27)
    >>> ago(now - timedelta(minutes=3), now), ago(now, now)
    ('3 min ago', 'now')
    """
    return "now" if now - time < timedelta(seconds=1) else f"{seconds(now - time)} ago"


def seconds(duration: timedelta) -> str:
    """Write a duration in whole seconds, in its two largest units.

    >>> seconds(timedelta(seconds=5.9)), seconds(timedelta(seconds=75))
    ('5 s', '1 min 15 s')
    """
    return span(timedelta(seconds=max(0, int(duration.total_seconds()))))


def _count_of(snapshot: Snapshot) -> str:
    done, total = snapshot.get("progress"), snapshot.get("total")
    if not isinstance(done, (int, float)) or (total is None and not done):
        return ""
    if total is None:
        return f"{number(done)} so far" if not snapshot.finished else number(done)
    if "total" not in snapshot or not isinstance(total, (int, float)):
        # A progress without a total counts to 100: the percentage shows it.
        return ""
    return f"{number(done)} of {number(total)}"


def _text_of(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)
