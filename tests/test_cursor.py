"""Cursors of lists, and values that are refused in their place."""

from __future__ import annotations

import asyncio
import copy
import pickle
from base64 import urlsafe_b64encode
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dramatiq_status import Snapshot, StatusRegistry, aio
from dramatiq_status.backend import Listed, Query
from dramatiq_status.backends import StubBackend
from dramatiq_status.cursor import MAX_POSITION, MAX_SIZE, Cursor, decode, encode

from .jobs import Job


def coded(text: str | bytes) -> str:
    return urlsafe_b64encode(text if isinstance(text, bytes) else text.encode()).decode().rstrip("=")


@given(
    position=st.integers(0, MAX_POSITION - 1),
    message_id=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=50),
)
def test_cursors_fit_a_url_and_are_read_back(position: int, message_id: str) -> None:
    cursor = Cursor(position, message_id)
    # When a cursor is written as a text
    text = encode(cursor)
    # Then it needs no escapes in a URL, and is read as the same cursor
    assert quote(text, safe="") == text and len(text) <= MAX_SIZE
    assert decode(text) == cursor


@given(st.text(max_size=40))
def test_a_text_is_a_cursor_or_an_error(text: str) -> None:
    try:
        cursor = decode(text)
    except ValueError:
        return
    assert encode(cursor) == text


WRONG = {
    "empty": "",
    "a message id": "0f2d1c0a-9f0b-4c55-a4cd-9c4d1b7d3c33",
    "an offset": "50",
    "no base64": "!!!!",
    "not ASCII": "žluť",
    "a line break at its end": encode(Cursor(5, "m")) + "\n",
    "padded": coded("5 mm") + "=",
    "cut off": encode(Cursor(5, "message"))[:-1],
    "with more": encode(Cursor(5, "message")) + "A",
    "bits at its end": "NSBtbR",
    "not UTF-8": coded(b"5 \xff"),
    "no id": coded("5 "),
    "no position": coded(" m"),
    "negative": coded("-5 m"),
    "a fraction": coded("5.5 m"),
    "infinite": coded("inf m"),
    "zeros": coded("007 m"),
    "other digits": coded("\u0665 m"),
    "too high": coded(f"{MAX_POSITION} m"),
    "very long number": coded("9" * 5000 + " m"),
    "an id with a line break": coded("5 a\nb"),
    "an id with NUL": coded("5 a\0"),
    "an id that is too long": coded("5 " + "x" * 201),
    "very long": "A" * 1_000_000,
    "a lone surrogate": "\ud800",
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_cursors_raise_a_short_error(every_backend: Any, name: str) -> None:
    # When a page is listed after a value that is no cursor
    with pytest.raises(ValueError, match=r"^after is no cursor .*pass the last snapshot of the page before") as caught:
        StatusRegistry.list(after=WRONG[name], backend=every_backend)
    # Then the error is short, and names what to pass
    assert len(str(caught.value)) < 5 * MAX_SIZE

    async def main() -> None:
        with pytest.raises(ValueError, match=r"^after is no cursor"):
            await aio.StatusRegistry.list(after=WRONG[name], backend=every_backend)

    asyncio.run(main())


@pytest.mark.parametrize("after", [5, b"NSBt", 1.5, ("5", "m"), Cursor(5, "m"), object()], ids=repr)
def test_other_types_than_cursors_raise(after: Any) -> None:
    with pytest.raises(TypeError, match=f"^after must be a Snapshot or a str, not {type(after).__name__}: pass"):
        StatusRegistry.list(after=after, backend=StubBackend())


def test_a_snapshot_that_was_read_has_no_cursor() -> None:
    # Given a snapshot that was read by its message id
    backend = StubBackend()
    job = Job(backend).enqueue()
    snapshot = StatusRegistry.read(job.message_id, backend=backend)
    assert snapshot is not None and snapshot.cursor is None
    # When a page is listed after it
    # Then the error names the snapshot to pass
    with pytest.raises(ValueError, match=r"^after must be a snapshot that list\(\) has returned, not <Snapshot of"):
        StatusRegistry.list(after=snapshot, backend=backend)


def test_copies_keep_their_cursor() -> None:
    # Given a snapshot of a list, and one that was read
    backend = StubBackend()
    job = Job(backend).enqueue()
    (listed,) = StatusRegistry.list(backend=backend)
    read = StatusRegistry.read(job.message_id, backend=backend)
    assert isinstance(listed.cursor, str)
    # When they are copied or pickled
    for make in (copy.copy, copy.deepcopy, lambda snapshot: pickle.loads(pickle.dumps(snapshot))):
        # Then the copies have a cursor if the originals have one
        assert make(listed).cursor == listed.cursor and make(read).cursor is None
    # And both show the same status
    assert listed == read and hash(listed) == hash(read) and listed.to_dict() == read.to_dict()


class Damaged(StubBackend):
    """A backend that lists some messages whose records no reader can decode, or whose ids no message can have."""

    def find(self, query: Query, *, limit: int, after: Cursor | None) -> list[Listed]:
        return [self._break(found) for found in super().find(query, limit=limit, after=after)]

    def _break(self, found: Listed) -> Listed:
        if not 3 < found.position < 13:
            return found
        if found.position == 12:
            return found._replace(message_id="a\nb")
        return found._replace(record=None if found.position % 2 else {"s": "9"})


@pytest.mark.parametrize("limit", [1, 2, 7, 50])
def test_a_page_is_empty_only_at_the_end(limit: int) -> None:
    # Given a store that lists damaged records in the middle
    backend = Damaged()
    ids = [Job(backend).enqueue().message_id for _ in range(15)]
    shown = []
    # When one page after another is listed, until one is empty
    page: list[Snapshot] = StatusRegistry.list(limit=limit, backend=backend)
    while page:
        shown += [snapshot.message_id for snapshot in page]
        page = StatusRegistry.list(limit=limit, after=page[-1], backend=backend)
    # Then all other messages have been listed, in event loops, too
    assert sorted(shown) == sorted(ids[:3] + ids[12:])

    async def main() -> list[str]:
        page, shown = await aio.StatusRegistry.list(limit=limit, backend=backend), []
        while page:
            shown += [snapshot.message_id for snapshot in page]
            page = await aio.StatusRegistry.list(limit=limit, after=page[-1].cursor, backend=backend)
        return shown

    assert asyncio.run(main()) == shown
