"""The merging of a message's operations into its pending updates."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from .. import _time as time
from .._log import logger
from ..rate import MIN_INTERVAL, RateMeter
from ..record import (
    ATTEMPTS,
    PROGRESS,
    RATE,
    RATE_WRITTEN_AT,
    STILL_CURRENT,
    TOTAL,
    Counts,
    Record,
    at_total,
    count_on,
    counts_in,
    deletion_marks,
    number_of,
)
from ..transitions import CLEARED_BY_START, WRITTEN_BY_REQUEUE
from ..update import Changes, Kind, Outcome, Update
from .operations import Confirmation, Enqueue, Finish, Operation, Start, Withdrawal, Write, plain_number, pop_first
from .pending import MergedState, PendingUpdate

# Reading an attribute of an Enum takes five times as long as reading a global.
_APPLIED: Final = Outcome.APPLIED


class Merger:
    """Merger of the operations of one message, with the meter of its rate.

    Parameters:
      message_id(str)
      template(dict): Arguments of all its updates: their kind, enqueue and run.
      make_base(Callable): Returns the fields of the message when the run began.
      whole(Update): Update of the first operations, which was frozen before they were merged; None for none.
    """

    #: is_urgent: Whether the pending updates contain an operation that does not wait for the throttle. is_throttled:
    #: Whether they contain an operation that waits for it.
    is_urgent: bool = False
    is_throttled: bool = False
    #: Whether there are pending updates that wait for the outcomes of earlier updates.
    is_held: bool = False
    # Number of the last update of the run.
    _sequence = 0
    _base: Record | None = None
    _meter: RateMeter | None = None
    # Time at which a total was set before the measurement of the rate began, by the monotonic clock.
    _total_at = -math.inf
    # Whether it was logged that an operation cannot be merged.
    _has_refused = False

    def __init__(
        self,
        message_id: str,
        template: dict[str, Any],
        make_base: Callable[[], Record],
        whole: Update | None = None,
    ) -> None:
        self.message_id = message_id
        self.kind: Kind = template["kind"]
        #: The result of the operations that were merged.
        self.state: MergedState = MergedState(template, {})
        self._make_base = make_base
        #: The parameter `whole`, until the first operations are merged; then None.
        self.whole: Update | None = whole

    @property
    def base(self) -> Record:
        """The fields of the message when the run began."""
        if self._base is None:
            try:
                self._base = self._make_base()
            except Exception:
                # Another program may have made the message. The updates of the message are still sent.
                logger.exception(
                    "The fields of message %r cannot be encoded. Its status is stored without them.", self.message_id
                )
                self._base = {}
        return self._base

    def keep_base(self) -> Record:
        """Return the base, and keep it in place of the message from which it is made."""
        self._base, self._make_base = self.base, dict
        return self._base

    def merge(self, operations: deque[Operation]) -> MergedState:
        """Merge the operations of a buffer, and return the new state."""
        state = self.state
        if operations:
            state.taken.extend(pop_first(operations, len(operations)))
        if state.taken:
            self.state = state = self._merge_taken(state)
        if self.whole is not None and state.pending:
            # The order matters: after an interrupt between the two, the next call executes both again.
            state.pending[0].frozen, self._sequence = self.whole, self.whole.sequence
            self.whole = None
        return state

    def _merge_taken(self, state: MergedState) -> MergedState:
        """Return a state that contains the operations that `state` has taken.

        An operation that cannot be merged is dropped alone.  After an interrupt, the next call merges them all again.
        """
        while state.taken:
            copy = state.copy()
            refused = self._merge_all(copy, state.taken)
            if refused is None:
                return copy
            state.taken = [operation for operation in state.taken if operation is not refused]
        return state

    def _merge_all(self, state: MergedState, operations: list[Operation]) -> Operation | None:
        """Merge operations into a state.

        Returns:
          The first operation that cannot be merged; None if all are merged.  After such an operation, the state is
          incomplete, and must not be used.
        """
        count: int | float | None = None
        for operation in operations:
            if operation.__class__ is int or operation.__class__ is float:
                # Most operations are increments: a sum of them is merged at once.
                self.is_throttled = True
                count = operation if count is None else count + operation
                continue
            if count is not None:
                state.add(count)
                count = None
            try:
                self._merge_one(state, operation)
            except Exception:
                if not self._has_refused:
                    self._has_refused = True
                    logger.exception(
                        "A %s that was written to message %r cannot be merged and is dropped. Later operations on this "
                        "message that cannot be merged are dropped without a log line. All others are sent.",
                        type(operation).__name__,
                        self.message_id,
                    )
                return operation
        if count is not None:
            state.add(count)
        return None

    def _merge_one(self, state: MergedState, operation: Operation) -> None:
        if isinstance(operation, Start):
            self._merge_fields(state, operation.fields, start=True, attempts=operation.attempts)
            state.attempts = operation.attempts
        elif isinstance(operation, Finish):
            self._merge_fields(state, operation.fields, state=operation.state, ttl=operation.ttl)
        elif isinstance(operation, Confirmation):
            if state.pending:
                state.pending[-1].confirmations.append(operation)
                self.is_urgent = True
            else:
                operation.release(True)
        elif isinstance(operation, Write):
            self._merge_write(state, operation)
        elif isinstance(operation, Enqueue):
            self._merge_enqueue(state, operation)
        elif isinstance(operation, Withdrawal):
            state.append({"kind": Kind.WITHDRAWAL, "enqueue_id": operation.enqueue_id, "fields": {}})
            self.is_urgent = True
        elif isinstance(operation, (int, float)):
            # An instance of a derived class.
            self.is_throttled = True
            state.add(plain_number(operation))
        else:
            raise TypeError(f"A {type(operation).__name__} cannot be merged.")

    def _merge_fields(self, merged: MergedState, fields: Record, **content: Any) -> None:
        pending = merged.last(is_end=True)
        pending.fields.update(fields)
        pending.arguments.update(content)
        merged.known.update(fields)
        self.is_urgent = True

    def _merge_enqueue(self, state: MergedState, enqueue: Enqueue) -> None:
        left = self._left_to_requeue(state)
        # The values that the run has written or deleted are newer than the values that were sent with the message.
        gone = state.deleted.union(name for name in state.known if name not in WRITTEN_BY_REQUEUE)
        fields = left | {name: text for name, text in enqueue.fields.items() if name not in gone}
        state.append({"kind": Kind.ENQUEUE, "enqueue_id": enqueue.enqueue_id, "fields": fields})
        state.template = {**state.template, "enqueue_id": enqueue.enqueue_id}
        self.is_urgent = True

    def _left_to_requeue(self, state: MergedState) -> Record:
        # The store uses these fields only if it has lost the record. With them, the restored status has the progress of
        # the last run, until the retry starts, or forever if the broker refuses the retry.
        if self.kind is not Kind.RUN:
            return {}
        fields = self.all_fields(state)
        left = {name: text for name, text in fields.items() if name == PROGRESS or name not in CLEARED_BY_START}
        left[ATTEMPTS] = str(state.attempts)
        return left

    def _merge_write(self, state: MergedState, write: Write) -> None:
        pending = state.last()
        pending.set(write.fields)
        self._begin_measurement(write.fields, pending, state.known)
        state.known.update(write.fields)
        if write.state is not None:
            pending.arguments["state"] = write.state
        if write.urgent:
            self.is_urgent = True
        else:
            self.is_throttled = True
        if write.increment:
            state.add(plain_number(write.increment))
        if write.changes is not None:
            self._merge_changes(state, pending, write.changes)

    def _merge_changes(self, state: MergedState, pending: PendingUpdate, changes: Changes) -> None:
        pending.change(changes)
        # Only a field that was sent with the message can come back with a later enqueue. Other fields need no deletion
        # mark.
        marks = deletion_marks(name for name in changes.deleted if self.kind is Kind.OUTSIDE or name in self.base)
        pending.fields.update(marks)
        state.known.update(marks)
        if changes.to_total:
            pending.reached = self._at_total(state)
        self._begin_measurement({**changes.counts, **pending.reached}, pending, state.known)
        self.note_changes(state, changes)

    def note_update(self, update: Update) -> None:
        """Note a stored update from outside of the run."""
        known = self.state.known
        known.update(update.fields)
        if update.increment:
            self.state.count(update.increment)
        if update.changes is not None:
            self.note_changes(self.state, update.changes)

    def note_changes(self, state: MergedState, changes: Changes) -> None:
        """Apply changes to the fields that the run has written."""
        known = state.known
        state.deleted |= changes.deleted
        for name in changes.deleted:
            known.pop(name, None)
        for name, n in changes.counts.items():
            before = known.get(name)
            if before is None and name not in state.deleted:
                before = self.base.get(name)
            text = count_on(before, n)
            if text is not None:
                known[name] = text
        if changes.to_total:
            known.update(self._at_total(state))

    def _at_total(self, state: MergedState) -> Record:
        return at_total(state.known.get(PROGRESS), state.known.get(TOTAL) or self.base.get(TOTAL))

    def all_fields(self, state: MergedState) -> Record:
        """Return the fields that the run has written, and the other fields of the base, except the deleted ones."""
        base = self.base
        if state.deleted:
            base = {name: text for name, text in base.items() if name not in state.deleted}
        return {**base, **state.known}

    # Freezing

    def freeze_all(self, operations: deque[Operation], now: float, *, is_closed: bool) -> list[Update]:
        """Merge operations, freeze the pending updates, and return them: see :meth:`.MessageBuffer.take`."""
        state = self.merge(operations)
        updates = []
        self.is_held = False
        holds = bool(state.pending) and state.pending[0].frozen is not None and not is_closed
        for pending in state.pending:
            update = pending.frozen
            if update is None:
                if holds:
                    self.is_held = True
                    break
                update = self._freeze(pending, state.known, now)
            updates.append(update)
        self.is_urgent = False
        return updates

    def _freeze(self, pending: PendingUpdate, known: Record, now: float) -> Update:
        """Freeze an update that is about to be sent, and return it."""
        if pending.arguments["kind"] is not Kind.RUN:
            return pending.freeze(0)
        self._sequence += 1
        if "state" not in pending.arguments:
            self.store_rate(pending, known, now)
        return pending.freeze(self._sequence)

    def settle(
        self,
        updates: Iterable[Update],
        outcomes: Iterable[Outcome],
        is_left: Callable[[PendingUpdate, Outcome], bool],
    ) -> bool:
        """Process the outcomes of updates, and return whether updates are left to be sent at once: see
        :meth:`.MessageBuffer.settle`.
        """
        state = self.state
        # `list[PendingUpdate]()` would take ten times as long.
        left: list[PendingUpdate] = []
        without_outcome: list[PendingUpdate] = []
        outcome_by_id = dict(zip(map(id, updates), outcomes))
        for pending in state.pending:
            outcome = outcome_by_id.get(id(pending.frozen))
            if outcome is None:
                without_outcome.append(pending)
            elif outcome is not _APPLIED and is_left(pending, outcome):
                left.append(pending)
            elif left:
                left[-1].confirmations += pending.confirmations
            else:
                pending.release(True)
        state.pending = left + without_outcome
        return bool(left) or self.is_held

    def complete(self, first: PendingUpdate) -> None:
        """Replace a frozen update of the run, and the frozen updates after it, by updates with all fields of the base
        and of the run.  The new updates create the lost record again.  Their progress already includes the increments.

        An earlier call may have timed out, and the store may still get the replaced updates.  So the new updates
        have new sequence numbers: with the old numbers, the store would take the new updates for repetitions.
        """
        state = self.state
        state.absorb_counts()
        later = state.pending[state.pending.index(first) :]
        frozen = [pending for pending in later if pending.frozen is not None and pending.frozen.kind is Kind.RUN]
        fields = {
            name: text
            for name, text in self.all_fields(state).items()
            if name not in CLEARED_BY_START or name in state.known
        }
        changes = Changes(deleted=state.deleted) if state.deleted else None
        self._sequence += len(frozen)
        # Replace the last one first: after an interrupt, no update with an old number may follow one with a new number.
        for sequence, pending in zip(range(self._sequence, 0, -1), reversed(frozen)):
            assert pending.frozen is not None
            pending.frozen = pending.frozen._replace(
                sequence=sequence, create=True, fields=fields, increment=0, attempts=state.attempts, changes=changes
            )

    # The rate

    def counts(self, now: float) -> Counts:
        """Return the progress, the total and the rate as this process has written them."""
        known, rate = self.state.known, self._meter.rate_at(now) if self._meter else None
        return counts_in(known.get(PROGRESS), known.get(TOTAL) or self.base.get(TOTAL), rate)

    def forget_rate(self) -> None:
        """Stop measuring the rate: the run continues in another process."""
        self._meter = None

    def store_rate(self, pending: PendingUpdate, known: Record, now: float) -> None:
        """Measure the progress, and add the rate to an update about to be frozen."""
        if pending.arguments.get("increment") or PROGRESS in pending.fields or PROGRESS in pending.reached:
            if self._meter is None:
                self._meter = RateMeter()
            self._meter.observe(number_of(known[PROGRESS]), now)
        rate = self._meter.text_at(now) if self._meter else None
        if rate is not None and rate != known.get(RATE):
            pending.fields[RATE] = known[RATE] = rate
            pending.fields[RATE_WRITTEN_AT] = known[RATE_WRITTEN_AT] = STILL_CURRENT

    def _begin_measurement(self, fields: Mapping[str, Any], pending: PendingUpdate, known: Record) -> None:
        """Begin a new measurement of the rate if a write begins a new count.

        A progress of 0, or below the present progress, begins a new count.  The first progress or total begins the
        first count.
        """
        now = time.monotonic()
        has_begun = self._meter is not None and self._meter.begun
        before = number_of(known.get(PROGRESS, "0"))
        if PROGRESS in fields:
            count = number_of(fields[PROGRESS])
            # A progress that is set directly after the total is the point where the run continues earlier work. It was
            # not reached in this run, so it is not measured.
            continues, self._total_at = now - self._total_at < MIN_INTERVAL, -math.inf
            if has_begun and 0 < count >= before and not continues:
                return
        elif TOTAL in fields and not has_begun:
            count, self._total_at = before, now
        else:
            return
        if self._meter is None:
            self._meter = RateMeter()
        self._meter.begin(count, now)
        if known.pop(RATE, None) is not None:
            pending.fields[RATE] = "null"
