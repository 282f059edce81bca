"""Times: datetimes of stored timestamps, and durations in words."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any, Final

#: The times that a datetime can express, in epoch milliseconds: the years 1 to 9999.
EARLIEST: Final = -62_135_596_800_000
LATEST: Final = 253_402_300_799_999


def timestamp_of(value: Any) -> int | None:
    """Return a value from a record if it is a timestamp that a datetime can express."""
    return value if isinstance(value, int) and EARLIEST <= value <= LATEST else None


def datetime_of(milliseconds: Any) -> datetime | None:
    """Convert epoch milliseconds from a record to a datetime in UTC; None for another value."""
    if not isinstance(milliseconds, int) or not EARLIEST <= milliseconds <= LATEST:
        return None
    seconds, rest = divmod(milliseconds, 1000)
    return datetime.fromtimestamp(seconds, timezone.utc).replace(microsecond=rest * 1000)


def span(duration: timedelta) -> str:
    """Write a duration in its two largest units; a negative one as 0 s.

    >>> span(timedelta(seconds=0.25)), span(timedelta(seconds=75)), span(timedelta(hours=50))
    ('0.2 s', '1 min 15 s', '2 d 2 h')
    """
    seconds = max(0.0, duration.total_seconds())
    if seconds < 10:
        return f"{int(seconds * 10) / 10:g} s"
    units = []
    for name, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        units.append((int(count), name))
    first = next(number for number, (count, _) in enumerate(units) if count)
    return " ".join(f"{count} {name}" for count, name in units[first : first + 2] if count)


def json_time(value: datetime | timedelta | None) -> str | float | None:
    """Return a time as a JSON value: a datetime as text in ISO 8601, a duration in seconds, both to the millisecond."""
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    return None if value is None else round(value.total_seconds(), 3)
