"""The buffer of the writes of one message."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from .. import _time as time
from .._log import logger
from ..backend import StatusBackend
from ..fields import MAX_COUNT, check_count, name_of_field
from ..record import RATE, Counts, Record, deletion_marks
from ..update import NO_ENQUEUE_ID, Changes, EnqueueId, Kind, Outcome, Update
from .merging import Merger
from .operations import Confirmation, Finish, Operation, Write
from .pending import MergedState, PendingUpdate
from .whole_run import WHOLE_RUN, release_run, remove_run, whole_run

#: Number of increments of a buffer after which the writer merges them, even before the throttle is over.
MERGE_EVERY: Final = 4096

# Reading an attribute of an Enum takes five times as long as reading a global.
_APPLIED: Final = Outcome.APPLIED


class BufferWriter(Protocol):
    """The part of the writer that a buffer uses."""

    backend: StatusBackend
    running: dict[MessageBuffer, None]

    def put(self, buffer: MessageBuffer) -> None: ...

    def wait(self, confirmation: Confirmation, timeout: float | None = None) -> bool: ...


class MessageBuffer:
    """The operations on one message, in order.  They are the operations of a run of the message, or the writes of this
    process from outside of a run.

    A write appends an operation and takes no lock: an interrupt that strikes a worker's thread in a write leaves
    nothing half done, and no lock behind.

    Parameters:
      writer(Writer)
      message_id(str)
      kind(Kind): The kind of its updates.
      run_token(int): The token of the run; 0 for writes from outside of a run.
      enqueue_id(EnqueueId): The enqueue that led to the run.
      throttle(int): Minimum number of milliseconds between two throttled writes.
      base(Callable): Returns the fields of the message when its run begins: its attributes, and the fields that were
        sent with it.
    """

    #: Whether this process has found a request to cancel the run.
    cancelled: bool = False
    #: Reason of the request, and whether it was read from the record: the outcome of an update does not contain it.
    cancel_reason: str | None = None
    is_reason_read: bool = False
    #: The requested state of the run; None for none.
    requested_state: int | None = None
    #: Whether it takes no more writes.
    closed: bool = False
    #: Whether the updates count once even if they are sent twice.
    repeatable = False
    #: Time since which the store has no record for the writes from outside, by the monotonic clock; None if it has one.
    missing_since: float | None = None
    #: Whether the message's server, one of many, has not answered since the updates were last stored.
    unavailable: bool = False
    #: Whether a call with this buffer alone has failed since its updates were last stored.
    failed_alone: bool = False
    #: Whether the heartbeat has failed as well, so that the writer sends no further heartbeats of this message.
    heartbeat_failed: bool = False
    #: Earliest time to send again, by the monotonic clock, after the buffer was postponed.
    retry_at: float = 0.0
    #: Whether this process was forked off, while the run continues in the parent.
    is_forked: bool = False
    # The merger of the operations; None before the first one is merged.
    _merger: Merger | None = None
    # The frozen update of a run that has ended before any of its operations was merged; the operations stay in the
    # buffer until the update is stored.  None without such a run.
    _whole: Update | None = None
    # Whether an increment need not signal: the writer has a signal, or sends the operations when they are due.
    _is_signalled = False
    # Time from which throttled operations are due.
    _due = 0.0
    # Kinds of trouble of this message that were logged.
    _logged: frozenset[str] = frozenset()

    def __init__(
        self,
        writer: BufferWriter,
        message_id: str,
        *,
        kind: Kind = Kind.OUTSIDE,
        run_token: int = 0,
        enqueue_id: EnqueueId = NO_ENQUEUE_ID,
        throttle: int = 0,
        base: Callable[[], Record] = dict,
    ) -> None:
        self.message_id = message_id
        self.enqueue_id = enqueue_id
        #: The thread that runs the message.
        self.thread: threading.Thread = threading.current_thread()
        self._writer = writer
        self._put = writer.put
        self._operations: deque[Operation] = deque()
        # The lock for all merging; a write does not take it.
        self._lock = threading.Lock()
        self._kind = kind
        self._run_token = run_token
        self._make_base = base
        self._throttle = throttle

    # Writing, on any thread

    def increment(self, n: int | float = 1) -> None:
        """Add to the progress; throttled."""
        if n.__class__ is not int or not -MAX_COUNT <= n <= MAX_COUNT:
            n = check_count("increment", n)
        if self.closed:
            if self.is_forked:
                self._write_directly({}, n)
            return
        operations = self._operations
        operations.append(n)
        if not self._is_signalled:
            self._signal()
        elif not len(operations) % MERGE_EVERY:
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
        """Set fields, then add to the progress, then carry out the changes.

        Parameters:
          fields(Record)
          increment(int)
          urgent(bool): Whether to send the write without a wait for the throttle.
          state(int): A state to set; from outside of the run only.
          changes(Changes)
        """
        if self.is_forked:
            self._write_directly(fields, increment, state, changes)
            return
        if self.closed:
            if self.is_first("closed"):
                logger.warning("The run of message %r has ended. Its later writes are dropped.", self.message_id)
            return
        self.add(Write(fields, increment, urgent, state, changes))

    def add(self, operation: Operation, *, deferred: bool = False) -> None:
        """Add an operation, and signal the writer, unless the operation is deferred: see :meth:`Writer.put_later`."""
        self._operations.append(operation)
        if not deferred:
            self._signal()

    def _signal(self) -> None:
        self._is_signalled = True
        try:
            self._put(self)
        except BaseException:
            # An interrupt came before the signal: the next increment signals.
            self._is_signalled = False
            raise

    def finish(self, operation: Finish, confirmation: Confirmation) -> None:
        """Add the last operation and its confirmation, for :meth:`Writer.confirm`, and take no more writes."""
        self._operations.append(operation)
        self._operations.append(confirmation)
        self._is_signalled = True
        self.close()

    def close(self) -> None:
        """Take no more writes; earlier ones are still sent."""
        self.closed = True
        self._writer.running.pop(self, None)

    def restore(self) -> None:
        """Restore the lost record of a running message by a write."""
        self.add(Write({}))

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until the store has all earlier writes.

        Returns:
          bool: False if that takes longer than `timeout` seconds (by default the backend's own time-out),
          or the store is down.
        """
        if self.is_forked:
            return True
        confirmation = Confirmation()
        self.add(confirmation)
        return self._writer.wait(confirmation, timeout)

    def unstored(self) -> Confirmation | None:
        """Add a confirmation unless the store has all earlier writes.

        It takes no lock, because it also runs before a fork, on a thread that may hold any of the locks.

        Returns:
          Confirmation | None: The confirmation, for :meth:`Writer.wait`; None if the store has all writes.
        """
        if not self._operations:
            # A write that is no longer among the operations is in the merged state.
            merger = self._merger
            if merger is None or not (merger.state.taken or merger.state.pending):
                return None
        confirmation = Confirmation()
        self.add(confirmation)
        return confirmation

    def is_first(self, trouble: str) -> bool:
        """Return whether this trouble of the message is new, and note that it is logged now."""
        first = trouble not in self._logged
        self._logged |= {trouble}
        return first

    # Writing in a process that was forked off

    def inherit(self) -> None:
        """Make later writes direct, and from outside of the run: this process is a fork, and the parent has the run.

        The parent sends its own earlier writes.
        """
        self._lock = threading.Lock()
        self._whole = None
        self._operations.clear()
        if self._merger is not None:
            known = {name: text for name, text in self._merger.state.known.items() if name != RATE}
            self._merger.state = MergedState({"kind": Kind.OUTSIDE}, known)
            self._merger.forget_rate()
        # `closed` is set as well, because increment() tests only `closed` in the usual case.
        self.closed = self.is_forked = True

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
                logger.warning("Message %r has no status. Writes of a forked process are dropped.", self.message_id)
            return
        with self._lock:
            self._begin_merging().note_update(update)

    # Reading, on any thread

    def counts(self) -> Counts:
        """Return the progress, the total and the rate as this process has written them."""
        with self._lock:
            self._merge()
            return self._begin_merging().counts(time.monotonic())

    def has_written(self, name: str) -> bool:
        """Return whether this run has written the field of this stored name."""
        with self._lock:
            return name in self._merge().known

    def count_unsent(self) -> int:
        """Count the pending updates."""
        with self._lock:
            return len(self._merge().pending)

    # Sending, on the leader's thread

    def collect(self, now: float) -> float | None:
        """Merge the operations.

        Returns:
          float | None: The time at which they are due, by the monotonic clock: 0 for at once, None for no updates.
        """
        with self._lock:
            self._is_signalled = False
            if self._freeze_run() is not None:
                return 0.0
            merger = self._begin_merging()
            pending = merger.merge(self._operations).pending
            if not pending:
                return None
            if merger.is_urgent or now >= self._due or pending[0].frozen is not None:
                return 0.0
            # Until they are due, an increment need not signal.
            self._is_signalled = True
            return self._due

    def can_take_all(self) -> bool:
        """Whether :meth:`take` would return all updates: none waits for the outcome of an earlier one."""
        if self._merger is None:
            return True
        with self._lock:
            pending = self._merge().pending
            return not pending or pending[0].frozen is None or pending[-1].frozen is not None or self.closed

    def take(self, now: float) -> list[Update]:
        """Freeze the pending updates and return them.  The caller sends them, and then calls :meth:`settle`.

        While frozen updates have no outcome, later operations are merged into one more update.  So most messages have
        at most two pending updates, however long an outage lasts.  Only an update with a state, an enqueue or
        ``to_total`` takes no later operations.  A closed buffer gets no later operations.
        """
        with self._lock:
            run = self._freeze_run()
            if run is not None:
                return [run]
            merger = self._begin_merging()
            updates = merger.freeze_all(self._operations, now, is_closed=self.closed)
            if merger.is_throttled:
                merger.is_throttled = False
                self._due = now + self._throttle / 1000
            return updates

    def settle(self, updates: Sequence[Update], outcomes: Sequence[Outcome], *, keep_missing: bool = False) -> bool:
        """Process the outcomes of updates.  Two threads may have taken and sent the same updates.

        Parameters:
          updates(Sequence[Update]): They were returned by :meth:`take`.
          outcomes(Sequence[Outcome]): One for each update; the last ones may be missing.
          keep_missing(bool): Whether updates from outside of a run are sent again if the message has no record yet.

        Returns:
          bool: Whether updates are left to be sent at once.
        """
        with self._lock:
            if updates and updates[0] is self._whole and self._end_run(outcomes):
                return False
            return self._begin_merging().settle(
                updates, outcomes, lambda pending, outcome: self._is_left(pending, outcome, keep_missing)
            )

    def _is_left(self, pending: PendingUpdate, outcome: Outcome, keep_missing: bool) -> bool:
        """Return whether to send an update again after this outcome.  If the record is lost, replace the update by one
        with all values of the run.
        """
        update = pending.frozen
        assert update is not None
        if outcome is Outcome.MISSING:
            if keep_missing:
                return True
            if update.kind is Kind.RUN and not update.create:
                self._begin_merging().complete(pending)
                return True
            if self.is_first("missing"):
                logger.info("Message %r has no status. The writes to it are dropped.", self.message_id)
        elif outcome is Outcome.CANCELLED or outcome is Outcome.REQUESTED:
            self.cancelled = True
        elif outcome is Outcome.UNCOUNTED:
            self._log_uncounted(update)
        return outcome is Outcome.UNAVAILABLE

    def _log_uncounted(self, update: Update) -> None:
        if update.changes is not None and self.is_first("uncounted"):
            logger.warning(
                "An increment of %s of message %r is not stored: the field holds no number, or the sum is not "
                "below 2**53. All other writes are stored.",
                " or ".join(map(name_of_field, update.changes.counts)),
                self.message_id,
            )

    def give_up(self) -> None:
        """Wake the threads that wait for the pending updates."""
        with self._lock:
            # Without a record, the wait ends as if the updates were stored.
            self._begin_merging().state.release(self.missing_since is not None)

    def drop(self) -> int:
        """Drop the pending updates, and return their number."""
        with self._lock:
            return self._begin_merging().state.drop(self.missing_since is not None)

    def drop_sent(self) -> tuple[int, bool]:
        """Drop the updates taken last, and wake all threads that wait.  Return the number of dropped updates, and
        whether others are left.
        """
        with self._lock:
            state = self._begin_merging().state
            state.release(self.missing_since is not None)
            return state.drop_frozen(), bool(state.pending)

    def size(self) -> int | None:
        """Return the number of bytes of the texts that the buffer holds for its updates; None without updates."""
        with self._lock:
            state = self._merge()
            if not state.pending:
                return None
            # The size in bytes of a Dramatiq message cannot be measured. When its run has ended, the buffer therefore
            # keeps the fields that are made of the message, and not the message.
            return state.size(self._begin_merging().keep_base() if self.closed else {})

    def heartbeat(self) -> Update:
        """Return the run's heartbeat."""
        merger = self._merger
        enqueue_id = self.enqueue_id if merger is None else merger.state.template["enqueue_id"]
        return Update(Kind.HEARTBEAT, enqueue_id, self._run_token)

    # Merging, under the lock

    def _freeze_run(self) -> Update | None:
        """Return the frozen update of a run that has ended before any of its operations was merged; None for none."""
        if self._merger is not None:
            return None
        if self._whole is None:
            self._whole = whole_run(self._operations, self.enqueue_id, self._run_token)
        return self._whole if len(self._operations) == WHOLE_RUN else None

    def _end_run(self, outcomes: Sequence[Outcome]) -> bool:
        """Remove the operations of a run whose update :meth:`_freeze_run` has returned, if the store has the update and
        no operation was added since.  Return whether they were removed.
        """
        operations = self._operations
        if self._merger is not None or len(operations) != WHOLE_RUN or list(outcomes) != [_APPLIED]:
            return False
        release_run(operations)
        # The order matters: after an interrupt between the two, the update is sent again, and the store recognizes it.
        self._whole = None
        remove_run(operations)
        return True

    def _begin_merging(self) -> Merger:
        """Return the merger; make it first if there is none."""
        merger = self._merger
        if merger is None:
            template = {"kind": self._kind, "enqueue_id": self.enqueue_id, "run_token": self._run_token}
            self._merger = merger = Merger(self.message_id, template, self._make_base, self._whole)
        if merger.whole is not None:
            merger.merge(self._operations)
        return merger

    def _merge(self) -> MergedState:
        """Merge the operations, and return the new state."""
        return self._begin_merging().merge(self._operations)
