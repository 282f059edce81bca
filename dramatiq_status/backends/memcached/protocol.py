"""A thin client of memcached's text protocols, over sockets that pymemcache has connected.

pymemcache 4.0 has no meta commands but ``raw_command``, which loses
step with replies over 4 KB and checks nothing; and after an interrupt
in the middle of a call it goes on with a connection on which a reply
is still owed.  So it only connects here.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterator, Sequence
from enum import Enum
from ssl import SSLWantReadError
from typing import Any, Final, NamedTuple

from pymemcache.exceptions import (
    MemcacheClientError,
    MemcacheError,
    MemcacheServerError,
    MemcacheUnexpectedCloseError,
    MemcacheUnknownError,
)

from ..._time import monotonic
from .._timed import PLAIN_SOCKET, SHORTEST, SLOWEST, closed_by_c, time_left, uninterrupted

#: The first version whose meta commands are today's.  Those of 1.6.6,
#: say, which Amazon had for years, take the size of a value elsewhere
#: and return no cas (see RevenueCat/meta-memcache-py#12).
META_SINCE: Final = (1, 6, 10)

#: What an item takes besides its value, at most: its header, its cas
#: and a key of 250 bytes, generously.
ITEM_OVERHEAD: Final = 512

#: The server's item size limit where it does not tell, in bytes.
DEFAULT_ITEM_SIZE: Final = 1_048_576

#: How many bytes are received at once at most: of anything; of many
#: items that are taken apart at once; of one item, which is seldom
#: longer; of what became of one.
_RECEIVE_SIZE: Final = 65_536
_SPLIT_SIZE: Final = 1_048_576
_SHORT_SIZE: Final = 4096
_TINY_SIZE: Final = 256

#: Maximum number of bytes that are sent at once.
_SEND_SIZE: Final = 262_144

#: Seconds by which a socket's own time-out may differ from what is left of a call's.
_SLACK: Final = 0.01


class Stored(Enum):
    """What became of a value that was sent."""

    STORED = "stored"
    #: Somebody else has written since.
    CHANGED = "changed"
    #: There is no such item any more.
    GONE = "gone"
    #: There is such an item already.
    TAKEN = "taken"
    #: The server has no memory for it.
    REFUSED = "refused"


# An attribute of an Enum takes five times as long as a name.
_IS_STORED: Final = Stored.STORED

_STORED: Final = {
    b"HD": Stored.STORED,
    b"EX": Stored.CHANGED,
    b"NF": Stored.GONE,
    b"NS": Stored.TAKEN,
    b"STORED": Stored.STORED,
    b"EXISTS": Stored.CHANGED,
    b"NOT_FOUND": Stored.GONE,
    b"NOT_STORED": Stored.TAKEN,
}

#: Start of the replies of a server that works and has no memory for a value.
_NO_ROOM: Final = (b"SERVER_ERROR out of memory", b"SERVER_ERROR object too large")


class Item(NamedTuple):
    """An item as it was read.

    Parameters:
      value: What it holds.
      cas: The number of its last write.
      ttl: How many seconds it has left by the server's clock, which
        counts whole ones; None where the protocol does not tell.
    """

    value: bytes
    cas: int
    ttl: int | None


class Login:
    """A name and a password, for servers that run with ``-Y``.

    Raises:
      TypeError: When one of the two is missing.
      ValueError: When one of the two cannot be sent.
    """

    def __init__(self, username: str | None, password: str | None) -> None:
        for name, value in (("username", username), ("password", password)):
            if not isinstance(value, str):
                raise TypeError(f"{name} must be a str, not {type(value).__name__}: pass both username and password.")
            if not value or not value.isprintable() or " " in value:
                raise ValueError(f"{name} must not be empty, and hold neither spaces nor control characters.")
        self.username = username
        self._password = password

    @property
    def request(self) -> bytes:
        """Return the request to log in, which has the form of a request to store an item.  A server without
        logins stores the item, which expires at once.
        """
        value = f"{self.username} {self._password}".encode()
        return b"set login 0 -1 %d\r\n%b\r\n" % (len(value), value)

    def __repr__(self) -> str:
        return f"<Login of {self.username!r}>"


class Connection:
    """A connection, in step as long as every request's reply is read.

    The constructor connects; :meth:`greet` makes it ready for requests.

    Parameters:
      client(pymemcache.Client): Connects; nobody else uses it.
      meta(bool): Whether to use the meta commands where the server has them.
      login(Login): What the server is told first, None for nothing.
      timeout(float): Seconds that a call may take.
      deadline(float): End of the call that needs the connection, by the monotonic clock.

    Attributes:
      deadline(float): End of the present call, by the monotonic clock.
      hurried(bool): Whether the socket's own time-out is shorter than `timeout`.
      meta(bool): Whether it uses them.
      server(str): Which run of which server this is: cas numbers begin
        anew when a server is restarted, so they mean nothing to another.
      max_value_size(int): The largest value that can be stored, in bytes.
    """

    def __init__(self, client: Any, *, timeout: float, deadline: float, meta: bool, login: Login | None = None) -> None:
        self._client = client
        self._meta = meta
        self._login = login
        self._buffer = b""
        self._at = 0
        self.timeout = timeout
        self.deadline = deadline
        client.timeout = client.connect_timeout = self._armed = self._left()
        self.hurried = True
        # Each of its public methods also waits for a reply, a whole time-out for every piece.
        uninterrupted(client._connect, deadline)
        try:
            self._socket = closed_by_c(client.sock)
            # Python would call poll() before every send and receive.  TLS, gevent and the like have no such time-outs.
            self._kernel_timeouts = (
                type(self._socket) is PLAIN_SOCKET and socket.socket.__module__ == "socket" and os.name == "posix"
            )
            if self._kernel_timeouts:
                self._socket.settimeout(None)
            self._arm(self._left())
        except BaseException:
            client.close()
            raise

    def greet(self) -> Iterator[None]:
        """Log in and find out the server's features, in steps: a reply is due after each step."""
        if self._login is not None:
            self.send(self._login.request)
            yield
            self._check_login(self._line())
        self.send(b"version\r\n")
        yield
        version = self._check_login(self._line()).removeprefix(b"VERSION ")
        self.send(b"mn\r\nstats\r\nstats settings\r\n")
        yield
        has_meta = self._line() == b"MN"
        stats = self._stats()
        settings = self._stats()
        if settings.get(b"cas_enabled") == b"no":
            raise MemcacheServerError(b"it runs without cas (-C), so that updates would be lost")
        # Where it has no memory, a meta command also deletes the item that it should have replaced.  Other
        # servers make room first.
        evicts = settings.get(b"evictions") != b"off"
        self.meta = has_meta and self._meta and evicts and _version(version) >= META_SINCE
        try:
            started = int(stats[b"time"]) - int(stats[b"uptime"])
            self.server = f"{int(stats[b'pid']):x}-{started:x}"
        except (KeyError, ValueError):
            # A proxy, maybe.  What is learned here then is good for this connection only.
            self.server = os.urandom(8).hex()
        self.max_value_size = int(settings.get(b"item_size_max", DEFAULT_ITEM_SIZE)) - ITEM_OVERHEAD

    def _check_login(self, line: bytes) -> bytes:
        """Raise the error of a server that is no memcached, or that requires another login."""
        if line.startswith(b"CLIENT_ERROR") and b"auth" in line:
            said = "it asks for a login" if self._login is None else f"it refuses the login of {self._login.username!r}"
            raise MemcacheClientError(f"{said}: check username and password")
        if not line.startswith((b"VERSION ", b"STORED")):
            raise _error(line)
        return line

    # Time

    def begin(self, deadline: float) -> None:
        """Begin a call that ends at a deadline by the monotonic clock."""
        self.deadline = deadline
        if self.hurried:
            self.hurried = False
            self._arm(self.timeout)

    def renew(self) -> None:
        """Begin another part of a long call, with as much time as the first."""
        self.begin(monotonic() + self.timeout)

    def _left(self) -> float:
        """Seconds that the present call has left."""
        left = self.deadline - monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left

    def _hurry(self) -> None:
        """Let the socket wait no longer than the present call."""
        left = min(time_left(self.deadline), self.timeout)
        if abs(left - self._armed) > _SLACK:
            self.hurried = True
            self._arm(left)

    def _arm(self, seconds: float) -> None:
        """Set the socket's own time-out."""
        self._armed = seconds = max(seconds, SHORTEST)
        if not self._kernel_timeouts:
            self._socket.settimeout(seconds)
            return
        whole, microseconds = divmod(round(seconds * 1_000_000), 1_000_000)
        timeval = struct.pack("@ll", whole, microseconds)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)

    def fileno(self) -> int:
        """The socket's number, to wait for a reply."""
        number: int = self._socket.fileno()
        return number

    def _stats(self) -> dict[bytes, bytes]:
        stats = {}
        while (line := self._line()).startswith(b"STAT "):
            _, name, value = line.split(b" ", 2)
            stats[name] = value
        return stats

    # Requests

    def get(self, key: bytes) -> bytes:
        """The request for an item; :meth:`read_item` reads the reply."""
        return b"mg %b v c t\r\n" % key if self.meta else b"gets %b\r\n" % key

    def store(self, key: bytes, value: bytes, expiry: int, cas: int | None) -> bytes:
        """The request to store a value: over the item with that cas, or
        where there is none.  :meth:`read_stored` reads the reply.
        """
        if self.meta:
            if cas is None:
                return b"ms %b %d T%d ME c\r\n%b\r\n" % (key, len(value), expiry, value)
            return b"ms %b %d T%d C%d c\r\n%b\r\n" % (key, len(value), expiry, cas, value)
        if cas is None:
            return b"add %b 0 %d %d\r\n%b\r\n" % (key, expiry, len(value), value)
        return b"cas %b 0 %d %d %d\r\n%b\r\n" % (key, expiry, len(value), cas, value)

    def touch(self, key: bytes) -> bytes:
        """Return the request to change only the cas of an item: a writer that has cached the item
        then has to read it.  :meth:`read_touched` reads the reply.
        """
        return b"append %b 0 0 0\r\n\r\n" % key

    def send(self, request: bytes) -> None:
        """Send requests, all in one."""
        for first in range(0, len(request), _SEND_SIZE):
            self._hurry()
            try:
                self._socket.sendall(request[first : first + _SEND_SIZE])
            except BlockingIOError:
                raise TimeoutError("timed out") from None
            if first:
                self.deadline += _SEND_SIZE / SLOWEST

    def ping(self) -> Iterator[None]:
        """Check in steps whether the server answers."""
        self.send(b"version\r\n")
        yield
        line = self._line()
        if not line.startswith(b"VERSION"):
            raise _error(line)

    # One request and its reply, by the shortest way

    def store_now(self, request: bytes) -> tuple[Stored, int | None]:
        """Send one :meth:`store` request and read its reply."""
        reply = self._ask(request, _TINY_SIZE)
        if reply[:4] == b"HD c" and reply[-2:] == b"\r\n" and reply[4:-2].isdigit():
            return _IS_STORED, int(reply[4:-2])
        self._keep(reply)
        return self.read_stored()

    def read_value(self, key: bytes) -> tuple[bytes, int | None] | None:
        """Read one item's value and seconds left."""
        if not self.meta:
            self.ask_values((key,))
            return self.read_values(1)[0]
        try:
            self._socket.sendall(b"mg %b v t\r\n" % key)
            reply: bytes = self._socket.recv(_SHORT_SIZE)
        except BlockingIOError:
            raise TimeoutError("timed out") from None
        head, _, value = reply.partition(b"\r\n")
        code, _, ttl = head.partition(b" t")
        if code == b"VA %d" % (len(value) - 2):
            return value[:-2], int(ttl)
        if reply == b"EN\r\n":
            return None
        self._keep(reply)
        return self._read_value()

    def _ask(self, request: bytes, size: int) -> bytes:
        try:
            self._socket.sendall(request)
            reply: bytes = self._socket.recv(size)
        except BlockingIOError:
            raise TimeoutError("timed out") from None
        return reply

    def _keep(self, reply: bytes) -> None:
        """The rest of a reply is still to come."""
        if not reply:
            raise MemcacheUnexpectedCloseError
        self._buffer, self._at = reply, 0

    # Replies

    def read_item(self) -> Item | None:
        """Read the reply to :meth:`get`: None for no item."""
        line = self._line()
        code, *tokens = line.split()
        if code == b"VA":
            flags = {token[:1]: token[1:] for token in tokens[1:]}
            return Item(self._block(int(tokens[0])), int(flags[b"c"]), int(flags[b"t"]))
        if code == b"VALUE":
            item = Item(self._block(int(tokens[2])), int(tokens[3]), None)
            code = self._line()
            if code == b"END":
                return item
        if code in (b"EN", b"END"):
            return None
        raise _error(line)

    def ask_values(self, keys: Sequence[bytes]) -> None:
        """Send the request for many items' values; :meth:`read_values` reads the replies."""
        if self.meta:
            # The reply to mn marks the end of the replies.
            self.send(b"mg " + b" v t\r\nmg ".join(keys) + b" v t\r\nmn\r\n")
        else:
            self.send(b"".join(map(self.get, keys)))

    def read_values(self, count: int) -> list[tuple[bytes, int | None] | None]:
        """Read the values of a number of items, and the seconds that they have left."""
        if not self.meta:
            items = [self.read_item() for _ in range(count)]
            return [item and (item.value, item.ttl) for item in items]
        self._receive()
        while self._buffer.startswith((b"VA ", b"EN"), self._at) and len(self._buffer) < _SPLIT_SIZE:
            if self._buffer.endswith(b"MN\r\n"):
                break
            self._receive()
        values = self._split_values(count)
        if values is None:
            values = [self._read_value() for _ in range(count)]
            if (line := self._line()) != b"MN":
                raise _error(line)
        return values

    def _split_values(self, count: int) -> list[tuple[bytes, int | None] | None] | None:
        """Take the replies apart at their line breaks, in half the time;
        None where they are anything but what we wrote.
        """
        values: list[tuple[bytes, int | None] | None] = []
        lines = iter(self._buffer[self._at :].split(b"\r\n"))
        for line in lines:
            code, _, ttl = line.partition(b" t")
            if ttl:
                value = next(lines, b"")
                if code != b"VA %d" % len(value):
                    return None
                values.append((value, int(ttl)))
            elif line == b"EN":
                values.append(None)
            else:
                break
        if line != b"MN" or len(values) != count or list(lines) != [b""]:
            return None
        self._at = len(self._buffer)
        return values

    def _read_value(self) -> tuple[bytes, int | None] | None:
        line = self._line()
        if line.startswith(b"VA "):
            _, size, ttl = line.split()
            return self._block(int(size)), int(ttl[1:])
        if line.startswith(b"EN"):
            return None
        raise _error(line)

    def read_stored(self) -> tuple[Stored, int | None]:
        """Read the reply to :meth:`store`: what became of it, and the
        item's new cas where the protocol tells.
        """
        line = self._line()
        if line.startswith(b"HD c"):
            return Stored.STORED, int(line[4:])
        stored = _STORED.get(line.partition(b" ")[0])
        if stored is None:
            if line.startswith(_NO_ROOM):
                return Stored.REFUSED, None
            raise _error(line)
        return stored, None

    def read_touched(self) -> None:
        """Read the reply to :meth:`touch`, which may have found no item, or no memory."""
        line = self._line()
        if line not in (b"STORED", b"NOT_STORED") and not line.startswith(_NO_ROOM):
            raise _error(line)

    def delete(self, key: bytes) -> bool:
        """Delete an item, and tell whether there was one."""
        self.send(b"delete %b\r\n" % key)
        line = self._line()
        if line not in (b"DELETED", b"NOT_FOUND"):
            raise _error(line)
        return line == b"DELETED"

    def _line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n", self._at)) < 0:
            self._receive()
        line = self._buffer[self._at : end]
        self._at = end + 2
        return line

    def _block(self, size: int) -> bytes:
        while len(self._buffer) < self._at + size + 2:
            self._receive()
        block = self._buffer[self._at : self._at + size]
        self._at += size + 2
        return block

    def _receive(self) -> None:
        self._hurry()
        try:
            received = self._socket.recv(_RECEIVE_SIZE)
        except BlockingIOError:
            raise TimeoutError("timed out") from None
        if not received:
            raise MemcacheUnexpectedCloseError
        # A server that needs long for a large reply does answer.
        self.deadline += len(received) / SLOWEST
        self._buffer = self._buffer[self._at :] + received
        self._at = 0

    # The end

    def is_quiet(self) -> bool:
        """Whether nothing has come that nobody asked for: the end, for one."""
        timeout = self._socket.gettimeout()
        self._socket.settimeout(0)
        try:
            self._socket.recv(1)
        except (BlockingIOError, SSLWantReadError):
            self._socket.settimeout(timeout)
            return True
        except OSError:
            pass
        return False

    def close(self) -> None:
        """Close it, whatever is owed."""
        self._client.close()


def _version(text: bytes) -> tuple[int, ...]:
    found = re.match(rb"(\d+)\.(\d+)\.(\d+)", text)
    return tuple(map(int, found.groups())) if found else ()


def _error(line: bytes) -> MemcacheError:
    kind = MemcacheServerError if line.startswith(b"SERVER_ERROR") else MemcacheUnknownError
    return kind(line.decode("ascii", "replace"))
