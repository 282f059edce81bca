"""Cursors of lists: the last message of a page, as a text that needs no escapes in a URL."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Final, NamedTuple

#: Exclusive upper limit of a position: up to here every whole number is exact in Redis, whose scores are doubles.
MAX_POSITION: Final = 2**53

#: Maximum length of a cursor, with the longest position and message id.
MAX_SIZE: Final = 300

_DECODED: Final = re.compile(r"([0-9]{1,16}) (.+)", re.DOTALL)


class Cursor(NamedTuple):
    """Position of a message in a list.

    The messages of a list are ordered by their positions, and by their ids where they
    have the same position; the highest comes first.

    Parameters:
      position(int): Number that the store gives a message when its state changes: higher than all earlier ones, at
        least 0 and less than 2**53.
      message_id(str)
    """

    position: int
    message_id: str


def encode(cursor: Cursor) -> str:
    """Write a cursor as a text that needs no escapes in a URL.

    >>> encode(Cursor(12, "a7"))
    'MTIgYTc'
    """
    return urlsafe_b64encode(f"{cursor.position} {cursor.message_id}".encode()).decode().rstrip("=")


def decode(text: str) -> Cursor:
    """Read a cursor.

    Raises:
      ValueError: When the text is not a result of :func:`encode`.
    """
    if len(text) <= MAX_SIZE and text.isascii():
        # The decoder raises a ValueError for some malformed texts, and skips wrong characters in others.
        found = _DECODED.fullmatch(urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode())
        if found is not None:
            cursor = Cursor(int(found[1]), found[2])
            if cursor.position < MAX_POSITION and encode(cursor) == text:
                return cursor
    raise ValueError("The text is no cursor.")
