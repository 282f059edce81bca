"""The element <dramatiq-status>, in a real browser."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.redis import RedisBroker
from playwright.sync_api import Browser, TimeoutError

from dramatiq_status import StatusMiddleware, current_status, track
from dramatiq_status.backends import RedisBackend
from dramatiq_status.record import (
    ATTEMPTS,
    ENQUEUED_AT,
    EXCEPTION,
    FAILED,
    PROGRESS,
    QUEUED,
    SCHEDULED_AT,
    TOTAL,
)
from dramatiq_status.web import allow_all, status_app
from dramatiq_status.web.files import STATIC

from ..jobs import Job
from ..recording import eventually, working
from .browser import Tab
from .pages import Pages
from .serving import Site, serving

#: Script that notes the events of all elements of a page, also of those that are there from the beginning.
NOTES = """
window.notes = [];
for (const name of ["status", "completed", "failed", "connection"])
  addEventListener(name, (event) => notes.push([event.type, event.detail.state]));
"""


def start(backend: RedisBackend, progress: int, total: int | None = 1000, **fields: Any) -> Job:
    """Start a job with some progress."""
    job = Job(backend).enqueue().start().write(**fields)
    reach(job, progress, total)
    return job


def reach(job: Job, progress: int, total: int | None = 1000) -> None:
    job._write({PROGRESS: str(progress), TOTAL: "null" if total is None else str(total)})


@contextmanager
def shown(
    backend: RedisBackend, *jobs: Job | str, attributes: str = "", **options: Any
) -> Iterator[tuple[Site, Pages]]:
    """Serve a page that shows some jobs."""
    options.setdefault("fields", ("*", "exception.message"))
    ids = [job if isinstance(job, str) else job.message_id for job in jobs]
    pages = Pages(status_app(**{"authorize": allow_all, **options}, backend=backend), ids, attributes)
    with serving(pages) as site:
        yield site, pages


def test_the_file_is_small() -> None:
    assert len(gzip.compress((STATIC / "dramatiq-status.js").read_bytes(), 9)) <= 8 * 1024


def test_a_bar_follows_a_job_of_a_worker(
    tab: Tab, backend: RedisBackend, redis_broker_url: str, tmp_path: Path
) -> None:
    # Given an actor on a real worker, which waits for the test between two steps
    broker = RedisBroker(url=redis_broker_url)
    broker.add_middleware(StatusMiddleware(backend=backend))
    going = tmp_path / "go"

    def work() -> None:
        current_status()["label"] = "Orders of May"
        for number in track(range(4), total=4):
            if number == 2:
                eventually(going.exists)

    actor = dramatiq.actor(work, broker=broker)
    with working(broker), closing(broker):
        message = actor.send()
        with shown(backend, message.message_id) as (site, pages):
            tab.page.add_init_script(NOTES)
            tab.open(site.url).until_state("working")
            tab.until("() => document.querySelector('dramatiq-status').snapshot.percent == 50")
            assert "Orders of May50%2 of 4" in tab.text()
            going.touch()
            tab.until_state("completed")
            assert "Orders of MayCompleted4 of 4took " in tab.text()
            # Then there was one stream, and one event of the end
            assert pages.count("/events 200") == 1
            notes = tab.run("notes")
            assert [name for name, _ in notes].count("completed") == 1
            assert notes[-1] == ["completed", "completed"]


def test_each_state_has_its_look(tab: Tab, backend: RedisBackend) -> None:
    exception = '{"type": "ConnectionError", "message": "the shop does not answer"}'
    failed = start(backend, 630)
    failed._write({EXCEPTION: exception, ATTEMPTS: "3"}, state=FAILED, create=True)
    retrying = start(backend, 420)
    retrying._write({EXCEPTION: exception, ATTEMPTS: "1", SCHEDULED_AT: "32503680000000"}, state=QUEUED)
    scheduled = Job(backend).enqueue()
    backend.update(scheduled.message_id, _fields(scheduled, {SCHEDULED_AT: "32503680000000", ENQUEUED_AT: "1"}))
    stalled = Job(backend).enqueue().start(heartbeat_interval=1).write(step="reading")
    jobs = {
        "working": (start(backend, 420, step="reading"), "42%reading · 420 of 1,000"),
        "unmeasured": (start(backend, 1284, None, step="crawling"), "Workingcrawling · 1,284 so far"),
        "failed": (failed, "FailedConnectionError: the shop does not answerafter 3 attempts"),
        "retrying": (retrying, "RetryingConnectionError: the shop does not answerattempt 2, again in "),
        "scheduled": (scheduled, "Scheduledat "),
        "stalled": (stalled, "Stalledreadingno sign of life for "),
    }
    with shown(backend, *(job for job, _ in jobs.values()), attributes='label=""') as (site, _):
        tab.open(site.url)
        tab.until("() => [...document.querySelectorAll('dramatiq-status')].every((one) => one.snapshot)")
        eventually(lambda: tab.run("() => document.querySelectorAll('dramatiq-status')[5].state") == "stalled")
        texts = tab.run("[...document.querySelectorAll('dramatiq-status')].map((one) => one.shadowRoot.textContent)")
        for text, (_, expected) in zip(texts, jobs.values()):
            assert text.startswith(expected)
        bars = tab.run(
            "[...document.querySelectorAll('dramatiq-status')].map((one) => one.shadowRoot.querySelector('[role]'))"
            ".map((bar) => [bar.ariaValueNow, bar.ariaValueText])"
        )
        assert bars[0] == ["42", "42%, reading · 420 of 1,000"]
        assert bars[1] == [None, "Working, crawling · 1,284 so far"] or bars[1][1].startswith("Working, crawling")
        assert bars[1][0] is None
        # All have the same height, and a style sheet can select the state
        heights = tab.run("[...document.querySelectorAll('dramatiq-status')].map((one) => one.offsetHeight)")
        assert set(heights) == {52}
        assert tab.run("document.querySelector('dramatiq-status').matches(':state(working)')")


def _fields(job: Job, fields: dict[str, str]) -> Any:
    from dramatiq_status.update import Kind, Update

    return Update(Kind.OUTSIDE, fields=fields)


def test_a_page_that_is_loaded_after_the_end(tab: Tab, backend: RedisBackend) -> None:
    done, failed = start(backend, 1000).finish(), start(backend, 10).finish(FAILED)
    with shown(backend, done, failed) as (site, pages):
        tab.page.add_init_script(NOTES)
        tab.open(site.url).until("() => notes.length >= 4")
        assert sorted(name for name, _ in tab.run("notes")) == ["completed", "failed", "status", "status"]
        # The page sends no further request
        eventually(lambda: pages.open == 0)
        assert pages.log.count("POST /jobs/events 200") == 1


def test_one_stream_for_all_elements_wherever_they_go(tab: Tab, backend: RedisBackend) -> None:
    jobs = [start(backend, 10) for _ in range(50)]
    with shown(backend, *jobs) as (site, pages):
        tab.open(site.url)
        tab.until("() => [...document.querySelectorAll('dramatiq-status')].every((one) => one.state == 'working')")
        assert pages.most == 1
        # When elements are moved, removed and added a thousand times
        tab.run(
            """async () => {
              const all = [...document.querySelectorAll("dramatiq-status")], main = document.querySelector("main");
              for (let i = 0; i < 1000; i++) {
                const one = all[i % all.length];
                if (i % 3) main.prepend(one); else { one.remove(); main.append(one); }
                if (i % 100 == 0) await new Promise((done) => setTimeout(done, 1));
              }
            }"""
        )
        reach(jobs[7], 990)
        tab.until("() => document.querySelectorAll('dramatiq-status').length == 50")
        tab.until("() => [...document.querySelectorAll('dramatiq-status')].some((one) => one.snapshot.progress == 990)")
        # Then there never was a second stream, and the end of the last element is the end of the stream
        assert (pages.most, pages.open) == (1, 1)
        tab.run("document.querySelector('main').replaceChildren()")
        eventually(lambda: pages.open == 0)


def test_ten_tabs_leave_room_for_a_picture(browser: Browser, backend: RedisBackend) -> None:
    jobs = [start(backend, 10) for _ in range(50)]
    with shown(backend, *jobs) as (site, pages), ExitStack() as stack:
        context = stack.enter_context(closing(browser.new_context()))
        tabs = [Tab(context.new_page()).open(site.url) for _ in range(10)]
        for tab in tabs:
            tab.until("() => [...document.querySelectorAll('dramatiq-status')].every((one) => one.snapshot)")
            tab.run("fetch('pixel.gif', {cache: 'no-store'}).then((answer) => answer.blob())")
        assert 1 <= pages.most <= 4
        # And all tabs show the changes
        reach(jobs[0], 990)
        for tab in tabs:
            tab.until("() => document.querySelector('dramatiq-status').snapshot.progress == 990")
            assert not tab.troubles


def test_an_element_shows_a_lost_network(tab: Tab, backend: RedisBackend) -> None:
    job = start(backend, 420)
    with shown(backend, job) as (site, _):
        tab.page.add_init_script(NOTES)
        tab.open(site.url).until_state("working")
        context = tab.page.context
        context.set_offline(True)
        _cut(tab)
        tab.until_state("offline")
        assert "42%, 420 of 1,000 at " in tab.text()
        assert "trying again in " in tab.text()
        # When the network is back
        job.finish()
        context.set_offline(False)
        tab.until_state("completed")
        assert ["connection", "offline"] in tab.run("notes")
        tab.troubles.clear()


def _cut(tab: Tab) -> None:
    """End the stream that is open, which an emulated loss of the network leaves open."""
    tab.run("dispatchEvent(new Event('online'))")


def test_a_server_that_restarts(tab: Tab, backend: RedisBackend) -> None:
    job = start(backend, 420)
    with shown(backend, job) as (site, pages):
        tab.open(site.url).until_state("working")
        # When the server answers with errors, then with the status again
        pages.broken = {"/events": (500, {}), ".json": (500, {})}
        _cut(tab)
        tab.until_state("offline")
        pages.broken = {}
        job.finish()
        tab.until_state("completed")


def test_an_answer_with_a_time_for_the_next_request(tab: Tab, backend: RedisBackend) -> None:
    job = start(backend, 420)
    with shown(backend, job) as (site, pages):
        pages.broken = {"/events": (503, {"Retry-After": "3600"})}
        tab.open(site.url)
        eventually(lambda: pages.count("/events 503") == 1)
        tab.page.wait_for_timeout(2500)
        assert pages.log.count("POST /jobs/events 503") == 1


def test_polls_where_there_are_no_streams(tab: Tab, backend: RedisBackend) -> None:
    job = start(backend, 420)
    with shown(backend, job) as (site, pages):
        pages.broken = {"/events": (404, {})}
        tab.open(site.url).until_state("working")
        eventually(lambda: pages.count(".json 304") >= 1)
        # A response that ends after its headers counts as none: the next request gets the whole response
        job.finish()
        seen = pages.count(".json 200")
        pages.broken[".json"] = (200, {"ETag": site.get(f"/jobs/{job.message_id}.json").headers["ETag"]})
        _cut(tab)
        eventually(lambda: pages.count(".json 200") >= seen + 2)
        del pages.broken[".json"]
        tab.until_state("completed")
        assert pages.count("/events 404") == 1


@pytest.mark.parametrize("streams", [True, False])
def test_statuses_that_are_refused_or_unknown(tab: Tab, backend: RedisBackend, streams: bool) -> None:
    job = start(backend, 420)
    with shown(backend, job, "unknown", authorize=lambda *_: "none") as (site, pages):
        pages.broken = {} if streams else {"/events": (404, {})}
        tab.open(site.url).until_state("refused")
        assert "No accessYou may not see this job" in tab.text()
        tab.until_state("unknown", "dramatiq-status:last-of-type")
        assert "UnknownThere is no such job" in tab.text("dramatiq-status:last-of-type")
        # The page sends no further request
        eventually(lambda: pages.open == 0)
        asked = len(pages.log)
        tab.page.wait_for_timeout(2500)
        assert len(pages.log) == asked


def test_a_hidden_tab_has_no_stream_and_is_right_when_it_is_shown(tab: Tab, backend: RedisBackend) -> None:
    job = start(backend, 420)
    with shown(backend, job) as (site, pages):
        tab.open(site.url).until_state("working")
        _hide(tab, True)
        eventually(lambda: pages.open == 0 and pages.count(".json") >= 1)
        reach(job, 990)
        _hide(tab, False)
        tab.until("() => document.querySelector('dramatiq-status').snapshot.progress == 990")
        # A hidden tab still gets the end, because it polls every 30 seconds
        tab.page.clock.install()
        _hide(tab, True)
        eventually(lambda: pages.open == 0)
        job.finish()

        def has_ended_in_half_a_minute() -> bool:
            # A busy machine may get the last answer so late that the pause begins after the clock has moved. A clock
            # that moves during a request ends it: playwright's clock is that of AbortSignal.timeout, too.
            tab.page.clock.fast_forward(31_000)
            with suppress(TimeoutError):
                tab.page.wait_for_function(
                    "() => document.querySelector('dramatiq-status').state == 'completed'", polling=20, timeout=2000
                )
                return True
            return False

        eventually(has_ended_in_half_a_minute)


def _hide(tab: Tab, hidden: bool) -> None:
    tab.run(
        """(hidden) => {
          Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


def test_a_page_of_the_history(tab: Tab, backend: RedisBackend) -> None:
    job = start(backend, 420)
    with shown(backend, job) as (site, pages):
        tab.open(site.url).until_state("working")
        tab.run("addEventListener('pageshow', (event) => { window.kept = event.persisted; })")
        tab.page.goto(site.url + "/pixel.gif")
        eventually(lambda: pages.open == 0)
        reach(job, 990)
        # Then the browser shows the page that it has kept, with its scripts, and the element reads again
        tab.page.go_back(wait_until="commit")
        tab.until("() => window.kept === true")
        tab.until("() => document.querySelector('dramatiq-status')?.snapshot?.progress == 990")


def test_a_screen_reader_gets_changes_of_states(tab: Tab, backend: RedisBackend) -> None:
    job = start(backend, 0)
    with shown(backend, job, attributes='label="Orders"') as (site, _):
        tab.open(site.url).until_state("working")
        tab.run(
            """() => {
              window.heard = [];
              const host = [...document.body.children].find((one) => one.shadowRoot && one.localName == "div");
              for (const region of host.shadowRoot.children)
                new MutationObserver(() => heard.push([region.role ?? region.getAttribute("role"), region.textContent]))
                  .observe(region, { childList: true, characterData: true, subtree: true });
            }"""
        )
        for progress in range(0, 1000, 10):
            reach(job, progress)
        tab.until("() => heard.some(([role, text]) => text.includes('75%'))")
        job.finish(FAILED)
        tab.until("() => heard.some(([role]) => role == 'alert')")
        heard = tab.run("heard")
        assert len(heard) <= 8
        assert heard[-1][0] == "alert"
        assert heard[-1][1].startswith("Orders, Failed")


#: Values that break pages that do not escape them.
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "javascript:alert(1)",
    "\u202eevil\u2066",
    "a" * 10_000,
    "${alert(1)}{{7*7}}",
    "\0\x1b[31m",
    "data: x\n\nevent: end",
]


def test_hostile_values_are_shown_as_text(tab: Tab, backend: RedisBackend) -> None:
    tab.page.on("dialog", lambda dialog: tab.troubles.append("A script was executed."))
    jobs = [start(backend, 1, step=text, label=text, **{text[:100] or "x": text}) for text in HOSTILE]
    odd = [start(backend, 1, step=value, label=value) for value in ({"a": [1]}, [], 1e300, False)]
    with shown(backend, *jobs, *odd) as (site, _):
        tab.open(site.url)
        tab.until("() => [...document.querySelectorAll('dramatiq-status')].every((one) => one.snapshot)")
        assert tab.run("document.querySelectorAll('img').length") == 0
        assert tab.run("document.querySelector('dramatiq-status').shadowRoot.querySelectorAll('img').length") == 0
        assert HOSTILE[0] in tab.text()
        # A long text widens nothing
        assert tab.run("document.documentElement.scrollWidth <= innerWidth")


def test_texts_follow_the_language(tab: Tab, backend: RedisBackend) -> None:
    job = start(backend, 4200, 10_000)
    with shown(backend, job, attributes='lang="de"') as (site, _):
        tab.open(site.url).until_state("working")
        tab.run("document.querySelector('dramatiq-status').texts = { of: '{0} von {1}' }")
        tab.run("document.querySelector('dramatiq-status').setAttribute('label', 'Aufträge')")
        assert "Aufträge42\u00a0%4.200 von 10.000" in tab.text()
