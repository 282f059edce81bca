"""The iterables of :func:`.track`.  They count the items that a loop has processed."""

from __future__ import annotations

import sys
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from contextvars import ContextVar
from operator import length_hint
from threading import get_ident
from types import FrameType
from typing import Final, Generic, TypeVar

from .channel import CancelSignal, Channel, check_cancelled
from .fields import MAX_COUNT, encode_count, encode_total
from .record import PROGRESS, TOTAL, Record

T = TypeVar("T")

#: Number of parts into which an inner loop divides an item of the outer loop.  It is a power of two, so that all parts
#: of an item are exactly 1 in sum.
PARTS: Final = 1024


class LoopCounter:
    """The count of the items of one loop.  It increments the progress of the message.  Inside of another loop of the
    same message, it moves the progress by parts of the outer loop's present item.
    """

    __slots__ = (
        "__weakref__",
        "_channel",
        "_done",
        "_inside",
        "_outer",
        "_shown",
        "_thread",
        "_total",
        "frame",
        "open",
    )

    def __init__(self, channel: Channel, total: int | float | None, done: int | float, fields: Record) -> None:
        #: Whether the loop is running.
        self.open: bool = True
        self._channel = channel
        self._total = total
        # Number of counted items.
        self._done = done
        # Part of the present item that inner loops have counted, and part that was added to the progress.
        self._inside = self._shown = 0.0
        self._thread = get_ident()
        #: The frame of the loop if the channel belongs to one call of a function; else None. When a loop ends in any
        #: way, Python drops its iterator, and with it this counter.
        self.frame: FrameType | None = sys._getframe(3) if channel.of_one_call else None
        self._outer = _enter(self)
        if self._outer is None:
            fields = {**fields, PROGRESS: encode_count("progress", done)}
            if total is not None or not self._total_is_users():
                fields[TOTAL] = encode_total(total)
                channel.tracked_total = total
        elif self._outer._thread != self._thread:
            # The items of a loop in another thread do not move the progress: that would need a lock, which an
            # interrupt could leave locked.
            self._total = None
        elif total:
            self._outer._grow(done / total)
        if fields:
            channel.write(fields)

    @property
    def channel(self) -> Channel:
        return self._channel

    def count(self) -> None:
        """Count the current item."""
        self._done += 1
        if self._outer is None:
            self._channel.increment(1 - self._shown if self._shown else 1)
        elif self._total:
            self._outer._grow((1 - self._inside) / self._total)
        self._inside = self._shown = 0.0

    def finish(self) -> None:
        """Set the progress and the total to the number of items."""
        if self._outer is None:
            self._channel.tracked_total = self._done
            self._channel.write({TOTAL: encode_total(self._done), PROGRESS: encode_count("progress", self._done)})

    def _total_is_users(self) -> bool:
        """Whether the present total was set by the actor or sent with the message, and not set by a loop."""
        counts = self._channel.counts()
        return counts.set and counts.total is not None and counts.total != self._channel.tracked_total

    def _grow(self, part: float) -> None:
        """Count a part of the current item, for an inner loop."""
        before, self._inside = self._inside, min(1.0, self._inside + part)
        if self._outer is not None:
            if self._total:
                self._outer._grow((self._inside - before) / self._total)
            return
        # 1e-6 compensates for the rounding of many parts.
        reached = int(self._inside * PARTS + 1e-6) / PARTS
        if reached > self._shown:
            self._channel.increment(reached - self._shown)
            self._shown = reached


# The counters of the loops around the code of this context.  The references are weak, because a loop that is left
# early, or by an exception, drops its counter without a call.
_counters: ContextVar[tuple[weakref.ref[LoopCounter], ...]] = ContextVar("dramatiq_status_loops", default=())


def _enter(counter: LoopCounter) -> LoopCounter | None:
    """Register the counter of a loop that begins.  Return the counter of its outer loop of the same message; None
    without one.
    """
    entered = [found for reference in _counters.get() if (found := reference()) is not None and found.open]
    _counters.set((*map(weakref.ref, entered), weakref.ref(counter)))
    return next((found for found in reversed(entered) if found.channel is counter.channel), None)


def iterated_by(frame: FrameType) -> Channel | None:
    """Return the channel of the loop that a frame executes, if the channel is tied to the frame; None without such a
    loop.
    """
    counters = [counter for reference in _counters.get() if (counter := reference()) is not None]
    return next((counter.channel for counter in reversed(counters) if counter.open and counter.frame is frame), None)


class _NoSignal:
    """The signal of a loop that does not check for requests to cancel."""

    cancelled = False


_NO_SIGNAL: Final = _NoSignal()


class Track(Generic[T]):
    """The iterable that :func:`.track` returns: it counts the items that the loop has processed.  It supports ``for``
    or ``async for``, as its own iterable does.
    """

    __slots__ = ("_channel", "_done", "_fields", "_iterable", "_signal", "_total")

    def __init__(
        self,
        channel: Channel,
        iterable: Iterable[T] | AsyncIterable[T],
        total: int | float | None,
        done: int | float,
        fields: Record,
        *,
        cancellable: bool = True,
    ) -> None:
        self._channel = channel
        self._signal: CancelSignal = (channel.signal if cancellable else None) or _NO_SIGNAL
        self._iterable = iterable
        self._total = total
        self._done = done
        self._fields = fields

    def __iter__(self) -> Iterator[T]:
        if isinstance(self._iterable, AsyncIterable) and not isinstance(self._iterable, Iterable):
            raise TypeError(
                f"{type(self._iterable).__name__} is an async iterable: write 'async for ... in track(...)'."
            )
        return self._items(self._iterable)

    def _items(self, iterable: Iterable[T]) -> Iterator[T]:
        counter = self._begin()
        signal = self._signal
        try:
            for item in iterable:
                if signal.cancelled:
                    check_cancelled(self._channel)
                yield item
                counter.count()
            counter.finish()
        finally:
            # The traceback of an exception keeps the counter for as long as the exception is kept.  This block calls no
            # function: after a loop that is left early, Python ignores an interrupt that strikes in such a call.
            counter.open = False

    def __aiter__(self) -> AsyncIterator[T]:
        if not isinstance(self._iterable, AsyncIterable):
            raise TypeError(f"{type(self._iterable).__name__} is no async iterable: write 'for ... in track(...)'.")
        return _AsyncItems(self, self._iterable)

    def __len__(self) -> int:
        return len(self._iterable)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        # Without this method, an iterable without a length would raise an error.
        return True

    @property
    def is_cancelled(self) -> bool:
        """Whether the loop has to stop."""
        return self._signal.cancelled

    def _begin(self) -> LoopCounter:
        total = _length_of(self._iterable) if self._total is None else self._total
        return LoopCounter(self._channel, total, self._done, self._fields)


def _length_of(iterable: object) -> int | None:
    """Find the present number of items of an iterable; None where it is unknown."""
    try:
        length = length_hint(iterable, -1)
    except Exception:
        # The iterator raises the error itself if it needs the length.
        return None
    # A length that is too large to be counted has no meaning as a total.
    return length if 0 <= length <= MAX_COUNT else None


class _AsyncItems(AsyncIterator[T]):
    """Iterator of ``async for``.  It is no async generator, which would stay open after a loop that is left early."""

    __slots__ = ("_counter", "_ended", "_given", "_iterator", "_track")

    def __init__(self, track: Track[T], iterable: AsyncIterable[T]) -> None:
        self._track = track
        self._iterator = aiter(iterable)
        self._counter: LoopCounter | None = None
        # Whether the loop has an item that is not counted yet.
        self._given = False
        self._ended = False

    async def __anext__(self) -> T:
        if self._ended:
            raise StopAsyncIteration
        counter = self._counter
        if counter is None:
            counter = self._counter = self._track._begin()
        elif self._given:
            self._given = False
            counter.count()
        counter.open = True
        try:
            item = await anext(self._iterator)
        except StopAsyncIteration:
            self._ended = True
            counter.open = False
            counter.finish()
            raise
        except BaseException:
            # The exception may keep the counter alive. If only the wait was cancelled, the loop may continue.
            counter.open = False
            raise
        if self._track.is_cancelled:
            counter.open = False
            check_cancelled(counter.channel)
        self._given = True
        return item
