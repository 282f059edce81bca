"""Job status and progress for Dramatiq."""

from .backends import backend_from_url
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
from .middleware import StatusMiddleware
from .progress import Progress
from .record import State
from .registry import StatusRegistry
from .snapshot import Snapshot
from .status import Status

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "NotSupported",
    "Progress",
    "Snapshot",
    "State",
    "Status",
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
