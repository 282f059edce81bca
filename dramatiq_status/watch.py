"""Following messages until they are finished."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import Final, TypeVar, cast

from . import _time as time
from ._interrupts import strike_here
from .backend import StatusBackend, Subscription
from .errors import BackendError
from .following import MessageWatcher, PollSchedule, Watcher
from .snapshot import Snapshot

#: How long a message may be unknown before it counts as missing, in milliseconds.
DEFAULT_MISSING_TIMEOUT: Final = 1_000

#: How long to wait by default until something is finished, in milliseconds.
DEFAULT_WAIT_TIMEOUT: Final = 10_000

#: The version of a change that nobody tells of; there may be none.
UNHEARD: Final = -1

#: For how many seconds a store that refused a subscription is not asked for another.
SUBSCRIBE_AGAIN: Final = 1.0

FoundT = TypeVar("FoundT")


def follow(
    backend: StatusBackend, message_id: str, *, timeout: int | None, missing_timeout: int, interval: int = 0
) -> Iterator[Snapshot]:
    """Yield the present snapshot, then one after every change, and end after the final one.

    The first look takes one round trip.  If the message is not finished, the
    store is then asked to tell of its changes, over a connection that lasts
    as long as this does, and looked at again, so that nothing is missed
    in between.  Where the store tells nothing it is looked at again
    and again, seldom while nothing changes.  An outage is waited through
    once the store has answered.

    Parameters:
      backend(StatusBackend)
      message_id(str)
      timeout(int): For how long in all, in milliseconds; None for ever.
      missing_timeout(int): How long the message may be unknown, in milliseconds.
      interval(int): How much time there is at least between two
        snapshots, in milliseconds.

    Raises:
      StatusMissing: When it is unknown for longer, from the beginning or
        since it has vanished.
      StatusTimeout: When the time is over.
      BackendError: When the store does not answer at the first look.
    """
    watcher = MessageWatcher(
        message_id, time.monotonic(), timeout=timeout, missing_timeout=missing_timeout, interval=interval
    )

    def look() -> Snapshot | None:
        return backend.snapshot(message_id)

    # An unknown message is never shown.
    yield from cast("Iterator[Snapshot]", watch_loop(backend, (message_id,), watcher, look))


def watch_loop(
    backend: StatusBackend, message_ids: Sequence[str], watcher: Watcher[FoundT], look: Callable[[], FoundT]
) -> Iterator[FoundT]:
    """Do what a watcher of one or many messages says: look, yield what it wants
    shown, and wait, until it has finished or raises.

    Parameters:
      backend(StatusBackend)
      message_ids(Sequence[str]): What to be told of.
      watcher(Watcher)
      look(Callable): Asks the store; one round trip.
    """
    clock = time.monotonic
    schedule = PollSchedule(backend)
    subscription: Subscription | None = None
    subscribe_at = -inf
    closes = not strike_here()
    try:
        while True:
            if not watcher.answering:
                # There is nobody to take a last look at.
                watcher.check(clock())
            schedule.look(clock())
            try:
                found = look()
            except BackendError as e:
                watcher.failed(e)
                schedule.fail()
            else:
                show = watcher.saw(found, clock())
                if watcher.answering:
                    schedule.saw(watcher.version)
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
                    subscribe_at = clock() + SUBSCRIBE_AGAIN
                else:
                    schedule.told = subscription is not None
                    if schedule.told:
                        # Of what was changed before it began nobody tells the version.
                        schedule.hear(UNHEARD)
                    else:
                        subscribe_at = inf
            while True:
                now = clock()
                rest = watcher.rest(now)
                pause = min(watcher.time_left(now), max(rest, schedule.due() - now))
                if pause <= 0:
                    break
                if subscription is None or rest >= pause:
                    time.sleep(pause)
                    continue
                try:
                    heard = subscription.wait(pause)
                except BackendError:
                    subscription.close()
                    subscription, schedule.told = None, False
                else:
                    news = watcher.news(heard)
                    if news is not None:
                        schedule.hear(news)
    except GeneratorExit:
        if not closes:
            # The caller has left early, and Python ignores an interrupt that strikes in a call here.
            subscription = None
        raise
    finally:
        if subscription is not None:
            subscription.close()
