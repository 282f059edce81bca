"""What an item of memcached holds, and what updates make of it.  Pure."""

from __future__ import annotations

from typing import Final, NamedTuple
from zlib import crc32

from ..record import (
    ARGS,
    DOCUMENT_MARK,
    EXCEPTION,
    KWARGS,
    SCHEDULED_AT,
    TRACEBACK,
    USER_PREFIX,
    Applied,
    Kind,
    Outcome,
    Record,
    Update,
    apply,
    from_pairs,
    to_document,
)

#: Which part of an item is kept free for what the library itself has to
#: store, and the longest field that is stored there, in bytes.
RESERVED_PART: Final = 64
SHORT_FIELD: Final = 512

#: The most seconds that memcached takes for a span; a larger number is
#: a date to it, which is good until 2038.
MAX_SPAN: Final = 2_592_000
MAX_DATE: Final = 2**31 - 1

#: For how long a writer that is not a message's run believes that
#: nobody else has written since, in milliseconds: a wrong guess costs
#: it a third round trip, a right one saves it the first of two.
OUTSIDE_TRUST: Final = 1000

#: The largest number of a write.
MAX_CAS: Final = 2**64 - 1

#: When something expires that is not known to: far away, in epoch milliseconds.
FAR: Final = 2**53

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
    """

    def __init__(self, message_id: str, key: bytes) -> None:
        self.message_id = message_id
        self.key = key
        self.indexes: list[int] = []
        self.updates: list[Update] = []
        #: What the item holds, as far as is known.
        self.known: Known | None = None
        #: Whether `known` need not be what was read just now.
        self.may_guess = True
        #: Whether a value is on its way of which nobody knows yet if it was stored.
        self.sent = False
        self.done = False
        self.conflicts = 0
        #: The results of :meth:`work_out`.
        self.outcomes: list[Outcome] = []
        self.record: Record | None = None
        self.expires_at = 0
        self.error: ValueError | None = None

    def learn(self, known: Known) -> None:
        """Take what the server has just said for granted."""
        self.known = known
        self.may_guess = False

    def ask(self) -> None:
        """Forget what was known, so that the item is read."""
        self.known = None
        self.may_guess = False
        self.sent = False

    def work_out(self, known: Known, now: int, limit: int) -> bytes | None:
        """Apply the updates to what is known.

        What does not fit into an item is left out, and `error` tells: an
        item that is too large would not only be refused, the server
        would delete the one that is there.

        Parameters:
          known(Known): What the item holds.
          now(int): The present moment, in epoch milliseconds.
          limit(int): The largest value, in bytes.

        Returns:
          bytes | None: The value to store, None for nothing new.
        """
        value = self._apply(known, now, None)
        if value is not None and len(value) > room_in(limit):
            value = self._apply(known, now, limit)
        return value

    def _apply(self, known: Known, now: int, limit: int | None) -> bytes | None:
        record, expires_at = known.record, known.expires_at
        self.outcomes, self.error = [], None
        changed = False
        for update in self.updates:
            if expires_at <= now:
                record = None
            applied = apply(record, update, now)
            if limit is not None and applied.record is not None and applied.record is not record:
                applied = self._fit(record, update, applied, now, limit)
            if applied.record is not record:
                record, changed = applied.record, True
                if applied.ttl is not None:
                    expires_at = now + applied.ttl
            self.outcomes.append(applied.outcome)
        self.record, self.expires_at = record, expires_at
        return to_value(record, expires_at) if changed and record is not None else None

    def _fit(self, record: Record | None, update: Update, applied: Applied, now: int, limit: int) -> Applied:
        size = len(to_value(applied.record or {}, now))
        is_transition = update.start or update.state is not None or update.kind in (Kind.ENQUEUE, Kind.HEARTBEAT)
        if size <= (limit if is_transition else room_in(limit)):
            return applied
        self.error = _too_large(self.message_id, applied.record or {}, size, room_in(limit))
        if is_transition:
            # Its state is stored nevertheless: no job is shown as working
            # for ever because its result is too large.
            short = {name: text for name, text in update.fields.items() if len(text) <= SHORT_FIELD}
            applied = apply(record, update._replace(fields=short), now)
            if len(to_value(applied.record or {}, now)) <= limit:
                return applied
        return Applied(Outcome.REFUSED, record)


def room_in(limit: int) -> int:
    """How much of an item, which takes `limit` bytes, is for everybody."""
    return limit - limit // RESERVED_PART


def counts_twice(update: Update) -> bool:
    """Whether the store could not tell if it got an update twice."""
    return bool(update.increment) and update.kind is _OUTSIDE


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
        expires_at = int(lines[0])
    except ValueError:
        return None, 0
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


def to_receipt(record: Record, cas: int, now: int, server: str) -> str:
    """Write down which write of which run of a server stored a record, and when."""
    return f"{cas}-{now}-{_checksum(record):x}-{server}"


def from_receipt(enqueue: Update, receipt: str, server: str) -> Known | None:
    """Make the record anew that an enqueue has made where there was
    none; None where the receipt is not of this enqueue, or not for this
    run of this server.
    """
    try:
        cas, now, checksum, stored_on = receipt.split("-", 3)
        record = apply(None, enqueue, int(now)).record
        if record is None or stored_on != server or int(cas) > MAX_CAS or int(checksum, 16) != _checksum(record):
            return None
    except (AttributeError, ValueError):
        # It has come with a message: who knows from whom.
        return None
    # It has not expired if its cas is still there.
    return Known(record, FAR, int(cas))


def _checksum(record: Record) -> int:
    # The delay is not known to the worker any more, and no run keeps it.
    return crc32("\n".join(sorted(f"{name} {text}" for name, text in record.items() if name != SCHEDULED_AT)).encode())


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


def _too_large(message_id: str, record: Record, size: int, limit: int) -> ValueError:
    name, text = max(record.items(), key=lambda item: len(item[1]))
    name = name[len(USER_PREFIX) :] if name.startswith(USER_PREFIX) else _NAMES.get(name, name)
    return ValueError(
        f"The status of message {message_id!r} would take {size} bytes, more than the {limit} that fit into an item "
        f"of this memcached; its largest field is {name!r} with {len(text)}: store it elsewhere and write a "
        f"reference, or raise the server's item size limit (-I)."
    )
