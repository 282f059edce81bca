"""The dashboard and the page of a job: as plain pages, and in a real browser."""

from __future__ import annotations

import gzip
import re
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import pytest
from playwright.sync_api import Browser
from starlette.applications import Starlette
from starlette.routing import Mount

from dramatiq_status import StatusRegistry
from dramatiq_status.backend import StatusBackend, now_ms
from dramatiq_status.backends import CacheBackend, RedisBackend, SQLiteBackend
from dramatiq_status.history import run_ended
from dramatiq_status.record import (
    ACTOR_NAME,
    ATTEMPTS,
    ENQUEUED_AT,
    EXCEPTION,
    FAILED,
    QUEUE_NAME,
    QUEUED,
    RUN_ENDED,
    SCHEDULED_AT,
    STARTED_AT,
)
from dramatiq_status.testing.updates import enqueue
from dramatiq_status.testing.updates import start as start_run
from dramatiq_status.web import allow_all, status_app
from dramatiq_status.web.listing import MAX_READ

from ..conftest import StartServer
from ..jobs import Job
from ..recording import eventually
from ..servers import RedisServer
from .browser import Tab, axe
from .serving import Site, serving
from .test_element import HOSTILE, reach, start


def mounted(backend: StatusBackend, **options: Any) -> Starlette:
    """Mount the application under a prefix."""
    options = {"authorize": allow_all, "fields": ("*", "exception.message"), **options}
    return Starlette(routes=[Mount("/a/b", status_app(backend=backend, **options))])


@pytest.fixture
def site(backend: RedisBackend) -> Iterator[Site]:
    with serving(mounted(backend)) as site:
        yield site


def fail(backend: RedisBackend, text: str = "byte 0xfc in line 121", actor_name: str = "import_orders") -> Job:
    job = start(backend, 10)
    job._write({ACTOR_NAME: f'"{actor_name}"'})
    job._write({EXCEPTION: f'{{"type": "UnicodeDecodeError", "message": "{text}"}}'}, state=FAILED, create=True)
    return job


def test_a_plain_page_shows_what_runs_and_what_failed(browser: Browser, site: Site, backend: RedisBackend) -> None:
    start(backend, 420, step="reading")
    fail(backend)
    with closing(browser.new_context(java_script_enabled=False)) as context:
        page = context.new_page()
        page.goto(site.url + "/a/b/")
        text = page.inner_text("main")
        assert "reading · 420 of 1,000" in text
        assert "UnicodeDecodeError: byte 0xfc in line 121" in text
        # The counts are links to filters
        page.click("nav.counts a:has-text('Failed')")
        assert page.url.endswith("?state=failed")
        assert page.locator("#rows tr").count() == 1
        # A row is a link to its job
        page.click("#rows a")
        assert "byte 0xfc in line 121" in page.inner_text(".exc")
        # The box opens a job by its id, and filters
        page.fill("#q", "actor:work state:working")
        page.press("#q", "Enter")
        assert page.url.endswith("/a/b/?actor=work&state=working")
        assert page.locator("#rows tr").count() == 1


def test_cancelled_jobs_are_shown_apart_from_failed_ones(site: Site, backend: RedisBackend) -> None:
    # Given a job that has failed, and two that were cancelled later: stores list all three as failed
    failed = fail(backend)
    for reason in ("user left", "<b>twice</b>"):
        Job(backend, reason[:4]).enqueue()
        assert StatusRegistry.cancel(reason[:4], reason, backend=backend)
    page = site.get("/a/b/?state=failed").body.decode()
    # Then the count has a line about them
    box = re.sub("<[^>]+>", " ", page.partition("Failed</span>")[2].partition("</div>")[0])
    assert box.split() == ["3", "2", "cancelled"]
    assert failed.message_id in page
    # And their rows have their own word and glyph, and the reason
    rows = [row for row in page.split("<tr")[1:] if 'data-s="cancelled"' in row]
    assert len(rows) == 2 and all("#i-cancelled" in row and "Cancelled" in row for row in rows)
    assert "user left" in rows[1] and "&lt;b&gt;twice" in rows[0]
    assert site.get("/a/b/list.json").json()["among"]["failed"] == {"cancelled": 2}
    # And they have a list of their own
    page = site.get("/a/b/?state=cancelled").body.decode()
    assert re.findall(r'data-s="(\w+)"', page) == ["cancelled"] * 2 and 'rel="next"' not in page
    found = site.get("/a/b/list.json?state=cancelled").json()
    assert len(found["jobs"]) == 2 and found["next"] is None
    assert "No retrying jobs" in site.get("/a/b/?state=retrying").body.decode()


def box_of(page: str, state: str) -> list[str]:
    """Return the words that the box of a state's count shows."""
    box = page.partition(f"{state}</span>")[2].partition("</div>")[0]
    return re.sub("<[^>]+>", " ", re.sub("<a [^>]*hidden.*?</a>", "", box)).split()


def test_stalled_jobs_are_counted_below_the_states_that_they_have(
    site: Site, backend: RedisBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dramatiq_status.snapshot.QUEUE_PATIENCE", -1_000)
    monkeypatch.setattr("dramatiq_status.web.listing.SHARED_FOR", 0.0)
    # Given two jobs that no worker has taken for too long, and none that runs
    for _ in range(2):
        Job(backend).enqueue()
    # When the page is read
    page = site.get("/a/b/").body.decode()
    # Then they are below the count of the queued jobs
    assert (box_of(page, "Queued"), box_of(page, "Working")) == (["2", "2", "stalled"], ["0"])
    # And one list has those of both states
    Job(backend).enqueue().start(heartbeat_interval=1)
    eventually(lambda: "3 jobs" in site.get("/a/b/?state=stalled").body.decode())
    among = site.get("/a/b/list.json").json()["among"]
    assert (among["queued"]["stalled"], among["working"]["stalled"]) == (2, 1)


def test_a_state_with_more_jobs_than_are_read_has_minimums(
    tab: Tab, site: Site, backend: RedisBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dramatiq_status.snapshot.QUEUE_PATIENCE", -1_000)
    monkeypatch.setattr("dramatiq_status.web.listing.SHARED_FOR", 0.0)
    # Given as many stalled jobs as are read for their number
    for _ in range(MAX_READ):
        Job(backend).enqueue()
    tab.open(f"{site.url}/a/b/")
    assert box_of(site.get("/a/b/").body.decode(), "Queued") == ["100", "100", "stalled"]
    # When there is one more
    Job(backend).enqueue()
    # Then the page shows a minimum
    assert box_of(site.get("/a/b/").body.decode(), "Queued")[:3] == ["101", "100+", "stalled"]
    assert "100+ jobs, last changed first" in site.get("/a/b/?state=stalled").body.decode()
    assert site.get("/a/b/list.json").json()["partly_read"] == ["queued"]
    # And a page that is open shows it, too
    tab.until("() => document.querySelector('[data-below=queued] [data-name=stalled]').textContent === '100+ stalled'")
    # And none of the newest jobs waits for a retry, so that the minimum of such jobs is not shown
    assert box_of(site.get("/a/b/").body.decode(), "Queued")[3:] == ["retrying", "scheduled"]
    assert '<span class="total">last changed first</span>' in site.get("/a/b/?state=retrying").body.decode()


@pytest.mark.parametrize(
    "typed, target",
    [
        ("a1b2", "./a1b2"),
        ("../../evil", "./..%2F..%2Fevil"),
        ("//evil.example", "./%2F%2Fevil.example"),
        ("javascript:alert(1)", "./javascript%3Aalert%281%29"),
        ("queue:mail", "?queue=mail"),
        ("", "./"),
    ],
)
def test_the_box_leads_to_this_site_only(site: Site, typed: str, target: str) -> None:
    from urllib.parse import quote

    answer = site.get(f"/a/b/?q={quote(typed)}")
    assert (answer.status, answer.headers["Location"]) == (303, target)


def test_pages_by_cursor_show_each_job_once(site: Site, backend: RedisBackend) -> None:
    ids = {Job(backend).enqueue().message_id for _ in range(120)}
    seen: list[str] = []
    path = "/a/b/"
    while path:
        text = site.get(path).body.decode()
        seen += re.findall(r'data-id="([^"]+)"', text)
        older = re.search(r'rel="next" href="([^"]+)"', text)
        path = f"/a/b/{older[1].replace('&amp;', '&')}" if older else ""
    assert len(seen) == 120
    assert set(seen) == ids


def test_the_first_load_is_small(browser: Browser, site: Site, backend: RedisBackend) -> None:
    for _ in range(60):
        start(backend, 420, step="reading", label="Orders of May")
    sizes = []
    for name in ("", "tokens.css", "pages.css", "pages.js", "dramatiq-status.js"):
        answer = site.get(f"/a/b/{name}", Accept_Encoding="gzip")
        assert answer.headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(answer.body)
        sizes.append(len(answer.body))
    assert sum(sizes) <= 60_000


def test_a_file_that_the_browser_has_is_not_sent_again(site: Site) -> None:
    tag = site.get("/a/b/pages.css").headers["ETag"]
    assert site.get("/a/b/pages.css", If_None_Match=tag).status == 304


def test_rows_change_in_place_and_new_ones_gather(tab: Tab, site: Site, backend: RedisBackend) -> None:
    first, second = start(backend, 420), start(backend, 10)
    tab.open(site.url + "/a/b/?state=working")
    order = tab.run("[...document.querySelectorAll('#rows tr')].map((row) => row.dataset.id)")
    assert order == [second.message_id, first.message_id]
    row = f"tr[data-id='{first.message_id}']"
    tab.until("(row) => document.querySelector(row + ' dramatiq-status')?.snapshot", row)
    # When one job makes progress, one ends, and new ones come
    reach(second, 500)
    tab.until("() => [...document.querySelectorAll('dramatiq-status')].some((one) => one.snapshot?.progress == 500)")
    first._write({EXCEPTION: '{"type": "ValueError", "message": "no"}'}, state=FAILED, create=True)
    tab.until("(row) => document.querySelector(row).dataset.s == 'failed'", row)
    assert "ValueError: no" in tab.page.inner_text(row)
    assert tab.run("(row) => document.querySelector(row).classList.contains('gone')", row)
    assert StatusRegistry.cancel(Job(backend).enqueue().message_id, backend=backend)
    others = [start(backend, 1) for _ in range(3)]
    tab.until("() => document.querySelector('#new').textContent.trim() == '3 new'")
    # Then no row has moved, and the counts have changed
    assert tab.run("[...document.querySelectorAll('#rows tr')].map((row) => row.dataset.id)") == order
    assert tab.page.inner_text("[data-count=working]") == "4"
    assert "1 cancelled" in tab.page.inner_text("[data-below=failed]")
    # And after the key ``n``, the new rows are shown
    tab.page.keyboard.press("n")
    tab.until("(id) => document.querySelector(`tr[data-id='${id}']`)", others[0].message_id)


def test_a_step_without_a_time_is_in_the_same_columns(tab: Tab, site: Site, backend: RedisBackend) -> None:
    # Given a job that waits for its retry, of whose first run the end is unknown
    job = start(backend, 420)
    job._write({SCHEDULED_AT: "32503680000000", ATTEMPTS: "1"}, state=QUEUED)
    for width in (1280, 390):
        tab.page.set_viewport_size({"width": width, "height": 800})
        tab.open(f"{site.url}/a/b/{job.message_id}")
        assert tab.run("[...document.querySelectorAll('.steps li')].some((one) => !one.querySelector('time'))")
        for part in ("svg", ".what"):
            left = f"[...document.querySelectorAll('.steps {part}')].map((one) => one.getBoundingClientRect().left)"
            assert len(set(tab.run(left))) == 1


def test_keys_move_open_and_copy(tab: Tab, site: Site, backend: RedisBackend) -> None:
    first, second = start(backend, 1), start(backend, 2)
    tab.open(site.url + "/a/b/")
    tab.until("() => document.querySelector('dramatiq-status').snapshot")
    tab.page.keyboard.press("j")
    tab.page.keyboard.press("j")
    assert tab.run("document.querySelector('tr.at').dataset.id") == first.message_id
    tab.page.keyboard.press("/")
    tab.page.keyboard.type("jk")
    assert tab.page.input_value("#q") == "jk"
    tab.page.keyboard.press("Escape")
    tab.page.keyboard.press("k")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_url(f"**/a/b/{second.message_id}")


def test_a_hundred_viewers_share_the_reads_of_one(site: Site, backend: RedisBackend) -> None:
    start(backend, 1)

    def commands() -> int:
        return int(backend.client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0))

    site.get("/a/b/list.json")
    before = commands()
    answers = [site.get("/a/b/list.json").status for _ in range(100)]
    spent = commands() - before
    assert set(answers) == {200}
    # Each request takes a few milliseconds, so all of them share the reads of one second, or of two.
    assert spent <= 3 * 9
    # And while no page is open, the store is not read
    before = commands()
    time.sleep(1.2)
    assert commands() == before


def test_a_store_that_cannot_list(browser: Browser) -> None:
    from cachelib import SimpleCache

    with closing(CacheBackend(SimpleCache())) as backend, serving(mounted(backend)) as site:
        job = Job(backend).enqueue()
        assert site.get("/a/b/list.json").status == 501
        answer = site.get("/a/b/")
        assert answer.status == 200
        assert b"This store finds jobs by id only" in answer.body
        assert site.get(f"/a/b/{job.message_id}").status == 200


def test_a_store_that_goes_away(tab: Tab, start_server: StartServer) -> None:
    server = start_server(RedisServer())
    with closing(RedisBackend(url=server.url, timeout=20_000)) as backend:
        start(backend, 420)
        with serving(mounted(backend)) as site:
            tab.open(site.url + "/a/b/")
            server.stop()
            tab.until("() => !document.querySelector('#banner').hidden")
            assert tab.run("document.querySelector('.list').classList.contains('past')")
            assert (site.get("/a/b/").status, site.get("/a/b/x").status) == (503, 503)
            server.start()
            start(backend, 1)
            tab.until("() => document.querySelector('#banner').hidden")


def test_a_visitor_sees_no_row_and_no_page_that_is_refused(backend: RedisBackend) -> None:
    mine, other = start(backend, 1, user_id=42), start(backend, 1, user_id=7)
    children = start(backend, 1, user_id=42, children=[mine.message_id, other.message_id])

    def authorize(request: Any, snapshot: Any) -> str:
        return "read" if snapshot is None or snapshot.get("user_id") == 42 else "none"

    with serving(mounted(backend, authorize=authorize)) as site:
        for path in ("/a/b/", "/a/b/list.json", f"/a/b/{children.message_id}"):
            body = site.get(path).body.decode()
            assert mine.message_id in body
        assert other.message_id not in site.get("/a/b/").body.decode()
        assert f'href="{other.message_id}"' not in site.get(f"/a/b/{children.message_id}").body.decode()
        assert site.get(f"/a/b/{other.message_id}").status == 403
        assert site.get("/a/b/no-such-job").status == 404
    with serving(mounted(backend, authorize=lambda *_: "none")) as site:
        assert b"<h2>No access</h2>" in site.get("/a/b/").body
        assert {site.get(path).status for path in ("/a/b/", "/a/b/list.json")} == {403}


@pytest.mark.parametrize("query", ["state=nonsense", "after=x", "state=%00", "after=" + "a" * 5000])
def test_wrong_filters_and_cursors_are_refused(site: Site, query: str) -> None:
    assert site.get(f"/a/b/?{query}").status == 400
    assert site.get(f"/a/b/list.json?{query}").status == 400


def test_hostile_values_on_the_pages(tab: Tab, site: Site, backend: RedisBackend) -> None:
    tab.page.on("dialog", lambda dialog: tab.troubles.append("A script was executed."))
    jobs = []
    for text in HOSTILE:
        job = start(backend, 1, step=text, label=text, parent=text, deep=[[{text[:50]: text}]])
        job._write({ACTOR_NAME: _quoted(text), EXCEPTION: f'{{"type": {_quoted(text)}, "message": {_quoted(text)}}}'})
        jobs.append(job)
    jobs[0]._write({}, state=FAILED, create=True)
    for path in ("", *(job.message_id for job in jobs)):
        tab.open(f"{site.url}/a/b/{path}")
        assert tab.run("document.querySelectorAll('main img, main script').length") == 0
        assert tab.run("document.documentElement.scrollWidth <= innerWidth")
        assert tab.run("[...document.links].every((one) => /^https?:$/.test(one.protocol))")


def test_the_narrowest_page_does_not_scroll_sideways(tab: Tab, site: Site, backend: RedisBackend) -> None:
    # Given a job with a very long name, and the width that a page needs at 400 % of a screen of 1,280 pixels
    name = "shop.catalogue.prices.that_are_calculated_again_in_every_currency_of_the_world" * 2
    job = Job(backend)
    backend.update(job.message_id, enqueue(*job._enqueue_id, **{ACTOR_NAME: _quoted(name)}))
    job.start().write(step="reading")
    tab.page.set_viewport_size({"width": 320, "height": 700})
    for path in ("", f"?actor={name}&state=stalled", f"?actor={name}", job.message_id):
        tab.open(f"{site.url}/a/b/{path}")
        for menu in tab.page.locator("details.chip summary").all():
            menu.click()
            assert tab.run("document.documentElement.scrollWidth <= innerWidth"), path
    # And the ring around the focus is not cut
    tab.open(f"{site.url}/a/b/")
    assert tab.run("getComputedStyle(document.querySelector('#rows .c-job')).overflow") == "visible"


def _quoted(text: str) -> str:
    import json

    return json.dumps(text)


def test_the_life_of_a_job_is_drawn_to_scale_without_script(browser: Browser, backend: RedisBackend) -> None:
    # Given a job whose first run of 12 seconds has failed, and whose second one has worked for an unknown time
    begin, job = now_ms() - 72_000, Job(backend)
    boom = {EXCEPTION: '{"type":"OSError","message":"secret"}', RUN_ENDED: run_ended(begin + 14_000, failed=True)}
    updates = [
        enqueue(**{ACTOR_NAME: '"work"', QUEUE_NAME: '"imports"', ENQUEUED_AT: str(begin)}),
        start_run(1)._replace(fields={STARTED_AT: str(begin + 2_000)}),
        enqueue(7, 2)._replace(fields={**boom, SCHEDULED_AT: str(begin + 44_000)}),
        start_run(2, 7, 2, attempts=2, step='"reading"')._replace(fields={STARTED_AT: str(begin + 44_000)}),
    ]
    backend.update_many([(job.message_id, update) for update in updates])
    seen = {}
    for fields in (("*", "exception.message"), ("*",)):
        context = browser.new_context(java_script_enabled=False)
        with serving(mounted(backend, fields=fields)) as site, closing(context):
            page = context.new_page()
            page.goto(f"{site.url}/a/b/{job.message_id}")
            widths = [rect.bounding_box()["width"] for rect in page.locator(".track rect").all()]  # type: ignore
            seen[fields] = [line.split("\n")[1:] for line in page.locator(".steps li").all_inner_texts()]
    # Then its waits and runs have widths by their lengths
    waited, failed, again, _ = widths
    assert waited < failed / 4 and abs(again / failed - 2.5) < 0.1
    # And each has its text, and the text of the exception only if the visitor may see it
    with_text = [" ".join(" ".join(line).split()) for line in seen[("*", "exception.message")]]
    assert with_text[:3] == [
        "Enqueued waited 2.0 s to imports", "Run 1 failed ran 12 s OSError: secret", with_text[2],
    ]  # fmt: skip
    assert with_text[2].startswith("Queued again waited 30 s for ")
    assert re.match(r"Run 2 is working 2\d s so far", with_text[3])
    assert "secret" not in str(seen[("*",)]) and "OSError" in str(seen[("*",)])


def test_links_by_template(backend: RedisBackend) -> None:
    job = start(backend, 1, trace_id="a/b c")
    options = {"trace_url": "https://traces.example/{trace_id}", "sentry_url": "https://sentry.example/{no_field}"}
    with serving(mounted(backend, **options)) as site:
        text = site.get(f"/a/b/{job.message_id}").body.decode()
    assert 'href="https://traces.example/a%2Fb%20c"' in text
    assert "sentry.example" not in text


def test_a_writer_deletes_a_status(tab: Tab, backend: RedisBackend) -> None:
    job = start(backend, 1)
    with serving(mounted(backend, authorize=lambda *_: "write")) as site:
        tab.open(f"{site.url}/a/b/{job.message_id}")
        tab.page.click("text=Delete…")
        tab.page.click("text=Delete status")
        tab.page.wait_for_url("**/a/b/")
    assert backend.snapshot(job.message_id) is None


def test_a_writer_cancels_a_job(tab: Tab, backend: RedisBackend) -> None:
    # Given a job that runs, and two that wait
    running = start(backend, 420)
    first, second = Job(backend).enqueue(), Job(backend).enqueue()
    with serving(mounted(backend, authorize=lambda *_: "write")) as site:
        # When one is cancelled in its row
        tab.open(f"{site.url}/a/b/")
        row = f"tr[data-id='{first.message_id}']"
        tab.until("(row) => document.querySelector(row + ' dramatiq-status')?.snapshot", row)
        tab.page.click(f"{row} .sure summary")
        tab.page.click(f"{row} .sure button")
        # Then the row changes in place, and has no button any more
        tab.until("(row) => document.querySelector(row).dataset.s == 'cancelled'", row)
        assert tab.page.inner_text(f"{row} .c-state") == "Cancelled"
        assert tab.page.locator(".sure").count() == 2
        # When the others are cancelled on their pages
        for job, word, told in ((second, "Cancelled", "Cancel requested"), (running, "Working", "Asked to stop")):
            tab.open(f"{site.url}/a/b/{job.message_id}")
            tab.page.click("text=Cancel…")
            tab.page.click("text=Cancel job")
            tab.until("(told) => document.body.innerText.includes(told)", told)
            assert tab.page.inner_text(".job-head .pill") == word
    with serving(mounted(backend)) as site:
        assert b"Cancel" not in site.get(f"/a/b/{running.message_id}").body
        assert b"sure" not in site.get("/a/b/").body


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Browser, site: Site, backend: RedisBackend, scheme: Any) -> None:
    script = axe(Path(gettempdir(), "dramatiq-status-axe"))
    if script is None:
        pytest.skip("npm cannot install axe-core.")
    children = [start(backend, 10).message_id, fail(backend).message_id, Job(backend).enqueue().message_id]
    parent = start(backend, 420, step="reading", children=children, label="Orders of May")
    Job(backend).enqueue().start(heartbeat_interval=1)
    StatusRegistry.cancel(Job(backend).enqueue().message_id, backend=backend)
    with closing(browser.new_context(bypass_csp=True, color_scheme=scheme)) as context:
        for path in ("", parent.message_id, children[1], "unknown"):
            page = context.new_page()
            page.goto(f"{site.url}/a/b/{path}")
            page.wait_for_timeout(300)
            page.evaluate(script)
            found = page.evaluate("axe.run()")
            assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found["violations"]] == []


def test_a_page_of_a_hundred_thousand_jobs_is_one_of_the_index(tmp_path: Path) -> None:
    """Check the pages on SQLite. benchmarks/web.py measures the time of 100,000 jobs."""
    with closing(SQLiteBackend(tmp_path / "status.db", timeout=20_000)) as backend, serving(mounted(backend)) as site:
        ids = [Job(backend).enqueue().message_id for _ in range(60)]
        text = site.get("/a/b/").body.decode()
    assert text.count("data-id=") == 50
    assert ids[-1] in text
