"""What the pages' script changes while a page is open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from playwright.sync_api import Browser

from dramatiq_status.backend import now_ms
from dramatiq_status.backends import RedisBackend
from dramatiq_status.record import COMPLETED, FINISHED_AT, SCHEDULED_AT, STARTED_AT
from dramatiq_status.testing.updates import outside

from ..jobs import Job
from ..recording import eventually
from .browser import Tab
from .serving import Site, serving
from .test_dashboard import fail, mounted
from .test_display import jobs_of_all_looks
from .test_element import reach, start


@pytest.fixture
def site(backend: RedisBackend) -> Iterator[Site]:
    with serving(mounted(backend, authorize=lambda *_: "write")) as site:
        yield site


def row_of(job: Job) -> str:
    return f"tr[data-id='{job.message_id}']"


def test_the_page_of_a_job_follows_its_job(tab: Tab, site: Site, backend: RedisBackend) -> None:
    # Given a page of which a visitor has opened and focused parts
    job = start(backend, 40, 150, step="step 0", deep={str(i): i for i in range(12)}, label="Orders")
    tab.open(f"{site.url}/a/b/{job.message_id}")
    assert tab.page.inner_text("h1") == "Orders"
    tab.page.click(".tree summary")
    tab.page.click("text=Raw JSON")
    tab.run("() => { window.element = document.querySelector('dramatiq-status'); }")
    # When the job goes on
    job.write(step="step 2", a_new_field=1)
    reach(job, 141, 150)
    # Then the timeline and the fields show the same as the bar, in order
    tab.until("() => /step 2 · 141 of 150/.test(document.querySelector('.steps').innerText)")
    names = tab.run("[...document.querySelectorAll('.tree > li')].map((one) => one.querySelector('.k').textContent)")
    assert names == ["label", "step", "a_new_field", "deep"]
    assert tab.page.inner_text(".tree > li:nth-child(2) .v") == "step 2"
    # And the opened parts are open, and the element is the same
    assert tab.page.locator("details[open]").count() == 2
    assert tab.run("document.activeElement.textContent") == "Raw JSON"
    assert tab.run("element === document.querySelector('dramatiq-status')")
    # When it ends
    job.finish()
    tab.until("() => /Run \\d+ completed|Completed/.test(document.querySelector('.steps').innerText)")
    # Then all parts show the end, and the job cannot be cancelled any more
    assert tab.page.inner_text(".job-head .pill") == "Completed"
    assert "Completed" in tab.text("[variant=big]")
    assert tab.page.locator("text=Cancel…").count() == 0
    assert tab.page.locator("details[open]").count() == 2


def test_times_are_those_of_the_visitor(browser: Browser, site: Site, backend: RedisBackend) -> None:
    job = start(backend, 1)
    job._write({STARTED_AT: "1795479267029"})
    scheduled = Job(backend).enqueue()
    backend.update(scheduled.message_id, outside(**{SCHEDULED_AT: "32503680000000"}))
    with closing(browser.new_context(timezone_id="Asia/Kolkata")) as context:
        page = context.new_page()
        page.goto(f"{site.url}/a/b/{job.message_id}")
        shown = page.locator(".facts time[datetime='2026-11-24T00:14:27+00:00']")
        page.wait_for_function("() => !/UTC/.test(document.querySelector('.facts time').title)")
        assert shown.first.inner_text() in ("05:44:27", "24 Nov, 05:44")
    with closing(browser.new_context(java_script_enabled=False, timezone_id="Asia/Kolkata")) as context:
        page = context.new_page()
        page.goto(f"{site.url}/a/b/{job.message_id}")
        assert page.inner_text(".facts time[datetime='2026-11-24T00:14:27+00:00']") in (
            "00:14:27 UTC",
            "24 Nov, 00:14 UTC",
        )
        page.goto(f"{site.url}/a/b/")
        assert "UTC" in page.inner_text(f"{row_of(scheduled)} .c-bar")
        assert page.inner_text(f"{row_of(scheduled)} .c-left").startswith("starts in")


def test_a_row_shows_that_its_job_is_cancelled(tab: Tab, site: Site, backend: RedisBackend) -> None:
    running, waiting = start(backend, 420, step="reading"), Job(backend).enqueue()
    tab.open(f"{site.url}/a/b/")
    tab.until("() => [...document.querySelectorAll('dramatiq-status')].every((one) => one.snapshot)")
    for job, told in ((running, "Asked to stop"), (waiting, "Cancelled")):
        row = row_of(job)
        tab.page.click(f"{row} .sure summary")
        tab.page.click(f"{row} .sure button")
        tab.until("(told) => document.querySelector('#polite').textContent == told", told)
        assert tab.page.locator(f"{row} .sure").count() == 0
    bar = f'document.querySelector("{row_of(running)} dramatiq-status").shadowRoot'
    tab.until(f"() => {bar}.querySelector('[part=text]').textContent.startsWith('asked to stop')")
    # And a row and a page that are loaded later show it, too
    eventually(lambda: "asked to stop · reading · 420 of 1,000" in site.get("/a/b/").body.decode())
    assert b'class="sure"' not in site.get("/a/b/").body
    page = site.get(f"/a/b/{running.message_id}").body.decode()
    assert "asked to stop · reading" in page
    assert "Cancel…" not in page


def test_a_row_counts_on_and_ends_as_it_is_after_a_reload(tab: Tab, site: Site, backend: RedisBackend) -> None:
    # Given jobs without a total, one of which never counts, one that waits for its time, and one with a label
    counted, silent, scheduled = start(backend, 74_070, None), Job(backend).enqueue().start(), Job(backend).enqueue()
    named = start(backend, 420, label="Orders of May")
    backend.update(scheduled.message_id, outside(**{SCHEDULED_AT: str(now_ms() + 3_600_000)}))
    tab.open(f"{site.url}/a/b/")
    # Then the time of a run grows without an event
    shown = f'document.querySelector("{row_of(silent)} .c-took").textContent'
    tab.until("() => [...document.querySelectorAll('dramatiq-status')].every((one) => one.snapshot)")
    before = tab.run(shown)
    tab.until(f"(before) => {shown} !== before", before)
    # And the time until a run is in the column of times that are left, once
    left = f"{row_of(scheduled)} .c-left"
    tab.until("(one) => /^starts in (1 h|59 min)$/.test(document.querySelector(one).textContent)", left)
    parts = f'(name) => document.querySelector("{row_of(scheduled)} dramatiq-status").shadowRoot.querySelector(name)'
    assert tab.run(f"() => ({parts})('[part=text]').checkVisibility()")
    assert not tab.run(f"() => ({parts})('[part=next]').checkVisibility()")
    # And a row has the job's name, and that of its actor
    assert tab.page.inner_text(f"{row_of(named)} .job a") == "Orders of May"
    assert tab.page.inner_text(f"{row_of(named)} .actor") == "work"
    # When jobs end
    for job, end in ((counted, "6000"), (silent, "1004")):
        job._write({STARTED_AT: "1000", FINISHED_AT: end}, state=COMPLETED, create=True)
        tab.until("(row) => document.querySelector(row).dataset.s === 'completed'", row_of(job))
    cells = [f"{row_of(job)} .c-{name}" for job in (counted, silent) for name in ("bar", "took")]
    ended = [tab.page.inner_text(cell) for cell in cells]
    tab.page.reload()
    # Then their rows are the same as after a reload
    assert ended == [tab.page.inner_text(cell) for cell in cells]
    assert ended == ["74,070", "5.0 s", "", "under 0.1 s"]


def test_rows_and_steps_of_a_phone(tab: Tab, site: Site, backend: RedisBackend) -> None:
    jobs_of_all_looks(backend)
    failed = fail(backend, "no way " * 60)
    tab.page.set_viewport_size({"width": 390, "height": 900})
    tab.open(f"{site.url}/a/b/")
    tab.until("() => [...document.querySelectorAll('dramatiq-status')].every((one) => one.snapshot)")
    # All states end at one line, and a stalled row has one time
    ends = tab.run("[...document.querySelectorAll('.c-state .pill')].map((one) => one.getBoundingClientRect().right)")
    assert len(ends) == 10 and len(set(ends)) == 1
    assert tab.page.locator("tr[data-s=stalled] .c-took:visible").count() == 0
    # A step has at most two lines of its exception, which is shown in full below
    tab.open(f"{site.url}/a/b/{failed.message_id}")
    lines = "[...document.querySelectorAll('.steps small')].map((one) => one.clientHeight / 16)"
    assert max(tab.run(lines)) == 2
