"""The server's clock, measured by replies to ``TIME``."""

from __future__ import annotations

from typing import Any, Final

from ... import _time as time

#: Seconds after which the offset of the server's clock is measured again.
TRUST: Final = 300.0

#: Maximum number of seconds from a request to its reply for which the measured offset counts as exact.
QUICK: Final = 0.002


class ServerClock:
    """The clock of a server.

    A script that gets the time as an argument is a fifth cheaper than a script that calls ``TIME``.  The offset is
    measured from this host's monotonic clock, which is never set back.
    """

    __slots__ = ("_known_until", "_offset")

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()
        self._known_until = float("-inf")

    @property
    def known(self) -> bool:
        """Whether the offset was measured in the last :data:`TRUST` seconds, by a reply within :data:`QUICK`
        seconds.
        """
        return time.monotonic() < self._known_until

    def set(self, reply: Any, packed_at: float) -> None:
        """Measure the offset by a reply to ``TIME``, which has just arrived.

        Parameters:
          reply(tuple[str, str]): Seconds and microseconds.
          packed_at(float): Time at which the request was packed, by the monotonic clock.
        """
        seconds, microseconds = reply
        now = time.monotonic()
        # The server has read its clock between `packed_at` and `now`. Their mean is the best guess of that time.
        self._offset = int(seconds) + int(microseconds) / 1_000_000 - (packed_at + now) / 2
        if now - packed_at < QUICK:
            self._known_until = now + TRUST

    def now(self) -> int:
        """Return the time in epoch milliseconds; by this host's clock until the server's clock was measured."""
        return int((time.monotonic() + self._offset) * 1000)

    def texts(self) -> tuple[str, str]:
        """Return the time in epoch milliseconds and in epoch microseconds; empty texts unless the server's clock is
        known.
        """
        now = time.monotonic()
        if now >= self._known_until:
            return "", ""
        microseconds = str(int((now + self._offset) * 1_000_000))
        return microseconds[:-3], microseconds
