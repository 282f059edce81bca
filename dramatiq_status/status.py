"""The handle of one message's status."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, Generic, TypeVar, overload

from .channel import Channel, check_cancelled
from .fields import check_count, check_total, count_name, deleted_names, encode_fields
from .progress import Progress
from .record import PROGRESS, TOTAL, State
from .runs import Run
from .snapshot import Snapshot
from .update import Changes

T = TypeVar("T")


class StatusAttribute(Generic[T]):
    """Attribute of a handle.  Each access reads the status, and returns the snapshot's attribute of the same name.

    Parameters:
      unknown: Value for a message that is unknown.
    """

    def __init__(self, unknown: T) -> None:
        self._unknown = unknown

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name
        self.__doc__ = vars(Snapshot)[name].__doc__

    @overload
    def __get__(self, handle: None, owner: type) -> StatusAttribute[T]: ...

    @overload
    def __get__(self, handle: Status, owner: type) -> T: ...

    def __get__(self, handle: Status | None, owner: type) -> StatusAttribute[T] | T:
        if handle is None:
            return self
        return self.of(handle.read())

    def of(self, snapshot: Snapshot | None) -> T:
        """Return the attribute of a snapshot."""
        if snapshot is None:
            return self._unknown
        found: T = getattr(snapshot, self._name)
        return found


class CancelledAttribute(StatusAttribute[bool]):
    """The attribute ``cancelled``.  For the running message, it takes no round trip."""

    @overload
    def __get__(self, handle: None, owner: type) -> StatusAttribute[bool]: ...

    @overload
    def __get__(self, handle: Status, owner: type) -> bool: ...

    def __get__(self, handle: Status | None, owner: type) -> StatusAttribute[bool] | bool:
        if handle is not None:
            found = channel_of(handle).is_cancelled()
            if found is not None:
                return found
        return super().__get__(handle, owner)


class Status:
    """A live handle of one message's status.  Each read of an attribute or a field takes one round trip,
    except ``message_id``, and ``cancelled`` of the running message.  :meth:`read` reads all of them in one round trip.

    For the running message (:func:`.current_status`), and inside of a run for another message of the same store, writes
    never block, and never raise an error of the store.  A read
    first waits until all earlier writes are stored.  It raises
    :class:`.BackendError` when the store does not answer, so a field
    that cannot be read never seems to be missing.  From outside of a
    worker each write takes one round trip, or more with memcached and caches, and is stored when
    it returns.  It raises :class:`.StatusMissing` for an unknown
    message, and :class:`.BackendError`.

    Fields are merged one by one, so that two processes do not overwrite each other's fields.
    Any number of threads may share a handle.  A pickled handle contains only its message id. Unpickling it calls
    :meth:`.StatusRegistry.get` in the other process. A pickled detached handle contains its values.
    """

    __slots__ = ("_channel",)

    # Without this attribute, Python would iterate by __getitem__.
    __iter__ = None

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @property
    def message_id(self) -> str:
        """The id of the message; empty for a detached handle."""
        return self._channel.message_id

    # Writing

    def __setitem__(self, name: str, value: Any) -> None:
        """Set a field, not throttled.

        Raises:
          TypeError: When the name is not a string or the value is not JSON.
          ValueError: When the name is reserved, the state is unknown or is ``queued`` while the message runs, a total
            is negative, the value is NaN, infinite, too large or nested too deeply, or the run would have more than
            1,000 fields.
        """
        fields, state = encode_fields({name: value}, max_size=self._channel.max_field_size)
        self._channel.write(fields, state=state)

    def update(self, fields: Mapping[str, Any] | None = None, /, *, force: bool = False, **more: Any) -> None:
        """Set many fields at once, throttled by ``status_throttle``; one update for the store.

        A ``progress`` of 0, or one below the current progress, begins the measurement of the rate again.  In a running
        message, ``status="failed"`` (or ``"completed"``)
        becomes the final state when the actor returns.

        Parameters:
          fields(Mapping[str, Any]): Fields by name.
          force(bool): Whether to write at once, without throttling.
          **more: Further fields by name.

        Raises:
          TypeError: When a name is not a string or a value is not JSON.
          ValueError: When a name is reserved, the state is unknown or is ``queued`` while the message runs, a total is
            negative, a value is NaN, infinite, too large or nested too deeply, or the update or the run would have more
            than 1,000 fields.
        """
        if fields is not None:
            more = {**fields, **more}
        encoded, state = encode_fields(more, max_size=self._channel.max_field_size)
        self._channel.write(encoded, state=state, urgent=force)

    def increment(self, name: str, n: int | float = 1) -> None:
        """Add to a field that holds a number, atomically in the store; throttled by
        ``status_throttle``.  A field that is missing, or None, counts from 0.

        >>> status.increment("rows", 500)

        A field that holds another value stays unchanged: a worker logs this once for each message,
        and a call from outside of a worker raises ``ValueError``.

        Parameters:
          name(str): Name of a field, ``progress`` and ``total`` included.
          n(int | float): Number to add.  It may be negative, except for ``total``.

        Raises:
          TypeError: When the name is not a string or `n` is no number.
          ValueError: When the name is reserved, or `n` is NaN, infinite, too large, or negative for ``total``.
        """
        stored, n = count_name(name), check_count(name, n)
        if stored == PROGRESS:
            self._channel.increment(n)
        else:
            self._channel.change(Changes({stored: check_total(n) if stored == TOTAL else n}), urgent=False)

    def unset(self, *names: str) -> None:
        """Delete fields, not throttled; one update for the store.  ``del status["step"]`` deletes one field.

        It is no error if a field is missing.  A deleted field that was given when the message was sent does not come
        back with a retry.

        Raises:
          TypeError: When a name is not a string.
          ValueError: When a name is the library's own.
        """
        if names:
            self._channel.change(Changes(deleted=deleted_names(names)))

    def __delitem__(self, name: str) -> None:
        self.unset(name)

    def flush(self) -> bool:
        """Wait until all that was written is stored.

        It blocks, as every read does.  In a coroutine, wait in a
        thread, so that other coroutines can run.

        >>> await asyncio.to_thread(status.flush)
        True

        Returns:
          bool: False when the store is down, or takes longer than the
          backend's time-out.
        """
        return self._channel.flush()

    def check_cancelled(self) -> None:
        """Raise :class:`.Cancelled`, with the reason, if the message was cancelled.  For the running message it takes
        no round trip, unless the worker has found the request in the outcome of an update and not in the log of
        cancelled messages.  It then reads the reason once; if the store does not answer, the reason is None.

        >>> while more_work():
        ...     current_status().check_cancelled()

        Raises:
          Cancelled: When the message has a request to cancel it.  If the exception leaves the actor, the message ends
            as cancelled and is not retried.
          BackendError: When the handle is not that of the running message, and the store does not answer.
        """
        check_cancelled(self._channel)

    def delete(self) -> bool:
        """Delete the status.  The message itself stays in its queue.  If it
        runs, its next write stores the status again.

        Returns:
          bool: Whether the message had a status.
        """
        return self._channel.delete()

    # Reading

    def read(self) -> Snapshot | None:
        """Read the status in one round trip; None when the message is
        unknown or its status has expired.

        Raises:
          BackendError: When the store does not answer, or when it does not store the writes of the
            running message in time.
        """
        return self._channel.read()

    # The attributes of a snapshot.  Each access takes a round trip, except ``cancelled`` of the running message.

    state: StatusAttribute[State | None] = StatusAttribute(None)
    queued: StatusAttribute[bool] = StatusAttribute(False)
    working: StatusAttribute[bool] = StatusAttribute(False)
    completed: StatusAttribute[bool] = StatusAttribute(False)
    failed: StatusAttribute[bool] = StatusAttribute(False)
    finished: StatusAttribute[bool] = StatusAttribute(False)
    retrying: StatusAttribute[bool] = StatusAttribute(False)
    scheduled: StatusAttribute[bool] = StatusAttribute(False)
    stalled: StatusAttribute[bool] = StatusAttribute(False)
    skipped: StatusAttribute[bool] = StatusAttribute(False)
    cancelled: StatusAttribute[bool] = CancelledAttribute(False)
    cancel_reason: StatusAttribute[str | None] = StatusAttribute(None)
    cancel_requested_at: StatusAttribute[datetime | None] = StatusAttribute(None)
    cancel_seen_at: StatusAttribute[datetime | None] = StatusAttribute(None)
    attempts: StatusAttribute[int] = StatusAttribute(0)
    runs: StatusAttribute[tuple[Run, ...]] = StatusAttribute(())
    timeline: StatusAttribute[tuple[str, ...]] = StatusAttribute(())
    exception: StatusAttribute[dict[str, str] | None] = StatusAttribute(None)
    truncated: StatusAttribute[tuple[str, ...]] = StatusAttribute(())
    progress: StatusAttribute[float | None] = StatusAttribute(None)
    total: StatusAttribute[int | float | None] = StatusAttribute(None)
    percent: StatusAttribute[float | None] = StatusAttribute(None)
    rate: StatusAttribute[float | None] = StatusAttribute(None)
    time_remaining: StatusAttribute[timedelta | None] = StatusAttribute(None)
    actor_name: StatusAttribute[str | None] = StatusAttribute(None)
    queue_name: StatusAttribute[str | None] = StatusAttribute(None)
    enqueued_at: StatusAttribute[datetime | None] = StatusAttribute(None)
    scheduled_at: StatusAttribute[datetime | None] = StatusAttribute(None)
    started_at: StatusAttribute[datetime | None] = StatusAttribute(None)
    finished_at: StatusAttribute[datetime | None] = StatusAttribute(None)
    updated_at: StatusAttribute[datetime | None] = StatusAttribute(None)
    heartbeat_at: StatusAttribute[datetime | None] = StatusAttribute(None)
    duration: StatusAttribute[timedelta | None] = StatusAttribute(None)
    version: StatusAttribute[int] = StatusAttribute(0)
    fields: StatusAttribute[Mapping[str, Any]] = StatusAttribute(MappingProxyType({}))

    def __getitem__(self, name: str) -> Any:
        snapshot = self.read()
        if snapshot is None:
            raise KeyError(name)
        return snapshot[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Get a field, or `default` where there is none of that name.

        Raises:
          BackendError: As for :meth:`read`.  The method does not return `default` when the
            store does not answer.
        """
        snapshot = self.read()
        return default if snapshot is None else snapshot.get(name, default)

    def __contains__(self, name: object) -> bool:
        snapshot = self.read()
        return snapshot is not None and name in snapshot

    def to_dict(
        self, *, only: Iterable[str] | None = None, exclude: Iterable[str] = (), private: bool = True
    ) -> dict[str, Any]:
        """Get the result of :meth:`.Snapshot.to_dict`; an empty dict where the message is unknown."""
        snapshot = self.read()
        return {} if snapshot is None else snapshot.to_dict(only=only, exclude=exclude, private=private)

    def to_json(self, *, only: Iterable[str] | None = None, exclude: Iterable[str] = (), private: bool = True) -> str:
        """Get the result of :meth:`.Snapshot.to_json`; the text of an empty object where the message is unknown."""
        return json.dumps(self.to_dict(only=only, exclude=exclude, private=private))

    def __reduce__(self) -> tuple[type[Status], tuple[Channel]]:
        # The channel defines what a copy or a pickle of the handle contains: see `LiveChannel` and `DetachedChannel`.
        return type(self), (self._channel,)

    def __bool__(self) -> bool:
        return self.read() is not None

    def __str__(self) -> str:
        return str(self.read() or "unknown")

    def __repr__(self) -> str:
        return f"<Status of {self.message_id or 'nothing'}>"


def channel_of(handle: Status | Progress) -> Channel:
    """Return the channel of a handle."""
    return handle._channel
