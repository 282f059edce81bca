"""Readers of a run: one thread polls many messages at once, and many asynchronous watchers watch one message each."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import dramatiq
from dramatiq.results import ResultMissing

from dramatiq_status import BackendError, Snapshot, StatusMissing, StatusRegistry, StatusTimeout, aio

#: Seconds between two reads of the poller.
POLL_INTERVAL: Final = 0.1

#: Maximum number of messages that the poller reads in one call.
POLLED: Final = 400

#: Maximum number of messages that are watched at once.
WATCHED: Final = 40

#: Milliseconds for which one message is watched.
WATCH_TIMEOUT: Final = 30_000


@dataclass(frozen=True)
class Sight:
    """Result of one read of one message by one reader.

    Parameters:
      at: Epoch seconds after the read. The values are not newer.
      asked: Epoch seconds before the read.
      reader: The reader.
      values: The status as a dict; None for an unknown message.
      trouble: What went wrong instead.
    """

    at: float
    asked: float
    reader: str
    values: dict[str, Any] | None = None
    trouble: str | None = None


#: Fields of a status; a change of one of them makes a new sight.
_SHOWN: Final = ("status", "progress", "total", "attempts", "run", "last", "exception", "skipped")


class Watcher:
    """Watcher of messages, until they are finished and some time longer.

    Parameters:
      broker: The broker with the middleware under test.
      result_of: Returns a function that returns the result of a message or raises ResultMissing; None for messages
        without a result.
    """

    def __init__(self, broker: dramatiq.Broker, result_of: Callable[[str], Callable[[], Any] | None]) -> None:
        self._broker = broker
        self._result_of = result_of
        self._stopping = threading.Event()
        self._open: dict[str, float] = {}
        self._waiting: list[str] = []
        self._last: dict[tuple[str, str], Any] = {}
        #: Sights by message.
        self.sights: dict[str, list[Sight]] = {}
        #: Numbers of the poller's reads, of its failed reads, and of messages that could not be read.
        self.looks = self.failures = self.unread = 0
        #: Number of watches that lasted too long.
        self.timeouts = 0
        self._threads = [
            threading.Thread(target=self._poll, name="chaos-poller", daemon=True),
            threading.Thread(target=lambda: asyncio.run(self._watch_all()), name="chaos-watchers", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def add(self, message_id: str) -> None:
        """Watch a message."""
        self._open[message_id] = 0.0
        self._waiting.append(message_id)

    def stop(self) -> None:
        """Stop watching."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)

    def _see(self, message_id: str, sight: Sight) -> None:
        values = sight.values
        shown = sight.trouble or (None if values is None else tuple(str(values.get(name)) for name in _SHOWN))
        key = (message_id, sight.reader)
        if key not in self._last or self._last[key] != shown:
            self._last[key] = shown
            self.sights.setdefault(message_id, []).append(sight)

    def _poll(self) -> None:
        while not self._stopping.wait(POLL_INTERVAL):
            ids = list(self._open)[:POLLED]
            asked = time.time()
            self.looks += 1
            try:
                found = StatusRegistry.read_many(ids, broker=self._broker, return_errors=True)
            except BackendError:
                self.failures += 1
                continue
            now = time.time()
            for message_id, snapshot in zip(ids, found):
                if isinstance(snapshot, BackendError):
                    self.unread += 1
                    continue
                self._see(message_id, Sight(now, asked, "poll", None if snapshot is None else snapshot.to_dict()))
                self._follow(message_id, snapshot, now)

    def _follow(self, message_id: str, snapshot: Snapshot | None, now: float) -> None:
        if snapshot is None or not snapshot.finished:
            # An unknown message may still appear, and is read after the others.
            if snapshot is None:
                self._open[message_id] = self._open.pop(message_id)
            return
        finished = self._open[message_id]
        if not finished:
            self._open[message_id] = now
            if snapshot.completed:
                self._look_for_result(message_id, now)
        elif now - finished > 3.0:
            del self._open[message_id]

    def _look_for_result(self, message_id: str, now: float) -> None:
        get = self._result_of(message_id)
        if get is not None:
            try:
                get()
            except ResultMissing:
                self._see(message_id, Sight(now, now, "result", trouble="completed without a result"))

    async def _watch_all(self) -> None:
        tasks: set[asyncio.Task[None]] = set()
        while not self._stopping.is_set():
            while self._waiting and len(tasks) < WATCHED:
                task = asyncio.create_task(self._watch(self._waiting.pop()))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await aio.close(broker=self._broker)

    async def _watch(self, message_id: str) -> None:
        asked = time.time()
        try:
            if await aio.StatusRegistry.read(message_id, broker=self._broker) is None:
                return
        except BackendError:
            return
        begun = False
        try:
            async for snapshot in aio.StatusRegistry.watch(message_id, broker=self._broker, timeout=WATCH_TIMEOUT):
                begun = True
                self._see(message_id, Sight(time.time(), asked, "watch", snapshot.to_dict()))
        except (BackendError, StatusMissing) as e:
            # A watch whose first read fails does not begin.
            if begun or isinstance(e, StatusMissing):
                self._see(message_id, Sight(time.time(), asked, "watch", trouble=type(e).__name__))
        except StatusTimeout:
            self.timeouts += 1
