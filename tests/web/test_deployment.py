"""The application as it is run: behind nginx, mounted in other frameworks, with a server or a store that restarts."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from fastapi import FastAPI

from dramatiq_status.backends import RedisBackend
from dramatiq_status.web import allow_all, status_app

from ..conftest import StartServer
from ..recording import eventually
from ..servers import RedisServer, free_port
from .browser import Tab
from .pages import Pages
from .serving import serving
from .test_element import reach, start

ROOT = Path(__file__).parents[2]

NGINX = """
daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder}; uwsgi_temp_path {folder};
  scgi_temp_path {folder};
  gzip on; gzip_types text/event-stream application/json;
  server {{
    listen 127.0.0.1:{port};
    location /a/b/ {{
      proxy_pass http://127.0.0.1:{upstream}/; proxy_http_version 1.1; proxy_set_header Connection "";
    }}
  }}
}}
"""


@contextmanager
def nginx(folder: Path, upstream: int) -> Iterator[str]:
    """Run nginx in front of a server, under the prefix /a/b/."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    if program is None:
        if os.environ.get("CI", "").lower() in {"1", "true"}:
            raise RuntimeError("nginx is missing: scripts/services installs it.")
        pytest.skip("nginx is missing: scripts/services installs it.")
    port = free_port()
    configuration = folder / "nginx.conf"
    configuration.write_text(NGINX.format(folder=folder, port=port, upstream=upstream))
    with subprocess.Popen([program, "-c", str(configuration), "-p", str(folder)]) as process:
        try:
            eventually(lambda: _listens(port))
            yield f"http://127.0.0.1:{port}/a/b/"
        finally:
            process.terminate()


def _listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_behind_nginx_under_a_prefix(tab: Tab, backend: RedisBackend, tmp_path: Path) -> None:
    job = start(backend, 420, step="reading")
    with serving(status_app(authorize=allow_all, backend=backend)) as site, nginx(tmp_path, site.port) as url:
        # The list, its rows, and the page of a job
        tab.open(url)
        tab.until("() => document.querySelector('dramatiq-status')?.snapshot")
        tab.page.click("#rows a")
        tab.page.wait_for_url(f"{url}{job.message_id}")
        tab.until_state("working")
        # An event is passed on at once, through a proxy that buffers and compresses
        reach(job, 990)
        tab.until("() => document.querySelector('dramatiq-status').snapshot.progress == 990")
        # The box, whose response is a redirection
        tab.page.fill("#q", "state:working")
        tab.page.press("#q", "Enter")
        tab.page.wait_for_url(f"{url}?state=working")
        tab.page.fill("#q", job.message_id)
        tab.page.press("#q", "Enter")
        tab.page.wait_for_url(f"{url}{job.message_id}")


def test_mounted_in_fastapi(tab: Tab, backend: RedisBackend) -> None:
    job = start(backend, 420)
    app = FastAPI()
    app.mount("/jobs", status_app(authorize=allow_all, backend=backend))
    with serving(app) as site:
        tab.open(f"{site.url}/jobs")
        tab.until("() => document.querySelector('dramatiq-status')?.snapshot")
        tab.open(f"{site.url}/jobs/{job.message_id}").until_state("working")


#: Pages that are open at the same time, each in a frame: it has its own script, as a page in a tab has.
PAGES = 20

SHOW = """(number) => {
  for (let i = 0; i < number; i++) {
    const frame = document.createElement("iframe");
    frame.src = "/";
    document.body.append(frame);
  }
}"""

STATES = """[...document.querySelectorAll("iframe")].flatMap(
  (frame) => [...frame.contentDocument?.querySelectorAll("dramatiq-status") ?? []].map((one) => one.state))"""


def test_a_server_that_restarts_under_200_elements(tab: Tab, backend: RedisBackend) -> None:
    # Given 20 pages with 10 elements each: four of the pages have a stream, the others poll
    jobs = [start(backend, 420) for _ in range(10)]
    pages = Pages(status_app(authorize=allow_all, backend=backend), [job.message_id for job in jobs])
    number = PAGES * len(jobs)
    all_are = f"([state, number]) => {STATES}.filter((one) => one == state).length == number"
    with serving(pages) as site:
        tab.open(f"{site.url}/pixel.gif")
        tab.run(SHOW, PAGES)
        tab.until(all_are, ["working", number])
        assert 1 <= pages.most <= 4
    # When the server has gone, and the jobs end meanwhile
    tab.until(f"() => {STATES}.includes('offline')")
    for job in jobs:
        job.finish()
    before, pages.most = len(pages.log), 0
    # When it is back, all elements are right again, and no page is loaded again
    with serving(pages, port=site.port):
        tab.until(all_are, ["completed", number])
    asked = pages.log[before:]
    assert not [line for line in asked if not line.startswith(("POST /jobs/events", "GET /jobs/")) or ".js " in line]
    # And the pages have sent few requests: one for all elements of a page, or one for each element
    streams = sum(line.startswith("POST") for line in asked)
    assert 1 <= streams <= PAGES
    # (At the server, a stream may end after the next one of the four has begun.)
    assert pages.most <= 8
    assert PAGES <= len(asked) <= number + PAGES


def test_a_stream_outlives_its_store(start_server: StartServer) -> None:
    server = start_server(RedisServer("--appendonly", "yes", "--appendfsync", "always"))
    with closing(RedisBackend(url=server.url, timeout=20_000)) as backend:
        job = start(backend, 420)
        with (
            serving(status_app(authorize=allow_all, backend=backend)) as site,
            site.stream(f"/{job.message_id}/events") as events,
        ):
            events.next()
            server.restart()
            job.restore(step="restored")
            job.finish()
            found = events.data()
            while found["status"] != "completed":
                found = events.data()
            assert events.next()["event"] == "end"
