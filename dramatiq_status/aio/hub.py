"""The hub of an event loop, which follows messages for any number of watchers through one subscription."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from itertools import count, islice
from math import inf
from typing import Final, Protocol

from ..backend import StatusBackend
from ..errors import BackendError
from ..following import BACK_OFF, PollSchedule
from ..snapshot import Snapshot
from .tasks import end_of

#: Maximum number of messages that are read together.  The loop does nothing else while it decodes them.
READS_PER_CALL: Final = 500

#: Maximum number of messages to which one command subscribes.
SUBSCRIPTIONS_PER_COMMAND: Final = 500

#: Number of changes in a row after which the hub lets other tasks of the loop run.
CHANGES_PER_TURN: Final = 100

#: Seconds by which a polled message may be read early, so that it is read together with others.
MAX_EARLINESS: Final = 0.01

#: Seconds before a lost subscription is replaced by a new one: the first time, and at most.
RESUBSCRIBE_PAUSES: Final = (0.05, 1.0)


class HubClosed(BackendError):
    """Raised in watches that are under way when their backend is closed, or when the tasks of the hub are cancelled."""


class AsyncSubscription(Protocol):
    """A subscription to the changes of any number of messages."""

    async def add(self, message_ids: Sequence[str]) -> None:
        """Subscribe to more messages.  :meth:`receive` returns once for each of them, when the subscription to
        it has begun.
        """

    async def remove(self, message_ids: Sequence[str]) -> None:
        """Unsubscribe from messages."""

    async def receive(self) -> tuple[str, int | None]:
        """Wait for the next change.

        Returns:
          tuple[str, int | None]: The id of a message, and its new version: 0 when its status was deleted, None when the
            subscription to it has begun.

        Raises:
          BackendError: When the connection was lost.
        """

    async def close(self) -> None:
        """End the subscription."""


class Store(Protocol):
    """The part of a backend that a hub needs."""

    backend: StatusBackend

    async def snapshots(self, message_ids: Sequence[str]) -> Sequence[Snapshot | BackendError | None]:
        """Read statuses in as few round trips as possible.  Each status that could not be read has an error in
        its place.
        """

    async def subscribe(self) -> AsyncSubscription | None:
        """Connect a subscription, to no message yet.  Return None if the store publishes no changes."""


class AutoResetEvent:
    """An event for one task.  After it was set, the next wait ends at once."""

    __slots__ = ("_is_set", "_waiter")

    def __init__(self) -> None:
        self._is_set = False
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        self._is_set = True
        _wake(self._waiter)

    async def wait(self, timeout: float = inf) -> None:
        """Wait until it is set, for at most `timeout` seconds."""
        if not self._is_set and timeout > 0:
            loop = asyncio.get_running_loop()
            waiter = self._waiter = loop.create_future()
            timer = None if timeout == inf else loop.call_later(timeout, _wake, waiter)
            try:
                await waiter
            finally:
                self._waiter = None
                if timer is not None:
                    timer.cancel()
        self._is_set = False


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


class LatestSlot:
    """The newest snapshot of a message, which a watcher takes when it is ready.

    Parameters:
      message_id(str)
      wake_up(AutoResetEvent): Set when the slot is filled; many slots may share it.
    """

    __slots__ = ("_end", "_found", "_wake_up", "full", "message_id")

    def __init__(self, message_id: str, wake_up: AutoResetEvent) -> None:
        self.message_id: str = message_id
        #: Whether there is a snapshot, or an error, to take.
        self.full: bool = False
        self._found: Snapshot | BackendError | None = None
        self._end: BaseException | None = None
        self._wake_up = wake_up

    def put(self, found: Snapshot | BackendError | None) -> None:
        """Put a snapshot, None if there is no record, or an error.

        Only another snapshot replaces a snapshot that was not taken yet.
        """
        if not self.full or isinstance(found, Snapshot) or not isinstance(self._found, Snapshot):
            self._found, self.full = found, True
            self._wake_up.set()

    def end(self, error: BaseException) -> None:
        """Put the error that ends the watch."""
        if not self.full:
            self._found, self.full = None, True
        self._end = error
        self._wake_up.set()

    def take(self) -> Snapshot | None:
        """Take the snapshot, or raise the error."""
        found, self._found = self._found, None
        if self._end is None:
            self.full = False
        elif not isinstance(found, Snapshot):
            raise self._end
        if isinstance(found, BackendError):
            raise found
        return found


class WatchedMessage:
    """A message and its watchers."""

    __slots__ = ("far", "message_id", "must_read", "named", "near", "schedule", "slots", "wanted")

    def __init__(self, message_id: str, schedule: PollSchedule) -> None:
        self.message_id: str = message_id
        self.schedule: PollSchedule = schedule
        #: Slots of its watchers, in the order of their creation.
        self.slots: dict[LatestSlot, None] = {}
        #: Whether to read it at once.
        self.must_read: bool = True
        #: Whether the hub has to subscribe to the message, and whether it has sent the request to subscribe.
        self.wanted: bool = False
        self.named: bool = False
        #: Times of the message's entries in the list of messages to read.  Example: an entry for 9:05 is `far`.  If the
        #: message has to be read at 9:01, a second entry is added as `near`, and the first one stays for later.
        self.near: float = inf
        self.far: float = inf

    def due(self) -> float:
        return -inf if self.must_read else self.schedule.due()


class Hub:
    """The hub of an event loop.  It follows messages for all watchers.

    Messages that are due at the same time are read together, and a message is read once for all of its watchers.  The
    hub has tasks and a subscription only while it has watchers.

    Parameters:
      store(Store): The store of the messages.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watched: dict[str, WatchedMessage] = {}
        self._numbers = count()
        self._tasks: list[asyncio.Task[None]] = []
        self._begin()

    def _begin(self) -> None:
        #: Watched messages and the times at which to read them, as a heap.
        self._list: list[tuple[float, int, WatchedMessage]] = []
        self._wake_up = AutoResetEvent()
        #: Set when the first message needs a subscription.
        self._subscription_needed = AutoResetEvent()
        self._subscription: AsyncSubscription | None = None
        #: Watched messages that need a subscription, and ids of messages whose subscription has to end.
        self._unnamed: dict[WatchedMessage, None] = {}
        self._gone: dict[str, None] = {}

    # For watchers

    def join(self, message_id: str, wake_up: AutoResetEvent) -> LatestSlot:
        """Begin to watch a message.  The hub reads it at once.

        Parameters:
          message_id(str)
          wake_up(AutoResetEvent): Set when the slot is filled.
        """
        for task in self._tasks:
            if task.done():
                # If the task has failed, it belongs to earlier watches.  End them now, so that its failure does not end
                # the new watch.
                self._ended(task)
        if not self._tasks:
            self._begin()
            self._tasks = [
                asyncio.create_task(self._keep_reading(), name="dramatiq-status reads"),
                asyncio.create_task(self._keep_subscribed(), name="dramatiq-status subscribes"),
            ]
            for task in self._tasks:
                task.add_done_callback(self._ended)
        watched = self._watched.get(message_id)
        if watched is None:
            watched = self._watched[message_id] = WatchedMessage(message_id, PollSchedule(self._store.backend))
        slot = LatestSlot(message_id, wake_up)
        watched.slots[slot] = None
        self.read_now(message_id)
        return slot

    def read_now(self, message_id: str) -> None:
        """Read a watched message at once, and fill the slots of its watchers."""
        watched = self._watched.get(message_id)
        if watched is not None:
            watched.must_read = True
            self._plan(watched)

    async def leave(self, slot: LatestSlot) -> None:
        """Stop watching.  After the last watcher has left, the tasks of the hub end."""
        watched = self._watched.get(slot.message_id)
        if watched is None or slot not in watched.slots:
            return
        del watched.slots[slot]
        if watched.slots:
            return
        del self._watched[watched.message_id]
        self._unnamed.pop(watched, None)
        if watched.named:
            self._gone[watched.message_id] = None
            self._wake_up.set()
        if not self._watched:
            await end_of(*self._cancel())

    async def close(self) -> None:
        """End all watches: each raises :class:`HubClosed`."""
        await end_of(*self._end(HubClosed("The backend was closed while a status was watched.")))

    # Reading

    async def _keep_reading(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            messages = list(islice(self._take_due(), READS_PER_CALL))
            if messages:
                await self._read(messages)
            await self._subscribe()
            if not messages:
                await self._wake_up.wait(self._list[0][0] - loop.time() if self._list else inf)

    def _take_due(self) -> Iterator[WatchedMessage]:
        now = asyncio.get_running_loop().time()
        while self._list:
            due, _, watched = self._list[0]
            if due > now + (0.0 if watched.schedule.pushed else MAX_EARLINESS):
                return
            heappop(self._list)
            if due == watched.near:
                watched.near = inf
            elif due == watched.far:
                watched.far = inf
            else:
                continue
            if self._watched.get(watched.message_id) is watched:
                if watched.due() <= due:
                    yield watched
                else:
                    self._plan(watched)

    def _plan(self, watched: WatchedMessage) -> None:
        """Add a watched message to the list, unless the list has it for the same time or an earlier one."""
        due = watched.due()
        if watched.far == inf:
            watched.far = due
        elif due < min(watched.near, watched.far):
            watched.near = due
        else:
            return
        heappush(self._list, (due, next(self._numbers), watched))
        if self._list[0][2] is watched:
            self._wake_up.set()

    async def _read(self, messages: list[WatchedMessage]) -> None:
        now = asyncio.get_running_loop().time()
        for watched in messages:
            watched.must_read = False
            watched.schedule.begin_read(now)
        ids = [watched.message_id for watched in messages]
        try:
            snapshots = await self._store.snapshots(ids)
        except BackendError as e:
            snapshots = [e] * len(ids)
        for watched, snapshot in zip(messages, snapshots):
            if isinstance(snapshot, BackendError):
                watched.schedule.fail()
                self._fill(watched, snapshot)
                continue
            finished = snapshot is not None and snapshot.finished
            watched.schedule.observe(snapshot.version if snapshot else 0, finished=finished)
            self._fill(watched, snapshot)
            if not watched.wanted and watched.slots and not finished:
                watched.wanted = True
                self._unnamed[watched] = None
                self._subscription_needed.set()

    def _fill(self, watched: WatchedMessage, found: Snapshot | BackendError | None) -> None:
        if watched.slots:
            for slot in watched.slots:
                slot.put(found)
            self._plan(watched)

    # Subscribing

    async def _subscribe(self) -> None:
        """Subscribe to watched messages, and unsubscribe from messages that are no longer watched."""
        subscription = self._subscription
        if subscription is None:
            return
        try:
            while self._gone and self._subscription is subscription:
                ids = list(islice(self._gone, SUBSCRIPTIONS_PER_COMMAND))
                for message_id in ids:
                    del self._gone[message_id]
                await subscription.remove(ids)
            while self._unnamed and self._subscription is subscription:
                messages = list(islice(self._unnamed, SUBSCRIPTIONS_PER_COMMAND))
                for watched in messages:
                    del self._unnamed[watched]
                    watched.named = True
                await subscription.add([watched.message_id for watched in messages])
        except BackendError:
            # The other task gets the error from `receive`, and subscribes again.
            await subscription.close()

    async def _keep_subscribed(self) -> None:
        shortest, longest = RESUBSCRIBE_PAUSES
        pause = shortest
        await self._subscription_needed.wait()
        while True:
            try:
                subscription = await self._store.subscribe()
                if subscription is None:
                    return
                try:
                    self._subscription = subscription
                    self._wake_up.set()
                    for number in count(1):
                        self._receive(*await subscription.receive())
                        pause = shortest
                        if number % CHANGES_PER_TURN == 0:
                            await asyncio.sleep(0)
                finally:
                    if self._subscription is subscription:
                        self._subscription = None
                    await subscription.close()
            except BackendError:
                self._end_subscription()
            await asyncio.sleep(pause)
            pause = min(pause * BACK_OFF, longest)

    def _receive(self, message_id: str, version: int | None) -> None:
        watched = self._watched.get(message_id)
        if watched is None or not watched.named:
            return
        if version is None:
            watched.schedule.pushed = True
            # The message may have changed before the subscription began.
            watched.must_read = True
        else:
            watched.schedule.publish(version)
        self._plan(watched)

    def _end_subscription(self) -> None:
        """Poll all watched messages until there is a new subscription."""
        self._gone.clear()
        for watched in self._watched.values():
            watched.schedule.pushed = watched.named = False
            if watched.wanted:
                self._unnamed[watched] = None
            self._plan(watched)

    # Tasks

    def _ended(self, task: asyncio.Task[None]) -> None:
        """End all watches after a task of the hub has failed, or was cancelled: they would wait forever."""
        if task.cancelled():
            error: BaseException | None = HubClosed("The tasks that read watched statuses were cancelled.")
        else:
            error = task.exception()
        if error is not None and task in self._tasks:
            self._end(error)

    def _end(self, error: BaseException) -> list[asyncio.Task[None]]:
        for watched in self._watched.values():
            for slot in watched.slots:
                slot.end(error)
        self._watched.clear()
        return self._cancel()

    def _cancel(self) -> list[asyncio.Task[None]]:
        """Cancel the tasks of the hub, and return them."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        return tasks
