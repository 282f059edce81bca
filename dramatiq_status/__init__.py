"""Job status and progress for Dramatiq.

Each name is imported when it is first used. The command line can therefore print its help without importing Dramatiq.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backend import StatusBackend
    from .backends import backend_from_url
    from .batch import Batch
    from .cancellation import Cancellation
    from .context import current_progress, current_status, track
    from .errors import (
        BackendError,
        Cancelled,
        NotSupported,
        StatusError,
        StatusMissing,
        StatusOptionError,
        StatusSetupError,
        StatusTimeout,
    )
    from .middleware import StatusMiddleware
    from .progress import Progress
    from .record import State
    from .registry import StatusRegistry
    from .rollup import BatchSnapshot
    from .runs import Run, RunOutcome
    from .snapshot import Snapshot
    from .status import Status

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "Batch",
    "BatchSnapshot",
    "Cancellation",
    "Cancelled",
    "NotSupported",
    "Progress",
    "Run",
    "RunOutcome",
    "Snapshot",
    "State",
    "Status",
    "StatusBackend",
    "StatusError",
    "StatusMiddleware",
    "StatusMissing",
    "StatusOptionError",
    "StatusRegistry",
    "StatusSetupError",
    "StatusTimeout",
    "backend_from_url",
    "current_progress",
    "current_status",
    "track",
]

# The module of each name, except the names of `errors`.
_MODULES = {
    "Batch": "batch",
    "BatchSnapshot": "rollup",
    "Cancellation": "cancellation",
    "Progress": "progress",
    "Run": "runs",
    "RunOutcome": "runs",
    "Snapshot": "snapshot",
    "State": "record",
    "Status": "status",
    "StatusBackend": "backend",
    "StatusMiddleware": "middleware",
    "StatusRegistry": "registry",
    "backend_from_url": "backends",
    "current_progress": "context",
    "current_status": "context",
    "track": "context",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    elif name in __all__:
        value = getattr(import_module(".errors", __name__), name)
    elif name in ("aio", "backends", "errors"):
        return import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
