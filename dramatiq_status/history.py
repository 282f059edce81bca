"""The history of a message's runs: its text in a record, and the runs and the timeline of a snapshot.

A record keeps the last run in separate fields, such as STARTED_AT and EXCEPTION. When a second run begins, the field
:data:`.record.HISTORY` is added. It contains all runs before the last one, as a JSON list of ``[attempt, started_at,
ended_at, outcome, exception, scheduled_at]``.  The items of the list
are separated by a comma and a tab, which no JSON text of the library has, so that a store can add and remove items
without decoding them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from enum import Enum
from typing import Any, Final, NamedTuple

from .record import (
    ATTEMPTS,
    ENQUEUED_AT,
    EXCEPTION,
    FINISHED_AT,
    HEARTBEAT_AT,
    HISTORY,
    RUN_ENDED,
    SCHEDULED_AT,
    SKIPPED,
    STARTED_AT,
    STATE,
    STATES,
    WORKING,
    Record,
)

#: Maximum number of earlier runs in a record: the first one and the last nine.
MAX_RUNS: Final = 10

#: Maximum number of bytes of a history.
MAX_HISTORY_SIZE: Final = 4096

#: Maximum number of bytes of an exception in a history.
MAX_EXCEPTION_SIZE: Final = 512

#: Stored numbers of the outcomes of earlier runs.
RETRIED: Final = 1
REQUEUED: Final = 0
LOST: Final = 2

_SEPARATOR: Final = ",\t"
_END: Final = '..."}'
_MESSAGE: Final = '","message":"'

_RUN_ENDED: Final = re.compile(r"\[([0-9]{1,15}),([01])\]").fullmatch
_TIME: Final = re.compile(r"[0-9]{1,15}").fullmatch
_NO_TEXT: Final = re.compile(r"[^ -~]").search


def run_ended(ended_at: int, *, failed: bool) -> str:
    """Make the text of :data:`.record.RUN_ENDED`, which a run stores when it puts its message back into the queue.

    Parameters:
      ended_at(int): Epoch milliseconds.
      failed(bool): Whether the run has raised the exception that it stores.
    """
    return f"[{ended_at},{RETRIED if failed else REQUEUED}]"


def add_run(record: Record, *, requeued: bool = False) -> str | None:
    """Make the history that a record has when its next run begins; None where there is no earlier run.

    >>> add_run({"s": "0", "A": "1", "S": "5", "N": "[9,0]"})
    '[[1,5,9,0,null,null]]'

    Parameters:
      record(Record): The record before the run begins.
      requeued(bool): Whether the run that begins belongs to a later enqueue than the one in the record.
    """
    if ATTEMPTS not in record:
        return None
    history = record.get(HISTORY, "")
    runs = history[1:-1].split(_SEPARATOR) if history.startswith("[[") and history.endswith("]]") else []
    runs.append(_run_of(record, requeued=requeued))
    while len(runs) > MAX_RUNS or (len(runs) > 1 and sum(map(len, runs)) + 2 * len(runs) > MAX_HISTORY_SIZE):
        del runs[min(1, len(runs) - 2)]
    return f"[{_SEPARATOR.join(runs)}]"


def _run_of(record: Record, *, requeued: bool) -> str:
    """Make the item of the last run of a record."""
    exception = "null"
    ended = _RUN_ENDED(record.get(RUN_ENDED, ""))
    if ended is not None:
        ended_at, outcome = ended[1], int(ended[2])
        if outcome == RETRIED:
            exception = _cut_exception(record.get(EXCEPTION, "null"))
    elif record[STATE] == str(WORKING) and not requeued:
        # The end of a lost run is unknown: its last heartbeat stands for it.
        ended_at, outcome = _time_in(record.get(HEARTBEAT_AT)), LOST
    else:
        ended_at, outcome = "null", REQUEUED
    started_at, scheduled_at = _time_in(record.get(STARTED_AT)), _time_in(record.get(SCHEDULED_AT))
    return f"[{record[ATTEMPTS]},{started_at},{ended_at},{outcome},{exception},{scheduled_at}]"


def _time_in(text: str | None) -> str:
    return text if text is not None and _TIME(text) else "null"


def _cut_exception(text: str) -> str:
    """Cut the stored text of an exception to its maximum size.

    >>> _cut_exception('{"type":"ValueError","message":"' + "x" * 1000 + '"}')[-12:]
    'xxxxxxx..."}'
    """
    if not text.startswith('{"type":"') or not text.endswith('"}') or _NO_TEXT(text):
        return "null"
    if len(text) <= MAX_EXCEPTION_SIZE:
        return text
    kept = MAX_EXCEPTION_SIZE - len(_END)
    message = text.find(_MESSAGE)
    if message >= 0 and message + len(_MESSAGE) > kept:
        # The type leaves no room for the message: cut before the message, or within the type.
        kept = min(kept, message)
    # Do not cut within an escape sequence. The longest one, such as \u00e4, has six characters. The last of several
    # adjacent backslashes begins an escape sequence only if their number is odd.
    escape = text.rfind("\\", kept - 5, kept)
    begin = escape
    while begin >= 0 and text[begin] == "\\":
        begin -= 1
    if (escape - begin) % 2 == 1 and (escape == kept - 1 or text[escape + 1] == "u"):
        kept = escape
    return text[:kept] + _END


class RunOutcome(str, Enum):
    """Outcome of a run. An outcome equals its name: ``RunOutcome.RETRIED == "retried"``."""

    COMPLETED = "completed"
    FAILED = "failed"
    #: The run raised an exception, and the message was enqueued again.
    RETRIED = "retried"
    #: The run put the message back into its queue without an exception.
    REQUEUED = "requeued"
    #: The worker died, or lost the message to another worker.
    LOST = "lost"
    SKIPPED = "skipped"

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
      outcome(RunOutcome): None while it runs.
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
        """Time from the start to the end; None while the message runs, and where a time is unknown."""
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
            "started_at": _iso(self.started_at),
            "ended_at": _iso(self.ended_at),
            "outcome": self.outcome and self.outcome.value,
            "exception": exception,
            "scheduled_at": _iso(self.scheduled_at),
            "duration": None if self.duration is None else round(self.duration.total_seconds(), 3),
        }


def runs_in(values: Mapping[str, Any]) -> tuple[Run, ...]:
    """Decode the runs of a message, the newest last. Runs that were removed from a long history are missing.

    Parameters:
      values(Mapping[str, Any]): The decoded fields of a record, by their stored names.
    """
    attempts = values.get(ATTEMPTS)
    if attempts.__class__ is not int or attempts < 1:
        return ()
    history = values.get(HISTORY)
    runs = [run for item in history if (run := _run_in(item))] if isinstance(history, list) else []
    ended, exception, outcome = values.get(RUN_ENDED), values.get(EXCEPTION), _end_in(values)
    if isinstance(ended, list) and len(ended) == 2:
        ended_at, outcome = ended[0], RunOutcome.RETRIED if ended[1] == RETRIED else RunOutcome.REQUEUED
    elif outcome is None and values[STATE] != WORKING:
        ended_at, outcome = None, RunOutcome.REQUEUED
    else:
        ended_at = values.get(FINISHED_AT)
    runs.append(
        Run(
            attempts,
            datetime_of(values.get(STARTED_AT)),
            datetime_of(ended_at),
            outcome,
            _exception_in(exception) if outcome in (RunOutcome.RETRIED, RunOutcome.FAILED) else None,
            datetime_of(values.get(SCHEDULED_AT)),
        )
    )
    return tuple(runs)


def _end_in(values: Mapping[str, Any]) -> RunOutcome | None:
    """The final state as the outcome of a run; None for an unfinished message."""
    if values[STATE] <= WORKING:
        return None
    return RunOutcome.SKIPPED if values.get(SKIPPED) else RunOutcome(STATES[values[STATE]].value)


def _run_in(item: Any) -> Run | None:
    if not isinstance(item, list) or len(item) != 6 or item[0].__class__ is not int:
        # Another program has written it.
        return None
    attempt, started_at, ended_at, outcome, exception, scheduled_at = item
    return Run(
        attempt,
        datetime_of(started_at),
        datetime_of(ended_at),
        _OUTCOMES.get(outcome) if outcome.__class__ is int else None,
        _exception_in(exception),
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
            events.append(f"waited {span(run.started_at - free_since)}")
        events.append(_event_of(run, now))
        free_since, attempt = run.ended_at, run.attempt
    last = runs[-1].outcome if runs else RunOutcome.REQUEUED
    if last in _PUT_BACK:
        if end is not None:
            # The message has ended without a further run.
            events.append(end.value)
        elif free_since is not None:
            events.append(f"waiting for {span(now - free_since)}")
    return tuple(events)


_PUT_BACK: Final = (RunOutcome.RETRIED, RunOutcome.REQUEUED)


def _event_of(run: Run, now: datetime) -> str:
    text = f"run {run.attempt}"
    if run.outcome is None:
        return text + " running" + ("" if run.started_at is None else f" for {span(now - run.started_at)}")
    text += f" {'failed' if run.outcome is RunOutcome.RETRIED else run.outcome}"
    if run.duration is not None:
        text += f" after {span(run.duration)}"
    if run.exception:
        text += f": {run.exception.get('type')}: {run.exception.get('message')}"
    return text


def span(duration: timedelta) -> str:
    """Write a duration in its two largest units; a negative one as 0 s.

    >>> span(timedelta(seconds=0.25)), span(timedelta(seconds=75)), span(timedelta(hours=50))
    ('0.2 s', '1 min 15 s', '2 d 2 h')
    """
    seconds = max(0.0, duration.total_seconds())
    if seconds < 10:
        return f"{int(seconds * 10) / 10:g} s"
    units = []
    for name, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        units.append((int(count), name))
    first = next(number for number, (count, _) in enumerate(units) if count)
    return " ".join(f"{count} {name}" for count, name in units[first : first + 2] if count)


#: The times that a datetime can express, in epoch milliseconds: the years 1 to 9999.
EARLIEST: Final = -62_135_596_800_000
LATEST: Final = 253_402_300_799_999


def datetime_of(milliseconds: Any) -> datetime | None:
    """Convert epoch milliseconds from a record to a datetime in UTC; None for another value."""
    if not isinstance(milliseconds, int) or not EARLIEST <= milliseconds <= LATEST:
        return None
    seconds, rest = divmod(milliseconds, 1000)
    return datetime.fromtimestamp(seconds, timezone.utc).replace(microsecond=rest * 1000)


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat(timespec="milliseconds")
