"""Pending updates: what the operations of a message become until the store has them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..record import PROGRESS, Record, number_of, number_text
from ..update import Changes, Kind, Update
from .operations import Confirmation, Operation, plain_number


class PendingUpdate:
    """An update that the store does not have yet.

    Operations change it until the writer sends it.  From then on it is frozen, because the writer repeats it unchanged
    if its reply is lost.
    """

    __slots__ = ("confirmations", "is_frozen", "update")

    def __init__(self, update: Update, confirmations: Iterable[Confirmation] = ()) -> None:
        self.update = update
        self.is_frozen = False
        #: Confirmations of this update and of all updates before it.
        self.confirmations = list(confirmations)

    def copy(self) -> PendingUpdate:
        """Return a copy for further operations."""
        return PendingUpdate(self.update._replace(fields=dict(self.update.fields)), self.confirmations)

    @property
    def is_open(self) -> bool:
        """Whether further operations may go into it."""
        return not self.is_frozen and self.update.kind is not Kind.ENQUEUE and self.update.state is None

    def add(self, n: int | float) -> None:
        """Add to the progress."""
        self.update = self.update._replace(increment=self.update.increment + n)

    def set(self, fields: Record) -> None:
        """Set fields.  What was counted on them before has no effect any more."""
        if PROGRESS in fields:
            self.update = self.update._replace(increment=0)
        self.update.fields.update(fields)
        self.keep_counts(lambda name: name not in fields)

    def change(self, changes: Changes) -> None:
        """Delete fields, then count on fields."""
        before = self.update.changes or Changes()
        counts = dict(before.counts)
        for name in changes.deleted:
            self.update.fields.pop(name, None)
            counts.pop(name, None)
        for name, n in changes.counts.items():
            counts[name] = counts.get(name, 0) + plain_number(n)
        self.update = self.update._replace(changes=Changes(counts, before.deleted | changes.deleted))

    def keep_counts(self, keeps: Callable[[str], bool]) -> None:
        """Drop what was counted on fields, except on those that `keeps` accepts."""
        changes = self.update.changes
        if changes is not None:
            counts = {name: n for name, n in changes.counts.items() if keeps(name)}
            left = Changes(counts, changes.deleted) if counts or changes.deleted else None
            self.update = self.update._replace(changes=left)

    def release(self, stored: bool) -> None:
        """Release the confirmations."""
        for confirmation in self.confirmations:
            confirmation.release(stored)
        self.confirmations = []


class MergedState:
    """The result of all operations of a message so far.

    A thread replaces it as a whole, so that an interrupt leaves the old state or the new one.  Only its pending updates
    change in place, when the writer freezes or removes them.

    Parameters:
      template(Update): The update without any content: its kind, enqueue and run.
      known(Record): All that the run has written.
    """

    __slots__ = ("attempts", "deleted", "known", "pending", "taken", "template")

    def __init__(self, template: Update, known: Record) -> None:
        self.template = template
        self.known = known
        self.attempts = 1
        #: Updates that the store does not have yet, in order.
        self.pending: list[PendingUpdate] = []
        #: Stored names of the fields that the run has deleted, including those that it has written again.
        self.deleted: frozenset[str] = frozenset()
        #: Operations that come next; they stay here until another state contains them.
        self.taken: list[Operation] = []

    def copy(self) -> MergedState:
        """Return a copy for further operations."""
        copy = MergedState(self.template, dict(self.known))
        copy.attempts, copy.deleted = self.attempts, self.deleted
        if self.pending:
            copy.pending = self.pending[:]
            if not copy.pending[-1].is_frozen:
                copy.pending[-1] = copy.pending[-1].copy()
        return copy

    def last(self) -> PendingUpdate:
        """Return the pending update that the next operation goes into."""
        if self.pending and self.pending[-1].is_open:
            return self.pending[-1]
        return self.append(self.template._replace(fields={}))

    def append(self, update: Update) -> PendingUpdate:
        """Append a pending update."""
        pending = PendingUpdate(update)
        self.pending.append(pending)
        return pending

    def add(self, n: int | float) -> None:
        """Add to the progress."""
        self.last().add(n)
        self.known[PROGRESS] = number_text(number_of(self.known.get(PROGRESS, "0")) + n)

    def absorb_counts(self) -> None:
        """Drop the counts that an update with all values of the run includes: they must not count twice."""
        replaced: set[str] = set()
        for pending in self.pending:
            if pending.is_frozen:
                continue
            update = pending.update
            if update.kind is Kind.ENQUEUE:
                return
            # A field that is set or deleted is counted from that value on.
            replaced.update(update.fields, update.changes.deleted if update.changes else ())
            if PROGRESS not in replaced:
                pending.update = update._replace(increment=0)
            pending.keep_counts(replaced.__contains__)
