"""The recipes of the documentation for web applications, under the real servers and frameworks."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import textwrap
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dramatiq
import pytest
import uvicorn
from dramatiq.brokers.stub import StubBroker
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from websockets.asyncio.client import ClientConnection, connect

from dramatiq_status import StatusMiddleware, StatusRegistry
from dramatiq_status.backends import RedisBackend
from dramatiq_status.update import EnqueueId, Kind, Update

from .docs.pages import snippet
from .recording import PATIENCE, eventually
from .servers import RedisServer

#: Visitors of the web socket.
VISITORS = 60

MESSAGE_ID = "job"


@pytest.fixture
def backend(redis_server: RedisServer) -> Iterator[RedisBackend]:
    """Yield the backend of the default broker; one message waits there."""
    backend = RedisBackend(host="127.0.0.1", port=redis_server.port, namespace="recipes", timeout=20_000)
    broker = StubBroker()
    broker.add_middleware(StatusMiddleware(backend=backend))
    dramatiq.set_broker(broker)
    backend.update(MESSAGE_ID, Update(Kind.ENQUEUE, EnqueueId(1, 1)))
    yield backend
    backend.delete(MESSAGE_ID)
    backend.close()
    dramatiq.set_broker(None)  # type: ignore[arg-type]


@pytest.fixture
def server(backend: RedisBackend) -> Iterator[str]:
    """Run uvicorn with the web socket of the page, and a page with the number of tasks; yield its host and port."""
    namespace: dict[str, Any] = {}
    exec(snippet("docs/how-to/web-socket.rst", "websocket"), namespace)

    async def tasks(request: Any) -> PlainTextResponse:
        return PlainTextResponse(str(len(asyncio.all_tasks())))

    routes = [WebSocketRoute("/jobs/{message_id}", namespace["follow"]), Route("/tasks", tasks)]
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started)
    host, port = server.servers[0].sockets[0].getsockname()
    yield f"{host}:{port}"
    server.should_exit = True
    thread.join(PATIENCE)
    assert not thread.is_alive()


def tasks_of(server: str) -> int:
    with urllib.request.urlopen(f"http://{server}/tasks", timeout=PATIENCE) as response:
        return int(response.read())


async def open_socket(server: str) -> ClientConnection:
    """Open the web socket, and receive the first snapshot."""
    socket = await connect(f"ws://{server}/jobs/{MESSAGE_ID}")
    assert json.loads(await socket.recv())["status"] == "queued"
    return socket


def test_a_web_socket_shows_a_job_to_its_end(server: str) -> None:
    async def visit() -> list[str]:
        socket = await open_socket(server)
        # When the job ends
        await asyncio.to_thread(StatusRegistry.get(MESSAGE_ID).update, status="completed")
        return [json.loads(text)["status"] async for text in socket]

    # Then the visitor receives the end, and the socket is closed
    assert asyncio.run(asyncio.wait_for(visit(), PATIENCE)) == ["completed"]


def test_vanished_visitors_leave_no_watcher_behind(server: str) -> None:
    async def visit() -> int:
        # Given visitors of a job in which nothing changes
        sockets = [await open_socket(server) for _ in range(VISITORS)]
        visited = await asyncio.to_thread(tasks_of, server)
        # When they disconnect, half of them without closing the connection
        for number, socket in enumerate(sockets):
            if number % 2:
                socket.transport.abort()
            else:
                await socket.close()
        return visited

    before = tasks_of(server)
    visited = asyncio.run(asyncio.wait_for(visit(), PATIENCE))
    assert visited >= before + VISITORS
    # Then the server has the tasks that it had before, and the one task that receives changes
    eventually(lambda: tasks_of(server) <= before + 1)


#: A project of django_dramatiq, with the settings and the view of their page.
SETTINGS = """
SECRET_KEY = "x"
ROOT_URLCONF = "urls"
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = ["django_dramatiq"]
"""

URLS = """
from django.urls import path

urlpatterns = [path("jobs/<message_id>", job_status)]
"""

SCRIPT = """
import django

django.setup()

import dramatiq
from django.test import Client
from dramatiq_status import current_status

@dramatiq.actor
def work():
    current_status()["step"] = "done"

message = work.send()
client = Client()
print(client.get(f"/jobs/{message.message_id}").json()["status"])
worker = dramatiq.Worker(dramatiq.get_broker(), worker_timeout=100)
worker.start()
dramatiq.get_broker().join("default")
worker.join()
worker.stop(timeout=1_000)
found = client.get(f"/jobs/{message.message_id}")
print(found.json()["status"], found.json()["step"], found["Content-Type"], client.get("/jobs/unknown").status_code)
"""


def test_the_recipe_for_django(tmp_path: Path, redis_server: RedisServer) -> None:
    # Given a project with the settings and the view of the page, and the URL of the store in the environment
    url = f"redis://127.0.0.1:{redis_server.port}"
    settings = snippet("docs/how-to/django.rst", "django-settings")
    assert "redis://127.0.0.1:6379" in settings
    (tmp_path / "settings.py").write_text(settings.replace("redis://127.0.0.1:6379", url) + SETTINGS)
    (tmp_path / "urls.py").write_text(snippet("docs/how-to/django.rst", "django-view") + URLS)
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "settings",
        "DRAMATIQ_STATUS_URL": f"{url}/1?namespace=django&timeout=20000",
        "PYTHONPATH": os.pathsep.join((str(tmp_path), str(Path(__file__).parents[1]))),
    }
    # When a message is sent and processed, and the view shows its status
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    # Then the view returns the values that the page needs
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["queued", "completed done application/json 404"]


def test_middleware_without_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DRAMATIQ_STATUS_URL", raising=False)
    with pytest.raises(
        ValueError, match="pass a backend or its URL, or set the environment variable DRAMATIQ_STATUS_URL"
    ):
        StatusMiddleware()


def test_middleware_with_a_wrong_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAMATIQ_STATUS_URL", "redis//h")
    with pytest.raises(ValueError, match="DRAMATIQ_STATUS_URL"):
        StatusMiddleware()
