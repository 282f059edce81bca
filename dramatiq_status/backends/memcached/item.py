"""The items of memcached that a process has cached, and the pending updates of one item.

No code here calls a store.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, NamedTuple, TypeVar

from ..._time import monotonic
from ...errors import BackendError
from ...record import Record, is_finished
from ...update import Kind, Outcome, Update
from .._document import PendingDocument

T = TypeVar("T")

#: Maximum number of items that a process caches.
MAX_CACHED: Final = 1024

#: Size in bytes above which a cached value counts as large, and maximum number of large values that are cached.
MAX_CACHED_SIZE: Final = 65_536
MAX_CACHED_LARGE: Final = 16

#: Milliseconds after a write by this process in which its next write from outside of a run assumes that no other
#: process has written to the item.  A wrong assumption costs a third round trip; a right one saves the first of two.
OUTSIDE_TRUST: Final = 1000

#: Seconds for which a process expects that other processes still write to an item.
CONTENDED_FOR: Final = 0.2

#: Maximum number of seconds in a time to live.  Memcached takes a larger number for a date, and its dates end in 2038.
MAX_SPAN: Final = 2_592_000
MAX_DATE: Final = 2**31 - 1

# Reading an attribute of an Enum takes five times as long as reading a global.
_OUTSIDE: Final = Kind.OUTSIDE


class CachedItem(NamedTuple):
    """An item of memcached: as it was read, as it was written, or as it is assumed to be.

    Parameters:
      record: Its record, None if its value is not a sound record.
      expires_at: Time at which it expires, in epoch milliseconds.
      cas: Number of its last write, None if there is no item.
      server: Identity of the server and its start, without which `cas` means nothing; empty for an item that was read.
      written_at: Time of the write by this process, in epoch milliseconds; 0 for an item that was read.
    """

    record: Record | None
    expires_at: int
    cas: int | None
    server: str = ""
    written_at: int = 0

    def serves(self, update: Update, server: str, now: int) -> bool:
        """Return whether an update may be applied to this cached item without reading the item first."""
        return (
            self.server == server
            and self.expires_at > now
            and (update.kind is not _OUTSIDE or now - self.written_at < OUTSIDE_TRUST)
        )


#: Cached item that stands for a message without an item.
ABSENT: Final = CachedItem(None, 0, None)


class ItemCache:
    """The items that this process wrote most recently, and the messages to which several processes write."""

    def __init__(self) -> None:
        self._items: OrderedDict[str, CachedItem] = OrderedDict()
        self._large: OrderedDict[str, CachedItem] = OrderedDict()
        # By message, the end of the time in which its item is expected to be contended, by the monotonic clock.
        self._contended: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items) + len(self._large)

    def take(self, message_id: str) -> CachedItem | None:
        """Remove an item from the cache and return it: it is out of date after the next write."""
        item = self._items.pop(message_id, None)
        return self._large.pop(message_id, None) if item is None and self._large else item

    def put(self, message_id: str, item: CachedItem, size: int) -> None:
        """Cache an item of a size in bytes."""
        if size <= MAX_CACHED_SIZE:
            put(self._items, message_id, item, MAX_CACHED)
        else:
            put(self._large, message_id, item, MAX_CACHED_LARGE)

    def note_contention(self, message_id: str) -> None:
        """Note that other processes keep writing to a message."""
        put(self._contended, message_id, monotonic() + CONTENDED_FOR, MAX_CACHED)

    def find_contended(self, message_ids: Iterable[str]) -> set[str]:
        """Return the messages whose items are contended and not cached."""
        if not self._contended:
            return set()
        now = monotonic()
        return {
            message_id
            for message_id in message_ids
            if self._contended.get(message_id, 0.0) > now
            and message_id not in self._items
            and message_id not in self._large
        }


class PendingItem(PendingDocument):
    """The updates of one message in a call, until its item is written.

    Attributes:
      item(CachedItem): The item, None if it has to be read.
      may_guess(bool): Whether `item` may be taken from the cache.
      sent(bool): Whether a value was sent, to which the server has not replied yet.
      done(bool): Whether the updates have their outcomes: they were carried out or given up.
      conflicts(int): Number of compare-and-sets that failed because of another writer.
      retry_at(float): Earliest time of the next read after a conflict, by the monotonic clock.
      has_turn(bool): Whether this process has the turn to write to the item.
      turn_until(float): Time after which the updates need no turn, by the monotonic clock.
    """

    outcomes: list[Outcome]
    error: ValueError | BackendError | None

    def __init__(self, message_id: str, key: bytes, *, whole: bool = False) -> None:
        super().__init__(message_id, key, whole=whole)
        self.item: CachedItem | None = None
        self.may_guess: bool = True
        self.sent: bool = False
        self.done: bool = False
        self.conflicts: int = 0
        self.retry_at: float = 0.0
        self.has_turn: bool = False
        self.turn_until: float = 0.0

    def apply_to(self, item: CachedItem, now: int, limit: int) -> bytes | None:
        """Apply the updates to an item, see :meth:`.PendingDocument.apply`."""
        return self.apply(item.record, item.expires_at, now, limit)

    def receive(self, item: CachedItem) -> None:
        """Set the item that the server has returned."""
        self.item = item
        self.may_guess = False

    def reread(self) -> None:
        """Forget the item, so that it is read."""
        self.item = None
        self.may_guess = False
        self.sent = False

    def needs_turn(self, now: float) -> bool:
        """Return whether this process has to take a turn before it reads the item."""
        return self.item is None and not self.has_turn and now < self.turn_until

    def fail(self, outcome: Outcome, error: BackendError) -> None:
        """Give up the updates."""
        self.done, self.outcomes, self.error = True, [outcome] * len(self.updates), error

    def is_worth_caching(self, cas: int | None) -> bool:
        """Return whether this process will probably write to the item again, now that the server has stored it."""
        # The next writer after an enqueue is a worker, and a finished message has no next writer.
        return (
            cas is not None
            and self.record is not None
            and self.updates[-1].kind is not Kind.ENQUEUE
            and not is_finished(self.record)
        )


def expiry_of(expires_at: int, now: int) -> int:
    """Return memcached's number for the time at which an item expires.

    The server's clock ticks once a second, so an item lives up to one second less than its time to live.
    Therefore the returned time to live is one second longer.  A date is returned unchanged: it is at least a month
    away, so a second does not matter.  An item that expires after 2038 gets the longest time to live, 30 days.

    >>> expiry_of(1_790_000_000_000 + 1_500, 1_790_000_000_000)
    3
    >>> expiry_of(1_790_000_000_000, 1_790_000_000_000)
    -1
    """
    if expires_at <= now:
        # It is removed at once.
        return -1
    span = -((now - expires_at) // 1000) + 1
    if span <= MAX_SPAN:
        return span
    date = -(-expires_at // 1000)
    return date if date <= MAX_DATE else MAX_SPAN


def put(mapping: OrderedDict[str, T], key: str, value: T, limit: int) -> None:
    """Add an entry to a mapping, and remove the oldest entry if there are more than `limit` entries."""
    mapping[key] = value
    if len(mapping) > limit:
        try:
            mapping.popitem(last=False)
        except KeyError:
            # Other threads have emptied the mapping.
            pass
