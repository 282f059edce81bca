"""The earlier runs of a message in its record.

A record keeps the last run in separate fields, such as STARTED_AT and EXCEPTION. When a run begins, the run before it,
the third for example, gets a field of its own, ``h3`` (:data:`.record.EARLIER_RUN`). So a store adds a run without
decoding the earlier runs. The field contains ``[started_at, end, scheduled_at]``. The end is the text of
:data:`.record.RUN_ENDED`: ``[ended_at, outcome]``, or null while it is unknown.

A failed run has its exception as a fourth item. Only the exception of the first run has a field of its own
(:data:`.record.FIRST_EXCEPTION`), because most retried messages have two runs. Redis gives up its compact encoding of a
hash for a text of more than 64 bytes, so two short texts are better than one long text. A run that has lost the message
to another delivery of the same enqueue has its token as a fourth item.
"""

from __future__ import annotations

import re
from typing import Final

from .record import (
    ATTEMPTS,
    EARLIER_RUN,
    EXCEPTION,
    FIRST_EXCEPTION,
    HEARTBEAT_AT,
    RUN_ENDED,
    RUN_TOKEN,
    SCHEDULED_AT,
    STARTED_AT,
    STATE,
    WORKING,
    Record,
)

#: Maximum number of earlier runs in a record: the first one and the last nine.
MAX_RUNS: Final = 10

#: Maximum number of bytes of all earlier runs.
MAX_HISTORY_SIZE: Final = 4096

#: Maximum number of bytes of an exception in a history.
MAX_EXCEPTION_SIZE: Final = 512

#: Maximum number of earlier runs that take at most MAX_HISTORY_SIZE in any case. Without its exception, a run takes
#: less than 64 bytes.
SMALL_HISTORY: Final = 7

#: Stored numbers of the outcomes of earlier runs.
RETRIED: Final = 1
REQUEUED: Final = 0
LOST: Final = 2

#: End of the text of RUN_ENDED of a run that has failed.
HAS_FAILED: Final = f",{RETRIED}]"

_END: Final = '..."}'
_MESSAGE: Final = '","message":"'

#: Texts of lost runs, and of runs whose end is unknown because the enqueue that contains it has not arrived.
_IS_LOST: Final = re.compile(rf"\[[^,]+,\[[^,]+,{LOST}\],").match
_WITHOUT_END: Final = re.compile(r"\[([^,]+),null,null\]").fullmatch

_TIME: Final = re.compile(r"[0-9]{1,15}").fullmatch
_NO_TEXT: Final = re.compile(r"[^ -~]").search


def run_ended(ended_at: int, *, failed: bool) -> str:
    """Make the text of :data:`.record.RUN_ENDED`, which a run stores when it puts its message back into the queue.

    Parameters:
      ended_at(int): Epoch milliseconds.
      failed(bool): Whether the run has raised the exception that it stores.
    """
    return f"[{ended_at},{RETRIED if failed else REQUEUED}]"


def run_lost(heartbeat_at: str | None) -> str:
    """Make the text of :data:`.record.RUN_ENDED` for a run whose worker died, when no other run of the message follows.

    >>> run_lost("9"), run_lost(None)
    ('[9,2]', '[null,2]')
    """
    return f"[{heartbeat_at if heartbeat_at is not None and _TIME(heartbeat_at) else 'null'},{LOST}]"


def kept_runs(attempts: int) -> tuple[int, ...]:
    """Return the numbers of the earlier runs that a record may have during a run: the first and the last nine.

    >>> kept_runs(3), kept_runs(13)
    ((1, 2), (1, 4, 5, 6, 7, 8, 9, 10, 11, 12))
    """
    return (1, *range(max(2, attempts - MAX_RUNS + 1), attempts)) if attempts > 1 else ()


def keep_run(record: Record, attempts: int, *, requeued: bool) -> None:
    """Keep the last run of a record as an earlier run when the next run begins, and drop runs that are too old.

    >>> record = {"s": "0", "A": "1", "S": "5", "N": "[9,0]"}
    >>> keep_run(record, 2, requeued=False)
    >>> record["h1"]
    '[5,[9,0],null]'

    Parameters:
      record(Record): The record before the run begins. The function changes it.
      attempts(int): Number of the run that begins.
      requeued(bool): Whether the run that begins belongs to a later enqueue than the one in the record.
    """
    last = int(record.get(ATTEMPTS, "0"))
    if last < 1:
        return
    ended, token = record.get(RUN_ENDED), ""
    if ended is None:
        # The end of a lost run is unknown: its last heartbeat stands for it.
        is_lost = record[STATE] == str(WORKING) and not requeued
        ended = f"[{record.get(HEARTBEAT_AT, 'null')},{LOST}]" if is_lost else "null"
    if RUN_TOKEN in record and not requeued:
        token = f',"{record[RUN_TOKEN]}"'
    text = f"{record.get(STARTED_AT, 'null')},{ended},{record.get(SCHEDULED_AT, 'null')}{token}"
    # If no enqueue has ended the last run, the exception in the record may be that of a run before it.
    _put(record, last, text, {} if token else record)
    for number in range(max(2, last - MAX_RUNS + 1), min(attempts - MAX_RUNS, last) + 1):
        record.pop(f"{EARLIER_RUN}{number}", None)
    _fit(record, attempts)


def complete_run(record: Record, enqueue: Record) -> None:
    """Complete the end of an earlier run, when the enqueue with which the run has ended arrives after the start
    of a later run. Lost runs of this enqueue may stand between the earlier run and the present one.

    >>> record = {"A": "2", "h1": "[5,null,null]"}
    >>> complete_run(record, {"N": "[9,0]"})
    >>> record["h1"]
    '[5,[9,0],null]'

    Parameters:
      record(Record): The function changes it.
      enqueue(Record): The fields of the enqueue, among them RUN_ENDED.
    """
    attempts = int(record.get(ATTEMPTS, "0"))
    number = attempts - 1
    while number > 1 and _IS_LOST(record.get(f"{EARLIER_RUN}{number}", "")):
        number -= 1
    begun = _WITHOUT_END(record.get(f"{EARLIER_RUN}{number}", ""))
    if begun is not None:
        _put(record, number, f"{begun[1]},{enqueue[RUN_ENDED]},{enqueue.get(SCHEDULED_AT, 'null')}", enqueue)
        _fit(record, attempts)


def is_earlier_run(record: Record, run_token: int) -> bool:
    """Whether a run is an earlier run of a record, and has lost its message to a later run."""
    end = f',"{run_token}"]'
    runs = kept_runs(int(record.get(ATTEMPTS, "0")))
    return any(record.get(f"{EARLIER_RUN}{number}", "").endswith(end) for number in runs)


def _put(record: Record, number: int, text: str, fields: Record) -> None:
    """Store a run, and its exception if it has one."""
    if EXCEPTION in fields and fields.get(RUN_ENDED, "").endswith(HAS_FAILED):
        exception = _cut_exception(fields[EXCEPTION])
        if exception is not None and number == 1:
            record[FIRST_EXCEPTION] = exception
        elif exception is not None:
            text = f"{text},{exception}"
    record[f"{EARLIER_RUN}{number}"] = f"[{text}]"


def _fit(record: Record, attempts: int) -> None:
    """Drop old runs, but not the first one, until the others fit."""
    runs = kept_runs(attempts)
    if len(runs) <= SMALL_HISTORY:
        return
    names = [f"{EARLIER_RUN}{number}" for number in runs]
    size = sum([len(record.get(name, "")) for name in (FIRST_EXCEPTION, *names)])
    for name in names[1:]:
        if size <= MAX_HISTORY_SIZE:
            return
        size -= len(record.pop(name, ""))


def _cut_exception(text: str) -> str | None:
    """Cut the stored text of an exception to its maximum size. Return None if it cannot be cut.

    >>> (_cut_exception('{"type":"ValueError","message":"' + "x" * 1000 + '"}') or "")[-12:]
    'xxxxxxx..."}'
    """
    if len(text) <= MAX_EXCEPTION_SIZE:
        return text
    if not text.startswith('{"type":"') or not text.endswith('"}') or _NO_TEXT(text):
        return None
    kept = MAX_EXCEPTION_SIZE - len(_END)
    message = text.find(_MESSAGE)
    if message >= 0 and message + len(_MESSAGE) > kept:
        # The type leaves no room for the message: cut before the message, or within the type.
        kept = min(kept, message)
    # Do not cut within an escape sequence. The longest one, such as \u00e4, has six characters. The last of several
    # adjacent backslashes begins an escape sequence only if their number is odd.
    escape = text.rfind("\\", kept - 5, kept)
    begin = escape
    while begin >= 0 and text[begin] == "\\":
        begin -= 1
    if (escape - begin) % 2 == 1 and (escape == kept - 1 or text[escape + 1] == "u"):
        kept = escape
    return text[:kept] + _END
