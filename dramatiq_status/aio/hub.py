"""The hub of an event loop: follows messages for any number of watchers through one subscription."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Sequence
from heapq import heappop, heappush
from itertools import count, islice
from math import inf
from typing import Final, Protocol

from ..backend import StatusBackend
from ..errors import BackendError
from ..following import BACK_OFF, PollSchedule
from ..snapshot import Snapshot

#: How many messages are looked at together, at most: while they are
#: decoded the loop does nothing else.
LOOKS_A_CALL: Final = 500

#: How many messages the store is asked to tell of with one command.
SUBSCRIBE_A_CALL: Final = 500

#: After how many news in a row others get their turn.
FAIR_SHARE: Final = 100

#: For how many seconds a message that is to be looked at soon waits for
#: others where the store has to be asked again and again.
GATHER: Final = 0.01

#: How long to wait before a lost subscription is begun anew, in
#: seconds: the first time, and at most.
RESUBSCRIBE: Final = (0.05, 1.0)


class HubClosed(BackendError):
    """Raised in watches that were under way when their backend was
    closed, or the tasks that look for them were cancelled.
    """


class AsyncSubscription(Protocol):
    """Hears of changes of any number of messages."""

    async def add(self, message_ids: Sequence[str]) -> None:
        """Begin to hear of more messages; :meth:`receive` says when it has begun."""

    async def remove(self, message_ids: Sequence[str]) -> None:
        """Stop watching some messages."""

    async def receive(self) -> tuple[str, int | None]:
        """Wait for something to happen.

        Returns:
          tuple[str, int | None]: A message and its new version, 0 when it
          was deleted; None when it will be heard of from now on.

        Raises:
          BackendError: When the connection was lost.
        """

    async def close(self) -> None:
        """Hear no more."""


class Store(Protocol):
    """What a hub has to know of a backend."""

    backend: StatusBackend

    async def snapshots(self, message_ids: Sequence[str]) -> Sequence[Snapshot | BackendError | None]:
        """Read statuses, with an error in the place of each that could not be read; one round trip."""

    async def subscribe(self) -> AsyncSubscription | None:
        """Connect a new subscription, to no message yet; None where the store cannot tell."""


class Bell:
    """Wakes the one who waits for it; if it was rung before, there is no wait."""

    __slots__ = ("_rung", "_waiter")

    def __init__(self) -> None:
        self._rung = False
        self._waiter: asyncio.Future[None] | None = None

    def ring(self) -> None:
        self._rung = True
        _wake(self._waiter)

    async def wait(self, timeout: float = inf) -> None:
        """Wait until it is rung, for so many seconds at most."""
        if not self._rung and timeout > 0:
            loop = asyncio.get_running_loop()
            waiter = self._waiter = loop.create_future()
            timer = None if timeout == inf else loop.call_later(timeout, _wake, waiter)
            try:
                await waiter
            finally:
                self._waiter = None
                if timer is not None:
                    timer.cancel()
        self._rung = False


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


class Mailbox:
    """Where a watcher finds what was seen of a message: only the newest, however slow it is.

    Parameters:
      message_id(str)
      bell(Bell): Rung when there is something; may be that of many mailboxes.
    """

    __slots__ = ("_bell", "_end", "_found", "full", "message_id")

    def __init__(self, message_id: str, bell: Bell) -> None:
        self.message_id: str = message_id
        #: Whether there is something to take.
        self.full: bool = False
        self._found: Snapshot | BackendError | None = None
        self._end: BaseException | None = None
        self._bell = bell

    def put(self, found: Snapshot | BackendError | None) -> None:
        """Put what was found, or why nothing was; a snapshot that
        was not taken yet only makes room for another.
        """
        if not self.full or isinstance(found, Snapshot) or not isinstance(self._found, Snapshot):
            self._found, self.full = found, True
            self._bell.ring()

    def end(self, error: BaseException) -> None:
        """Say why nothing will come any more."""
        if not self.full:
            self._found, self.full = None, True
        self._end = error
        self._bell.ring()

    def take(self) -> Snapshot | None:
        """Take what was found, or raise why nothing was."""
        found, self._found = self._found, None
        if self._end is None:
            self.full = False
        elif not isinstance(found, Snapshot):
            raise self._end
        if isinstance(found, BackendError):
            raise found
        return found


class Topic:
    """A message that is watched, and by whom."""

    __slots__ = ("asked", "far", "mailboxes", "message_id", "named", "near", "schedule", "wanted")

    def __init__(self, message_id: str, schedule: PollSchedule) -> None:
        self.message_id: str = message_id
        self.schedule: PollSchedule = schedule
        #: Those who watch, in the order of their coming.
        self.mailboxes: dict[Mailbox, None] = {}
        #: Whether somebody wants it to be looked at now.
        self.asked: bool = True
        #: Whether it is worth a subscription, and the store was asked for it.
        self.wanted: bool = False
        self.named: bool = False
        #: For when it is on the list of those to be looked at.  What comes earlier than
        #: `far` is added as `near`, and `far` is left where it is, so that the list stays short.
        self.near: float = inf
        self.far: float = inf

    def due(self) -> float:
        return -inf if self.asked else self.schedule.due()


class Hub:
    """Follows messages for all watchers in one event loop.

    All that are to be looked at at the same time are read together, and a message
    is read once for all who watch it.  There are tasks and a subscription only
    while somebody watches.

    Parameters:
      store(Store): Where to look.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._topics: dict[str, Topic] = {}
        self._numbers = count()
        self._tasks: list[asyncio.Task[None]] = []
        self._begin()

    def _begin(self) -> None:
        #: Topics and when to look at them, as a heap.
        self._list: list[tuple[float, int, Topic]] = []
        self._bell = Bell()
        #: Rung when the first message is worth a subscription.
        self._wish = Bell()
        self._subscription: AsyncSubscription | None = None
        #: Topics that wait to be subscribed, and ids that nobody watches any more.
        self._unnamed: dict[Topic, None] = {}
        self._gone: dict[str, None] = {}

    # For watchers

    def join(self, message_id: str, bell: Bell) -> Mailbox:
        """Begin to watch a message; it will be looked at at once.

        Parameters:
          message_id(str)
          bell(Bell): Rung when something was seen.
        """
        for task in self._tasks:
            if task.done():
                # Whoever comes now is told nothing of how those before have ended.
                self._ended(task)
        if not self._tasks:
            self._begin()
            self._tasks = [
                asyncio.create_task(self._keep_looking(), name="dramatiq-status looks"),
                asyncio.create_task(self._keep_listening(), name="dramatiq-status listens"),
            ]
            for task in self._tasks:
                task.add_done_callback(self._ended)
        topic = self._topics.get(message_id)
        if topic is None:
            topic = self._topics[message_id] = Topic(message_id, PollSchedule(self._store.backend))
        mailbox = Mailbox(message_id, bell)
        topic.mailboxes[mailbox] = None
        self.look(message_id)
        return mailbox

    def look(self, message_id: str) -> None:
        """Look at a watched message at once; its watchers will find something in their mailboxes."""
        topic = self._topics.get(message_id)
        if topic is not None:
            topic.asked = True
            self._plan(topic)

    async def leave(self, mailbox: Mailbox) -> None:
        """Watch no more.  Whoever is the last closes the door."""
        topic = self._topics.get(mailbox.message_id)
        if topic is None or mailbox not in topic.mailboxes:
            return
        del topic.mailboxes[mailbox]
        if topic.mailboxes:
            return
        del self._topics[topic.message_id]
        self._unnamed.pop(topic, None)
        if topic.named:
            self._gone[topic.message_id] = None
            self._bell.ring()
        if not self._topics:
            await _end_of(self._cancel())

    async def close(self) -> None:
        """End all watches: those who wait are told that it was closed."""
        await _end_of(self._end(HubClosed("The backend was closed while a status was watched.")))

    # Looking

    async def _keep_looking(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            topics = list(islice(self._take_due(), LOOKS_A_CALL))
            if topics:
                await self._look_at(topics)
            await self._subscribe()
            if not topics:
                await self._bell.wait(self._list[0][0] - loop.time() if self._list else inf)

    def _take_due(self) -> Iterator[Topic]:
        now = asyncio.get_running_loop().time()
        while self._list:
            due, _, topic = self._list[0]
            if due > now + (0.0 if topic.schedule.told else GATHER):
                return
            heappop(self._list)
            if due == topic.near:
                topic.near = inf
            elif due == topic.far:
                topic.far = inf
            else:
                continue
            if self._topics.get(topic.message_id) is topic:
                if topic.due() <= due:
                    yield topic
                else:
                    self._plan(topic)

    def _plan(self, topic: Topic) -> None:
        """Put a topic on the list, if it is not there for as early a moment."""
        due = topic.due()
        if topic.far == inf:
            topic.far = due
        elif due < min(topic.near, topic.far):
            topic.near = due
        else:
            return
        heappush(self._list, (due, next(self._numbers), topic))
        if self._list[0][2] is topic:
            self._bell.ring()

    async def _look_at(self, topics: list[Topic]) -> None:
        now = asyncio.get_running_loop().time()
        for topic in topics:
            topic.asked = False
            topic.schedule.look(now)
        ids = [topic.message_id for topic in topics]
        try:
            snapshots = await self._store.snapshots(ids)
        except BackendError as e:
            snapshots = [e] * len(ids)
        for topic, snapshot in zip(topics, snapshots):
            if isinstance(snapshot, BackendError):
                topic.schedule.fail()
                self._tell(topic, snapshot)
                continue
            finished = snapshot is not None and snapshot.finished
            topic.schedule.saw(snapshot.version if snapshot else 0, finished=finished)
            self._tell(topic, snapshot)
            if not topic.wanted and topic.mailboxes and not finished:
                topic.wanted = True
                self._unnamed[topic] = None
                self._wish.ring()

    def _tell(self, topic: Topic, found: Snapshot | BackendError | None) -> None:
        if topic.mailboxes:
            for mailbox in topic.mailboxes:
                mailbox.put(found)
            self._plan(topic)

    # Listening

    async def _subscribe(self) -> None:
        """Tell the store which messages are watched now, and which no more."""
        subscription = self._subscription
        if subscription is None:
            return
        try:
            while self._gone and self._subscription is subscription:
                ids = list(islice(self._gone, SUBSCRIBE_A_CALL))
                for message_id in ids:
                    del self._gone[message_id]
                await subscription.remove(ids)
            while self._unnamed and self._subscription is subscription:
                topics = list(islice(self._unnamed, SUBSCRIBE_A_CALL))
                for topic in topics:
                    del self._unnamed[topic]
                    topic.named = True
                await subscription.add([topic.message_id for topic in topics])
        except BackendError:
            # Whoever listens learns of it, and begins anew.
            await subscription.close()

    async def _keep_listening(self) -> None:
        shortest, longest = RESUBSCRIBE
        pause = shortest
        await self._wish.wait()
        while True:
            try:
                subscription = await self._store.subscribe()
                if subscription is None:
                    return
                try:
                    self._subscription = subscription
                    self._bell.ring()
                    for number in count(1):
                        self._hear(*await subscription.receive())
                        pause = shortest
                        if number % FAIR_SHARE == 0:
                            await asyncio.sleep(0)
                finally:
                    if self._subscription is subscription:
                        self._subscription = None
                    await subscription.close()
            except BackendError:
                self._lose()
            await asyncio.sleep(pause)
            pause = min(pause * BACK_OFF, longest)

    def _hear(self, message_id: str, version: int | None) -> None:
        topic = self._topics.get(message_id)
        if topic is None or not topic.named:
            return
        if version is None:
            topic.schedule.told = True
            # What was changed before it began.
            topic.asked = True
        else:
            topic.schedule.hear(version)
        self._plan(topic)

    def _lose(self) -> None:
        """Look at everything again and again until there is a new subscription."""
        self._gone.clear()
        for topic in self._topics.values():
            topic.schedule.told = topic.named = False
            if topic.wanted:
                self._unnamed[topic] = None
            self._plan(topic)

    # Tasks

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Nobody shall wait for ever for the sake of a defect, or of somebody who cancels all tasks of the loop."""
        if task.cancelled():
            error: BaseException | None = HubClosed("The tasks that look for those who watch a status were cancelled.")
        else:
            error = task.exception()
        if error is not None and task in self._tasks:
            self._end(error)

    def _end(self, error: BaseException) -> list[asyncio.Task[None]]:
        for topic in self._topics.values():
            for mailbox in topic.mailboxes:
                mailbox.end(error)
        self._topics.clear()
        return self._cancel()

    def _cancel(self) -> list[asyncio.Task[None]]:
        """Stop all work, and return what has not ended yet."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        return [task for task in tasks if not task.done()]


async def _end_of(tasks: Collection[asyncio.Task[None]]) -> None:
    if tasks:
        await asyncio.wait(tasks)
