"""Backends as an event loop sees them: one for each backend and loop, closed with the loop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Sequence
from threading import Lock

from ..backend import Listed, Query, StatusBackend, answered
from ..cursor import Cursor
from ..errors import BackendError
from ..snapshot import Snapshot
from ..update import Outcome, Update
from .hub import AsyncSubscription, Hub


class AsyncBackend:
    """A backend for one event loop.  This one runs it in threads, and has it
    asked again and again for what is watched; others know better.

    Parameters:
      backend(StatusBackend)
    """

    def __init__(self, backend: StatusBackend) -> None:
        self.backend = backend
        #: Follows messages for all watchers in this loop.
        self.hub: Hub = Hub(self)

    async def snapshot(self, message_id: str) -> Snapshot | None:
        """Read one status; one round trip."""
        return answered((await self.snapshots((message_id,)))[0])

    async def snapshots(self, message_ids: Sequence[str]) -> Sequence[Snapshot | BackendError | None]:
        """Read statuses, with an error in the place of each that could not be read; one round trip."""
        return await asyncio.to_thread(self.backend.snapshots, message_ids)

    async def update(self, message_id: str, update: Update) -> Outcome:
        """Carry out one update."""
        return await asyncio.to_thread(self.backend.update, message_id, update)

    async def delete(self, message_id: str) -> bool:
        """Delete a record; one round trip."""
        return await asyncio.to_thread(self.backend.delete, message_id)

    async def find(self, query: Query, *, limit: int, after: Cursor | None) -> list[Listed]:
        """List a page of statuses, newest first."""
        return await asyncio.to_thread(self.backend.find, query, limit=limit, after=after)

    async def count(self, query: Query) -> int:
        """Count statuses."""
        return await asyncio.to_thread(self.backend.count, query)

    async def subscribe(self) -> AsyncSubscription | None:
        """Connect a new subscription, to no message yet; None where the store cannot tell."""
        return None

    async def close(self) -> None:
        """Close the connections of this loop."""
        await self.hub.close()


_open: dict[asyncio.AbstractEventLoop, dict[StatusBackend, tuple[AsyncBackend, AsyncGenerator[None, None]]]] = {}
_lock = Lock()


async def async_backend(backend: StatusBackend) -> AsyncBackend:
    """Get the backend that belongs to the running loop."""
    loop = asyncio.get_running_loop()
    here = _open.get(loop)
    if here is None:
        with _lock:
            for closed in [other for other in _open if other.is_closed()]:
                del _open[closed]
            here = _open[loop] = {}
    if backend not in here:
        made = _make(backend)
        guard = _guard(backend, made)
        here[backend] = made, guard
        await guard.__anext__()
    return here[backend][0]


async def close_backend(backend: StatusBackend) -> None:
    """Close what the running loop has open of a backend; it opens anew when it is used again."""
    found = _open.get(asyncio.get_running_loop(), {}).get(backend)
    if found is not None:
        await found[1].aclose()


async def _guard(backend: StatusBackend, made: AsyncBackend) -> AsyncGenerator[None, None]:
    """Wait for the end of the loop.

    A loop closes the asynchronous generators that it has begun before it is
    closed itself (``shutdown_asyncgens``); nothing else tells us of it.
    """
    try:
        yield
    finally:
        loop = asyncio.get_running_loop()
        here = _open.get(loop, {})
        here.pop(backend, None)
        if not here:
            with _lock:
                _open.pop(loop, None)
        await made.close()


def _make(backend: StatusBackend) -> AsyncBackend:
    # Whoever has one has imported its module, and with it the driver.
    if "dramatiq_status.backends.redis.backend" in sys.modules:
        from . import _redis

        if (made := _redis.make(backend)) is not None:
            return made
    return AsyncBackend(backend)
