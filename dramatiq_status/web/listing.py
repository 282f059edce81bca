"""Reads of the list and of the counts, shared by all visitors within a second."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from ..aio import StatusRegistry
from ..snapshot import Snapshot
from ..state_filter import AMONG, StatePage, is_in
from .site import Site

#: Seconds for which a reply of the store is reused for further visitors.
SHARED_FOR: Final = 1.0

#: Maximum number of replies that are kept.
MAX_KEPT: Final = 64

#: Number of rows of a page.
PAGE: Final = 50

#: Maximum number of messages of a state that a count reads, for example to find cancelled ones among failed ones.
MAX_READ: Final = 100

STATES: Final = ("queued", "working", "failed", "completed")


class ListPage(NamedTuple):
    """A page of the list, and the cursor at its end; None where the list ends."""

    jobs: list[Snapshot]
    next: str | None


class ListRequest(NamedTuple):
    """The filters and the position of a page of the list; None for no filter, and for the first page."""

    state: str | None = None
    actor: str | None = None
    queue: str | None = None
    after: str | None = None


@dataclass(frozen=True)
class Counts:
    """Numbers of statuses by state, and the newest statuses."""

    by_state: dict[str, int]
    #: For each state except ``completed``, numbers of its messages by the keys of :data:`AMONG`, for example of the
    #: cancelled ones among the failed ones.
    among: dict[str, dict[str, int]]
    #: States with more than :data:`MAX_READ` messages, of which the newest were read: their numbers in `among` are
    #: minimums.
    partly_read: frozenset[str]
    #: The newest status that has failed and was not cancelled, and the newest completed one.
    newest: dict[str, Snapshot | None]

    @property
    def total(self) -> int:
        return sum(self.by_state.values())

    def number_of(self, state: str) -> tuple[int, bool]:
        """Return the number of statuses in one of :data:`STATES` or of :data:`AMONG`, and whether it is a minimum."""
        if state in self.by_state:
            return self.by_state[state], False
        states = AMONG[state]
        return sum(self.among[one][state] for one in states), not self.partly_read.isdisjoint(states)


class Listing:
    """Reader of pages and counts.  It reads once for all visitors within a second.

    Parameters:
      site(Site)
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._kept: OrderedDict[object, tuple[float, asyncio.Task[Any]]] = OrderedDict()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def page(self, wanted: ListRequest) -> ListPage:
        """List one page.  A page of jobs in a state that the store does not index may have fewer jobs than others.

        Raises:
          NotSupported: When the store cannot list.
          ValueError: When a filter or the cursor is invalid.
        """
        found: ListPage = await self._once(wanted, lambda: self._page(wanted))
        return found

    async def counts(self) -> Counts:
        """Count the statuses of each state."""
        found: Counts = await self._once("counts", self._count)
        return found

    async def _page(self, wanted: ListRequest) -> ListPage:
        state, actor, queue, after = wanted
        page = StatePage(state, PAGE, after)
        while page.to_read:
            page.take(await self._list(page.to_read, page.read_from, actor, queue, page.read_after))
        return ListPage(page.jobs, page.after)

    async def _list(
        self, limit: int, state: str | None, actor: str | None, queue: str | None, after: str | None
    ) -> Any:
        site = self._site
        return await StatusRegistry.list(state, actor, queue, limit, after, backend=site.backend, broker=site.broker)

    async def _count(self) -> Counts:
        site = self._site
        queued, working, failed, completed, *numbers = await asyncio.gather(
            *(self._list(MAX_READ, state, None, None, None) for state in STATES[:3]),
            self._list(1, "completed", None, None, None),
            *(StatusRegistry.count(state, backend=site.backend, broker=site.broker) for state in STATES),
        )
        by_state = dict(zip(STATES, numbers))
        read = {"queued": queued, "working": working, "failed": failed}
        among = {
            state: {name: sum(is_in(one, name) for one in found) for name, states in AMONG.items() if state in states}
            for state, found in read.items()
        }
        partly_read = frozenset(state for state, found in read.items() if MAX_READ <= len(found) < by_state[state])
        newest = {
            "failed": next((one for one in failed if not one.cancelled), None),
            "completed": completed[0] if completed else None,
        }
        return Counts(by_state, among, partly_read, newest)

    async def _once(self, key: object, read: Callable[[], Awaitable[Any]]) -> Any:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._kept.clear()
            self._loop = loop
        read_at, task = self._kept.get(key, (0.0, None))
        if task is None or (task.done() and loop.time() - read_at > SHARED_FOR):
            task = asyncio.ensure_future(read())
            assert task is not None
            self._kept[key] = loop.time(), task
            self._kept.move_to_end(key)
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        # If one visitor's request is cancelled, the read goes on for the other visitors.
        return await asyncio.shield(task)
