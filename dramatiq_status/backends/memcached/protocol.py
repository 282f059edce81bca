"""The text protocols of memcached: commands and their replies.

The backend uses pymemcache only to connect.  For the meta commands, pymemcache 4.0 has ``raw_command``, which loses
step with replies of more than 4 KB and checks nothing.  After an interrupt in the middle of a call, pymemcache
continues with a connection on which a reply is still due.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from functools import wraps
from typing import Any, Final, NamedTuple, TypeVar, cast

from pymemcache.exceptions import MemcacheClientError, MemcacheError, MemcacheServerError, MemcacheUnknownError

from .stream import Stream

#: The first version whose meta commands are those of today.  In earlier versions (1.6.6, which Amazon ran for
#: years), a reply has the size of a value in another position, and has no cas (see RevenueCat/meta-memcache-py#12).
META_SINCE: Final = (1, 6, 10)

#: Maximum size of an item without its value, in bytes: its header, its cas and a key of 250 bytes.
ITEM_OVERHEAD: Final = 512

#: Item size limit of a server that returns none, in bytes.
DEFAULT_ITEM_SIZE: Final = 1_048_576

#: Maximum size of the replies for many items that are split in one step, in bytes.
_SPLIT_SIZE: Final = 1_048_576

#: Maximum number of bytes that one system call receives: when an item is read, and when a value was sent.
_SHORT_SIZE: Final = 4096
_TINY_SIZE: Final = 256


class StoreReply(Enum):
    """The server's reply to a value that was sent."""

    STORED = "stored"
    #: Another writer has changed the item.
    CHANGED = "changed"
    #: The item does not exist any more.
    GONE = "gone"
    #: The item exists already.
    TAKEN = "taken"
    #: The server has no memory for the value.
    REFUSED = "refused"


# Reading an attribute of an Enum takes five times as long as reading a global.
_IS_STORED: Final = StoreReply.STORED

_STORED: Final = {
    b"HD": StoreReply.STORED,
    b"EX": StoreReply.CHANGED,
    b"NF": StoreReply.GONE,
    b"NS": StoreReply.TAKEN,
    b"STORED": StoreReply.STORED,
    b"EXISTS": StoreReply.CHANGED,
    b"NOT_FOUND": StoreReply.GONE,
    b"NOT_STORED": StoreReply.TAKEN,
}

#: Beginnings of the replies of a server that works and has no memory for a value.
_NO_ROOM: Final = (b"SERVER_ERROR out of memory", b"SERVER_ERROR object too large")


class Item(NamedTuple):
    """An item as it was read.

    Parameters:
      value: Its value.
      cas: Number of its last write.
      ttl: Whole seconds until the server expires it; None if the reply does not contain them.
    """

    value: bytes
    cas: int
    ttl: int | None


ReadT = TypeVar("ReadT", bound=Callable[..., Any])


def _checked(read: ReadT) -> ReadT:
    """Let a method that reads replies raise an error of the driver's where a reply is damaged."""

    @wraps(read)
    def checked(*arguments: Any) -> Any:
        try:
            return read(*arguments)
        except (ValueError, LookupError) as e:
            raise MemcacheUnknownError(f"a reply is damaged: {e}") from e

    return cast(ReadT, checked)


class Credentials:
    """A name and a password, for servers that are started with ``-Y``.

    Raises:
      TypeError: When one of the two is missing.
      ValueError: When one of the two cannot be sent.
    """

    def __init__(self, username: str | None, password: str | None) -> None:
        for name, value in (("username", username), ("password", password)):
            if not isinstance(value, str):
                raise TypeError(f"{name} must be a str, not {type(value).__name__}: pass both username and password.")
            if not value or not value.isprintable() or " " in value:
                raise ValueError(f"{name} must not be empty, and must not contain spaces or control characters.")
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
        return f"<Credentials of {self.username!r}>"


class Connection(Stream):
    """A connection to memcached.  It is in step as long as the reply to every request is read.

    The constructor connects; :meth:`log_in` prepares the connection for requests.

    Parameters:
      client(pymemcache.Client): See :class:`.Stream`.
      timeout(float): See :class:`.Stream`.
      deadline(float): See :class:`.Stream`.
      meta(bool): Whether to use the meta commands if the server has them.
      login(Credentials): Login that the server requires, None for none.

    Attributes:
      meta(bool): Whether the connection uses the meta commands.
      server(str): Identifies the server and its start.  A server that is restarted counts its cas numbers from the
        beginning, so a cas is valid only until the next start.
      max_value_size(int): Maximum size of a value, in bytes.
    """

    position: int

    def __init__(
        self, client: Any, *, timeout: float, deadline: float, meta: bool, login: Credentials | None = None
    ) -> None:
        super().__init__(client, timeout=timeout, deadline=deadline)
        self._may_use_meta = meta
        self._login = login

    def log_in(self) -> Iterator[None]:
        """Log in and query the server's features, in steps: a reply is due after each step."""
        if self._login is not None:
            self.send(self._login.request)
            yield
            self._check_login(self.read_line())
        self.send(b"version\r\n")
        yield
        version = self._check_login(self.read_line()).removeprefix(b"VERSION ")
        self.send(b"mn\r\nstats\r\nstats settings\r\n")
        yield
        has_meta = self.read_line() == b"MN"
        stats = self._stats()
        settings = self._stats()
        if settings.get(b"cas_enabled") == b"no":
            raise MemcacheServerError(b"it runs without cas (-C), so that updates would be lost")
        # If there is no memory, a meta command also deletes the item that it should replace.  A server that evicts
        # other items makes room first.
        evicts = settings.get(b"evictions") != b"off"
        self.meta: bool = has_meta and self._may_use_meta and evicts and _version(version) >= META_SINCE
        try:
            started = int(stats[b"time"]) - int(stats[b"uptime"])
            self.server: str = f"{int(stats[b'pid']):x}-{started:x}"
        except (KeyError, ValueError):
            # It may be a proxy.  Each connection then counts as a server of its own, so a cached item serves only the
            # connection that wrote it.
            self.server = os.urandom(8).hex()
        size = settings.get(b"item_size_max", b"")
        self.max_value_size: int = (int(size) if size.isdigit() else DEFAULT_ITEM_SIZE) - ITEM_OVERHEAD

    def _check_login(self, line: bytes) -> bytes:
        """Raise an error for a server that is not a memcached, or that requires another login."""
        if line.startswith(b"CLIENT_ERROR") and b"auth" in line:
            problem = "requires a login" if self._login is None else f"refuses the login of {self._login.username!r}"
            raise MemcacheClientError(f"it {problem}: check username and password")
        if not line.startswith((b"VERSION ", b"STORED")):
            raise _error(line)
        return line

    def _stats(self) -> dict[bytes, bytes]:
        stats = {}
        while (line := self.read_line()).startswith(b"STAT "):
            name, _, value = line[5:].partition(b" ")
            stats[name] = value
        return stats

    # Requests

    def get(self, key: bytes) -> bytes:
        """Return the request for an item; :meth:`read_item` reads the reply."""
        return b"mg %b v c t\r\n" % key if self.meta else b"gets %b\r\n" % key

    def store(self, key: bytes, value: bytes, expiry: int, cas: int | None) -> bytes:
        """Return the request to store a value.  The server stores it only if the item still has this `cas`; if `cas` is
        None, only if there is no item.  :meth:`read_stored` reads the reply.
        """
        if self.meta:
            if cas is None:
                return b"ms %b %d T%d ME c\r\n%b\r\n" % (key, len(value), expiry, value)
            return b"ms %b %d T%d C%d c\r\n%b\r\n" % (key, len(value), expiry, cas, value)
        if cas is None:
            return b"add %b 0 %d %d\r\n%b\r\n" % (key, expiry, len(value), value)
        return b"cas %b 0 %d %d %d\r\n%b\r\n" % (key, expiry, len(value), cas, value)

    def touch(self, key: bytes) -> bytes:
        """Return the request to change only the cas of an item, so that a writer that has cached the item has to read
        it.  :meth:`read_touched` reads the reply.
        """
        return b"append %b 0 0 0\r\n\r\n" % key

    def ping(self) -> Iterator[None]:
        """Check in steps whether the server answers."""
        self.send(b"version\r\n")
        yield
        line = self.read_line()
        if not line.startswith(b"VERSION"):
            raise _error(line)

    # One short request and its reply

    def store_now(self, request: bytes) -> tuple[StoreReply, int | None]:
        """Send one :meth:`store` request and read its reply."""
        reply = self.exchange(request, _TINY_SIZE)
        if reply[:4] == b"HD c" and reply[-2:] == b"\r\n" and reply[4:-2].isdigit():
            return _IS_STORED, int(reply[4:-2])
        self.unread(reply)
        return self.read_stored()

    @_checked
    def read_value(self, key: bytes) -> tuple[bytes, int | None] | None:
        """Read the value of an item, and the seconds until it expires."""
        if not self.meta:
            self.request_values((key,))
            return self.read_values(1)[0]
        reply = self.exchange(b"mg %b v t\r\n" % key, _SHORT_SIZE)
        head, _, value = reply.partition(b"\r\n")
        code, _, ttl = head.partition(b" t")
        if code == b"VA %d" % (len(value) - 2):
            return value[:-2], int(ttl)
        if reply == b"EN\r\n":
            return None
        self.unread(reply)
        return self._read_value()

    # Replies

    @_checked
    def read_item(self) -> Item | None:
        """Read the reply to :meth:`get`; return None for no item."""
        line = self.read_line()
        code, *tokens = line.split()
        if code == b"VA":
            flags = {token[:1]: token[1:] for token in tokens[1:]}
            return Item(self.read_block(int(tokens[0])), int(flags[b"c"]), int(flags[b"t"]))
        if code == b"VALUE":
            item = Item(self.read_block(int(tokens[2])), int(tokens[3]), None)
            code = self.read_line()
            if code == b"END":
                return item
        if code in (b"EN", b"END"):
            return None
        raise _error(line)

    def request_values(self, keys: Sequence[bytes]) -> None:
        """Send the requests for the values of many items; :meth:`read_values` reads the replies."""
        if self.meta:
            # The reply to `mn` is the end of the replies.
            self.send(b"mg " + b" v t\r\nmg ".join(keys) + b" v t\r\nmn\r\n")
        else:
            self.send(b"".join(map(self.get, keys)))

    @_checked
    def read_values(self, count: int) -> list[tuple[bytes, int | None] | None]:
        """Read the values of a number of items, and the seconds until they expire."""
        if not self.meta:
            items = [self.read_item() for _ in range(count)]
            return [item and (item.value, item.ttl) for item in items]
        self.receive()
        while self.received.startswith((b"VA ", b"EN"), self.position) and len(self.received) < _SPLIT_SIZE:
            if self.received.endswith(b"MN\r\n"):
                break
            self.receive()
        values = self._split_values(count)
        if values is None:
            values = [self._read_value() for _ in range(count)]
            if (line := self.read_line()) != b"MN":
                raise _error(line)
        return values

    def _split_values(self, count: int) -> list[tuple[bytes, int | None] | None] | None:
        """Split the replies at their line breaks.  This takes half the time of reading one reply after the other.

        Return None if a reply is not of the expected form: a value of another program may contain line breaks.
        """
        values: list[tuple[bytes, int | None] | None] = []
        lines = iter(self.received[self.position :].split(b"\r\n"))
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
        self.position = len(self.received)
        return values

    def _read_value(self) -> tuple[bytes, int | None] | None:
        line = self.read_line()
        if line.startswith(b"VA "):
            _, size, ttl = line.split()
            return self.read_block(int(size)), int(ttl[1:])
        if line.startswith(b"EN"):
            return None
        raise _error(line)

    @_checked
    def read_stored(self) -> tuple[StoreReply, int | None]:
        """Read the reply to :meth:`store`, and the item's new cas where the protocol returns it."""
        line = self.read_line()
        if line.startswith(b"HD c"):
            return StoreReply.STORED, int(line[4:])
        stored = _STORED.get(line.partition(b" ")[0])
        if stored is None:
            if line.startswith(_NO_ROOM):
                return StoreReply.REFUSED, None
            raise _error(line)
        return stored, None

    def read_touched(self) -> None:
        """Read the reply to :meth:`touch`.  It is no error if there was no item, or no memory."""
        line = self.read_line()
        if line not in (b"STORED", b"NOT_STORED") and not line.startswith(_NO_ROOM):
            raise _error(line)

    def delete(self, key: bytes) -> bool:
        """Delete an item; return whether there was one."""
        self.send(b"delete %b\r\n" % key)
        line = self.read_line()
        if line not in (b"DELETED", b"NOT_FOUND"):
            raise _error(line)
        return line == b"DELETED"


def _version(text: bytes) -> tuple[int, ...]:
    found = re.match(rb"(\d+)\.(\d+)\.(\d+)", text)
    return tuple(map(int, found.groups())) if found else ()


def _error(line: bytes) -> MemcacheError:
    kind = MemcacheServerError if line.startswith(b"SERVER_ERROR") else MemcacheUnknownError
    return kind(line.decode("ascii", "replace"))
