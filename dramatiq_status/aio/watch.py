"""Following messages until they are finished, in an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from typing import TypeVar

from ..backend import StatusBackend
from ..errors import BackendError
from ..following import Watcher
from ..snapshot import Snapshot
from .hub import AutoResetEvent, HubClosed, LatestSlot
from .store import async_backend

FoundT = TypeVar("FoundT")


async def watch_loop(
    backend: StatusBackend,
    message_ids: Sequence[str],
    begin: Callable[[float], Watcher[FoundT]],
    take: Callable[[list[Snapshot | BackendError | None]], FoundT],
) -> AsyncGenerator[FoundT, None]:
    """Yield the values that the watcher selects, until the watcher is finished or raises an exception.

    This is :func:`dramatiq_status.watch.watch_loop` for an event loop.  The hub of the running loop reads the messages,
    and receives their changes, for all watchers.

    Parameters:
      backend(StatusBackend)
      message_ids(Sequence[str])
      begin(Callable): Makes the watcher.  It is called with the present time.
      take(Callable): Makes the value to yield from the snapshots of the messages.  A message that could not be read has
        an error in its place.  If all messages have errors, `take` is not called.
    """
    clock = asyncio.get_running_loop().time
    watcher = begin(clock())
    hub = (await async_backend(backend)).hub
    wake_up = AutoResetEvent()
    slots = [hub.join(message_id, wake_up) for message_id in message_ids]
    found: list[Snapshot | BackendError | None] = [None] * len(slots)
    try:
        await _until_full(slots, wake_up)
        while True:
            _empty(slots, found)
            failure = _failure_of(found)
            if failure is not None:
                watcher.failed(failure)
            else:
                shown = take(found)
                if watcher.observe(shown, clock()):
                    yield shown
                    if watcher.finished:
                        return
            watcher.check(clock())
            while not any(slot.full for slot in slots):
                time_left = watcher.time_left(clock())
                if time_left > 0:
                    await wake_up.wait(time_left)
                    continue
                if not watcher.answering:
                    # The store does not answer, so raise the time-out without a last read.
                    watcher.check(clock())
                for message_id in message_ids:
                    hub.read_now(message_id)
                await _until_full(slots, wake_up)
            now = clock()
            rest = min(watcher.pause(now), watcher.time_left(now))
            if rest > 0:
                await asyncio.sleep(rest)
    finally:
        for slot in slots:
            await hub.leave(slot)


async def last(found: AsyncIterator[FoundT]) -> FoundT:
    """Return the last item of an iterator, which must have at least one."""
    async for newest in found:  # noqa: B007 - it is used after the loop
        pass
    return newest


async def _until_full(slots: Iterable[LatestSlot], wake_up: AutoResetEvent) -> None:
    while not all(slot.full for slot in slots):
        await wake_up.wait()


def _empty(slots: Iterable[LatestSlot], found: list[Snapshot | BackendError | None]) -> None:
    """Take the snapshots and errors out of the slots.

    Raises:
      HubClosed: When the hub was closed.
    """
    for index, slot in enumerate(slots):
        if slot.full:
            try:
                found[index] = slot.take()
            except HubClosed:
                raise
            except BackendError as e:
                found[index] = e


def _failure_of(found: list[Snapshot | BackendError | None]) -> BackendError | None:
    """Return the first error if all messages have errors: the store does not answer."""
    first = found[0] if found else None
    if isinstance(first, BackendError) and all(isinstance(one, BackendError) for one in found):
        return first
    return None
