"""How the Redis backend calls its scripts, and what it knows of the server's clock."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha1
from importlib.resources import files
from typing import Any, Final, NamedTuple

from ... import _time as time
from .connection import Link, ServerError, pack

#: Asks the server for its time.
TIME: Final = b"*1\r\n$4\r\nTIME\r\n"

#: For how many seconds the measured distance between the server's
#: clock and ours is believed.
CLOCK_TRUST: Final = 300.0

#: An answer that took longer than this many seconds is not exact enough to tell a script the time by.
QUICK: Final = 0.002

# A constant of a script, and a name that may be one.  As local variables, the constants of the update script would cost
# each call 2 microseconds of 15: Lua links each of them to each function that uses it.
_CONSTANT: Final = re.compile(r"^local ([A-Z_]+) = (.+)\n", re.MULTILINE)
_NAME: Final = re.compile(r"\b[A-Z_]+\b")


class Script(NamedTuple):
    """A script that the server runs, and its name there."""

    text: str
    sha: str

    @staticmethod
    def load(*names: str) -> Script:
        """Load files of the folder ``lua``, from a zip file as well, join them, and replace their constants."""
        folder = files(__package__) / "lua"
        text = "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names)
        constants = dict(_CONSTANT.findall(text))
        return Script.of(_NAME.sub(lambda name: constants.get(name[0], name[0]), _CONSTANT.sub("", text)))

    @staticmethod
    def of(text: str) -> Script:
        return Script(text, sha1(text.encode()).hexdigest())


class ServerClock:
    """The server's clock as its answers have shown it.

    To tell a script the time is a fifth cheaper than to have it ask.
    The distance is taken from our monotonic clock, which nobody sets.
    """

    __slots__ = ("_known_until", "_offset")

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()
        self._known_until = float("-inf")

    @property
    def known(self) -> bool:
        """Whether the server was asked lately, and answered soon."""
        return time.monotonic() < self._known_until

    def set(self, reply: Any, asked: float) -> None:
        """Take note of the answer to :data:`TIME`, which has just come.

        Parameters:
          reply(tuple[str, str])
          asked(float): When it was asked, by the monotonic clock.
        """
        seconds, microseconds = reply
        now = time.monotonic()
        # The answer is from some moment between the two.
        self._offset = int(seconds) + int(microseconds) / 1_000_000 - (asked + now) / 2
        if now - asked < QUICK:
            self._known_until = now + CLOCK_TRUST

    def now(self) -> int:
        """The server's present moment, in epoch milliseconds; by our own clock until it is known."""
        return int((time.monotonic() + self._offset) * 1000)

    def text(self) -> str:
        """The same as a text; empty when it is time to ask."""
        now = time.monotonic()
        return str(int((now + self._offset) * 1000)) if now < self._known_until else ""

    def moment(self) -> int | str:
        """The same in microseconds."""
        now = time.monotonic()
        return int((now + self._offset) * 1_000_000) if now < self._known_until else ""


class ScriptCall:
    """A call of a script: the request, and how to read its reply.

    Parameters:
      script(Script)
      keys(Sequence[str])
      arguments(Sequence[object])
      clock(ServerClock): To be set by the way; None for not now.
    """

    __slots__ = ("_asked", "_clock", "_command", "_script", "packed")

    def __init__(
        self, script: Script, keys: Sequence[str], arguments: Sequence[Any], clock: ServerClock | None
    ) -> None:
        self._script = script
        self._clock = clock
        self._asked = time.monotonic()
        self._command = pack("EVALSHA", script.sha, len(keys), *keys, *arguments)
        #: What to send.
        self.packed = TIME + self._command if clock else self._command

    def read(self, link: Link) -> Any:
        """Read the reply; load the script where the server does not have it: a new or restarted one."""
        if self._clock:
            self._clock.set(checked(link.read()), self._asked)
        reply = link.read()
        if isinstance(reply, Exception) and str(reply).startswith("NOSCRIPT"):
            link.send(pack("SCRIPT", "LOAD", self._script.text) + self._command)
            checked(link.read())
            reply = link.read()
        return checked(reply)


def checked(reply: Any) -> Any:
    """Raise the error that the server has answered with."""
    if isinstance(reply, Exception):
        raise ServerError(str(reply))
    return reply
