"""The runs of a message as a reader gets them, and the life of a message in words."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from enum import Enum
from typing import Any, Final, NamedTuple

from .history import LOST, REQUEUED, RETRIED, kept_runs
from .record import (
    ATTEMPTS,
    CANCELLED,
    EARLIER_RUN,
    ENQUEUED_AT,
    EXCEPTION,
    FAILED,
    FINISHED_AT,
    FIRST_EXCEPTION,
    RUN_ENDED,
    SCHEDULED_AT,
    SKIPPED,
    STARTED_AT,
    STATE,
    STATES,
    WORKING,
)
from .times import datetime_of, duration, json_time, measured


class RunOutcome(str, Enum):
    """Outcome of a run. An outcome equals its text: ``RunOutcome.RETRIED == "retried"``."""

    COMPLETED = "completed"
    FAILED = "failed"
    #: The run raised an exception, and the message was enqueued again.
    RETRIED = "retried"
    #: The run put the message back into its queue without an exception.
    REQUEUED = "requeued"
    #: The worker died, or lost the message to another worker.
    LOST = "lost"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"

    def __str__(self) -> str:
        return self.value


_OUTCOMES: Final = {RETRIED: RunOutcome.RETRIED, REQUEUED: RunOutcome.REQUEUED, LOST: RunOutcome.LOST}


class Run(NamedTuple):
    """One run of a message.

    Parameters:
      attempt(int): Number of the run, from 1.
      started_at(datetime): Time at which the run began, by the worker's clock.
      ended_at(datetime): Time at which the run ended; for a lost run, the time of its last heartbeat. None while the
        run continues, and if the time is unknown.
      outcome(RunOutcome): None while the run continues.
      exception(dict[str, str]): ``type`` and ``message`` of the exception of a failed or retried run.  In earlier runs,
        the message is cut so that the type and the message together take at most 512 bytes.
      scheduled_at(datetime): The time until which the message was delayed after this run.
    """

    attempt: int
    started_at: datetime | None
    ended_at: datetime | None
    outcome: RunOutcome | None
    exception: dict[str, str] | None
    scheduled_at: datetime | None

    @property
    def duration(self) -> timedelta | None:
        """Time from the start to the end; None while the run continues, and where a time is unknown."""
        if self.started_at is None or self.ended_at is None:
            return None
        return max(timedelta(0), self.ended_at - self.started_at)

    def to_dict(self, *, private: bool = True) -> dict[str, Any]:
        """Return the run as JSON values: times as texts in ISO 8601, the duration in seconds.

        Parameters:
          private(bool): Whether to include the text of the exception.
        """
        exception = self.exception and {k: v for k, v in self.exception.items() if private or k != "message"}
        return {
            "attempt": self.attempt,
            "started_at": json_time(self.started_at),
            "ended_at": json_time(self.ended_at),
            "outcome": self.outcome and self.outcome.value,
            "exception": exception,
            "scheduled_at": json_time(self.scheduled_at),
            "duration": json_time(self.duration),
        }


def runs_in(values: Mapping[str, Any]) -> tuple[Run, ...]:
    """Decode the runs of a message, the newest last. Runs that were removed from a long history are missing.

    Parameters:
      values(Mapping[str, Any]): The decoded fields of a record, by their stored names.
    """
    attempts = values.get(ATTEMPTS)
    if attempts.__class__ is not int or attempts < 1:
        return ()
    runs = [run for number in kept_runs(attempts) if (run := _earlier_run(values, number))]
    ended, exception, outcome = values.get(RUN_ENDED), values.get(EXCEPTION), _end_in(values)
    if isinstance(ended, list) and len(ended) == 2:
        outcome = _OUTCOMES[ended[1]] if ended[1] in (RETRIED, LOST) else RunOutcome.REQUEUED
    elif outcome is None and values[STATE] != WORKING:
        outcome = RunOutcome.REQUEUED
    runs.append(
        Run(
            attempts,
            datetime_of(values.get(STARTED_AT)),
            datetime_of(last_end_in(values)),
            outcome,
            _exception_in(exception) if outcome in (RunOutcome.RETRIED, RunOutcome.FAILED) else None,
            datetime_of(values.get(SCHEDULED_AT)),
        )
    )
    return tuple(runs)


def last_end_in(values: Mapping[str, Any]) -> Any:
    """Return the timestamp of the end of the last run; None if the run has not ended, or has ended without a trace.
    If a retry was cancelled, the message has ended later than its last run.
    """
    ended = values.get(RUN_ENDED)
    return ended[0] if isinstance(ended, list) and len(ended) == 2 else values.get(FINISHED_AT)


def _end_in(values: Mapping[str, Any]) -> RunOutcome | None:
    """Return the final state as the outcome of a run; None for an unfinished message."""
    if values[STATE] <= WORKING:
        return None
    if values[STATE] == FAILED and values.get(CANCELLED):
        return RunOutcome.CANCELLED
    return RunOutcome.SKIPPED if values.get(SKIPPED) else RunOutcome(STATES[values[STATE]].value)


def _earlier_run(values: Mapping[str, Any], number: int) -> Run | None:
    item = values.get(f"{EARLIER_RUN}{number}")
    if not isinstance(item, list) or len(item) < 3:
        # The run was left out, or another program has written another value.
        return None
    started_at, end, scheduled_at = item[:3]
    ended_at, outcome = end if isinstance(end, list) and len(end) == 2 else (None, REQUEUED)
    return Run(
        number,
        datetime_of(started_at),
        datetime_of(ended_at),
        _OUTCOMES.get(outcome) if outcome.__class__ is int else None,
        _exception_in(values.get(FIRST_EXCEPTION) if number == 1 else item[-1]),
        datetime_of(scheduled_at),
    )


def _exception_in(value: Any) -> dict[str, str] | None:
    return dict(value) if isinstance(value, dict) else None


def timeline_of(values: Mapping[str, Any], timestamp: int) -> tuple[str, ...]:
    """Return the events in the life of a message in words: one text for each event.

    Parameters:
      values(Mapping[str, Any]): The decoded fields of its record, by their stored names.
      timestamp(int): The time of the snapshot, in epoch milliseconds.
    """
    runs, end, enqueued_at = runs_in(values), _end_in(values), datetime_of(values.get(ENQUEUED_AT))
    now = datetime_of(timestamp) or datetime.max.replace(tzinfo=timezone.utc)
    events = ["enqueued"]
    free_since, attempt = enqueued_at, 0
    for run in runs:
        left_out = run.attempt - attempt - 1
        if left_out > 0:
            events.append(f"{left_out} {'run' if left_out == 1 else 'runs'} left out")
        elif free_since is not None and run.started_at is not None:
            events.append(f"waited {measured(run.started_at - free_since)}")
        events.append(_event_of(run, now))
        free_since, attempt = run.ended_at, run.attempt
    last = runs[-1].outcome if runs else RunOutcome.REQUEUED
    if last in _PUT_BACK or (last is RunOutcome.LOST and end is not None):
        if end is not None:
            # The message has ended without a further run.
            events.append(end.value)
        elif free_since is not None:
            events.append(f"waiting for {duration(now - free_since, exact=True)}")
    return tuple(events)


_PUT_BACK: Final = (RunOutcome.RETRIED, RunOutcome.REQUEUED)


def _event_of(run: Run, now: datetime) -> str:
    text = f"run {run.attempt}"
    if run.outcome is None:
        return f"{text} running" + (
            "" if run.started_at is None else f" for {duration(now - run.started_at, exact=True)}"
        )
    text += f" {'failed' if run.outcome is RunOutcome.RETRIED else run.outcome}"
    if run.duration is not None:
        text += f" after {measured(run.duration)}"
    if run.exception:
        text += f": {run.exception.get('type')}: {run.exception.get('message')}"
    return text
