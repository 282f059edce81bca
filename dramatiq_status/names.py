"""Names of the fields that readers get, and their stored names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from .record import (
    ACTOR_NAME,
    ARGS,
    ATTEMPTS,
    CANCEL_REASON,
    CANCEL_REQUESTED_AT,
    CANCEL_SEEN_AT,
    CANCELLED,
    ENQUEUED_AT,
    EXCEPTION,
    FINISHED_AT,
    HEARTBEAT_AT,
    KWARGS,
    PROGRESS,
    QUEUE_NAME,
    RATE,
    SCHEDULED_AT,
    SKIPPED,
    STARTED_AT,
    STATE,
    TOTAL,
    TRACEBACK,
    TRUNCATED,
    UPDATED_AT,
)

#: Names of the library's fields, by stored names.
NAMES: Final = {
    STATE: "status",
    PROGRESS: "progress",
    TOTAL: "total",
    ACTOR_NAME: "actor_name",
    QUEUE_NAME: "queue_name",
    ENQUEUED_AT: "enqueued_at",
    SCHEDULED_AT: "scheduled_at",
    STARTED_AT: "started_at",
    FINISHED_AT: "finished_at",
    UPDATED_AT: "updated_at",
    HEARTBEAT_AT: "heartbeat_at",
    RATE: "rate",
    ATTEMPTS: "attempts",
    EXCEPTION: "exception",
    SKIPPED: "skipped",
    CANCELLED: "cancelled",
    CANCEL_REQUESTED_AT: "cancel_requested_at",
    CANCEL_SEEN_AT: "cancel_seen_at",
    CANCEL_REASON: "cancel_reason",
    ARGS: "args",
    KWARGS: "kwargs",
    TRACEBACK: "traceback",
    TRUNCATED: "truncated",
}

#: Stored names of the fields that ``includes`` adds, by names.  A user's field of the same name hides such a field.
INCLUDED: Final = {"args": ARGS, "kwargs": KWARGS, "traceback": TRACEBACK}

#: Stored names of the library's other fields, by names.
STORED_NAMES: Final = {name: stored for stored, name in NAMES.items() if name not in INCLUDED}

#: Names of the values that are derived on each read.
DERIVED: Final = ("percent", "finished", "retrying", "scheduled", "stalled", "duration", "time_remaining", "runs")

#: Stored names of the fields that may contain private data.
PRIVATE: Final = frozenset((ARGS, KWARGS, TRACEBACK))

#: Stored names of the fields that contain timestamps.
TIMESTAMPS: Final = frozenset(
    (
        ENQUEUED_AT,
        SCHEDULED_AT,
        STARTED_AT,
        FINISHED_AT,
        UPDATED_AT,
        HEARTBEAT_AT,
        CANCEL_REQUESTED_AT,
        CANCEL_SEEN_AT,
    )
)


def check_names(parameter: str, names: Iterable[str]) -> dict[str, None]:
    """Check the names of fields that a caller passes, and return them in their order."""
    if isinstance(names, str):
        raise TypeError(f"{parameter} must be an iterable of names, not the str {names!r}: write ({names!r},).")
    return dict.fromkeys(names)
