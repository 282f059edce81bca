"""Property tests of the texts for a terminal."""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from contextlib import closing
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dramatiq_status import StatusRegistry
from dramatiq_status.backend import now_ms
from dramatiq_status.backends import StubBackend
from dramatiq_status.cli.facts import Facts
from dramatiq_status.cli.rows import Job, table
from dramatiq_status.cli.terminal import Terminal, terminal_of
from dramatiq_status.cli.text import clean, cut, pad, width
from dramatiq_status.record import SCHEDULED_AT
from dramatiq_status.testing.updates import outside
from dramatiq_status.words import SCHEDULED, STATES, time_of

from ..jobs import Job as StoredJob

texts = st.text(max_size=30)
shown = texts.map(clean)
terminals = st.builds(
    Terminal, st.just(True), st.integers(20, 400), st.sampled_from(["all", "plain", "none"]), st.booleans()
)
facts = st.builds(
    Facts,
    st.sampled_from(STATES),
    shown,
    st.uuids().map(str),
    st.one_of(st.none(), st.integers(0, 100)),
    shown,
    st.sampled_from(["", "420 of 1,000", "1,284 so far"]),
    st.sampled_from(["", "35/s"]),
    shown,
    st.sampled_from(["", "attempt 2"]),
    st.sampled_from(["", "17 s left", "no sign of life for 2 min", "starts in 3 min 59 s"]),
)


@given(text=texts)
def test_a_clean_text_is_harmless(text: str) -> None:
    found = clean(text)
    assert all(character.isprintable() or unicodedata.category(character) == "Zs" for character in found)
    assert clean(found) == found


@given(text=shown, cells=st.integers(0, 40))
def test_a_cut_text_fits(text: str, cells: int) -> None:
    found = cut(text, cells)
    assert width(found) <= cells
    assert found == text or width(text) > cells
    assert width(pad(found, cells)) == cells


@given(
    jobs=st.lists(st.builds(Job, facts, shown, st.sampled_from(["", "now", "3 min ago"])), max_size=8),
    terminal=terminals,
)
def test_no_row_is_wider_than_the_terminal(jobs: list[Job], terminal: Terminal) -> None:
    for row in table(jobs, terminal):
        assert sum(width(text) for text, _ in row) <= terminal.width
        assert terminal.colours != "none" or "\x1b" not in terminal.paint(row)


STALLED = Facts("Stalled", "import_orders", "8bbf33fe", 37, "shrinking", time="no sign of life for 6 min 52 s")
RETRIES = Facts("Retrying", "sync_inventory", "3d5a4fd1", 61, reason="TimeoutError: no answer from the shop in 30 s")
RETRYING = RETRIES._replace(attempt="attempt 2", time="again in 6 min 9 s")
MOVING = Facts("Completed", "Thumbnails", "demo-5", 13, "its messages still run", "8 of 60", moves=True)


@pytest.mark.parametrize(
    ("facts", "columns", "ends"),
    [
        (STALLED, 120, "──────── 37% shrinking no sign of life for 6 min 52 s"),
        (STALLED, 80, "─────── 37% no sign of life for 6 min"),
        (STALLED, 60, "─────── 37% silent for 6 min"),
        (STALLED._replace(time="no sign of life for 16 h 40 min"), 60, "─── 37% silent for 16 h"),
        (STALLED._replace(time="no sign of life for 16 min 40 s"), 60, "import_orders 37% no sign of life for 16 min"),
        (STALLED, 40, " import_orders 37% silent for 6 min"),
        (RETRYING, 120, "┃──── 61% TimeoutError: no answer from the… again in 6 min 9 s"),
        (RETRYING, 80, "┃─── 61% attempt 2 again in 6 min"),
        (RETRYING, 60, "┃─── 61% again in 6 min"),
        (MOVING, 120, "─ 13% its messages still run · 8 of 60"),
        (MOVING, 80, "─ 13% its messages still run"),
        (MOVING, 60, "─ 13% 8 of 60"),
        (MOVING, 40, " Thumbnails 13% 8 of 60"),
    ],
)
def test_a_narrow_row_keeps_what_matters(facts: Facts, columns: int, ends: str) -> None:
    # Given a job between jobs with a long name
    jobs = [Job(Facts("Queued", "make_thumbnails_of_all_photos", "729fae92"))] * 2
    _, row, _ = table([jobs[0], Job(facts), jobs[1]], Terminal(True, columns, "none", True))
    text = "".join(text for text, _ in row)
    assert re.sub(" +", " ", text).endswith(ends) and width(text) <= columns


def test_a_terminal_that_reports_no_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    manager, end = os.openpty()
    try:
        with open(end, "w") as stream:
            monkeypatch.setattr(sys, "__stdout__", stream)
            found = terminal_of(stream)
    finally:
        os.close(manager)
    assert found.live and found.width == 160


def test_a_countdown_ends_with_one_second() -> None:
    with closing(StubBackend()) as backend:
        job = StoredJob(backend).enqueue()
        backend.update(job.message_id, outside(**{SCHEDULED_AT: str(now_ms() + 60_000)}))
        snapshot = StatusRegistry.read(job.message_id, backend=backend)
        assert snapshot is not None and snapshot.scheduled_at is not None
        seen = [
            time_of(SCHEDULED, snapshot, snapshot.scheduled_at - timedelta(milliseconds=left))
            for left in (2_000, 1_999, 200, 0)
        ]
        assert seen == ["starts in 2 s", "starts in 2 s", "starts in 1 s", ""]
