"""The application as it is run: behind nginx, mounted in other frameworks, with a server or a store that restarts."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from fastapi import FastAPI
from playwright.sync_api import Browser

from dramatiq_status.backends import RedisBackend
from dramatiq_status.web import allow_all, status_app

from ..conftest import StartServer
from ..jobs import Job
from ..recording import PATIENCE, eventually
from ..servers import RedisServer, free_port
from .browser import Tab
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
        # The box, whose answer is a redirection
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


@contextmanager
def uvicorn_on(port: int, redis_url: str) -> Iterator[None]:
    """Run the application in a process of its own, until it is ended as systemd would."""
    command = [sys.executable, "-m", "uvicorn", "tests.web.streams_app:app", f"--port={port}", "--log-level=error"]
    environment = {**os.environ, "DRAMATIQ_STATUS_URL": redis_url}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        try:
            eventually(lambda: _listens(port))
            yield
            process.terminate()
            process.wait(PATIENCE)
        finally:
            process.kill()


#: A page that follows a job 200 times as so many pages do: each frame has a stream of its own.
FRAMES = 200


def test_a_server_that_restarts_with_200_pages(browser: Browser, backend: RedisBackend, redis_url: str) -> None:
    # Given 200 visitors, of whom one is a browser, and the others read the stream as it does
    job, port = start(backend, 420), free_port()
    with ExitStack() as stack:
        context = stack.enter_context(closing(browser.new_context()))
        tab = Tab(context.new_page())
        with uvicorn_on(port, redis_url):
            tab.open(f"http://127.0.0.1:{port}/{job.message_id}").until_state("working")
            others = [stack.enter_context(closing(_visit(port, job))) for _ in range(FRAMES - 1)]
        # When the server ends, then all streams do
        for other in others:
            while other.recv(65_536):
                pass
        tab.until_state("offline")
        # When it is there again, then the page is right again without being loaded
        job.finish()
        with uvicorn_on(port, redis_url):
            tab.until_state("completed")


def _visit(port: int, job: Job) -> socket.socket:
    visitor = socket.create_connection(("127.0.0.1", port), PATIENCE)
    visitor.sendall(f"GET /{job.message_id}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert visitor.recv(1000).startswith(b"HTTP/1.1 200")
    return visitor


def test_a_stream_outlives_its_store(start_server: StartServer) -> None:
    server = start_server(RedisServer("--appendonly", "yes", "--appendfsync", "always"))
    with closing(RedisBackend(url=server.url, timeout=500)) as backend:
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
