"""Documents: records as texts, in memcached and in caches, and the pending updates of a document.

No code here calls a store.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from typing import Final, NamedTuple, TypeVar

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
from ..transitions import CLEARED_BY_COMPLETION
from ..update import Applied, Kind, Outcome, Update, apply

#: Size of a document divided by the size of its reserved part.  Only the library's own fields may fill the whole part;
#: short fields of users may fill half of it.  Of 1 MB, 16 KB are reserved.
RESERVED_PART: Final = 64

#: Maximum size of a short field, in bytes.
SHORT_FIELD: Final = 512

#: Bytes by which an update may enlarge a document after the server had no memory for a larger one.
SMALL_GROWTH: Final = 2048

#: Maximum number of names of dropped fields in a record, and maximum size of their list, in bytes.
MAX_TRUNCATED: Final = 100
MAX_TRUNCATED_SIZE: Final = 2048

# Reading an attribute of an Enum takes five times as long as reading a global.
_OUTSIDE: Final = Kind.OUTSIDE

#: Public names of the library's own fields that may be large.
_NAMES: Final = {ARGS: "args", KWARGS: "kwargs", TRACEBACK: "traceback", EXCEPTION: "exception"}


class PendingDocument:
    """The updates of one message in a call.  One write stores all of them.

    Parameters:
      message_id(str)
      key(bytes): Key of the document.
      whole(bool): Whether an update is stored with all its fields or not at all.

    Attributes:
      updates(list): The updates, in their order.
      indexes(list): Positions of the updates in the call.
      outcomes(list): Outcomes of the updates, after :meth:`apply`.
      record(Record): The record after all updates.
      expires_at(int): Time at which the record expires, in epoch milliseconds.
      error(Exception): Error that names the dropped fields, or the reason why nothing was stored.
      refused(bool): Whether the server has refused a value because it has no memory.
    """

    def __init__(self, message_id: str, key: bytes, *, whole: bool = False) -> None:
        self.message_id = message_id
        self.key = key
        self.whole = whole
        self.indexes: list[int] = []
        self.updates: list[Update] = []
        self.outcomes: list[Outcome] = []
        self.record: Record | None = None
        self.expires_at: int = 0
        self.error: ValueError | BackendError | None = None
        self.refused: bool = False

    def apply(self, record: Record | None, expires_at: int, now: int, limit: int) -> bytes | None:
        """Apply the updates to a record.

        Fields that do not fit are left out, and `error` names them.  Memcached would not only refuse a value that is
        too large: it would also delete the item that the value should replace.

        Parameters:
          record(Record | None): The stored record, None for no record.
          expires_at(int): Time at which it expires, in epoch milliseconds.
          now(int): The current time, in epoch milliseconds.
          limit(int): Maximum size of the value, in bytes.

        Returns:
          bytes | None: The value to store, None if there is nothing to store.
        """
        room = room_in(limit)
        if self.refused:
            room = min(room, (0 if record is None else len(to_value(record, now))) + SMALL_GROWTH)
        value = self._apply(record, expires_at, now, None)
        if value is not None and len(value) > room:
            short = room + SMALL_GROWTH if self.refused else (room + limit) // 2
            value = self._apply(record, expires_at, now, SizeLimits(room, short, limit))
        return value

    def _apply(self, record: Record | None, expires_at: int, now: int, room: SizeLimits | None) -> bytes | None:
        self.outcomes, self.error = [], None
        dropped: dict[str, int] = {}
        # The last record that an update has made.  An update removes a record by a time to live of 0.  The expired
        # record is stored, and the next update of the same call finds none.
        written: Record | None = None
        for update in self.updates:
            if expires_at <= now:
                record = None
            applied = apply(record, update, now)
            new = applied.record
            if new is not None and new is not record:
                if TRUNCATED in new and update.kind is Kind.ENQUEUE:
                    # The values of an enqueue are older than the dropped values.
                    update = without(update, truncated_of(new))
                    applied = apply(record, update, now)
                if room is not None:
                    applied = self._fit(record, update, applied, now, room, dropped)
                elif TRUNCATED in new and applied.record is not None:
                    note_truncated(applied.record, update, ())
            if applied.record is not record:
                record = written = applied.record
                if applied.ttl is not None:
                    expires_at = now + applied.ttl
            self.outcomes.append(applied.outcome)
        self.record, self.expires_at = written if record is None else record, expires_at
        if dropped and room is not None:
            self.error = _too_large(self.message_id, dropped, room.fields)
        return None if written is None else to_value(written, expires_at)

    def _fit(
        self,
        record: Record | None,
        update: Update,
        applied: Applied,
        now: int,
        room: SizeLimits,
        dropped: dict[str, int],
    ) -> Applied:
        """Apply an update without its largest fields, so that the document fits, and add the sizes of these fields to
        `dropped`.  With `whole`, refuse the update instead.
        """
        large = too_large(record, update, applied.record or {}, now, room)
        if large and self.whole:
            dropped.update(large)
            return Applied(Outcome.REFUSED, record)
        if large:
            applied = apply(record, without(update, large), now)
            if update.kind is not Kind.ENQUEUE and applied.record is not None:
                # The stored older value of a field that is left out is removed: a reader would take it for the newest
                # value.
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


D = TypeVar("D", bound=PendingDocument)


def by_message(updates: Iterable[tuple[str, Update]], make: Callable[[str], D]) -> Collection[D]:
    """Group the updates of a call by their messages.

    Parameters:
      updates(Iterable[tuple[str, Update]])
      make(Callable): Makes the empty document of a message id.
    """
    documents: dict[str, D] = {}
    for index, (message_id, update) in enumerate(updates):
        document = documents.get(message_id)
        if document is None:
            document = documents[message_id] = make(message_id)
        document.indexes.append(index)
        document.updates.append(update)
    return documents.values()


class SizeLimits(NamedTuple):
    """Maximum sizes of a document, in bytes.

    Parameters:
      fields: After an update that writes large fields.
      short: After an update that writes short fields.
      all: After an update of the library's own fields.
    """

    fields: int
    short: int
    all: int


def too_large(record: Record | None, update: Update, new: Record, now: int, room: SizeLimits) -> dict[str, int]:
    """Choose the fields of an update that have to be left out.  The largest ones are chosen first.

    Parameters:
      record(Record | None): The record before the update.
      update(Update): The update.
      new(Record): The record after the update, with all fields.
      now(int): The current time, in epoch milliseconds.
      room(SizeLimits): Maximum sizes of the document.

    Returns:
      dict[str, int]: Stored names and sizes in bytes.
    """
    size = len(to_value(new, now))
    # An enqueue sets only fields that an existing record lacks.
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
    """Return an update without some of its fields."""
    return update._replace(fields={name: text for name, text in update.fields.items() if name not in names})


def truncated_of(record: Record) -> list[str]:
    """Return the stored names of a record's dropped fields."""
    try:
        return [str(name) for name in json.loads(record[TRUNCATED])]
    except (TypeError, ValueError, KeyError):
        return []


def note_truncated(record: Record, update: Update, dropped: Collection[str]) -> None:
    """Update the list of dropped fields in a new record: add the fields that `update` had to leave out, and remove the
    fields that it has written or cleared.
    """
    over = {*update.fields, *(CLEARED_BY_COMPLETION if update.state == COMPLETED else ())}
    names = [*[name for name in truncated_of(record) if name not in over], *dropped][:MAX_TRUNCATED]
    while len(text := json.dumps(names, separators=(",", ":"))) > MAX_TRUNCATED_SIZE:
        names.pop()
    record.pop(TRUNCATED, None)
    if names:
        record[TRUNCATED] = text


def public_name(stored: str) -> str:
    """Return the public name of a stored field."""
    return stored[len(USER_PREFIX) :] if stored.startswith(USER_PREFIX) else _NAMES.get(stored, stored)


def room_in(limit: int) -> int:
    """Return the size of the part of a document that all fields may use, in bytes."""
    return limit - limit // RESERVED_PART


def counts_twice(update: Update) -> bool:
    """Return whether an update that arrives twice would count twice.  An increment from outside of a run counts
    twice, because it has no sequence number.
    """
    return bool(update.increment or update.changes) and update.kind is _OUTSIDE


def to_value(record: Record, expires_at: int) -> bytes:
    """Encode a record and the time at which it expires."""
    return f"{expires_at}\n{to_document(record)}".encode()


def from_value(value: bytes, ttl: int | None, now: int) -> tuple[Record | None, int]:
    """Decode a value.

    Parameters:
      value(bytes): A value of :func:`to_value`, or of another program.
      ttl(int | None): Seconds until the server expires the item, None where it is unknown.
      now(int): The current time, in epoch milliseconds.

    Returns:
      tuple[Record | None, int]: The record, None if it is expired or damaged; and the time at which it expires, by the
      clock of this host.
    """
    lines, expires_at = split_value(value, ttl, now)
    return None if lines is None else from_pairs(lines[2:]), expires_at


def split_value(value: bytes, ttl: int | None, now: int) -> tuple[list[str] | None, int]:
    """Split a value into lines, see :func:`from_value`.  Behind the first two lines, stored names and JSON texts
    alternate.
    """
    try:
        lines = value.decode().split("\n")
    except ValueError:
        return None, 0
    # A number of thousands of digits becomes 0: Python refuses to convert it.
    expires_at = whole_number_in(lines[0], 0)
    if ttl is not None:
        # The value contains milliseconds by the clock of the host that wrote it.  The server counts seconds, by one
        # clock for all hosts.
        most = now + ttl * 1000
        if expires_at > most:
            expires_at = most
        elif expires_at < most - 3000:
            expires_at = most - 3000
    if expires_at <= now or len(lines) & 1 or lines[1] != DOCUMENT_MARK:
        return None, expires_at
    return lines, expires_at


def _too_large(message_id: str, dropped: dict[str, int], limit: int) -> ValueError:
    sizes = ", ".join(
        f"{public_name(name)!r} with {size}" for name, size in sorted(dropped.items(), key=lambda item: -item[1])[:10]
    )
    more = f" and {len(dropped) - 10} more" if len(dropped) > 10 else ""
    return ValueError(
        f"These fields of message {message_id!r} do not fit into an item of this memcached, which has {limit} bytes "
        f"for a status: {sizes}{more}. Store them elsewhere and write a reference, or raise the server's item size "
        f"limit (-I)."
    )
