"""What the box of the pages finds, and the pages for texts by which it finds no job."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from cachelib import SimpleCache

from dramatiq_status import StatusRegistry
from dramatiq_status.backends import CacheBackend, RedisBackend
from dramatiq_status.cli import arguments
from dramatiq_status.record import ATTEMPTS, QUEUED, SCHEDULED_AT
from dramatiq_status.state_filter import AMONG
from dramatiq_status.web import listing

from ..jobs import Job
from .serving import Answer, Site, serving
from .test_dashboard import mounted
from .test_element import start


@pytest.fixture
def site(backend: RedisBackend) -> Iterator[Site]:
    with serving(mounted(backend)) as site:
        yield site


def text_of(answer: Answer) -> str:
    main = answer.body.decode().partition("<main")[2]
    return " ".join(html.unescape(re.sub("<[^>]+>", " ", main)).split())


def test_the_box_opens_a_job_by_the_beginning_of_its_id(site: Site, backend: RedisBackend) -> None:
    for message_id in ("3247d53f-1", "3247aaaa-1", "b/c?d#"):
        Job(backend, message_id).enqueue()
    # If the text is the beginning of one id, the page of this job is opened
    answer = site.get("/a/b/3247d53f")
    assert (answer.status, answer.headers["Location"]) == (303, "./3247d53f-1")
    # And if it is the beginning of several ids, the page has links to these jobs
    answer = site.get("/a/b/3247")
    assert answer.status == 404
    assert "2 jobs have ids that begin with 3247" in text_of(answer)
    found = re.findall(r'class="btn small" href="(3247[^"]+)"', answer.body.decode())
    assert sorted(found) == ["3247aaaa-1", "3247d53f-1"]
    # And no other text finds a job
    for typed in ("kid", "boom%20state%3Afailed", "247d53f"):
        answer = site.get(f"/a/b/{typed}")
        assert answer.status == 404
        assert "No job has this id. To search by name, type actor:NAME." in text_of(answer)
    assert "its status has expired" in text_of(site.get("/a/b/3247d53f-0000-0000-0000-000000000000"))


def test_a_short_id_finds_only_what_the_visitor_may_see(backend: RedisBackend) -> None:
    start(backend, 1, user_id=7)
    Job(backend, "3247-other").enqueue()
    Job(backend, "3247-mine").enqueue()

    def authorize(request: Any, snapshot: Any) -> str:
        is_mine = snapshot is not None and snapshot.message_id == "3247-mine"
        return "read" if is_mine or (snapshot is None and "x-lists" in request.headers) else "none"

    with serving(mounted(backend, authorize=authorize)) as site:
        assert site.get("/a/b/3247", x_lists="1").headers["Location"] == "./3247-mine"
        # A visitor who may not see the list needs the full id
        assert site.get("/a/b/3247").status == 404
        assert site.get("/a/b/3247-mine").status == 200


def test_a_store_that_cannot_list_needs_full_ids() -> None:
    with closing(CacheBackend(SimpleCache())) as backend, serving(mounted(backend)) as site:
        Job(backend, "3247-mine").enqueue()
        answer = site.get("/a/b/3247")
        assert (answer.status, "by their full ids only" in text_of(answer)) == (404, True)


@pytest.mark.parametrize(
    "query, told",
    [
        (
            "state=kid",
            "There is no state kid A state is queued, working, failed, completed, cancelled, stalled, retrying or",
        ),
        ("after=x", "after is no cursor of a list"),
    ],
)
def test_a_wrong_filter_is_answered_with_a_page(site: Site, query: str, told: str) -> None:
    answer = site.get(f"/a/b/?{query}")
    assert (answer.status, answer.headers["Content-Type"]) == (400, "text/html; charset=utf-8")
    assert told in text_of(answer)
    assert "error" in site.get(f"/a/b/list.json?{query}").json()


def test_the_page_of_a_job_shows_what_holds_for_it(backend: RedisBackend) -> None:
    waiting, ended = Job(backend).enqueue().write(user_id=42), start(backend, 1).finish()
    retrying = start(backend, 420)
    retrying._write({ATTEMPTS: "1", SCHEDULED_AT: "32503680000000"}, state=QUEUED)
    cancelled = Job(backend).enqueue()
    StatusRegistry.cancel(cancelled.message_id, backend=backend)
    with serving(mounted(backend, authorize=lambda *_: "write")) as site:
        pages = [text_of(site.get(f"/a/b/{job.message_id}")) for job in (waiting, ended, retrying, cancelled)]
    told = ["The job itself goes on.", "Only the status is deleted.", "It will not run again.", "Cancel requested"]
    assert [[text in page for text in told] for page in pages] == [
        [True, False, False, False],
        [False, True, False, False],
        [True, False, True, False],
        [False, True, False, True],
    ]
    assert "It will not run." in pages[0]
    assert "Runs so far 1" in pages[2]
    assert "Asked to stop" not in pages[3]


def test_the_command_line_and_the_dashboard_have_the_same_states() -> None:
    assert set(arguments.STATES) == {*listing.STATES, *AMONG}
