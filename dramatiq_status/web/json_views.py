"""The views that answer with JSON, and the actions."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ..aio import StatusRegistry
from ..checks import is_message_id
from ..errors import StatusMissing
from ..snapshot import Snapshot
from .access import Access, is_own_origin
from .exposure import encode, tag_of
from .site import JSON, UNKNOWN, Site, is_tagged

#: Maximum number of messages of one request.
MAX_MESSAGES: Final = 1_000


class JSONViews:
    """The views that return JSON, and the views that cancel a message or delete a status.

    Parameters:
      site(Site)
    """

    def __init__(self, site: Site) -> None:
        self._site = site

    async def status(self, request: Request) -> Response:
        """Answer with one status."""
        snapshot, _ = await self._site.read(request)
        tag = tag_of(snapshot)
        headers = {"ETag": f'W/"{tag}"', "Vary": "Cookie, Authorization, X-Status-Token"}
        if is_tagged(request.headers.getlist("if-none-match"), tag):
            return Response(status_code=304, headers={**headers, "Cache-Control": "private, no-cache"})
        return JSON(self._site.exposure.to_json(snapshot), headers=headers)

    async def batch(self, request: Request) -> Response:
        """Answer with the roll-up of many statuses, without those that the visitor may not read; ``refused`` has their
        ids.
        """
        site = self._site
        values = request.query_params.getlist("ids")
        ids = list(dict.fromkeys(text for value in values for text in value.split(",") if text))
        if len(ids) > MAX_MESSAGES:
            raise HTTPException(413, f"A batch has at most {MAX_MESSAGES} messages.")
        ids = [message_id for message_id in ids if is_message_id(message_id)]
        batch = await StatusRegistry.batch(ids, backend=site.backend, broker=site.broker).read()
        known = [child for child in batch.children.values() if child is not None]
        levels = await site.access_check.check_many(
            request, known, [request.headers.get("x-status-token")] * len(known)
        )
        refused = [child.message_id for child, level in zip(known, levels) if level is Access.NONE]
        if refused:
            readable = [message_id for message_id in ids if message_id not in set(refused)]
            batch = await StatusRegistry.batch(readable, backend=site.backend, broker=site.broker).read()
        found = batch.to_dict(only=())
        found["children"] = {
            message_id: None if child is None else site.exposure.to_dict(child)
            for message_id, child in batch.children.items()
        }
        found["refused"] = refused
        return JSON(encode(found))

    async def cancel(self, request: Request) -> Response:
        """Cancel a message, for a visitor with the right to write."""
        site, snapshot = self._site, await self._to_change(request)
        try:
            found = await StatusRegistry.cancel(snapshot.message_id, backend=site.backend, broker=site.broker)
        except StatusMissing:
            # The status has expired since it was read.
            raise HTTPException(404, UNKNOWN) from None
        if "text/html" in request.headers.get("accept", ""):
            return RedirectResponse(f"../{quote(snapshot.message_id, safe='')}", 303)
        return JSON(encode({"cancellation": found.value}))

    async def delete(self, request: Request) -> Response:
        """Delete a status, for a visitor with the right to write."""
        site, snapshot = self._site, await self._to_change(request)
        deleted = await StatusRegistry.delete(snapshot.message_id, backend=site.backend, broker=site.broker)
        if "text/html" in request.headers.get("accept", ""):
            return RedirectResponse("../", 303)
        return JSON(encode({"deleted": deleted}))

    async def _to_change(self, request: Request) -> Snapshot:
        """Read the status that an action changes.

        Raises:
          HTTPException: 404 when it is unknown; 403 for the page of another site, and for a visitor who may not write.
        """
        if not is_own_origin(request):
            raise HTTPException(403, "Requests from pages of other sites may not change statuses.")
        snapshot, access = await self._site.read(request)
        if access is not Access.WRITE:
            raise HTTPException(403, "You may not change this status.")
        return snapshot
