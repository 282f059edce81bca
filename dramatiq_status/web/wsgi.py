"""Statuses for Flask, for Django under WSGI, and for any other WSGI server: JSON with an ETag, and the element's files.

There are no streams, because a stream would hold a thread of the server for each client.  The element polls instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final, Protocol
from urllib.parse import unquote

import dramatiq

from ..backend import StatusBackend
from ..checks import is_message_id
from ..errors import BackendError
from ..registry import StatusRegistry
from ..snapshot import Snapshot
from .access import TOKEN_HEADER, Access, access_of
from .exposure import ALL, Exposure, encode, tag_of
from .files import FILES, STATIC
from .site import REFUSED, RETRY_AFTER, UNAVAILABLE, UNKNOWN, is_tagged
from .tokens import TokenSigner

__all__ = [
    "StatusViews",
]

#: Files of the element; those of the dashboard are not served.
_ELEMENT: Final = ("dramatiq-status.js", "dramatiq-status.d.ts")

Answer = tuple[bytes, int, dict[str, str]]


class Request(Protocol):
    """A request: Flask's, Django's, or a :class:`WSGIRequest`."""

    @property
    def headers(self) -> Mapping[str, str]: ...


class WSGIRequest:
    """A request as a WSGI server passes it.

    Parameters:
      environ(dict[str, Any]): The environment of the request.
    """

    def __init__(self, environ: dict[str, Any]) -> None:
        self.environ = environ

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers by names in title case, such as ``If-None-Match``."""
        prefix = "HTTP_"
        return {
            name.removeprefix(prefix).replace("_", "-").title(): value
            for name, value in self.environ.items()
            if name.startswith(prefix)
        }


class StatusViews:
    """Views of statuses: a WSGI application, and a helper for views of other frameworks.

    A Flask view returns what :meth:`answer` returns:

    >>> def own(request, status):
    ...     return "read" if status.get("user_id") == current_user.id else "none"
    >>> jobs = StatusViews(authorize=own)
    >>> @app.get("/jobs/<path:path>")
    ... def job(path):
    ...     return jobs.answer(path, request)

    Parameters:
      authorize(Callable): Takes the request and a :class:`.Snapshot`, and returns ``"none"``, ``"read"`` or
        ``"write"``.
      backend(StatusBackend): By default that of `broker`.
      broker(Broker): By default the default broker.
      fields(Iterable[str]): Names of the fields that leave the server, as :func:`dramatiq_status.web.status_app`
        describes.
      signer(TokenSigner): Checks read tokens; by default none are accepted.
    """

    def __init__(
        self,
        *,
        authorize: Callable[[Any, Snapshot], Access | str],
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
        fields: Iterable[str] = (ALL,),
        signer: TokenSigner | None = None,
    ) -> None:
        if not callable(authorize):
            raise TypeError(f"authorize must be a function, not {type(authorize).__name__}.")
        self._authorize = authorize
        self._backend = backend
        self._broker = broker
        self._exposure = Exposure(fields)
        self._signer = signer
        self._files = {name: (STATIC / name).read_bytes() for name in _ELEMENT}

    def answer(self, path: str, request: Request) -> Answer:
        """Answer a GET request.

        Parameters:
          path(str): The path behind the prefix: ``"ID.json"`` or ``"dramatiq-status.js"``.
          request(Request): Goes to `authorize`.

        Returns:
          tuple[bytes, int, dict[str, str]]: The body, the status code and the headers.
        """
        path = path.lstrip("/")
        if path in self._files:
            headers = {"Content-Type": f"{FILES[path]}; charset=utf-8", "Cache-Control": "no-cache"}
            return self._files[path], 200, {**headers, "X-Content-Type-Options": "nosniff"}
        message_id = path.removesuffix(".json")
        if message_id == path or not is_message_id(message_id):
            return _error(404, UNKNOWN)
        try:
            snapshot = StatusRegistry.read(message_id, backend=self._backend, broker=self._broker)
        except BackendError:
            return _error(503, UNAVAILABLE, {"Retry-After": RETRY_AFTER})
        if snapshot is None:
            return _error(404, UNKNOWN)
        if not self._may_read(request, snapshot):
            return _error(403, REFUSED)
        tag = tag_of(snapshot)
        headers = {
            **{"ETag": f'W/"{tag}"', "Cache-Control": "private, no-cache", "X-Content-Type-Options": "nosniff"},
            "Vary": "Cookie, Authorization, X-Status-Token",
        }
        if is_tagged([request.headers.get("If-None-Match") or ""], tag):
            return b"", 304, headers
        return self._exposure.to_json(snapshot).encode(), 200, {"Content-Type": "application/json", **headers}

    def _may_read(self, request: Request, snapshot: Snapshot) -> bool:
        token = request.headers.get(TOKEN_HEADER)
        if self._signer is not None and token and self._signer.allows(token, snapshot.message_id):
            return True
        return access_of(self._authorize(request, snapshot)) is not Access.NONE

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer as a WSGI application, mounted under any prefix."""
        method = environ["REQUEST_METHOD"]
        if method in ("GET", "HEAD"):
            path = unquote(environ.get("PATH_INFO", "")).encode("latin-1", "replace").decode("utf-8", "replace")
            body, status, headers = self.answer(path, WSGIRequest(environ))
        else:
            body, status, headers = _error(405, "Only GET and HEAD are supported.", {"Allow": "GET, HEAD"})
        headers = {"Date": formatdate(usegmt=True), "Content-Length": str(len(body)), **headers}
        start_response(f"{status} {HTTPStatus(status).phrase}", list(headers.items()))
        return [] if method == "HEAD" or status == 304 else [body]


def _error(status: int, detail: str, headers: dict[str, str] | None = None) -> Answer:
    always = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    return encode({"error": detail}).encode(), status, {**always, **(headers or {})}
