"""Following one message until it is finished."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from .backend import StatusBackend
from .errors import BackendError, StatusMissing, StatusTimeout
from .snapshot import Snapshot, take_snapshot

#: How long a message may be unknown before it counts as missing, in milliseconds.
DEFAULT_MISSING_TIMEOUT: Final = 1_000


def follow(backend: StatusBackend, message_id: str, *, timeout: int | None, missing_timeout: int) -> Iterator[Snapshot]:
    """Yield the present snapshot, then one after every change, and end after the final one.

    The store is asked again and again, seldom while nothing changes.  An
    outage is waited through once the store has answered.

    Parameters:
      backend(StatusBackend)
      message_id(str)
      timeout(int): For how long in all, in milliseconds; None for ever.
      missing_timeout(int): How long the message may be unknown, in milliseconds.

    Raises:
      StatusMissing: When it is unknown for longer, or has vanished.
      StatusTimeout: When the time is over.
      BackendError: When the store does not answer at the first look.
    """
    begin = time.monotonic()
    deadline = None if timeout is None else begin + timeout / 1000
    missing_deadline = begin + missing_timeout / 1000
    shortest, longest = (interval / 1000 for interval in backend.poll_interval)
    pause, version, answered = shortest, None, False
    while True:
        try:
            snapshot = take_snapshot(message_id, backend.read(message_id), backend.now())
            answered = True
        except BackendError:
            if not answered:
                raise
        else:
            if snapshot is None:
                if version is not None or time.monotonic() >= missing_deadline:
                    raise StatusMissing(message_id)
            elif snapshot.version != version:
                version, pause = snapshot.version, shortest
                yield snapshot
                if snapshot.finished:
                    return
        now = time.monotonic()
        if deadline is not None and now + pause > deadline:
            if now >= deadline:
                raise StatusTimeout(f"Message {message_id!r} was not finished within {timeout} milliseconds.")
            pause = deadline - now
        time.sleep(pause)
        pause = min(pause * 1.5, longest)
