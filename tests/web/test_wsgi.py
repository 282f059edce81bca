"""Statuses under WSGI and in Django: JSON, tags, refusals and tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.validate import validator

import pytest

from dramatiq_status.backends import RedisBackend
from dramatiq_status.web import TokenSigner
from dramatiq_status.web.wsgi import StatusViews, WSGIRequest

from ..conftest import StartServer
from ..jobs import Job
from ..servers import RedisServer
from .serving import Site


class Silent(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def served(views: StatusViews) -> Iterator[Site]:
    """Serve by a server that checks the protocol."""
    with make_server("127.0.0.1", 0, validator(views), handler_class=Silent) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Site("127.0.0.1", server.server_port)
        finally:
            server.shutdown()
            thread.join()


def owner(request: WSGIRequest, snapshot: Any) -> str:
    return "read" if request.headers.get("Cookie") == f"user={snapshot.get('user_id')}" else "none"


def test_a_status_and_its_tag(backend: RedisBackend, job: Job) -> None:
    with served(StatusViews(authorize=owner, backend=backend)) as site:
        path = f"/{job.message_id}.json"
        answer = site.get(path, Cookie="user=42")
        assert (answer.status, answer.json()["step"]) == (200, "reading")
        assert answer.headers["Content-Type"] == "application/json"
        tag = answer.headers["ETag"]
        assert site.get(path, Cookie="user=42", If_None_Match=tag).status == 304
        job.write(step="writing")
        assert site.get(path, Cookie="user=42", If_None_Match=tag).json()["step"] == "writing"
        assert site.ask("HEAD", path, Cookie="user=42").body == b""
        # Refused messages, unknown messages, and unknown paths
        assert site.get(path, Cookie="user=7").status == 403
        assert {site.get(name).status for name in ("/unknown.json", "/%00.json", "/", "/pages.js", "/x")} == {404}
        assert site.get("/..%2Fpages.css").status == 404
        assert site.ask("POST", "/events", "{}", Content_Type="application/json").status == 405


def test_the_element_is_served(backend: RedisBackend) -> None:
    with served(StatusViews(authorize=owner, backend=backend)) as site:
        answer = site.get("/dramatiq-status.js")
        assert answer.headers["Content-Type"].startswith("text/javascript")
        assert b"customElements.define" in answer.body


def test_tokens_permit_reading(backend: RedisBackend, job: Job) -> None:
    signer = TokenSigner("secret")
    views = StatusViews(authorize=lambda *_: "none", backend=backend, signer=signer)
    with served(views) as site:
        path = f"/{job.message_id}.json"
        assert site.get(path, X_Status_Token=signer.sign(job.message_id)).status == 200
        assert site.get(path, X_Status_Token=signer.sign("other")).status == 403
        assert site.get(path, X_Status_Token=signer.sign(job.message_id, expires_in=0)).status == 403


def test_a_store_that_is_down(start_server: StartServer) -> None:
    server = start_server(RedisServer())
    backend = RedisBackend(url=server.url, timeout=300)
    with served(StatusViews(authorize=owner, backend=backend)) as site:
        server.stop()
        down = site.get("/x.json")
        assert (down.status, down.headers["Retry-After"]) == (503, "2")
    backend.close()


def test_authorize_must_answer(backend: RedisBackend, job: Job) -> None:
    with pytest.raises(TypeError, match="authorize"):
        StatusViews(authorize=None)  # type: ignore[arg-type]
    views = StatusViews(authorize=lambda *_: True, backend=backend)  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match="'none', 'read' or 'write'"):
        views.answer(f"{job.message_id}.json", WSGIRequest({}))


DJANGO = """
import django, json
from django.conf import settings
settings.configure(
    SECRET_KEY="x", ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"],
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "dramatiq_status.web.django"],
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "users.db"}},
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
    DRAMATIQ_STATUS={"AUTHORIZE": "dramatiq_status.web.django.owner_or_staff", "TOKENS": True},
)
django.setup()
import dramatiq
from django.contrib.auth.models import AnonymousUser, User
from django.template import Context, Template
from django.test import Client, RequestFactory, override_settings
from django.urls import include, path
from dramatiq.brokers.stub import StubBroker
from dramatiq_status import StatusMiddleware
from dramatiq_status.backends import StubBackend
from dramatiq_status.web.django import owner_or_staff
from dramatiq_status.web.django.views import status
urlpatterns = [path("x/jobs/", include("dramatiq_status.web.django.urls"))]
broker = StubBroker(); broker.add_middleware(StatusMiddleware(backend=StubBackend())); dramatiq.set_broker(broker)
actor = dramatiq.actor(lambda: None, actor_name="work")
message = actor.send_with_options(status={"user_id": 5})
found = {}
users = {"anonymous": AnonymousUser(), "owner": User(pk=5), "other": User(pk=6),
         "staff": User(pk=7, is_staff=True), "inactive": User(pk=5, is_active=False)}
for name, user in users.items():
    request = RequestFactory().get("/")
    request.user = user
    found[name] = status(request, f"{message.message_id}.json").status_code
template = Template("{% load dramatiq_status %}{% dramatiq_status m label=label %}")
html = template.render(Context({"m": message, "label": "<b>"}))
found["html"] = html
token = html.split('token="')[1].split('"')[0]
client = Client()
class Nobody:
    def __init__(self, get_response): self.get_response = get_response
    def __call__(self, request):
        request.user = AnonymousUser()
        return self.get_response(request)
with override_settings(MIDDLEWARE=[__name__ + ".Nobody", "django.middleware.gzip.GZipMiddleware"]):
    url = f"/x/jobs/{message.message_id}.json"
    found["refused"] = client.get(url).status_code
    found["token"] = client.get(url, headers={"X-Status-Token": token}).status_code
    found["post"] = client.post("/x/jobs/events").status_code
# Django's user in an application that is mounted beside Django's
from types import SimpleNamespace
from django.core.management import call_command
from django.contrib.auth import login
from django.contrib.sessions.backends.signed_cookies import SessionStore
from dramatiq_status.web.django import user_of
call_command("migrate", verbosity=0)
User.objects.create_user("ann")
request = RequestFactory().get("/")
request.session = SessionStore()
login(request, User.objects.get(username="ann"))
request.session.save()
cookies = {settings.SESSION_COOKIE_NAME: request.session.session_key}
found["ann"] = user_of(SimpleNamespace(cookies=cookies)).username
found["forged"] = user_of(SimpleNamespace(cookies={settings.SESSION_COOKIE_NAME: "x"})).username
for options in ({}, {"AUTHORISE": "x"}):
    with override_settings(DRAMATIQ_STATUS=options):
        try:
            status(request, "x.json")
        except Exception as e:
            found[len(found)] = str(e)
print(json.dumps(found))
"""


def test_the_django_application(tmp_path: Any) -> None:
    (tmp_path / "project.py").write_text(DJANGO)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"}
    done = subprocess.run(
        [sys.executable, "-c", "import project"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    statuses = {name: found[name] for name in ("anonymous", "owner", "other", "staff", "inactive")}
    assert statuses == {"anonymous": 403, "owner": 200, "other": 403, "staff": 200, "inactive": 403}
    assert (found["refused"], found["token"], found["post"]) == (403, 200, 405)
    assert 'src="/x/jobs/dramatiq-status.js"' in found["html"]
    assert 'label="&lt;b&gt;"' in found["html"]
    assert (found["ann"], found["forged"]) == ("ann", "")
    messages = [text for text in found.values() if isinstance(text, str)]
    assert any("AUTHORIZE" in text and "owner_or_staff" in text for text in messages)
    assert any("'AUTHORISE'" in text for text in messages)
