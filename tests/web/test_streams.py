"""Tests of Server-Sent Events: the events of a stream, its end, and the cost of many streams."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import redis
from starlette.requests import Request
from starlette.types import Message

from dramatiq_status import Snapshot
from dramatiq_status.backends import MemcachedBackend, RedisBackend
from dramatiq_status.record import FAILED
from dramatiq_status.web import TokenSigner, allow_all, status_app, streams

from ..backends.memcached.test_servers import ids_on
from ..conftest import StartServer
from ..jobs import Job
from ..recording import PATIENCE, eventually
from ..servers import MemcachedServer, RedisServer, free_port
from .serving import Site, serving
from .test_json import owner

ROOT = Path(__file__).parents[2]

#: Streams of one process.
MANY = 1_000


@pytest.fixture
def site(backend: RedisBackend) -> Iterator[Site]:
    with serving(status_app(authorize=allow_all, backend=backend)) as site:
        yield site


def test_a_stream_shows_a_job_to_its_end(site: Site, job: Job) -> None:
    with site.stream(f"/{job.message_id}/events") as events:
        headers = events.response.headers
        assert headers["Content-Type"].startswith("text/event-stream")
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Accel-Buffering"] == "no"
        assert headers["Content-Encoding"] == "identity"
        # First the present state, whose id is the version
        first = events.next()
        found = json.loads(first["data"])
        assert (found["status"], found["step"], first["id"]) == ("working", "reading", str(version(job)))
        # Then changes
        job.write(step="writing")
        assert events.data()["step"] == "writing"
        # Then the final one, a last event, and no more
        job.finish()
        assert events.data()["status"] == "completed"
        assert events.next()["event"] == "end"
        assert events.next() == {}


def version(job: Job) -> int:
    snapshot = job.backend.snapshot(job.message_id)
    assert snapshot is not None
    return snapshot.version


def test_a_job_that_ended_before_the_stream(site: Site, job: Job) -> None:
    job.finish(FAILED)
    with site.stream(f"/{job.message_id}/events") as events:
        assert events.data()["status"] == "failed"
        assert events.next()["event"] == "end"
        assert events.next() == {}


def test_what_was_seen_is_not_sent_again(site: Site, job: Job) -> None:
    seen = str(version(job))
    with site.stream(f"/{job.message_id}/events", Last_Event_ID=seen) as events:
        job.write(step="writing")
        assert events.data()["step"] == "writing"
    with site.stream(f"/{job.message_id}/events", Last_Event_ID=seen) as events:
        assert events.data()["step"] == "writing"
    # If the client has the final status, only the last event is sent
    job.finish()
    with site.stream(f"/{job.message_id}/events", Last_Event_ID=str(version(job))) as events:
        assert events.next()["event"] == "end"


def test_one_stream_of_many_messages(backend: RedisBackend, job: Job) -> None:
    other = Job(backend).enqueue().start().write(user_id=7)
    by_token = Job(backend).enqueue()
    done = Job(backend).enqueue().start().write(user_id=42).finish()
    signer = TokenSigner("secret")
    with serving(status_app(authorize=owner, backend=backend, signer=signer)) as site:
        messages = [
            {"id": job.message_id},
            {"id": other.message_id},
            {"id": by_token.message_id, "token": signer.sign(by_token.message_id)},
            {"id": "unknown"},
            {"id": "no id\n"},
            {"id": done.message_id},
        ]
        with site.stream("/events", {"messages": messages}, Cookie="user=42") as events:
            found: dict[str, Any] = {}
            for _ in messages:
                one = events.next()
                data = json.loads(one["data"])
                found[data["id"]] = (one.get("event"), data.get("status", {}).get("status"))
            assert found == {
                job.message_id: (None, "working"),
                other.message_id: ("refused", None),
                by_token.message_id: (None, "queued"),
                "unknown": ("unknown", None),
                "no id\n": ("unknown", None),
                done.message_id: (None, "completed"),
            }
            # Only changes of messages that the visitor may read are sent
            other.write(step="secret")
            by_token.start()
            data = events.data()
            assert (data["id"], data["status"]["status"]) == (by_token.message_id, "working")
            # An unknown message may appear; if it is then refused, it is not shown
            Job(backend, "unknown").enqueue()
            assert (events.next()["event"]) == "refused"
        # Statuses that the client has are not sent again
        seen = [{"id": job.message_id, "tag": data["tag"]}]
        with site.stream("/events", {"messages": seen}, Cookie="user=42") as events:
            tag = events.data()["tag"]
        seen[0]["tag"] = tag
        with site.stream("/events", {"messages": seen}, Cookie="user=42") as events:
            job.finish()
            assert events.data()["status"]["status"] == "completed"
            assert events.next()["event"] == "end"


def test_a_message_whose_server_does_not_answer_is_not_unknown(start_server: StartServer) -> None:
    # Given jobs on two servers, and a page with an unknown job, too
    servers = [start_server(MemcachedServer()) for _ in range(2)]
    addresses = [server.address for server in servers]
    with (
        closing(MemcachedBackend(servers=addresses, timeout=20_000)) as patient,
        closing(MemcachedBackend(servers=addresses, timeout=1_000)) as backend,
        serving(status_app(authorize=allow_all, backend=backend)) as site,
    ):
        (unknown, *there), lost = ids_on(patient, servers[0], 7), ids_on(patient, servers[1], 6)
        for message_id in (*there, *lost):
            Job(patient, message_id).enqueue().start()
        # When one of the servers does not answer
        servers[1].pause()
        body = {"messages": [{"id": one} for one in (unknown, *there, *lost)]}
        with site.stream("/events", body) as events:
            # Then the stream begins with what could be read
            first = [json.loads(events.next()["data"]) for _ in (unknown, *there)]
            assert [one["id"] for one in first if "status" not in one] == [unknown]
            assert {one["id"] for one in first if "status" in one} == set(there)
            # And it goes on with the other messages once their server answers again
            servers[1].resume()
            later = [events.data() for _ in lost]
            assert {one["id"] for one in later if one["status"]["status"] == "working"} == set(lost)
        # When no server of the messages answers, then the request has the status code 503
        servers[1].pause()
        answer = site.ask("POST", "/events", {"messages": [{"id": one} for one in lost]})
        assert answer.status == 503
        servers[1].resume()


def test_a_stream_ends_after_its_message_was_deleted(
    site: Site, backend: RedisBackend, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dramatiq_status.web.events.MISSING_TIMEOUT", 50)
    with site.stream(f"/{job.message_id}/events") as events:
        events.next()
        backend.delete(job.message_id)
        assert events.next()["event"] == "unknown"
        assert events.next()["event"] == "end"


def test_access_is_checked_again_while_a_stream_is_open(
    backend: RedisBackend, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "CHECK_INTERVAL", 0.05)
    granted = ["read"]
    app = status_app(authorize=lambda *_: granted[0], backend=backend)
    with serving(app) as site, site.stream(f"/{job.message_id}/events") as events:
        events.next()
        granted[0] = "none"
        assert events.next()["event"] == "refused"
        assert events.next() == {}


def test_a_token_that_expires_ends_the_stream(backend: RedisBackend, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "CHECK_INTERVAL", 0.05)
    signer = TokenSigner("secret")
    token = signer.sign(job.message_id, expires_in=1_000)
    app = status_app(authorize=lambda *_: "none", backend=backend, signer=signer)
    messages = [{"id": job.message_id, "token": token}]
    with serving(app) as site, site.stream("/events", {"messages": messages}) as events:
        assert events.data()["id"] == job.message_id
        assert events.next()["event"] == "refused"


def test_comments_keep_a_silent_stream(site: Site, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "COMMENT_INTERVAL", 0.05)
    with site.stream(f"/{job.message_id}/events") as events:
        events.next()
        assert [events.response.readline() for _ in range(4)] == [b":\n", b"\n"] * 2


def test_an_old_stream_is_closed_so_that_the_client_resumes(
    site: Site, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MAX_AGE", 0.05)
    with site.stream(f"/{job.message_id}/events") as events:
        events.next()
        assert events.next() == {}


def test_a_watcher_ends_when_its_visitor_disconnects(site: Site, job: Job, redis_server: RedisServer) -> None:
    client = redis.Redis(port=redis_server.port)
    with site.stream(f"/{job.message_id}/events") as events:
        events.next()
        eventually(lambda: client.pubsub_channels())
    eventually(lambda: not client.pubsub_channels())
    client.close()


def test_a_slow_reader_gets_the_latest_and_holds_up_no_other(site: Site, job: Job) -> None:
    # Given a client with a small window that does not read
    with closing(socket.socket()) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect((site.host, site.port))
        slow.settimeout(PATIENCE)
        slow.sendall(f"GET /{job.message_id}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        with site.stream(f"/{job.message_id}/events") as events:
            events.next()
            # When 200 changes of 50 kB each are made
            for number in range(200):
                job.write(text=str(number % 10) * 50_000, number=number)
                while events.data()["number"] < number:
                    pass
            job.finish()
        # Then the slow reader gets some of the changes, and the last one
        received = b""
        while b"event: end" not in received[-200:]:
            received += slow.recv(65_536)
    assert b'"status":"completed"' in received
    assert len(received) < 200 * 50_000


def test_the_server_ends_although_streams_are_open(redis_url: str, redis_server: RedisServer) -> None:
    # Given a server with a thousand streams of as many messages
    with (
        closing(RedisBackend(url=redis_url, timeout=20_000)) as backend,
        closing(redis.Redis(port=redis_server.port)) as client,
    ):
        jobs = [Job(backend).enqueue() for _ in range(MANY)]
        port = free_port()
        command = [sys.executable, "-m", "uvicorn", "tests.web.streams_app:app", f"--port={port}", "--log-level=error"]
        environment = {**os.environ, "DRAMATIQ_STATUS_URL": redis_url}
        before = len(client.client_list())
        with subprocess.Popen(command, cwd=ROOT, env=environment) as server, ExitStack() as stack:
            stack.callback(server.kill)
            eventually(lambda: _is_open(port))
            visitors = [stack.enter_context(closing(_visit(port, job.message_id))) for job in jobs]
            for visitor in visitors:
                _read_until(visitor, b"queued")
            # Then they share one connection for reads, and one for published changes
            eventually(lambda: len(client.client_list()) - before == 2)
            # When it gets the signal to end, it ends, and the streams of all visitors end
            server.send_signal(signal.SIGTERM)
            server.wait(PATIENCE)
            for visitor in visitors:
                _read_until(visitor, b"0\r\n\r\n")


def _is_open(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _visit(port: int, message_id: str) -> socket.socket:
    visitor = socket.create_connection(("127.0.0.1", port), PATIENCE)
    visitor.sendall(f"GET /{message_id}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return visitor


def _read_until(visitor: socket.socket, end: bytes) -> None:
    received = b""
    while end not in received:
        part = visitor.recv(65_536)
        assert part, received
        received += part


def test_streams_end_when_the_application_ends_them(backend: RedisBackend, job: Job) -> None:
    app = status_app(authorize=allow_all, backend=backend)
    loops: list[asyncio.AbstractEventLoop] = []

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        loops.append(asyncio.get_running_loop())
        await app(scope, receive, send)

    with serving(noting) as site, site.stream(f"/{job.message_id}/events") as events:
        events.next()
        loops[0].call_soon_threadsafe(app.end_streams)
        assert events.next() == {}


def test_an_authorize_that_fails_ends_the_stream(backend: RedisBackend, job: Job) -> None:
    def once(request: Request, snapshot: Snapshot | None) -> str:
        if request.method == "POST":
            raise RuntimeError("no database")
        return "read"

    with serving(status_app(authorize=once, backend=backend)) as site:
        assert site.ask("POST", "/events", {"messages": [{"id": job.message_id}]}).status == 500


def test_a_stream_that_is_cancelled_again_as_it_ends_closes_its_source() -> None:
    ends: list[str] = []

    async def source() -> AsyncGenerator[bytes, None]:
        try:
            await asyncio.sleep(PATIENCE)
            yield b""
        finally:
            # A watch takes some turns of the loop to end.
            await asyncio.sleep(0.01)
            ends.append("source")

    async def stay() -> Message:
        await asyncio.sleep(PATIENCE)
        return {}

    async def ignore(_: object = None) -> None:
        pass

    async def main() -> None:
        # Given an open stream
        stream = streams.EventStream(streams.Streams(), source(), ignore)
        running = asyncio.create_task(stream.run({"method": "GET"}, stay, ignore))
        await asyncio.sleep(0.01)
        # When the server cancels it in each turn of the loop
        while not running.done():
            running.cancel()
            await asyncio.sleep(0)
        # Then its source has ended before
        assert running.cancelled() and ends == ["source"]

    # While the browser of other tests runs, an event loop runs in this thread.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, main()).result()
