"""Reading and changing statuses by message id, in an event loop."""

from __future__ import annotations

import copyreg
from collections.abc import AsyncGenerator, Callable, Iterable
from datetime import timedelta
from operator import itemgetter
from typing import Any, Literal, cast, overload

import dramatiq

from ..backend import StatusBackend
from ..batch import Group, find_chains
from ..cancellation import Cancellation, result_of_one
from ..channel import DirectChannel
from ..checks import (
    DEFAULT_MISSING_TIMEOUT,
    DEFAULT_WAIT_TIMEOUT,
    check_duration,
    check_limit,
    check_message_id,
    check_message_ids,
)
from ..errors import BackendError
from ..following import MessageWatcher
from ..lookup import decode_page, find_backend, make_cursor, make_query, raise_first
from ..opening import open_channel
from ..record import State
from ..snapshot import Snapshot
from .batch import Batch
from .channel import AsyncChannel, InsideChannel, OutsideChannel
from .handles import Progress, Status
from .store import async_backend
from .watch import last, watch_loop


class StatusRegistry:
    """The asynchronous :class:`dramatiq_status.StatusRegistry`, for code that must not block its event loop.

    Names, parameters and errors are those of :class:`dramatiq_status.StatusRegistry`.  A method that takes a round trip
    is a coroutine, and :meth:`watch` is an asynchronous iterator.  :meth:`get`, :meth:`progress` and
    :meth:`batch` take no round trip, and return objects whose methods are coroutines.

    A :class:`.RedisBackend` has two connections for an event loop, by ``redis.asyncio``: one for reads and writes,
    and one for the changes of all watched messages.  On a cluster, it has only the second one, and threads read and
    write.  The connections are closed with the loop, or by :func:`dramatiq_status.aio.close`.  Other backends run in
    threads, and the hub polls all watched messages together.
    """

    @staticmethod
    def get(
        message_id: str | dramatiq.Message[Any],
        *,
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
    ) -> Status:
        """Return a live handle.  This takes no round trip, so the message may be unknown."""
        return Status(_channel(message_id, backend, broker))

    @staticmethod
    def progress(
        message_id: str | dramatiq.Message[Any],
        *,
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
    ) -> Progress:
        """Return a handle of a message's progress, with which other messages can increment it.  This takes no round
        trip.  Increments are atomic in the store.
        """
        return Progress(_channel(message_id, backend, broker))

    @staticmethod
    async def read(
        message_id: str | dramatiq.Message[Any],
        *,
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
    ) -> Snapshot | None:
        """Read a status in one round trip.

        Returns:
          Snapshot: None where the message is unknown or its status has expired.
        """
        message_id, backend = check_message_id(message_id), find_backend(backend, broker)
        return await (await async_backend(backend)).snapshot(message_id)

    @overload
    @staticmethod
    async def read_many(
        message_ids: Iterable[str | dramatiq.Message[Any]],
        *,
        return_errors: Literal[False] = False,
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
    ) -> list[Snapshot | None]: ...

    @overload
    @staticmethod
    async def read_many(
        message_ids: Iterable[str | dramatiq.Message[Any]],
        *,
        return_errors: bool,
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
    ) -> list[Snapshot | BackendError | None]: ...

    @staticmethod
    async def read_many(
        message_ids: Iterable[str | dramatiq.Message[Any]],
        *,
        return_errors: bool = False,
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
    ) -> list[Snapshot | None] | list[Snapshot | BackendError | None]:
        """Read many statuses in as few round trips as possible: Redis needs one for 2,000 statuses.

        Parameters and errors are those of :meth:`dramatiq_status.StatusRegistry.read_many`.

        Returns:
          list[Snapshot | None]: One item for each id, in the order of the ids.
        """
        ids, backend = check_message_ids(message_ids), find_backend(backend, broker)
        found = await (await async_backend(backend)).snapshots(ids) if ids else ()
        return list(found) if return_errors else raise_first(found)

    @staticmethod
    async def wait(
        message_id: str | dramatiq.Message[Any],
        *,
        timeout: int | timedelta | None = DEFAULT_WAIT_TIMEOUT,
        missing_timeout: int | timedelta = DEFAULT_MISSING_TIMEOUT,
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
    ) -> Snapshot:
        """Wait until a message is completed or failed.

        Parameters and errors are those of :meth:`dramatiq_status.StatusRegistry.wait`.
        """
        return await last(_follow(message_id, timeout, missing_timeout, 0, find_backend(backend, broker)))

    @staticmethod
    def watch(
        message_id: str | dramatiq.Message[Any],
        *,
        timeout: int | timedelta | None = None,
        missing_timeout: int | timedelta = DEFAULT_MISSING_TIMEOUT,
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
    ) -> AsyncGenerator[Snapshot, None]:
        """Iterate over the snapshots of a message: the present one, then one after every change, until the final one.

        A slow watcher gets the newest snapshot next, and does not delay other watchers.  Parameters and errors are
        those of :meth:`dramatiq_status.StatusRegistry.watch`.
        """
        backend = find_backend(backend, broker)
        return _follow(message_id, timeout, missing_timeout, backend.watch_interval, backend)

    @staticmethod
    def batch(
        messages: Group | dramatiq.pipeline | dramatiq.Message[Any] | str | Iterable[Any],
        *,
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
    ) -> Batch:
        """Return a batch of messages that belong together.  This takes no round trip.

        Parameters and errors are those of :meth:`dramatiq_status.StatusRegistry.batch`.
        """
        return Batch(*find_chains(messages, backend, broker))

    @staticmethod
    async def list(
        state: State | str | None = None,
        actor_name: str | None = None,
        queue_name: str | None = None,
        limit: int = 50,
        after: Snapshot | str | None = None,
        *,
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
    ) -> list[Snapshot]:
        """List a page of statuses, newest first.

        Parameters and errors are those of :meth:`dramatiq_status.StatusRegistry.list`.
        """
        backend = find_backend(backend, broker)
        query = make_query(state, actor_name, queue_name)
        limit, cursor = check_limit(limit), make_cursor(after)
        while True:
            found = await (await async_backend(backend)).find(query, limit=limit, after=cursor)
            page, cursor = decode_page(found, limit, backend.now())
            if cursor is None:
                return page

    @staticmethod
    async def count(
        state: State | str | None = None,
        actor_name: str | None = None,
        queue_name: str | None = None,
        *,
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
    ) -> int:
        """Count the statuses that :meth:`list` would list without a limit.

        Parameters and errors are those of :meth:`dramatiq_status.StatusRegistry.count`.
        """
        query = make_query(state, actor_name, queue_name)
        return await (await async_backend(find_backend(backend, broker))).count(query)

    @staticmethod
    async def cancel(
        message_id: str | dramatiq.Message[Any],
        reason: str | None = None,
        *,
        force_after: int | timedelta | None = None,
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
    ) -> Cancellation:
        """Cancel a message in one round trip, or in more with memcached and caches.  With `force_after`, dramatiq-abort
        takes further round trips.

        Parameters and errors are those of :meth:`dramatiq_status.StatusRegistry.cancel`.
        """
        batch = Batch(find_backend(backend, broker), [(check_message_id(message_id),)], broker)
        return result_of_one(await batch.cancel(reason, force_after=force_after))

    @staticmethod
    async def delete(
        message_id: str | dramatiq.Message[Any],
        *,
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
    ) -> bool:
        """Delete a status in one round trip, or in two with caches.  The message is not touched.

        Returns:
          bool: Whether there was a status.
        """
        message_id = check_message_id(message_id)
        return await (await async_backend(find_backend(backend, broker))).delete(message_id)


def _follow(
    message: str | dramatiq.Message[Any],
    timeout: int | timedelta | None,
    missing_timeout: int | timedelta,
    interval: int,
    backend: StatusBackend,
) -> AsyncGenerator[Snapshot, None]:
    message_id = check_message_id(message)
    limit = None if timeout is None else check_duration("timeout", timeout)
    missing_limit = check_duration("missing_timeout", missing_timeout)

    def begin(now: float) -> MessageWatcher:
        return MessageWatcher(message_id, now, timeout=limit, missing_timeout=missing_limit, interval=interval)

    # The watcher never yields None for an unknown message.
    return cast("AsyncGenerator[Snapshot, None]", watch_loop(backend, (message_id,), begin, itemgetter(0)))


def _channel_of_unpickled(message_id: str) -> AsyncChannel:
    """Return the channel of an unpickled handle."""
    return _channel(message_id, None, None)


def _as_message_id(channel: Any) -> tuple[Callable[..., Any], tuple[str]]:
    return _channel_of_unpickled, (channel.message_id,)


for _kind in (OutsideChannel, InsideChannel):
    copyreg.pickle(_kind, _as_message_id)


def _channel(
    message: str | dramatiq.Message[Any], backend: StatusBackend | None, broker: dramatiq.Broker | None
) -> AsyncChannel:
    backend = find_backend(backend, broker)
    channel = open_channel(message, backend, broker)
    if isinstance(channel, DirectChannel):
        return OutsideChannel(backend, channel.message_id)
    return InsideChannel(channel)
