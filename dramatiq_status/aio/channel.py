"""Channels of asynchronous handles."""

from __future__ import annotations

import asyncio
from typing import Protocol

from ..backend import StatusBackend
from ..channel import Channel, LiveChannel, check_outcome, counts_of, outside_change
from ..fields import check_count
from ..record import Counts, Record
from ..snapshot import Snapshot
from ..update import Changes, Kind, Update
from .store import async_backend


class AsyncChannel(Protocol):
    """The operations that an asynchronous handle needs."""

    message_id: str
    max_field_size: int

    async def write(self, fields: Record, *, state: int | None = None, urgent: bool = True) -> None:
        """Set fields, and the state to a stored number; None keeps the state."""

    async def increment(self, n: int | float = 1) -> None:
        """Add to the progress."""

    async def change(self, changes: Changes, *, urgent: bool = True) -> None:
        """Delete fields, add numbers to fields, and set the progress to the total."""

    async def read(self) -> Snapshot | None:
        """Read the status."""

    async def counts(self) -> Counts:
        """Return the present progress, total and rate."""

    async def flush(self) -> bool:
        """Wait until all that was written is stored."""

    async def delete(self) -> bool:
        """Delete the status."""

    def is_cancelled(self) -> bool | None:
        """Return whether the running message has a request to cancel it; None if the caller has to read the status."""

    def cancel_reason(self) -> str | None:
        """Return the reason of the request that :meth:`is_cancelled` has found.  This may wait for the store."""


class OutsideChannel(LiveChannel):
    """A channel from outside of a worker.  Each call is one call of the asynchronous backend."""

    def __init__(self, backend: StatusBackend, message_id: str) -> None:
        self.message_id = message_id
        self.max_field_size: int = backend.max_field_size
        self._backend = backend

    async def write(self, fields: Record, *, state: int | None = None, urgent: bool = True) -> None:
        await self._update(Update(Kind.OUTSIDE, state=state, fields=fields))

    async def increment(self, n: int | float = 1) -> None:
        await self._update(Update(Kind.OUTSIDE, increment=check_count("increment", n)))

    async def change(self, changes: Changes, *, urgent: bool = True) -> None:
        await self._update(outside_change(changes))

    async def read(self) -> Snapshot | None:
        return await (await async_backend(self._backend)).snapshot(self.message_id)

    async def counts(self) -> Counts:
        return counts_of(await self.read())

    async def flush(self) -> bool:
        return True

    async def delete(self) -> bool:
        return await (await async_backend(self._backend)).delete(self.message_id)

    async def _update(self, update: Update) -> None:
        backend = await async_backend(self._backend)
        check_outcome(self.message_id, update, await backend.update(self.message_id, update))


class InsideChannel(LiveChannel):
    """A channel from inside a worker.  All writes go through the writer, so that they stay in order.  Calls that may
    wait for the store run in a thread.
    """

    def __init__(self, channel: Channel) -> None:
        self.message_id: str = channel.message_id
        self.max_field_size: int = channel.max_field_size
        self._channel = channel

    def is_cancelled(self) -> bool | None:
        return self._channel.is_cancelled()

    def cancel_reason(self) -> str | None:
        return self._channel.cancel_reason()

    async def write(self, fields: Record, *, state: int | None = None, urgent: bool = True) -> None:
        await asyncio.to_thread(self._channel.write, fields, state=state, urgent=urgent)

    async def increment(self, n: int | float = 1) -> None:
        self._channel.increment(n)

    async def change(self, changes: Changes, *, urgent: bool = True) -> None:
        await asyncio.to_thread(self._channel.change, changes, urgent=urgent)

    async def read(self) -> Snapshot | None:
        return await asyncio.to_thread(self._channel.read)

    async def counts(self) -> Counts:
        return await asyncio.to_thread(self._channel.counts)

    async def flush(self) -> bool:
        return await asyncio.to_thread(self._channel.flush)

    async def delete(self) -> bool:
        return await asyncio.to_thread(self._channel.delete)
