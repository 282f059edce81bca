"""Steps of an update.  Each step changes a copy of the record in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .record import (
    CANCEL_REASON,
    CANCELLED,
    COMPLETED,
    EXCEPTION,
    FAILED,
    FINISHED_AT,
    HEARTBEAT_AT,
    PROGRESS,
    RATE,
    RATE_WRITTEN_AT,
    RUN_ENDED,
    RUN_TOKEN,
    SCHEDULED_AT,
    SEQUENCE,
    SKIPPED,
    STARTED_AT,
    STATE,
    STATUS_TTL,
    STILL_CURRENT,
    TRACEBACK,
    UPDATED_AT,
    VERSION,
    Record,
    count_on,
    limited_ttl,
    whole_number_in,
)

#: Stored names of the fields that the start of a run removes.  The first run keeps the progress, because runs of other
#: messages may have incremented it already.
CLEARED_BY_START: Final = (
    PROGRESS,
    RATE,
    RATE_WRITTEN_AT,
    FINISHED_AT,
    SKIPPED,
    CANCELLED,
    SCHEDULED_AT,
    HEARTBEAT_AT,
    RUN_ENDED,
)

#: Stored names of the fields that a requeue removes.
CLEARED_BY_REQUEUE: Final = (RUN_TOKEN, SEQUENCE, SCHEDULED_AT, RATE, RATE_WRITTEN_AT, HEARTBEAT_AT)

#: Stored names of the fields that the end of a message removes.
CLEARED_BY_FINISH: Final = (SCHEDULED_AT, RATE, RATE_WRITTEN_AT, HEARTBEAT_AT)

#: Stored names of the fields that a completion removes: they describe a failure of an earlier run.
CLEARED_BY_COMPLETION: Final = (EXCEPTION, TRACEBACK)

#: Stored names of the fields that a requeue replaces.  The other fields of a requeue are those of the first enqueue
#: and of the run. They are set only if the record lacks them.
WRITTEN_BY_REQUEUE: Final = frozenset((SCHEDULED_AT, EXCEPTION, TRACEBACK, RUN_ENDED))

#: Stored names of the fields to ignore in an enqueue that arrives after its own run has started.
OUTDATED: Final = WRITTEN_BY_REQUEUE | {PROGRESS}


def keep_time_of_rate(new: Record) -> None:
    """Copy the time of the run's last write from UPDATED_AT to RATE_WRITTEN_AT, before a write from outside of the run
    replaces UPDATED_AT.  Do nothing if an earlier such write has copied it since the run stored its rate.
    """
    if RATE in new and new.get(RATE_WRITTEN_AT, STILL_CURRENT) == STILL_CURRENT:
        since = new.get(UPDATED_AT, "")
        new[RATE_WRITTEN_AT] = since if since.isascii() and since.isdecimal() else "0"


def is_outdated(record: Record, fields: Record) -> bool:
    """Return whether the run that starts with these fields started before the run of a record, or in the same
    millisecond.  The store may receive the start of the older run later, because the writer delays starts by a few
    milliseconds.
    """
    started_at = whole_number_in(fields.get(STARTED_AT, ""), 0)
    return 0 < started_at <= whole_number_in(record.get(STARTED_AT, ""), 0)


def is_owner(record: Record, run_token: int) -> bool:
    """Return whether a run owns the status of a record: it has started last."""
    return record.get(RUN_TOKEN) == str(run_token)


def check_request(fields: Record) -> None:
    """Check the fields of a request to cancel a message.

    Raises:
      ValueError: When a field is not the reason.
    """
    if fields.keys() - {CANCEL_REASON}:
        raise ValueError(f"A request to cancel a message sets no fields except its reason, not {sorted(fields)}.")


def cancel_waiting(new: Record, now: int) -> None:
    """End a message that waits."""
    finish(new, FAILED)
    new[CANCELLED], new[FINISHED_AT] = "true", str(now)


def count_fields(new: Record, counts: Mapping[str, int | float]) -> bool:
    """Add numbers to fields.  Return whether each field holds a number, and no sum is too large."""
    is_counted = True
    for name, n in counts.items():
        text = count_on(new.get(name), n)
        if text is None:
            is_counted = False
        else:
            new[name] = text
    return is_counted


def finish(new: Record, state: int) -> None:
    """Set a final state by its stored number, and remove the fields of unfinished messages."""
    for name in CLEARED_BY_FINISH:
        new.pop(name, None)
    if state == COMPLETED:
        for name in CLEARED_BY_COMPLETION:
            new.pop(name, None)
    new[STATE] = str(state)


def status_ttl_of(record: Record, default: int) -> int:
    """Return the time to live, in milliseconds, of a record that is finished from outside of a run."""
    own = record.get(STATUS_TTL, "")
    return limited_ttl(int(own) if len(own) < 16 and own.isdecimal() and own.isascii() else default)


def touch(new: Record, record: Record | None, now: int) -> Record:
    """Count a change of a record, note its time, and return the record."""
    new[VERSION] = str(int(record[VERSION]) + 1) if record is not None else "1"
    new[UPDATED_AT] = str(now)
    return new
