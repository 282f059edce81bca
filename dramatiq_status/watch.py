"""Watching of messages until they are finished."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import Final, TypeVar, cast

from . import _time as time
from ._interrupts import may_be_interrupted
from .backend import StatusBackend, Subscription
from .errors import BackendError
from .following import MessageWatcher, PollSchedule, Watcher
from .snapshot import Snapshot

#: Version that stands for a change that may have happened before a subscription began.
UNKNOWN_VERSION: Final = -1

#: Seconds from a subscription that failed until the next try.
SUBSCRIBE_INTERVAL: Final = 1.0

FoundT = TypeVar("FoundT")


def follow(
    backend: StatusBackend, message_id: str, *, timeout: int | None, missing_timeout: int, interval: int = 0
) -> Iterator[Snapshot]:
    """Yield the present snapshot, then one after every change, and end after the final one.

    The first read takes one round trip.  If the message is not finished, the
    watcher subscribes to its changes, over a connection that is closed when the iterator ends,
    and reads the status once more, because it may have changed before the subscription began. Where the store publishes
    no changes, the watcher polls it, at longer intervals while nothing changes. After the first answer of the store, an
    outage does not end the watch.

    Parameters:
      backend(StatusBackend)
      message_id(str)
      timeout(int): Milliseconds after which the watch ends; None for no limit.
      missing_timeout(int): Milliseconds for which the message may be unknown.
      interval(int): Shortest time between two snapshots, in milliseconds.

    Raises:
      StatusMissing: When the message is unknown for longer than `missing_timeout`, from the beginning or after its
        status has expired or was deleted.
      StatusTimeout: When the message is not finished in time.
      BackendError: When the store does not answer the first read.
    """
    watcher = MessageWatcher(
        message_id, time.monotonic(), timeout=timeout, missing_timeout=missing_timeout, interval=interval
    )

    def read() -> Snapshot | None:
        return backend.snapshot(message_id)

    # An unknown message is never shown.
    yield from cast("Iterator[Snapshot]", watch_loop(backend, (message_id,), watcher, read))


def watch_loop(
    backend: StatusBackend, message_ids: Sequence[str], watcher: Watcher[FoundT], read: Callable[[], FoundT]
) -> Iterator[FoundT]:
    """Read messages again and again, and yield what their watcher selects, until the watcher is finished or raises
    an error.

    Parameters:
      backend(StatusBackend)
      message_ids(Sequence[str]): Ids of the messages, for the subscription.
      watcher(Watcher)
      read(Callable): Reads the messages; one round trip.
    """
    clock = time.monotonic
    schedule = PollSchedule(backend)
    subscription: Subscription | None = None
    subscribe_at = -inf
    closes = not may_be_interrupted()
    try:
        while True:
            if not watcher.answering:
                # While the store does not answer, check the deadline before the read, so that a watch does not end with
                # a read that fails.
                watcher.check(clock())
            schedule.begin_read(clock())
            try:
                found = read()
            except BackendError as e:
                watcher.failed(e)
                schedule.fail()
            else:
                show = watcher.observe(found, clock())
                if watcher.answering:
                    schedule.observe(watcher.version)
                else:
                    schedule.fail()
                if show:
                    yield found
                    if watcher.finished:
                        return
            watcher.check(clock())
            if subscription is None and watcher.answering and clock() >= subscribe_at:
                try:
                    subscription = backend.subscribe(message_ids)
                except BackendError:
                    subscribe_at = clock() + SUBSCRIBE_INTERVAL
                else:
                    schedule.pushed = subscription is not None
                    if schedule.pushed:
                        # The store does not publish a change from before the subscription began: read again.
                        schedule.publish(UNKNOWN_VERSION)
                    else:
                        subscribe_at = inf
            while True:
                now = clock()
                rest = watcher.pause(now)
                pause = min(watcher.time_left(now), max(rest, schedule.due() - now))
                if pause <= 0:
                    break
                if subscription is None or rest >= pause:
                    time.sleep(pause)
                    continue
                try:
                    published = subscription.wait(pause)
                except BackendError:
                    subscription.close()
                    subscription, schedule.pushed = None, False
                else:
                    version = watcher.new_version(published)
                    if version is not None:
                        schedule.publish(version)
    except GeneratorExit:
        if not closes:
            # The caller has left early, and Python ignores an interrupt that strikes in a call here.
            subscription = None
        raise
    finally:
        if subscription is not None:
            subscription.close()
