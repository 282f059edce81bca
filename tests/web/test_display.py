"""The plain bar of a page and the element show the same, although one is written in Python and one in JavaScript."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import pytest
from playwright.sync_api import Browser

from dramatiq_status import StatusRegistry
from dramatiq_status.backends import RedisBackend
from dramatiq_status.record import (
    ATTEMPTS,
    CANCEL_REASON,
    CANCELLED,
    COMPLETED,
    ENQUEUED_AT,
    EXCEPTION,
    FAILED,
    FINISHED_AT,
    QUEUED,
    RATE,
    SCHEDULED_AT,
    SKIPPED,
    STARTED_AT,
)
from dramatiq_status.testing.updates import outside
from dramatiq_status.times import duration, measured
from dramatiq_status.web import allow_all, status_app
from dramatiq_status.web.display import display_of
from dramatiq_status.web.exposure import Exposure
from dramatiq_status.words import age

from ..jobs import Job
from .browser import Tab, axe
from .serving import serving
from .test_element import shown, start

EXCEPTION_TEXT = '{"type": "ConnectionError", "message": "the shop does not answer"}'


@pytest.mark.parametrize(
    "seconds, text, exact",
    [
        (0, "0 s", "under 0.1 s"),
        (0.04, "0 s", "under 0.1 s"),
        (0.44, "0 s", "0.4 s"),
        (4.96, "5 s", "5.0 s"),
        (9.96, "10 s", "10 s"),
        (59.4, "59 s", "59 s"),
        (60, "1 min", "1 min"),
        (80, "1 min 20 s", "1 min 20 s"),
        (1199, "19 min 59 s", "19 min 59 s"),
        (1230, "21 min", "21 min"),
        (9060, "2 h 31 min", "2 h 31 min"),
        (3600, "1 h", "1 h"),
        (90_000, "1 d 1 h", "1 d 1 h"),
        (86_460, "1 d", "1 d"),
        (-5, "0 s", "under 0.1 s"),
    ],
)
def test_python_and_the_script_format_durations_alike(
    tab: Tab, backend: RedisBackend, seconds: float, text: str, exact: str
) -> None:
    assert (duration(seconds), measured(seconds)) == (text, exact)
    with shown(backend) as (site, _):
        tab.open(site.url)
        script = "async (s) => (({duration, texts}) => [duration(s, 'en'), duration(s, 'en', texts, true)])"
        script += "(await import('./jobs/dramatiq-status.js'))"
        assert tab.run(script, seconds) == [text, exact]


def test_ages_have_one_unit() -> None:
    assert [age(seconds) for seconds in (-1, 0.5, 12, 60, 7_300, 900_000)] == [
        *("now", "now", "12 s ago", "1 min ago", "2 h ago", "10 d ago")
    ]


def jobs_of_all_looks(backend: RedisBackend) -> list[Job]:
    failed = start(backend, 630, step="sending")
    failed._write({EXCEPTION: EXCEPTION_TEXT, ATTEMPTS: "3"}, state=FAILED, create=True)
    retrying = start(backend, 420)
    retrying._write({EXCEPTION: EXCEPTION_TEXT, ATTEMPTS: "1", SCHEDULED_AT: "32503680000000"}, state=QUEUED)
    cancelled = start(backend, 420)
    cancelled._write({CANCELLED: "true", CANCEL_REASON: '"user left"', FINISHED_AT: "6"}, state=FAILED, create=True)
    return [
        start(backend, 420, step="reading"),
        start(backend, 1284, None, step="crawling"),
        start(backend, 3, 240),
        failed,
        retrying,
        Job(backend).enqueue(),
        Job(backend).enqueue().start(heartbeat_interval=1).write(step="reading"),
        start(backend, 1000).finish(),
        cancelled,
    ]


@pytest.mark.parametrize("of", range(9))
def test_the_plain_bar_and_the_element_show_the_same(browser: Browser, backend: RedisBackend, of: int) -> None:
    job = jobs_of_all_looks(backend)[of]
    app = status_app(authorize=allow_all, backend=backend, fields=("*", "exception.message"))
    with serving(app) as site:
        found = []
        for script in (False, True):
            with closing(browser.new_context(java_script_enabled=script)) as context:
                page = context.new_page()
                page.goto(f"{site.url}/{job.message_id}")
                if script:
                    page.wait_for_function("() => document.querySelector('dramatiq-status').snapshot")
                found.append(
                    [page.inner_text(f"[variant=big] [part={name}]") for name in ("label", "value", "text")]
                    + [page.get_attribute("[variant=big] [part=fill]", "width")]
                    + [page.get_attribute("[variant=big] [part=bar]", "aria-valuenow")]
                )
    assert found[0] == found[1]


def more_jobs(backend: RedisBackend) -> list[Job]:
    """Make jobs in states that differ from those of :func:`jobs_of_all_looks` in one fact."""

    def ended(state: int, total: int | None = 1000, **fields: str) -> Job:
        job = start(backend, 420, total, step="sending")
        named = {"E": ENQUEUED_AT, "x": EXCEPTION, "A": ATTEMPTS, "k": SKIPPED, "c": CANCELLED, "S": STARTED_AT}
        found = {named[name]: value for name, value in fields.items()}
        job._write({FINISHED_AT: "1795479267029", **found}, state=state, create=True)
        return job

    def waits(**fields: str) -> Job:
        job = start(backend, 420)
        job._write({ATTEMPTS: "1", **fields}, state=QUEUED)
        return job

    scheduled = Job(backend).enqueue()
    backend.update(scheduled.message_id, outside(**{SCHEDULED_AT: "32503680000000"}))
    rated = start(backend, 420)
    rated._write({RATE: "0.05", STARTED_AT: "1795479267029"})
    asked = start(backend, 420, step="reading")
    StatusRegistry.cancel(asked.message_id, backend=backend)
    quick = start(backend, 1284.5, None, step="crawling")
    quick._write({RATE: "9.96"})
    return [
        *(scheduled, rated, quick, asked),
        *(ended(COMPLETED, S="1795479265000"), ended(COMPLETED, None), ended(COMPLETED, k="true")),
        *(ended(FAILED, A=attempts) for attempts in ("0", "1", "1200")),
        *(ended(FAILED, None, x='{"type": "OSError", "message": ""}'), ended(FAILED, None)),
        *(ended(FAILED, c="true", A="0"), ended(FAILED, c="true", A="2", S="1795479000000")),
        *(waits(), waits(**{SCHEDULED_AT: "1795479267029"})),
        waits(**{SCHEDULED_AT: "32503680000000", EXCEPTION: '{"type": "OSError", "message": ""}'}),
    ]


def test_the_element_has_the_words_of_python(tab: Tab, backend: RedisBackend) -> None:
    # The job without a time of its end is left out, because its duration grows
    jobs = [job for at, job in enumerate(jobs_of_all_looks(backend)) if at != 7] + more_jobs(backend)
    with shown(backend, *jobs) as (site, _):
        tab.open(site.url)
        tab.until("() => [...document.querySelectorAll('dramatiq-status')].every((one) => one.snapshot)")
        seen = tab.run(
            """() => [...document.querySelectorAll("dramatiq-status")].map((one) => [
              ...["value", "text", "next"].map((name) => one.shadowRoot.querySelector(`[part=${name}]`).textContent),
              one.shadowRoot.querySelector("[part=bar]").ariaValueText])"""
        )
    now = datetime.now(timezone.utc)
    exposure = Exposure(("*", "exception.message"))
    for job, (value, text, upcoming, spoken) in zip(jobs, seen):
        snapshot = backend.snapshot(job.message_id)
        assert snapshot is not None
        # Each display has the time at which it was drawn, and the element gets the server's clock in whole seconds.
        looks = [
            display_of(snapshot, exposure.to_dict(snapshot), now + timedelta(seconds=tenths / 10))
            for tenths in range(-80, 20)
        ]
        look = next((one for one in looks if one.next == upcoming), looks[-1])
        is_measured = look.state == "working" and look.percent is not None
        assert value == (f"{int(look.percent or 0)}%" if is_measured else look.word)
        assert upcoming == look.next
        if look.glyph == "scheduled":
            # In the time zone of the browser, and in its notation
            assert text.startswith("at ") and look.facts.startswith("at ")
            continue
        assert text == (": ".join(filter(None, look.error)) if look.error else look.facts)
        # Units are spoken in full
        assert spoken.startswith(", ".join(filter(None, (value, text))))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("variant", ["", "compact", "big"])
def test_axe_finds_nothing_in_any_look(browser: Browser, backend: RedisBackend, scheme: Any, variant: str) -> None:
    script = axe(Path(gettempdir(), "dramatiq-status-axe"))
    if script is None:
        pytest.skip("npm cannot install axe-core.")
    jobs = jobs_of_all_looks(backend)
    with shown(backend, *jobs, attributes=f'variant="{variant}"') as (site, _):
        with closing(browser.new_context(bypass_csp=True, color_scheme=scheme)) as context:
            page = context.new_page()
            page.goto(site.url)
            page.add_style_tag(content=":root { color-scheme: light dark } body { background: Canvas }")
            page.wait_for_function(
                "() => [...document.querySelectorAll('dramatiq-status')].every((one) => one.snapshot)"
            )
            page.evaluate(script)
            found = page.evaluate("axe.run()")
        assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found["violations"]] == []


FILL = "document.querySelector('dramatiq-status').shadowRoot.querySelector('[part=fill]')"


@pytest.mark.parametrize(
    "media, style", [({"reduced_motion": "reduce"}, "animationName"), ({"forced_colors": "active"}, "fill")]
)
def test_an_element_follows_the_settings_of_the_system(
    tab: Tab, backend: RedisBackend, media: dict[str, Any], style: str
) -> None:
    job = start(backend, 1284, None)
    with shown(backend, job) as (site, _):
        tab.open(site.url).until_state("working")
        get = f"getComputedStyle({FILL}).{style}"
        before = tab.run(get)
        tab.page.emulate_media(**media)
        assert tab.run(get) != before
