"""Records: the status of a message as a store holds it.

A record maps *stored names* to JSON texts.  The library's own fields have the short stored names
below, so that a record of a few fields keeps Redis' compact encoding of hashes.  A user's field ``step`` has
the stored name ``:step``, so that it never collides with the library's fields.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum
from itertools import chain
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, NamedTuple

#: A status in a store: JSON texts by stored names.
Record = dict[str, str]

#: Time to live of the status of a message that waits or runs, in milliseconds: seven days, which is
#: Dramatiq's default for the longest delay of a retry.
DEFAULT_LIVE_TTL: Final = 604_800_000

#: Time to live of the status of a finished message, in milliseconds.
DEFAULT_STATUS_TTL: Final = 3_600_000

#: Interval between heartbeats of running messages, in milliseconds.
DEFAULT_HEARTBEAT_INTERVAL: Final = 15_000

#: Number of heartbeats in a row that a working message misses before it counts as stalled.
STALLED_AFTER: Final = 3

#: Number of milliseconds after which a message that is due and still queued counts as stalled: a day.  Few messages
#: wait for a worker that long.  A status without writes lives for seven days by default.
QUEUE_PATIENCE: Final = 86_400_000

#: Longest time to live, in milliseconds: a hundred years.  Stores add a time to live to the current time, and
#: Redis answers with an error if the sum overflows.
LONGEST_TTL: Final = 36_525 * 86_400_000

#: Total of a progress whose total was never set.
DEFAULT_TOTAL: Final = 100

#: Stored total of a progress whose total is unknown.
UNKNOWN_TOTAL: Final = "null"

#: Prefix of the stored name of a user's field.
USER_PREFIX: Final = ":"

#: Prefix of the stored name of a deletion mark.  With the mark, a field that was deleted does not come back from an
#: enqueue that arrives later.  The deletion mark of ``:step`` is ``-:step``.
DELETED_PREFIX: Final = "-"

# Stored names of the library's own fields.
STATE: Final = "s"
VERSION: Final = "v"
ORIGIN: Final = "e"
GENERATION: Final = "n"
RUN_TOKEN: Final = "r"
SEQUENCE: Final = "q"
LIVE_TTL: Final = "L"
STATUS_TTL: Final = "T"
ACTOR_NAME: Final = "a"
QUEUE_NAME: Final = "Q"
ENQUEUED_AT: Final = "E"
SCHEDULED_AT: Final = "D"
STARTED_AT: Final = "S"
FINISHED_AT: Final = "F"
UPDATED_AT: Final = "U"
HEARTBEAT_AT: Final = "H"
HEARTBEAT_INTERVAL: Final = "B"
PROGRESS: Final = "p"
TOTAL: Final = "t"
RATE: Final = "R"
RATE_WRITTEN_AT: Final = "W"
ATTEMPTS: Final = "A"
EXCEPTION: Final = "x"
SKIPPED: Final = "k"
#: Whether the message has failed because it was cancelled.
CANCELLED: Final = "c"
CANCEL_REQUESTED_AT: Final = "C"
CANCEL_SEEN_AT: Final = "cs"
CANCEL_REASON: Final = "cr"
ARGS: Final = "ia"
KWARGS: Final = "ik"
TRACEBACK: Final = "it"

#: Beginning of the stored name of an earlier run: ``h1`` for the first run.  A message has it from its second run on
#: (``history.py``).
EARLIER_RUN: Final = "h"
#: Stored name of the exception of the first run, from the second run on.
FIRST_EXCEPTION: Final = "x1"
#: Stored name of the end of a run that has requeued its message or was lost: time and outcome.
RUN_ENDED: Final = "N"

#: Stored name of the user's field ``result``, which the middleware writes as well.
RESULT: Final = USER_PREFIX + "result"

#: Stored name of the list of fields that are missing because the store had no room for their newest values.
#: Only stores that limit the size of a record write it.
TRUNCATED: Final = "d"

#: Value of RATE_WRITTEN_AT while no write from outside of the run has been stored since the run stored its rate.  The
#: first such write replaces it with the time of the run's last write.
STILL_CURRENT: Final = "null"


class State(str, Enum):
    """State of a message.  A state equals its text: ``State.WORKING == "working"``."""

    QUEUED = "queued"
    WORKING = "working"
    COMPLETED = "completed"
    FAILED = "failed"

    def __str__(self) -> str:
        return self.value

    @property
    def finished(self) -> bool:
        """Whether Dramatiq is done with a message in this state."""
        return self is State.COMPLETED or self is State.FAILED


#: States by their stored numbers.
STATES: Final = (State.QUEUED, State.WORKING, State.COMPLETED, State.FAILED)

#: First line of a record that is stored as one text.  It names the format.
DOCUMENT_MARK: Final = "dramatiq-status 1"

_FIRST_LINE: Final = DOCUMENT_MARK + "\n"

_STATE_TEXTS: Final = frozenset("0123")

# Numbers that all stores read alike.  Python's int() also accepts "1_0", and Lua's tonumber() "0x10".  Lua is exact
# up to 15 digits.
_WHOLE_NUMBERS: Final = re.compile(r"(?:-?[0-9]{1,15} ){5}-?[0-9]{1,15}").fullmatch
_NUMBER: Final = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?").fullmatch

#: Maximum number of digits of a whole number.  Every store is exact up to here.
_MAX_DIGITS: Final = 15

_WHOLE_NUMBER: Final = re.compile(rf"-?[0-9]{{1,{_MAX_DIGITS}}}").fullmatch

#: Largest whole number that is accepted from a message, a caller or a store.
MAX_WHOLE_NUMBER: Final = 10**_MAX_DIGITS - 1

#: Exclusive upper limit of the magnitude of a counted field.  Redis' script counts in doubles, which are exact up
#: to here.
COUNT_LIMIT: Final = 2**53

#: Maximum number of characters of a stored number to which a count can be added.
_LONGEST_NUMBER: Final = 40

#: Stored numbers of the states.
QUEUED: Final = 0
WORKING: Final = 1
COMPLETED: Final = 2
FAILED: Final = 3


def to_document(record: Record) -> str:
    """Write a record as one text, for stores that keep one value for each message.

    The text has each name and each JSON text on a line of its own: neither contains a line break.
    """
    return _FIRST_LINE + "\n".join(chain.from_iterable(record.items()))


def from_document(document: str) -> Record | None:
    """Read a record from its text.  Return None for a text that is no sound record.

    >>> from_document(to_document({"s": "0", "v": "1", "e": "7", "n": "1"}))
    {'s': '0', 'v': '1', 'e': '7', 'n': '1'}
    """
    mark, *pairs = document.split("\n")
    return from_pairs(pairs) if mark == DOCUMENT_MARK and len(pairs) % 2 == 0 else None


def from_pairs(pairs: Iterable[str]) -> Record | None:
    """Make a record from alternating stored names and JSON texts.  Return None if it is not sound."""
    rest = iter(pairs)
    record = dict(zip(rest, rest))
    return record if is_sound(record) else None


def whole_number_in(text: str, default: int) -> int:
    """Read a whole number from a text that another program may have written.  Return the default for a text that
    is not a whole number of at most 15 digits.

    >>> whole_number_in("-12", 0), whole_number_in("9" * 16, 0), whole_number_in("1_0", 0)
    (-12, 0, 0)
    """
    return int(text) if _WHOLE_NUMBER(text) else default


def number_text(value: int | float) -> str:
    """Write a number as every store writes it: whole numbers have no fraction.

    >>> number_text(3.0), number_text(0.5)
    ('3', '0.5')
    """
    return str(int(value)) if value == int(value) else repr(float(value))


def number_of(text: str) -> int | float:
    """Read a number that :func:`number_text` has written.

    >>> number_of("3"), number_of("0.5")
    (3, 0.5)
    """
    try:
        return int(text)
    except ValueError:
        return float(text)


class Counts(NamedTuple):
    """Values of a progress.

    Parameters:
      progress(int | float): Number of units done; None if no progress was reported.
      total(int | float): 100 if no total was set; None if the total is unknown.
      rate(float): Units a second; None while it is unknown.
      set(bool): Whether a total was set.  An unknown total counts as set.
    """

    progress: int | float | None = None
    total: int | float | None = DEFAULT_TOTAL
    rate: float | None = None
    set: bool = False


def counts_in(progress: str | None, total: str | None, rate: float | None) -> Counts:
    """Read a stored progress and a stored total.  None stands for a value that was never set.

    >>> counts_in("3", None, None), counts_in("3", "null", 0.5)
    (Counts(progress=3, total=100, rate=None, set=False), Counts(progress=3, total=None, rate=0.5, set=True))
    """
    count = None if progress is None else number_of(progress)
    if total is None:
        return Counts(count, rate=rate)
    return Counts(count, None if total == UNKNOWN_TOTAL else number_of(total), rate, True)


def is_sound(record: Record) -> bool:
    """Whether a record has the fields that :func:`dramatiq_status.update.apply` needs, with usable numbers.

    A record that is not sound counts as missing: another program may have written under its key.
    """
    get = record.get
    if get(STATE) not in _STATE_TEXTS or ORIGIN not in record or (RUN_TOKEN in record and SEQUENCE not in record):
        return False
    numbers = (
        f"{get(VERSION)} {get(GENERATION)} {get(SEQUENCE, 0)} "
        f"{get(LIVE_TTL, 0)} {get(SCHEDULED_AT, 0)} {get(ATTEMPTS, 0)}"
    )
    progress = get(PROGRESS, "0")
    # float() turns a number that is too large into infinity.
    return bool(_WHOLE_NUMBERS(numbers) and _NUMBER(progress) and isfinite(float(progress)))


def is_finished(record: Record) -> bool:
    """Whether Dramatiq is done with the message of a record."""
    return record[STATE] > "1"


def live_ttl_of(record: Record, now: int) -> int:
    """Return the time to live of an unfinished record in milliseconds, counted from `now`: its ``live_ttl`` plus
    the rest of its message's delay.
    """
    delay = int(record[SCHEDULED_AT]) - now if SCHEDULED_AT in record else 0
    return limited_ttl(int(record.get(LIVE_TTL, DEFAULT_LIVE_TTL)) + max(0, delay))


def limited_ttl(ttl: int) -> int:
    """Limit a time to live to the range that every store accepts."""
    return min(max(1, ttl), LONGEST_TTL)


def count_on(text: str | None, n: int | float) -> str | None:
    """Add to a stored number.  Return None if the text is no number, or if the sum is not below 2**53.

    >>> count_on("3", 2), count_on(None, 2), count_on("null", 0.5), count_on('"a"', 2)
    ('5', '2', '0.5', None)
    """
    before: int | float = 0
    if text is not None and text != "null":
        if len(text) > _LONGEST_NUMBER or not _NUMBER(text):
            return None
        before = number_of(text)
        if not -COUNT_LIMIT < before < COUNT_LIMIT:
            return None
    total = before + n
    return number_text(total) if -COUNT_LIMIT < total < COUNT_LIMIT else None


def at_total(progress: str | None, total: str | None) -> Record:
    """Return the field that sets a stored progress to a stored total.  If the total is unknown, return the field that
    sets the total to the progress.

    >>> at_total("3", "50"), at_total("3", None), at_total("3", "null")
    ({'p': '50'}, {'p': '100'}, {'t': '3'})
    """
    if total is None:
        return {PROGRESS: str(DEFAULT_TOTAL)}
    if total == UNKNOWN_TOTAL or count_on(total, 0) is None:
        return {TOTAL: progress or "0"}
    return {PROGRESS: total}


def deletion_marks(names: Iterable[str]) -> Record:
    """Make the deletion marks of fields.

    >>> deletion_marks([":step"])
    {'-:step': '1'}
    """
    return {DELETED_PREFIX + name: "1" for name in names}


if TYPE_CHECKING:
    from .update import apply as apply
else:

    def __getattr__(name: str) -> Any:
        """Return :func:`dramatiq_status.update.apply`: ``dramatiq_status.record.apply`` is its public path."""
        if name != "apply":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from .update import apply

        return apply
