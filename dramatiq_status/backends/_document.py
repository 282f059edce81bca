"""What an item of memcached holds, and what updates make of it.  Pure."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Final, NamedTuple

from ..errors import BackendError
from ..record import (
    ARGS,
    COMPLETED,
    DOCUMENT_MARK,
    EXCEPTION,
    KWARGS,
    TRACEBACK,
    TRUNCATED,
    USER_PREFIX,
    Record,
    from_pairs,
    to_document,
    whole_number_in,
)
from ..update import CLEARED_BY_COMPLETION, Applied, Kind, Outcome, Update, apply

#: Part of an item that is reserved for the library's own fields; half of it takes short fields of users as well.
RESERVED_PART: Final = 64

#: Maximum size of a short field, in bytes.
SHORT_FIELD: Final = 512

#: Bytes by which an update may enlarge an item after the server had no memory for a larger one.
SMALL_GROWTH: Final = 2048

#: Maximum number of names of dropped fields in a record, and their size in bytes together.
MAX_TRUNCATED: Final = 100
MAX_TRUNCATED_SIZE: Final = 2048

#: The most seconds that memcached takes for a span; a larger number is
#: a date to it, which is good until 2038.
MAX_SPAN: Final = 2_592_000
MAX_DATE: Final = 2**31 - 1

#: For how long a writer that is not a message's run believes that
#: nobody else has written since, in milliseconds: a wrong guess costs
#: it a third round trip, a right one saves it the first of two.
OUTSIDE_TRUST: Final = 1000

# An attribute of an Enum takes five times as long as a name.
_OUTSIDE: Final = Kind.OUTSIDE

_NAMES: Final = {ARGS: "args", KWARGS: "kwargs", TRACEBACK: "traceback", EXCEPTION: "exception"}


class Known(NamedTuple):
    """What an item holds: just read, or remembered, or guessed.

    Parameters:
      record: Its record, None for nothing that is one.
      expires_at: When it expires, in epoch milliseconds.
      cas: The number of its last write, None where there is no item.
      server: With what is remembered: the run of the server that the cas is from.
      since: With what is remembered: when it was stored.
    """

    record: Record | None
    expires_at: int
    cas: int | None
    server: str = ""
    since: int = 0

    def serves(self, update: Update, server: str, now: int) -> bool:
        """Whether it may be true enough to base an update on."""
        return (
            self.server == server
            and self.expires_at > now
            and (update.kind is not _OUTSIDE or now - self.since < OUTSIDE_TRUST)
        )


#: There is no item.
ABSENT: Final = Known(None, 0, None)


class Job:
    """The updates of one message in a call, to be stored with one write.

    Parameters:
      message_id(str): The message.
      key(bytes): Its item's key.
      whole(bool): Whether an update is stored as a whole or not at all.
    """

    def __init__(self, message_id: str, key: bytes, *, whole: bool = False) -> None:
        self.message_id = message_id
        self.key = key
        self.whole = whole
        self.indexes: list[int] = []
        self.updates: list[Update] = []
        #: What the item holds, as far as is known.
        self.known: Known | None = None
        #: Whether `known` need not be what was read just now.
        self.may_guess = True
        #: Whether a value was sent and the server has not answered yet.
        self.sent = False
        self.done = False
        #: Number of compare-and-sets that failed because of another writer.
        self.conflicts = 0
        #: Earliest time of the next read after a conflict, by the monotonic clock, in seconds.
        self.retry_at = 0.0
        #: Whether it is this update's turn, and until when it tries to take one, by the monotonic clock.
        self.has_turn = False
        self.turn_until = 0.0
        #: Whether the server has refused a value for lack of memory.
        self.refused = False
        #: The results of :meth:`work_out`.
        self.outcomes: list[Outcome] = []
        self.record: Record | None = None
        self.expires_at = 0
        self.error: ValueError | BackendError | None = None

    def learn(self, known: Known) -> None:
        """Take what the server has just said for granted."""
        self.known = known
        self.may_guess = False

    def ask(self) -> None:
        """Forget what was known, so that the item is read."""
        self.known = None
        self.may_guess = False
        self.sent = False

    def needs_turn(self, now: float) -> bool:
        """Whether it has to take a turn before it reads."""
        return self.known is None and not self.has_turn and now < self.turn_until

    def fail(self, outcome: Outcome, error: BackendError) -> None:
        """End it without a stored value."""
        self.done, self.outcomes, self.error = True, [outcome] * len(self.updates), error

    def work_out(self, known: Known, now: int, limit: int) -> bytes | None:
        """Apply the updates to what is known.

        Fields that do not fit into an item are left out, and `error` names
        them: an item that is too large would not only be refused, the server
        would delete the one that is there.

        Parameters:
          known(Known): What the item holds.
          now(int): The present moment, in epoch milliseconds.
          limit(int): The largest value, in bytes.

        Returns:
          bytes | None: The value to store, None for nothing new.
        """
        room = room_in(limit)
        if self.refused:
            room = min(room, (0 if known.record is None else len(to_value(known.record, now))) + SMALL_GROWTH)
        value = self._apply(known, now, None)
        if value is not None and len(value) > room:
            short = room + SMALL_GROWTH if self.refused else (room + limit) // 2
            value = self._apply(known, now, Room(room, short, limit))
        return value

    def _apply(self, known: Known, now: int, room: Room | None) -> bytes | None:
        record, expires_at = known.record, known.expires_at
        self.outcomes, self.error = [], None
        dropped: dict[str, int] = {}
        changed = False
        for update in self.updates:
            if expires_at <= now:
                record = None
            applied = apply(record, update, now)
            new = applied.record
            if new is not None and new is not record:
                if TRUNCATED in new and update.kind is Kind.ENQUEUE:
                    # The item's values are older than the dropped values.
                    update = without(update, truncated_of(new))
                    applied = apply(record, update, now)
                if room is not None:
                    applied = self._fit(record, update, applied, now, room, dropped)
                elif TRUNCATED in new and applied.record is not None:
                    note_truncated(applied.record, update, ())
            if applied.record is not record:
                record, changed = applied.record, True
                if applied.ttl is not None:
                    expires_at = now + applied.ttl
            self.outcomes.append(applied.outcome)
        self.record, self.expires_at = record, expires_at
        if dropped and room is not None:
            self.error = _too_large(self.message_id, dropped, room.fields)
        return to_value(record, expires_at) if changed and record is not None else None

    def _fit(
        self, record: Record | None, update: Update, applied: Applied, now: int, room: Room, dropped: dict[str, int]
    ) -> Applied:
        """Leave out the largest of an update's fields that do not fit; note their sizes in `dropped`."""
        large = too_large(record, update, applied.record or {}, now, room)
        if large and self.whole:
            dropped.update(large)
            return Applied(Outcome.REFUSED, record)
        if large:
            applied = apply(record, without(update, large), now)
            if update.kind is not Kind.ENQUEUE and applied.record is not None:
                # An older value must not look like the newest one.
                left = {name: text for name, text in applied.record.items() if name not in large}
                applied = applied._replace(record=left)
        new = applied.record
        assert new is not None
        missing = [name for name in large if name not in new]
        dropped.update({name: large[name] for name in missing})
        if new is record:
            return applied
        if missing or TRUNCATED in new:
            note_truncated(new, update, missing)
        if len(to_value(new, now)) > room.all:
            dropped.update({name: len(text) for name, text in update.fields.items()})
            return Applied(Outcome.REFUSED, record)
        return applied


class Room(NamedTuple):
    """The largest size of an item, in bytes.

    Parameters:
      fields: After an update that writes large fields.
      short: After an update that writes short fields.
      all: After an update of the library's own fields.
    """

    fields: int
    short: int
    all: int


def too_large(record: Record | None, update: Update, new: Record, now: int, room: Room) -> dict[str, int]:
    """Choose the fields of an update to leave out, the largest ones first.

    Parameters:
      record(Record | None): The record before the update.
      update(Update): The update.
      new(Record): The record after the update, with all fields.
      now(int): The present moment, in epoch milliseconds.
      room(Room): The largest size of the item.

    Returns:
      dict[str, int]: Stored names and sizes in bytes.
    """
    size = len(to_value(new, now))
    # An enqueue only fills gaps in an earlier record.
    kept = record or {} if update.kind is Kind.ENQUEUE else {}
    sizes = {
        name: len(text.encode())
        for name, text in update.fields.items()
        if (name.startswith(USER_PREFIX) or name in _NAMES) and new.get(name) == text and name not in kept
    }
    large: dict[str, int] = {}
    for name in sorted(sizes, key=lambda name: sizes[name], reverse=True):
        if size <= (room.fields if sizes[name] > SHORT_FIELD else room.short):
            break
        large[name] = sizes[name]
        size -= sizes[name] + len(name.encode()) + 2
    return large


def without(update: Update, names: Collection[str]) -> Update:
    """Take fields out of an update."""
    return update._replace(fields={name: text for name, text in update.fields.items() if name not in names})


def truncated_of(record: Record) -> list[str]:
    """The stored names of the fields that a record has no room for."""
    try:
        return [str(name) for name in json.loads(record[TRUNCATED])]
    except (TypeError, ValueError, KeyError):
        return []


def note_truncated(record: Record, update: Update, dropped: Collection[str]) -> None:
    """Keep the list of a new record's dropped fields: add what `update` had to leave out,
    remove what it has written or cleared.
    """
    over = {*update.fields, *(CLEARED_BY_COMPLETION if update.state == COMPLETED else ())}
    names = [*[name for name in truncated_of(record) if name not in over], *dropped][:MAX_TRUNCATED]
    while len(text := json.dumps(names, separators=(",", ":"))) > MAX_TRUNCATED_SIZE:
        names.pop()
    record.pop(TRUNCATED, None)
    if names:
        record[TRUNCATED] = text


def public_name(stored: str) -> str:
    """Return the user's name of a stored field."""
    return stored[len(USER_PREFIX) :] if stored.startswith(USER_PREFIX) else _NAMES.get(stored, stored)


def room_in(limit: int) -> int:
    """How much of an item, which takes `limit` bytes, is for everybody."""
    return limit - limit // RESERVED_PART


def counts_twice(update: Update) -> bool:
    """Whether the store could not tell if it got an update twice."""
    return bool(update.increment or update.changes) and update.kind is _OUTSIDE


def to_value(record: Record, expires_at: int) -> bytes:
    """Write what an item holds: when it expires, and the record."""
    return f"{expires_at}\n{to_document(record)}".encode()


def from_value(value: bytes, ttl: int | None, now: int) -> tuple[Record | None, int]:
    """Read what an item holds.

    Parameters:
      value(bytes): What :func:`to_value` has written, or somebody else.
      ttl(int | None): How many seconds the item has left, as the server
        counts them, None where it does not tell.
      now(int): The present moment, in epoch milliseconds.

    Returns:
      tuple[Record | None, int]: The record, None where it is expired or
      not one of ours, and when it expires by our clock.
    """
    lines, expires_at = split_value(value, ttl, now)
    return None if lines is None else from_pairs(lines[2:]), expires_at


def split_value(value: bytes, ttl: int | None, now: int) -> tuple[list[str] | None, int]:
    """The same as :func:`from_value`, but for the record: its lines, which are
    its stored names and JSON texts in turn from the third on.
    """
    try:
        lines = value.decode().split("\n")
    except ValueError:
        return None, 0
    # A longer one is not ours, and none could be calculated with.
    expires_at = whole_number_in(lines[0], 0)
    if ttl is not None:
        # The value has the milliseconds, by the clock of the host that
        # wrote it; the server has the seconds, by one clock for all.
        most = now + ttl * 1000
        if expires_at > most:
            expires_at = most
        elif expires_at < most - 3000:
            expires_at = most - 3000
    if expires_at <= now or len(lines) & 1 or lines[1] != DOCUMENT_MARK:
        return None, expires_at
    return lines, expires_at


def expiry_of(expires_at: int, now: int) -> int:
    """What to tell memcached about when an item expires.

    Its clock ticks in seconds, so that an item lives up to one less
    than it was given: one is added, but to dates, which are a month
    away.  The item itself says to the millisecond when it expires.

    >>> expiry_of(1_790_000_000_000 + 1_500, 1_790_000_000_000)
    3
    """
    span = max(0, -((now - expires_at) // 1000)) + 1
    if span <= MAX_SPAN:
        return span
    date = -(-expires_at // 1000)
    return date if date <= MAX_DATE else MAX_SPAN


def _too_large(message_id: str, dropped: dict[str, int], limit: int) -> ValueError:
    sizes = ", ".join(
        f"{public_name(name)!r} with {size}" for name, size in sorted(dropped.items(), key=lambda item: -item[1])[:10]
    )
    more = f" and {len(dropped) - 10} more" if len(dropped) > 10 else ""
    return ValueError(
        f"The status of message {message_id!r} may take {limit} bytes, an item of this memcached; these fields do not "
        f"fit: {sizes}{more}. Store them elsewhere and write a reference, or raise the server's item size limit (-I)."
    )
