"""The writer of a process. It merges and throttles the writes to each message. One thread at a time sends the updates
of many messages in one round trip.

Each message has a buffer.  The operations on a buffer are merged into pending updates.  The thread that sends is the
leader.  It collects the buffers with pending updates in a queue.
"""

from __future__ import annotations

from .attached import AttachedBuffers
from .backlog import Backlog
from .buffer import MessageBuffer
from .operations import Confirmation, Enqueue, Finish, Start, Withdrawal, Write
from .writer import DEFAULT_MAX_PENDING, DEFAULT_MAX_PENDING_BYTES, Writer

__all__ = [
    "DEFAULT_MAX_PENDING",
    "DEFAULT_MAX_PENDING_BYTES",
    "AttachedBuffers",
    "Backlog",
    "Confirmation",
    "Enqueue",
    "Finish",
    "MessageBuffer",
    "Start",
    "Withdrawal",
    "Write",
    "Writer",
]
