"""Updates of records, and :func:`apply`, which carries out an update on a record.

All functions here are pure.  :func:`apply` is the only definition of an update.  Every backend that stores whole
records calls it.  The Redis script (``backends/redis/lua/update/``) mirrors it, and a property test compares both.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, NamedTuple

from .history import complete_run, is_earlier_run, keep_run
from .record import (
    ATTEMPTS,
    CANCEL_REQUESTED_AT,
    CANCEL_SEEN_AT,
    CANCELLED,
    COMPLETED,
    DEFAULT_STATUS_TTL,
    DELETED_PREFIX,
    FINISHED_AT,
    GENERATION,
    HEARTBEAT_AT,
    ORIGIN,
    PROGRESS,
    QUEUED,
    RUN_ENDED,
    RUN_TOKEN,
    SEQUENCE,
    STATE,
    TOTAL,
    WORKING,
    Record,
    at_total,
    is_finished,
    limited_ttl,
    live_ttl_of,
    number_of,
    number_text,
)
from .transitions import (
    CLEARED_BY_REQUEUE,
    CLEARED_BY_START,
    OUTDATED,
    WRITTEN_BY_REQUEUE,
    cancel_waiting,
    check_request,
    count_fields,
    finish,
    is_outdated,
    is_owner,
    keep_time_of_rate,
    status_ttl_of,
    touch,
)

__all__ = ["Applied", "Changes", "EnqueueId", "Kind", "Outcome", "Update", "apply", "is_moved", "is_stored"]


class EnqueueId(NamedTuple):
    """Id of an enqueue of a message.  It orders the message's transitions without a clock.

    The first enqueue of a message draws a random origin and has generation 1.  Each enqueue that
    follows from it, such as a retry, has the same origin and the next generation.  A message that is made again with
    the same id gets another origin.

    Parameters:
      origin(int): Random number; 0 for a message that a process without the middleware has enqueued.
      generation(int): Count of the enqueues with this origin.
    """

    origin: int
    generation: int


#: Enqueue id of a message that a process without the middleware has enqueued.
NO_ENQUEUE_ID: Final = EnqueueId(0, 0)

_NO_ORIGIN: Final = str(NO_ENQUEUE_ID.origin)


class Kind(int, Enum):
    """Source of an update."""

    #: An enqueue of the message.
    ENQUEUE = 0
    #: A run of the message, or the end of a message that has never run.
    RUN = 1
    #: A write from outside of the message's run, from any process.
    OUTSIDE = 2
    #: The heartbeat of a worker that runs the message.
    HEARTBEAT = 3
    #: A request to cancel the message, from any process.
    CANCEL = 4
    #: The withdrawal of an enqueue that has ended in an error. It removes the record, unless a run has begun.
    WITHDRAWAL = 5


class Outcome(int, Enum):
    """Outcome of an update."""

    #: The update is stored.
    APPLIED = 1
    #: An enqueue that arrives too late, because the record already has this enqueue, a run of it, or a later enqueue.
    #: The state is not stored.  Fields that the record lacks are stored, unless the later enqueue has another origin.
    LATE = 2
    #: The update, or a later one of its run, was stored before.
    DUPLICATE = 3
    #: The run no longer owns the status, the message is finished, or a withdrawal comes too late.  Nothing is stored.
    REFUSED = 4
    #: The store has no record of the message, or one of another enqueue that the run may replace, and the update cannot
    #: create one.  Nothing is stored.
    MISSING = 5
    #: The server of the record does not answer, while other servers of the store do.  It is unknown whether the update
    #: was stored. If it is sent again, it counts once, unless it is an increment from outside of a run.
    UNAVAILABLE = 6
    #: The update is stored, except additions to fields that hold no number, and additions whose sum is not below 2**53.
    UNCOUNTED = 7
    #: The store refuses the message, while it accepts others.  Nothing is stored.
    UNSTORABLE = 8
    #: The message was cancelled before, and no run may begin.  Nothing is stored, but the record gets the expiry of a
    #: finished message if a worker drops the message.
    CANCELLED = 9
    #: The message has a request to cancel it.  The update is stored, except for a second request.
    REQUESTED = 10


# Reading an attribute of an Enum takes five times as long as reading a global.
_RUN: Final = Kind.RUN
_ENQUEUE: Final = Kind.ENQUEUE
_APPLIED: Final = Outcome.APPLIED
_REQUESTED: Final = Outcome.REQUESTED


class Changes(NamedTuple):
    """Additions to fields, deletions of fields, and whether to set the progress to the total.

    Parameters:
      counts(Mapping[str, int | float]): Numbers to add, by stored names.  A field that is missing or null counts
        from 0.  The progress is not among them: it has its own increment.
      deleted(frozenset[str]): Stored names of fields to delete.
      to_total(bool): Whether to set the progress to the total that the record has, see ``at_total()``.  Only the
        store has this total: other messages may have added to it, and a retry keeps the total of the run before.
    """

    counts: Mapping[str, int | float] = {}
    deleted: frozenset[str] = frozenset()
    to_total: bool = False


class Update(NamedTuple):
    """A change of one record.

    Parameters:
      kind(Kind): Source of the update.
      enqueue_id(EnqueueId): Id of the enqueue; for an update of a run, of the enqueue that led to the run.
      run_token(int): Fencing token of the run; 0 for none.  The store keeps the token of the newest run and refuses
        the updates of older runs.
      sequence(int): Number of the update among the updates of its run.  The store keeps the last one, so
        that an update that is sent again after a time-out counts once.
      start(bool): Whether the run begins with this update, unless the record has its run token already.
      create(bool): Whether the update has all values of its run, and creates a missing record.
      state(int): Stored number of the state that the message enters; None to keep its state.
      attempts(int): Minimum number of runs that the record shows after this update, if `start` is set or the update
        creates the record.
      fields(Record): Fields to set: JSON texts by stored names.  A request to cancel sets its reason only.
      increment(int | float): Number to add to the progress, after `fields` are set.
      ttl(int): Time to live of the record in milliseconds, if `state` is a final state.  In an update from outside of
        a run, the record's own ``status_ttl`` has priority, and a finished record keeps its expiry.
      changes(Changes): Deletions to carry out before `fields` are set, numbers to add to fields after that, and whether
        to set the progress to the total at the end; None for no changes.  Only updates of the kinds ``RUN`` and
        ``OUTSIDE`` have changes.
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
    """Result of :func:`apply`.

    Parameters:
      outcome(Outcome)
      record(Record): Record after the update; None if there is none.
      ttl(int): New time to live of the record in milliseconds; None to keep its expiry.  With 0, the record is removed.
    """

    outcome: Outcome
    record: Record | None
    ttl: int | None = None


def is_stored(outcome: Outcome) -> bool:
    """Whether an update with this outcome has set its state and its fields."""
    return outcome is _APPLIED or outcome is Outcome.UNCOUNTED or outcome is _REQUESTED


def _is_transition(record: Record | None, update: Update) -> bool:
    """Whether an update that is applied to `record` creates it or sets its state."""
    if update.kind is Kind.CANCEL:
        return record is not None and record[STATE] == str(QUEUED)
    if record is None or update.kind is Kind.ENQUEUE or update.state is not None:
        return True
    return update.start and not is_owner(record, update.run_token)


def is_moved(record: Record | None, update: Update, applied: Applied) -> bool:
    """Whether an applied update gives the message a new position in lists: it has created the record or set its
    state, or a worker has dropped a cancelled message.
    """
    if applied.outcome is Outcome.CANCELLED:
        # If a worker has dropped the message, its record has another time to live.
        return applied.record is not record
    return is_stored(applied.outcome) and _is_transition(record, update)


def apply(record: Record | None, update: Update, now: int) -> Applied:
    """Carry out an update on a record.

    Parameters:
      record(Record): Record in the store; None if there is none.  The function does not change it.
      update(Update)
      now(int): Current time by the store's clock, in epoch milliseconds.

    Returns:
      Applied: Outcome, new record and its time to live.

    Raises:
      ValueError: When a request to cancel sets another field than its reason.
    """
    if update.kind is _RUN:
        return _apply_run(record, update, now)
    if update.kind is _ENQUEUE:
        return _apply_enqueue(record, update, now)
    if update.kind is Kind.HEARTBEAT:
        return _apply_heartbeat(record, update, now)
    if update.kind is Kind.CANCEL:
        return _apply_cancel(record, update, now)
    if update.kind is Kind.WITHDRAWAL:
        return _apply_withdrawal(record, update, now)
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
                if RUN_ENDED in update.fields and update.enqueue_id.generation == int(record[GENERATION]):
                    # The run that follows from this enqueue began before the enqueue arrived. The enqueue contains the
                    # end of the previous run.
                    complete_run(new, update.fields)
                return Applied(Outcome.LATE, touch(new, record, now) if new != record else record)
            if finished and CANCELLED in record:
                # The retry comes from a run that was running when the message was cancelled.
                return Applied(Outcome.CANCELLED, record)
        elif record[ORIGIN] != _NO_ORIGIN and update.enqueue_id.generation > 1 and not finished:
            # A retry that follows from an older enqueue of the message: the newer enqueue owns the status.
            return Applied(Outcome.LATE, record)
        # A process with the middleware may requeue a message that a process without it has enqueued.
        if record[ORIGIN] in (origin, _NO_ORIGIN) and not finished:
            new = {name: text for name, text in record.items() if name not in CLEARED_BY_REQUEUE}
            for name, text in update.fields.items():
                if name in WRITTEN_BY_REQUEUE:
                    new[name] = text
                elif DELETED_PREFIX + name not in record:
                    new.setdefault(name, text)
            new[ORIGIN], new[GENERATION] = origin, generation
            new[STATE] = str(QUEUED)
            ttl = live_ttl_of(new, now)
            if CANCEL_REQUESTED_AT in new:
                # The message does not run again.
                cancel_waiting(new, now)
                return Applied(_REQUESTED, touch(new, record, now), ttl)
            return Applied(Outcome.APPLIED, touch(new, record, now), ttl)
    new = {**update.fields, STATE: str(QUEUED), ORIGIN: origin, GENERATION: generation}
    return Applied(Outcome.APPLIED, touch(new, record, now), live_ttl_of(new, now))


def _check_run(record: Record | None, update: Update) -> Outcome:
    """Return ``APPLIED`` if the run may write to the record; otherwise return the outcome of the refused update.

    ``MISSING`` stands for a missing record, and for a record of another enqueue, which the run may replace.
    """
    if record is None:
        return Outcome.MISSING
    finished = is_finished(record)
    if update.run_token and is_owner(record, update.run_token):
        if update.sequence <= int(record[SEQUENCE]):
            return Outcome.DUPLICATE
        return Outcome.REFUSED if finished else _APPLIED
    if not update.start and update.state is None:
        return Outcome.REFUSED
    if record.get(ORIGIN) != str(update.enqueue_id.origin):
        # Two enqueues of one message: the run that started last owns the status.
        may_replace = update.start or not update.run_token
        return Outcome.MISSING if may_replace and not is_outdated(record, update.fields) else Outcome.REFUSED
    if finished and CANCELLED in record:
        return Outcome.CANCELLED
    ahead = update.enqueue_id.generation - int(record[GENERATION])
    if ahead < 0:
        return Outcome.REFUSED
    if finished:
        return Outcome.MISSING if ahead else Outcome.REFUSED
    if not ahead and update.start and RUN_TOKEN in record and is_earlier_run(record, update.run_token):
        # The start of an older run is sent again, because its reply was lost.
        return Outcome.REFUSED
    if update.start or not update.run_token or RUN_TOKEN not in record or ahead:
        return Outcome.APPLIED
    return Outcome.REFUSED


def _apply_run(record: Record | None, update: Update, now: int) -> Applied:
    outcome = _check_run(record, update)
    # The start of a run may be stored although its reply is lost, and be sent again as part of a later update.
    starts = update.start and (record is None or not is_owner(record, update.run_token))
    if outcome is _APPLIED:
        assert record is not None
        new = dict(record)
        if starts:
            counted_before_any_run = None if ATTEMPTS in new else new.get(PROGRESS)
            attempts = max(int(new.get(ATTEMPTS, "0")) + 1, update.attempts)
            keep_run(new, attempts, requeued=update.enqueue_id.generation > int(new[GENERATION]))
            for name in CLEARED_BY_START:
                new.pop(name, None)
            if counted_before_any_run is not None:
                # Other messages have incremented the progress of this message before its first run.
                new[PROGRESS] = counted_before_any_run
            new[ATTEMPTS] = str(attempts)
            new[STATE] = str(WORKING)
    elif outcome is Outcome.MISSING and update.create:
        new = {STATE: str(WORKING)}
        if update.run_token:
            new[ATTEMPTS] = str(update.attempts)
    else:
        # A worker drops a message that was cancelled. From then on, the status expires as that of any finished message.
        is_dropped = outcome is Outcome.CANCELLED and update.state is not None and update.state >= COMPLETED
        return Applied(outcome, dict(record or {}), limited_ttl(update.ttl)) if is_dropped else Applied(outcome, record)
    if starts or update.create or update.state is not None:
        # All other updates of a run keep the enqueue id that the start of the run has stored in the record.
        new[ORIGIN], new[GENERATION] = str(update.enqueue_id.origin), str(update.enqueue_id.generation)
    if update.run_token:
        new[RUN_TOKEN], new[SEQUENCE] = str(update.run_token), str(update.sequence)
        if starts or outcome is not _APPLIED:
            new[HEARTBEAT_AT] = str(now)
    outcome = _write(new, update)
    if update.state is not None and update.state >= COMPLETED:
        finish(new, update.state)
        return Applied(outcome, touch(new, record, now), update.ttl)
    if update.state is not None:
        new.pop(FINISHED_AT, None)
        new[STATE] = str(update.state)
    if starts and CANCEL_REQUESTED_AT in new and outcome is _APPLIED:
        outcome = _REQUESTED
    return Applied(outcome, touch(new, record, now), live_ttl_of(new, now))


def _apply_outside(record: Record | None, update: Update, now: int) -> Applied:
    if record is None:
        return Applied(Outcome.MISSING, None)
    new = dict(record)
    keep_time_of_rate(new)
    outcome = _write(new, update)
    if update.state is not None and update.state >= COMPLETED:
        finish(new, update.state)
        new.setdefault(FINISHED_AT, str(now))
        # A finished record keeps its expiry.
        ttl = None if is_finished(record) else status_ttl_of(record, update.ttl)
        return Applied(outcome, touch(new, record, now), ttl)
    if update.state is not None:
        new.pop(FINISHED_AT, None)
        new[STATE] = str(update.state)
    ttl = None if is_finished(new) else live_ttl_of(new, now)
    return Applied(outcome, touch(new, record, now), ttl)


def _apply_cancel(record: Record | None, update: Update, now: int) -> Applied:
    check_request(update.fields)
    if record is None:
        return Applied(Outcome.MISSING, None)
    if is_finished(record):
        return Applied(Outcome.CANCELLED if CANCELLED in record else Outcome.REFUSED, record)
    is_running = record[STATE] == str(WORKING)
    if is_running and CANCEL_REQUESTED_AT in record:
        return Applied(_REQUESTED, record)
    new = {**record, **update.fields, CANCEL_REQUESTED_AT: str(now)}
    if is_running:
        keep_time_of_rate(new)
        return Applied(_REQUESTED, touch(new, record, now), live_ttl_of(new, now))
    # The record keeps its expiry: the message stays in its queue, and the worker that gets it must find the record.
    cancel_waiting(new, now)
    return Applied(_APPLIED, touch(new, record, now))


def _apply_withdrawal(record: Record | None, update: Update, now: int) -> Applied:
    if record is None or record[STATE] != str(QUEUED) or RUN_TOKEN in record:
        return Applied(Outcome.REFUSED, record)
    if record[ORIGIN] != str(update.enqueue_id.origin) or int(record[GENERATION]) != update.enqueue_id.generation:
        return Applied(Outcome.REFUSED, record)
    return Applied(_APPLIED, touch(dict(record), record, now), 0)


def _apply_heartbeat(record: Record | None, update: Update, now: int) -> Applied:
    if record is None:
        return Applied(Outcome.MISSING, None)
    if not is_owner(record, update.run_token) or is_finished(record):
        return Applied(Outcome.REFUSED, record)
    new = {**record, HEARTBEAT_AT: str(now)}
    outcome = _REQUESTED if CANCEL_REQUESTED_AT in new and CANCEL_SEEN_AT not in new else _APPLIED
    return Applied(outcome, new, live_ttl_of(new, now))


def _write(new: Record, update: Update) -> Outcome:
    changes = update.changes
    if changes is not None:
        for name in changes.deleted:
            new.pop(name, None)
    new.update(update.fields)
    if update.increment:
        new[PROGRESS] = number_text(number_of(new.get(PROGRESS, "0")) + update.increment)
    if changes is None:
        return _APPLIED
    is_counted = count_fields(new, changes.counts)
    if changes.to_total:
        new.update(at_total(new.get(PROGRESS), new.get(TOTAL)))
    return _APPLIED if is_counted else Outcome.UNCOUNTED
