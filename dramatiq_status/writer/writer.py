"""How a worker process writes: what is written to each message is merged,
and many messages' updates are sent in one round trip, by one thread at a time.

The leader sends: the background thread, or a worker's thread
that waits for a final status anyhow. It then sends the updates of all messages,
instead of handing its own over to the background thread and the
processor with them, which takes longer than the round trip.

Those who write only append to a buffer, which takes no lock: an interrupt (a
time limit, an abort, a shutdown) that strikes a worker's thread in the middle
of a write can neither tear it nor leave a lock behind. One that strikes while
the thread sends leaves work half done, so every step here may be done again:
a buffer replaces what it has merged as a whole, and an update of a run that is sent
twice counts once.

What is written to a message from outside of its run has no sequence number by which the
store could tell that it has it already.  The background thread alone sends it, and no
interrupt strikes there; but where the store breaks after an increment and before its reply,
the increment is sent again, and may count twice.  The other way it could be lost.

A process that was forked off in the middle of a job writes to that job from
outside as well: at once, on the thread that writes, since it may be killed at any moment.
Before the fork the writer stores what the running messages have written, so that
what a child writes comes behind it.
"""

from __future__ import annotations

import atexit
import math
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from itertools import chain, repeat, starmap
from queue import Empty, SimpleQueue
from sys import getsizeof
from typing import Any, Final, NamedTuple

from .. import _time as time
from .._interrupts import ARE_THREADS_REAL
from .._log import logger
from .._process import at_fork, note_interrupt
from ..backend import StatusBackend
from ..circuit_breaker import FIRST_PAUSE, LONGEST_PAUSE, RECOVERY, CircuitBreaker
from ..errors import BackendError, StoreRefused
from ..fields import MAX_COUNT, check_count, name_of_field
from ..rate import SHORTEST, RateMeter
from ..record import (
    ATTEMPTS,
    DEFAULT_HEARTBEAT_INTERVAL,
    DEFAULT_STATUS_TTL,
    PROGRESS,
    RATE,
    RATE_WRITTEN_AT,
    STILL_CURRENT,
    TOTAL,
    Counts,
    Record,
    count_on,
    counts_in,
    deletion_marks,
    number_of,
    number_text,
)
from ..update import CLEARED_BY_START, NO_ENQUEUE_ID, WRITTEN_BY_REQUEUE, Changes, EnqueueId, Kind, Outcome, Update

#: Maximum number of messages whose updates the writer keeps while the store is down.
DEFAULT_MAX_PENDING: Final = 10_000

#: Maximum number of bytes of these updates.
DEFAULT_MAX_PENDING_BYTES: Final = 64 * 2**20

#: Maximum number of buffers that wait for the writer's thread in an outage until it measures them.
_MAX_UNMEASURED: Final = 16

#: Number of increments after which the writer merges those of a buffer, whatever its throttle.
_MERGE_EVERY: Final = 4096

#: Maximum number of buffers to other messages that the writer does not search for buffers that are gone.
_FEW: Final = 256

#: Maximum number of buffers that a probe sends until one has failed; each later probe of the outage sends one buffer.
_PROBE: Final = 16


class Write(NamedTuple):
    """Fields, an increment and changes, in this order; to a message that is not this run's own, a state as well."""

    fields: Record
    increment: int | float = 0
    urgent: bool = True
    state: int | None = None
    changes: Changes | None = None


class Start(NamedTuple):
    """The run begins."""

    fields: Record
    attempts: int


class Finish(NamedTuple):
    """Dramatiq is done with the message."""

    state: int
    fields: Record
    ttl: int


class Enqueue(NamedTuple):
    """The message enters its queue."""

    enqueue_id: EnqueueId
    fields: Record


class Confirmation:
    """What a thread waits for until all that was written before is stored."""

    __slots__ = ("_lock", "stored")

    def __init__(self) -> None:
        #: Whether everything was stored; None while that is not known.
        self.stored: bool | None = None
        self._lock = threading.Lock()
        self._lock.acquire()

    def release(self, stored: bool) -> None:
        """Let the waiting thread go; does nothing the second time."""
        if self.stored is None:
            self.stored = stored
            self.wake()

    def wake(self) -> None:
        """Wake the waiting thread, so that it looks about."""
        try:
            self._lock.release()
        except RuntimeError:
            # It is awake.
            pass

    def sleep(self, timeout: float) -> bool:
        """Wait until somebody wakes this thread, for so many seconds at most."""
        return self._lock.acquire(timeout=timeout)

    def wait(self, timeout: float) -> bool:
        """Wait for so many seconds at most, and tell whether all is stored;
        again, where the wait was interrupted.
        """
        if self.stored is None:
            self.sleep(timeout)
        return bool(self.stored)


_Operation = int | float | Write | Start | Finish | Enqueue | Confirmation


class PendingUpdate:
    """An update that is not stored yet.  It is frozen once it has been sent,
    because the writer repeats it unchanged if its reply is lost.
    """

    # What most entries leave as it is.
    increment: int | float = 0
    start = False
    attempts = 1
    state: int | None = None
    ttl = DEFAULT_STATUS_TTL
    enqueue = False
    changes: Changes | None = None
    frozen: Update | None = None

    def __init__(self, enqueue_id: EnqueueId) -> None:
        #: The enqueue that it belongs to; a retry that follows begins another.
        self.enqueue_id = enqueue_id
        self.fields: Record = {}
        self.confirmations: list[Confirmation] = []

    def copy(self) -> PendingUpdate:
        """The same, to go on with."""
        entry = PendingUpdate(self.enqueue_id)
        entry.fields, entry.confirmations = dict(self.fields), list(self.confirmations)
        entry.increment, entry.start, entry.attempts = self.increment, self.start, self.attempts
        entry.state, entry.ttl, entry.enqueue = self.state, self.ttl, self.enqueue
        entry.changes = self.changes
        return entry

    def change(self, changes: Changes) -> None:
        """Delete fields, then count on fields."""
        before = self.changes or Changes()
        counts = dict(before.counts)
        for name in changes.deleted:
            self.fields.pop(name, None)
            counts.pop(name, None)
        for name, n in changes.counts.items():
            counts[name] = counts.get(name, 0) + plain_number(n)
        self.changes = Changes(counts, before.deleted | changes.deleted)

    def keep_counts(self, keeps: Callable[[str], bool]) -> None:
        """Drop what was counted on fields, except for those that `keeps` accepts."""
        if self.changes is not None:
            counts = {name: n for name, n in self.changes.counts.items() if keeps(name)}
            self.changes = Changes(counts, self.changes.deleted) if counts or self.changes.deleted else None


class MergedState:
    """What a buffer has merged.  It is replaced by another, never changed,
    except that its entries are frozen and settled.
    """

    __slots__ = ("attempts", "deleted", "enqueue_id", "entries", "known", "taken")

    def __init__(
        self,
        enqueue_id: EnqueueId,
        attempts: int,
        entries: list[PendingUpdate],
        known: Record,
        deleted: frozenset[str] = frozenset(),
    ) -> None:
        #: The enqueue that what follows belongs to.
        self.enqueue_id = enqueue_id
        self.attempts = attempts
        #: What has to be sent.
        self.entries = entries
        #: What the run has written, all together.
        self.known = known
        #: Stored names of the fields that the run has deleted, including those that it has written again.
        self.deleted = deleted
        #: Operations that come next; they stay until another replaces this.
        self.taken: list[_Operation] = []

    def copy(self) -> MergedState:
        """What replaces this."""
        entries = self.entries
        if entries:
            entries = entries[:]
            if entries[-1].frozen is None:
                entries[-1] = entries[-1].copy()
            return MergedState(self.enqueue_id, self.attempts, entries, dict(self.known), self.deleted)
        return MergedState(self.enqueue_id, self.attempts, [], dict(self.known), self.deleted)

    def entry(self, *, fresh: bool = False) -> PendingUpdate:
        """The entry that the next operation goes into."""
        if self.entries and not fresh:
            last = self.entries[-1]
            if last.frozen is None and not last.enqueue and last.state is None:
                return last
        entry = PendingUpdate(self.enqueue_id)
        self.entries.append(entry)
        return entry

    def add(self, n: int | float) -> None:
        """Add to the progress."""
        self.entry().increment += n
        self.known[PROGRESS] = number_text(number_of(self.known.get(PROGRESS, "0")) + n)


class MessageBuffer:
    """What one run writes, or what this process writes to one message
    from outside of its run, in order.

    Parameters:
      writer(Writer)
      message_id(str)
      run_token(int): Fencing token of the run; 0 for writes from outside.
      enqueue_id(EnqueueId): The enqueue that the run belongs to.
      throttle(int): The shortest time between two throttled writes, in
        milliseconds.
      base(Callable): Returns what the run knows of its message, should the store lose it.
    """

    #: Final state that the run has set itself; None for none.
    requested_state: int | None = None
    #: Whether nothing can be written any more.
    closed: bool = False
    #: Whether its updates may be sent twice.
    repeatable = False
    # Whether this process was forked off, while the run goes on in the parent.
    _forked = False
    # Whether the writer knows that there is something to do.
    _signalled = False
    _sequence = 0
    # Whether something among the entries is not throttled.
    _urgent = False
    # Whether something is, and when that is due.
    _throttled = False
    _due = 0.0
    # Whether some entries wait until what was sent before is answered.
    _held = False
    # Whether it was logged that something cannot be merged, and that something cannot be counted.
    _refused = False
    _uncounted = False
    #: Time since which the message, written to from outside, has no record, by the monotonic clock; None if it has one.
    missing_since: float | None = None
    #: Whether its server, one of many, has not answered since its updates were last stored.
    unavailable: bool = False
    #: Whether the store has refused it when it was sent alone, and has not taken it since.
    suspect: bool = False
    #: Whether the store has refused its heartbeat as well, so that the writer sends no more of them.
    is_mute: bool = False
    #: When it may be sent again, by the monotonic clock, if its server of many did not answer.
    retry_at: float = 0.0
    # Kinds of trouble that were logged, each once.
    _logged: frozenset[str] = frozenset()
    _base: Record | None = None
    _meter: RateMeter | None = None
    # When a total without a progress has begun the first leg.
    _total_at = -math.inf

    def __init__(
        self,
        writer: Writer,
        message_id: str,
        *,
        kind: Kind = Kind.OUTSIDE,
        run_token: int = 0,
        enqueue_id: EnqueueId = NO_ENQUEUE_ID,
        throttle: int = 0,
        base: Callable[[], Record] = dict,
    ) -> None:
        self.message_id = message_id
        #: The thread that runs the message.
        self.thread: threading.Thread = threading.current_thread()
        self._writer = writer
        self._put = writer.put
        self._operations: deque[_Operation] = deque()
        # Guards all that follows; writing does not take it.
        self._lock = threading.Lock()
        self._kind = kind
        self._run_token = run_token
        self._merged = MergedState(enqueue_id, 1, [], {})
        self._throttle = throttle / 1000
        self._make_base = base

    @property
    def base(self) -> Record:
        """What the run knew of its message before it began."""
        if self._base is None:
            try:
                self._base = self._make_base()
            except Exception:
                # A message that another program has made, say.  Its other updates are still sent.
                logger.exception("What message %r was sent with cannot be read; it is left out.", self.message_id)
                self._base = {}
        return self._base

    # Writing, on any thread

    def increment(self, n: int | float = 1) -> None:
        """Add to the progress; throttled."""
        if n.__class__ is not int or not -MAX_COUNT <= n <= MAX_COUNT:
            n = check_count("increment", n)
        if self.closed:
            if self._forked:
                self._write_directly({}, n)
            return
        operations = self._operations
        operations.append(n)
        if not self._signalled:
            self._signal()
        elif not len(operations) % _MERGE_EVERY:
            self._put(self)

    def write(
        self,
        fields: Record,
        increment: int | float = 0,
        *,
        urgent: bool = True,
        state: int | None = None,
        changes: Changes | None = None,
    ) -> None:
        """Set fields, then add to the progress, then delete fields and count on fields; the state only from
        outside of its run.
        """
        if self._forked:
            self._write_directly(fields, increment, state, changes)
            return
        if self.closed:
            if self.is_first("closed"):
                logger.warning("Message %r is finished: what its run writes now is dropped.", self.message_id)
            return
        self.add(Write(fields, increment, urgent, state, changes))

    def add(self, operation: _Operation) -> None:
        """Add an operation, and signal the writer."""
        self._operations.append(operation)
        self._signal()

    def _signal(self) -> None:
        """Signal to the writer that this buffer has something to send."""
        self._signalled = True
        try:
            self._put(self)
        except BaseException:
            # An interrupt came before the signal: the next increment signals.
            self._signalled = False
            raise

    def finish(self, operation: Finish, confirmation: Confirmation) -> None:
        """Add the last operation, for :meth:`Writer.confirm`, and take no more."""
        self._operations.append(operation)
        self._operations.append(confirmation)
        self._signalled = True
        self.close()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything written so far is stored.

        Returns:
          bool: False where that took longer than `timeout` seconds (by
          default the backend's own), or the store is down.
        """
        if self._forked:
            return True
        confirmation = Confirmation()
        self.add(confirmation)
        return self._writer.wait(confirmation, timeout)

    def unstored(self) -> Confirmation | None:
        """Add a confirmation behind what was written, if it is not all stored; wait for it with :meth:`Writer.wait`.

        Takes no lock: it also runs before a fork, on a thread that may hold any.
        """
        if not self._operations:
            # A write that is no longer among the operations is in the merged update.
            merged = self._merged
            if not (merged.taken or merged.entries):
                return None
        confirmation = Confirmation()
        self.add(confirmation)
        return confirmation

    def inherit(self) -> None:
        """Write directly and from outside of the run: this process is a fork, and the run goes on in the parent.
        The parent sends its own earlier writes.
        """
        self._lock = threading.Lock()
        self._operations.clear()
        known = {name: text for name, text in self._merged.known.items() if name != RATE}
        self._merged = MergedState(NO_ENQUEUE_ID, 1, [], known)
        self._meter = None
        # Looked at by each write, forked or not.
        self.closed = self._forked = True

    def _write_directly(
        self, fields: Record, increment: int | float, state: int | None = None, changes: Changes | None = None
    ) -> None:
        """Store a write of a forked process.

        Raises:
          BackendError: When it cannot be stored.
        """
        if changes is not None:
            fields = {**fields, **deletion_marks(changes.deleted)}
        update = Update(Kind.OUTSIDE, state=state, fields=fields, increment=increment, changes=changes)
        outcome = self._writer.backend.update(self.message_id, update)
        if outcome is Outcome.UNCOUNTED:
            self._log_uncounted(update)
        if outcome is Outcome.MISSING:
            if self.is_first("forked"):
                logger.warning("Message %r has no status: what a forked process writes is dropped.", self.message_id)
            return
        with self._lock:
            known = self._merged.known
            known.update(fields)
            if increment:
                known[PROGRESS] = number_text(number_of(known.get(PROGRESS, "0")) + increment)
            if changes is not None:
                self._note_changes(self._merged, changes)

    def is_first(self, trouble: str) -> bool:
        """Return whether this kind of trouble of the message is new, and note that it is logged now."""
        first = trouble not in self._logged
        self._logged |= {trouble}
        return first

    def close(self) -> None:
        """Take no more writes; what was written is still sent."""
        self.closed = True
        self._writer.running.pop(self, None)

    # Looking, on any thread

    def counts(self) -> Counts:
        """The progress, the total and the rate, as this process has written them."""
        with self._lock:
            known = self._merge().known
            rate = self._meter.rate_at(time.monotonic()) if self._meter else None
            return counts_in(known.get(PROGRESS), known.get(TOTAL) or self.base.get(TOTAL), rate)

    def has_written(self, name: str) -> bool:
        """Whether this run has written the field of this stored name."""
        with self._lock:
            return name in self._merge().known

    # Sending, on the thread that is the leader

    def collect(self, now: float) -> float | None:
        """Merge what was written, and tell when it is due by the monotonic
        clock: 0 for at once, None for nothing to do.
        """
        with self._lock:
            self._signalled = False
            entries = self._merge().entries
            if not entries:
                return None
            if self._urgent or now >= self._due or entries[0].frozen is not None:
                return 0.0
            # Increments need not tell the writer before that.
            self._signalled = True
            return self._due

    def take(self, now: float) -> list[Update]:
        """Freeze all entries and return their updates, to be followed by :meth:`settle`."""
        with self._lock:
            merged = self._merge()
            updates = []
            self._held = False
            unanswered = bool(merged.entries) and merged.entries[0].frozen is not None
            for entry in merged.entries:
                if entry.frozen is None:
                    if unanswered:
                        # Meanwhile what follows goes on merging: an outage leaves two entries, however long it is.
                        self._held = True
                        break
                    entry.frozen = self._freeze(entry, merged.known, now)
                updates.append(entry.frozen)
            self._urgent = False
            if self._throttled:
                self._throttled = False
                self._due = now + self._throttle
            return updates

    def settle(self, outcomes: Iterable[Outcome], *, keep_missing: bool = False) -> bool:
        """Take note of what became of the updates taken last.

        Parameters:
          outcomes(Iterable[Outcome]): One for each update; those of the last ones may be missing.
          keep_missing(bool): Whether to send updates from outside again where there is no record yet.

        Returns:
          bool: Whether some have to be sent again.
        """
        with self._lock:
            merged = self._merged
            left: list[PendingUpdate] = []
            sent = 0
            for entry, outcome in zip(merged.entries, outcomes):
                update = entry.frozen
                assert update is not None
                sent += 1
                if outcome is Outcome.UNAVAILABLE or (outcome is Outcome.MISSING and keep_missing):
                    left.append(entry)
                    continue
                if outcome is Outcome.MISSING and update.kind is Kind.RUN and not update.create:
                    _absorb(merged.entries)
                    entry.frozen = self._whole(update, merged)
                    left.append(entry)
                    continue
                if outcome is Outcome.MISSING:
                    if self.is_first("missing"):
                        logger.info("Message %r has no status: what was written to it is dropped.", self.message_id)
                elif outcome is Outcome.UNCOUNTED:
                    self._log_uncounted(update)
                for confirmation in entry.confirmations:
                    if left:
                        left[-1].confirmations.append(confirmation)
                    else:
                        confirmation.release(True)
            merged.entries = left + merged.entries[sent:]
        return bool(left) or self._held

    def _log_uncounted(self, update: Update) -> None:
        if not self._uncounted and update.changes is not None:
            self._uncounted = True
            logger.warning(
                "What was counted on %s of message %r is left out: such a field holds no number, or the sum is not "
                "below 2**53. All else that was written is stored.",
                " or ".join(map(name_of_field, update.changes.counts)),
                self.message_id,
            )

    def give_up(self) -> None:
        """Let the threads go that wait for the updates."""
        with self._lock:
            for entry in self._merged.entries:
                self._release(entry)

    def drop(self) -> int:
        """Drop all updates, and return their number."""
        with self._lock:
            dropped, self._merged.entries = self._merged.entries, []
            for entry in dropped:
                self._release(entry)
            return len(dropped)

    def drop_sent(self) -> tuple[int, bool]:
        """Drop the updates taken last, and return their number and whether others are left."""
        with self._lock:
            merged = self._merged
            left = [entry for entry in merged.entries if entry.frozen is None]
            for entry in merged.entries:
                self._release(entry)
            dropped, merged.entries = len(merged.entries) - len(left), left
            return dropped, bool(left)

    def _release(self, entry: PendingUpdate) -> None:
        for confirmation in entry.confirmations:
            # Without a record there is nothing to wait for.
            confirmation.release(self.missing_since is not None)
        entry.confirmations = []

    def count_unsent(self) -> int:
        """Count the updates that are still to be sent."""
        with self._lock:
            return len(self._merge().entries)

    def size(self) -> int | None:
        """Return the number of bytes of the texts that the buffer holds for its updates; None without updates."""
        with self._lock:
            merged = self._merge()
            if not merged.entries:
                return None
            if self.closed:
                # The record of the message takes the place of the message itself, whose size is unknown.
                self._base, self._make_base = self.base, dict
            known = merged.known
            texts = [*known, *known.values(), *chain.from_iterable((self._base or {}).items())]
            for entry in merged.entries:
                fields = entry.fields if entry.frozen is None else entry.frozen.fields
                for name, text in fields.items():
                    if known.get(name) is not text:
                        texts += (name, text)
                if entry.changes is not None:
                    texts += entry.changes.counts
            return sum(map(getsizeof, texts))

    def heartbeat(self) -> Update:
        return Update(Kind.HEARTBEAT, self._merged.enqueue_id, self._run_token)

    def restore(self) -> None:
        """The store has lost the record of a running message."""
        self.add(Write({}))

    def _merge(self) -> MergedState:
        """Merge what was written; done again as a whole where it was interrupted.

        An operation that cannot be merged is dropped alone, and the others are merged without it.
        """
        merged, operations = self._merged, self._operations
        if operations:
            # One call into C: an interrupt strikes before it or behind it, and leaves nothing else in the queue.
            merged.taken.extend(starmap(operations.popleft, repeat((), len(operations))))
        while merged.taken:
            copy = merged.copy()
            refused = self._fold(copy, merged.taken)
            if refused is None:
                self._merged = copy
                return copy
            merged.taken = [operation for operation in merged.taken if operation is not refused]
        return merged

    def _fold(self, copy: MergedState, operations: list[_Operation]) -> _Operation | None:
        """Merge operations into a copy.

        Returns:
          The first operation that cannot be merged, None for none.  The copy is then of no use.
        """
        count: int | float | None = None
        for operation in operations:
            if operation.__class__ is int or operation.__class__ is float:
                # By far the most; taken together, so that nobody counts faster than this.
                self._throttled = True
                count = operation if count is None else count + operation
                continue
            if count is not None:
                copy.add(count)
                count = None
            try:
                self._merge_one(copy, operation)
            except Exception:
                if not self._refused:
                    self._refused = True
                    logger.exception(
                        "A %s that was written to message %r cannot be merged. It is dropped, and so is every other "
                        "of this message that cannot be merged; all else is sent.",
                        type(operation).__name__,
                        self.message_id,
                    )
                return operation
        if count is not None:
            copy.add(count)
        return None

    def _merge_one(self, copy: MergedState, operation: _Operation) -> None:
        if isinstance(operation, Start):
            entry = copy.entry()
            entry.start, entry.attempts = True, operation.attempts
            copy.attempts = operation.attempts
            entry.fields.update(operation.fields)
            copy.known.update(operation.fields)
            self._urgent = True
        elif isinstance(operation, Finish):
            entry = copy.entry()
            entry.state, entry.ttl = operation.state, operation.ttl
            entry.fields.update(operation.fields)
            copy.known.update(operation.fields)
            self._urgent = True
        elif isinstance(operation, Confirmation):
            if copy.entries:
                copy.entries[-1].confirmations.append(operation)
                self._urgent = True
            else:
                operation.release(True)
        elif isinstance(operation, Write):
            self._merge_write(copy, operation)
        elif isinstance(operation, Enqueue):
            entry = copy.entry(fresh=True)
            entry.enqueue, entry.enqueue_id = True, operation.enqueue_id
            copy.enqueue_id = operation.enqueue_id
            left = self._left_to_requeue(copy)
            # What the run has written or deleted is newer than what was given with the message.
            gone = copy.deleted.union(name for name in copy.known if name not in WRITTEN_BY_REQUEUE)
            entry.fields = left | {name: text for name, text in operation.fields.items() if name not in gone}
            self._urgent = True
        elif isinstance(operation, (int, float)):
            # Of a class derived from these: the store gets a plain number.
            self._throttled = True
            copy.add(plain_number(operation))
        else:
            raise TypeError(f"A {type(operation).__name__} cannot be merged.")

    def _merge_write(self, copy: MergedState, write: Write) -> None:
        entry = copy.entry()
        if PROGRESS in write.fields:
            entry.increment = 0
        entry.fields.update(write.fields)
        entry.keep_counts(lambda name: name not in write.fields)
        self._note_leg(write.fields, entry, copy.known)
        copy.known.update(write.fields)
        if write.state is not None:
            entry.state = write.state
        if write.urgent:
            self._urgent = True
        else:
            self._throttled = True
        if write.increment:
            copy.add(plain_number(write.increment))
        if write.changes is not None:
            self._merge_changes(copy, entry, write.changes)

    def _merge_changes(self, copy: MergedState, entry: PendingUpdate, changes: Changes) -> None:
        entry.change(changes)
        # Only what was given with the message can come back with it.
        marks = deletion_marks(name for name in changes.deleted if self._kind is Kind.OUTSIDE or name in self.base)
        entry.fields.update(marks)
        copy.known.update(marks)
        self._note_leg(changes.counts, entry, copy.known)
        self._note_changes(copy, changes)

    def _note_changes(self, merged: MergedState, changes: Changes) -> None:
        """Update the known fields of the run after changes of single fields."""
        known = merged.known
        merged.deleted |= changes.deleted
        for name in changes.deleted:
            known.pop(name, None)
        for name, n in changes.counts.items():
            before = known.get(name)
            if before is None and name not in merged.deleted:
                before = self.base.get(name)
            text = count_on(before, n)
            if text is not None:
                known[name] = text

    def _note_leg(self, fields: Mapping[str, Any], entry: PendingUpdate, known: Record) -> None:
        """A progress of 0, or below the present one, begins a new leg; the
        first progress or total begins the first.
        """
        now = time.monotonic()
        begun = self._meter is not None and self._meter.begun
        before = number_of(known.get(PROGRESS, "0"))
        if PROGRESS in fields:
            count = number_of(fields[PROGRESS])
            # Right behind its total it says where the job takes up its work, and not how fast it was.
            taken_up, self._total_at = now - self._total_at < SHORTEST, -math.inf
            if begun and 0 < count >= before and not taken_up:
                return
        elif TOTAL in fields and not begun:
            count, self._total_at = before, now
        else:
            return
        if self._meter is None:
            self._meter = RateMeter()
        self._meter.begin(count, now)
        if known.pop(RATE, None) is not None:
            entry.fields[RATE] = "null"

    def _left_to_requeue(self, merged: MergedState) -> Record:
        # Should the store have lost the record: these only fill gaps. A retry shows the progress of the run before it
        # until it starts, and a run whose retry the broker refuses ends with it.
        if self._kind is not Kind.RUN:
            return {}
        everything = self._everything(merged)
        left = {name: text for name, text in everything.items() if name == PROGRESS or name not in CLEARED_BY_START}
        left[ATTEMPTS] = str(merged.attempts)
        return left

    def _freeze(self, entry: PendingUpdate, known: Record, now: float) -> Update:
        if entry.enqueue:
            return Update(Kind.ENQUEUE, entry.enqueue_id, fields=entry.fields)
        if self._kind is Kind.OUTSIDE:
            return Update(
                Kind.OUTSIDE,
                state=entry.state,
                fields=entry.fields,
                increment=entry.increment,
                changes=entry.changes,
            )
        self._sequence += 1
        if entry.state is None:
            if entry.increment or PROGRESS in entry.fields:
                if self._meter is None:
                    self._meter = RateMeter()
                self._meter.observe(number_of(known[PROGRESS]), now)
            rate = self._meter.text_at(now) if self._meter else None
            if rate is not None and rate != known.get(RATE):
                entry.fields[RATE] = known[RATE] = rate
                entry.fields[RATE_WRITTEN_AT] = known[RATE_WRITTEN_AT] = STILL_CURRENT
        return Update(
            Kind.RUN,
            entry.enqueue_id,
            self._run_token,
            self._sequence,
            entry.start,
            False,
            entry.state,
            entry.attempts,
            entry.fields,
            entry.increment,
            entry.ttl,
            entry.changes,
        )

    def _everything(self, merged: MergedState) -> Record:
        """The fields from before the run, without those that it has deleted, and the fields that it has written."""
        base = self.base
        if merged.deleted:
            base = {name: text for name, text in base.items() if name not in merged.deleted}
        return {**base, **merged.known}

    def _whole(self, update: Update, merged: MergedState) -> Update:
        # All that the run knows; the increments are in its progress.
        fields = {
            name: text
            for name, text in self._everything(merged).items()
            if name not in CLEARED_BY_START or name in merged.known
        }
        return update._replace(
            create=True,
            fields=fields,
            increment=0,
            attempts=merged.attempts,
            changes=Changes(deleted=merged.deleted) if merged.deleted else None,
        )


class Backlog:
    """The buffers that wait because the store does not take their updates, and the number of bytes in them.

    Each thread that sends may note a buffer.  An interrupt may strike it there, so only the writer's own thread, which
    no interrupt strikes, measures the noted buffers and updates the sum.

    Parameters:
      max_buffers(int): Maximum number of buffers.
      max_bytes(int): Maximum number of bytes in all of them.
      is_waiting(Callable): Returns whether a buffer still waits.
    """

    def __init__(self, max_buffers: int, max_bytes: int, is_waiting: Callable[[MessageBuffer], bool]) -> None:
        self._max_buffers = max_buffers
        self._max_bytes = max_bytes
        self._is_waiting = is_waiting
        self._noted: dict[MessageBuffer, None] = {}
        # The measured buffers and their sizes; those of finished messages. An OrderedDict finds its first item in
        # constant time, also after many removals there.
        self._sizes: OrderedDict[MessageBuffer, int] = OrderedDict()
        self._finished: OrderedDict[MessageBuffer, None] = OrderedDict()
        self._bytes = 0

    def __contains__(self, buffer: MessageBuffer) -> bool:
        return buffer in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def is_behind(self) -> bool:
        """Whether so many buffers were noted that they have to be measured now."""
        return len(self._noted) > _MAX_UNMEASURED

    @property
    def has_room(self) -> bool:
        """Whether the measured buffers leave room for another."""
        return len(self._sizes) < self._max_buffers and self._bytes < self._max_bytes

    def note(self, buffer: MessageBuffer) -> None:
        """Note that a buffer waits, holds more or less than before, or waits no longer."""
        self._noted[buffer] = None

    def measure(self) -> None:
        """Measure the noted buffers."""
        noted, self._noted = self._noted, {}
        for buffer in noted:
            size = buffer.size() if self._is_waiting(buffer) else None
            if size is None:
                self._forget(buffer)
            else:
                # A measured buffer keeps its place in the order.
                self._bytes += size - self._sizes.get(buffer, 0)
                self._sizes[buffer] = size
                if buffer.closed:
                    self._finished[buffer] = None

    def pop_excess(self) -> MessageBuffer | None:
        """Remove and return a buffer if there are too many, or too many bytes: the message that finished first, or
        else the buffer that has waited for longest.
        """
        if len(self._sizes) <= self._max_buffers and self._bytes <= self._max_bytes:
            return None
        buffer = next(iter(self._finished or self._sizes))
        self._forget(buffer)
        return buffer

    def _forget(self, buffer: MessageBuffer) -> None:
        self._bytes -= self._sizes.pop(buffer, 0)
        self._finished.pop(buffer, None)


class Writer:
    """Sends the updates of a process.  Its thread is started when it is
    first needed, and again after a fork, or after :meth:`drain`.

    Parameters:
      backend(StatusBackend)
      breaker(CircuitBreaker): What this process knows of the store's outages.
      heartbeat_interval(int): How often running messages say that they
        run, in milliseconds.
      max_pending(int): Maximum number of messages whose updates are kept while the
        store is down.  Beyond that, those of messages that finished
        first are dropped first.
      max_pending_bytes(int): Maximum number of bytes of these updates.
    """

    def __init__(
        self,
        backend: StatusBackend,
        breaker: CircuitBreaker,
        *,
        heartbeat_interval: int = DEFAULT_HEARTBEAT_INTERVAL,
        max_pending: int = DEFAULT_MAX_PENDING,
        max_pending_bytes: int = DEFAULT_MAX_PENDING_BYTES,
    ) -> None:
        self.backend = backend
        self.breaker = breaker
        self._interval = heartbeat_interval / 1000
        self._max_pending = max_pending
        self._max_pending_bytes = max_pending_bytes
        self._begin()
        _writers.add(self)

    def _begin(self) -> None:
        self._start_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        # Its holder, the leader, collects and sends.  It guards the buffers that are ready or due later.
        self._leadership = threading.Lock()
        # Buffers that have something to say, some more than once.
        self._signals: deque[MessageBuffer] = deque()
        # Threads that wait for their final state to be stored, and the one that was woken to send next.
        self._waiting: deque[Confirmation] = deque()
        self._next_leader: Confirmation | None = None
        # Wakes the thread; whether it sleeps, and until when.
        self._wakeup: SimpleQueue[None] = SimpleQueue()
        self._asleep = False
        self._wake_at = 0.0
        #: The buffers of the messages that run in this process, for heartbeats; each leaves when it is closed.
        self.running: dict[MessageBuffer, None] = {}
        # Buffers to messages that this process does not run, by id, and the number of them from which on to look
        # which of them are gone.
        self._outside: dict[str, weakref.ref[MessageBuffer]] = {}
        self._sweep_at = _FEW
        # Buffers with something to send, in order; buffers to look at later, and when.
        self._ready: dict[MessageBuffer, None] = {}
        self._later: dict[MessageBuffer, float] = {}
        self._next_due = math.inf
        self._backlog = Backlog(
            self._max_pending, self._max_pending_bytes, lambda buffer: buffer in self._ready or buffer in self._later
        )
        # Whether it was logged that the backlog is full.
        self._full = False
        # Whether the last probe of the present outage failed, so that each further probe sends one buffer.
        self._probes_singly = False
        self._heartbeat_at = time.monotonic() + self._interval
        # Those who wait until everything is sent.
        self._drains: deque[Confirmation] = deque()
        #: The buffers of the process that this one was forked off.
        self.inherited: list[MessageBuffer] = []

    def put(self, buffer: MessageBuffer) -> None:
        """Tell the writer that a buffer has something to send."""
        self._signals.append(buffer)
        if self._thread is None:
            self._ensure_thread()
        # The leader looks about before it releases the leadership.
        if self._asleep and not self._taken() and (self._alarm() < self._wake_at or self._is_backlogged()):
            self._wake()

    def _taken(self) -> bool:
        """Whether a thread is the leader, or is about to become it."""
        return self._next_leader is not None or self._leadership.locked()

    def begin_run(
        self, message_id: str, *, run_token: int, enqueue_id: EnqueueId, throttle: int, base: Callable[[], Record]
    ) -> MessageBuffer:
        """Open the buffer of a run."""
        self._ensure_thread()
        buffer = MessageBuffer(
            self, message_id, kind=Kind.RUN, run_token=run_token, enqueue_id=enqueue_id, throttle=throttle, base=base
        )
        buffer.repeatable = True
        return buffer

    def outside(self, message_id: str) -> MessageBuffer:
        """Open a buffer to a message that this process does not run, or
        whose run does not matter; shared by all who do.
        """
        reference = self._outside.get(message_id)
        buffer = None if reference is None else reference()
        if buffer is None:
            buffer = MessageBuffer(self, message_id)
            self._outside[message_id] = weakref.ref(buffer)
            if len(self._outside) > self._sweep_at:
                self._sweep()
        return buffer

    def _sweep(self) -> None:
        """Remove the buffers that are gone.  References with callbacks would remove them, too, but swallow an interrupt
        that strikes in a callback.
        """
        for message_id, reference in list(self._outside.items()):
            if reference() is None:
                self._outside.pop(message_id, None)
        self._sweep_at = 2 * len(self._outside) + _FEW

    def buffers_outside(self) -> list[MessageBuffer]:
        """List the buffers that :meth:`outside` has opened, and that are still there."""
        return [buffer for reference in list(self._outside.values()) if (buffer := reference()) is not None]

    def enqueue(self, message_id: str, operation: Enqueue) -> Confirmation:
        """Write that a message enters its queue; wait for the confirmation."""
        buffer, confirmation = MessageBuffer(self, message_id), Confirmation()
        buffer.repeatable = True
        buffer.add(operation)
        buffer.add(confirmation)
        return confirmation

    def wait(self, confirmation: Confirmation, timeout: float | None = None) -> bool:
        """Wait for a confirmation: not at all while the store is down, and by
        default no longer than one call to the backend may take.
        """
        if self.breaker.down:
            return False
        return confirmation.wait(self.backend.timeout / 1000 if timeout is None else timeout)

    def deadline(self) -> float:
        """The latest moment, by the monotonic clock, that an acknowledgement which begins now waits for."""
        return time.monotonic() + self.backend.timeout / 1000

    def confirm_others(
        self, buffers: Iterable[MessageBuffer], confirmations: Iterable[Confirmation], deadline: float
    ) -> None:
        """Wait until all that was written to these buffers is stored, and until these confirmations are released: not
        at all while the store is down, and no longer than until the deadline.

        The background thread sends it: an interrupt that strikes an acknowledging thread while it sends
        an increment would make that count twice.
        """
        for confirmation in [*confirmations, *filter(None, [buffer.unstored() for buffer in buffers])]:
            if self.breaker.down:
                return
            confirmation.wait(max(0.0, deadline - time.monotonic()))

    def confirm(self, buffer: MessageBuffer, confirmation: Confirmation, deadline: float | None = None) -> bool:
        """Wait until what :meth:`MessageBuffer.finish` has added is stored, and meanwhile
        send it where nobody else sends: not at all while the store is down,
        and no longer than until the deadline, by default that of now.

        Returns:
          bool: Whether it is stored.
        """
        if self.breaker.down:
            self.put(buffer)
            return False
        self._signals.append(buffer)
        if self._thread is None:
            # Should this thread not get it stored.
            self._ensure_thread()
        try:
            self._lead_or_wait(confirmation, self.deadline() if deadline is None else deadline)
        finally:
            if confirmation.stored is None or self._next_leader is confirmation or self._is_left_alone():
                # It was interrupted, or is out of time: whatever it was woken for, the writer's thread does.
                self._release_leadership(confirmation)
        return bool(confirmation.stored)

    def _lead_or_wait(self, confirmation: Confirmation, deadline: float) -> None:
        while confirmation.stored is None and not self.breaker.down and time.monotonic() < deadline:
            if not self._leadership.locked():
                self._lead()
                continue
            self._waiting.append(confirmation)
            if self._leadership.locked():
                # Otherwise nobody is left who would look for sleepers.
                confirmation.sleep(max(0.0, deadline - time.monotonic()))

    def _is_left_alone(self) -> bool:
        """Whether updates are left that no thread will send: an interrupt came before the leadership was passed on."""
        return bool(self._signals or self._waiting or self._ready) and self._asleep and not self._taken()

    def _release_leadership(self, confirmation: Confirmation) -> None:
        # It may stand there once for each time that it went to sleep.
        while confirmation in self._waiting:
            try:
                self._waiting.remove(confirmation)
            except ValueError:
                break
        if self._next_leader is confirmation:
            self._next_leader = None
        self._wake()

    def _lead(self) -> None:
        """Send on a worker's thread."""
        with self._leadership:
            self._send_repeatable()
        self._pass_on()

    def _send_repeatable(self) -> None:
        """Send all that may be sent twice."""
        self._next_leader = None
        try:
            self._gather()
            buffers = [buffer for buffer in self._ready if buffer.repeatable]
            if buffers and not self.breaker.down:
                self._send(buffers)
        except Exception:
            self._log_unexpected()

    def _pass_on(self) -> None:
        """Wake the next thread that waits for the leadership, or else the thread where
        there is something left for it.
        """
        waiting = self._waiting
        while waiting:
            try:
                confirmation = waiting.popleft()
            except IndexError:
                break
            if confirmation.stored is None:
                self._next_leader = confirmation
                confirmation.wake()
                # What is ready still has to be sent by the thread.
                if not self._ready:
                    return
                break
        if self._asleep and (self._alarm() < self._wake_at or self._is_backlogged()):
            self._wake()

    def _alarm(self) -> float:
        """When the thread has something to do, by the monotonic clock."""
        if self.breaker.down:
            return self.breaker.retry_at
        return 0.0 if self._signals or self._ready else self._next_due

    def _is_backlogged(self) -> bool:
        """Whether so much has been written or noted that some updates may have to be dropped."""
        return len(self._signals) > min(_MAX_UNMEASURED, self._max_pending // 10) or self._backlog.is_behind

    def _wake(self) -> None:
        # Only the thread itself says that it is awake: whoever said so here, and were interrupted
        # before the wake-up, would let it sleep on.
        self._wakeup.put(None)

    def before_fork(self) -> None:
        """Wait until all that the running messages have written is stored: not at all while the store is down, and
        no longer than one call to the backend may take.
        """
        if self.running and not self.breaker.down:
            self.confirm_others([*list(self.running), *self.buffers_outside()], (), self.deadline())

    def drain(self, timeout: float) -> bool:
        """Send all earlier writes, without throttling.  Where the store does not answer,
        try again for as many seconds, then log what is lost if the process ends.

        The thread ends where everything is sent and no message runs in this process any more, and
        begins again with the next write.  Otherwise it goes on: a process
        may have other workers, jobs that outlive the end of theirs, and a store that comes back.

        Returns:
          bool: Whether everything was sent.
        """
        deadline = time.monotonic() + timeout
        if self._thread is None and (self._signals or self._ready or self._later):
            self._ensure_thread()
        thread = self._thread
        if thread is None:
            # It could not be started.
            return not (self._signals or self._ready or self._later)
        confirmation = Confirmation()
        self._drains.append(confirmation)
        self._wake()
        if not confirmation.wait(timeout):
            try:
                self._drains.remove(confirmation)
            except ValueError:
                # The thread has it.
                pass
            self.breaker.gave_up(*self.count_unsent(), timeout)
        if self._thread is not thread:
            thread.join(max(0.0, deadline - time.monotonic()))
        return bool(confirmation.stored)

    def count_unsent(self) -> tuple[int, int]:
        """Count the updates that are still to be sent, and their messages."""
        # Lists are copied in one call into C, while others write.
        buffers = {*list(self._ready), *list(self._later), *list(self._signals)}
        counts = {buffer: buffer.count_unsent() for buffer in buffers}
        return sum(counts.values()), len({buffer.message_id for buffer, count in counts.items() if count})

    def _ensure_thread(self) -> None:
        if self._thread is not None:
            return
        with self._start_lock:
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="dramatiq-status-writer", daemon=True)
                try:
                    thread.start()
                except RuntimeError as e:
                    # The interpreter ends, or has too many threads: no job must suffer from that.
                    logger.error("The status writer cannot start its thread: %s", e)
                    return
                self._thread = thread

    # The thread

    def _work(self) -> None:
        while True:
            self._wait_for_work()
            # Those that come later have to wait for another round.
            drains = list(self._drains)
            sent = True
            with self._leadership:
                self._next_leader = None
                try:
                    self._gather()
                    self._gather_due()
                    self._make_room()
                    # A drain tries again, however early.
                    if self._ready and (drains or not self.breaker.blocked):
                        sent = self._send(list(self._ready))
                    self._make_room()
                    if drains and self._end(drains):
                        return
                    if time.monotonic() >= self._heartbeat_at:
                        self._send_heartbeats()
                except Exception:
                    self._log_unexpected()
            self._pass_on()
            if drains and (self._later or not sent):
                self._sleep(FIRST_PAUSE)

    def _end(self, drains: list[Confirmation]) -> bool:
        """Release drains if everything is sent, and return whether the thread ends."""
        if self._ready or self._later:
            return False
        ended = False
        with self._start_lock:
            if not self.running:
                # From here on, who writes begins the thread anew.  Who wrote just before did not.
                self._thread = None
                ended = not self._signals
                if not ended:
                    self._thread = threading.current_thread()
        for confirmation in drains:
            try:
                self._drains.remove(confirmation)
            except ValueError:
                # It has given up.
                pass
            confirmation.release(True)
        return ended

    def _wait_for_work(self) -> None:
        """Sleep until there is something to do."""
        while not self._drains:
            wake_at = min(self._heartbeat_at, self._next_due)
            if self._ready or (self._signals and self.breaker.down):
                wake_at = min(wake_at, self._alarm())
            self._wake_at = wake_at
            self._asleep = True
            now = time.monotonic()
            if wake_at <= now:
                break
            # Where a thread leads, it sees to what is signalled.
            if not self._taken() and (self._is_backlogged() or (self._signals and not self.breaker.down)):
                break
            self._sleep(wake_at - now)
        self._asleep = False

    def _sleep(self, seconds: float) -> None:
        """Sleep for so many seconds at most, until the thread is woken."""
        try:
            self._wakeup.get(timeout=seconds)
        except Empty:
            pass

    def _gather(self) -> None:
        """Collect the buffers that have something to send, in one pass.  Buffers that signal meanwhile wait for the
        next, so that a sender comes to its end however fast others write.
        """
        signals, now = self._signals, time.monotonic()
        listed = list(signals)
        for buffer in dict.fromkeys(listed):
            self._collect(buffer, now)
        # After an interrupt on the way they are collected again, and not lost.
        for _ in listed:
            signals.popleft()

    def _gather_due(self) -> None:
        now = time.monotonic()
        if self._drains or now >= self._next_due:
            for buffer in [buffer for buffer, due in self._later.items() if self._drains or due <= now]:
                del self._later[buffer]
                self._collect(buffer, now)
            self._next_due = min(self._later.values(), default=math.inf)

    def _collect(self, buffer: MessageBuffer, now: float) -> None:
        due = buffer.collect(now)
        if due is not None and now < buffer.retry_at and not self._drains:
            # Nobody waits for a server that does not answer.
            buffer.give_up()
            self._backlog.note(buffer)
            due = buffer.retry_at
        if due == 0.0 or (due and self._drains):
            self._ready[buffer] = None
            if self._later:
                self._later.pop(buffer, None)
            if self.breaker.down:
                self._backlog.note(buffer)
                if self.breaker.blocked:
                    buffer.give_up()
        elif due is not None:
            self._later[buffer] = due
            self._next_due = min(self._next_due, due)

    def _log_unexpected(self) -> None:
        # Whatever it was, the next message's status must not suffer.
        logger.exception("The status writer met an unexpected error; it goes on.")
        for buffer in self._ready:
            buffer.suspect = False
            buffer.give_up()
        self._ready.clear()

    def _send(self, buffers: list[MessageBuffer]) -> bool:
        """Send what these buffers have, and tell whether the store has answered."""
        if self.breaker.down:
            buffers = buffers[: 1 if self._probes_singly else _PROBE]
        elif suspects := [buffer for buffer in buffers if buffer.suspect]:
            # If the store refuses a suspect, no other buffer must fail with it. One is sent after each batch of others:
            # it waits no longer where there are always others.
            if len(suspects) < len(buffers):
                return self._send([buffer for buffer in buffers if not buffer.suspect]) and self._send(suspects[:1])
            buffers = suspects[:1]
        now = time.monotonic()
        taken: list[tuple[MessageBuffer, list[Update]]] = []
        updates: list[tuple[str, Update]] = []
        for buffer in buffers:
            found = buffer.take(now)
            taken.append((buffer, found))
            for update in found:
                updates.append((buffer.message_id, update))
        try:
            outcomes = self.backend.update_many(updates)
        except BackendError as e:
            if isinstance(e, StoreRefused) and len(updates) > 1:
                return self._send_singly(taken)
            self._failed_to_send(buffers, e)
            return False
        except Exception:
            return self._send_singly(taken)
        self._succeeded()
        self._settle_all(taken, outcomes)
        return True

    def _succeeded(self) -> None:
        """The store has taken an update."""
        if self.breaker.down:
            # The running messages had no heartbeats in the outage.
            self._heartbeat_at = time.monotonic()
            self.breaker.succeeded()

    def _settle_all(self, taken: list[tuple[MessageBuffer, list[Update]]], outcomes: list[Outcome]) -> None:
        makers = self._makers() if Outcome.MISSING in outcomes else {}
        first = 0
        for buffer, found in taken:
            last = first + len(found)
            self._settle(buffer, outcomes[first:last], makers)
            first = last

    def _makers(self) -> dict[str, MessageBuffer]:
        """Find the buffers of runs and enqueues, by message id: they make the record where there is none.  A suspect
        may never make it: no other buffer is sent again at once because of it.
        """
        buffers = (*list(self.running), *self._later, *self._ready)
        return {buffer.message_id: buffer for buffer in buffers if buffer.repeatable and not buffer.suspect}

    def _send_singly(self, taken: list[tuple[MessageBuffer, list[Update]]]) -> bool:
        """One of many updates cannot be stored: find out which, and drop it.

        Where the store refuses all of them, it may be the store's own trouble: then an outage begins.
        """
        makers = self._makers()
        refused: dict[MessageBuffer, StoreRefused] = {}
        has_succeeded = False
        for buffer, updates in taken:
            outcomes = []
            for update in updates:
                try:
                    outcomes += self.backend.update_many(((buffer.message_id, update),))
                    has_succeeded = True
                    self._succeeded()
                except StoreRefused as e:
                    buffer.settle(outcomes)
                    refused[buffer] = e
                    break
                except BackendError as e:
                    # The stored updates of the batch must not be sent again.
                    buffer.settle(outcomes)
                    self._failed_to_send([buffer], e)
                    return False
                except Exception as e:
                    if buffer.is_first("unstorable"):
                        logger.error(
                            "An update of message %r cannot be stored and is dropped: %s. Later ones that cannot be "
                            "stored are dropped without a log line.",
                            buffer.message_id,
                            e,
                        )
                    self.breaker.refused()
                    outcomes.append(Outcome.REFUSED)
            else:
                self._settle(buffer, outcomes, makers)
        if refused and not has_succeeded:
            self._failed_to_send(list(refused), next(iter(refused.values())))
            return False
        for buffer, error in refused.items():
            self._refuse(buffer, error)
        return True

    def _refuse(self, buffer: MessageBuffer, error: StoreRefused | None) -> None:
        """Drop the updates that the store refuses, while it takes others."""
        self.breaker.refused_call()
        dropped, is_more = buffer.drop_sent()
        self.breaker.refused(dropped)
        buffer.suspect = True
        if buffer.is_first("refused"):
            logger.error(
                "The status store refuses updates of message %r, but takes those of others (%s). They are dropped. "
                "Later ones of this message that it refuses are dropped without a log line.",
                buffer.message_id,
                error or "its own log may have the reason",
            )
        if buffer in self._backlog:
            self._backlog.note(buffer)
        if not is_more:
            self._ready.pop(buffer, None)

    def _settle(self, buffer: MessageBuffer, outcomes: list[Outcome], makers: dict[str, MessageBuffer]) -> None:
        """Note the outcomes of a buffer's updates."""
        if Outcome.UNSTORABLE in outcomes:
            self._refuse(buffer, None)
            return
        if Outcome.MISSING not in outcomes:
            buffer.suspect = buffer.is_mute = False
        if buffer in self._backlog:
            self._backlog.note(buffer)
        if Outcome.UNAVAILABLE in outcomes:
            buffer.unavailable = True
        if Outcome.MISSING in outcomes and not buffer.repeatable:
            self._settle_missing(buffer, outcomes, makers.get(buffer.message_id))
            return
        again = buffer.settle(outcomes)
        if Outcome.UNAVAILABLE in outcomes:
            self._postpone(buffer, LONGEST_PAUSE)
            return
        buffer.missing_since, buffer.unavailable = None, False
        if not again:
            del self._ready[buffer]

    def _settle_missing(self, buffer: MessageBuffer, outcomes: list[Outcome], maker: MessageBuffer | None) -> None:
        """Keep or drop updates from outside of a message without a record.  The record may still arrive: from a buffer
        of this process, or within a short time from another process, whose store was slow or down.
        """
        # On the writer's thread: no other sends updates from outside.
        self._backlog.measure()
        now = time.monotonic()
        if buffer.missing_since is None:
            buffer.missing_since = now
        missing = now - buffer.missing_since
        # A worker that ends does not wait for an unknown message, except after its server was away.
        recent = self.breaker.recovering or (missing < RECOVERY and (buffer.unavailable or not self._drains))
        # Updates of known messages do not make room for those of unknown ones.
        kept = recent and (buffer in self._backlog or self._backlog.has_room)
        again = buffer.settle(outcomes, keep_missing=kept or maker is not None)
        if not again:
            # The next writes are kept for a moment as well.
            buffer.missing_since = None
            del self._ready[buffer]
        elif maker is None or Outcome.UNAVAILABLE in outcomes:
            self._postpone(buffer, min(max(FIRST_PAUSE, missing), LONGEST_PAUSE))
        else:
            self._follow(buffer, maker)

    def _follow(self, buffer: MessageBuffer, maker: MessageBuffer) -> None:
        """Send a buffer's updates again behind those of the buffer that makes the record."""
        if self._later.pop(maker, None) is not None:
            # Only its throttle holds it back.
            self._ready[maker] = None
        elif maker not in self._ready:
            # The store has lost the record of a running message.
            maker.restore()
        del self._ready[buffer]
        self._ready[buffer] = None

    def _postpone(self, buffer: MessageBuffer, pause: float) -> None:
        """One server of many does not answer, or a record is missing: try the message again after so many seconds,
        and let no thread wait for it.
        """
        buffer.give_up()
        self._later[buffer] = buffer.retry_at = due = time.monotonic() + pause
        self._next_due = min(self._next_due, due)
        # Last: after an earlier interrupt, the buffer is in both places, and not in none.
        del self._ready[buffer]
        self._backlog.note(buffer)

    def _make_room(self) -> None:
        """Drop updates until the backlog is within its limits."""
        self._backlog.measure()
        if not self._backlog:
            self._full = False
        while (buffer := self._backlog.pop_excess()) is not None:
            self._ready.pop(buffer, None)
            self._later.pop(buffer, None)
            buffer.suspect = False
            (self.breaker.dropped if self.breaker.down else self.breaker.refused)(buffer.drop())
            if not self._full:
                self._full = True
                logger.warning(
                    "More than %d messages, or more than %d bytes of their updates, wait for the status store: from "
                    "now on, updates of messages that finished first are dropped first.",
                    self._max_pending,
                    self._max_pending_bytes,
                )

    def _failed_to_send(self, buffers: list[MessageBuffer], error: BackendError) -> None:
        """Begin or continue an outage, or postpone the one buffer that the store refuses while it is up.

        A probe may fail because of a single message.  So after a failed probe, each probe sends one buffer, and a
        buffer that fails alone becomes a suspect at the back of the queue.  When the store takes another buffer, the
        outage is over.  A suspect that fails again is then postponed, or dropped if the store answers that it refuses
        it, and no new outage begins.
        """
        buffer, was_down = buffers[0], self.breaker.down
        if buffer.suspect and not was_down:
            if isinstance(error, StoreRefused):
                self._refuse(buffer, error)
                return
            self.breaker.refused_call()
            if buffer.is_first("refused"):
                logger.error(
                    "The status store refuses updates of message %r, but takes those of others (%s). The writer keeps "
                    "trying. Later failures of this message are not logged.",
                    buffer.message_id,
                    error,
                )
            self._postpone(buffer, LONGEST_PAUSE)
            return
        self._failed(error)
        self._probes_singly = was_down
        if was_down and len(buffers) == 1 and buffer in self._ready:
            buffer.suspect = True
            # Replaced as a whole: an interrupt loses nothing.
            self._ready = {**{other: None for other in self._ready if other is not buffer}, buffer: None}

    def _failed(self, error: BackendError) -> None:
        self.breaker.failed(error)
        self._gather()
        for buffer in self._ready:
            buffer.give_up()
            if buffer not in self._backlog:
                self._backlog.note(buffer)

    def _send_heartbeats(self) -> None:
        """Say of all running messages that they run, in one round trip."""
        if self.breaker.blocked:
            self._heartbeat_at = self.breaker.retry_at
            return
        self._heartbeat_at = time.monotonic() + self._interval
        buffers = [buffer for buffer in list(self.running) if buffer.thread.is_alive() and not buffer.is_mute]
        # A message that the store may refuse is sent alone, so that no other looks stalled because of it.
        groups = deque(
            [[buffer for buffer in buffers if not buffer.suspect], *([buffer] for buffer in buffers if buffer.suspect)]
        )
        refused: list[MessageBuffer] = []
        has_succeeded = False
        while groups:
            group = groups.popleft()
            if not group:
                continue
            try:
                outcomes = self.backend.update_many([(buffer.message_id, buffer.heartbeat()) for buffer in group])
            except BackendError as e:
                if isinstance(e, StoreRefused) and len(group) > 1:
                    groups.extendleft([buffer] for buffer in group)
                elif has_succeeded or (isinstance(e, StoreRefused) and (groups or group[0].suspect)):
                    self.breaker.refused_call()
                    refused += group
                else:
                    self._failed(e)
                    self._heartbeat_at = min(self._heartbeat_at, self.breaker.retry_at)
                    return
            else:
                has_succeeded = True
                self._settle_heartbeats(group, outcomes)
        if has_succeeded:
            self.breaker.succeeded()
        for buffer in refused:
            buffer.suspect = buffer.is_mute = True

    def _settle_heartbeats(self, buffers: list[MessageBuffer], outcomes: list[Outcome]) -> None:
        if Outcome.UNAVAILABLE in outcomes:
            self._heartbeat_at = min(self._heartbeat_at, time.monotonic() + LONGEST_PAUSE)
        for buffer, outcome in zip(buffers, outcomes):
            if outcome is Outcome.MISSING and not buffer.suspect:
                buffer.restore()


def plain_number(value: int | float) -> int | float:
    """Return a number as a plain int or float: stored values are computed with these."""
    return int(value) if isinstance(value, int) else float(value)


def _absorb(entries: list[PendingUpdate]) -> None:
    """Drop waiting counts that an update with all values of the run includes: they must not count twice."""
    replaced: set[str] = set()
    for entry in entries:
        if entry.frozen is None:
            if entry.enqueue:
                return
            # A field that is set or deleted is counted from that value on.
            replaced.update(entry.fields, entry.changes.deleted if entry.changes else ())
            if PROGRESS not in replaced:
                entry.increment = 0
            entry.keep_counts(replaced.__contains__)


#: All writers of this process.
_writers: weakref.WeakSet[Writer] = weakref.WeakSet()

#: Maximum number of seconds that a process that ends waits for its last updates.
EXIT_TIMEOUT: Final = 5.0


def _before_fork() -> None:
    if not ARE_THREADS_REAL:
        # An interrupt strikes a greenlet that waits, and could not be raised again.
        return
    try:
        for writer in list(_writers):
            writer.before_fork()
    except Exception:
        logger.exception("What running messages have written may not be stored before what a forked process writes.")
    except BaseException as e:
        # It has waited long enough.
        note_interrupt(e)


def _begin_all() -> None:
    for writer in list(_writers):
        inherited = [*writer.running, *writer.buffers_outside(), *writer.inherited]
        # What the parent has not sent yet is the parent's to send.
        writer._begin()
        writer.inherited = inherited
        writer.breaker.renew()
        for buffer in inherited:
            buffer.inherit()


def _drain_all() -> None:
    deadline = time.monotonic() + EXIT_TIMEOUT
    for writer in list(_writers):
        # A worker's end does not wait twice for one outage.
        if not writer.breaker.was_given_up:
            writer.drain(max(0.0, deadline - time.monotonic()))


at_fork(flush=_before_fork, after_in_child=_begin_all)
atexit.register(_drain_all)
