"""A connection that is subscribed to the channels of some messages."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from ... import _time as time
from ...errors import BackendError
from ...record import whole_number_in
from .._timed import uninterrupted
from .driver import errors
from .requests import failure_of

#: Seconds without anything from the server after which a subscription sends it a PING.
PING_AFTER: Final = 5.0

#: Maximum number of seconds that a system call waits.  Time limits, aborts and shutdowns strike a worker's thread only
#: between two system calls.
LONGEST_WAIT: Final = 1.0


class RedisSubscription:
    """A subscription to the changes of some messages, over a connection of its own.

    All databases of a server share its channels.  So a subscription also receives the changes of the same key in
    another database, and its watcher reads a status that has not changed.

    One thread may use a subscription at a time.  A child process cannot use it, and leaves the connection to its
    parent.

    Parameters:
      connection(redis.Connection): A connection of the driver's with RESP2 and without other users.  Its deadline is
        the deadline of the first replies.
      channels(Mapping[str, str]): Message ids by the names of their channels.
      timeout(float): Seconds that the server may take to answer.

    Raises:
      BackendError: When the server does not answer, or answers with an error.
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
                raise failure_of(e) from e
            raise
        self._received_at = time.monotonic()

    def wait(self, timeout: float) -> dict[str, int]:
        """Wait until a message changes.

        Parameters:
          timeout(float): Maximum number of seconds to wait.

        Returns:
          dict[str, int]: The newest received version by message id, 0 for a deleted message.  It is empty when the time
            is over.

        Raises:
          BackendError: When the connection was lost.
        """
        if os.getpid() != self._process:
            raise BackendError("Redis: this subscription belongs to the parent process.")
        try:
            return self._wait(time.monotonic() + timeout)
        except errors() as e:
            raise failure_of(e) from e

    def _wait(self, deadline: float) -> dict[str, int]:
        connection = self._connection
        received: dict[str, int] = {}
        while True:
            now = time.monotonic()
            pause = 0.0 if received else min(deadline, self._received_at + PING_AFTER) - now
            connection.deadline = None
            if connection.can_read(min(max(0.0, pause), LONGEST_WAIT)):
                self._take(received)
            elif received or now >= deadline:
                return received
            elif now >= self._received_at + PING_AFTER:
                self._ping(received)

    def _take(self, received: dict[str, int]) -> None:
        self._connection.deadline = time.monotonic() + self._timeout
        kind, *rest = self._connection.read_response()
        self._received_at = time.monotonic()
        if kind == "message":
            channel, version = rest
            message_id = self._channels.get(channel)
            if message_id is not None:
                received[message_id] = whole_number_in(version, 0)

    def _ping(self, received: dict[str, int]) -> None:
        self._connection.send_command("PING", check_health=False)
        if not self._connection.can_read(self._timeout):
            raise TimeoutError("the server does not answer any more.")
        # The reply, or a change that came before it.
        self._take(received)

    def close(self) -> None:
        """End the subscription."""
        self._connection.disconnect()
