"""What a worker process writes to its store: merged, throttled, and sent by one thread at a time."""

from __future__ import annotations

from .writer import (
    DEFAULT_MAX_PENDING,
    DEFAULT_MAX_PENDING_BYTES,
    Backlog,
    Confirmation,
    Enqueue,
    Finish,
    MessageBuffer,
    Start,
    Write,
    Writer,
)

__all__ = [
    "DEFAULT_MAX_PENDING",
    "DEFAULT_MAX_PENDING_BYTES",
    "Backlog",
    "Confirmation",
    "Enqueue",
    "Finish",
    "MessageBuffer",
    "Start",
    "Write",
    "Writer",
]
