"""Tests of lists by states that stores do not index."""

from __future__ import annotations

import time
from contextlib import closing

import pytest

from dramatiq_status import StatusRegistry
from dramatiq_status.backends import StubBackend
from dramatiq_status.snapshot import Snapshot
from dramatiq_status.state_filter import AMONG, MAX_SEARCHED, StatePage
from dramatiq_status.testing.updates import enqueue

from .jobs import Job


def read(backend: StubBackend, page: StatePage) -> tuple[list[str], int]:
    """Read a page; return its ids, and the number of jobs that were read."""
    number = 0
    while page.to_read:
        found: list[Snapshot] = StatusRegistry.list(
            page.read_from, limit=page.to_read, after=page.read_after, backend=backend
        )
        number += len(found)
        page.take(found)
    return [snapshot.message_id for snapshot in page.jobs], number


def test_pages_of_a_state_among_another() -> None:
    with closing(StubBackend()) as backend:
        # Given three stalled jobs that have not changed for a long time, and more jobs than one page reads
        stalled = [Job(backend, f"stalled-{number}").enqueue().start(heartbeat_interval=1) for number in range(3)]
        for number in range(MAX_SEARCHED + 100):
            Job(backend, f"job-{number}").enqueue().start()
        # When pages of two stalled jobs are read
        first = StatePage("stalled", 2)
        assert read(backend, first) == ([], MAX_SEARCHED)
        second = StatePage("stalled", 2, first.after)
        ids, number = read(backend, second)
        third = StatePage("stalled", 2, second.after)
        # Then each page begins where the one before ends, and the last one has no cursor
        assert [*ids, *read(backend, third)[0]] == [job.message_id for job in reversed(stalled)]
        assert number <= 103 and first.after and second.after and third.after is None
        # And a wrong cursor raises an error
        with pytest.raises(ValueError):
            read(backend, StatePage("stalled", 2, "failed.x"))
        # And a reader without a limit gets all of them in one page
        assert len(read(backend, StatePage("stalled", 5, searched=10_000))[0]) == 3


def test_overdue_jobs_are_found_behind_those_whose_workers_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dramatiq_status.snapshot.QUEUE_PATIENCE", -1_000)
    with closing(StubBackend()) as backend:
        # Given a job whose worker is gone, one that runs, and two that no worker has taken for too long
        Job(backend, "gone").enqueue().start(heartbeat_interval=1)
        Job(backend, "runs").enqueue().start()
        for name in ("first", "second"):
            Job(backend, name).enqueue()
        while not StatusRegistry.get("gone", backend=backend).stalled:
            time.sleep(0.001)
        # When pages of one stalled job are read
        ids, after = [], None
        for _ in range(4):
            page = StatePage("stalled", 1, after)
            ids += read(backend, page)[0]
            after = page.after
        # Then the pages have all stalled jobs, in order in each state
        assert (ids, after) == (["gone", "second", "first"], None)
        assert read(backend, StatePage("stalled", 9))[0] == ids


def test_a_state_that_stores_index_is_read_as_it_is() -> None:
    with closing(StubBackend()) as backend:
        for number in range(5):
            backend.update(f"job-{number}", enqueue())
        page = StatePage("queued", 3)
        assert read(backend, page) == (["job-4", "job-3", "job-2"], 3)
        page = StatePage("queued", 3, page.after)
        assert read(backend, page) == (["job-1", "job-0"], 2) and page.after is None


@pytest.mark.parametrize("state", AMONG)
def test_jobs_of_other_states_are_left_out(state: str) -> None:
    with closing(StubBackend()) as backend:
        backend.update("queued", enqueue())
        Job(backend, "working").enqueue().start()
        StatusRegistry.cancel("queued", backend=backend)
        assert read(backend, StatePage(state, 9))[0] == (["queued"] if state == "cancelled" else [])
