"""The rate of a progress: units a second."""

from __future__ import annotations

import math
from typing import Any, Final

from .fraction import is_number

#: Time constant of the exponential smoothing, in seconds. All measurements that are older than this have about a third
#: (1/e) of the weight together.
TIME_CONSTANT: Final = 15.0

#: Minimum number of seconds between two measurements.
MIN_INTERVAL: Final = 0.25

#: Seconds of measuring after which a rate may be extrapolated without a limit. It must also have two measurements,
#: because the first one includes the preparations of a run.
TRUSTED_AFTER: Final = TIME_CONSTANT / 2

#: Longest remaining time that is extrapolated from a rate before TRUSTED_AFTER, as a multiple of the time for which the
#: rate was measured.
MAX_EXTRAPOLATION: Final = 20

#: Longest remaining time that is shown, in seconds: a century.
LONGEST_REMAINING: Final = 100 * 365 * 86_400


class RateMeter:
    """Meter of a rate, smoothed exponentially by time.

    A mean since the start is wrong after a slow start and after a pause.  A mean of updates depends on their
    frequency.  In this meter each second has a weight: a pause of ten seconds halves the rate, and ten seconds at
    the old speed bring half of the loss back.
    """

    __slots__ = ("_at", "_begun_at", "_count", "_gap", "_once", "_sum", "_weight")

    def __init__(self) -> None:
        self.begin(0, None)

    @property
    def begun(self) -> bool:
        """Whether the measurement has begun."""
        return self._at is not None

    def begin(self, count: int | float, at: float | None) -> None:
        """Begin to measure, and drop all earlier measurements.

        Parameters:
          count(int | float): Progress at the beginning.
          at(float): Time of the beginning, in seconds; None to begin with the first observation.
        """
        self._count = count
        self._at: float | None = at
        self._begun_at = at or 0.0
        self._once = True
        self._gap = 0.0
        self._sum = 0.0
        self._weight = 0.0

    def observe(self, count: int | float, at: float) -> None:
        """Take a measurement, unless the last one is less than :data:`MIN_INTERVAL` old.  If :meth:`begin` got no time,
        the first call only begins to measure.

        Parameters:
          count(int | float): Progress.
          at(float): Time of this progress, in seconds.
        """
        if self._at is None:
            self.begin(count, at)
            return
        passed = at - self._at
        if passed < MIN_INTERVAL:
            return
        self._once = not self._weight
        share = 1.0 - math.exp(-passed / TIME_CONSTANT)
        self._sum += share * ((count - self._count) / passed - self._sum)
        self._weight += share * (1.0 - self._weight)
        self._count = count
        self._at = at
        self._gap = passed

    @property
    def patience(self) -> float:
        """Number of seconds without progress for which the rate does not fall, see :func:`slowed`."""
        return max(TIME_CONSTANT, self._gap)

    def rate_at(self, at: float) -> float | None:
        """Return the rate at a time in seconds.  It is never negative, and None while it is unknown."""
        if self._at is None or not self._weight:
            return None
        return slowed(max(0.0, self._sum / self._weight), at - self._at, self.patience)

    def text_at(self, at: float) -> str | None:
        """Return the rate at a time in seconds as a JSON text for the store; None while the rate is unknown.

        The text is the rate: ``48.25``.  If the patience is more than the time constant, it is a list with the
        patience: ``[0.02,50.0]``.  While the rate may not be extrapolated without a limit, the list also has the
        seconds of measurement: ``[48.25,15,2.5]``.
        """
        rate = self.rate_at(at)
        if rate is None or self._at is None:
            return None
        measured = self._at - self._begun_at
        if self._once or measured < TRUSTED_AFTER:
            return f"[{rate:.4g},{self.patience:.4g},{measured:.4g}]"
        return f"{rate:.4g}" if self._gap <= TIME_CONSTANT else f"[{rate:.4g},{self._gap:.1f}]"


def slowed(rate: float, silence: float, patience: float = TIME_CONSTANT) -> float:
    """Return the rate after a number of seconds without progress.

    The rate does not fall until the progress is overdue.  Then it falls as if the next step came now, so that the
    rate of a run that hangs approaches 0.

    Parameters:
      rate(float): Units a second.
      silence(float): Seconds without progress.
      patience(float): Seconds after which the progress is overdue.

    >>> slowed(10.0, 5.0), slowed(10.0, 60.0), slowed(10.0, 60.0, patience=120.0)
    (10.0, 2.5, 10.0)
    """
    return rate if silence <= patience else rate * (patience / silence)


def rate_in(stored: Any, silence: float) -> float | None:
    """Return the present rate; None if the stored value is no rate.

    Parameters:
      stored: The decoded rate of a record; another program may have written any value.
      silence(float): Seconds since the run's last write.
    """
    rate, patience, *_ = stored if isinstance(stored, list) and 2 <= len(stored) <= 3 else (stored, TIME_CONSTANT)
    if not is_number(rate) or not is_number(patience) or rate < 0 or patience < 0:
        return None
    return slowed(float(rate), silence, patience)


def longest_remaining(stored: Any) -> float:
    """Return the maximum number of seconds for which a stored rate may be extrapolated."""
    if isinstance(stored, list) and len(stored) == 3 and is_number(stored[2]):
        return min(MAX_EXTRAPOLATION * stored[2], LONGEST_REMAINING)
    return LONGEST_REMAINING
