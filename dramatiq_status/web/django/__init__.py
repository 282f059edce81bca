"""Statuses in Django, under WSGI and ASGI, with Django's own users.

>>> INSTALLED_APPS = [..., "dramatiq_status.web.django"]
>>> DRAMATIQ_STATUS = {"AUTHORIZE": "dramatiq_status.web.django.owner_or_staff"}
>>> urlpatterns = [..., path("jobs/", include("dramatiq_status.web.django.urls"))]

The settings are one dict:

- ``AUTHORIZE``: a function of the request and a :class:`.Snapshot` that returns ``"none"``, ``"read"`` or ``"write"``,
  or the dotted path of one.  It is required.
- ``FIELDS``: names of the fields that leave the server, as :func:`dramatiq_status.web.status_app` describes.
- ``TOKENS``: whether ``{% dramatiq_status message_id %}`` signs a read token for the visitor of the page, with Django's
  ``SECRET_KEY``.  The default is False.
- ``TOKEN_EXPIRY``: milliseconds for which a token is valid; the default is an hour.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ...snapshot import Snapshot

__all__ = [
    "owner_or_staff",
    "user_of",
]


def owner_or_staff(request: Any, snapshot: Snapshot) -> str:
    """Let users read the messages whose field ``user_id`` is their primary key, and staff read all.  Users that are
    logged out or inactive read none.
    """
    user = request.user
    if not user.is_authenticated or not user.is_active:
        return "none"
    return "read" if user.is_staff or str(snapshot.get("user_id")) == str(user.pk) else "none"


def user_of(request: Any) -> Any:
    """Return Django's user for a request to :func:`.status_app`, mounted beside Django.  Call it in `authorize`.

    >>> def authorize(request, snapshot):
    ...     return "read" if user_of(request).is_staff else "none"

    It reads the session, and the user from the database, so `authorize` must be a function, not a coroutine function.
    """
    # Django imports this module before its models are there.
    from django.conf import settings
    from django.contrib.auth import get_user
    from django.http import HttpRequest

    engine = import_module(settings.SESSION_ENGINE)
    found = HttpRequest()
    found.session = engine.SessionStore(request.cookies.get(settings.SESSION_COOKIE_NAME))
    return get_user(found)
