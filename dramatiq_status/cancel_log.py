"""The log of cancelled messages, in which workers find the messages that they must not run.

A backend adds the mark of a message to its log with each request to cancel that it accepts.  A worker reads what was
added since it last read, and needs no round trip for a message whose mark is missing.  Another message may have the
same mark by chance, so the record decides: a worker that finds the mark reads the record.  A log keeps only the newest
marks.  So after a worker has read a full log, it also reads the record before each run of a message that was enqueued
before this read, or up to a minute after it.  If the worker has not found the mark in time, it finds the request in the
outcome of the run's start.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final
from zlib import crc32

from . import _time as time
from .record import CANCEL_REQUESTED_AT, CANCELLED, ORIGIN, Record, is_finished, whole_number_in
from .update import Kind, Outcome, Update

#: Maximum number of marks in a log that is one text: 64 KiB.  A worker that reads as many marks at once assumes that
#: the log has dropped others.
MAX_MARKS: Final = 8192

#: Maximum number of marks in other logs.
MAX_LOGGED: Final = 100_000

#: Time to live of the log after the last request, in milliseconds: 30 days. Dramatiq's default
#: for the longest delay of a retry is 7 days.
LOG_TTL: Final = 2_592_000_000

#: Number of characters of a mark in a log.
_SIZE: Final = 8

#: Whether a text is a mark.
is_mark: Final = re.compile(r"[0-9a-f]{8}").fullmatch

_LOGGED: Final = (Outcome.APPLIED, Outcome.REQUESTED, Outcome.CANCELLED)


def mark_of(message_id: str) -> int:
    """Return the mark of a message, a number of 32 bits."""
    return crc32(message_id.encode("utf-8", "surrogatepass"))


def text_of(mark: int) -> str:
    """Return the text of a mark, as a log contains it."""
    return f"{mark:08x}"


def cancelled_by(updates: Sequence[tuple[str, Update]], outcomes: Sequence[Outcome]) -> list[str]:
    """Return the ids of the messages to add to the log."""
    return [
        message_id
        for (message_id, update), outcome in zip(updates, outcomes)
        if update.kind is Kind.CANCEL and outcome in _LOGGED
    ]


def is_cancelled(record: Record, origin: int) -> bool:
    """Whether the enqueues with this origin are cancelled or have an open request to cancel."""
    return record[ORIGIN] == str(origin) and (CANCELLED if is_finished(record) else CANCEL_REQUESTED_AT) in record


def add_to_log(log: Any, message_ids: Sequence[str]) -> str:
    """Add messages to a log that is stored as one text: the number of all marks so far, and the newest marks.  The
    stored log is a str or bytes, or None.

    >>> add_to_log("7 0000002a", ["a"])
    '8 0000002ae8b7be43'
    """
    count, marks = _split(log)
    # A log that begins again counts from the present time, so that its numbers are higher than those of a lost one.
    count = count or time.host_time_ns() // 1_000_000
    marks = (marks + "".join(text_of(mark_of(message_id)) for message_id in message_ids))[-_SIZE * MAX_MARKS :]
    return f"{count + len(message_ids)} {marks}"


def read_log(log: Any, position: int) -> tuple[int, list[int]]:
    """Return the present position of a log, and the marks that were added after an earlier position.

    >>> read_log("8 0000002ae8b7be43", 7), read_log("8 0000002a", 0)
    ((8, [3904355907]), (8, [42]))
    """
    count, marks = _split(log)
    new = count - position if position <= count else count
    texts = [marks[first : first + _SIZE] for first in range(0, len(marks), _SIZE)][-new:] if new else []
    # Another program may have written other texts.
    return count, [int(text, 16) for text in texts if is_mark(text)]


def _split(log: Any) -> tuple[int, str]:
    if isinstance(log, bytes):
        log = log.decode("ascii", "replace")
    # Another program may have written any value.
    count, _, marks = log.partition(" ") if isinstance(log, str) else ("", "", "")
    return max(0, whole_number_in(count, 0)), marks
