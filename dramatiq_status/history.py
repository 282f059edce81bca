"""The history of a message's runs: its text in a record.

A record keeps the last run in separate fields, such as STARTED_AT and EXCEPTION. When a second run begins, the field
:data:`.record.HISTORY` is added. It contains the earlier runs, as a JSON list of ``[attempt, started_at,
ended_at, outcome, exception, scheduled_at]``. The items of the list are separated by a comma and a tab, which no JSON
text of the library has, so that a store can add and remove items without decoding them.
"""

from __future__ import annotations

import re
from typing import Final

from .record import (
    ATTEMPTS,
    EXCEPTION,
    HEARTBEAT_AT,
    HISTORY,
    RUN_ENDED,
    SCHEDULED_AT,
    STARTED_AT,
    STATE,
    WORKING,
    Record,
)

#: Maximum number of earlier runs in a record: the first one and the last nine.
MAX_RUNS: Final = 10

#: Maximum number of bytes of a history.
MAX_HISTORY_SIZE: Final = 4096

#: Maximum number of bytes of an exception in a history.
MAX_EXCEPTION_SIZE: Final = 512

#: Stored numbers of the outcomes of earlier runs.
RETRIED: Final = 1
REQUEUED: Final = 0
LOST: Final = 2

_SEPARATOR: Final = ",\t"
_END: Final = '..."}'
_MESSAGE: Final = '","message":"'

#: Items of lost runs, and of runs whose end is unknown because the enqueue with it has not arrived.
_IS_LOST: Final = re.compile(rf"\[[^,]+,[^,]+,[^,]+,{LOST},").match
_WITHOUT_END: Final = re.compile(rf"(\[[0-9]{{1,15}},(?:[0-9]{{1,15}}|null)),null,{REQUEUED},null,null\]").fullmatch

_RUN_ENDED: Final = re.compile(r"\[([0-9]{1,15}),([01])\]").fullmatch
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
    return f"[{_time_in(heartbeat_at)},{LOST}]"


def add_run(record: Record, *, requeued: bool = False) -> str | None:
    """Make the history that a record has when its next run begins; None where there is no earlier run.

    >>> add_run({"s": "0", "A": "1", "S": "5", "N": "[9,0]"})
    '[[1,5,9,0,null,null]]'

    Parameters:
      record(Record): The record before the run begins.
      requeued(bool): Whether the run that begins belongs to a later enqueue than the one in the record.
    """
    if ATTEMPTS not in record:
        return None
    runs = _runs_in(record)
    runs.append(_run_of(record, requeued=requeued))
    return _text_of(runs)


def complete_run(record: Record, enqueue: Record) -> Record:
    """Complete the end of a run in the history, when the enqueue with which the run has ended arrives after the start
    of the next run. A run of a later delivery of the same enqueue may have been lost since.

    >>> complete_run({"h": "[[1,5,null,0,null,null]]"}, {"N": "[9,0]"})
    {'h': '[[1,5,9,0,null,null]]'}

    Parameters:
      record(Record)
      enqueue(Record): The fields of the enqueue.

    Returns:
      Record: The new history; empty if it stays unchanged.
    """
    ended, runs = _RUN_ENDED(enqueue.get(RUN_ENDED, "")), _runs_in(record)
    last = len(runs) - 1
    while last > 0 and _IS_LOST(runs[last]):
        last -= 1
    begun = _WITHOUT_END(runs[last]) if runs else None
    if ended is None or begun is None:
        return {}
    runs[last] = f"{begun[1]},{_end_of(enqueue, ended)}]"
    return {HISTORY: _text_of(runs)}


def _runs_in(record: Record) -> list[str]:
    history = record.get(HISTORY, "")
    return history[1:-1].split(_SEPARATOR) if history.startswith("[[") and history.endswith("]]") else []


def _text_of(runs: list[str]) -> str:
    while len(runs) > MAX_RUNS or (len(runs) > 1 and sum(map(len, runs)) + 2 * len(runs) > MAX_HISTORY_SIZE):
        del runs[min(1, len(runs) - 2)]
    return f"[{_SEPARATOR.join(runs)}]"


def _run_of(record: Record, *, requeued: bool) -> str:
    """Make the item of the last run of a record."""
    begin = f"[{record[ATTEMPTS]},{_time_in(record.get(STARTED_AT))}"
    ended = _RUN_ENDED(record.get(RUN_ENDED, ""))
    if ended is not None:
        return f"{begin},{_end_of(record, ended)}]"
    if record[STATE] == str(WORKING) and not requeued:
        # The end of a lost run is unknown: its last heartbeat stands for it.
        ended_at, outcome = _time_in(record.get(HEARTBEAT_AT)), LOST
    else:
        ended_at, outcome = "null", REQUEUED
    return f"{begin},{ended_at},{outcome},null,{_time_in(record.get(SCHEDULED_AT))}]"


def _end_of(fields: Record, ended: re.Match[str]) -> str:
    """Make the part of an item that begins with the run's end."""
    exception = _cut_exception(fields.get(EXCEPTION, "null")) if int(ended[2]) == RETRIED else "null"
    return f"{ended[1]},{ended[2]},{exception},{_time_in(fields.get(SCHEDULED_AT))}"


def _time_in(text: str | None) -> str:
    return text if text is not None and _TIME(text) else "null"


def _cut_exception(text: str) -> str:
    """Cut the stored text of an exception to its maximum size.

    >>> _cut_exception('{"type":"ValueError","message":"' + "x" * 1000 + '"}')[-12:]
    'xxxxxxx..."}'
    """
    if not text.startswith('{"type":"') or not text.endswith('"}') or _NO_TEXT(text):
        return "null"
    if len(text) <= MAX_EXCEPTION_SIZE:
        return text
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
