"""Snapshots: the status of a message at one time, with the values that are derived from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

from .cursor import Cursor, encode
from .fraction import fraction_of, number_in, percent_of
from .json_values import copy_of, to_json_value
from .names import DERIVED, INCLUDED, NAMES, PRIVATE, STORED_NAMES, TIMESTAMPS, check_names
from .rate import longest_remaining, rate_in
from .record import (
    ACTOR_NAME,
    ATTEMPTS,
    CANCEL_REASON,
    CANCEL_REQUESTED_AT,
    CANCEL_SEEN_AT,
    CANCELLED,
    COMPLETED,
    DEFAULT_HEARTBEAT_INTERVAL,
    DEFAULT_TOTAL,
    ENQUEUED_AT,
    EXCEPTION,
    FAILED,
    FINISHED_AT,
    HEARTBEAT_AT,
    HEARTBEAT_INTERVAL,
    PROGRESS,
    QUEUE_NAME,
    QUEUE_PATIENCE,
    QUEUED,
    RATE,
    RATE_WRITTEN_AT,
    SCHEDULED_AT,
    SKIPPED,
    STALLED_AFTER,
    STARTED_AT,
    STATE,
    STATES,
    TOTAL,
    TRUNCATED,
    UPDATED_AT,
    USER_PREFIX,
    VERSION,
    WORKING,
    State,
)
from .runs import Run, last_end_in, runs_in, timeline_of
from .times import datetime_of, timestamp_of


class Snapshot:
    """Status of a message at one time.  It never changes: the lists and dicts that it returns are copies.

    ``snapshot["step"]`` and :meth:`get` return a field of the user, a field of the library or a derived value by its
    name.  ``"step" in snapshot`` tests whether the snapshot has such a value.  ``dict(snapshot)`` has all of them as
    Python values, :meth:`to_dict` as JSON values.  An attribute is None while its event has not happened.
    """

    __slots__ = ("_now", "_position", "_values", "message_id")

    #: Id of the message.
    message_id: str
    _values: dict[str, Any]
    _now: int
    _position: int

    def __init__(self, message_id: str, values: dict[str, Any], now: int, position: int | None = None) -> None:
        # __setattr__() below raises an error, so the setters of the slots are called.
        set_message_id(self, message_id)
        set_values(self, values)
        set_now(self, now)
        if position is not None:
            set_position(self, position)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"Snapshots are frozen: write {name!r} through StatusRegistry.get(message_id).")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"Snapshots are frozen: {name!r} cannot be deleted.")

    # State

    @property
    def state(self) -> State:
        """State of the message.  It equals its text, such as ``"working"``."""
        return STATES[self._values[STATE]]

    @property
    def queued(self) -> bool:
        """Whether the message waits for a worker, for the first time or again."""
        return bool(self._values[STATE] == QUEUED)

    @property
    def working(self) -> bool:
        """Whether the message runs."""
        return bool(self._values[STATE] == WORKING)

    @property
    def completed(self) -> bool:
        """Whether the message was processed and has not failed, or was skipped and not rejected."""
        return bool(self._values[STATE] == COMPLETED)

    @property
    def failed(self) -> bool:
        """Whether the message has failed, and Dramatiq does not run it again."""
        return bool(self._values[STATE] == FAILED)

    @property
    def finished(self) -> bool:
        """Whether the message is completed or failed."""
        return bool(self._values[STATE] >= COMPLETED)

    @property
    def retrying(self) -> bool:
        """Whether the message waits for another run."""
        return self.queued and self.attempts > 0

    @property
    def scheduled(self) -> bool:
        """Whether the broker delays the message until :attr:`scheduled_at`."""
        return self.queued and (timestamp_of(self._values.get(SCHEDULED_AT)) or 0) > self._now

    @property
    def stalled(self) -> bool:
        """Whether the message is ``working`` and three heartbeats in a row are missing, or is ``queued`` and overdue.

        A message without heartbeats has lost its worker, or the worker has lost its connection to the store.  A
        queued message is overdue if it has been due for a day, and its status has not changed in that day.  The
        queue then has no worker, or a later state of the message could not be stored.

        The worker sends heartbeats on a separate thread, which needs the interpreter.  A message looks stalled while
        a call into C keeps the interpreter lock for three intervals (45 seconds, unless ``heartbeat_interval`` is
        set), and under gevent while its actor does not yield for this time.  Busy Python code does not look stalled.  A
        stalled message may still continue, and runs again when the broker delivers it again.
        """
        if self.queued:
            # The clocks of hosts may differ: the latest timestamp counts.
            due = max(timestamp_of(self._values.get(stored)) or 0 for stored in (ENQUEUED_AT, SCHEDULED_AT, UPDATED_AT))
            return due > 0 and self._now - due > QUEUE_PATIENCE
        if not self.working:
            return False
        # Both times come from the store's clock: the worker's clock may differ.
        last = timestamp_of(self._values.get(HEARTBEAT_AT))
        interval = number_in(self._values.get(HEARTBEAT_INTERVAL)) or DEFAULT_HEARTBEAT_INTERVAL
        return last is not None and self._now - last > STALLED_AFTER * interval

    @property
    def skipped(self) -> bool:
        """Whether a middleware skipped the message, or its actor raised Dramatiq's ``SkipMessage``."""
        return bool(self._values.get(SKIPPED))

    @property
    def cancelled(self) -> bool:
        """Whether the message ended because it was cancelled or aborted, or its actor raised :class:`.Cancelled`."""
        return self.failed and bool(self._values.get(CANCELLED))

    @property
    def cancel_reason(self) -> str | None:
        """Text that was passed to the first :meth:`.StatusRegistry.cancel`."""
        found = self._values.get(CANCEL_REASON)
        return found if isinstance(found, str) else None

    @property
    def attempts(self) -> int:
        """Number of runs of the message, with redeliveries."""
        return int(number_in(self._values.get(ATTEMPTS)) or 0)

    @property
    def runs(self) -> tuple[Run, ...]:
        """Runs of the message, the oldest first.  The store keeps the first one and at most the ten newest.

        There are fewer than :attr:`attempts` if the store has left out some, or has lost the record.
        """
        return runs_in(self._values)

    @property
    def timeline(self) -> tuple[str, ...]:
        """Events in the life of the message in words, with their durations.

        >>> snapshot.timeline
        ('enqueued', 'waited 2 s', 'run 1 failed after 12 s: OSError: gone', 'waited 30 s', 'run 2 running for 5 s')
        """
        return timeline_of(self._values, self._now)

    @property
    def exception(self) -> dict[str, str] | None:
        """The ``type`` and the ``message`` of the last failure."""
        found = self._values.get(EXCEPTION)
        return dict(found) if isinstance(found, dict) else None

    @property
    def truncated(self) -> tuple[str, ...]:
        """Names of at most 100 fields that are missing because the store had no room for their newest values."""
        found = self._values.get(TRUNCATED)
        names = found if isinstance(found, list) else ()
        return tuple([NAMES.get(name, name[1:]) for name in names if isinstance(name, str)])

    # Progress

    @property
    def progress(self) -> float | None:
        """Progress divided by the total, from 0.0 to 1.0; None if no progress was reported, or the total is unknown."""
        return fraction_of(self._values.get(PROGRESS), self._values.get(TOTAL, DEFAULT_TOTAL))

    @property
    def total(self) -> int | float | None:
        """Total of the progress; None if it is unknown, or if neither a total nor a progress was reported."""
        return self._values.get(TOTAL, DEFAULT_TOTAL if PROGRESS in self._values else None)

    @property
    def percent(self) -> float | None:
        """The progress in percent, 0.0 to 100.0, rounded down to one decimal place; 100 if it reaches the total."""
        fraction = self.progress
        return None if fraction is None else percent_of(fraction)

    @property
    def rate(self) -> float | None:
        """Units of progress a second, exponentially smoothed; None while it is unknown.

        The run measures its own increments, without those of other messages.  The rate falls without progress.
        """
        # Time of the run's last write.  Writes from outside of it do not count as its progress.
        since = timestamp_of(self._values.get(RATE_WRITTEN_AT))
        if since is None:
            since = timestamp_of(self._values.get(UPDATED_AT))
        return rate_in(self._values.get(RATE), 0.0 if since is None else (self._now - since) / 1000)

    @property
    def time_remaining(self) -> timedelta | None:
        """Time that the message still runs at its current rate.

        It is None if the message does not run or is stalled, and while the rate is unknown or 0.  In the first
        seconds of a measurement it is None if it would be more than 20 times as long as the measurement, because a
        run may start slowly.
        """
        rate, done = self.rate, number_in(self._values.get(PROGRESS))
        total = number_in(self._values.get(TOTAL, DEFAULT_TOTAL))
        if not self.working or self.stalled or not rate or done is None or total is None:
            return None
        seconds = max(0.0, (total - done) / rate)
        return timedelta(seconds=seconds) if seconds < longest_remaining(self._values.get(RATE)) else None

    # Actor and queue

    @property
    def actor_name(self) -> str | None:
        """Name of the actor."""
        return self._values.get(ACTOR_NAME)

    @property
    def queue_name(self) -> str | None:
        """Name of the queue; for a delayed message the queue to which it moves, not the delay queue."""
        return self._values.get(QUEUE_NAME)

    # Time

    @property
    def enqueued_at(self) -> datetime | None:
        """Time at which the message was first enqueued."""
        return self._datetime(ENQUEUED_AT)

    @property
    def scheduled_at(self) -> datetime | None:
        """Time at which the broker delivers a delayed message; None when the message runs or has ended."""
        return self._datetime(SCHEDULED_AT)

    @property
    def started_at(self) -> datetime | None:
        """Time at which the last run began."""
        return self._datetime(STARTED_AT)

    @property
    def finished_at(self) -> datetime | None:
        """Time at which the message was completed or failed."""
        return self._datetime(FINISHED_AT)

    @property
    def updated_at(self) -> datetime | None:
        """Time of the last change of this status."""
        return self._datetime(UPDATED_AT)

    @property
    def heartbeat_at(self) -> datetime | None:
        """Time of the message's last heartbeat, or of the start of its run if there was none; None unless it runs."""
        return self._datetime(HEARTBEAT_AT)

    @property
    def cancel_requested_at(self) -> datetime | None:
        """Time of the first request to cancel the message, by the store's clock."""
        return self._datetime(CANCEL_REQUESTED_AT)

    @property
    def cancel_seen_at(self) -> datetime | None:
        """Time at which the running actor first found the request.  None while it has not checked."""
        return self._datetime(CANCEL_SEEN_AT)

    @property
    def duration(self) -> timedelta | None:
        """Duration of the last run, until the time of this snapshot if the run has not ended.

        None while the message is queued.  It is never negative, although the two timestamps may come from two hosts.
        """
        begin = timestamp_of(self._values.get(STARTED_AT))
        if begin is None or self.queued:
            return None
        end = timestamp_of(last_end_in(self._values)) or self._now
        return timedelta(milliseconds=max(0, end - begin))

    @property
    def version(self) -> int:
        """Number of changes of this status."""
        return int(self._values[VERSION])

    @property
    def cursor(self) -> str | None:
        """Text for the parameter `after` of :meth:`.StatusRegistry.list`, if this is the last snapshot of a page.  It
        needs no escapes in a URL.  None for a snapshot that is not from a list.
        """
        position = getattr(self, "_position", None)
        return None if position is None else encode(Cursor(position, self.message_id))

    # Fields

    @property
    def fields(self) -> Mapping[str, Any]:
        """Fields of the user, by names."""
        found = {name[1:]: copy_of(value) for name, value in self._values.items() if name.startswith(USER_PREFIX)}
        return MappingProxyType(found)

    def __getitem__(self, name: str) -> Any:
        if name == "message_id":
            return self.message_id
        if name in DERIVED:
            return getattr(self, name)
        stored = self._stored_name(name)
        try:
            return self._present(stored, self._values[stored])
        except KeyError:
            raise KeyError(name) from None

    def get(self, name: str, default: Any = None) -> Any:
        """Get a field or a derived value.  Return `default` if there is none of this name."""
        try:
            return self[name]
        except KeyError:
            return default

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        return name == "message_id" or name in DERIVED or self._stored_name(name) in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def keys(self) -> Collection[str]:
        """Get the names of the library's fields, of the derived values and of the user's fields."""
        values = self._values
        own = [name for stored, name in NAMES.items() if stored in values]
        users = [name[1:] for name in values if name.startswith(USER_PREFIX)]
        others = [name for name in users if name not in STORED_NAMES and name not in DERIVED]
        return dict.fromkeys(("message_id", *own, *DERIVED, *others)).keys()

    def to_dict(
        self, *, only: Iterable[str] | None = None, exclude: Iterable[str] = (), private: bool = True
    ) -> dict[str, Any]:
        """Get all fields and derived values as JSON values.  Datetimes become texts in ISO 8601, durations become
        seconds, and numbers that JSON cannot express become None.

        >>> snapshot.to_dict(only=("status", "percent", "stalled"))
        {'status': 'working', 'percent': 50.0, 'stalled': False}

        Parameters:
          only(Iterable[str]): Names of the fields to include.  Names without a field are ignored.
          exclude(Iterable[str]): Names of the fields to leave out.
          private(bool): Whether to include the text of the exception, and the arguments and the traceback that
            ``includes`` has stored.  The type of the exception is always included.

        Raises:
          TypeError: When `only` or `exclude` is a single name and not an iterable of names.
        """
        names = self.keys() if only is None else [name for name in check_names("only", only) if name in self]
        left_out = check_names("exclude", exclude)
        found: dict[str, Any] = {
            name: to_json_value(self[name]) if name != "runs" else [run.to_dict(private=private) for run in self.runs]
            for name in names
            if name not in left_out
        }
        if not private:
            found = {name: value for name, value in found.items() if self._stored_name(name) not in PRIVATE}
            if isinstance(found.get("exception"), dict):
                found["exception"].pop("message", None)
        return found

    def to_json(self, *, only: Iterable[str] | None = None, exclude: Iterable[str] = (), private: bool = True) -> str:
        """Get the result of :meth:`to_dict` as the text of a JSON object."""
        return json.dumps(self.to_dict(only=only, exclude=exclude, private=private))

    def _stored_name(self, name: str) -> str:
        stored = STORED_NAMES.get(name, USER_PREFIX + name)
        return stored if stored in self._values else INCLUDED.get(name, stored)

    def _present(self, stored: str, value: Any) -> Any:
        if stored in TIMESTAMPS:
            return self._datetime(stored)
        if stored == STATE:
            return self.state
        if stored == RATE:
            return self.rate
        if stored == TRUNCATED:
            return list(self.truncated)
        return copy_of(value)

    def _datetime(self, stored: str) -> datetime | None:
        return datetime_of(self._values.get(stored))

    def __reduce__(self) -> tuple[type[Snapshot], tuple[str, dict[str, Any], int, int | None]]:
        # Without this method, copy and pickle would set attributes, and __setattr__() raises an error.
        return Snapshot, (self.message_id, self._values, self._now, getattr(self, "_position", None))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Snapshot):
            return NotImplemented
        return self.message_id == other.message_id and self._values == other._values

    def __hash__(self) -> int:
        return hash((self.message_id, self._values[VERSION]))

    def __str__(self) -> str:
        percent = self.percent
        return self.state.value if percent is None else f"{self.state} ({percent:g}%)"

    def __repr__(self) -> str:
        return f"<Snapshot of {self.message_id}: {self}>"


# Returns the values of a snapshot by their stored names, without a copy.
values_of: Callable[[Snapshot], dict[str, Any]] = vars(Snapshot)["_values"].__get__

# Setters of the slots of a new snapshot: its __setattr__() raises an error.
set_message_id: Callable[[Snapshot, str], None] = vars(Snapshot)["message_id"].__set__
set_values: Callable[[Snapshot, dict[str, Any]], None] = vars(Snapshot)["_values"].__set__
set_now: Callable[[Snapshot, int], None] = vars(Snapshot)["_now"].__set__
set_position: Callable[[Snapshot, int | None], None] = vars(Snapshot)["_position"].__set__
