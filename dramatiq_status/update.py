"""An update of a record, and what it does to it.

Everything here is pure.  :func:`apply` is the one definition of an
update: the stub, memcached, and every other backend that keeps whole
documents call it, ``backends/redis/lua/update/`` mirrors it, and a property
test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, NamedTuple

from .record import (
    ATTEMPTS,
    COMPLETED,
    DEFAULT_STATUS_TTL,
    DELETED_PREFIX,
    EXCEPTION,
    FINISHED_AT,
    GENERATION,
    HEARTBEAT_AT,
    ORIGIN,
    PROGRESS,
    QUEUED,
    RATE,
    RATE_WRITTEN_AT,
    RUN_TOKEN,
    SCHEDULED_AT,
    SEQUENCE,
    SKIPPED,
    STATE,
    STATUS_TTL,
    STILL_CURRENT,
    TRACEBACK,
    UPDATED_AT,
    VERSION,
    WORKING,
    Record,
    count_on,
    is_finished,
    limited_ttl,
    live_ttl_of,
    number_of,
    number_text,
)

#: Fields that a start removes (DESIGN §2, rule 5).  A progress that was stored before the first run stays.
CLEARED_BY_START: Final = (PROGRESS, RATE, RATE_WRITTEN_AT, FINISHED_AT, SKIPPED, SCHEDULED_AT, HEARTBEAT_AT)

#: What a message that goes back to its queue leaves behind.
CLEARED_BY_REQUEUE: Final = (RUN_TOKEN, SEQUENCE, SCHEDULED_AT, RATE, RATE_WRITTEN_AT, HEARTBEAT_AT)

#: What only a running message has.
CLEARED_BY_FINISH: Final = (SCHEDULED_AT, RATE, RATE_WRITTEN_AT, HEARTBEAT_AT)

#: What a message that was completed in the end no longer has.
CLEARED_BY_COMPLETION: Final = (EXCEPTION, TRACEBACK)

#: What a requeue writes over; everything else that it carries was given
#: when the message was first enqueued, and only fills gaps.
WRITTEN_BY_REQUEUE: Final = frozenset((SCHEDULED_AT, EXCEPTION, TRACEBACK))

#: Fields to ignore in an enqueue that arrives after its own run has started.
OUTDATED: Final = WRITTEN_BY_REQUEUE | {PROGRESS}


class EnqueueId(NamedTuple):
    """Identity of an enqueue of a message, which orders transitions without a clock.

    The first enqueue of a message draws a random origin and has generation 1.  Each enqueue that
    follows from it, such as a retry, has the same origin and the next generation.  An enqueue
    with another origin starts the message again.

    Parameters:
      origin(int): Random number; 0 for a message that a process without the middleware has enqueued.
      generation(int): Count of the enqueues with this origin.
    """

    origin: int
    generation: int


#: The enqueue id of a message that was enqueued by a process without our
#: middleware.
NO_ENQUEUE_ID: Final = EnqueueId(0, 0)

_NO_ORIGIN: Final = str(NO_ENQUEUE_ID.origin)


class Kind(int, Enum):
    """Who writes an update."""

    ENQUEUE = 0
    RUN = 1
    OUTSIDE = 2
    HEARTBEAT = 3


class Outcome(int, Enum):
    """What became of an update."""

    #: It is stored.
    APPLIED = 1
    #: An enqueue that came after what it had led to: the fields that
    #: nobody had written since are stored, the state is not.
    LATE = 2
    #: It had been stored before.
    DUPLICATE = 3
    #: It came from a run that no longer owns the status, or after the end.
    REFUSED = 4
    #: There is no record; nothing is stored.
    MISSING = 5
    #: The server that has the record does not answer, while others of
    #: the same store do: whether it is stored is not known, and it may
    #: be sent again.
    UNAVAILABLE = 6
    #: It is stored, except for the counts on fields that hold no number,
    #: or whose sum would leave the numbers that every store can count with.
    UNCOUNTED = 7
    #: The store does not take the message, and takes others: nothing is stored.
    UNSTORABLE = 8


# An attribute of an Enum takes five times as long as a name.
_RUN: Final = Kind.RUN
_ENQUEUE: Final = Kind.ENQUEUE
_APPLIED: Final = Outcome.APPLIED


class Changes(NamedTuple):
    """Changes of single fields that depend on what the store holds.

    Parameters:
      counts: Numbers to add, by stored name; never to the progress, which has its own increment.
        A field that is missing, or null, counts from 0.
      deleted: Stored names of fields to delete.
    """

    counts: Mapping[str, int | float] = {}
    deleted: frozenset[str] = frozenset()


class Update(NamedTuple):
    """One change of one record.

    Parameters:
      kind: Who writes.
      enqueue_id: The enqueue that the writer belongs to.
      run_token: Fencing token of the run that writes; 0 for none.
      sequence: Number of this update among the updates of its run.  The store
        remembers the last one, so that an update may be sent again
        after a time-out without being counted twice.
      start: The run begins with this update.
      create: The update holds all that its run knows, and may make the
        record where there is none.
      state: The state that the message enters, by its stored number.
      attempts: With ``start``: how many runs the message has had at least.
      fields: What to set, stored name -> JSON text.
      increment: What to add to the progress, after ``fields``.
      ttl: With a final state: how long the record lives from now on, in
        milliseconds.  From outside: unless the record says, or is finished already.
      changes: Fields to delete before `fields` are set, and to count after
        that; None for none, as in most updates.  Only of runs, and from outside.
    """

    kind: Kind
    enqueue_id: EnqueueId = NO_ENQUEUE_ID
    run_token: int = 0
    sequence: int = 0
    start: bool = False
    create: bool = False
    state: int | None = None
    attempts: int = 1
    fields: Record = {}  # noqa: RUF012 - never written to
    increment: int | float = 0
    ttl: int = DEFAULT_STATUS_TTL
    changes: Changes | None = None


class Applied(NamedTuple):
    """The result of :func:`apply`.

    Parameters:
      outcome: What became of the update.
      record: The record as it is now; None where there is none.
      ttl: How long the record lives from now on, in milliseconds; None
        where its expiry stays as it was.
    """

    outcome: Outcome
    record: Record | None
    ttl: int | None = None


def is_stored(outcome: Outcome) -> bool:
    """Whether an update with this outcome has changed the record and, if it is one, made its transition."""
    return outcome is _APPLIED or outcome is Outcome.UNCOUNTED


def is_transition(record: Record | None, update: Update) -> bool:
    """Whether an update that was applied to `record` made it, or set its
    state.  A list of statuses is ordered by the time of the last one.
    """
    return record is None or update.kind is Kind.ENQUEUE or update.start or update.state is not None


def apply(record: Record | None, update: Update, now: int) -> Applied:
    """Work out what `update` does to `record`.

    Parameters:
      record: What the store holds, None for nothing.  It is not changed.
      update: What to do.
      now: The store's current time, in epoch milliseconds.

    Returns:
      The outcome, the new record and its time to live.
    """
    if update.kind is _RUN:
        return _apply_run(record, update, now)
    if update.kind is _ENQUEUE:
        return _apply_enqueue(record, update, now)
    if update.kind is Kind.HEARTBEAT:
        return _apply_heartbeat(record, update, now)
    return _apply_outside(record, update, now)


def _apply_enqueue(record: Record | None, update: Update, now: int) -> Applied:
    origin, generation = str(update.enqueue_id.origin), str(update.enqueue_id.generation)
    if record is not None:
        finished = is_finished(record)
        if record[ORIGIN] == origin:
            if update.enqueue_id.generation <= int(record[GENERATION]):
                late = {
                    name: text
                    for name, text in update.fields.items()
                    if name not in OUTDATED and DELETED_PREFIX + name not in record
                }
                new = {**late, **record}
                return Applied(Outcome.LATE, _touch(new, record, now) if len(new) > len(record) else record)
        elif record[ORIGIN] != _NO_ORIGIN and update.enqueue_id.generation > 1 and not finished:
            # It puts back an older enqueue of the same message; the newer one owns the status.
            return Applied(Outcome.LATE, record)
        # What was enqueued without our middleware may be put back by a process that has it.
        if record[ORIGIN] in (origin, _NO_ORIGIN) and not finished:
            new = {name: text for name, text in record.items() if name not in CLEARED_BY_REQUEUE}
            for name, text in update.fields.items():
                if name in WRITTEN_BY_REQUEUE:
                    new[name] = text
                elif DELETED_PREFIX + name not in record:
                    new.setdefault(name, text)
            new[ORIGIN], new[GENERATION] = origin, generation
            new[STATE] = str(QUEUED)
            return Applied(Outcome.APPLIED, _touch(new, record, now), live_ttl_of(new, now))
    new = {**update.fields, STATE: str(QUEUED), ORIGIN: origin, GENERATION: generation}
    return Applied(Outcome.APPLIED, _touch(new, record, now), live_ttl_of(new, now))


def _standing(record: Record | None, update: Update) -> Outcome:
    """Whether a run may write: ``MISSING`` stands for a record that is not
    there, or that belongs to another enqueue than a run that begins.
    """
    if record is None:
        return Outcome.MISSING
    finished = is_finished(record)
    if update.run_token and record.get(RUN_TOKEN) == str(update.run_token):
        if update.sequence <= int(record[SEQUENCE]):
            return Outcome.DUPLICATE
        return Outcome.REFUSED if finished else _APPLIED
    if not update.start and update.state is None:
        return Outcome.REFUSED
    if record.get(ORIGIN) != str(update.enqueue_id.origin):
        # Of two enqueues of one message, who began last owns the status.
        return Outcome.MISSING if update.start or not update.run_token else Outcome.REFUSED
    ahead = update.enqueue_id.generation - int(record[GENERATION])
    if ahead < 0:
        return Outcome.REFUSED
    if finished:
        return Outcome.MISSING if ahead else Outcome.REFUSED
    if update.start or not update.run_token or RUN_TOKEN not in record or ahead:
        return Outcome.APPLIED
    return Outcome.REFUSED


def _apply_run(record: Record | None, update: Update, now: int) -> Applied:
    outcome = _standing(record, update)
    if outcome is _APPLIED:
        assert record is not None
        new = dict(record)
        if update.start:
            counted_before_any_run = None if ATTEMPTS in new else new.get(PROGRESS)
            for name in CLEARED_BY_START:
                new.pop(name, None)
            if counted_before_any_run is not None:
                # By other messages, on the bar of one that starts late: the store counts for them.
                new[PROGRESS] = counted_before_any_run
            new[ATTEMPTS] = str(max(int(new.get(ATTEMPTS, "0")) + 1, update.attempts))
            new[STATE] = str(WORKING)
    elif outcome is Outcome.MISSING and update.create:
        new = {STATE: str(WORKING)}
        if update.run_token:
            new[ATTEMPTS] = str(update.attempts)
    else:
        return Applied(outcome, record)
    if update.start or update.create or update.state is not None:
        # Whatever else a run writes belongs to the enqueue that it began with.
        new[ORIGIN], new[GENERATION] = str(update.enqueue_id.origin), str(update.enqueue_id.generation)
    if update.run_token:
        new[RUN_TOKEN], new[SEQUENCE] = str(update.run_token), str(update.sequence)
        if update.start or outcome is not _APPLIED:
            new[HEARTBEAT_AT] = str(now)
    outcome = _write(new, update)
    if update.state is not None and update.state >= COMPLETED:
        _finish(new, update.state)
        return Applied(outcome, _touch(new, record, now), update.ttl)
    if update.state is not None:
        new.pop(FINISHED_AT, None)
        new[STATE] = str(update.state)
    return Applied(outcome, _touch(new, record, now), live_ttl_of(new, now))


def _apply_outside(record: Record | None, update: Update, now: int) -> Applied:
    if record is None:
        return Applied(Outcome.MISSING, None)
    new = dict(record)
    if RATE in record and record.get(RATE_WRITTEN_AT, STILL_CURRENT) == STILL_CURRENT:
        # Nobody but the run says how fast it goes: its rate is as old as it was.
        since = record.get(UPDATED_AT, "")
        new[RATE_WRITTEN_AT] = since if since.isascii() and since.isdecimal() else "0"
    outcome = _write(new, update)
    if update.state is not None and update.state >= COMPLETED:
        _finish(new, update.state)
        new.setdefault(FINISHED_AT, str(now))
        # One that is finished already lives as long as it was to.
        ttl = None if is_finished(record) else _status_ttl_of(record, update)
        return Applied(outcome, _touch(new, record, now), ttl)
    if update.state is not None:
        new.pop(FINISHED_AT, None)
        new[STATE] = str(update.state)
    ttl = None if is_finished(new) else live_ttl_of(new, now)
    return Applied(outcome, _touch(new, record, now), ttl)


def _status_ttl_of(record: Record, update: Update) -> int:
    own = record.get(STATUS_TTL, "")
    return limited_ttl(int(own) if len(own) < 16 and own.isdecimal() and own.isascii() else update.ttl)


def _apply_heartbeat(record: Record | None, update: Update, now: int) -> Applied:
    if record is None:
        return Applied(Outcome.MISSING, None)
    if record.get(RUN_TOKEN) != str(update.run_token) or is_finished(record):
        return Applied(Outcome.REFUSED, record)
    new = {**record, HEARTBEAT_AT: str(now)}
    return Applied(Outcome.APPLIED, new, live_ttl_of(new, now))


def _write(new: Record, update: Update) -> Outcome:
    changes = update.changes
    if changes is not None:
        for name in changes.deleted:
            new.pop(name, None)
    new.update(update.fields)
    if update.increment:
        new[PROGRESS] = number_text(number_of(new.get(PROGRESS, "0")) + update.increment)
    return _APPLIED if changes is None else _count(new, changes.counts)


def _count(new: Record, counts: Mapping[str, int | float]) -> Outcome:
    outcome = _APPLIED
    for name, n in counts.items():
        text = count_on(new.get(name), n)
        if text is None:
            outcome = Outcome.UNCOUNTED
        else:
            new[name] = text
    return outcome


def _finish(new: Record, state: int) -> None:
    for name in CLEARED_BY_FINISH:
        new.pop(name, None)
    if state == COMPLETED:
        for name in CLEARED_BY_COMPLETION:
            new.pop(name, None)
    new[STATE] = str(state)


def _touch(new: Record, record: Record | None, now: int) -> Record:
    new[VERSION] = str(int(record[VERSION]) + 1) if record is not None else "1"
    new[UPDATED_AT] = str(now)
    return new
