"""A backend in an event loop: its calls are awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..backend import Listed, Query, StatusBackend, answered
from ..cursor import Cursor
from ..errors import BackendError
from ..snapshot import Snapshot
from ..update import Outcome, Update
from .hub import AsyncSubscription, Hub


class AsyncBackend:
    """A backend for one event loop.

    This class runs each call of the backend in a thread, and polls watched statuses.

    Parameters:
      backend(StatusBackend)
    """

    def __init__(self, backend: StatusBackend) -> None:
        self.backend = backend
        #: Follows messages for all watchers in this loop.
        self.hub: Hub = Hub(self)

    async def snapshot(self, message_id: str) -> Snapshot | None:
        """Read one status in one round trip."""
        return answered((await self.snapshots((message_id,)))[0])

    async def snapshots(self, message_ids: Sequence[str]) -> Sequence[Snapshot | BackendError | None]:
        """Read statuses in as few round trips as possible.  Each status that could not be read has an error in
        its place.
        """
        return await asyncio.to_thread(self.backend.snapshots, message_ids)

    async def update(self, message_id: str, update: Update) -> Outcome:
        """Carry out one update in one round trip, or in more with memcached and caches."""
        return await asyncio.to_thread(self.backend.update, message_id, update)

    async def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        """Carry out updates in as few round trips as possible."""
        return await asyncio.to_thread(self.backend.update_many, updates)

    async def delete(self, message_id: str) -> bool:
        """Delete a record in one round trip, or in two with caches."""
        return await asyncio.to_thread(self.backend.delete, message_id)

    async def find(self, query: Query, *, limit: int, after: Cursor | None) -> list[Listed]:
        """List a page of statuses, newest first."""
        return await asyncio.to_thread(self.backend.find, query, limit=limit, after=after)

    async def count(self, query: Query) -> int:
        """Count statuses."""
        return await asyncio.to_thread(self.backend.count, query)

    async def subscribe(self) -> AsyncSubscription | None:
        """Connect a subscription, to no message yet.  Return None if the store publishes no changes."""
        return None

    async def close(self) -> None:
        """Close the connections of this loop."""
        await self.hub.close()
