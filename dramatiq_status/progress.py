"""The progress of a message."""

from __future__ import annotations

from typing import Any

from .channel import Channel
from .fields import check_count, check_total, encode_count, encode_total
from .record import PROGRESS, TOTAL, Counts
from .snapshot import fraction_of
from .update import Changes


class Progress:
    """How far a message has come: a count, and the total that it heads for.

    Of the running message (:func:`.current_progress`) it shows what this run has
    written, without asking the store.  Of another message
    (:meth:`.StatusRegistry.progress`) every look takes a round trip.

    Writes of the running message never block and never raise for a
    broken store.  From outside of a worker each takes one round trip and
    raises :class:`.StatusMissing` for an unknown message, and
    :class:`.BackendError`.

    A handle may be passed to, and used by, any number of threads.  It is pickled as :class:`.Status` is.
    """

    __slots__ = ("_channel", "_increment")

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._increment = channel.increment

    @property
    def progress(self) -> int | float:
        """The count; 0 until something was reported."""
        return self._channel.counts().progress or 0

    @progress.setter
    def progress(self, value: int | float) -> None:
        self._channel.write({PROGRESS: encode_count("progress", value)})

    @property
    def total(self) -> int | float | None:
        """The total of the count, which is not negative; 100 until it is set.
        None for an unknown total: the status then has no fraction, no percent and no time remaining.
        """
        return self._channel.counts().total

    @total.setter
    def total(self, value: int | float | None) -> None:
        self._channel.write({TOTAL: encode_total(value)})

    def increment(self, n: int | float = 1) -> None:
        """Add to the count, atomically; throttled by ``status_throttle``."""
        self._increment(n)

    def decrement(self, n: int | float = 1) -> None:
        """Take from the count, atomically; throttled by ``status_throttle``."""
        self._increment(-check_count("decrement", n))

    def add_total(self, n: int | float) -> None:
        """Add to the total, atomically in the store; throttled by ``status_throttle``.
        A message that finds more work adds it to its parent's total, for example.

        A total that was never set, or is unknown, counts from 0.  A retry keeps the total, as all that is no
        progress: an actor that adds to its own total from the start on sets it to None first.

        Raises:
          TypeError: When `n` is no number.
          ValueError: When it is negative, NaN, infinite or too large.
        """
        self._channel.change(Changes({TOTAL: check_total(n)}), urgent=False)

    def finish(self) -> None:
        """Set the count to the total, or a total that is unknown to the count."""
        counts = self._channel.counts()
        if counts.total is None:
            self.total = self.progress
        else:
            self.progress = counts.total

    def flush(self) -> bool:
        """Wait until all that was written is stored, as :meth:`.Status.flush`.

        Returns:
          bool: False where the store is down, or took longer than the
          backend's time-out.
        """
        return self._channel.flush()

    @property
    def fraction(self) -> float | None:
        """The count by the total, from 0.0 to 1.0; None when nothing was reported, or the total is unknown."""
        counts = self._channel.counts()
        return fraction_of(counts.progress, counts.total)

    @property
    def rate(self) -> float | None:
        """Units a second, exponentially smoothed; None while unknown."""
        return self._channel.counts().rate

    def to_dict(self) -> dict[str, Any]:
        """The count, the total, the fraction and the rate."""
        return dict_of(self._channel.counts())

    def __reduce__(self) -> tuple[type[Progress], tuple[Channel]]:
        return type(self), (self._channel,)

    def __repr__(self) -> str:
        return f"<Progress of {self._channel.message_id or 'nothing'}>"


def dict_of(counts: Counts) -> dict[str, Any]:
    """The count, the total, the fraction and the rate by their names."""
    return {
        "progress": counts.progress or 0,
        "total": counts.total,
        "fraction": fraction_of(counts.progress, counts.total),
        "rate": counts.rate,
    }
