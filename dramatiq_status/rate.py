"""How fast a progress moves."""

from __future__ import annotations

import math
from typing import Final

#: Over how many seconds the rate is smoothed: what is older than this
#: counts for a third.
TIME_CONSTANT: Final = 15.0

#: The shortest time, in seconds, that a speed is measured over.
SHORTEST: Final = 0.25


#: Seconds of measurement after which a rate is trusted however far it is extrapolated, if it was measured
#: more than once: the first time includes what a job does before it gets going.
TRUSTED_AFTER: Final = TIME_CONSTANT / 2

#: Largest extrapolation of a rate that is not trusted yet, in multiples of the time that it was measured for.
FARTHEST: Final = 20


class RateMeter:
    """Measures units a second, smoothed exponentially by time.

    A mean since the start would jump after a slow start and be wrong after a
    pause; one weighted by updates depends on how often they come.  Here a
    pause counts for as long as it was: after ten seconds without
    progress the rate has halved, and it comes back as it went.
    """

    __slots__ = ("_at", "_begun_at", "_count", "_gap", "_once", "_sum", "_weight")

    def __init__(self) -> None:
        self.begin(0, None)

    @property
    def begun(self) -> bool:
        """Whether it measures yet."""
        return self._at is not None

    def begin(self, count: int | float, at: float | None) -> None:
        """Measure from here on: the progress stands at `count` at the moment
        `at`, in seconds.  What was measured before is forgotten.
        """
        self._count = count
        self._at: float | None = at
        self._begun_at = at or 0.0
        self._once = True
        self._gap = 0.0
        self._sum = 0.0
        self._weight = 0.0

    def observe(self, count: int | float, at: float) -> None:
        """The progress stands at `count` at the moment `at`, in seconds.
        The first observation begins the measurement, if nothing did.
        """
        if self._at is None:
            self.begin(count, at)
            return
        passed = at - self._at
        if passed < SHORTEST:
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
        """For how many seconds without progress the rate stands (see :func:`slowed`)."""
        return max(TIME_CONSTANT, self._gap)

    def rate_at(self, at: float) -> float | None:
        """Units a second at the moment `at`, never negative; None while unknown."""
        if self._at is None or not self._weight:
            return None
        return slowed(max(0.0, self._sum / self._weight), at - self._at, self.patience)

    def text_at(self, at: float) -> str | None:
        """The rate as it is stored: a number, to four digits, or a pair
        of it and the patience where the progress moves so seldom that
        this is more than usual.  While it is not trusted yet, the seconds that it was
        measured for come third.  None while unknown.
        """
        rate = self.rate_at(at)
        if rate is None or self._at is None:
            return None
        measured = self._at - self._begun_at
        if self._once or measured < TRUSTED_AFTER:
            return f"[{rate:.4g},{self.patience:.4g},{measured:.4g}]"
        return f"{rate:.4g}" if self._gap <= TIME_CONSTANT else f"[{rate:.4g},{self._gap:.1f}]"


def slowed(rate: float, silence: float, patience: float = TIME_CONSTANT) -> float:
    """What is left of a rate after so many seconds without progress.

    For as long as progress may be expected to take it stands.  From
    then on it falls as if the next step came this very moment, so that a job
    that hangs does not show its old speed for ever.

    >>> slowed(10.0, 5.0), slowed(10.0, 60.0), slowed(10.0, 60.0, patience=120.0)
    (10.0, 2.5, 10.0)
    """
    return rate if silence <= patience else rate * (patience / silence)
