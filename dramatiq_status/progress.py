"""The progress of a message."""

from __future__ import annotations

from typing import Any

from .channel import Channel
from .fields import check_count, check_total, encode_count, encode_total
from .fraction import fraction_of
from .record import PROGRESS, TOTAL, Counts
from .update import Changes


class Progress:
    """A live handle of one message's progress and total.

    For the running message (:func:`.current_progress`) it has the values that this run has
    written, without a round trip.  For another message
    (:meth:`.StatusRegistry.progress`) every read takes one round trip.

    Writes from inside of a run, to its own message or to another one of the same store, never block, and never raise an
    error of the store.  From outside of a worker each write takes one round trip, or more
    with memcached and caches.  It raises :class:`.StatusMissing` for an unknown message, and :class:`.BackendError`.

    Any number of threads may share a handle.  It is pickled as :class:`.Status` is.
    """

    __slots__ = ("_channel", "_increment")

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._increment = channel.increment

    @property
    def progress(self) -> int | float:
        """The progress; 0 before the first report."""
        return self._channel.counts().progress or 0

    @progress.setter
    def progress(self, value: int | float) -> None:
        self._channel.write({PROGRESS: encode_count("progress", value)})

    @property
    def total(self) -> int | float | None:
        """The total, which is not negative; 100 until it is set.  For the running message, it is the total
        that this run has set, or that was sent with the message.  The store may still have the total of the run before.

        None for an unknown total: the status then has no fraction, no percent and no time remaining.
        """
        return self._channel.counts().total

    @total.setter
    def total(self, value: int | float | None) -> None:
        self._channel.write({TOTAL: encode_total(value)})

    def increment(self, n: int | float = 1) -> None:
        """Add to the progress, atomically; throttled by ``status_throttle``."""
        self._increment(n)

    def decrement(self, n: int | float = 1) -> None:
        """Subtract from the progress, atomically; throttled by ``status_throttle``."""
        self._increment(-check_count("decrement", n))

    def add_total(self, n: int | float) -> None:
        """Add to the total, atomically in the store; throttled by ``status_throttle``.
        For example, a message that finds more work adds it to the total of the message that has enqueued it.

        A total that was never set, or is unknown, counts from 0.  A retry keeps the total: an actor that adds to its
        own total sets it to None first.

        Raises:
          TypeError: When `n` is no number.
          ValueError: When it is negative, NaN, infinite or too large.
        """
        self._channel.change(Changes({TOTAL: check_total(n)}), urgent=False)

    def finish(self) -> None:
        """Set the progress to the total that the store has, atomically: other messages may have added to it, and a
        retry keeps the total of the run before.  If the total is unknown, set it to the progress.
        """
        self._channel.change(Changes(to_total=True))

    def flush(self) -> bool:
        """Wait until all that was written is stored, as :meth:`.Status.flush` does.

        Returns:
          bool: False when the store is down, or takes longer than the
          backend's time-out.
        """
        return self._channel.flush()

    @property
    def fraction(self) -> float | None:
        """The progress divided by the total, from 0.0 to 1.0; None before the first report and for an unknown total."""
        counts = self._channel.counts()
        return fraction_of(counts.progress, counts.total)

    @property
    def rate(self) -> float | None:
        """Units a second, exponentially smoothed; None while it is unknown."""
        return self._channel.counts().rate

    def to_dict(self) -> dict[str, Any]:
        """Return the progress, the total, the fraction and the rate by their names."""
        return dict_of(self._channel.counts())

    def __reduce__(self) -> tuple[type[Progress], tuple[Channel]]:
        return type(self), (self._channel,)

    def __repr__(self) -> str:
        return f"<Progress of {self._channel.message_id or 'nothing'}>"


def dict_of(counts: Counts) -> dict[str, Any]:
    """Return the progress, the total, the fraction and the rate by their names."""
    return {
        "progress": counts.progress or 0,
        "total": counts.total,
        "fraction": fraction_of(counts.progress, counts.total),
        "rate": counts.rate,
    }
