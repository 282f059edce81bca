"""What the stores hold for a message: stored names, states, and what a sound record is.

A record maps *stored names* to JSON texts.  Fields that the library
writes itself have the short names below (a job in Redis then fits its
compact hash encoding); a user's field ``step`` is stored as ``:step``,
so that the two can never collide.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum
from itertools import chain
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, NamedTuple

#: A stored status: stored name -> JSON text.
Record = dict[str, str]

#: How long a status lives while its message waits or runs, in
#: milliseconds.  Seven days is the longest delay that Dramatiq allows.
DEFAULT_LIVE_TTL: Final = 604_800_000

#: How long a status lives after its message finished, in milliseconds.
DEFAULT_STATUS_TTL: Final = 3_600_000

#: How often a worker says of its running messages that they still run,
#: in milliseconds.
DEFAULT_HEARTBEAT_INTERVAL: Final = 15_000

#: The longest time to live, in milliseconds: a hundred years.  Stores add
#: it to the current time; Redis answers with an error where that overflows.
LONGEST_TTL: Final = 36_525 * 86_400_000

#: The total of a progress whose total was never set.
DEFAULT_TOTAL: Final = 100

#: The stored total of a progress whose total is unknown.
UNKNOWN_TOTAL: Final = "null"

#: What the stored name of a user's field starts with.
USER_PREFIX: Final = ":"

#: Prefix of the stored name that marks a field as deleted: an enqueue that arrives later does not bring it back.
DELETED_PREFIX: Final = "-"

# The stored names of the library's own fields.
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
ARGS: Final = "ia"
KWARGS: Final = "ik"
TRACEBACK: Final = "it"

#: The stored name of the user's field ``result``, which the middleware writes as well.
RESULT: Final = USER_PREFIX + "result"

#: Stored names of fields whose newest value the store had no room for, a JSON list.  Only stores that
#: limit the size of a record write it.
TRUNCATED: Final = "d"

#: Value of RATE_WRITTEN_AT while no other writer has written since the run stored its rate.  The first outside write
#: replaces it with the time of the run's last write.
STILL_CURRENT: Final = "null"


class State(str, Enum):
    """The four states of a message.  Each equals its name: ``State.WORKING == "working"``."""

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


#: The states by their stored numbers.
STATES: Final = (State.QUEUED, State.WORKING, State.COMPLETED, State.FAILED)

#: The first line of a record that is kept as one text: its format.
DOCUMENT_MARK: Final = "dramatiq-status 1"

_FIRST_LINE: Final = DOCUMENT_MARK + "\n"

_STATE_TEXTS: Final = frozenset("0123")

# As every store reads them: Python would take "1_0" for a number, and Lua "0x10"; up to 15 digits, Lua is exact.
_WHOLE_NUMBERS: Final = re.compile(r"(?:-?[0-9]{1,15} ){5}-?[0-9]{1,15}").fullmatch
_NUMBER: Final = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?").fullmatch

#: Maximum number of digits of a whole number from outside: every store keeps as many exactly.
_MAX_DIGITS: Final = 15

_WHOLE_NUMBER: Final = re.compile(rf"-?[0-9]{{1,{_MAX_DIGITS}}}").fullmatch

#: Largest whole number that is read from a message, a caller or a store.
MAX_WHOLE_NUMBER: Final = 10**_MAX_DIGITS - 1

#: Magnitude that a counted field stays below: Redis' script counts in doubles, which are exact up to here.
COUNT_LIMIT: Final = 2**53

#: Maximum number of characters of a number that can be counted on.
_LONGEST_NUMBER: Final = 40

#: The stored numbers of the states.
QUEUED: Final = 0
WORKING: Final = 1
COMPLETED: Final = 2
FAILED: Final = 3


def to_document(record: Record) -> str:
    """Write a record as one text, for stores that keep one value a message.

    Neither names nor JSON texts ever hold a line break, so lines it is.
    """
    return _FIRST_LINE + "\n".join(chain.from_iterable(record.items()))


def from_document(document: str) -> Record | None:
    """Read a record back; None where the text is not one.

    >>> from_document(to_document({"s": "0", "v": "1", "e": "7", "n": "1"}))
    {'s': '0', 'v': '1', 'e': '7', 'n': '1'}
    """
    mark, *pairs = document.split("\n")
    return from_pairs(pairs) if mark == DOCUMENT_MARK and len(pairs) % 2 == 0 else None


def from_pairs(pairs: Iterable[str]) -> Record | None:
    """Make a record of stored names and JSON texts in turn; None where it is not sound."""
    rest = iter(pairs)
    record = dict(zip(rest, rest))
    return record if is_sound(record) else None


def whole_number_in(text: str, default: int) -> int:
    """Read a whole number from a text that another program may have written. A text that is not a whole number of at
    most 15 digits becomes the default.

    >>> whole_number_in("-12", 0), whole_number_in("9" * 16, 0), whole_number_in("1_0", 0)
    (-12, 0, 0)
    """
    return int(text) if _WHOLE_NUMBER(text) else default


def number_text(value: int | float) -> str:
    """Write a number the way every store writes it: whole ones without a fraction.

    >>> number_text(3.0), number_text(0.5)
    ('3', '0.5')
    """
    return str(int(value)) if value == int(value) else repr(float(value))


def number_of(text: str) -> int | float:
    """Read a number back.

    >>> number_of("3"), number_of("0.5")
    (3, 0.5)
    """
    try:
        return int(text)
    except ValueError:
        return float(text)


class Counts(NamedTuple):
    """The known values of a progress.

    Parameters:
      progress: The count; None where none was reported.
      total: 100 where none was set; None where it is unknown.
      rate: Units a second; None while unknown.
      set: Whether a total was set, or set to unknown.
    """

    progress: int | float | None = None
    total: int | float | None = DEFAULT_TOTAL
    rate: float | None = None
    set: bool = False


def counts_in(progress: str | None, total: str | None, rate: float | None) -> Counts:
    """Read a stored progress and total, each None where it was never set.

    >>> counts_in("3", None, None), counts_in("3", "null", 0.5)
    (Counts(progress=3, total=100, rate=None, set=False), Counts(progress=3, total=None, rate=0.5, set=True))
    """
    count = None if progress is None else number_of(progress)
    if total is None:
        return Counts(count, rate=rate)
    return Counts(count, None if total == UNKNOWN_TOTAL else number_of(total), rate, True)


def is_sound(record: Record) -> bool:
    """Whether a record can be worked with.  One that cannot (a foreign
    value under our key, say) counts as missing.
    """
    get = record.get
    if get(STATE) not in _STATE_TEXTS or ORIGIN not in record or (RUN_TOKEN in record and SEQUENCE not in record):
        return False
    numbers = (
        f"{get(VERSION)} {get(GENERATION)} {get(SEQUENCE, 0)} "
        f"{get(LIVE_TTL, 0)} {get(SCHEDULED_AT, 0)} {get(ATTEMPTS, 0)}"
    )
    progress = get(PROGRESS, "0")
    # What is too large for a float is as bad as what is infinite.
    return bool(_WHOLE_NUMBERS(numbers) and _NUMBER(progress) and isfinite(float(progress)))


def is_finished(record: Record) -> bool:
    """Whether Dramatiq is done with the record's message."""
    return record[STATE] > "1"


def live_ttl_of(record: Record, now: int) -> int:
    """How long an unfinished record lives from `now` on, in milliseconds: its
    own live time to live, on top of the delay that is left of its message.
    """
    delay = int(record[SCHEDULED_AT]) - now if SCHEDULED_AT in record else 0
    return limited_ttl(int(record.get(LIVE_TTL, DEFAULT_LIVE_TTL)) + max(0, delay))


def limited_ttl(ttl: int) -> int:
    """A time to live that every store takes."""
    return min(max(1, ttl), LONGEST_TTL)


def count_on(text: str | None, n: int | float) -> str | None:
    """Add to a stored number; None where the text is none, or the sum is not one that every store can count with.

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


def deletion_marks(names: Iterable[str]) -> Record:
    """Make the fields that mark fields as deleted, by their stored names."""
    return {DELETED_PREFIX + name: "1" for name in names}


if TYPE_CHECKING:
    from .update import apply as apply
else:

    def __getattr__(name: str) -> Any:
        """Return `apply`, whose public path is here, from the module above this one."""
        if name != "apply":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from .update import apply

        return apply
