"""Asynchronous handles of one message: Status and Progress."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterable, Mapping
from datetime import datetime, timedelta
from types import EllipsisType, MappingProxyType
from typing import Any, NoReturn, TypeVar, overload

from ..channel import check_snapshot
from ..errors import Cancelled
from ..fields import check_count, check_total, count_name, deleted_names, encode_count, encode_fields, encode_total
from ..fraction import fraction_of
from ..progress import dict_of
from ..record import PROGRESS, TOTAL, Record, State
from ..runs import Run
from ..snapshot import Snapshot
from ..status import StatusAttribute
from ..update import Changes
from .channel import AsyncChannel

T = TypeVar("T")


class AsyncStatusAttribute(StatusAttribute[T]):
    """Attribute of a handle, to be awaited.  It reads the status."""

    @overload  # type: ignore[override]
    def __get__(self, handle: None, owner: type) -> AsyncStatusAttribute[T]: ...

    @overload
    def __get__(self, handle: Status, owner: type) -> Coroutine[Any, Any, T]: ...

    def __get__(self, handle: Status | None, owner: type) -> AsyncStatusAttribute[T] | Coroutine[Any, Any, T]:
        return self if handle is None else self._read(handle)

    async def _read(self, handle: Status) -> T:
        return self.of(await handle.read())


class AsyncCancelledAttribute(AsyncStatusAttribute[bool]):
    """The attribute ``cancelled``, which takes no round trip for the running message."""

    async def _read(self, handle: Status) -> bool:
        found = handle._channel.is_cancelled()
        return await super()._read(handle) if found is None else found


class Status:
    """A live handle of one message's status: :class:`dramatiq_status.Status` with methods and attributes to await.

    >>> status = aio.StatusRegistry.get(message)
    >>> await status.update(step="reading")
    >>> await status.state, await status["step"]
    (<State.QUEUED: 'queued'>, 'reading')

    Each read of an attribute or a field takes one round trip.  :meth:`read` reads all of them in one.  A read raises
    :class:`.BackendError` when the store does not answer.  Writes inside a worker go through its writer, and raise no
    error of the store.  Each write outside of a worker takes one round trip, or more with memcached and caches.  It
    raises :class:`.StatusMissing` for an unknown message, and :class:`.BackendError`.

    Python cannot await an assignment or a truth test.  So :meth:`update` sets fields, and :meth:`read` returns None for
    an unknown message.
    """

    __slots__ = ("_channel",)

    # Without these attributes, Python would call __getitem__ forever.
    __contains__ = None
    __iter__ = None

    def __init__(self, channel: AsyncChannel) -> None:
        self._channel = channel

    @property
    def message_id(self) -> str:
        """The id of the message."""
        return self._channel.message_id

    # Writing

    async def update(self, fields: Mapping[str, Any] | None = None, /, *, force: bool = False, **more: Any) -> None:
        """Set many fields with one update.  Inside a worker, ``status_throttle`` throttles it.

        Parameters:
          fields(Mapping[str, Any]): Fields by name.
          force(bool): Whether to write at once, without throttling.
          **more: Further fields by name.

        Raises:
          TypeError: When a name is not a string or a value is not JSON.
          ValueError: When a name is reserved, the state is unknown, or a
            value is NaN, infinite or too large.
        """
        if fields is not None:
            more = {**fields, **more}
        encoded, state = encode_fields(more, max_size=self._channel.max_field_size)
        await self._channel.write(encoded, state=state, urgent=force)

    async def increment(self, name: str, n: int | float = 1) -> None:
        """Add to a field that holds a number, as :meth:`dramatiq_status.Status.increment` does."""
        stored, n = count_name(name), check_count(name, n)
        if stored == PROGRESS:
            await self._channel.increment(n)
        else:
            await self._channel.change(Changes({stored: check_total(n) if stored == TOTAL else n}), urgent=False)

    async def unset(self, *names: str) -> None:
        """Delete fields, as :meth:`dramatiq_status.Status.unset` does."""
        if names:
            await self._channel.change(Changes(deleted=deleted_names(names)))

    async def flush(self) -> bool:
        """Wait until all that was written is stored.

        Returns:
          bool: False when the store is down, or takes longer than the backend's time-out.
        """
        return await self._channel.flush()

    async def check_cancelled(self) -> None:
        """Stop here if the message was cancelled, as :meth:`dramatiq_status.Status.check_cancelled` does."""
        channel = self._channel
        found = channel.is_cancelled()
        if found is None:
            check_snapshot(await channel.read())
        elif found:
            raise Cancelled(await asyncio.to_thread(channel.cancel_reason))

    async def delete(self) -> bool:
        """Delete the status.  The message itself is not touched; if it
        runs, its next write brings the status back.

        Returns:
          bool: Whether there was a status.

        Raises:
          BackendError: When the store does not answer.
        """
        return await self._channel.delete()

    # Reading

    async def read(self) -> Snapshot | None:
        """Read the whole status in one round trip.  Return None if the message is unknown or its status has expired."""
        return await self._channel.read()

    # The attributes of a snapshot, as awaitables.  Each access takes a round trip, except for `cancelled` of the
    # running message.

    state: AsyncStatusAttribute[State | None] = AsyncStatusAttribute(None)
    queued: AsyncStatusAttribute[bool] = AsyncStatusAttribute(False)
    working: AsyncStatusAttribute[bool] = AsyncStatusAttribute(False)
    completed: AsyncStatusAttribute[bool] = AsyncStatusAttribute(False)
    failed: AsyncStatusAttribute[bool] = AsyncStatusAttribute(False)
    finished: AsyncStatusAttribute[bool] = AsyncStatusAttribute(False)
    retrying: AsyncStatusAttribute[bool] = AsyncStatusAttribute(False)
    scheduled: AsyncStatusAttribute[bool] = AsyncStatusAttribute(False)
    stalled: AsyncStatusAttribute[bool] = AsyncStatusAttribute(False)
    skipped: AsyncStatusAttribute[bool] = AsyncStatusAttribute(False)
    cancelled: AsyncStatusAttribute[bool] = AsyncCancelledAttribute(False)
    cancel_reason: AsyncStatusAttribute[str | None] = AsyncStatusAttribute(None)
    cancel_requested_at: AsyncStatusAttribute[datetime | None] = AsyncStatusAttribute(None)
    cancel_seen_at: AsyncStatusAttribute[datetime | None] = AsyncStatusAttribute(None)
    attempts: AsyncStatusAttribute[int] = AsyncStatusAttribute(0)
    runs: AsyncStatusAttribute[tuple[Run, ...]] = AsyncStatusAttribute(())
    timeline: AsyncStatusAttribute[tuple[str, ...]] = AsyncStatusAttribute(())
    exception: AsyncStatusAttribute[dict[str, str] | None] = AsyncStatusAttribute(None)
    truncated: AsyncStatusAttribute[tuple[str, ...]] = AsyncStatusAttribute(())
    progress: AsyncStatusAttribute[float | None] = AsyncStatusAttribute(None)
    total: AsyncStatusAttribute[int | float | None] = AsyncStatusAttribute(None)
    percent: AsyncStatusAttribute[float | None] = AsyncStatusAttribute(None)
    rate: AsyncStatusAttribute[float | None] = AsyncStatusAttribute(None)
    time_remaining: AsyncStatusAttribute[timedelta | None] = AsyncStatusAttribute(None)
    actor_name: AsyncStatusAttribute[str | None] = AsyncStatusAttribute(None)
    queue_name: AsyncStatusAttribute[str | None] = AsyncStatusAttribute(None)
    enqueued_at: AsyncStatusAttribute[datetime | None] = AsyncStatusAttribute(None)
    scheduled_at: AsyncStatusAttribute[datetime | None] = AsyncStatusAttribute(None)
    started_at: AsyncStatusAttribute[datetime | None] = AsyncStatusAttribute(None)
    finished_at: AsyncStatusAttribute[datetime | None] = AsyncStatusAttribute(None)
    updated_at: AsyncStatusAttribute[datetime | None] = AsyncStatusAttribute(None)
    heartbeat_at: AsyncStatusAttribute[datetime | None] = AsyncStatusAttribute(None)
    duration: AsyncStatusAttribute[timedelta | None] = AsyncStatusAttribute(None)
    version: AsyncStatusAttribute[int] = AsyncStatusAttribute(0)
    fields: AsyncStatusAttribute[Mapping[str, Any]] = AsyncStatusAttribute(MappingProxyType({}))

    async def __getitem__(self, name: str) -> Any:
        snapshot = await self.read()
        if snapshot is None:
            raise KeyError(name)
        return snapshot[name]

    async def get(self, name: str, default: Any = None) -> Any:
        """Get a field, or `default` where there is none of that name."""
        snapshot = await self.read()
        return default if snapshot is None else snapshot.get(name, default)

    async def to_dict(
        self, *, only: Iterable[str] | None = None, exclude: Iterable[str] = (), private: bool = True
    ) -> dict[str, Any]:
        """Read the status, and return what :meth:`.Snapshot.to_dict` returns; ``{}`` for an unknown message."""
        snapshot = await self.read()
        return {} if snapshot is None else snapshot.to_dict(only=only, exclude=exclude, private=private)

    async def to_json(
        self, *, only: Iterable[str] | None = None, exclude: Iterable[str] = (), private: bool = True
    ) -> str:
        """Read the status, and return what :meth:`.Snapshot.to_json` returns; ``{}`` for an unknown message."""
        return json.dumps(await self.to_dict(only=only, exclude=exclude, private=private))

    def __reduce__(self) -> tuple[type[Status], tuple[AsyncChannel]]:
        return type(self), (self._channel,)

    def __bool__(self) -> NoReturn:
        raise TypeError("A truth test cannot be awaited: use `await status.read() is not None`.")

    def __repr__(self) -> str:
        return f"<Status of {self.message_id}>"


class Progress:
    """The progress of a message: :class:`dramatiq_status.Progress` with methods and attributes to await.

    Increments are atomic in the store.  Errors are those of :class:`Status`.
    """

    __slots__ = ("_channel",)

    def __init__(self, channel: AsyncChannel) -> None:
        self._channel = channel

    @property
    def progress(self) -> Coroutine[Any, Any, int | float]:
        """The progress, to be awaited; 0 before the first report."""
        return self._count()

    @property
    def total(self) -> Coroutine[Any, Any, int | float | None]:
        """The total, to be awaited; 100 until it is set, None for an unknown total."""
        return self._total()

    @property
    def fraction(self) -> Coroutine[Any, Any, float | None]:
        """The progress divided by the total, from 0.0 to 1.0, to be awaited.  None before the first report, or if the
        total is unknown.
        """
        return self._fraction()

    @property
    def rate(self) -> Coroutine[Any, Any, float | None]:
        """The progress per second, exponentially smoothed, to be awaited; None while it is unknown."""
        return self._rate()

    async def set(self, *, progress: int | float | None = None, total: int | float | EllipsisType | None = ...) -> None:
        """Set the progress, the total, or both, with one update for the store.

        Parameters:
          progress(int | float): By default it stays as it is.
          total(int | float): By default it stays as it is; None for an unknown total.
        """
        fields: Record = {}
        if progress is not None:
            fields[PROGRESS] = encode_count("progress", progress)
        if total is not ...:
            fields[TOTAL] = encode_total(total)
        await self._channel.write(fields)

    async def increment(self, n: int | float = 1) -> None:
        """Add to the progress, atomically."""
        await self._channel.increment(check_count("increment", n))

    async def decrement(self, n: int | float = 1) -> None:
        """Subtract from the progress, atomically."""
        await self._channel.increment(-check_count("decrement", n))

    async def add_total(self, n: int | float) -> None:
        """Add to the total, as :meth:`dramatiq_status.Progress.add_total` does."""
        await self._channel.change(Changes({TOTAL: check_total(n)}), urgent=False)

    async def finish(self) -> None:
        """Set the progress to the total, as :meth:`dramatiq_status.Progress.finish` does."""
        await self._channel.change(Changes(to_total=True))

    async def flush(self) -> bool:
        """Wait until all that was written is stored, as :meth:`Status.flush` does.

        Returns:
          bool: False where the store is down, or took longer than the
          backend's time-out.
        """
        return await self._channel.flush()

    async def to_dict(self) -> dict[str, Any]:
        """Return the progress, the total, the fraction and the rate by their names."""
        return dict_of(await self._channel.counts())

    async def _count(self) -> int | float:
        return (await self._channel.counts()).progress or 0

    async def _total(self) -> int | float | None:
        return (await self._channel.counts()).total

    async def _fraction(self) -> float | None:
        counts = await self._channel.counts()
        return fraction_of(counts.progress, counts.total)

    async def _rate(self) -> float | None:
        return (await self._channel.counts()).rate

    def __reduce__(self) -> tuple[type[Progress], tuple[AsyncChannel]]:
        return type(self), (self._channel,)

    def __repr__(self) -> str:
        return f"<Progress of {self._channel.message_id}>"
