"""The progress divided by the total, as a fraction and as a percentage."""

from __future__ import annotations

from typing import Any, Final, TypeGuard

from .record import DEFAULT_TOTAL

#: Maximum magnitude of a stored number that is used in a calculation.  The sum of two such numbers does not overflow.
LARGEST_NUMBER: Final = 1e300


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a stored value is a number of at most 1e300.  Stored values may be damaged."""
    return isinstance(value, (int, float)) and abs(value) <= LARGEST_NUMBER


def number_in(value: Any) -> int | float | None:
    """Return a stored value if it is a number of at most 1e300."""
    return value if is_number(value) else None


def fraction_of(progress: Any, total: Any) -> float | None:
    """Return the progress divided by the total, from 0.0 to 1.0.  Return None if one of the two is unknown.

    >>> fraction_of(1, 2), fraction_of(None, 2), fraction_of(0, 0), fraction_of(250, None), fraction_of(250, 100)
    (0.5, None, 1.0, None, 1.0)
    """
    if total is None or not isinstance(progress, (int, float)):
        return None
    if not isinstance(total, (int, float)):
        total = DEFAULT_TOTAL
    if total <= 0:
        # A message without any work is done.
        return 1.0
    try:
        return float(min(1.0, max(0.0, progress / total)))
    except OverflowError:
        return 1.0 if progress > 0 else 0.0


def percent_of(fraction: float) -> float:
    """Return a fraction as a percentage, rounded down to one decimal place.

    >>> percent_of(2 / 3), percent_of(2999 / 3000), percent_of(1.0)
    (66.6, 99.9, 100.0)
    """
    # Eight additions of 0.1 result in 0.7999999999999999. Without the addend, its percentage would be 79.9.
    return 100.0 if fraction >= 1.0 else min(999, int(fraction * 1000 + 1e-9)) / 10
