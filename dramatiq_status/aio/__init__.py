"""Job status and progress in event loops: the classes of the package with methods to await."""

from __future__ import annotations

import dramatiq

from ..backend import StatusBackend
from ..lookup import find_backend as _find_backend
from .batch import Batch
from .handles import Progress, Status
from .registry import StatusRegistry
from .store import close_backend

__all__ = ["Batch", "Progress", "Status", "StatusRegistry", "close"]


async def close(*, backend: StatusBackend | None = None, broker: dramatiq.Broker | None = None) -> None:
    """Close the connections that the running event loop has to a backend.

    This happens without a call when ``asyncio.run`` ends, and when other code shuts down the asynchronous generators of
    its loop (``shutdown_asyncgens``).  Watches that are under way raise :class:`.BackendError`.  Later calls open new
    connections.

    Parameters:
      backend(StatusBackend): The backend whose connections are closed; by default the backend of `broker`.
      broker(Broker): By default the default broker.
    """
    await close_backend(_find_backend(backend, broker))
