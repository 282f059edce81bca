"""Pending updates: operations of a message, merged into updates that are not stored yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from sys import getsizeof
from typing import Any

from ..record import PROGRESS, Record, number_of, number_text
from ..update import Changes, Kind, Update
from .operations import Confirmation, Operation, plain_number


class PendingUpdate:
    """An update that the store does not have yet.

    Until it is sent, it holds the arguments of the update, and further operations change them.  From then on it is
    frozen, because the writer repeats it unchanged if its reply is lost.  (To replace fields of an update at each
    operation takes three times as long.)

    Parameters:
      arguments(dict): Arguments of :class:`.Update`, with ``kind`` and ``fields`` at least.
      confirmations(Iterable[Confirmation]): Confirmations of this update and of all updates before it.
    """

    __slots__ = ("arguments", "confirmations", "fields", "frozen", "reached")

    def __init__(self, arguments: dict[str, Any], confirmations: Iterable[Confirmation] = ()) -> None:
        self.arguments: dict[str, Any] = arguments
        self.fields: Record = arguments["fields"]
        self.confirmations: list[Confirmation] = list(confirmations)
        #: The update as it is sent; None before.
        self.frozen: Update | None = None
        #: The fields that ``Changes.to_total`` sets, with the values that this process expects; empty without it.  An
        #: update applies ``to_total`` last, so later counts need another update.
        self.reached: Record = {}

    def copy(self) -> PendingUpdate:
        """Return a copy for further operations."""
        copy = PendingUpdate({**self.arguments, "fields": dict(self.fields)}, self.confirmations)
        copy.reached = self.reached
        return copy

    @property
    def is_open(self) -> bool:
        """Whether further operations may be merged into it."""
        arguments = self.arguments
        return self.frozen is None and "state" not in arguments and arguments["kind"] is not Kind.ENQUEUE

    @property
    def changes(self) -> Changes | None:
        """Fields to delete, numbers to add to fields, and whether to set the progress to the total."""
        return self.arguments.get("changes")

    def freeze(self, sequence: int) -> Update:
        """Freeze the update: later operations do not change it.  Return it."""
        self.frozen = update = Update(sequence=sequence, **self.arguments)
        return update

    def add(self, n: int | float) -> None:
        """Add to the progress."""
        self.arguments["increment"] = self.arguments.get("increment", 0) + n

    def set(self, fields: Record) -> None:
        """Set fields.  Earlier additions to these fields are dropped."""
        if PROGRESS in fields:
            self.arguments.pop("increment", None)
        self.fields.update(fields)
        if "changes" in self.arguments:
            self.keep_counts(lambda name: name not in fields)

    def change(self, changes: Changes) -> None:
        """Delete fields, then add to fields, then set the progress to the total."""
        before = self.changes or Changes()
        counts = dict(before.counts)
        for name in changes.deleted:
            self.fields.pop(name, None)
            counts.pop(name, None)
        for name, n in changes.counts.items():
            counts[name] = counts.get(name, 0) + plain_number(n)
        self.arguments["changes"] = Changes(counts, before.deleted | changes.deleted, changes.to_total)

    def keep_counts(self, keeps: Callable[[str], bool]) -> None:
        """Drop the additions to fields, except to those that `keeps` accepts, and clear ``to_total``."""
        changes = self.changes
        if changes is not None:
            counts = {name: n for name, n in changes.counts.items() if keeps(name)}
            self.arguments["changes"] = Changes(counts, changes.deleted) if counts or changes.deleted else None

    def release(self, stored: bool) -> None:
        """Release the confirmations."""
        for confirmation in self.confirmations:
            confirmation.release(stored)
        self.confirmations = []


class MergedState:
    """The result of all operations of a message so far.

    A thread that merges operations replaces it as a whole, so that an interrupt leaves the old state or the new one.
    The writer changes it in place when it freezes, replaces or removes pending updates.

    Parameters:
      template(dict): Arguments of all its updates: their kind, enqueue and run.
      known(Record): Fields that the run has written, by stored names.
    """

    __slots__ = ("attempts", "deleted", "known", "pending", "taken", "template")

    def __init__(self, template: dict[str, Any], known: Record) -> None:
        self.template: dict[str, Any] = template
        self.known: Record = known
        self.attempts: int = 1
        #: Updates that the store does not have yet, in order.
        self.pending: list[PendingUpdate] = []
        #: Stored names of the fields that the run has deleted, including those that it has written again.
        self.deleted: frozenset[str] = frozenset()
        #: Operations to merge next.  They stay here until another state contains them.
        self.taken: list[Operation] = []

    def copy(self) -> MergedState:
        """Return a copy for further operations."""
        copy = MergedState(self.template, dict(self.known))
        copy.attempts, copy.deleted = self.attempts, self.deleted
        if self.pending:
            copy.pending = self.pending[:]
            if copy.pending[-1].frozen is None:
                copy.pending[-1] = copy.pending[-1].copy()
        return copy

    def last(self, *, is_end: bool = False) -> PendingUpdate:
        """Return the pending update into which to merge the next operation.  With `is_end`, the operation is the
        start or the end of a run, which may be merged after ``to_total``.
        """
        if self.pending and self.pending[-1].is_open and (is_end or not self.pending[-1].reached):
            return self.pending[-1]
        return self.append({**self.template, "fields": {}})

    def append(self, arguments: dict[str, Any]) -> PendingUpdate:
        """Append a pending update."""
        pending = PendingUpdate(arguments)
        self.pending.append(pending)
        return pending

    def add(self, n: int | float) -> None:
        """Add to the progress."""
        self.last().add(n)
        self.count(n)

    def count(self, n: int | float) -> None:
        """Add to the progress that the run has written."""
        self.known[PROGRESS] = number_text(number_of(self.known.get(PROGRESS, "0")) + n)

    def release(self, stored: bool) -> None:
        """Release the confirmations of the pending updates."""
        for pending in self.pending:
            pending.release(stored)

    def drop(self, stored: bool) -> int:
        """Drop the pending updates, release their confirmations, and return their number."""
        dropped = len(self.pending)
        self.release(stored)
        self.pending = []
        return dropped

    def drop_frozen(self) -> int:
        """Drop the frozen updates, and return their number."""
        left = [pending for pending in self.pending if pending.frozen is None]
        dropped, self.pending = len(self.pending) - len(left), left
        return dropped

    def size(self, base: Record) -> int:
        """Return the number of bytes of the texts of the pending updates, of the run's fields, and of `base`."""
        texts = [*self.known, *self.known.values(), *chain.from_iterable(base.items())]
        for pending in self.pending:
            fields = pending.fields if pending.frozen is None else pending.frozen.fields
            for name, text in fields.items():
                if self.known.get(name) is not text:
                    texts += (name, text)
            if pending.changes is not None:
                texts += pending.changes.counts
        return sum(map(getsizeof, texts))

    def absorb_counts(self) -> None:
        """Drop the additions that an update with all values of the run already includes, because they must not count
        twice.
        """
        replaced: set[str] = set()
        for pending in self.pending:
            if pending.frozen is not None:
                continue
            if pending.arguments["kind"] is Kind.ENQUEUE:
                return
            if pending.reached:
                # The total of the lost record is lost as well.
                pending.set(pending.reached)
            # If this update or one before it sets or deletes a field, additions to the field count from the new value,
            # and are still needed.
            replaced.update(pending.fields, pending.changes.deleted if pending.changes else ())
            if PROGRESS not in replaced:
                pending.arguments.pop("increment", None)
            pending.keep_counts(replaced.__contains__)
