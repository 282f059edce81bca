"""The settings and the state of one web application.  Two applications of one process share neither."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import dramatiq
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ..aio import StatusRegistry
from ..backend import StatusBackend
from ..checks import is_message_id
from ..snapshot import Snapshot
from .access import Access, AccessCheck
from .exposure import Exposure, encode
from .streams import Streams

#: Seconds after which a client may repeat its request while the store does not reply.
RETRY_AFTER: Final = "2"

UNKNOWN: Final = "There is no status for this message id: it was never enqueued, or its status has expired."
REFUSED: Final = "You may not see this status."
UNAVAILABLE: Final = "The store of the statuses does not answer."


@dataclass
class Site:
    """Settings and state that all views of an application share."""

    access_check: AccessCheck
    exposure: Exposure
    backend: StatusBackend | None
    broker: dramatiq.Broker | None
    title: str
    #: Links of a job's page: a name, and a template of a URL with names of fields in braces.
    links: dict[str, str]
    streams: Streams = field(default_factory=Streams)

    async def read(self, request: Request) -> tuple[Snapshot, Access]:
        """Read the status that the path names.

        Raises:
          HTTPException: 404 when it is unknown, 403 when the visitor may not read it.
          BackendError: When the store does not answer.
        """
        message_id = request.path_params["message_id"]
        snapshot = None
        if is_message_id(message_id):
            snapshot = await StatusRegistry.read(message_id, backend=self.backend, broker=self.broker)
        if snapshot is None:
            raise HTTPException(404, UNKNOWN)
        access = await self.access_check.check(request, snapshot)
        if access is Access.NONE:
            raise HTTPException(403, REFUSED)
        return snapshot, access

    async def enter(self, request: Request) -> Access:
        """Check the access to the dashboard.

        Raises:
          HTTPException: 403 when the visitor has none.
        """
        access = await self.access_check.check(request, None)
        if access is Access.NONE:
            raise HTTPException(403, "You may not see the list of all jobs.")
        return access


class JSON(Response):
    """A JSON response that caches must revalidate each time."""

    media_type = "application/json"

    def __init__(self, text: str, status_code: int = 200, headers: dict[str, str] | None = None) -> None:
        always = {"Cache-Control": "private, no-cache", "X-Content-Type-Options": "nosniff"}
        super().__init__(text, status_code, {**always, **(headers or {})})


def error(status_code: int, detail: str, headers: dict[str, str] | None = None) -> JSON:
    """Make a JSON response that names an error."""
    return JSON(encode({"error": detail}), status_code, {"Cache-Control": "no-store", **(headers or {})})


def is_tagged(request_tags: Iterable[str], tag: str) -> bool:
    """Return whether the values of ``If-None-Match`` name a tag; proxies may have made it a weak one."""
    found = ",".join(request_tags)
    return found.strip() == "*" or tag in [one.strip().removeprefix("W/").strip('"') for one in found.split(",")]
