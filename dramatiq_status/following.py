"""Decisions of a watcher: when to read, which snapshots to show, when to give up.  Nothing here reads or sleeps."""

from __future__ import annotations

from math import inf
from typing import Any, Final, Protocol, TypeVar

from .backend import StatusBackend
from .errors import BackendError, StatusMissing, StatusTimeout
from .record import UPDATED_AT
from .rollup import BatchSnapshot
from .snapshot import Snapshot, values_of

#: Number of reads in a row that need not wait for the backend's `watch_interval`: two at the beginning of a watch, and
#: two for a short run that starts and ends.
BURST: Final = 4

#: Factor by which a pause is longer than the one before while nothing changes.
BACK_OFF: Final = 1.5

FoundT_contra = TypeVar("FoundT_contra", contravariant=True)


class Watcher(Protocol[FoundT_contra]):
    """Decisions of :func:`.watch_loop`.  This object neither reads the store nor sleeps."""

    finished: bool
    answering: bool
    version: int

    def observe(self, found: FoundT_contra, now: float) -> bool: ...

    def failed(self, error: BackendError) -> None: ...

    def check(self, now: float) -> None: ...

    def time_left(self, now: float) -> float: ...

    def pause(self, now: float) -> float: ...

    def new_version(self, published: dict[str, int]) -> int | None: ...


class Deadlines:
    """Time limits of a watcher: the maximum times of the whole watch and of a missing message, and the minimum time
    between two snapshots that are shown.

    Parameters:
      what(str): Subject of the error messages: the message or the batch.
      now(float)
      timeout(int): Maximum time of the whole watch, in milliseconds; None for no limit.
      missing_timeout(int): Maximum time for which a message may be missing, in milliseconds.
      interval(int): Minimum time between two snapshots that are shown, in milliseconds.
    """

    __slots__ = (
        "_answered",
        "_deadline",
        "_interval",
        "_missing_since",
        "_missing_timeout",
        "_shown_at",
        "_timeout",
        "_what",
        "answering",
        "finished",
        "version",
    )

    def __init__(self, what: str, now: float, *, timeout: int | None, missing_timeout: int, interval: int = 0) -> None:
        #: Whether the final snapshot was shown.
        self.finished: bool = False
        #: Whether the store has answered the last read, for all messages.
        self.answering: bool = True
        #: Version of the last snapshot; 0 for none.
        self.version: int = 0
        self._what = what
        self._timeout = timeout
        self._deadline = inf if timeout is None else now + timeout / 1000
        self._missing_timeout = missing_timeout / 1000
        self._interval = interval / 1000
        self._answered = False
        self._missing_since: float | None = None
        self._shown_at = -inf

    def _answer(self, now: float, missing: str | None) -> None:
        """Note an answer of the store, and the id of a missing message."""
        self._answered = self.answering = True
        if missing is None:
            self._missing_since = None
            return
        if self._missing_since is None:
            self._missing_since = now
        if now - self._missing_since >= self._missing_timeout:
            raise StatusMissing(missing)

    def failed(self, error: BackendError) -> None:
        """Note that the store does not answer.  The watcher waits until it does.

        Raises:
          BackendError: When it has never answered.
        """
        if not self._answered:
            raise error
        self.answering = False
        # A lost record cannot be restored while the store does not answer.
        self._missing_since = None

    def check(self, now: float) -> None:
        """Raise :class:`.StatusTimeout` when the time is over."""
        if now >= self._deadline:
            raise StatusTimeout(f"{self._what} was not finished within {self._timeout} milliseconds.")

    def time_left(self, now: float) -> float:
        """Return the seconds until the last read before the watcher gives up; infinite for no limit."""
        end = self._deadline
        if self._missing_since is not None:
            end = min(end, self._missing_since + self._missing_timeout)
        return max(0.0, end - now)

    def pause(self, now: float) -> float:
        """Return the seconds until the next snapshot may be shown."""
        return max(0.0, self._shown_at + self._interval - now)


class MessageWatcher(Deadlines):
    """Decisions of a watcher of one message.

    Its methods take snapshots, and timestamps in seconds by any monotonic clock.

    Parameters:
      message_id(str)
      now(float)
      **parameters: See :class:`.Deadlines`.
    """

    __slots__ = ("_message_id", "_seen")

    def __init__(self, message_id: str, now: float, **parameters: Any) -> None:
        super().__init__(f"Message {message_id!r}", now, **parameters)
        self._message_id = message_id
        self._seen: tuple[object, ...] | None = None

    def observe(self, snapshot: Snapshot | None, now: float) -> bool:
        """Note a snapshot from the store.

        Returns:
          bool: Whether to show it, because it differs from the last one that was shown.

        Raises:
          StatusMissing: When the message has been unknown for too long.
        """
        self.version: int = 0 if snapshot is None else snapshot.version
        self._answer(now, self._message_id if snapshot is None else None)
        if snapshot is None:
            return False
        # A record that was lost and restored may have any version. A message stalls without a change.
        seen = (snapshot.version, snapshot.updated_at, snapshot.stalled)
        if seen == self._seen:
            return False
        self._seen = seen
        self._shown_at = now
        self.finished: bool = snapshot.finished
        return True

    def new_version(self, published: dict[str, int]) -> int | None:
        """Return the published version of the message; None where the message has not changed."""
        return published.get(self._message_id)


class BatchWatcher(Deadlines):
    """Decisions of a watcher of a batch.

    Parameters:
      size(int): Number of messages.
      now(float)
      **parameters: See :class:`dramatiq_status.following.Deadlines`.
    """

    __slots__ = ("_seen", "_versions")

    def __init__(self, size: int, now: float, **parameters: Any) -> None:
        super().__init__(f"The batch of {size} messages", now, **parameters)
        self._versions: dict[str, int] = {}
        self._seen: list[Any] | None = None

    def observe(self, snapshot: BatchSnapshot, now: float) -> bool:
        """Note a snapshot of the batch.

        Returns:
          bool: Whether to show it, because it differs from the last one that was shown.

        Raises:
          StatusMissing: When all unfinished messages have been unknown for too long.
        """
        children = snapshot.children.values()
        seen: list[Any] = [
            child and (child.version, values_of(child).get(UPDATED_AT), child.stalled) for child in children
        ]
        seen.append(snapshot.unavailable)
        changed = seen != self._seen
        if changed:
            self._seen = seen
            self._versions = {child.message_id: child.version for child in children if child is not None}
            self.version: int = self.version + 1
            self._missing_since = None
        moving = snapshot.counts["queued"] or snapshot.counts["working"] or snapshot.unavailable
        self._answer(now, None if moving or not snapshot.missing else snapshot.missing[0])
        # The store publishes nothing when a server answers again, so the watcher polls, as in an outage.
        self.answering: bool = not snapshot.unavailable
        if not changed or (snapshot.state is None and not snapshot.finished):
            return False
        self._shown_at = now
        self.finished: bool = snapshot.finished
        return True

    def new_version(self, published: dict[str, int]) -> int | None:
        """Return a new version of the batch if a message has a version that was not read yet; else None."""
        if all(self._versions.get(message_id, 0) == version for message_id, version in published.items()):
            return None
        return self.version + 1


class PollSchedule:
    """Times of the reads of a message or a batch.  If the store publishes changes, the watcher reads after each change,
    and at long intervals.  If the store publishes nothing, or does not answer, the intervals grow.

    This object neither reads the store nor sleeps, and takes timestamps in seconds.

    Parameters:
      backend(StatusBackend): Defines the intervals.
    """

    __slots__ = (
        "_allowed",
        "_failing",
        "_finished",
        "_interval",
        "_last",
        "_longest",
        "_pause",
        "_published",
        "_recheck",
        "_seen",
        "_shortest",
        "pushed",
    )

    def __init__(self, backend: StatusBackend) -> None:
        #: Whether the store publishes changes to this watcher.
        self.pushed: bool = False
        self._shortest, self._longest = (interval / 1000 for interval in backend.poll_interval)
        self._interval = backend.watch_interval / 1000
        self._recheck = backend.recheck_interval / 1000
        self._pause = self._shortest
        self._last = self._allowed = -inf
        self._failing = self._finished = False
        self._seen = 0
        #: Newest published version that was not read yet.
        self._published: int | None = None

    def publish(self, version: int) -> None:
        """Note that the store has published a version; 0 for a deletion."""
        self._published = version

    def begin_read(self, now: float) -> None:
        """Note that a read begins."""
        self._published = None
        self._last = now
        self._allowed = min(max(self._allowed, now) + self._interval, now + BURST * self._interval)

    def observe(self, version: int, *, finished: bool = False) -> None:
        """Note the version that was read; 0 for none.

        A finished message rarely changes, so it is read again only at long intervals.
        """
        if version != self._seen or self._failing:
            self._pause = self._shortest
        else:
            self._pause = min(self._pause * BACK_OFF, self._longest)
        self._seen = version
        self._finished = finished
        self._failing = False

    def fail(self) -> None:
        """Note that the store did not answer."""
        self._pause = min(self._pause * BACK_OFF, self._longest) if self._failing else self._shortest
        self._failing = True

    def due(self) -> float:
        """Return the time of the next read; a time in the past means at once."""
        if self._failing or not (self.pushed or self._finished):
            return self._last + self._pause
        recheck = self._last + self._recheck
        if self._published is not None and self._published != self._seen:
            return min(recheck, max(self._last, self._allowed - (BURST - 1) * self._interval))
        return recheck
