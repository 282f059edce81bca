"""Progress by total, as a fraction and as a percentage."""

from __future__ import annotations

from typing import Any, Final, TypeGuard

from .record import DEFAULT_TOTAL

#: The largest number that can be counted with, far from where floats end.
LARGEST: Final = 1e300


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value can be counted with; what is stored may be damaged."""
    return isinstance(value, (int, float)) and abs(value) <= LARGEST


def fraction_of(progress: Any, total: Any) -> float | None:
    """Progress by total, clamped to 0.0 to 1.0; never NaN.  None where one of them is unknown.

    >>> fraction_of(1, 2), fraction_of(None, 2), fraction_of(0, 0), fraction_of(250, None), fraction_of(250, 100)
    (0.5, None, 1.0, None, 1.0)
    """
    if total is None or not isinstance(progress, (int, float)):
        return None
    if not isinstance(total, (int, float)):
        total = DEFAULT_TOTAL
    if total <= 0:
        # There was nothing to do, and it is done.
        return 1.0
    try:
        return float(min(1.0, max(0.0, progress / total)))
    except OverflowError:
        return 1.0 if progress > 0 else 0.0


def percent_of(fraction: float) -> float:
    """A fraction as a percentage, rounded down to one decimal place.

    >>> percent_of(2 / 3), percent_of(2999 / 3000), percent_of(1.0)
    (66.6, 99.9, 100.0)
    """
    # The addend makes up for fractions that floats cannot hold: 0.285 is a little less than that.
    return 100.0 if fraction >= 1.0 else min(999, int(fraction * 1000 + 1e-9)) / 10
