"""What every store has to do, as a class of tests to mix in.

It needs pytest, which nothing else of this package does.  A backend's
test class inherits from :class:`BackendConformance` and gives it the
fixture ``backend``:

>>> class TestMyBackend(BackendConformance):
...     @pytest.fixture
...     def backend(self):
...         return MyBackend()

What needs more than that is skipped, and says what it needs, until the
class has it too: the fixtures ``make_backend`` (a second namespace) and
``outage`` (a server to pause and to stop), the hooks ``ttl_of`` and
``set_ttl`` (a look at the time to live), ``damages`` (what else may lie
under a key) and ``refusals`` (how to make the store answer with
errors).  A backend without :meth:`.StatusBackend.find` does not list,
and has to say why.  One whose :meth:`.StatusBackend.subscribe` returns
None is not asked what it tells.

For asserts that tell what they have compared, ``conftest.py`` says,
before the module is imported:

>>> pytest.register_assert_rewrite("dramatiq_status.testing.conformance")

``examples/third_party_backend.py`` is a whole backend with its test.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Protocol
from uuid import uuid4

import pytest

from ...backend import Listed, Query, StatusBackend, Subscription, answered, now_ms
from ...checks import MAX_MESSAGE_ID_SIZE
from ...cursor import MAX_POSITION, Cursor
from ...decoding import take_snapshot
from ...errors import BackendError, NotSupported
from ...record import (
    ACTOR_NAME,
    ATTEMPTS,
    COMPLETED,
    DEFAULT_LIVE_TTL,
    EXCEPTION,
    FAILED,
    FINISHED_AT,
    HEARTBEAT_AT,
    HEARTBEAT_INTERVAL,
    NOT_SINCE,
    PLACE,
    PROGRESS,
    QUEUED,
    RATE,
    RATED,
    RUN,
    STARTED_AT,
    STATE,
    TOTAL,
    UPDATED_AT,
    VERSION,
    WORKING,
    Record,
    deletion_marks,
)
from ...registry import StatusRegistry
from ...update import Changes, Epoch, Kind, Outcome, Update, apply

#: How many writes each of two threads makes at the same time.
WRITES = 2_000

#: How many times a client is interrupted, and how many calls it makes for that at most.
INTERRUPTS, INTERRUPTED_CALLS = 300, 20_000

#: For how many seconds a change that is to be told is waited for.
HEARING = 20.0

DAY = 86_400_000


class PausableServer(Protocol):
    """A server of a test's own."""

    def start(self) -> Any: ...
    def stop(self) -> Any: ...
    def pause(self) -> Any: ...
    def resume(self) -> Any: ...


# Updates as the layers above write them.


def enqueue(root: int = 7, number: int = 1, **fields: str) -> Update:
    return Update(Kind.ENQUEUE, Epoch(root, number), fields=named(fields))


def start(run: int, root: int = 7, number: int = 1, *, place: int = 1, create: bool = True, **fields: str) -> Update:
    return Update(
        Kind.RUN, Epoch(root, number), run, place, start=True, create=create, fields={STARTED_AT: "5", **named(fields)}
    )


def write(
    run: int,
    place: int,
    root: int = 7,
    number: int = 1,
    *,
    create: bool = False,
    increment: int | float = 0,
    state: int | None = None,
    **fields: str,
) -> Update:
    return Update(
        Kind.RUN,
        Epoch(root, number),
        run,
        place,
        create=create,
        increment=increment,
        state=state,
        fields=named(fields),
    )


def finish(
    run: int,
    place: int = 9,
    root: int = 7,
    number: int = 1,
    *,
    state: int = COMPLETED,
    create: bool = False,
    ttl: int = 3_600_000,
    increment: int | float = 0,
    **fields: str,
) -> Update:
    return Update(
        Kind.RUN,
        Epoch(root, number),
        run,
        place,
        create=create,
        state=state,
        ttl=ttl,
        increment=increment,
        fields={FINISHED_AT: "6", **named(fields)},
    )


def outside(*, increment: int | float = 0, state: int | None = None, ttl: int = 3_600_000, **fields: str) -> Update:
    return Update(Kind.OUTSIDE, increment=increment, state=state, ttl=ttl, fields=named(fields))


def counting(update: Update, **counts: int | float) -> Update:
    """The same update, which also counts on fields."""
    return update._replace(changes=Changes({_stored(name): n for name, n in counts.items()}))


def deleting(update: Update, *names: str) -> Update:
    """The same update, which also deletes users' fields, and marks them as deleted."""
    stored = frozenset(map(_stored, names))
    fields = {**update.fields, **deletion_marks(stored)}
    return update._replace(fields=fields, changes=(update.changes or Changes())._replace(deleted=stored))


def heartbeat(run: int) -> Update:
    return Update(Kind.HEARTBEAT, run=run)


def named(fields: dict[str, str]) -> Record:
    """Keywords of one or two letters, or in capitals, are the library's own fields; others are users'."""
    return {_stored(name): text for name, text in fields.items()}


def _stored(name: str) -> str:
    return name if len(name) <= 2 else ":" + name


def read_many(backend: StatusBackend, message_ids: Sequence[str]) -> list[Record | None]:
    """Read records of which none is unavailable."""
    return [answered(found) for found in backend.read_many(message_ids)]


def fold(updates: list[Update], now: int = 1000) -> Record | None:
    """What `apply` makes of updates, one after another."""
    record = None
    for update in updates:
        record = apply(record, update, now).record
    return record


def timeless(record: Record | None) -> dict[str, Any] | None:
    """A record decoded, without the moments that the store's clock gave it."""
    if record is None:
        return None
    moments = {UPDATED_AT, HEARTBEAT_AT, *([] if record.get(RATED) == NOT_SINCE else [RATED])}
    return {name: "moment" if name in moments else json.loads(text) for name, text in record.items()}


#: What was there, what comes, and what becomes of it.  There is a line for every branch of `apply`.
CASES: dict[str, tuple[list[Update], Update, Outcome]] = {
    # Enqueues
    "enqueue, first": ([], enqueue(step='"a"'), Outcome.APPLIED),
    "enqueue, again": ([enqueue()], enqueue(), Outcome.ASIDE),
    "enqueue, after the start": ([start(1)], enqueue(user_id="42"), Outcome.ASIDE),
    "enqueue, after the end": ([start(1), finish(1)], enqueue(user_id="42"), Outcome.ASIDE),
    "enqueue, older": ([enqueue(number=2)], enqueue(number=1), Outcome.ASIDE),
    "requeue of a running message": (
        [enqueue(), start(1)],
        enqueue(number=2, D="9", x='{"type": "E"}'),
        Outcome.APPLIED,
    ),
    "requeue of a waiting message": ([enqueue(D="5")], enqueue(number=2), Outcome.APPLIED),
    "requeue, after its own run": ([start(1, number=2)], enqueue(number=2, D="9", x='"E"'), Outcome.ASIDE),
    "requeue of a finished message": ([start(1), finish(1)], enqueue(number=2), Outcome.APPLIED),
    "enqueue anew of a waiting message": ([enqueue(step="1")], enqueue(root=8, user_id="2"), Outcome.APPLIED),
    "enqueue anew of a running message": ([start(1, step="1")], enqueue(root=8), Outcome.APPLIED),
    "retry of another root": ([start(1, step="1")], enqueue(root=8, number=2), Outcome.ASIDE),
    "retry of another root of a finished message": ([start(1), finish(1)], enqueue(root=8, number=2), Outcome.APPLIED),
    "retry of what had no root": ([start(1, root=0, number=0, step="1")], enqueue(user_id="2"), Outcome.APPLIED),
    "enqueue anew of a finished message": ([start(1), finish(1, step="1")], enqueue(root=8), Outcome.APPLIED),
    # Starts
    "start": ([enqueue(step="1")], start(1, create=False), Outcome.APPLIED),
    "start of the unknown": ([], start(1, create=False), Outcome.MISSING),
    "start of the unknown, whole": ([], start(1, step="1"), Outcome.APPLIED),
    "start, sent again": ([enqueue(), start(1)], start(1), Outcome.DUPLICATE),
    "start of a redelivery": ([enqueue(), start(1), write(1, 2, p="5")], start(2), Outcome.APPLIED),
    "start of a retry": ([enqueue(), start(1), enqueue(number=2)], start(2, number=2), Outcome.APPLIED),
    "start of a retry before its enqueue": ([enqueue(), start(1)], start(2, number=2), Outcome.APPLIED),
    "start of an older enqueue": ([enqueue(number=2)], start(1, number=1), Outcome.REFUSED),
    "start after the end": ([start(1), finish(1)], start(2), Outcome.REFUSED),
    "start of an enqueue after the end": ([start(1), finish(1, step="1")], start(2, number=2), Outcome.APPLIED),
    "start of an enqueue after the end, not whole": (
        [start(1), finish(1)],
        start(2, number=2, create=False),
        Outcome.MISSING,
    ),
    "start of another root": ([enqueue(step="1")], start(1, root=8), Outcome.APPLIED),
    "start of another root, not whole": ([enqueue()], start(1, root=8, create=False), Outcome.MISSING),
    # Writes of a run
    "write": ([start(1)], write(1, 2, p="5", t="10", step='"b"'), Outcome.APPLIED),
    "write, sent again": ([start(1), write(1, 2, increment=3)], write(1, 2, increment=3), Outcome.DUPLICATE),
    "write, overtaken": ([start(1), write(1, 3)], write(1, 2, increment=3), Outcome.DUPLICATE),
    "write of the unknown": ([], write(1, 2, step="1"), Outcome.MISSING),
    "write of the unknown, whole": ([], write(1, 2, create=True, step="1", p="5"), Outcome.APPLIED),
    "write of an older run": ([start(1), start(2)], write(1, 2, step="1"), Outcome.REFUSED),
    "write of an older run, whole": ([start(1), start(2)], write(1, 2, create=True), Outcome.REFUSED),
    "write of a run whose message was requeued": ([start(1), enqueue(number=2)], write(1, 2), Outcome.REFUSED),
    "write after the end": ([start(1), finish(1, 3)], write(1, 4, step="1"), Outcome.REFUSED),
    "write that overtakes nothing, after the end": ([start(1), finish(1, 3)], write(1, 2), Outcome.DUPLICATE),
    "write of a state that is not final": ([start(1)], write(1, 2, state=QUEUED), Outcome.APPLIED),
    # Ends
    "completed": ([start(1, D="5", R="2", x='"E"', it='"tb"')], finish(1, p="100"), Outcome.APPLIED),
    "failed": ([start(1, D="5", R="2")], finish(1, state=FAILED, x='"E"', it='"tb"'), Outcome.APPLIED),
    "end with an increment": ([start(1), write(1, 2, p="4")], finish(1, 3, increment=2), Outcome.APPLIED),
    "end, sent again": ([start(1), finish(1)], finish(1), Outcome.DUPLICATE),
    "end of the unknown": ([], finish(1), Outcome.MISSING),
    "end of the unknown, whole": ([], finish(1, create=True, step="1"), Outcome.APPLIED),
    "end of an older run": ([start(1), start(2)], finish(1), Outcome.REFUSED),
    "end of an older run after the newer's": ([start(1), start(2), finish(2)], finish(1, create=True), Outcome.REFUSED),
    "end of a run whose message was requeued": ([start(1), enqueue(number=2)], finish(1), Outcome.REFUSED),
    "end of a run that the store never saw start": ([enqueue()], finish(1), Outcome.APPLIED),
    "field from outside beside a rate": ([start(1), write(1, 2, R="5")], outside(step="1"), Outcome.APPLIED),
    "field from outside beside a rate, the second": (
        [start(1), write(1, 2, R="5", W="null"), outside(step="1")],
        outside(step="2"),
        Outcome.APPLIED,
    ),
    "state from outside beside a rate": ([start(1), write(1, 2, R="5")], outside(state=WORKING), Outcome.APPLIED),
    "end of another root": ([enqueue()], finish(1, root=8, create=True), Outcome.REFUSED),
    "end of another root without a run": ([enqueue()], finish(0, root=8, create=True), Outcome.APPLIED),
    "end of another root without a run, not whole": ([enqueue()], finish(0, root=8), Outcome.MISSING),
    "end of an enqueue after the end": ([start(1), finish(1)], finish(2, number=2, create=True), Outcome.APPLIED),
    "end without a run": ([enqueue()], finish(0, state=FAILED, k="true"), Outcome.APPLIED),
    "end without a run, of a running message": ([start(1)], finish(0, state=FAILED), Outcome.APPLIED),
    "end without a run, of the unknown": ([], finish(0, create=True), Outcome.APPLIED),
    "end without a run, after the end": ([start(1), finish(1)], finish(0, state=FAILED), Outcome.REFUSED),
    # From outside
    "outside": ([start(1)], outside(step="1", increment=2), Outcome.APPLIED),
    "outside, the unknown": ([], outside(step="1"), Outcome.MISSING),
    "outside, after the end": ([start(1), finish(1)], outside(step="1"), Outcome.APPLIED),
    "outside, a final state": ([start(1, R="2")], outside(state=FAILED, F="6"), Outcome.APPLIED),
    "outside, a final state after the end": ([start(1), finish(1)], outside(state=FAILED), Outcome.APPLIED),
    "outside, back to life": ([start(1), finish(1)], outside(state=WORKING), Outcome.APPLIED),
    "outside, back to the queue": ([start(1)], outside(state=QUEUED), Outcome.APPLIED),
    # Counts on fields
    "count": ([start(1, rows="5")], counting(write(1, 2, step="1"), rows=3), Outcome.APPLIED),
    "count of a fraction": ([start(1, rows="5")], counting(write(1, 2), rows=0.25), Outcome.APPLIED),
    "count on an exponent": ([start(1, rows="1.5e3")], counting(write(1, 2), rows=-2), Outcome.APPLIED),
    "count on nothing": ([start(1)], counting(write(1, 2, step="1"), rows=3), Outcome.APPLIED),
    "count on null": ([start(1, rows="null")], counting(write(1, 2), rows=3), Outcome.APPLIED),
    "count behind a field": ([start(1, rows="5")], counting(write(1, 2, rows="1"), rows=3), Outcome.APPLIED),
    "count on a text": ([start(1, rows='"5"')], counting(write(1, 2, step="1"), rows=3, more=1), Outcome.UNCOUNTED),
    "count on a truth": ([start(1, rows="true")], counting(write(1, 2), rows=3), Outcome.UNCOUNTED),
    "count on a list": ([start(1, rows="[5]")], counting(write(1, 2), rows=3), Outcome.UNCOUNTED),
    "count on infinity": ([start(1, rows="1e999")], counting(write(1, 2), rows=3), Outcome.UNCOUNTED),
    "count to the largest": ([start(1, rows=str(2**53 - 2))], counting(write(1, 2), rows=1), Outcome.APPLIED),
    "count beyond the largest": ([start(1, rows=str(2**53 - 1))], counting(write(1, 2), rows=1), Outcome.UNCOUNTED),
    "count beyond the least": ([start(1, rows=str(1 - 2**53))], counting(write(1, 2), rows=-1), Outcome.UNCOUNTED),
    "count with an increment": ([start(1, p="1")], counting(write(1, 2, increment=2), rows=3), Outcome.APPLIED),
    "count, sent again": (
        [start(1), counting(write(1, 2), rows=3)],
        counting(write(1, 2), rows=3),
        Outcome.DUPLICATE,
    ),
    "count of an older run": ([start(1), start(2)], counting(write(1, 2), rows=3), Outcome.REFUSED),
    "count of the unknown": ([], counting(write(1, 2), rows=3), Outcome.MISSING),
    "count of the unknown, whole": ([], counting(write(1, 2, create=True), rows=3), Outcome.APPLIED),
    "count at the start": ([enqueue(rows="5")], counting(start(1), rows=3), Outcome.APPLIED),
    "count at the end": ([start(1, rows="5")], counting(finish(1), rows=3), Outcome.APPLIED),
    "count on a text at the end": ([start(1, rows='"5"')], counting(finish(1), rows=3), Outcome.UNCOUNTED),
    "total, the first": ([enqueue()], counting(outside(), t=3), Outcome.APPLIED),
    "total, the next": ([start(1, t="5")], counting(outside(), t=3), Outcome.APPLIED),
    "total, unknown": ([start(1, t="null")], counting(write(1, 2), t=3), Outcome.APPLIED),
    "outside, a count": ([start(1, rows="5", D="9")], counting(outside(step="1"), rows=3), Outcome.APPLIED),
    "outside, a count beside a rate": (
        [start(1), write(1, 2, R="5", W="null")],
        counting(outside(), rows=3),
        Outcome.APPLIED,
    ),
    "outside, a count on a text": ([start(1, rows='"5"')], counting(outside(step="1"), rows=3), Outcome.UNCOUNTED),
    "outside, a count on the unknown": ([], counting(outside(), rows=3), Outcome.MISSING),
    "outside, a count after the end": ([start(1), finish(1)], counting(outside(), rows=3), Outcome.APPLIED),
    "outside, a count and a state": ([start(1)], counting(outside(state=FAILED, F="6"), rows=3), Outcome.APPLIED),
    # Deletions of fields
    "deletion": ([start(1, step="1", rows="5")], deleting(write(1, 2, other="1"), "step", "more"), Outcome.APPLIED),
    "deletion of the unknown": ([], deleting(write(1, 2), "step"), Outcome.MISSING),
    "deletion, sent again": ([start(1), write(1, 2)], deleting(write(1, 2), "step"), Outcome.DUPLICATE),
    "deletion before a field": ([start(1, step="1")], deleting(write(1, 2, step="2"), "step"), Outcome.APPLIED),
    "deletion before a count": (
        [start(1, rows="5")],
        deleting(counting(write(1, 2), rows=3), "rows"),
        Outcome.APPLIED,
    ),
    "outside, a deletion": ([enqueue(step="1")], deleting(outside(), "step"), Outcome.APPLIED),
    "requeue after a deletion": (
        [enqueue(step="1"), start(1), deleting(write(1, 2), "step")],
        enqueue(number=2, step="1", other="1"),
        Outcome.APPLIED,
    ),
    "enqueue, after a deletion": (
        [start(1, step="1"), deleting(outside(), "step")],
        enqueue(step="1", other="1"),
        Outcome.ASIDE,
    ),
    # Heartbeats
    "heartbeat": ([start(1)], heartbeat(1), Outcome.APPLIED),
    "heartbeat of the unknown": ([], heartbeat(1), Outcome.MISSING),
    "heartbeat of an older run": ([start(1), start(2)], heartbeat(1), Outcome.REFUSED),
    "heartbeat of a waiting message": ([enqueue()], heartbeat(1), Outcome.REFUSED),
    "heartbeat after the end": ([start(1), finish(1)], heartbeat(1), Outcome.REFUSED),
}

#: JSON texts that have to come back as they are.
TEXTS = {
    "null": "null",
    "empty string": '""',
    "escapes": r'"\u0000 \n \r\n \\ \" \ud83d\ude00 \ud800"',
    "not ASCII": '"žluťoučký кůň 😀 \u2028"',
    "big integer": "123456789012345678901234567890",
    "float": "0.1",
    "small float": "-1e-300",
    "negative zero": "-0.0",
    "nested": '{"a":[1,{"b":[]}],"":{}}',
    "spaces": '{ "a" : 1 }',
    "looks like a protocol": '"$-1 END *2 VA 5 NOSCRIPT"',
}

#: Names of users' fields that a store might trip over.
NAMES = ("a b", "ключ", "😀", "a:b", ":", "s", "v", "p", "$", "END", "x" * 255, "0", "-1", "{a}", "*")

#: Message ids that a store might trip over.
MESSAGE_IDS = {
    "space": "a b",
    "spaces around": " a ",
    "Unicode": "žluťoučký kůň 😀",
    "longest": "x" * MAX_MESSAGE_ID_SIZE,
    "longest, Unicode": "😀" * (MAX_MESSAGE_ID_SIZE // 4),
    "longest, spaces": " " * MAX_MESSAGE_ID_SIZE,
    "hash tag": "{a}b",
    "separators": "a:b/../c%20*?[a]",
    "quotes": "'a\"\\",
    "digits": "0",
}

#: Message ids that are easily taken for one another.
ALIKE = ("a b", "a_b", "a%20b", "a+b", "A b", "a  b", "a b ", "ab", "\u00e9", "e\u0301", "%C3%A9", "a:b", "a::b")

#: Updates that give an unfinished record its whole life back.
RENEWING: dict[str, tuple[list[Update], Update]] = {
    "requeue": ([enqueue(), start(1)], enqueue(number=2)),
    "start": ([enqueue()], start(1)),
    "write": ([start(1)], write(1, 2, step="1")),
    "count": ([start(1)], counting(write(1, 2), rows=1)),
    "heartbeat": ([start(1)], heartbeat(1)),
    "outside": ([start(1)], outside(step="1")),
    "outside, a count": ([start(1)], counting(outside(), rows=1)),
    "outside, back to life": ([start(1), finish(1)], outside(state=WORKING)),
}

#: Updates that leave the time to live as it was.
NOT_RENEWING: dict[str, tuple[list[Update], Update]] = {
    "outside, after the end": ([start(1), finish(1)], outside(step="1")),
    "outside, a count after the end": ([start(1), finish(1)], counting(outside(), rows=1)),
    "late enqueue": ([start(1)], enqueue(step="1")),
    "late enqueue, after the end": ([start(1), finish(1)], enqueue(step="1")),
    "duplicate": ([start(1), write(1, 2)], write(1, 2)),
    "refused": ([start(1), start(2)], write(1, 2)),
    "heartbeat, after the end": ([start(1), finish(1)], heartbeat(1)),
}

#: Updates that bring a message to the head of a list.
MOVING: dict[str, tuple[list[Update], Update]] = {
    "requeue": ([enqueue(), start(1)], enqueue(number=2)),
    "requeue of a waiting message": ([enqueue()], enqueue(number=2)),
    "enqueue anew": ([start(1), finish(1)], enqueue(root=8)),
    "start": ([enqueue()], start(1)),
    "start of a redelivery": ([start(1)], start(2)),
    "end": ([start(1)], finish(1)),
    "end, except for a count": ([start(1, rows='"5"')], counting(finish(1), rows=1)),
    "end without a run": ([enqueue()], finish(0, state=FAILED)),
    "outside, an end": ([start(1)], outside(state=FAILED)),
    "outside, back to life": ([start(1), finish(1)], outside(state=WORKING)),
}

#: Updates that leave a message where it is in a list.
NOT_MOVING: dict[str, tuple[list[Update], Update]] = {
    "write": ([start(1)], write(1, 2, step="1")),
    "whole write": ([start(1)], write(1, 2, create=True, step="1")),
    "count": ([start(1)], counting(write(1, 2), rows=1)),
    "outside": ([start(1)], outside(step="1")),
    "outside, a count": ([start(1)], counting(outside(), rows=1)),
    "outside, after the end": ([start(1), finish(1)], outside(step="1")),
    "heartbeat": ([start(1)], heartbeat(1)),
    "late enqueue": ([start(1)], enqueue(step="1")),
    "duplicate": ([start(1)], start(1)),
    "refused": ([start(1), finish(1)], start(2)),
}

#: Names of actors and queues that an index might trip over.
LISTED_NAMES = (
    "import_rows",
    "import_rows2",
    "import",
    "a:b",
    "a b",
    "a,b",
    "{a}",
    "a%",
    "a_",
    "*",
    'a"b',
    "ключ",
    "A",
)


class BackendConformance:
    """The tests.  A subclass has the fixture ``backend`` at least."""

    #: How much less than it should a time to live may be, in
    #: milliseconds: the test's own duration and the store's rounding.
    ttl_tolerance = 10_000

    #: The least by which a store can let records live on: memcached counts in seconds.
    ttl_resolution = 1

    # Fixtures and hooks

    @pytest.fixture
    def message_id(self) -> str:
        """The id of a message that nobody else uses."""
        return uuid4().hex

    @pytest.fixture
    def make_backend(self) -> Callable[..., StatusBackend]:
        """Make another backend for the store of ``backend``, with a `namespace`."""
        pytest.skip("Needs the fixture make_backend.")

    @pytest.fixture
    def outage(self) -> tuple[PausableServer, StatusBackend]:
        """A running server of the test's own, and a backend that uses it, with a short time-out."""
        pytest.skip("Needs the fixture outage.")

    def ttl_of(self, backend: StatusBackend, message_id: str) -> int | None:
        """How long a record has left to live, in milliseconds; None for no record."""
        pytest.skip("Needs the hook ttl_of.")

    def set_ttl(self, backend: StatusBackend, message_id: str, ttl: int) -> None:
        """Change that behind the backend's back."""
        pytest.skip("Needs the hook set_ttl.")

    def damages(self) -> dict[str, Callable[[Any, str], None]]:
        """What can lie under a record's key without being one: how to
        plant it there, given the backend and the message id.
        """
        pytest.skip("Needs the hook damages.")

    def refusals(self, backend: StatusBackend) -> dict[str, AbstractContextManager[Any]]:
        """Contexts in which the store answers reads with an error, by the name of the error."""
        pytest.skip("Needs the hook refusals.")

    def too_large(self) -> Update:
        """An update that the store has no room for, or not for all of it."""
        pytest.skip("Needs the hook too_large.")

    # One update

    def test_the_unknown_reads_none(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message that was never enqueued
        # When it is read
        # Then there is nothing
        assert backend.read(message_id) is None

    def test_what_was_written_is_read(self, backend: StatusBackend, message_id: str) -> None:
        # Given an enqueued message
        assert backend.update(message_id, enqueue(a='"actor"', user_id="42")) is Outcome.APPLIED
        # When it is read
        record = backend.read(message_id)
        # Then all is there, and what the store itself adds
        assert record is not None
        assert {**record, UPDATED_AT: ""} == {
            "s": "0",
            "v": "1",
            "e": "7",
            "n": "1",
            "a": '"actor"',
            ":user_id": "42",
            "U": "",
        }

    def test_a_life(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message that runs, is retried and completed
        life = [
            enqueue(a='"actor"', E="1", user_id="42"),
            start(1, t="10"),
            write(1, 2, increment=3, step='"a"'),
            enqueue(number=2, D="9", x='"E"'),
            start(2, number=2),
            write(2, 2, number=2, increment=5),
            finish(2, 3, number=2, increment=5),
        ]
        # When all that is written
        outcomes = [backend.update(message_id, update) for update in life]
        # Then the store has what `apply` says
        assert (outcomes, timeless(backend.read(message_id))) == ([Outcome.APPLIED] * 7, timeless(fold(life)))

    @pytest.mark.parametrize("case", CASES)
    def test_outcomes(self, backend: StatusBackend, message_id: str, case: str) -> None:
        # Given a record
        given, update, expected = CASES[case]
        for one in given:
            backend.update(message_id, one)
        # When an update comes
        outcome = backend.update(message_id, update)
        # Then its outcome and the record are those of `apply`
        assert (outcome, timeless(backend.read(message_id))) == (expected, timeless(fold([*given, update])))

    @pytest.mark.parametrize("case", CASES)
    def test_outcomes_of_begun_updates(self, backend: StatusBackend, message_id: str, case: str) -> None:
        # Given a record
        given, update, expected = CASES[case]
        backend.update_many([(message_id, one) for one in given])
        # When an update is begun and completed
        outcome = backend.begin_update(message_id, update)()
        # Then nothing differs from an update in one go
        assert (outcome, timeless(backend.read(message_id))) == (expected, timeless(fold([*given, update])))

    def test_begun_updates_do_not_mix(self, backend: StatusBackend) -> None:
        # Given two updates that are begun, and another call between them
        first, second, third = uuid4().hex, uuid4().hex, uuid4().hex
        backend.update(third, start(1))
        complete_first = backend.begin_update(first, enqueue())
        read = backend.read(third)
        complete_second = backend.begin_update(second, outside(step="1"))
        # When they are completed in another order
        outcomes = complete_second(), complete_first()
        # Then everybody has their own reply
        assert read is not None and read[RUN] == "1"
        assert outcomes == (Outcome.MISSING, Outcome.APPLIED)

    # Order

    def test_a_late_enqueue_is_put_aside(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message that was started before its enqueue got here
        backend.update(message_id, start(1, step='"run"'))
        # When the enqueue arrives
        backend.update(message_id, enqueue(step='"enqueue"', user_id="42"))
        # Then the run's values stay, and the others are kept
        record = backend.read(message_id)
        assert record is not None
        assert (record[STATE], record[":step"], record[":user_id"]) == ("1", '"run"', "42")

    @pytest.mark.parametrize("root, number", [(7, 2), (8, 1)], ids=["same root", "other root"])
    def test_a_finished_message_starts_anew(
        self, backend: StatusBackend, message_id: str, root: int, number: int
    ) -> None:
        # Given a finished message
        for update in (enqueue(user_id="42"), start(1, step="1"), finish(1, p="100")):
            backend.update(message_id, update)
        # When it is enqueued again
        backend.update(message_id, enqueue(root, number, step="2"))
        # Then nothing is left of what was but the count of changes
        record = backend.read(message_id)
        assert record is not None and record.pop(UPDATED_AT)
        assert record == {"s": "0", "v": "4", "e": str(root), "n": str(number), ":step": "2"}

    def test_a_requeue_keeps_what_was_written(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message that ran
        for update in (enqueue(user_id="42"), start(1, step="1"), write(1, 2, p="5", t="10")):
            backend.update(message_id, update)
        # When it is put back into its queue, with what it carries since it was first enqueued
        backend.update(message_id, enqueue(number=2, x='"E"', step='"old"'))
        # Then fields, progress and attempts are still there
        record = backend.read(message_id)
        assert record is not None
        found = {name: record.get(name) for name in (STATE, ATTEMPTS, PROGRESS, EXCEPTION, ":user_id", ":step", RUN)}
        assert found == {"s": "0", "A": "1", "p": "5", "x": '"E"', ":user_id": "42", ":step": "1", "r": None}

    def test_a_new_run_starts_over(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message with a progress
        for update in (enqueue(), start(1, step="1"), write(1, 2, p="5", R="2", t="10")):
            backend.update(message_id, update)
        # When a new run starts
        backend.update(message_id, start(2))
        # Then progress and rate are gone, and what users wrote is not
        record = backend.read(message_id)
        assert record is not None
        found = {name: record.get(name) for name in (PROGRESS, RATE, TOTAL, ":step", ATTEMPTS)}
        assert found == {PROGRESS: None, RATE: None, TOTAL: "10", ":step": "1", ATTEMPTS: "2"}

    def test_what_was_counted_before_the_first_run_stays(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message on whose bar another one counts, and whose first run starts only then
        backend.update_many([(message_id, enqueue()), (message_id, outside(increment=3))])
        backend.update_many([(message_id, start(1, create=False)), (message_id, write(1, 2, increment=2))])
        # Then nothing that was counted is lost
        assert backend.read(message_id)[PROGRESS] == "5"  # type: ignore[index]
        # But for the next run, which starts over
        backend.update(message_id, start(2, create=False))
        assert PROGRESS not in backend.read(message_id)  # type: ignore[operator]

    def test_the_newer_run_owns_the_status(self, backend: StatusBackend, message_id: str) -> None:
        # Given two runs of one message
        for update in (enqueue(), start(1), start(2), write(2, 2, step='"newer"')):
            backend.update(message_id, update)
        before = backend.read(message_id)
        # When the older writes, ends and says that it runs
        late = [write(1, 2, step='"older"', increment=1), finish(1, 3, state=FAILED), heartbeat(1)]
        outcomes = [backend.update(message_id, update) for update in late]
        # Then nothing of that is stored
        assert (outcomes, backend.read(message_id)) == ([Outcome.REFUSED] * 3, before)

    @pytest.mark.parametrize("create", [False, True], ids=["", "whole"])
    def test_no_run_revives_a_finished_status(self, backend: StatusBackend, message_id: str, create: bool) -> None:
        # Given a finished message
        backend.update_many([(message_id, update) for update in (enqueue(), start(1), finish(1, 5))])
        before = backend.read(message_id)
        # When runs write to it
        late = [
            write(1, 6, create=create, step="1"),
            finish(1, 7, create=create, state=FAILED),
            start(2, create=create),
            write(2, 2, create=create, step="1"),
            finish(3, 1, create=create, state=FAILED),
        ]
        outcomes = [backend.update(message_id, update) for update in late]
        # Then nothing of that is stored
        assert (outcomes, backend.read(message_id)) == ([Outcome.REFUSED] * 5, before)

    def test_a_write_sent_twice_counts_once(self, backend: StatusBackend, message_id: str) -> None:
        # Given a run that counted to three
        backend.update_many([(message_id, start(1)), (message_id, write(1, 2, increment=3))])
        # When that is sent again
        backend.update(message_id, write(1, 2, increment=3))
        # Then it still is three
        record = backend.read(message_id)
        assert record is not None and record[PROGRESS] == "3"

    # From outside

    def test_an_outside_write_merges(self, backend: StatusBackend, message_id: str) -> None:
        # Given a running message
        backend.update(message_id, start(1, step="1", user_id="42"))
        # When somebody else writes
        backend.update(message_id, outside(step="2", label='"x"'))
        # Then field after field is merged, and the run still owns it
        record = backend.read(message_id)
        assert record is not None
        found = {name: record[name] for name in (STATE, RUN, PLACE, ":step", ":user_id", ":label")}
        assert found == {STATE: "1", RUN: "1", PLACE: "1", ":step": "2", ":user_id": "42", ":label": '"x"'}

    def test_an_outside_write_creates_nothing(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message that the store does not know
        # When somebody writes to it
        outcome = backend.update(message_id, outside(step="1", state=COMPLETED))
        # Then there still is nothing
        assert (outcome, backend.read(message_id)) == (Outcome.MISSING, None)

    def test_an_outside_end_is_dated_by_the_store(self, backend: StatusBackend, message_id: str) -> None:
        # Given a running message
        backend.update(message_id, start(1))
        # When somebody else says that it failed
        backend.update(message_id, outside(state=FAILED))
        # Then it has failed at that moment
        record = backend.read(message_id)
        assert record is not None and (record[STATE], record[FINISHED_AT]) == ("3", record[UPDATED_AT])

    def test_a_heartbeat_changes_one_moment(self, backend: StatusBackend, message_id: str) -> None:
        # Given a running message
        backend.update(message_id, start(1, B="15000"))
        before = backend.read(message_id)
        # When its worker says that it runs
        backend.update(message_id, heartbeat(1))
        # Then that moment is stored, and nothing else has changed
        after = backend.read(message_id)
        assert after is not None and before is not None and before[HEARTBEAT_INTERVAL] == "15000"
        assert int(before.pop(HEARTBEAT_AT)) <= int(after[HEARTBEAT_AT]) <= backend.now() + 60_000
        assert {**before, HEARTBEAT_AT: after[HEARTBEAT_AT]} == after

    def test_moments_are_of_the_backends_clock(self, backend: StatusBackend, message_id: str) -> None:
        # Given a record that was read once, so that the store's clock is known
        backend.read(message_id)
        # When it is changed
        earliest = backend.now()
        backend.update(message_id, enqueue())
        latest = backend.now()
        # Then the change is dated by that clock, give or take what the measurement can be off
        record = backend.read(message_id)
        assert record is not None and earliest - 1000 <= int(record[UPDATED_AT]) <= latest + 1000

    # Many at once

    def test_read_many_keeps_the_order(self, backend: StatusBackend) -> None:
        # Given some records
        ids = [uuid4().hex for _ in range(5)]
        backend.update_many([(ids[0], enqueue(mark="0")), (ids[3], enqueue(mark="3"))])
        # When they are read among others, one of them twice
        found = read_many(backend, [*ids, ids[0]])
        # Then each is in its place, and None where there is nothing
        assert [record and record[":mark"] for record in found] == ["0", None, None, "3", None, "0"]

    def test_many_are_read(self, backend: StatusBackend) -> None:
        # Given more records than one request may ask for
        ids = [uuid4().hex for _ in range(2_500)]
        backend.update_many([(message_id, enqueue(mark=str(n))) for n, message_id in enumerate(ids)])
        # When all are read
        found = read_many(backend, ids)
        # Then each is in its place
        assert [record and record[":mark"] for record in found] == [str(n) for n in range(2_500)]

    def test_nothing_is_read_or_written(self, backend: StatusBackend) -> None:
        # Given nothing
        # When it is written and read
        # Then there is nothing
        assert (backend.update_many([]), read_many(backend, [])) == ([], [])

    def test_a_batch_keeps_the_order_of_each_message(self, backend: StatusBackend) -> None:
        # Given updates of three messages, mixed
        one, two, three = uuid4().hex, uuid4().hex, uuid4().hex
        batch = [
            (one, enqueue()),
            (two, outside(step="1")),
            (one, start(1)),
            (three, start(3, step="1")),
            (one, write(1, 2, increment=1)),
            (three, finish(3)),
            (one, write(1, 2, increment=1)),
            (two, enqueue()),
            (one, finish(1, 3)),
        ]
        # When they are written in one call
        outcomes = backend.update_many(batch)
        # Then each has its outcome
        a, m, d = Outcome.APPLIED, Outcome.MISSING, Outcome.DUPLICATE
        assert outcomes == [a, m, a, a, a, a, d, a, a]
        # And its message is as if they had come alone
        expected = [fold([update for message_id, update in batch if message_id == each]) for each in (one, two, three)]
        assert list(map(timeless, read_many(backend, [one, two, three]))) == list(map(timeless, expected))

    def test_a_batch_of_hundreds(self, backend: StatusBackend) -> None:
        # Given several hundred updates of few messages
        ids = [uuid4().hex for _ in range(7)]
        backend.update_many([(message_id, start(1)) for message_id in ids])
        batch = [(ids[n % 7], write(1, 2 + n, increment=1)) for n in range(700)]
        # When they are written in one call
        outcomes = backend.update_many(batch)
        # Then all are stored
        assert set(outcomes) == {Outcome.APPLIED} and len(outcomes) == 700
        assert [record and record[PROGRESS] for record in read_many(backend, ids)] == ["100"] * 7

    # Deleting

    def test_delete(self, backend: StatusBackend, message_id: str) -> None:
        # Given two records
        other = uuid4().hex
        backend.update_many([(message_id, start(1)), (other, start(1))])
        # When one is deleted, twice
        deleted = backend.delete(message_id), backend.delete(message_id)
        # Then it was there the first time
        assert deleted == (True, False)
        # And the other still is
        assert [record is None for record in read_many(backend, [message_id, other])] == [True, False]

    def test_a_deleted_record_is_restored_whole(self, backend: StatusBackend, message_id: str) -> None:
        # Given a running message whose record is gone
        backend.update(message_id, start(1))
        backend.delete(message_id)
        # When its run writes, first in part and then all
        outcomes = [
            backend.update(message_id, heartbeat(1)),
            backend.update(message_id, write(1, 2, step="1")),
            backend.update(message_id, write(1, 2, create=True, step="1", p="5")),
        ]
        # Then the whole is stored
        record = backend.read(message_id)
        assert outcomes == [Outcome.MISSING, Outcome.MISSING, Outcome.APPLIED]
        assert record is not None and (record[STATE], record[PROGRESS], record[":step"]) == ("1", "5", "1")

    # Damage

    def test_damage_reads_none(self, backend: StatusBackend) -> None:
        for name, plant in self.damages().items():
            # Given something under a record's key that is none
            message_id = uuid4().hex
            plant(backend, message_id)
            # When it is read
            record = backend.read(message_id)
            # Then there is nothing
            assert take_snapshot(message_id, record, 0) is None and record is None, name

    def test_damage_hides_no_other_record(self, backend: StatusBackend) -> None:
        for name, plant in self.damages().items():
            # Given a damaged record between two others
            ids = [uuid4().hex for _ in range(3)]
            backend.update_many([(message_id, start(1)) for message_id in ids])
            backend.delete(ids[1])
            plant(backend, ids[1])
            # When all are read
            found = read_many(backend, ids)
            # Then only that one is missing
            assert [record is None for record in found] == [False, True, False], name

    @pytest.mark.parametrize(
        "update", [outside(step="1"), write(1, 2), heartbeat(1)], ids=["outside", "run", "heartbeat"]
    )
    def test_damage_counts_as_missing(self, backend: StatusBackend, update: Update) -> None:
        for name, plant in self.damages().items():
            # Given something under a record's key that is none
            message_id = uuid4().hex
            plant(backend, message_id)
            # When somebody writes who does not know the whole record
            # Then it is missing, for whoever knows to restore it
            assert backend.update(message_id, update) is Outcome.MISSING, name

    @pytest.mark.parametrize("update", [enqueue(step="1"), start(1, step="1")], ids=["enqueue", "start"])
    def test_damage_heals(self, backend: StatusBackend, update: Update) -> None:
        for name, plant in self.damages().items():
            # Given something under a record's key that is none
            message_id = uuid4().hex
            plant(backend, message_id)
            # When somebody writes the whole record
            outcome = backend.update(message_id, update)
            # Then nothing else is left
            assert outcome is Outcome.APPLIED, name
            assert timeless(backend.read(message_id)) == timeless(fold([update])), name

    # Names and values

    @pytest.mark.parametrize("name", TEXTS)
    def test_texts_come_back_as_they_are(self, backend: StatusBackend, message_id: str, name: str) -> None:
        # Given a field with a JSON text
        text = TEXTS[name]
        backend.update(message_id, enqueue(field=text))
        # When it is read
        record = backend.read(message_id)
        # Then not a byte of it has changed
        assert record is not None and record[":field"] == text

    def test_names_come_back_as_they_are(self, backend: StatusBackend, message_id: str) -> None:
        # Given fields with odd names
        fields = {":" + name: str(n) for n, name in enumerate(NAMES)}
        backend.update_many([(message_id, start(1)), (message_id, Update(Kind.OUTSIDE, fields=fields))])
        # When they are read
        record = backend.read(message_id)
        # Then they are all there
        assert record is not None and {name: record.get(name) for name in fields} == fields

    @pytest.mark.parametrize("make", [enqueue, lambda **f: start(1, **f), outside], ids=["enqueue", "start", "outside"])
    def test_a_large_field(self, backend: StatusBackend, message_id: str, make: Callable[..., Update]) -> None:
        # Given a field of the largest size that a backend takes by default
        text = '"' + "x" * 65_534 + '"'
        backend.update(message_id, enqueue())
        # When it is written
        backend.update(message_id, make(field=text))
        # Then it is read as it was
        record = backend.read(message_id)
        assert record is not None and record[":field"] == text

    @pytest.mark.parametrize(
        "given, make",
        [
            ([], enqueue),
            ([start(1)], enqueue),
            ([start(1)], lambda **f: enqueue(number=2, **f)),
            ([enqueue()], lambda **f: start(1, **f)),
            ([], lambda **f: start(1, **f)),
            ([start(1)], lambda **f: write(1, 2, **f)),
            ([start(1)], lambda **f: finish(1, **f)),
            ([start(1)], outside),
        ],
        ids=["enqueue", "late enqueue", "requeue", "start", "whole start", "write", "finish", "outside"],
    )
    def test_thousands_of_fields(
        self, backend: StatusBackend, message_id: str, given: list[Update], make: Callable[..., Update]
    ) -> None:
        # Given more fields than a call's stack holds in Lua
        fields = {f"field-{n}": str(n) for n in range(3_000)}
        backend.update_many([(message_id, update) for update in given])
        # When they are written in one update
        backend.update(message_id, make(**fields))
        # Then they are all there
        record = backend.read(message_id)
        assert record is not None and {name[1:]: text for name, text in record.items() if name[0] == ":"} == fields

    @pytest.mark.parametrize("name", MESSAGE_IDS)
    def test_odd_message_ids(self, backend: StatusBackend, name: str) -> None:
        # Given a message with an odd id
        message_id = MESSAGE_IDS[name]
        backend.delete(message_id)
        # When it is written, read and deleted
        outcomes = [backend.update(message_id, update) for update in (enqueue(), start(1, step="1"))]
        record, deleted = backend.read(message_id), backend.delete(message_id)
        # Then that is as with any other
        assert outcomes == [Outcome.APPLIED] * 2 and record is not None and record[":step"] == "1" and deleted

    def test_message_ids_that_look_alike(self, backend: StatusBackend) -> None:
        # Given messages whose ids might be taken for one another
        backend.update_many([(message_id, enqueue(root=n + 1)) for n, message_id in enumerate(ALIKE)])
        # When they are read
        found = read_many(backend, ALIKE)
        # Then each is itself
        assert [record and record["e"] for record in found] == [str(n + 1) for n in range(len(ALIKE))]

    def test_namespaces_are_apart(self, make_backend: Callable[..., StatusBackend], message_id: str) -> None:
        # Given two namespaces in one store
        one, two = make_backend(namespace="one"), make_backend(namespace="two")
        # When a message is written in one
        one.update(message_id, enqueue())
        # Then the other knows nothing of it
        assert (two.read(message_id), two.delete(message_id)) == (None, False)
        assert one.read(message_id) is not None

    def test_ids_do_not_reach_into_other_namespaces(self, make_backend: Callable[..., StatusBackend]) -> None:
        # Given namespaces and ids that look the same when one follows the other
        pairs = [
            ("a", "b:x"),
            ("a:b", "x"),
            ("a", "b%3Ax"),
            ("a%3Ab", "x"),
            ("a:", "b:x"),
            ("a::b", "x"),
            ("a", ":b:x"),
        ]
        backends = [make_backend(namespace=namespace) for namespace, _ in pairs]
        for n, (backend, (_, message_id)) in enumerate(zip(backends, pairs)):
            backend.update(message_id, enqueue(root=n + 1))
        # When they are read
        found = [backend.read(message_id) for backend, (_, message_id) in zip(backends, pairs)]
        # Then each is itself
        assert [record and record["e"] for record in found] == [str(n + 1) for n in range(len(pairs))]

    def test_backends_of_one_namespace_share(self, make_backend: Callable[..., StatusBackend], message_id: str) -> None:
        # Given two backends with one namespace
        one, two = make_backend(namespace="one"), make_backend(namespace="one")
        # When both write
        one.update(message_id, start(1))
        outcome = two.update(message_id, write(1, 2, step="1"))
        # Then both see it all
        assert outcome is Outcome.APPLIED and one.read(message_id) == two.read(message_id)

    # Time to live

    def _check_ttl(self, backend: StatusBackend, message_id: str, expected: int, *, above: int = 0) -> None:
        found = self.ttl_of(backend, message_id)
        assert found is not None
        assert expected - self.ttl_tolerance <= found <= expected + self.ttl_resolution + above

    def test_a_waiting_message_lives(self, backend: StatusBackend, message_id: str) -> None:
        # Given an enqueued message
        # When nobody says how long it lives
        backend.update(message_id, enqueue())
        # Then it is a week
        self._check_ttl(backend, message_id, DEFAULT_LIVE_TTL)

    @pytest.mark.parametrize("live_ttl", [60_000, DAY, 40 * DAY], ids=["minute", "day", "more than 30 days"])
    def test_its_own_live_ttl(self, backend: StatusBackend, message_id: str, live_ttl: int) -> None:
        # Given a live time to live
        # When a message is enqueued with it
        backend.update(message_id, enqueue(L=str(live_ttl)))
        # Then it lives that long
        self._check_ttl(backend, message_id, live_ttl)

    @pytest.mark.parametrize(
        "given, update",
        [([], enqueue), ([start(1, L="60000")], lambda **f: enqueue(number=2, **f))],
        ids=["enqueue", "requeue"],
    )
    def test_a_delay_is_on_top(
        self, backend: StatusBackend, message_id: str, given: list[Update], update: Callable[..., Update]
    ) -> None:
        # Given a message that is delayed for an hour
        backend.update_many([(message_id, one) for one in given])
        backend.read(message_id)
        scheduled_at = backend.now() + 3_600_000
        # When it is enqueued
        backend.update(message_id, update(L="60000", D=str(scheduled_at)))
        # Then it lives for that hour and a minute, give or take: a slow answer makes what the backend knows of the
        # store's clock inexact
        self._check_ttl(backend, message_id, 3_660_000, above=self.ttl_tolerance)

    def test_a_delay_is_kept_by_an_outside_write(self, backend: StatusBackend, message_id: str) -> None:
        # Given a delayed message
        backend.read(message_id)
        backend.update(message_id, enqueue(L="60000", D=str(backend.now() + 3_600_000)))
        # When somebody writes to it
        backend.update(message_id, outside(step="1"))
        # Then it lives for the hour and a minute still
        self._check_ttl(backend, message_id, 3_660_000, above=self.ttl_tolerance)

    def test_a_delay_that_is_over_counts_for_nothing(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message whose delay is long over
        # When it is enqueued
        backend.update(message_id, enqueue(L="60000", D=str(backend.now() - DAY)))
        # Then nothing is taken off
        self._check_ttl(backend, message_id, 60_000)

    def test_a_finished_message_lives_its_own_time(self, backend: StatusBackend, message_id: str) -> None:
        # Given a running message
        backend.update(message_id, start(1))
        # When it finishes
        backend.update(message_id, finish(1, ttl=7_200_000))
        # Then its time to live is the final one, and the live one no longer matters
        self._check_ttl(backend, message_id, 7_200_000)

    @pytest.mark.parametrize("name", RENEWING)
    def test_writes_renew(self, backend: StatusBackend, message_id: str, name: str) -> None:
        # Given a record that has a minute left
        given, update = RENEWING[name]
        backend.update_many([(message_id, one) for one in given])
        self.set_ttl(backend, message_id, 60_000)
        # When something happens to its message
        backend.update(message_id, update)
        # Then it has its whole life before it
        self._check_ttl(backend, message_id, DEFAULT_LIVE_TTL)

    @pytest.mark.parametrize("name", NOT_RENEWING)
    def test_other_writes_leave_the_ttl(self, backend: StatusBackend, message_id: str, name: str) -> None:
        # Given a record with a time to live of its own
        given, update = NOT_RENEWING[name]
        backend.update_many([(message_id, one) for one in given])
        self.set_ttl(backend, message_id, 50 * DAY)
        # When something comes that is no sign of life
        backend.update(message_id, update)
        # Then its expiry is as it was
        self._check_ttl(backend, message_id, 50 * DAY)

    def test_an_outside_end_has_a_final_ttl(self, backend: StatusBackend, message_id: str) -> None:
        # Given a running message
        backend.update(message_id, start(1))
        # When somebody else says that it failed
        backend.update(message_id, outside(state=FAILED, ttl=120_000))
        # Then the final time to live counts
        self._check_ttl(backend, message_id, 120_000)

    def test_a_record_expires(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message that finished with a time to live of much less than a second
        backend.update_many([(message_id, start(1)), (message_id, finish(1, ttl=20))])
        # When that is over
        deadline = time.monotonic() + 10
        while backend.read(message_id) is not None and time.monotonic() < deadline:
            time.sleep(0.02)
        # Then nothing is left of it
        assert (backend.read(message_id), backend.update(message_id, outside(step="1"))) == (None, Outcome.MISSING)

    # Listing

    @pytest.fixture
    def listing(self, backend: StatusBackend) -> StatusBackend:
        """``backend``, if it can list."""
        if type(backend).find is StatusBackend.find:
            pytest.skip("This backend does not list.")
        return backend

    def test_a_backend_that_cannot_list_says_why(self, backend: StatusBackend) -> None:
        if type(backend).find is not StatusBackend.find:
            pytest.skip("This backend lists.")
        # Given a backend without an index
        for call in (lambda: backend.find(Query(), limit=50, after=None), lambda: backend.count(Query())):
            # When it is asked for a list
            with pytest.raises(NotSupported) as caught:
                call()
            # Then the error names it, and the reason
            assert type(backend).__name__ in str(caught.value) and backend.why_no_list in str(caught.value)

    def test_newest_first(self, listing: StatusBackend) -> None:
        # Given three messages, enqueued one after another
        actor, ids = uuid4().hex, [uuid4().hex for _ in range(3)]
        for message_id in ids:
            write_later(listing, message_id, enqueue(a=f'"{actor}"'))
        # When the first starts
        write_later(listing, ids[0], start(1))
        # Then it comes first, and the one that was enqueued first comes last
        assert listed(listing, Query(actor_name=actor)) == [ids[0], ids[2], ids[1]]

    def test_the_records_are_listed_that_are_read(self, listing: StatusBackend, message_id: str) -> None:
        # Given a message that runs
        actor = uuid4().hex
        life = (enqueue(a=f'"{actor}"', Q='"default"', step="1"), start(1), write(1, 2, p="5"))
        listing.update_many([(message_id, update) for update in life])
        # When it is listed
        found = listing.find(Query(actor_name=actor), limit=50, after=None)
        # Then that gives its record as a read does
        assert [one[:2] for one in found] == [(message_id, listing.read(message_id))]

    @pytest.mark.parametrize("name", MOVING)
    def test_what_changes_its_state_comes_first(self, listing: StatusBackend, message_id: str, name: str) -> None:
        # Given a message, and one that is newer
        given, update = MOVING[name]
        actor, newer = uuid4().hex, uuid4().hex
        listing.update_many([(message_id, with_actor(one, actor)) for one in given])
        write_later(listing, newer, enqueue(a=f'"{actor}"'))
        # When something sets the older one's state, be it to what it was
        write_later(listing, message_id, with_actor(update, actor))
        # Then that is the newest
        assert listed(listing, Query(actor_name=actor)) == [message_id, newer]

    @pytest.mark.parametrize("name", NOT_MOVING)
    def test_other_writes_leave_the_order(self, listing: StatusBackend, message_id: str, name: str) -> None:
        # Given a message, and one that is newer
        given, update = NOT_MOVING[name]
        actor, newer = uuid4().hex, uuid4().hex
        listing.update_many([(message_id, with_actor(one, actor)) for one in given])
        write_later(listing, newer, enqueue(a=f'"{actor}"'))
        # When something is written to the older one, or is not
        write_later(listing, message_id, with_actor(update, actor))
        # Then the newer one still comes first
        assert listed(listing, Query(actor_name=actor)) == [newer, message_id]

    def test_a_restored_record_is_listed(self, listing: StatusBackend, message_id: str) -> None:
        # Given a running message whose record was lost
        actor, newer = uuid4().hex, uuid4().hex
        listing.update(message_id, start(1, a=f'"{actor}"'))
        listing.delete(message_id)
        write_later(listing, newer, enqueue(a=f'"{actor}"'))
        # When its run restores it
        write_later(listing, message_id, write(1, 2, create=True, a=f'"{actor}"'))
        # Then it is listed, as the newest
        assert listed(listing, Query(actor_name=actor)) == [message_id, newer]

    def test_filters_and_their_combinations(self, listing: StatusBackend) -> None:
        # Given a message of each state, actor and queue, and one of which no more is known than its state
        prefix = uuid4().hex
        actors, queues = [f"{prefix}-{n}" for n in "ab"], [f"{prefix}-{n}" for n in "qr"]
        messages = [(state, actor, queue) for actor in actors for queue in queues for state in range(4)]
        ids = [uuid4().hex for _ in messages]
        nameless = uuid4().hex
        listing.update(nameless, enqueue())
        for message_id, (state, actor, queue) in zip(ids, messages):
            listing.update_many([(message_id, update) for update in life_to(state, a=f'"{actor}"', Q=f'"{queue}"')])
        for query in itertools.starmap(
            Query, itertools.product([None, *range(4)], [None, *actors], [None, *queues, uuid4().hex])
        ):
            # When they are listed
            found = listed(listing, query)
            # Then those are there that the query is for
            expected = {
                message_id
                for message_id, message in zip(ids, messages)
                if all(wanted is None or wanted == had for wanted, had in zip(query, message))
            }
            assert {message_id for message_id in found if message_id in ids} == expected, query
            assert (nameless in found) is (query in (Query(), Query(state=QUEUED))), query
            # And counted
            assert listing.count(query) == len(found), query

    def test_odd_names_are_filtered_by(self, listing: StatusBackend) -> None:
        # Given actors and queues with odd names
        ids = {(actor, queue): uuid4().hex for actor, queue in zip(LISTED_NAMES, reversed(LISTED_NAMES))}
        suffix = uuid4().hex
        for (actor, queue), message_id in ids.items():
            fields = {"a": json.dumps(actor + suffix), "Q": json.dumps(queue + suffix)}
            listing.update(message_id, Update(Kind.ENQUEUE, Epoch(7, 1), fields=fields))
        for (actor, queue), message_id in ids.items():
            # When one is listed
            by_actor = listed(listing, Query(actor_name=actor + suffix))
            by_both = listed(listing, Query(actor_name=actor + suffix, queue_name=queue + suffix))
            # Then it is that one alone
            assert by_actor == by_both == [message_id], (actor, queue)

    def test_pages_have_no_gaps(self, listing: StatusBackend) -> None:
        # Given more messages than a page shows
        actor, ids = uuid4().hex, [uuid4().hex for _ in range(25)]
        listing.update_many([(message_id, enqueue(a=f'"{actor}"')) for message_id in ids])
        # When one page after another is listed
        pages = list(pages_of(listing, Query(actor_name=actor), limit=7))
        # Then each message is on one of them
        assert [len(page) for page in pages] == [7, 7, 7, 4]
        assert sorted(found.message_id for page in pages for found in page) == sorted(ids)
        # And the positions are those of cursors, in the order of the list
        positions = [found.position for page in pages for found in page]
        assert positions == sorted(positions, reverse=True)
        assert all(type(position) is int and 0 <= position < MAX_POSITION for position in positions)

    def test_pages_begin_anywhere(self, listing: StatusBackend) -> None:
        # Given some messages of one actor in several states
        actor, ids = uuid4().hex, [uuid4().hex for _ in range(9)]
        for n, message_id in enumerate(ids):
            for update in life_to(n % 4, a=f'"{actor}"'):
                write_later(listing, message_id, update)
        whole = ids[::-1]
        for query in (Query(), Query(actor_name=actor)):
            everything = [found for page in pages_of(listing, query) for found in page]
            if query == Query(actor_name=actor):
                assert [found.message_id for found in everything] == whole
            for limit, start_at in itertools.product((1, 2, 8, 9, 10), range(len(everything[:9]) + 1)):
                # When a page is listed
                last = everything[start_at - 1] if start_at else None
                page = listing.find(query, limit=limit, after=last and Cursor(last.position, last.message_id))
                # Then it is that part of the whole
                assert page == everything[start_at : start_at + limit], (limit, start_at)

    def test_pages_while_messages_move(self, listing: StatusBackend) -> None:
        # Given messages of two states
        actor, ids = uuid4().hex, [uuid4().hex for _ in range(40)]
        for n, message_id in enumerate(ids):
            listing.update_many([(message_id, update) for update in life_to(n % 2, a=f'"{actor}"')])
        choice, moved, shown = random.Random(7), set(), []
        # When one page after another is listed, while some messages start, or start again, and others come
        for page in pages_of(listing, Query(actor_name=actor), limit=3):
            shown += [found.message_id for found in page]
            for message_id in choice.sample(ids, 4):
                moved.add(message_id)
                number = 2 + len(shown)
                listing.update_many([(message_id, enqueue(number=number)), (message_id, start(number, number=number))])
            listing.update(uuid4().hex, enqueue(a=f'"{actor}"'))
        # Then no message is listed twice, and all that have not moved are listed
        assert len(shown) == len(set(shown)) and set(shown) <= set(ids)
        assert set(ids) - set(shown) <= moved and moved & set(shown)

    @pytest.mark.parametrize("state", range(4), ids=["queued", "working", "completed", "failed"])
    def test_pages_of_a_state_while_messages_leave_it(self, listing: StatusBackend, state: int) -> None:
        # Given messages of a state
        actor, queue, ids = uuid4().hex, uuid4().hex, [uuid4().hex for _ in range(12)]
        for message_id in ids:
            listing.update_many([(message_id, one) for one in life_to(state, a=f'"{actor}"', Q=f'"{queue}"')])
        query, shown = Query(state, actor, queue), []
        # When all messages of each page leave the state, as those do that a user cancels
        for page in pages_of(listing, query, limit=5):
            shown += [found.message_id for found in page]
            listing.update_many([(found.message_id, outside(state=(state + 1) % 4)) for found in page])
        # Then each was listed once
        assert sorted(shown) == sorted(ids)

    def test_a_page_after_a_message_that_is_gone(self, listing: StatusBackend) -> None:
        # Given some messages
        actor, ids = uuid4().hex, [uuid4().hex for _ in range(5)]
        for message_id in ids:
            write_later(listing, message_id, enqueue(a=f'"{actor}"'))
        query = Query(actor_name=actor)
        (*_, last) = listing.find(query, limit=2, after=None)
        cursor = Cursor(last.position, last.message_id)
        # When the last one of a page is deleted, or moves
        for change in (lambda: listing.update(last.message_id, start(1)), lambda: listing.delete(last.message_id)):
            change()
            # Then the next page is what it would have been
            found = listing.find(query, limit=2, after=cursor)
            assert [one.message_id for one in found] == [ids[2], ids[1]]
        # Also when all that were before it have gone
        listing.delete(ids[4])
        assert [one.message_id for one in listing.find(query, limit=9, after=cursor)] == ids[2::-1]

    def test_a_cursor_of_another_list(self, listing: StatusBackend) -> None:
        # Given messages of two actors, in turn
        actors, ids = [uuid4().hex, uuid4().hex], [uuid4().hex for _ in range(6)]
        for n, message_id in enumerate(ids):
            write_later(listing, message_id, enqueue(a=f'"{actors[n % 2]}"'))
        # When a list goes on from a message of the other actor
        last = listing.find(Query(actor_name=actors[1]), limit=2, after=None)[-1]
        page = listing.find(Query(actor_name=actors[0]), limit=9, after=Cursor(last.position, last.message_id))
        # Then it has what is older
        assert [found.message_id for found in page] == [ids[2], ids[0]]

    def test_the_ends_of_a_list(self, listing: StatusBackend, message_id: str) -> None:
        # Given a message
        actor = uuid4().hex
        listing.update(message_id, enqueue(a=f'"{actor}"'))
        # When pages are listed after the lowest cursor, and after the highest
        pages = [
            listing.find(Query(actor_name=actor), limit=5, after=Cursor(position, end))
            for position, end in ((0, "!"), (MAX_POSITION - 1, "\U0010ffff" * 50))
        ]
        # Then the one is empty, and the other is the whole list
        assert [[found.message_id for found in page] for page in pages] == [[], [message_id]]

    @pytest.mark.parametrize("name", MESSAGE_IDS)
    def test_cursors_of_odd_ids(self, listing: StatusBackend, name: str) -> None:
        # Given a message with an odd id, between two others
        message_id = MESSAGE_IDS[name]
        actor, older, newer = uuid4().hex, uuid4().hex, uuid4().hex
        for each in (older, message_id, newer):
            write_later(listing, each, enqueue(a=f'"{actor}"'))
        parameters: dict[str, Any] = {"actor_name": actor, "backend": listing}
        # When a user lists one message after another, by snapshots or by their cursors
        for by_cursor in (False, True):
            page, shown = StatusRegistry.list(limit=1, **parameters), []
            while page:
                shown.append(page[0].message_id)
                assert re.fullmatch("[A-Za-z0-9_-]{4,300}", page[0].cursor or "")
                after = page[0].cursor if by_cursor else page[0]
                page = StatusRegistry.list(limit=1, after=after, **parameters)
            # Then each is listed once
            assert shown == [newer, message_id, older]
        listing.delete(message_id)

    @pytest.mark.parametrize("state", [WORKING, COMPLETED], ids=["working", "completed"])
    def test_a_late_enqueue_names_the_actor(self, listing: StatusBackend, message_id: str, state: int) -> None:
        # Given a message that was started by somebody who did not know its actor, and one that is newer
        actor, queue, newer = uuid4().hex, uuid4().hex, uuid4().hex
        listing.update_many([(message_id, update) for update in (start(1), finish(1))[:state]])
        write_later(listing, newer, start(1, a=f'"{actor}"', Q=f'"{queue}"'))
        # When its enqueue arrives, and only fills gaps
        late = enqueue(a=f'"{actor}"', Q=f'"{queue}"')
        write_later(listing, message_id, late)
        # Then it is listed by them, where it was
        for query in (Query(actor_name=actor), Query(queue_name=queue), Query(None, actor, queue)):
            assert listed(listing, query) == [newer, message_id]
        assert message_id in listed(listing, Query(state=state))
        # And once, also when the enqueue arrives again
        listing.update(message_id, late)
        assert listing.count(Query(actor_name=actor)) == listing.count(Query(queue_name=queue)) == 2

    def test_a_whole_write_names_the_actor(self, listing: StatusBackend, message_id: str) -> None:
        # Given a running message, and one that is newer
        one, other, newer = uuid4().hex, uuid4().hex, uuid4().hex
        listing.update(message_id, start(1, a=f'"{one}"'))
        write_later(listing, newer, start(1, a=f'"{other}"'))
        # When its run tells all that it knows, which is of another actor
        write_later(listing, message_id, write(1, 2, create=True, a=f'"{other}"'))
        # Then it is listed by that alone, where it was
        assert (listed(listing, Query(actor_name=other)), listed(listing, Query(actor_name=one))) == (
            [newer, message_id],
            [],
        )
        assert (listing.count(Query(actor_name=other)), listing.count(Query(actor_name=one))) == (2, 0)

    def test_a_requeued_message_changes_lists(self, listing: StatusBackend, message_id: str) -> None:
        # Given a running message
        actor = uuid4().hex
        listing.update(message_id, start(1, a=f'"{actor}"'))
        # When it is put back into its queue
        listing.update(message_id, enqueue(number=2))
        # Then it waits, and no longer runs
        queries = [Query(state=state, actor_name=actor) for state in range(4)]
        assert [listed(listing, query) for query in queries] == [[message_id], [], [], []]
        assert [listing.count(query) for query in queries] == [1, 0, 0, 0]

    def test_a_deleted_message_is_not_listed(self, listing: StatusBackend) -> None:
        # Given messages in all states
        actor, ids = uuid4().hex, [uuid4().hex for _ in range(4)]
        for state, message_id in enumerate(ids):
            listing.update_many([(message_id, update) for update in life_to(state, a=f'"{actor}"')])
        for gone, message_id in enumerate(ids, 1):
            # When one is deleted
            listing.delete(message_id)
            # Then the others are listed and counted
            assert set(listed(listing, Query(actor_name=actor))) == set(ids[gone:])
            assert listing.count(Query(actor_name=actor)) == 4 - gone

    @pytest.mark.parametrize("state", [QUEUED, WORKING, COMPLETED], ids=["queued", "working", "completed"])
    def test_an_expired_message_is_not_listed(self, listing: StatusBackend, message_id: str, state: int) -> None:
        # Given a message that lives for a moment, and one that lives on
        actor, other = uuid4().hex, uuid4().hex
        for each, ttl in ((message_id, 20), (other, 3_600_000)):
            *life, end = life_to(state, a=f'"{actor}"', L=str(ttl))
            listing.update_many([(each, update) for update in (*life, end._replace(ttl=ttl))])
        # When the one has expired
        await_end(listing, message_id)
        # Then the other is counted and listed
        for query in (Query(actor_name=actor), Query(state=state, actor_name=actor)):
            assert (listing.count(query), listed(listing, query)) == (1, [other])
            (last,) = listing.find(query, limit=1, after=None)
            assert listing.find(query, limit=1, after=Cursor(last.position, last.message_id)) == []

    def test_expired_messages_do_not_shorten_a_page(self, listing: StatusBackend) -> None:
        # Given messages of several states, under many that are newer and expire
        actor, ids, gone = uuid4().hex, [uuid4().hex for _ in range(3)], [uuid4().hex for _ in range(300)]
        for state, message_id in enumerate(ids):
            for update in life_to(state, a=f'"{actor}"'):
                write_later(listing, message_id, update)
        for n in range(0, len(gone), 2):
            both = [(gone[n], enqueue(a=f'"{actor}"', L="20")), (gone[n + 1], start(1, a=f'"{actor}"', L="20"))]
            listing.update_many(both)
        for message_id in gone:
            await_end(listing, message_id)
        # When pages are listed
        query = Query(actor_name=actor)
        first, whole = (listing.find(query, limit=limit, after=None) for limit in (1, 50))
        rest = listing.find(query, limit=2, after=Cursor(first[0].position, first[0].message_id))
        # Then they are as long as they can be
        assert [found.message_id for found in whole] == ids[::-1]
        assert [first, rest] == [whole[:1], whole[1:]]

    def test_damage_is_not_listed(self, listing: StatusBackend) -> None:
        actor = uuid4().hex
        for name, plant in self.damages().items():
            # Given a message that is listed
            message_id = uuid4().hex
            listing.update(message_id, enqueue(a=f'"{actor}"'))
            # When something comes under its key that is no record
            listing.delete(message_id)
            plant(listing, message_id)
            # Then it is not listed
            found = listing.find(Query(), limit=1000, after=None)
            assert message_id not in [one.message_id for one in found if one.record is not None], name
            assert message_id not in [snapshot.message_id for snapshot in StatusRegistry.list(backend=listing)], name
            assert listed(listing, Query(actor_name=actor)) == [], name

    def test_namespaces_are_listed_apart(self, make_backend: Callable[..., StatusBackend]) -> None:
        one, two = (make_backend(namespace=name) for name in ("listed", "listed:b"))
        if type(one).find is StatusBackend.find:
            pytest.skip("This backend does not list.")
        # Given a message in each of two namespaces
        before = [backend.count(Query()) for backend in (one, two)]
        ids = [uuid4().hex for _ in range(2)]
        one.update(ids[0], enqueue(a='"actor"'))
        two.update(ids[1], enqueue(a='"actor"'))
        # When both are listed
        found = [[message_id for message_id in listed(backend, Query()) if message_id in ids] for backend in (one, two)]
        # Then each shows its own
        assert found == [[ids[0]], [ids[1]]]
        assert [backend.count(Query()) for backend in (one, two)] == [n + 1 for n in before]

    # Concurrency

    def test_no_increment_is_lost(self, backend: StatusBackend, message_id: str) -> None:
        # Given a running message
        backend.update(message_id, start(1))

        # When two threads count at the same time
        def count() -> None:
            for _ in range(WRITES):
                assert backend.update(message_id, outside(increment=1)) is Outcome.APPLIED

        together(count, count)
        # Then the sum is exact
        record = backend.read(message_id)
        assert record is not None and (record[PROGRESS], record[VERSION]) == (str(2 * WRITES), str(2 * WRITES + 1))

    def test_no_count_is_lost(self, backend: StatusBackend, message_id: str) -> None:
        # Given a running message whose total is unknown
        backend.update(message_id, start(1, t="null"))

        # When its run and another writer count on the same fields at the same time
        def count_in_the_run() -> None:
            for place in range(2, WRITES + 2):
                assert backend.update(message_id, counting(write(1, place), rows=1, t=2)) is Outcome.APPLIED

        def count_outside() -> None:
            for _ in range(WRITES):
                assert backend.update(message_id, counting(outside(), rows=1, t=2)) is Outcome.APPLIED

        together(count_in_the_run, count_outside)
        # Then the sums are exact
        record = backend.read(message_id)
        assert record is not None and (record[":rows"], record[TOTAL]) == (str(2 * WRITES), str(4 * WRITES))

    def test_no_field_is_lost(self, backend: StatusBackend, message_id: str) -> None:
        # Given a running message
        backend.update(message_id, start(1))

        # When two threads write fields of their own at the same time, in two kinds of call
        def write_one_by_one() -> None:
            for n in range(WRITES):
                backend.update(message_id, Update(Kind.OUTSIDE, fields={f":one-{n}": str(n)}))

        def write_in_batches() -> None:
            for first in range(0, WRITES, 10):
                fields = [{f":two-{n}": str(n)} for n in range(first, first + 10)]
                backend.update_many([(message_id, Update(Kind.OUTSIDE, fields=one)) for one in fields])

        together(write_one_by_one, write_in_batches)
        # Then all are there
        record = backend.read(message_id)
        expected = {f":{who}-{n}": str(n) for who in ("one", "two") for n in range(WRITES)}
        assert record is not None and {name: text for name, text in record.items() if name[0] == ":"} == expected

    def test_a_contended_message_is_no_trouble_for_others(
        self, backend: StatusBackend, make_backend: Callable[..., StatusBackend], message_id: str
    ) -> None:
        # Given a message that another writer writes to all the time
        other = make_backend()
        backend.update(message_id, start(1))
        over = threading.Event()

        def write_on() -> None:
            while not over.is_set():
                other.update(message_id, outside(step="1"))

        def count() -> None:
            try:
                count_in_batches(backend, message_id, outside(increment=1), batches=50)
            finally:
                over.set()

        # When it is written in batches with others
        together(write_on, count)
        # Then the outcomes name the updates that were carried out, and each counts once
        record = backend.read(message_id)
        assert record is not None and record[PROGRESS] == "50"

    def test_a_message_without_room_is_no_trouble_for_others(self, backend: StatusBackend, message_id: str) -> None:
        # Given an update that the store has no room for
        too_large = self.too_large()
        backend.update(message_id, start(1))
        # When it is sent in batches with updates of other messages
        count_in_batches(backend, message_id, too_large, batches=5)
        # Then none of them is lost or counts twice, and the message has what it had
        record = backend.read(message_id)
        assert record is not None and record[STATE] == str(WORKING)
        # And alone, it is no sign of a store that does not answer
        outcomes = backend.update_many([(message_id, too_large)])
        assert outcomes in ([Outcome.REFUSED], [Outcome.APPLIED])

    def test_one_of_two_starts_owns_it(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message that is delivered to many workers at once
        backend.update(message_id, enqueue())
        runs = range(1, 9)

        # When they all start it
        def work(run: int) -> Callable[[], None]:
            def start_it() -> None:
                assert backend.update(message_id, start(run)) is Outcome.APPLIED

            return start_it

        together(*map(work, runs))
        # Then each was counted, and one of them can finish it
        record = backend.read(message_id)
        outcomes = [backend.update(message_id, finish(run)) for run in runs]
        assert record is not None and record[ATTEMPTS] == "8"
        assert (outcomes.count(Outcome.APPLIED), outcomes.count(Outcome.REFUSED)) == (1, 7)

    def test_an_interrupted_call_spoils_no_other(self, backend: StatusBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        # An interrupt may strike in a driver's __del__, where nobody can catch it
        monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
        # Given records that say whose they are
        ids = [uuid4().hex for _ in range(20)]
        backend.update_many([(message_id, start(1, mark=f'"{message_id}"')) for message_id in ids])
        wrong: list[object] = []
        calls = 0

        def call() -> None:
            nonlocal calls
            for message_id in random.sample(ids, 5):
                calls += 1
                found = backend.read(message_id)
                if found is None or found[":mark"] != f'"{message_id}"':
                    wrong.append((message_id, found))
                calls += 1
                outcome = backend.update(message_id, outside(mark=f'"{message_id}"'))
                if outcome is not Outcome.APPLIED:
                    wrong.append((message_id, outcome))
                if backend.begin_update(message_id, start(1))() is not Outcome.DUPLICATE:
                    wrong.append((message_id, "begin_update"))
            found_many = read_many(backend, ids)
            if [record and record[":mark"] for record in found_many] != [f'"{message_id}"' for message_id in ids]:
                wrong.append(found_many)

        # When a thread that reads and writes them is interrupted, again and again
        interrupts = interrupt_while(call, lambda: calls < INTERRUPTED_CALLS and not wrong)
        # Then no call ever gets what another one asked for
        assert interrupts > 0 and not wrong
        call()
        assert not wrong

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="Needs os.fork.")
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_fork_shares_no_connection(self, backend: StatusBackend) -> None:
        # Given records that say whose they are, and a backend that has been used
        ids = [uuid4().hex for _ in range(10)]
        backend.update_many([(message_id, start(1, mark=f'"{message_id}"')) for message_id in ids])

        def read_all() -> bool:
            for _ in range(100):
                for message_id in ids:
                    record = backend.read(message_id)
                    if record is None or record[":mark"] != f'"{message_id}"':
                        return False
                    if backend.update(message_id, heartbeat(1)) is not Outcome.APPLIED:
                        return False
            return True

        assert read_all()
        # When the process forks, and parent and child both use it
        child = os.fork()
        if child == 0:
            code = 2
            try:
                code = 0 if read_all() else 1
            finally:
                os._exit(code)
        try:
            right_in_parent = read_all()
        finally:
            _, status = os.waitpid(child, 0)
        # Then both get their own replies, and the child's end closes nothing of the parent's
        assert (right_in_parent, os.waitstatus_to_exitcode(status), read_all()) == (True, 0, True)

    def test_a_closed_backend_opens_again(self, backend: StatusBackend, message_id: str) -> None:
        # Given a backend that was used and closed
        backend.update(message_id, enqueue())
        backend.close()
        # When it is used again
        # Then it works
        assert backend.update(message_id, start(1)) is Outcome.APPLIED

    # Telling of changes

    @pytest.fixture
    def hearing(self, backend: StatusBackend, message_id: str) -> Iterator[Subscription]:
        """Hears of a message that waits, if the backend can tell."""
        backend.update(message_id, enqueue())
        subscription = backend.subscribe((message_id,))
        if subscription is None:
            pytest.skip("This backend does not tell of changes.")
        yield subscription
        subscription.close()

    def test_a_change_is_told(self, backend: StatusBackend, hearing: Subscription, message_id: str) -> None:
        # Given somebody who hears of a message
        for update in (start(1), write(1, 2, step="1"), outside(increment=1), enqueue(number=2), start(2, number=2)):
            # When it changes
            backend.update(message_id, update)
            # Then they are told, and of which version
            record = backend.read(message_id)
            assert record is not None
            assert heard_of(hearing, message_id, int(record[VERSION])), update

    def test_a_delete_is_told(self, backend: StatusBackend, hearing: Subscription, message_id: str) -> None:
        # Given somebody who hears of a message
        # When it is deleted
        backend.delete(message_id)
        # Then they are told
        assert heard_of(hearing, message_id, 0)

    def test_changes_of_other_messages_are_not_told(
        self, backend: StatusBackend, hearing: Subscription, message_id: str
    ) -> None:
        # Given somebody who hears of a message
        # When another one changes before it does
        backend.update_many([(message_id + "x", enqueue()), (message_id[:-1], enqueue())])
        backend.update(message_id, start(1))
        # Then they are told of theirs alone
        record = backend.read(message_id)
        assert record is not None and heard_of(hearing, message_id, int(record[VERSION]))

    def test_what_happened_before_is_not_told(
        self, backend: StatusBackend, hearing: Subscription, message_id: str
    ) -> None:
        # Given a message that has been written to before somebody hears of it
        # When nothing happens
        # Then nothing is told
        assert hearing.wait(0.05) == {}

    def test_who_no_longer_hears_disturbs_nobody(self, backend: StatusBackend, message_id: str) -> None:
        # Given two who hear of a message
        backend.update(message_id, enqueue())
        one, two = (backend.subscribe((message_id,)) for _ in range(2))
        if one is None or two is None:
            pytest.skip("This backend does not tell of changes.")
        # When one of them has closed, and the message changes
        one.close()
        outcome = backend.update(message_id, start(1))
        # Then the other is told
        record = backend.read(message_id)
        assert outcome is Outcome.APPLIED and record is not None
        assert heard_of(two, message_id, int(record[VERSION]))
        two.close()

    # Outages

    def test_a_server_that_does_not_answer(self, outage: tuple[PausableServer, StatusBackend], message_id: str) -> None:
        # Given a server that takes connections and answers nothing
        server, backend = outage
        backend.update(message_id, start(1))
        server.pause()
        # When it is asked for something, over an old connection and over a new one
        # Then that ends in a BackendError, which has a cause
        for call in (backend.read, lambda m: backend.update(m, outside(step="1")), backend.delete, backend.read):
            with pytest.raises(BackendError) as caught:
                call(message_id)
            assert caught.value.__cause__ is not None

    def test_late_replies_are_nobodys(self, outage: tuple[PausableServer, StatusBackend]) -> None:
        # Given calls that gave up waiting for their replies
        server, backend = outage
        ids = [uuid4().hex for _ in range(5)]
        backend.update_many([(message_id, start(1, mark=f'"{message_id}"')) for message_id in ids])
        server.pause()
        for message_id in ids[:2]:
            with pytest.raises(BackendError):
                backend.read(message_id)
        # When the server goes on, and sends them
        server.resume()
        # Then nobody takes them for their own
        found = [backend.read(message_id) for message_id in ids]
        assert [record and record[":mark"] for record in found] == [f'"{message_id}"' for message_id in ids]

    def test_a_server_that_is_down(self, outage: tuple[PausableServer, StatusBackend], message_id: str) -> None:
        # Given a server that was used and is down
        server, backend = outage
        backend.update(message_id, start(1))
        server.stop()
        # When it is asked for something
        # Then that ends in a BackendError
        for call in (backend.read, lambda m: backend.update(m, enqueue()), backend.delete, lambda m: backend.read(m)):
            with pytest.raises(BackendError) as caught:
                call(message_id)
            assert caught.value.__cause__ is not None

    def test_no_read_of_a_server_that_is_down_is_unknown(
        self, outage: tuple[PausableServer, StatusBackend], message_id: str
    ) -> None:
        # Given a server that was used and is down
        server, backend = outage
        backend.update(message_id, start(1))
        server.stop()
        for call in reads_of(backend, message_id):
            # When it is read, in whatever way
            # Then that ends in a BackendError
            with pytest.raises(BackendError):
                call()

    def test_no_error_is_taken_for_unknown(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message, and a store that answers reads with an error
        backend.update(message_id, start(1))
        assert backend.read(message_id) is not None
        for name, refusal in self.refusals(backend).items():
            with refusal:
                for call in reads_of(backend, message_id):
                    # When it is read, in whatever way
                    # Then that ends in a BackendError
                    with pytest.raises(BackendError, match=name):
                        call()
            # And afterwards it is what it was
            assert StatusRegistry.get(message_id, backend=backend).working

    def test_begun_updates_and_a_server_that_is_down(
        self, outage: tuple[PausableServer, StatusBackend], message_id: str
    ) -> None:
        # Given a server that was used and is down
        server, backend = outage
        backend.update(message_id, start(1))
        server.stop()
        # When an update is begun and completed
        # Then one of the two ends in a BackendError
        with pytest.raises(BackendError):
            backend.begin_update(message_id, enqueue())()

    def test_a_server_that_is_back(self, outage: tuple[PausableServer, StatusBackend], message_id: str) -> None:
        # Given a server that was missed
        server, backend = outage
        backend.update(message_id, start(1))
        server.stop()
        with pytest.raises(BackendError):
            backend.read(message_id)
        # When it is back, empty
        server.start()
        # Then all works, with the same backend
        assert backend.update(message_id, write(1, 2)) is Outcome.MISSING
        assert backend.update(message_id, write(1, 2, create=True)) is Outcome.APPLIED
        assert backend.read(message_id) is not None

    @pytest.mark.parametrize("name", ["update", "read"])
    def test_a_restart_that_nobody_saw(
        self, outage: tuple[PausableServer, StatusBackend], message_id: str, name: str
    ) -> None:
        # Given a connection that the server has closed while nobody used it
        server, backend = outage
        backend.update(message_id, enqueue())
        server.stop()
        server.start()
        # When it is used the next time
        # Then a new one is opened
        if name == "update":
            assert backend.update(message_id, enqueue()) is Outcome.APPLIED
        else:
            assert backend.read(message_id) is None


def count_in_batches(backend: StatusBackend, message_id: str, update: Update, *, batches: int) -> None:
    """Send an update with others, as a writer does: again where a message was not reached.  Check the sums."""
    ids = [uuid4().hex for _ in range(5)]
    backend.update_many([(other, start(1)) for other in ids])
    for _ in range(batches):
        left = [(message_id, update), *[(other, outside(increment=1)) for other in ids]]
        while left:
            outcomes = backend.update_many(left)
            left = [one for one, outcome in zip(left, outcomes) if outcome is Outcome.UNREACHED]
    assert [record and record[PROGRESS] for record in read_many(backend, ids)] == [str(batches)] * 5


def heard_of(subscription: Subscription, message_id: str, version: int) -> bool:
    """Whether a version of a message is told in time, and nothing of any other message."""
    deadline = time.monotonic() + HEARING
    while (left := deadline - time.monotonic()) > 0:
        heard = subscription.wait(left)
        if heard.keys() - {message_id}:
            return False
        if heard.get(message_id) == version:
            return True
    return False


def listed(backend: StatusBackend, query: Query) -> list[str]:
    """The ids of all messages that a query is for, page after page."""
    return [one.message_id for page in pages_of(backend, query) for one in page if one.record is not None]


def pages_of(backend: StatusBackend, query: Query, limit: int = 100) -> Iterator[list[Listed]]:
    """All pages of a list."""
    after = None
    while page := backend.find(query, limit=limit, after=after):
        # Otherwise a backend that lists its cursor's message again has pages without end.
        assert after is None or (page[0].position, page[0].message_id) < after, (page[0], after)
        yield page
        after = Cursor(page[-1].position, page[-1].message_id)


def await_end(backend: StatusBackend, message_id: str) -> None:
    """Wait until a record that lives for a moment has expired."""
    deadline = time.monotonic() + 10
    while backend.read(message_id) is not None and time.monotonic() < deadline:
        time.sleep(0.02)


def write_later(backend: StatusBackend, message_id: str, update: Update) -> None:
    """Carry out an update in a millisecond of its own, as its order is told by the clock."""
    begin = now_ms()
    while now_ms() <= begin + 1:
        time.sleep(0.001)
    backend.update(message_id, update)


def with_actor(update: Update, actor_name: str) -> Update:
    """Add what the layers above let every update carry that may make a record."""
    if update.kind is not Kind.ENQUEUE and not update.create:
        return update
    return update._replace(fields={**update.fields, ACTOR_NAME: f'"{actor_name}"'})


def life_to(state: int, **fields: str) -> list[Update]:
    """The updates that bring a new message into a state."""
    return [enqueue()._replace(fields=named(fields)), start(1), finish(1, state=state)][: min(state, COMPLETED) + 1]


def together(*functions: Callable[[], None]) -> None:
    """Call functions at the same time, each in a thread of its own; raise what they raise."""
    barrier = threading.Barrier(len(functions))

    def run(function: Callable[[], None]) -> None:
        barrier.wait(30)
        function()

    with ThreadPoolExecutor(len(functions)) as threads:
        for future in [threads.submit(run, function) for function in functions]:
            future.result()


def reads_of(backend: StatusBackend, message_id: str) -> list[Callable[[], Any]]:
    """All ways to read a message, and to list it where the backend lists."""
    status, batch = StatusRegistry.get(message_id, backend=backend), StatusRegistry.batch([message_id], backend=backend)
    reads: list[Callable[[], Any]] = [
        lambda: backend.read(message_id),
        lambda: backend.read_many([message_id, "another"]),
        lambda: backend.snapshot(message_id),
        lambda: backend.snapshots([message_id, "another"]),
        lambda: StatusRegistry.read_many([message_id, "another"], backend=backend, return_errors=True),
        lambda: StatusRegistry.wait(message_id, backend=backend),
        lambda: StatusRegistry.progress(message_id, backend=backend).total,
        lambda: status.state,
        lambda: status.get("step"),
        status.to_json,
        batch.read,
        batch.wait,
    ]
    if type(backend).find is not StatusBackend.find:
        reads += [lambda: backend.find(Query(), limit=50, after=None), lambda: backend.count(Query())]
    return reads


class Interrupt(BaseException):
    """What strikes a thread, as a time limit does."""


def interrupt_while(call: Callable[[], None], goes_on: Callable[[], bool]) -> int:
    """Call again and again in a thread, and interrupt it in the middle, as Dramatiq does.

    Returns:
      int: How often it was interrupted.
    """
    caught = 0
    failures: list[BaseException] = []
    over = threading.Event()

    def work() -> None:
        nonlocal caught
        while goes_on() and caught < INTERRUPTS:
            try:
                call()
            except (Interrupt, BackendError):
                caught += 1

    def shielded() -> Iterator[None]:
        # An interrupt may also strike while the one before it is handled.
        while not over.is_set():
            try:
                work()
                over.set()
            except Interrupt:
                yield
            except BaseException as e:
                failures.append(e)
                over.set()

    def run() -> None:
        while not over.is_set():
            try:
                for _ in shielded():
                    pass
            except Interrupt:
                pass

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    pause = random.Random(7)
    while not over.wait(pause.uniform(0.0002, 0.003)):
        assert thread.ident is not None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(Interrupt))
    thread.join(30)
    if failures:
        raise failures[0]
    return caught
