"""Checks of what a caller passes: message ids, durations, numbers, and the size of a page."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Final

from .fields import plain_number
from .record import LONGEST_TTL, MAX_WHOLE_NUMBER

#: The longest `timeout` of a backend, in milliseconds: a day.  Sockets take no more than some weeks.
MAX_TIMEOUT: Final = 86_400_000

#: The longest duration, in milliseconds: as long as a record may live.
MAX_DURATION: Final = LONGEST_TTL

#: The longest message id, in UTF-8 bytes.  Memcached takes keys of at
#: most 250 bytes, the namespace included.
MAX_MESSAGE_ID_SIZE: Final = 200

#: The longest page of a list.
MAX_LIMIT: Final = 1000

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def check_message_id(message_id: Any) -> str:
    """Check the id of a message before it becomes a key.

    Parameters:
      message_id(str | Message): An id, or a message that has one.

    Raises:
      TypeError: When it is neither.
      ValueError: When it is empty, too long or holds control characters.
    """
    if (
        message_id.__class__ is str
        and message_id.isascii()
        and message_id.isprintable()
        and 0 < len(message_id) <= MAX_MESSAGE_ID_SIZE
    ):
        # As they usually are: what follows takes thrice as long to find nothing.
        return message_id
    given = message_id
    message_id = given if isinstance(given, str) else getattr(given, "message_id", None)
    if not isinstance(message_id, str):
        raise TypeError(
            f"message_id must be a str or a dramatiq.Message, not {type(given).__name__}: pass message.message_id."
        )
    if not message_id:
        raise ValueError("message_id must not be empty: pass message.message_id.")
    if len(message_id) * 4 > MAX_MESSAGE_ID_SIZE:
        size = len(message_id.encode("utf-8", "surrogatepass"))
        if size > MAX_MESSAGE_ID_SIZE:
            raise ValueError(f"message_id must have at most {MAX_MESSAGE_ID_SIZE} bytes, this one has {size}.")
    if not message_id.isascii() or not message_id.isprintable():
        if _CONTROL.search(message_id):
            raise ValueError(f"message_id must not hold control characters: {message_id!r}.")
        try:
            message_id.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"message_id must be valid Unicode: {message_id!r}.") from None
    return message_id


def is_message_id(message_id: str) -> bool:
    """Whether a message may have this id.  Other programs may store other ids."""
    try:
        check_message_id(message_id)
    except ValueError:
        return False
    return True


def check_message_ids(message_ids: Iterable[Any]) -> list[str]:
    """Check many ids; a single string is an error, not an iterable of letters."""
    if isinstance(message_ids, (str, bytes)):
        raise TypeError(f"message_ids must be an iterable of ids, not one {type(message_ids).__name__}.")
    return [check_message_id(message_id) for message_id in message_ids]


def check_duration(name: str, value: int | timedelta, *, minimum: int = 0, maximum: int = MAX_DURATION) -> int:
    """Check a duration.

    Parameters:
      name(str): What the caller calls it.
      value(int | timedelta): Milliseconds, as a whole number of any type, or a timedelta.
      minimum(int): The least that makes sense, in milliseconds.
      maximum(int): The most that does.

    Returns:
      int: The duration in milliseconds.

    Raises:
      TypeError: When it is neither a number nor a timedelta.
      ValueError: When it is not whole, less than `minimum` or more than `maximum`.
    """
    if isinstance(value, timedelta):
        value = round(value / timedelta(milliseconds=1))
    number = plain_number(value)
    if number is None:
        raise TypeError(f"{name} must be an int (milliseconds) or a timedelta, not {type(value).__name__}.")
    if number % 1:
        raise ValueError(f"{name} must be a whole number of milliseconds, not {value}.")
    if number < minimum:
        raise ValueError(f"{name} must be at least {minimum} milliseconds, not {value}.")
    if number > maximum:
        raise ValueError(
            f"{name} must be at most {maximum:,} milliseconds ({timedelta(milliseconds=maximum).days:,} days)."
        )
    return int(number)


def check_limit(limit: int) -> int:
    """Check how many statuses a page of a list may have."""
    number = check_number("limit", limit, minimum=1)
    if number > MAX_LIMIT:
        raise ValueError(f"limit must be at most {MAX_LIMIT}, not {limit}: ask for more pages by after=.")
    return number


def check_number(name: str, value: int, *, minimum: int = 0) -> int:
    """Check a number of things: a whole number of any type.

    Returns:
      int: The number as a plain int.

    Raises:
      TypeError: When it is no number.
      ValueError: When it is not whole, less than `minimum`, or has more than 15 digits.
    """
    number = plain_number(value)
    if number is None:
        raise TypeError(f"{name} must be an int, not {type(value).__name__}.")
    # Of an infinite number, too, the rest is NaN.
    if number % 1:
        raise ValueError(f"{name} must be a whole number, not {value}.")
    if abs(number) > MAX_WHOLE_NUMBER:
        # Python refuses to write the longest of them into the text of an error.
        raise ValueError(f"{name} must have at most 15 digits.")
    if number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, not {value}.")
    return int(number)
