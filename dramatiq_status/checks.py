"""Checks of parameters: message ids, durations, numbers and limits of lists."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Final

from .fields import plain_number
from .record import LONGEST_TTL, MAX_WHOLE_NUMBER

#: Maximum `timeout` of a backend, in milliseconds: a day.  Sockets support a few weeks.
MAX_TIMEOUT: Final = 86_400_000

#: Maximum duration, in milliseconds: the longest time to live of a record.
MAX_DURATION: Final = LONGEST_TTL

#: Maximum size of a message id, in UTF-8 bytes.  A key of memcached has at most 250 bytes, with the namespace.
MAX_MESSAGE_ID_SIZE: Final = 200

#: Maximum number of statuses on a page of a list.
MAX_LIMIT: Final = 1000

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

#: Milliseconds after which an unknown message counts as missing.
DEFAULT_MISSING_TIMEOUT: Final = 1_000

#: Default of the milliseconds to wait until a message is finished.
DEFAULT_WAIT_TIMEOUT: Final = 10_000


def check_message_id(message_id: Any) -> str:
    """Check a message id.

    Parameters:
      message_id(str | Message): Id, or message with an id.

    Raises:
      TypeError: When it is neither an id nor a message.
      ValueError: When the id is empty or too long, contains control characters, or is not valid Unicode.
    """
    if (
        message_id.__class__ is str
        and message_id.isascii()
        and message_id.isprintable()
        and 0 < len(message_id) <= MAX_MESSAGE_ID_SIZE
    ):
        # The usual case.  The checks below take three times as long.
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
            raise ValueError(f"message_id must not contain control characters: {message_id!r}.")
        try:
            message_id.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"message_id must be valid Unicode: {message_id!r}.") from None
    return message_id


def is_message_id(message_id: str) -> bool:
    """Whether an id is valid.  Another program may have stored invalid ids."""
    try:
        check_message_id(message_id)
    except ValueError:
        return False
    return True


def check_message_ids(message_ids: Iterable[Any]) -> list[str]:
    """Check message ids.  A single string is an error, although it is an iterable of strings."""
    if isinstance(message_ids, (str, bytes)):
        raise TypeError(f"message_ids must be an iterable of ids, not one {type(message_ids).__name__}.")
    return [check_message_id(message_id) for message_id in message_ids]


def check_duration(name: str, value: int | timedelta, *, minimum: int = 0, maximum: int = MAX_DURATION) -> int:
    """Check a duration.

    Parameters:
      name(str): Name of the parameter.
      value(int | timedelta): Whole number of milliseconds of any numeric type, or a timedelta.
      minimum(int): Minimum in milliseconds.
      maximum(int): Maximum in milliseconds.

    Returns:
      int: Duration in milliseconds.

    Raises:
      TypeError: When the value is neither a number nor a timedelta.
      ValueError: When the value is not whole, is less than `minimum` or is more than `maximum`.
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
    """Check the maximum number of statuses on a page of a list."""
    number = check_number("limit", limit, minimum=1)
    if number > MAX_LIMIT:
        raise ValueError(f"limit must be at most {MAX_LIMIT}, not {limit}: list further pages with after=.")
    return number


def check_number(name: str, value: int, *, minimum: int = 0) -> int:
    """Check a whole number of any numeric type.

    Parameters:
      name(str): Name of the parameter.
      value(int)
      minimum(int)

    Returns:
      int: Number as a plain int.

    Raises:
      TypeError: When the value is no number.
      ValueError: When the value is not whole, is less than `minimum`, or has more than 15 digits.
    """
    number = plain_number(value)
    if number is None:
        raise TypeError(f"{name} must be an int, not {type(value).__name__}.")
    # The remainder of an infinite number is NaN, which is true.
    if number % 1:
        raise ValueError(f"{name} must be a whole number, not {value}.")
    if abs(number) > MAX_WHOLE_NUMBER:
        # The error does not contain the value, because Python does not convert an int of more than 4,300 digits into a
        # text.
        raise ValueError(f"{name} must have at most 15 digits.")
    if number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, not {value}.")
    return int(number)
