"""A site with pages of elements, under a strict policy, whose streams are counted."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route

from dramatiq_status.web import StatusApp

from .browser import POLICY

#: The smallest picture: one pixel.
PIXEL = b"GIF89a\1\0\1\0\0\0\0;"


class Pages:
    """An application with a page at ``/``, and the statuses under ``/jobs``.

    Parameters:
      app(StatusApp): What is mounted.
      ids(Iterable[str]): The messages that the page shows.
    """

    def __init__(self, app: StatusApp, ids: Iterable[str], attributes: str = "") -> None:
        self.ids = list(ids)
        self.attributes = attributes
        #: Requests, as "POST /jobs/events 200", in the order in which they were answered.
        self.log: list[str] = []
        #: Responses in place of the application's: a status code and headers by path.
        self.broken: dict[str, tuple[int, dict[str, str]]] = {}
        #: Streams that are open now.
        self.open = 0
        self.most = 0
        self._app = app
        routes = [Route("/", self._page), Route("/pixel.gif", self._pixel), Mount("/jobs", self._jobs)]
        self._site = Starlette(routes=routes)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._site(scope, receive, send)

    async def _page(self, request: Request) -> Response:
        elements = "".join(
            f'<dramatiq-status src="jobs/{html.escape(message_id)}" {self.attributes}>…</dramatiq-status>\n'
            for message_id in self.ids
        )
        text = (
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>Jobs</title>'
            f'<script type="module" src="jobs/dramatiq-status.js"></script><body><main><h1>Jobs</h1>{elements}</main>'
        )
        return HTMLResponse(text, headers={"Content-Security-Policy": POLICY})

    async def _pixel(self, request: Request) -> Response:
        return Response(PIXEL, media_type="image/gif", headers={"Cache-Control": "no-store"})

    async def _jobs(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        streams = path.endswith("/events")
        broken = next((answer for end, answer in self.broken.items() if path.endswith(end)), None)

        async def noting(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.log.append(f"{scope['method']} {path} {message['status']}")
            await send(message)

        if broken is not None:
            await Response(status_code=broken[0], headers=broken[1])(scope, receive, noting)
            return
        self.open += streams
        self.most = max(self.most, self.open)
        try:
            await self._app(scope, receive, noting)
        finally:
            self.open -= streams

    def count(self, part: str) -> int:
        """Count the requests whose line in the log has a part."""
        return sum(part in line for line in self.log)
