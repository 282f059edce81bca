"""Tests of the JSON of the web application: fields, access, and errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount

from dramatiq_status import Snapshot, StatusMiddleware
from dramatiq_status.backends import RedisBackend, StubBackend
from dramatiq_status.record import ARGS, EXCEPTION, FAILED, TRACEBACK
from dramatiq_status.web import Access, TokenSigner, allow_all, status_app

from ..conftest import StartServer
from ..docs.pages import snippet
from ..jobs import Job
from ..recording import eventually
from ..servers import RedisServer
from .serving import Site, serving


def owner(request: Request, snapshot: Snapshot | None) -> str:
    """Let the visitor that the cookie names read their own jobs."""
    return "read" if snapshot is not None and str(snapshot.get("user_id")) == request.cookies.get("user") else "none"


def writer(request: Request, snapshot: Snapshot | None) -> Access:
    return Access.WRITE


@pytest.fixture
def site(backend: RedisBackend) -> Iterator[Site]:
    with serving(status_app(authorize=allow_all, backend=backend)) as site:
        yield site


def test_a_status_with_derived_values(site: Site, job: Job) -> None:
    answer = site.get(f"/{job.message_id}.json")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "private, no-cache"
    found = answer.json()
    assert (found["status"], found["step"], found["stalled"]) == ("working", "reading", False)
    assert "duration" in found


def test_a_status_that_has_not_changed_is_not_sent_again(site: Site, job: Job) -> None:
    path = f"/{job.message_id}.json"
    tag = site.get(path).headers["ETag"]
    for header in (tag, tag.removeprefix("W/"), f'"other", {tag}', "*"):
        again = site.get(path, If_None_Match=header)
        assert (again.status, again.body, again.headers["ETag"]) == (304, b"", tag)
    # When it changes
    job.write(step="writing")
    changed = site.get(path, If_None_Match=tag)
    assert (changed.status, changed.json()["step"]) == (200, "writing")


def test_a_job_that_stalls_has_another_tag(site: Site, backend: RedisBackend) -> None:
    # Given a job whose heartbeats come every millisecond, and then no more
    path = f"/{Job(backend).enqueue().start(heartbeat_interval=1).message_id}.json"
    tags = {site.get(path).headers["ETag"]}
    eventually(lambda: site.get(path).json()["stalled"])
    tags.add(site.get(path).headers["ETag"])
    assert {tag[-3] + tag[-2] for tag in tags} >= {"-1"}


@pytest.mark.parametrize(
    "path", ["unknown.json", "%00.json", "a%20b.json", "..%2f..%2fetc%2fpasswd.json", "x" * 3000 + ".json"]
)
def test_unknown_statuses_and_ids_that_are_none(site: Site, path: str) -> None:
    for name in (path, path.replace(".json", "/events")):
        answer = site.get(f"/{name}")
        assert answer.status == 404
        assert set(answer.json()) == {"error"}


def test_refused_statuses_are_not_sent(backend: RedisBackend, job: Job) -> None:
    with serving(status_app(authorize=owner, backend=backend)) as site:
        for path in (f"/{job.message_id}.json", f"/{job.message_id}/events"):
            refused = site.get(path, Cookie="user=7")
            assert (refused.status, set(refused.json())) == (403, {"error"})
        assert site.get(f"/{job.message_id}.json", Cookie="user=42").status == 200


@pytest.mark.parametrize("granted", [None, True, "admin", ""])
def test_an_authorize_that_returns_something_else_grants_nothing(backend: RedisBackend, job: Job, granted: Any) -> None:
    with serving(status_app(authorize=lambda *_: granted, backend=backend)) as site:
        assert site.get(f"/{job.message_id}.json").status == 500


def test_authorize_is_required() -> None:
    with pytest.raises(TypeError, match="authorize"):
        status_app()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="allow_all lets every visitor"):
        status_app(authorize=None)  # type: ignore[arg-type]


def test_authorize_may_be_a_coroutine_function_and_may_block(backend: RedisBackend, job: Job) -> None:
    async def later(request: Request, snapshot: Snapshot | None) -> str:
        await asyncio.sleep(0)
        return "read"

    def in_a_thread(request: Request, snapshot: Snapshot | None) -> str:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return "read"

    for authorize in (later, in_a_thread, lambda *_: later(*_)):
        with serving(status_app(authorize=authorize, backend=backend)) as site:
            assert site.get(f"/{job.message_id}.json").status == 200


def test_a_store_that_is_down_and_comes_back(start_server: StartServer) -> None:
    server = start_server(RedisServer())
    with closing(RedisBackend(url=server.url, timeout=20_000)) as backend:
        job = Job(backend).enqueue()
        with serving(status_app(authorize=allow_all, backend=backend)) as site:
            server.stop()
            for path in (f"/{job.message_id}.json", f"/{job.message_id}/events", f"/batch.json?ids={job.message_id}"):
                down = site.get(path)
                assert (down.status, down.headers["Retry-After"]) == (503, "2")
                assert b"127.0.0.1" not in down.body
            server.start()
            job.requeue()
            assert eventually(lambda: site.get(f"/{job.message_id}.json").status == 200)


def test_a_batch_is_rolled_up(site: Site, backend: RedisBackend, job: Job) -> None:
    done = Job(backend).enqueue().start().finish()
    found = site.get(f"/batch.json?ids={job.message_id},{done.message_id}&ids=gone,{done.message_id}").json()
    assert (found["status"], found["finished"]) == ("working", False)
    assert found["counts"] == {
        **{"queued": 0, "working": 1, "completed": 1, "failed": 0, "unknown": 1, "unavailable": 0}
    }
    assert found["children"][job.message_id]["step"] == "reading"
    assert found["children"]["gone"] is None


def test_a_batch_is_bounded_and_shows_nothing_that_is_refused(backend: RedisBackend, job: Job) -> None:
    other = Job(backend).enqueue().start().write(user_id=7, secret="x")
    with serving(status_app(authorize=owner, backend=backend)) as site:
        ids = f"{job.message_id},{other.message_id}"
        answer = site.get(f"/batch.json?ids={ids}", Cookie="user=42")
        assert b"secret" not in answer.body
        found = answer.json()
        assert (list(found["children"]), found["refused"]) == ([job.message_id], [other.message_id])
        assert site.get("/batch.json?ids=" + ",".join(map(str, range(1001)))).status == 413
        assert site.get("/batch.json").json()["children"] == {}


def test_private_fields_stay_on_the_server(backend: RedisBackend) -> None:
    job = Job(backend).enqueue().start().write(step="x", secret="user's")
    stored = {ARGS: '["hidden"]', TRACEBACK: '"hidden"', EXCEPTION: '{"type": "ValueError", "message": "hidden"}'}
    job._write(stored, state=FAILED, create=True)

    def shown(*fields: str) -> dict[str, Any]:
        app = status_app(authorize=allow_all, backend=backend, **({"fields": fields} if fields else {}))
        with serving(app) as site:
            found: dict[str, Any] = site.get(f"/{job.message_id}.json").json()
            return found

    # By default, all fields of the application are shown, and no private ones
    found = shown()
    assert found["secret"] == "user's"
    assert found["exception"] == {"type": "ValueError"}
    assert "hidden" not in json.dumps(found)
    # If fields are named, these are shown, and no others
    found = shown("step", "args", "exception.message")
    assert (found["step"], found["args"]) == ("x", ["hidden"])
    assert found["exception"] == {"type": "ValueError", "message": "hidden"}
    assert not {"secret", "traceback", "kwargs"} & set(found)


def test_tokens_permit_reading(backend: RedisBackend, job: Job) -> None:
    other = Job(backend).enqueue().message_id
    signer = TokenSigner("a secret")
    with serving(status_app(authorize=lambda *_: "none", backend=backend, signer=signer)) as site:

        def status(token: str, message_id: str = job.message_id) -> int:
            return site.get(f"/{message_id}.json", X_Status_Token=token).status

        token = signer.sign(job.message_id)
        assert (status(token), status(token, other)) == (200, 403)
        both = signer.sign([job.message_id, other], expires_in=timedelta(hours=1))
        assert (status(both), status(both, other)) == (200, 200)
        # Refused: an expired token, a token of another key, a changed token, and texts that are no tokens
        expired = signer.sign(job.message_id, expires_in=0)
        forged = TokenSigner("another secret").sign(job.message_id)
        for wrong in (
            expired,
            forged,
            token[:-1],
            token.swapcase(),
            "",
            "x",
            "." * 100,
            "é".encode().decode("latin-1"),
        ):
            assert status(wrong) == 403
        # A token in the URL has no effect
        assert site.get(f"/{job.message_id}.json?token={token}").status == 403
        # A token permits no change
        assert site.ask("POST", f"/{job.message_id}/delete", X_Status_Token=token).status == 403


def test_a_key_is_replaced() -> None:
    old = TokenSigner("old").sign("job")
    both = TokenSigner(["old", "new"])
    assert both.allows(old, "job")
    assert TokenSigner("new").allows(both.sign("job"), "job")
    with pytest.raises(ValueError, match="empty"):
        TokenSigner("")


def test_deleting_needs_the_right_to_write(site: Site, backend: RedisBackend, job: Job) -> None:
    path = f"/{job.message_id}/delete"
    assert site.ask("POST", path).status == 403
    assert site.get(path).status in (404, 405)
    with serving(status_app(authorize=writer, backend=backend)) as writable:
        # A page of another site
        for headers in (
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site", "Origin": writable.url},
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
        ):
            assert writable.ask("POST", path, **headers).status == 403
        assert backend.snapshot(job.message_id) is not None
        # A program, and a page of this site
        assert writable.ask("POST", path).json() == {"deleted": True}
        other = Job(backend).enqueue().message_id
        gone = writable.ask("POST", f"/{other}/delete", Sec_Fetch_Site="same-origin", Accept="text/html")
        assert (gone.status, gone.headers["Location"]) == (303, "../")
        assert writable.ask("POST", path).status == 404


def test_cancelling_needs_the_right_to_write(site: Site, backend: RedisBackend, job: Job) -> None:
    waiting = Job(backend).enqueue()
    path = f"/{job.message_id}/cancel"
    assert site.ask("POST", path).status == 403
    with serving(status_app(authorize=writer, backend=backend)) as writable:
        assert writable.ask("POST", path, Sec_Fetch_Site="cross-site").status == 403
        assert writable.ask("POST", path, Origin="https://evil.example").status == 403
        found = backend.snapshot(job.message_id)
        assert found is not None and found.cancel_requested_at is None
        # A program, and a page of this site
        assert writable.ask("POST", path).json() == {"cancellation": "requested"}
        path = f"/{waiting.message_id}/cancel"
        done = writable.ask("POST", path, Sec_Fetch_Site="same-origin", Accept="text/html")
        assert (done.status, done.headers["Location"]) == (303, f"../{waiting.message_id}")
        found = backend.snapshot(waiting.message_id)
        assert found is not None and found.cancelled
        assert writable.ask("POST", path).json() == {"cancellation": "cancelled"}
        assert writable.ask("POST", f"/{Job(backend).message_id}/cancel").status == 404


def test_two_mounts_with_two_stores() -> None:
    stores = [StubBackend(), StubBackend()]
    jobs = [Job(store).enqueue().message_id for store in stores]
    app = Starlette(
        routes=[
            Mount(f"/{name}/jobs", status_app(authorize=allow_all, backend=store))
            for name, store in zip(("a", "b"), stores)
        ]
    )
    with serving(app) as site:
        found = [[site.get(f"/{name}/jobs/{job}.json").status for name in ("a", "b")] for job in jobs]
    assert found == [[200, 404], [404, 200]]


@pytest.mark.parametrize("make", [lambda: "x" * 2_000_000, lambda: "[" * 100_000, lambda: "\0", lambda: '{"messages"'])
def test_malformed_bodies_are_refused(site: Site, make: Callable[[], str]) -> None:
    body = make()
    assert site.ask("POST", "/events", body).status == (413 if len(body) > 1_048_576 else 400)


@pytest.mark.parametrize(
    "messages", [[], {}, "x", [1], [{"id": 1}], [{"id": "x", "token": 1}], [{"id": "x", "tag": []}], [{}], None]
)
def test_malformed_messages_are_refused(site: Site, messages: Any) -> None:
    assert site.ask("POST", "/events", {"messages": messages}).status == 400


def test_ten_thousand_ids_are_refused(site: Site) -> None:
    assert site.ask("POST", "/events", {"messages": [{"id": str(i)} for i in range(10_000)]}).status == 413


def test_the_application_of_the_reference(backend: RedisBackend, job: Job) -> None:
    # Given a site whose visitors are named by a cookie, and that uses the default broker
    class Visitor:
        def __init__(self, name: str | None) -> None:
            self.id = int(name or 0)
            self.is_admin = name == "1"

    async def with_user(scope: Any, receive: Any, send: Any) -> None:
        scope["user"] = Visitor(Request(scope).cookies.get("user"))
        await site_app(scope, receive, send)

    site_app = Starlette()
    broker = StubBroker()
    broker.add_middleware(StatusMiddleware(backend=backend))
    before = dramatiq.get_broker()
    dramatiq.set_broker(broker)
    try:
        exec(snippet("docs/reference/web.rst", "web"), {"app": site_app})
        with serving(with_user) as site:
            path = f"/jobs/{job.message_id}.json"
            assert [site.get(path, Cookie=f"user={user}").status for user in (42, 7)] == [200, 403]
            assert [site.get("/jobs/", Cookie=f"user={user}").status for user in (1, 42)] == [200, 403]
    finally:
        dramatiq.set_broker(before)
