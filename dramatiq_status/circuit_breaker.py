"""The circuit breaker of a store or a server: whether it is down, and when to try it again.

It logs one line when an outage begins, and one when it ends.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone
from threading import Lock
from typing import Final, NamedTuple

from . import _time as time
from ._log import logger
from .errors import StoreRefused

#: FIRST_PAUSE: Seconds from the first failure of an outage until the store is tried again. LONGEST_PAUSE: Maximum
#: number of seconds between two such tries.
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 2.0

#: Seconds from the end of an outage until other processes have sent the updates that they kept. In this time the writer
#: keeps an update from outside of a run for a message that has no record yet.
RECOVERY: Final = 2 * LONGEST_PAUSE


class Health(NamedTuple):
    """State of the status store as one process sees it, and counters of that process since it has started.

    Parameters:
      up(bool): False during an outage, and true at all other times.
      down_since(datetime): Time at which the present outage began, in UTC; None while the store is up.
      pending_messages(int): Number of messages with updates that are not stored yet.
      pending_updates(int): Number of those updates.
      dropped(int): Number of updates that were dropped.
      failures(int): Number of calls of the middleware to the store that have failed.
      outages(int): Number of outages that have begun.
    """

    up: bool
    down_since: datetime | None
    pending_messages: int
    pending_updates: int
    dropped: int
    failures: int
    outages: int


class CircuitBreaker:
    """Object that notes the outages of a store or a server, and returns when to try it again.

    Parameters:
      name(str): The store's name in the log.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = Lock()
        self._began = 0.0
        self._pause = 0.0
        self._failures = 0
        self._dropped = 0
        #: Whether an outage has begun and not ended.
        self.down: bool = False
        #: Whether the last call of the outage failed because the store has answered that it refuses updates.
        self.refuses: bool = False
        #: Time at which to try the store again, by the monotonic clock.
        self.retry_at: float = 0.0
        self._ended = -math.inf
        self._given_up = False
        # Counters of all outages in this process.
        self._all_outages = self._all_failures = self._all_dropped = 0

    def renew(self) -> None:
        """Replace the lock and reset the counters, in a forked process. The thread that held the lock at the fork
        exists only in the parent.
        """
        self._lock = Lock()
        self._all_outages = self._all_failures = self._all_dropped = 0

    def health(self, pending_updates: int, pending_messages: int) -> Health:
        """Return the state of the store, with the given numbers of messages and updates that are not stored yet."""
        with self._lock:
            since = None
            if self.down:
                since = datetime.now(timezone.utc) - timedelta(seconds=time.monotonic() - self._began)
            return Health(
                not self.down,
                since,
                pending_messages,
                pending_updates,
                self._all_dropped,
                self._all_failures,
                self._all_outages,
            )

    @property
    def blocked(self) -> bool:
        """Whether the store is down, and it is too early to try it again."""
        return self.down and time.monotonic() < self.retry_at

    @property
    def recovering(self) -> bool:
        """Whether an outage has ended so recently that other processes may not have sent all their updates."""
        return time.monotonic() - self._ended < RECOVERY

    def failed(self, error: BaseException) -> None:
        """Record that a call failed."""
        with self._lock:
            now = time.monotonic()
            self.refuses = isinstance(error, StoreRefused)
            began = not self.down
            if began:
                self.down, self._began, self._pause, self._failures = True, now, FIRST_PAUSE, 0
                self._all_outages += 1
            self._failures += 1
            self._all_failures += 1
            if began or now >= self.retry_at:
                # Calls that fail at the same time count as one try.
                self.retry_at = now + self._pause
                self._pause = min(self._pause * 2, LONGEST_PAUSE)
        if began:
            logger.warning(
                "The status store %s does not answer (%s). Jobs go on; their statuses are kept in memory and "
                "written when it is back.",
                self._name,
                error,
            )

    def dropped(self, count: int = 1) -> None:
        """Count dropped updates."""
        with self._lock:
            self._all_dropped += count
            if self.down:
                self._dropped += count

    def count_failure(self) -> None:
        """Count a failed call of a store that is up."""
        with self._lock:
            self._all_failures += 1

    @property
    def was_given_up(self) -> bool:
        """Whether a worker that ended, or this process at its end, has waited without success for the end of this
        outage.
        """
        return self.down and self._given_up

    def gave_up(self, updates: int, messages: int, seconds: float) -> None:
        """Log the number of updates that the store has not taken at the end of a worker or of this process."""
        with self._lock:
            self._given_up, dropped = True, self._dropped
        if updates or dropped:
            logger.error(
                "The status store %s has not taken %d updates of %d messages in the last %.1f seconds; %d other "
                "updates were dropped before. If the process ends now, all these updates are lost, and the statuses of "
                "these messages stay as they are.",
                self._name,
                updates,
                messages,
                seconds,
                dropped,
            )

    def succeeded(self) -> None:
        """Record that a call succeeded."""
        if not self.down:
            return
        with self._lock:
            began, self._began = self._began, 0.0
            failures, dropped = self._failures, self._dropped
            self._given_up = False
            self.down, self.refuses, self._dropped, self._ended = False, False, 0, time.monotonic()
        if not began:
            # Another thread has logged the end of this outage.
            return
        lasted = time.monotonic() - began
        logger.warning(
            "The status store %s answers again after %.1f seconds and %d failed calls; %d updates were dropped.",
            self._name,
            lasted,
            failures,
            dropped,
        )
