"""Requests to a server and their replies, as bytes and values.  No code here uses a socket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ... import _time as time
from ...errors import BackendError, StoreRefused
from .clock import ServerClock
from .script import Script

hiredis: Any = None
try:
    import hiredis
except ImportError:
    pass

_TIME: Final = b"*1\r\n$4\r\nTIME\r\n"
_ASKING: Final = b"*1\r\n$6\r\nASKING\r\n"

#: Codes of errors by the classes of redis-py.  redis-py removes the code from the text of such an error.
_CODES: Final = {
    "NoScriptError": "NOSCRIPT",
    "ReadOnlyError": "READONLY",
    "MovedError": "MOVED",
    "AskError": "ASK",
    "TryAgainError": "TRYAGAIN",
    "ClusterDownError": "CLUSTERDOWN",
    "MasterDownError": "MASTERDOWN",
    "NoPermissionError": "NOPERM",
    "OutOfMemoryError": "OOM",
    "BusyLoadingError": "LOADING",
}


class ServerError(Exception):
    """Raised when the server has replied with an error."""


def coded(error: Exception) -> Exception:
    """Return an error of the server with its code, as the server has sent it."""
    code = _CODES.get(type(error).__name__)
    return error if code is None or str(error).startswith(code) else ServerError(f"{code} {error}")


def failure_of(error: BaseException) -> BackendError:
    """Make a :class:`.BackendError` of an error of the driver, or of the server."""
    text = str(error)
    # The login may have the permission for other keys. The code is in the text, or the class stands for it.
    is_refusal = "NOPERM" in (text[:6], _CODES.get(type(error).__name__)) and " key" in text
    failure = (StoreRefused if is_refusal else BackendError)(f"Redis: {type(error).__name__}: {text}")
    failure.__cause__ = error
    return failure


def refusal_of(reply: Exception) -> BackendError:
    """Make a :class:`.BackendError` of a reply that is an error."""
    return failure_of(ServerError(str(reply)))


def pack(*command: Any) -> bytes:
    """Pack a command as the server reads it.

    Raises:
      ValueError: When an argument cannot be sent: a number of thousands of digits, or a lone surrogate.
    """
    # hiredis gets only texts, because it crashes the process at an int of more than 4,300 digits.
    return pack_texts(tuple([argument if argument.__class__ is str else str(argument) for argument in command]))


def pack_texts(texts: tuple[str, ...]) -> bytes:
    """Pack a command of texts as the server reads it; see :func:`pack`."""
    if hiredis is not None:
        packed: bytes = hiredis.pack_command(texts)
        return packed
    parts = [b"*%d\r\n" % len(texts)]
    for text in texts:
        encoded = text.encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(encoded), encoded))
    return b"".join(parts)


class Request:
    """A request for keys of one shard, and the replies to it."""

    #: The script that it calls.
    script: Script | None = None

    #: Whether the server may execute it again, after its reply was lost.
    repeatable: bool = True

    #: Number of its replies.
    size: int = 1

    #: The replies, in which an error of the server is an exception; empty until they have arrived.
    replies: Sequence[Any] = ()

    #: Error of the whole request: it has no replies, or its first reply is this error; None for no error.
    error: BackendError | None = None

    #: Whether the server has replied that it does not have the script.
    unknown: bool = False

    #: Whether it goes to a node to which the slot of the shard is moving.  The node may lack other keys of the shard.
    arriving: bool = False

    def __init__(self, shard: int) -> None:
        self.shard = shard

    def pack(self, clock: ServerClock) -> bytes:
        """Pack the request.

        Parameters:
          clock(ServerClock): Clock of the server to which the request goes.
        """
        raise NotImplementedError

    def take(self, replies: Sequence[Any]) -> Exception | None:
        """Take the replies, and return the error with which the server has refused the whole request."""
        self.replies = replies
        refusal = replies[0]
        if not isinstance(refusal, Exception):
            self.error, self.unknown = None, False
            return None
        self.error = refusal_of(refusal)
        # If the server lacks the script although it was loaded, the request fails.
        self.unknown = self.script is not None and not self.unknown and str(refusal).startswith("NOSCRIPT")
        return refusal

    def split(self) -> Sequence[Request]:
        """Split the request into requests with one key each, which together have its effect."""
        return (self,)

    @property
    def reply(self) -> Any:
        """The first reply."""
        return self.replies[0]

    def result(self) -> Any:
        """Return the first reply.

        Raises:
          BackendError: When there is no reply, or when it is an error.
        """
        if self.error is not None:
            raise self.error
        return self.replies[0]


class Command(Request):
    """A command with one key.

    Parameters:
      shard(int)
      *command: The command, its key, and its arguments.
    """

    def __init__(self, shard: int, *command: Any) -> None:
        self.shard = shard
        self._command = command

    def pack(self, clock: ServerClock) -> bytes:
        return pack(*self._command)


class ScriptCall(Request):
    """A call of a script.

    Parameters:
      shard(int)
      keys(Sequence[str])
    """

    script: Script

    def __init__(self, shard: int, keys: Sequence[str]) -> None:
        self.shard = shard
        self.keys = keys

    def arguments(self, clock: ServerClock) -> Sequence[Any]:
        """Return the script's arguments."""
        raise NotImplementedError

    def pack(self, clock: ServerClock) -> bytes:
        keys = self.keys
        return pack("EVALSHA", self.script.sha, len(keys), *keys, *self.arguments(clock))


class ReadRequest(Request):
    """Reads of records, each with one command.

    Parameters:
      shard(int)
      keys(Sequence[str])
      positions(Sequence[int]): Positions of the records among all records that the operation reads.
    """

    size: int
    replies: Sequence[Any]
    error: BackendError | None

    def __init__(self, shard: int, keys: Sequence[str], positions: Sequence[int]) -> None:
        self.shard = shard
        self.keys = keys
        self.positions = positions
        self.size = len(keys)

    def take(self, replies: Sequence[Any]) -> None:
        # The server may refuse one read, and answer the others.
        self.replies, self.error = replies, None

    def pack(self, clock: ServerClock) -> bytes:
        commands = []
        for key in self.keys:
            size = len(key) if key.isascii() else len(key.encode())
            commands.append(f"*2\r\n$7\r\nHGETALL\r\n${size}\r\n{key}\r\n")
        return "".join(commands).encode()

    def split(self) -> Sequence[Request]:
        if len(self.keys) == 1:
            return (self,)
        return [ReadRequest(self.shard, (key,), (position,)) for key, position in zip(self.keys, self.positions)]


class Exchange:
    """Requests that go to a server together, and their replies.

    The exchange counts the replies that are to come.  So the code that reads a connection does not depend on the
    requests, and can send other exchanges before this one has its replies.

    Parameters:
      requests(Sequence[Request])
      clock(ServerClock): Clock of the server.  The exchange measures it if it is not known.
    """

    #: Packed commands of the exchange, to send to the server.
    packed: bytes

    #: Number of replies to :meth:`take` next; 0 after the last one.
    expected: int

    #: Requests that the server did not carry out, because it does not have their scripts.
    unknown: Sequence[Request] = ()

    #: The last error with which the server has replied to a whole request.
    refusal: Exception | None = None

    # The error with which the server has replied to a command that is part of no request.
    _head_refusal: Exception | None = None

    # The clock that a reply to ``TIME`` will set; None if no reply is due.
    _clock: ServerClock | None = None

    # Position of the request to which the next replies belong; -1 for the commands before the first request.
    _next = 0

    def __init__(self, requests: Sequence[Request], clock: ServerClock) -> None:
        self.requests = requests
        if clock.known and len(requests) == 1 and not requests[0].unknown and not requests[0].arriving:
            self.packed, self.expected = requests[0].pack(clock), requests[0].size
        else:
            self._pack(requests, clock)

    def _pack(self, requests: Sequence[Request], clock: ServerClock) -> None:
        head: list[bytes] = []
        for script in dict.fromkeys([request.script for request in requests if request.unknown]):
            if script is not None:
                head.append(pack("SCRIPT", "LOAD", script.text))
        if not clock.known:
            # To load a script takes the server about a millisecond, which must not be part of the measured time.
            self._clock = clock
            self._packed_at = time.monotonic()
            head.append(_TIME)
        if head:
            self._next, self.expected = -1, len(head)
        else:
            self.expected = requests[0].size + requests[0].arriving
        for request in requests:
            if request.arriving:
                head.append(_ASKING)
            head.append(request.pack(clock))
        self.packed = b"".join(head)

    def take(self, replies: list[Any]) -> None:
        """Take the next :attr:`expected` replies."""
        position = self._next
        if position < 0:
            self._take_head(replies)
        else:
            request = self.requests[position]
            if request.arriving:
                self._check(replies.pop(0))
            refusal = request.take(replies)
            if request.unknown:
                self.unknown = [*self.unknown, request]
            elif refusal is not None:
                self.refusal = refusal
        self._next = position = position + 1
        if position < len(self.requests):
            self.expected = self.requests[position].size + self.requests[position].arriving
        else:
            self.expected = 0
            if self._head_refusal is not None:
                self._fail(self._head_refusal)

    def _take_head(self, replies: list[Any]) -> None:
        for reply in replies:
            self._check(reply)
        if self._clock is not None and self._head_refusal is None:
            self._clock.set(replies[-1], self._packed_at)

    def _check(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            self._head_refusal = reply

    def _fail(self, error: Exception) -> None:
        """Note that the server has refused a command that is part of no request, such as ``SCRIPT LOAD``."""
        self.refusal, self.unknown = error, ()
        for request in self.requests:
            request.error = refusal_of(error)

    @property
    def answered(self) -> int:
        """Number of requests that were answered."""
        return max(self._next, 0)
