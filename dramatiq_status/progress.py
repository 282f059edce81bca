"""The progress of a message."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import length_hint
from typing import Any, TypeVar

from .channel import Channel
from .fields import check_count, encode_count, encode_total
from .record import DEFAULT_TOTAL, PROGRESS, TOTAL
from .snapshot import fraction_of

T = TypeVar("T")


class Progress:
    """How far a message has come: a count, and the total that it heads for.

    Of the running message (:func:`.current_progress`) it shows what this run has
    written, without asking the store.  Of another message
    (:meth:`.StatusRegistry.progress`) every look takes a round trip.

    Writes of the running message never block and never raise for a
    broken store.  From outside of a worker each takes one round trip and
    raises :class:`.StatusMissing` for an unknown message, and
    :class:`.BackendError`.

    A handle may be passed to, and used by, any number of threads.
    """

    __slots__ = ("_channel", "_increment")

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._increment = channel.increment

    @property
    def progress(self) -> int | float:
        """The count; 0 until something was reported."""
        return self._channel.counts()[0] or 0

    @progress.setter
    def progress(self, value: int | float) -> None:
        self._channel.write({PROGRESS: encode_count("progress", value)})

    @property
    def total(self) -> int | float:
        """What the count heads for; 100 until it is set.  Not negative."""
        total = self._channel.counts()[1]
        return DEFAULT_TOTAL if total is None else total

    @total.setter
    def total(self, value: int | float) -> None:
        self._channel.write({TOTAL: encode_total(value)})

    def increment(self, n: int | float = 1) -> None:
        """Add to the count, atomically; throttled by ``status_throttle``."""
        self._increment(n)

    def decrement(self, n: int | float = 1) -> None:
        """Take from the count, atomically; throttled by ``status_throttle``."""
        self._increment(-check_count("decrement", n))

    def finish(self) -> None:
        """Set the count to the total."""
        self.progress = self.total

    @property
    def fraction(self) -> float | None:
        """The count by the total, from 0.0 to 1.0; None when nothing was reported."""
        progress, total, _ = self._channel.counts()
        return fraction_of(progress, total)

    @property
    def rate(self) -> float | None:
        """Units a second, exponentially smoothed; None while unknown."""
        return self._channel.counts()[2]

    def to_dict(self) -> dict[str, Any]:
        """The count, the total, the fraction and the rate."""
        progress, total, rate = self._channel.counts()
        return {
            "progress": progress or 0,
            "total": DEFAULT_TOTAL if total is None else total,
            "fraction": fraction_of(progress, total),
            "rate": rate,
        }

    def __repr__(self) -> str:
        progress, total, _ = self._channel.counts()
        return f"<Progress of {self._channel.message_id or 'nothing'}: {progress or 0}/{total or DEFAULT_TOTAL}>"


def track_progress(progress: Progress, iterable: Iterable[T], total: int | float | None) -> Iterator[T]:
    """Yield from `iterable`, counting each item when it has been dealt with.

    The total is, if it is not given, the iterable's length, or its
    ``__length_hint__``; where there is neither, it becomes the count at
    the end.
    """
    if total is None:
        total = length_hint(iterable, -1)
    known = total >= 0
    if known:
        progress._channel.write({TOTAL: encode_total(total), PROGRESS: "0"})
    else:
        progress._channel.write({PROGRESS: "0"})
    count = 0
    for item in iterable:
        yield item
        count += 1
        progress.increment()
    if known:
        progress.finish()
    else:
        progress._channel.write({TOTAL: encode_total(count), PROGRESS: encode_count("progress", count)})
