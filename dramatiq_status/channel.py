"""Channels between a handle and a status: of the running message, of another message, or in memory alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Lock
from typing import Final, Protocol, TypeVar

from .backend import DEFAULT_MAX_FIELD_SIZE, StatusBackend, now_ms
from .decoding import take_snapshot
from .errors import BackendError, Cancelled, StatusMissing
from .fields import MAX_FIELDS, check_count, name_of_field
from .record import CANCEL_SEEN_AT, COMPLETED, PROGRESS, QUEUED, TOTAL, Counts, Record, counts_in, deletion_marks
from .snapshot import Snapshot
from .update import NO_ENQUEUE_ID, Changes, EnqueueId, Kind, Outcome, Update, apply
from .writer import MessageBuffer

T = TypeVar("T")

# Reading an attribute of an Enum takes five times as long as reading a global.
_OUTSIDE: Final = Kind.OUTSIDE
_APPLIED: Final = Outcome.APPLIED


class Channel(Protocol):
    """The operations that a handle needs."""

    message_id: str
    max_field_size: int
    #: The total that a loop of :func:`.track` has set last; None if no loop has set one.
    tracked_total: int | float | None
    #: Whether the values belong to one call of a function outside of a worker.
    of_one_call: bool
    #: Object with the flag that a loop of :func:`.track` checks at each item; None if loops check nothing.
    signal: CancelSignal | None

    def write(self, fields: Record, *, state: int | None = None, urgent: bool = True) -> None:
        """Set fields, and a state by its stored number."""

    def increment(self, n: int | float = 1) -> None:
        """Add to the progress."""

    def change(self, changes: Changes, *, urgent: bool = True) -> None:
        """Delete fields, add to fields, and set the progress to the total."""

    def read(self) -> Snapshot | None:
        """Read the status; one round trip."""

    def counts(self) -> Counts:
        """Return the present progress, total and rate."""

    def flush(self) -> bool:
        """Wait until all that was written is stored."""

    def delete(self) -> bool:
        """Delete the status."""

    def is_cancelled(self) -> bool | None:
        """Return whether the running message has a request to cancel it; None if the caller has to read the status."""

    def cancel_reason(self) -> str | None:
        """Return the reason of the request that :meth:`is_cancelled` has found; it may wait for the store."""


class CancelSignal(Protocol):
    """An object whose attribute ``cancelled`` becomes true when a request to cancel the running message is found."""

    cancelled: bool


class LiveChannel:
    """A channel to the status of a message.  A copy of a handle shares the channel. A pickled channel contains only the
    message id, see ``opening.py``.
    """

    __slots__ = ()

    of_one_call = False
    signal: CancelSignal | None = None

    def is_cancelled(self) -> bool | None:
        return None

    def cancel_reason(self) -> str | None:
        return None

    def __deepcopy__(self: T, memo: object) -> T:
        return self


class RunChannel(LiveChannel):
    """A channel to the running message: the writer sends all writes, and no write waits for the store."""

    __slots__ = (
        "_backend",
        "_buffer",
        "_names",
        "counts",
        "flush",
        "increment",
        "is_seen",
        "max_field_size",
        "message_id",
        "signal",
        "tracked_total",
    )

    def __init__(self, buffer: MessageBuffer, backend: StatusBackend) -> None:
        self.message_id: str = buffer.message_id
        self.max_field_size: int = backend.max_field_size
        self.tracked_total: int | float | None = None
        self.increment: Callable[..., None] = buffer.increment
        self.counts: Callable[[], Counts] = buffer.counts
        self.flush: Callable[[], bool] = buffer.flush
        self.signal: CancelSignal | None = buffer
        # Whether ``cancel_seen_at`` was written.
        self.is_seen: bool = False
        self._buffer = buffer
        self._backend = backend
        # Stored names of the fields that the run has written and not deleted.
        self._names: set[str] = set()

    def write(self, fields: Record, *, state: int | None = None, urgent: bool = True) -> None:
        if not self._names.issuperset(fields):
            self._note_names(fields)
        if state is not None:
            _check_requested_state(state)
            # The message gets this state when Dramatiq acknowledges it.
            self._buffer.requested_state = state if state >= COMPLETED else None
        if fields:
            self._buffer.write(fields, urgent=urgent)

    def change(self, changes: Changes, *, urgent: bool = True) -> None:
        self._names.difference_update(changes.deleted)
        if changes.counts:
            self._note_names(changes.counts)
        self._buffer.write({}, urgent=urgent, changes=changes)

    def _note_names(self, names: Iterable[str]) -> None:
        """Note the stored names of fields that the run writes.

        Raises:
          ValueError: When the run would have too many fields.
        """
        noted = self._names.union(names)
        if len(noted) > MAX_FIELDS:
            raise ValueError(
                f"A run may write at most {MAX_FIELDS} fields, and the run of message {self.message_id!r} would write "
                f"{len(noted)}. Write a list or a dict into one field, or delete fields."
            )
        self._names = noted

    def read(self) -> Snapshot | None:
        return _read_behind(self.flush, self._backend, self.message_id)

    def delete(self) -> bool:
        self.flush()
        return self._backend.delete(self.message_id)

    def is_cancelled(self) -> bool | None:
        buffer = self._buffer
        if buffer.is_forked:
            # Only the parent process notes requests to cancel.
            return None
        if buffer.cancelled and not self.is_seen and not buffer.closed:
            self.is_seen = True
            buffer.write({CANCEL_SEEN_AT: str(now_ms())})
        return buffer.cancelled

    def cancel_reason(self) -> str | None:
        buffer = self._buffer
        if not buffer.is_reason_read:
            try:
                snapshot = self.read()
            except BackendError:
                # `Cancelled` is then raised without a reason. In an outage that this process has noted, the read has
                # not waited.
                snapshot = None
            buffer.cancel_reason = None if snapshot is None else snapshot.cancel_reason
            buffer.is_reason_read = True
        return buffer.cancel_reason


class BufferChannel(LiveChannel):
    """A channel to another message than the running one.

    Parameters:
      buffer(MessageBuffer)
      backend(StatusBackend)
      note(Callable): Called with the buffer at each write.
    """

    def __init__(self, buffer: MessageBuffer, backend: StatusBackend, note: Callable[[MessageBuffer], None]) -> None:
        self.message_id: str = buffer.message_id
        self.max_field_size: int = backend.max_field_size
        self.tracked_total: int | float | None = None
        self.flush: Callable[[], bool] = buffer.flush
        self._buffer = buffer
        self._backend = backend
        self._note = note

    def write(self, fields: Record, *, state: int | None = None, urgent: bool = True) -> None:
        self._buffer.write(fields, urgent=urgent or state is not None, state=state)
        self._note(self._buffer)

    def increment(self, n: int | float = 1) -> None:
        self._buffer.increment(n)
        self._note(self._buffer)

    def change(self, changes: Changes, *, urgent: bool = True) -> None:
        self._buffer.write({}, urgent=urgent, changes=changes)
        self._note(self._buffer)

    def counts(self) -> Counts:
        return counts_of(self.read())

    def read(self) -> Snapshot | None:
        return _read_behind(self.flush, self._backend, self.message_id)

    def delete(self) -> bool:
        self.flush()
        return self._backend.delete(self.message_id)


class DirectChannel(LiveChannel):
    """A channel from outside of a worker: each write is one call of the store on the calling thread."""

    __slots__ = ("_backend", "max_field_size", "message_id", "tracked_total")

    def __init__(self, backend: StatusBackend, message_id: str) -> None:
        self.message_id: str = message_id
        self.max_field_size: int = backend.max_field_size
        self.tracked_total: int | float | None = None
        self._backend = backend

    def write(self, fields: Record, *, state: int | None = None, urgent: bool = True) -> None:
        # Arguments by position take half of the time of arguments by name.
        update = Update(_OUTSIDE, NO_ENQUEUE_ID, 0, 0, False, False, state, 1, fields)
        outcome = self._backend.update(self.message_id, update)
        if outcome is not _APPLIED:
            check_outcome(self.message_id, update, outcome)

    def increment(self, n: int | float = 1) -> None:
        self._update(Update(Kind.OUTSIDE, increment=check_count("increment", n)))

    def change(self, changes: Changes, *, urgent: bool = True) -> None:
        self._update(outside_change(changes))

    def _update(self, update: Update) -> None:
        check_outcome(self.message_id, update, self._backend.update(self.message_id, update))

    def read(self) -> Snapshot | None:
        return self._backend.snapshot(self.message_id)

    def counts(self) -> Counts:
        return counts_of(self.read())

    def flush(self) -> bool:
        return True

    def delete(self) -> bool:
        return self._backend.delete(self.message_id)


class DetachedChannel:
    """A channel that keeps values in memory, for code that is called without a worker.

    Parameters:
      of_one_call(bool): Whether the values belong to one call of a function, and not to a ``with`` block of a unit
        test.
    """

    message_id = ""
    max_field_size = DEFAULT_MAX_FIELD_SIZE
    signal: CancelSignal | None = None

    def __init__(self, *, of_one_call: bool = False) -> None:
        self.of_one_call: bool = of_one_call
        self.tracked_total: int | float | None = None
        start = Update(Kind.RUN, EnqueueId(1, 1), run_token=1, start=True, create=True)
        self._record: Record | None = apply(None, start, now_ms()).record
        self._lock = Lock()

    def __getstate__(self) -> tuple[Record | None, int | float | None]:
        return self._record, self.tracked_total

    def __setstate__(self, state: tuple[Record | None, int | float | None]) -> None:
        self._record, self.tracked_total = state
        # An unpickled or copied channel belongs to no call.
        self.of_one_call = False
        self._lock = Lock()

    def write(self, fields: Record, *, state: int | None = None, urgent: bool = True) -> None:
        if state is not None:
            _check_requested_state(state)
        self._apply(Update(Kind.OUTSIDE, fields=fields, state=state))

    def increment(self, n: int | float = 1) -> None:
        self._apply(Update(Kind.OUTSIDE, increment=check_count("increment", n)))

    def change(self, changes: Changes, *, urgent: bool = True) -> None:
        self._apply(Update(Kind.OUTSIDE, changes=changes))

    def read(self) -> Snapshot | None:
        return take_snapshot(self.message_id, self._record, now_ms())

    def counts(self) -> Counts:
        record = self._record or {}
        return counts_in(record.get(PROGRESS), record.get(TOTAL), None)

    def flush(self) -> bool:
        return True

    def delete(self) -> bool:
        with self._lock:
            found, self._record = self._record is not None, None
        return found

    def is_cancelled(self) -> bool | None:
        return False

    def cancel_reason(self) -> str | None:
        return None

    def _apply(self, update: Update) -> None:
        # A record is replaced and never changed, so that a reader needs no lock.
        with self._lock:
            outcome, self._record, _ = apply(self._record, update, now_ms())
        if outcome is Outcome.UNCOUNTED:
            check_outcome(self.message_id, update, outcome)


def _read_behind(flush: Callable[[], bool], backend: StatusBackend, message_id: str) -> Snapshot | None:
    """Read a status after all writes of this worker to it are stored.

    Raises:
      BackendError: When the writes are not stored yet, or the store does not answer.  Without
        this error, a field that the caller has just set would seem to be missing.
    """
    if not flush():
        raise BackendError(
            f"What was written to message {message_id!r} is not stored yet: the status store does not answer."
        )
    return backend.snapshot(message_id)


def check_cancelled(channel: Channel) -> None:
    """Check whether the message of a channel was cancelled.

    Raises:
      Cancelled: When the message has a request to cancel it, or has ended as cancelled.
      BackendError: When the status has to be read, and the store does not answer.
    """
    cancelled = channel.is_cancelled()
    if cancelled is None:
        check_snapshot(channel.read())
    elif cancelled:
        raise Cancelled(channel.cancel_reason())


def check_snapshot(snapshot: Snapshot | None) -> None:
    """Check whether the message of a snapshot was cancelled, see :func:`check_cancelled`."""
    if snapshot is not None and (
        snapshot.cancelled or (not snapshot.finished and snapshot.cancel_requested_at is not None)
    ):
        raise Cancelled(snapshot.cancel_reason)


def _check_requested_state(state: int) -> None:
    """Check a state that code inside the run sets."""
    if state == QUEUED:
        raise ValueError(
            "Field 'status' cannot be 'queued' while the message runs: raise dramatiq.Retry to run it again."
        )


def outside_change(changes: Changes) -> Update:
    """Make the update that changes fields from outside of a message's run."""
    return Update(Kind.OUTSIDE, fields=deletion_marks(changes.deleted), changes=changes)


def check_outcome(message_id: str, update: Update, outcome: Outcome) -> None:
    """Check the outcome of an update from outside of a run.

    Raises:
      StatusMissing: When the message is unknown.
      ValueError: When the update adds to a field that holds no number, or the sum is not below 2**53.
    """
    if outcome is Outcome.MISSING:
        raise StatusMissing(message_id)
    if outcome is Outcome.UNCOUNTED:
        names = " or ".join(map(name_of_field, update.changes.counts if update.changes else ()))
        raise ValueError(
            f"Cannot add to field {names} of message {message_id!r}: it holds no number, or the sum is not "
            f"below 2**53. Set it to a number first."
        )


def counts_of(snapshot: Snapshot | None) -> Counts:
    """Return the progress, the total and the rate of a snapshot."""
    if snapshot is None:
        return Counts()
    counts = Counts(snapshot.get("progress"), rate=snapshot.rate)
    return counts._replace(total=snapshot["total"], set=True) if "total" in snapshot else counts
