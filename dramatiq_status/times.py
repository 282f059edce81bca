"""Times: datetimes of stored timestamps, and durations in words."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any, Final

#: The times that a datetime can express, in epoch milliseconds: the years 1 to 9999.
EARLIEST: Final = -62_135_596_800_000
LATEST: Final = 253_402_300_799_999

#: Units of durations in words, with their seconds.
UNITS: Final = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def timestamp_of(value: Any) -> int | None:
    """Return a value from a record if it is a timestamp that a datetime can express."""
    return value if isinstance(value, int) and EARLIEST <= value <= LATEST else None


def datetime_of(milliseconds: Any) -> datetime | None:
    """Convert epoch milliseconds from a record to a datetime in UTC; None for another value."""
    if not isinstance(milliseconds, int) or not EARLIEST <= milliseconds <= LATEST:
        return None
    seconds, rest = divmod(milliseconds, 1000)
    return datetime.fromtimestamp(seconds, timezone.utc).replace(microsecond=rest * 1000)


def duration(length: timedelta | float, *, exact: bool = False) -> str:
    """Write a duration for people: two units at most, seconds only below 20 minutes, a negative one as 0 s.

    Parameters:
      length(timedelta | float): The duration, or its seconds.
      exact(bool): Whether a duration below 10 seconds has tenths.

    >>> duration(9060), duration(80), duration(0.42, exact=True), duration(0.42)
    ('2 h 31 min', '1 min 20 s', '0.4 s', '0 s')
    """
    seconds = max(0.0, length.total_seconds() if isinstance(length, timedelta) else length)
    if exact and seconds < 10:
        return f"{round(seconds, 1):g} s"
    left = int(seconds + 0.5) if seconds < 1200 else int(seconds / 60 + 0.5) * 60
    found: list[str] = []
    for name, size in UNITS:
        count, left = divmod(left, size)
        if count or (size == 1 and not found):
            found.append(f"{count:,} {name}")
        elif found:
            break
    return " ".join(found[:2])


def measured(length: timedelta | float) -> str:
    """Write a duration that has ended: tenths below 10 seconds, and never 0 s, which would look like a mistake.

    >>> measured(0.004), measured(5), measured(80)
    ('under 0.1 s', '5.0 s', '1 min 20 s')
    """
    seconds = length.total_seconds() if isinstance(length, timedelta) else length
    if seconds < 0.05:
        return "under 0.1 s"
    return f"{seconds:.1f} s" if seconds < 9.95 else duration(seconds)


def json_time(value: datetime | timedelta | None) -> str | float | None:
    """Return a time as a JSON value: a datetime as text in ISO 8601, a duration in seconds, both to the millisecond."""
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    return None if value is None else round(value.total_seconds(), 3)
