"""Screenshots of pages that a test serves.  They are written to ``docs/`` with ``UPDATE_PAGES``."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
from dramatiq.middleware import Retries
from playwright.sync_api import Browser

from dramatiq_status import StatusMiddleware, StatusRegistry, current_progress, current_status
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends import StubBackend
from dramatiq_status.web import allow_all, status_app

from ..jobs import Job
from ..recording import PATIENCE, eventually, make_stub_broker, working
from ..web.browser import Tab, chromium
from ..web.serving import serving
from .pages import ROOT


def shoot(
    browser: Browser,
    url: str,
    name: str,
    ready: Callable[[Tab], None],
    then: Callable[[Tab], None] = lambda tab: None,
    *,
    width: int = 1120,
    height: int = 700,
) -> None:
    """Open a page in light and in dark, and take a picture of each when it is ready; then go on with the page."""
    for colours in ("light", "dark"):
        context = browser.new_context(color_scheme=colours, viewport={"width": width, "height": height})
        tab = Tab(context.new_page()).open(url)
        ready(tab)
        if os.environ.get("UPDATE_PAGES"):
            picture = ROOT / "docs" / f"{name}-{colours}.png"
            tab.page.screenshot(path=picture, animations="disabled", scale="css")
        then(tab)
        assert tab.troubles == []
        context.close()


def shoot_bar(url: str, name: str) -> None:
    """Take pictures of a page with the bar of a job that it has just sent."""

    def ready(tab: Tab) -> None:
        tab.until("() => (document.querySelector('dramatiq-status')?.snapshot?.percent ?? 0) >= 40")
        assert "Orders of May" in tab.text() and "reading" in tab.text()

    with chromium() as browser:
        shoot(browser, url, name, ready, lambda tab: tab.until_state("completed"), width=560, height=64)


def shoot_dashboard() -> None:
    """Take pictures of the dashboard, at the width of a desk and of a phone, and of the page of a job."""
    backend = StubBackend()
    with a_busy_day(backend) as (shown, message_id):
        app = status_app(authorize=allow_all, backend=backend, fields=("*", "exception.message"))
        with serving(app) as site, chromium() as browser:

            def listed(tab: Tab) -> None:
                for text in shown:
                    tab.until("(text) => document.body.innerText.includes(text)", text)

            def opened(tab: Tab) -> None:
                for text in ("Catalogue", "indexing", "shelves"):
                    tab.until("(text) => document.body.innerText.includes(text)", text)

            shoot(browser, f"{site.url}/", "pictures/dashboard", listed)
            shoot(browser, f"{site.url}/", "pictures/phone", listed, width=390, height=700)
            shoot(browser, f"{site.url}/{message_id}", "pictures/job", opened)


@contextmanager
def a_busy_day(backend: StatusBackend) -> Iterator[tuple[list[str], str]]:
    """Run jobs to all states. Yield the texts in a list of them, and the id of a running job with children."""
    broker = make_stub_broker(Retries(max_retries=3, min_backoff=90_000), StatusMiddleware(backend=backend))
    go_on = threading.Event()
    parent: list[str] = []

    @dramatiq.actor(broker=broker)
    def import_rows(count: int) -> None:
        current_progress().total = count
        current_progress().increment(count)

    @dramatiq.actor(broker=broker)
    def sync_stock() -> None:
        current_progress().increment(61)
        raise ConnectionError("the shop does not answer")

    @dramatiq.actor(broker=broker, max_retries=0)
    def charge() -> None:
        raise PermissionError("the card was declined")

    @dramatiq.actor(broker=broker)
    def build_index() -> None:
        status = current_status()
        children = [import_rows.send_with_options(args=(40,), status={"label": name}) for name in ("Books", "Games")]
        status.update(step="indexing", shelves=12, children=[child.message_id for child in children])
        current_progress().total = 1_200
        current_progress().increment(512)
        parent.append(status.message_id)
        # Until all pictures are taken, which takes long on a busy machine.
        assert go_on.wait(6 * PATIENCE)

    def send(actor: dramatiq.Actor[Any, Any], label: str, **options: Any) -> dramatiq.Message[Any]:
        return actor.send_with_options(status={"label": label}, **options)

    Job(backend).enqueue().start(heartbeat_interval=1).write(label="Thumbnails", step="shrinking")
    with working(broker, threads=4):
        done = send(import_rows, "Orders of May", args=(1_000,))
        late = send(sync_stock, "Stock")
        bad = send(charge, "Payment")
        send(build_index, "Catalogue")
        send(import_rows, "Orders of June", args=(800,), delay=3_600_000)
        eventually(
            lambda: parent and all(StatusRegistry.get(one, backend=backend).attempts for one in (done, late, bad))
        )
        eventually(lambda: StatusRegistry.get(late, backend=backend).retrying)
        yield ["import_rows", "sync_stock", "charge", "build_index", "Retrying", "1 stalled"], parent[0]
        go_on.set()
        eventually(lambda: StatusRegistry.get(parent[0], backend=backend).finished)
