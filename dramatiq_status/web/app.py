"""The web application: its settings and its routes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import dramatiq
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ..backend import StatusBackend
from ..errors import BackendError
from .access import AccessCheck
from .dashboard import Dashboard
from .events import EventViews
from .exposure import ALL, Exposure
from .files import FILES, StaticFile
from .job import JobPage
from .json_views import JSONViews
from .site import RETRY_AFTER, UNAVAILABLE, Site, error, is_tagged
from .streams import STREAM
from .tokens import TokenSigner

if TYPE_CHECKING:
    from .access import Authorize


class StatusApp:
    """An ASGI application; see :func:`status_app`."""

    def __init__(self, site: Site) -> None:
        self._site = site
        json_views, event_views, dashboard = JSONViews(site), EventViews(site), Dashboard(site)
        compressed = [Middleware(GZipMiddleware)]
        routes = [
            Route("/", dashboard.page, middleware=compressed),
            Route("/list.json", dashboard.data, middleware=compressed),
            *(Route(f"/{name}", _file_view(name), middleware=compressed) for name in FILES),
            Route("/events", event_views.many, methods=["POST"]),
            Route("/batch.json", json_views.batch, middleware=compressed),
            Route("/{message_id}.json", json_views.status),
            Route("/{message_id}/events", event_views.one),
            Route("/{message_id}/cancel", json_views.cancel, methods=["POST"]),
            Route("/{message_id}/delete", json_views.delete, methods=["POST"]),
            Route("/{message_id}", JobPage(site).page, middleware=compressed),
        ]
        handlers: dict[Any, Any] = {HTTPException: _refuse, BackendError: _unavailable}
        self._app = Starlette(routes=routes, exception_handlers=handlers)
        # A redirect would contain the host and the path as this process sees them, without a proxy's prefix.
        self._app.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)
        stream = scope.pop(STREAM, None)
        if stream is not None:
            await stream.run(scope, receive, send)

    def end_streams(self) -> None:
        """End all open streams, for a server that waits for open responses before it ends.  Call it in the event loop.

        Under uvicorn, streams end by themselves.
        """
        self._site.streams.end()


def status_app(
    *,
    authorize: Authorize,
    backend: StatusBackend | None = None,
    broker: dramatiq.Broker | None = None,
    fields: Iterable[str] = (ALL,),
    signer: TokenSigner | None = None,
    title: str = "dramatiq-status",
    trace_url: str | None = None,
    sentry_url: str | None = None,
) -> StatusApp:
    """Make an ASGI application that shows statuses, to be mounted under any prefix or run alone.

    >>> app.mount("/jobs", status_app(authorize=lambda request, status:
    ...     "read" if status and status.get("user_id") == request.user.id else "none"))

    Parameters:
      authorize(Callable): Takes the request and a :class:`.Snapshot`, or None for the dashboard, and returns
        ``"none"``, ``"read"`` or ``"write"``.  A function runs in a thread, a coroutine function in the event loop.
        :func:`allow_all` lets every visitor read every status.
      backend(StatusBackend): By default that of `broker`.
      broker(Broker): By default the default broker.
      fields(Iterable[str]): Names of the fields that leave the server in addition to the library's own.  ``"*"``, the
        default, stands for all fields that the application's code writes.  ``args``, ``kwargs``, ``traceback`` and
        ``exception.message`` leave the server only if they are named.
      signer(TokenSigner): Checks read tokens; by default none are accepted.
      title(str): Name of the application on the dashboard.
      trace_url(str): Template of a link to a job's trace, with names of fields in braces:
        ``"https://traces.example.com/{trace_id}"``.
      sentry_url(str): Template of a link to Sentry, with names of fields in braces.

    Raises:
      TypeError: When `authorize` is no function, or `fields` is a single string.
    """
    links = {"Trace": trace_url, "Sentry": sentry_url}
    return StatusApp(
        Site(
            access_check=AccessCheck(authorize, signer),
            exposure=Exposure(fields),
            backend=backend,
            broker=broker,
            title=title,
            links={name: template for name, template in links.items() if template},
        )
    )


def _file_view(name: str) -> Any:
    content, tag = StaticFile.load(name)
    headers = {"ETag": f'"{tag}"', "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}

    async def view(request: Request) -> Response:
        if is_tagged(request.headers.getlist("if-none-match"), tag):
            return Response(status_code=304, headers=headers)
        return Response(content, headers={**headers, "Content-Type": f"{FILES[name]}; charset=utf-8"})

    return view


async def _refuse(request: Request, exception: HTTPException) -> Response:
    return error(exception.status_code, exception.detail, dict(exception.headers or {}))


async def _unavailable(request: Request, exception: BackendError) -> Response:
    return error(503, UNAVAILABLE, {"Retry-After": RETRY_AFTER})
