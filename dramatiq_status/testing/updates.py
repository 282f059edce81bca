"""Builders of updates for tests and benchmarks.

Keywords are fields with JSON texts.  Names of one or two letters are stored names of the library's fields, and all
others are names of users' fields: ``enqueue(a='"actor"', step="1")``.
"""

from __future__ import annotations

import json
from typing import Any

from ..history import LOST
from ..record import (
    ACTOR_NAME,
    CANCEL_REQUESTED_AT,
    CANCELLED,
    COMPLETED,
    EARLIER_RUN,
    FINISHED_AT,
    HEARTBEAT_AT,
    RATE_WRITTEN_AT,
    STARTED_AT,
    STILL_CURRENT,
    UPDATED_AT,
    Record,
    deletion_marks,
)
from ..update import Changes, EnqueueId, Kind, Update, apply


def enqueue(origin: int = 7, generation: int = 1, **fields: str) -> Update:
    return Update(Kind.ENQUEUE, EnqueueId(origin, generation), fields=named(fields))


def start(
    run_token: int,
    origin: int = 7,
    generation: int = 1,
    *,
    sequence: int = 1,
    create: bool = True,
    attempts: int = 1,
    **fields: str,
) -> Update:
    return Update(
        Kind.RUN,
        EnqueueId(origin, generation),
        run_token,
        sequence,
        start=True,
        create=create,
        attempts=attempts,
        fields={STARTED_AT: "5", **named(fields)},
    )


def write(
    run_token: int,
    sequence: int,
    origin: int = 7,
    generation: int = 1,
    *,
    create: bool = False,
    increment: int | float = 0,
    state: int | None = None,
    **fields: str,
) -> Update:
    return Update(
        Kind.RUN,
        EnqueueId(origin, generation),
        run_token,
        sequence,
        create=create,
        increment=increment,
        state=state,
        fields=named(fields),
    )


def finish(
    run_token: int,
    sequence: int = 9,
    origin: int = 7,
    generation: int = 1,
    *,
    state: int = COMPLETED,
    create: bool = False,
    ttl: int = 3_600_000,
    increment: int | float = 0,
    **fields: str,
) -> Update:
    return Update(
        Kind.RUN,
        EnqueueId(origin, generation),
        run_token,
        sequence,
        create=create,
        state=state,
        ttl=ttl,
        increment=increment,
        fields={FINISHED_AT: "6", **named(fields)},
    )


def outside(*, increment: int | float = 0, state: int | None = None, ttl: int = 3_600_000, **fields: str) -> Update:
    return Update(Kind.OUTSIDE, increment=increment, state=state, ttl=ttl, fields=named(fields))


def counting(update: Update, **counts: int | float) -> Update:
    """Return an update that adds numbers to fields as well."""
    return update._replace(changes=Changes({_stored(name): n for name, n in counts.items()}))


def to_total(update: Update) -> Update:
    """Return an update that sets the progress to the total as well."""
    return update._replace(changes=(update.changes or Changes())._replace(to_total=True))


def deleting(update: Update, *names: str) -> Update:
    """Return an update that also deletes users' fields, with their deletion marks."""
    stored = frozenset(map(_stored, names))
    fields = {**update.fields, **deletion_marks(stored)}
    return update._replace(fields=fields, changes=(update.changes or Changes())._replace(deleted=stored))


def cancel(**fields: str) -> Update:
    return Update(Kind.CANCEL, fields=named(fields))


def heartbeat(run_token: int) -> Update:
    return Update(Kind.HEARTBEAT, run_token=run_token)


def named(fields: dict[str, str]) -> Record:
    """Return JSON texts by stored names."""
    return {_stored(name): text for name, text in fields.items()}


def _stored(name: str) -> str:
    return name if len(name) <= 2 else ":" + name


def fold(updates: list[Update], now: int = 1000) -> Record | None:
    """Carry out updates by :func:`.apply`, one after the other, and return the record."""
    record = None
    for update in updates:
        record = apply(record, update, now).record
    return record


def timeless(record: Record | None) -> dict[str, Any] | None:
    """Decode a record, and replace the timestamps of the store's clock by the text ``timestamp``."""
    if record is None:
        return None
    timestamps = {UPDATED_AT, HEARTBEAT_AT}
    if record.get(RATE_WRITTEN_AT) != STILL_CURRENT:
        timestamps.add(RATE_WRITTEN_AT)
    if CANCEL_REQUESTED_AT in record:
        timestamps.add(CANCEL_REQUESTED_AT)
        if CANCELLED in record:
            # The store ends a message that waits.
            timestamps.add(FINISHED_AT)
    found: dict[str, Any] = {
        name: "timestamp" if name in timestamps else json.loads(text) for name, text in record.items()
    }
    for name, value in found.items():
        if name.startswith(EARLIER_RUN) and value[1] is not None and value[1][1] == LOST:
            # A lost run ends at its last heartbeat.
            value[1][0] = "timestamp"
    return found


def with_actor(update: Update, actor_name: str) -> Update:
    """Add the name of an actor to an update that may create a record, as the middleware does."""
    if update.kind is not Kind.ENQUEUE and not update.create:
        return update
    return update._replace(fields={**update.fields, ACTOR_NAME: f'"{actor_name}"'})


def life_to(state: int, **fields: str) -> list[Update]:
    """Return the updates that bring a new message into a state."""
    return [enqueue()._replace(fields=named(fields)), start(1), finish(1, state=state)][: min(state, COMPLETED) + 1]
