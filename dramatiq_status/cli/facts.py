"""The texts about one job, made harmless for a terminal."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from ..snapshot import Snapshot
from ..words import CANCELLED, COMPLETED, RETRYING, UNKNOWN, attempt_of, count_of, rate_of, state_of, time_of
from .text import clean, pad

#: Minimum time from the end of a job to the last change of its status, and maximum age of this change.  If both hold,
#: other messages count as still incrementing the progress of the job.
_MOVED: Final = timedelta(milliseconds=300)
_STILL: Final = timedelta(seconds=10)


class Facts(NamedTuple):
    """The texts about one job.  Each is harmless for a terminal, and empty if there is nothing to show.

    Parameters:
      state(str): One of :data:`.words.STATES`.
      name(str): The field ``label`` of the job, or else its actor's name.
      message_id(str)
      percent(int): From 0 to 100; None if the progress or the total is unknown.
      step(str): The field ``step`` of an unfinished job, the reason of a cancellation, or ``its messages still run``.
      done(str): ``48 of 60``, or ``1,284 so far``.
      rate(str): ``1.7/s``.
      reason(str): Type and message of the last exception of a job that failed or waits for its retry.
      attempt(str): ``attempt 2``, from the second one on.
      time(str): ``17 s left``, ``again in 24 s``, ``took 28 s``.
      moves(bool): Whether the job is over, and other messages still increment its progress.
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
    # If no total was set, the total is 100, and the percentage already shows the progress.
    total = snapshot.get("total") if "total" in snapshot else None
    moves = _has_moved_since_end(snapshot, now)
    exception = snapshot.exception if is_over and state not in (COMPLETED, CANCELLED) else None
    step = snapshot.cancel_reason if state == CANCELLED else "" if snapshot.finished else snapshot.get("step")
    return Facts(
        state,
        name_of(snapshot),
        clean(message_id),
        None if snapshot.percent is None else int(snapshot.percent),
        "its messages still run" if moves else clean(_text_of(step)),
        # The reason of a cancellation is more useful than the count, and takes its place.
        ""
        if state == CANCELLED and step
        else count_of(snapshot.get("progress"), total, percent=snapshot.percent, is_over=snapshot.finished),
        rate_of(snapshot),
        "" if exception is None else reason_of(exception),
        attempt_of(state, snapshot),
        "" if moves else time_of(state, snapshot, now),
        moves,
    )


def _has_moved_since_end(snapshot: Snapshot, now: datetime) -> bool:
    """Return whether a completed job is below 100 %, and its status has changed after its end and within the last 10
    seconds.
    """
    end, last = snapshot.finished_at, snapshot.updated_at
    if not snapshot.completed or snapshot.percent in (None, 100.0) or end is None or last is None:
        return False
    return last - end > _MOVED and now - last < _STILL


def name_of(snapshot: Snapshot) -> str:
    """Return the name of a job: its field ``label``, or else its actor's name."""
    return clean(_text_of(snapshot.get("label")) or snapshot.actor_name or "")


def reason_of(exception: dict[str, str]) -> str:
    """Return the type and the message of an exception in one line."""
    kind, message = str(exception.get("type") or "Exception"), str(exception.get("message") or "")
    return clean(f"{kind}: {message}" if message else kind)


def _text_of(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)
