"""The figures of the explanation are those of the code."""

from __future__ import annotations

import re

import pytest

from dramatiq_status import cancel_log, cancels, circuit_breaker, record
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends.memcached import backend as memcached
from dramatiq_status.backends.memcached import rounds
from dramatiq_status.backends.redis import operations
from dramatiq_status.backends.sqlite import backend as sqlite
from dramatiq_status.writer import writer

from .pages import ROOT

DOCS = ROOT / "docs"


def text_of(page: str) -> str:
    """Return the text of a page in one line, with single spaces."""
    return " ".join((DOCS / f"{page}.rst").read_text(encoding="utf-8").split())


def test_the_page_has_all_stored_names() -> None:
    # Given the table of names, and the constants of the module that defines them
    page = (DOCS / "how-it-works.rst").read_text(encoding="utf-8")
    table = page.partition("\nWhat is stored\n")[2].partition("\nThe writer\n")[0].partition("======")[2]
    shown = {name for name in re.findall(r"``([^`]+)``", table) if len(name) <= 2}
    source = (ROOT / "dramatiq_status" / "record.py").read_text(encoding="utf-8")
    stored = set(re.findall(r'^[A-Z_]+: Final = "([A-Za-z][A-Za-z1]?)"$', source, flags=re.MULTILINE))
    # Then both have the same names, and the mark of a deleted field
    assert shown == {*stored, f"{record.DELETED_PREFIX}{record.USER_PREFIX}"}


@pytest.mark.parametrize(
    "page, sentence, numbers",
    [
        ("how-it-works", "at first after {:g} seconds, later after {:g} seconds", "FIRST_PAUSE LONGEST_PAUSE"),
        ("how-it-works", "1 for {:,} updates, or {:,} reads", "UPDATES_PER_CALL READS_PER_CALL"),
        ("how-it-works", "1 a server for {:,} updates, or {:,} reads", "WRITES_PER_ROUND_TRIP READS_PER_ROUND_TRIP"),
        ("how-it-works", "1 transaction, or query for {:,}", "ROWS_PER_QUERY"),
        ("explanation/guarantees", "the last {:,} cancelled messages on Redis and SQLite", "MAX_LOGGED"),
        ("explanation/guarantees", "and the last {:,} on other stores", "MAX_MARKS"),
        ("explanation/guarantees", "A worker that finds {:,} new ones", "MAX_MARKS"),
    ],
)
def test_the_pages_have_the_numbers_of_the_code(page: str, sentence: str, numbers: str) -> None:
    modules = (cancel_log, circuit_breaker, operations, memcached, rounds, sqlite)
    found = [next(vars(module)[name] for module in modules if name in vars(module)) for name in numbers.split()]
    assert sentence.format(*found) in text_of(page)


def test_the_pages_have_the_times_of_the_code() -> None:
    assert "looks every two milliseconds" in text_of("how-it-works") and writer.CHECK_INTERVAL == 0.002
    assert "polls, 50 ms to 1 s apart" in text_of("how-it-works") and StatusBackend.poll_interval == (50, 1000)
    assert "once a second" in text_of("how-it-works") and StatusBackend.cancel_interval == 1000
    assert "tries for five seconds" in text_of("explanation/guarantees") and writer.EXIT_TIMEOUT == 5
    assert (
        "before this read of the log, or up to a minute after it" in text_of("explanation/guarantees")
        and cancels._CLOCK_SKEW == 60_000
    )
    missed = record.STALLED_AFTER * record.DEFAULT_HEARTBEAT_INTERVAL
    assert (
        f"({missed // 1000} seconds by default)" in text_of("explanation/states")
        and record.QUEUE_PATIENCE == 86_400_000
    )
