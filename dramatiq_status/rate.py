"""How fast a progress moves."""

from __future__ import annotations

import math
from typing import Final

#: Over how many seconds the rate is smoothed: what is older than this
#: counts for a third.
TIME_CONSTANT: Final = 15.0

#: The shortest time, in seconds, that a speed is measured over.
SHORTEST: Final = 0.25


class RateMeter:
    """Measures units a second, smoothed exponentially by time.

    A mean since the start would jump after a slow start and be wrong after a
    pause; one weighted by updates depends on how often they come.
    """

    __slots__ = ("_at", "_count", "_sum", "_weight")

    def __init__(self, count: int | float, at: float) -> None:
        self.reset(count, at)

    def reset(self, count: int | float, at: float) -> None:
        """Start over from `count` at the moment `at`, in seconds."""
        self._count = count
        self._at = at
        self._sum = 0.0
        self._weight = 0.0

    def observe(self, count: int | float, at: float) -> None:
        """The progress stood at `count` at the moment `at`, in seconds."""
        passed = at - self._at
        if passed < SHORTEST:
            return
        share = 1.0 - math.exp(-passed / TIME_CONSTANT)
        self._sum += share * ((count - self._count) / passed - self._sum)
        self._weight += share * (1.0 - self._weight)
        self._count = count
        self._at = at

    @property
    def rate(self) -> float | None:
        """Units a second; None while unknown."""
        return self._sum / self._weight if self._weight else None
