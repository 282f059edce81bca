"""The handles of one message's status and progress, to be awaited."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from types import EllipsisType
from typing import Any, NoReturn

from ..fields import check_count, encode_count, encode_fields, encode_total
from ..progress import dict_of
from ..record import PROGRESS, TOTAL, Record, State
from ..snapshot import Snapshot, fraction_of
from .channel import AsyncChannel


class Status:
    """A live handle of one message's status, as :class:`dramatiq_status.Status`, to be awaited:

    >>> status = aio.StatusRegistry.get(message)
    >>> await status.update(step="reading")
    >>> await status.state, await status["step"]
    (<State.QUEUED: 'queued'>, 'reading')

    Every look asks the store anew, in one round trip; take :meth:`read`
    to look more than once.  It raises :class:`.BackendError` where the store does
    not answer.  In the message that is being processed writes go
    through its worker, and never raise for a broken store; elsewhere
    each takes one round trip, and raises :class:`.StatusMissing` for an
    unknown message, and :class:`.BackendError`.

    What Python does not await is not there: fields are set by
    :meth:`update`, and whether there is a status :meth:`read` tells.
    """

    __slots__ = ("_channel",)

    # Without these, Python would make do with __getitem__, for ever.
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
        """Set many fields at once; one update for the store.

        Parameters:
          fields(Mapping[str, Any]): Fields by name.
          force(bool): Whether to write at once, throttled or not.
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

    async def flush(self) -> bool:
        """Wait until all that was written is stored.

        Returns:
          bool: False where the store is down, or took longer than the
          backend's time-out.
        """
        return await self._channel.flush()

    async def delete(self) -> bool:
        """Delete the status.  The message itself is not touched; if it
        runs, its next write brings the status back.

        Returns:
          bool: Whether there was one.
        """
        return await self._channel.delete()

    # Reading

    async def read(self) -> Snapshot | None:
        """Read everything in one round trip; None where the message is
        unknown or its status has expired.
        """
        return await self._channel.read()

    @property
    def state(self) -> Coroutine[Any, Any, State | None]:
        """To be awaited: the state, which equals its name; None where it is unknown."""
        return self._state()

    @property
    def queued(self) -> Coroutine[Any, Any, bool]:
        """To be awaited: whether the message waits for a worker, for the first time or again."""
        return self._is(State.QUEUED)

    @property
    def working(self) -> Coroutine[Any, Any, bool]:
        """To be awaited: whether the message runs."""
        return self._is(State.WORKING)

    @property
    def completed(self) -> Coroutine[Any, Any, bool]:
        """To be awaited: whether the message was processed."""
        return self._is(State.COMPLETED)

    @property
    def failed(self) -> Coroutine[Any, Any, bool]:
        """To be awaited: whether the message failed for good."""
        return self._is(State.FAILED)

    @property
    def finished(self) -> Coroutine[Any, Any, bool]:
        """To be awaited: whether the message is completed or failed."""
        return self._is(State.COMPLETED, State.FAILED)

    @property
    def progress(self) -> Coroutine[Any, Any, float | None]:
        """To be awaited: progress by total, from 0.0 to 1.0; None when none was reported."""
        return self._progress()

    async def __getitem__(self, name: str) -> Any:
        snapshot = await self.read()
        if snapshot is None:
            raise KeyError(name)
        return snapshot[name]

    async def get(self, name: str, default: Any = None) -> Any:
        """Get a field, or `default` where there is none of that name."""
        snapshot = await self.read()
        return default if snapshot is None else snapshot.get(name, default)

    async def to_dict(self) -> dict[str, Any]:
        """All fields by name; empty where the message is unknown."""
        snapshot = await self.read()
        return {} if snapshot is None else snapshot.to_dict()

    async def to_json(self) -> str:
        """All fields as a JSON object; an empty one where the message is unknown."""
        snapshot = await self.read()
        return "{}" if snapshot is None else snapshot.to_json()

    async def _state(self) -> State | None:
        snapshot = await self.read()
        return None if snapshot is None else snapshot.state

    async def _is(self, *states: State) -> bool:
        return await self._state() in states

    async def _progress(self) -> float | None:
        snapshot = await self.read()
        return None if snapshot is None else snapshot.progress

    def __bool__(self) -> NoReturn:
        raise TypeError("Whether there is a status only the store knows: use `await status.read() is not None`.")

    def __repr__(self) -> str:
        return f"<Status of {self.message_id}>"


class Progress:
    """The progress of a message, as :class:`dramatiq_status.Progress`, to be awaited.

    Increments are atomic in the store.  Errors are those of :class:`Status`.
    """

    __slots__ = ("_channel",)

    def __init__(self, channel: AsyncChannel) -> None:
        self._channel = channel

    @property
    def progress(self) -> Coroutine[Any, Any, int | float]:
        """To be awaited: the count; 0 until something was reported."""
        return self._count()

    @property
    def total(self) -> Coroutine[Any, Any, int | float | None]:
        """To be awaited: what the count heads for; 100 until it is set, None for one that is unknown."""
        return self._total()

    @property
    def fraction(self) -> Coroutine[Any, Any, float | None]:
        """To be awaited: the count by the total, from 0.0 to 1.0; None when nothing was reported,
        or the total is unknown.
        """
        return self._fraction()

    @property
    def rate(self) -> Coroutine[Any, Any, float | None]:
        """To be awaited: units a second, exponentially smoothed; None while unknown."""
        return self._rate()

    async def set(self, *, progress: int | float | None = None, total: int | float | EllipsisType | None = ...) -> None:
        """Set the count, the total, or both, with one update for the store.

        Parameters:
          progress(int | float): By default it stays as it is.
          total(int | float): By default it stays as it is; None for one that is unknown.
        """
        fields: Record = {}
        if progress is not None:
            fields[PROGRESS] = encode_count("progress", progress)
        if total is not ...:
            fields[TOTAL] = encode_total(total)
        await self._channel.write(fields)

    async def increment(self, n: int | float = 1) -> None:
        """Add to the count, atomically."""
        await self._channel.increment(check_count("increment", n))

    async def decrement(self, n: int | float = 1) -> None:
        """Take from the count, atomically."""
        await self._channel.increment(-check_count("decrement", n))

    async def finish(self) -> None:
        """Set the count to the total, or a total that is unknown to the count."""
        counts = await self._channel.counts()
        if counts.total is None:
            await self.set(total=counts.progress or 0)
        else:
            await self.set(progress=counts.total)

    async def flush(self) -> bool:
        """Wait until all that was written is stored, as :meth:`Status.flush`.

        Returns:
          bool: False where the store is down, or took longer than the
          backend's time-out.
        """
        return await self._channel.flush()

    async def to_dict(self) -> dict[str, Any]:
        """The count, the total, the fraction and the rate."""
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

    def __repr__(self) -> str:
        return f"<Progress of {self._channel.message_id}>"
