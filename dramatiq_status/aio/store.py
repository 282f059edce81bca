"""The asynchronous backends: one for each backend and event loop.  They are closed with the loop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from threading import Lock

from ..backend import StatusBackend
from .backend import AsyncBackend

_open: dict[asyncio.AbstractEventLoop, dict[StatusBackend, tuple[AsyncBackend, AsyncGenerator[None, None]]]] = {}
_lock = Lock()


async def async_backend(backend: StatusBackend) -> AsyncBackend:
    """Return the asynchronous side of a backend for the running loop.  The first call makes it."""
    loop = asyncio.get_running_loop()
    here = _open.get(loop)
    if here is None:
        with _lock:
            for closed in [other for other in _open if other.is_closed()]:
                del _open[closed]
            here = _open[loop] = {}
    if backend not in here:
        made = _make(backend)
        guard = _guard(backend, made)
        here[backend] = made, guard
        await guard.__anext__()
    return here[backend][0]


async def close_backend(backend: StatusBackend) -> None:
    """Close the connections of the running loop to a backend.  Later calls open new ones."""
    found = _open.get(asyncio.get_running_loop(), {}).get(backend)
    if found is not None:
        await found[1].aclose()


async def _guard(backend: StatusBackend, made: AsyncBackend) -> AsyncGenerator[None, None]:
    """Wait for the end of the loop.

    Before ``asyncio.run`` closes its loop, it closes the asynchronous generators that the loop has begun
    (``shutdown_asyncgens``).  asyncio has no other hook for the end of a loop.
    """
    try:
        yield
    finally:
        loop = asyncio.get_running_loop()
        here = _open.get(loop, {})
        here.pop(backend, None)
        if not here:
            with _lock:
                _open.pop(loop, None)
        await made.close()


def _make(backend: StatusBackend) -> AsyncBackend:
    # The driver may not be installed.  If the module of the Redis backend was imported, the driver is installed.
    if "dramatiq_status.backends.redis.backend" in sys.modules:
        from . import redis

        if (made := redis.make(backend)) is not None:
            return made
    return AsyncBackend(backend)
