"""An application for `uvicorn tests.web.streams_app:app`: statuses from the Redis of DRAMATIQ_STATUS_URL."""

from __future__ import annotations

import os
from typing import Any

from dramatiq_status.backends import backend_from_url
from dramatiq_status.web import allow_all, status_app

# The tests and the benchmark are for a machine that may be busy.
_backend = backend_from_url(os.environ["DRAMATIQ_STATUS_URL"] + "?timeout=20000")
_app = status_app(authorize=allow_all, backend=_backend)


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await _app(scope, receive, send)
