"""Job status and progress for Dramatiq."""

from .backend import StatusBackend
from .backends import backend_from_url
from .batch import Batch
from .context import current_progress, current_status, track
from .errors import (
    BackendError,
    NotSupported,
    StatusError,
    StatusMissing,
    StatusOptionError,
    StatusSetupError,
    StatusTimeout,
)
from .history import Run, RunOutcome
from .middleware import StatusMiddleware
from .progress import Progress
from .record import State
from .registry import StatusRegistry
from .rollup import BatchSnapshot
from .snapshot import Snapshot
from .status import Status

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "Batch",
    "BatchSnapshot",
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
