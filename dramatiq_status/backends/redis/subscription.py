"""How Redis tells of changes: a connection that is subscribed to the channels of some messages."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from ... import _time as time
from ...errors import BackendError
from ...record import whole_number_in
from .._timed import uninterrupted
from .driver import errors

#: A server that has said nothing for this many seconds is asked whether it is still there.
PING_AFTER: Final = 5.0

#: No system call waits for longer than this many seconds: time limits, aborts
#: and shutdowns strike a worker's thread in between.
LONGEST_WAIT: Final = 1.0


class RedisSubscription:
    """Hears of changes over a connection of its own.

    Channels know no databases: what happens under the same key of another database
    of the server is heard, too, and looked at in vain.

    It belongs to one thread at a time.  A child process that was forked
    off cannot use it, and leaves the parent's alone.

    Parameters:
      connection(redis.Connection): Uses RESP2, and has no other user.  Its deadline is that of the first replies.
      channels(Mapping[str, str]): Message ids by the names of their channels.
      timeout(float): How long the server may take to answer, in seconds.

    Raises:
      BackendError: When the server does not answer, or with an error.
    """

    def __init__(self, connection: Any, channels: Mapping[str, str], timeout: float) -> None:
        self._connection = connection
        self._channels = channels
        self._timeout = timeout
        self._process = os.getpid()
        try:
            uninterrupted(connection.connect, connection.deadline)
            connection.send_command("SUBSCRIBE", *channels, check_health=False)
            for _ in channels:
                connection.read_response()
        except BaseException as e:
            self.close()
            if isinstance(e, errors()):
                raise _lost(e) from e
            raise
        self._heard_at = time.monotonic()

    def wait(self, timeout: float) -> dict[str, int]:
        """Wait until something changes, for so many seconds at most.

        Returns:
          dict[str, int]: The newest version heard of, by message id; 0 for
          deleted, empty when the time is over.

        Raises:
          BackendError: When the connection was lost.
        """
        if os.getpid() != self._process:
            raise BackendError("Redis: this subscription belongs to the parent process.")
        try:
            return self._wait(time.monotonic() + timeout)
        except errors() as e:
            raise _lost(e) from e

    def _wait(self, deadline: float) -> dict[str, int]:
        connection = self._connection
        heard: dict[str, int] = {}
        while True:
            now = time.monotonic()
            pause = 0.0 if heard else min(deadline, self._heard_at + PING_AFTER) - now
            connection.deadline = None
            if connection.can_read(min(max(0.0, pause), LONGEST_WAIT)):
                self._take(heard)
            elif heard or now >= deadline:
                return heard
            elif now >= self._heard_at + PING_AFTER:
                self._ping(heard)

    def _take(self, heard: dict[str, int]) -> None:
        self._connection.deadline = time.monotonic() + self._timeout
        kind, *rest = self._connection.read_response()
        self._heard_at = time.monotonic()
        if kind == "message":
            channel, version = rest
            message_id = self._channels.get(channel)
            if message_id is not None:
                heard[message_id] = whole_number_in(version, 0)

    def _ping(self, heard: dict[str, int]) -> None:
        self._connection.send_command("PING", check_health=False)
        if not self._connection.can_read(self._timeout):
            raise TimeoutError("the server says nothing any more.")
        # The answer, or a change that came first.
        self._take(heard)

    def close(self) -> None:
        """Hear no more."""
        self._connection.disconnect()


def _lost(error: BaseException) -> BackendError:
    return BackendError(f"Redis: {type(error).__name__}: {error}")
