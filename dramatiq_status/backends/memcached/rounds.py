"""Updates of many items of one server, in rounds of requests; turns for items to which many processes write."""

from __future__ import annotations

import random
from collections.abc import Sequence
from hashlib import sha256
from typing import Final

from ..._time import monotonic
from ...backend import now_ms
from ...errors import BackendError, StoreRefused
from ...update import Kind, Outcome
from .._document import from_value
from .exchange import Steps
from .item import ABSENT, CachedItem, ItemCache, PendingItem, expiry_of
from .protocol import Connection, StoreReply

#: Maximum number of messages that are written in one round trip.  The buffers of the sockets have room for the requests
#: for this many items.  With more, the client and the server could each wait for the other to read.
WRITES_PER_ROUND_TRIP: Final = 128

#: Number of compare-and-set conflicts after which an update takes a turn before it reads again.
PATIENT_CONFLICTS: Final = 3

#: Maximum number of seconds that an update waits before it takes a turn, so that a writer with the item in its cache
#: goes first.  The cache saves that writer a round trip for each update, and a turn costs all writers some round trips.
TURN_AFTER: Final = 0.01

#: Seconds between two attempts to take a turn, at first and after :data:`TURN_AGE` seconds.  Updates that have waited
#: longest try most often.
TURN_INTERVAL: Final = 0.004
SHORT_TURN_INTERVAL: Final = 0.0005
TURN_AGE: Final = 0.1

#: Seconds after which the server ends the turn of a writer that was killed.
TURN_TTL: Final = 2

#: Part of a call's time after which an update that has only found conflicts is given up.  The second number is for
#: calls with more than one message, because the other updates wait for the end of the call.
CONTENTION: Final = 0.8
CONTENTION_BESIDE_OTHERS: Final = 0.3

# Reading an attribute of an Enum takes five times as long as reading a global.
_STORED: Final = StoreReply.STORED


class Rounds:
    """Updates by compare-and-set, in rounds, and turns for contended items.

    Parameters:
      items(ItemCache)
      turn_prefix(str): Prefix of the keys of turns.
    """

    def __init__(self, items: ItemCache, turn_prefix: str) -> None:
        self._items = items
        self._turn_prefix = turn_prefix

    def carry_out(self, connection: Connection, documents: Sequence[PendingItem]) -> Steps:
        """Carry out updates of messages of one server, in rounds.  Each round sends the next request for every message,
        and then reads all replies.
        """
        documents = [document for document in documents if not document.done]
        known = self._items.find_contended(document.message_id for document in documents)
        contended = [document for document in documents if document.message_id in known]
        others = [document for document in documents if document.message_id not in known] if known else documents
        for first in range(0, len(others), WRITES_PER_ROUND_TRIP):
            if first:
                connection.renew()
            active = others[first : first + WRITES_PER_ROUND_TRIP]
            while active:
                yield from self._round(connection, active)
                # The other messages do not wait for messages to which other processes keep writing.
                contended += [found for found in active if found.conflicts >= PATIENT_CONFLICTS and not found.done]
                active = [found for found in active if not found.done and found.conflicts < PATIENT_CONFLICTS]
        if contended:
            patience = CONTENTION if len(documents) == 1 else CONTENTION_BESIDE_OTHERS
            yield from self._update_in_turns(connection, contended, patience * connection.timeout)

    # Turns

    def _update_in_turns(self, connection: Connection, documents: list[PendingItem], patience: float) -> Steps:
        """Carry out updates of messages to which other processes keep writing.

        A writer that has cached an item is always faster than one that reads it first.  If many writers read an item
        and then write it, all except one have to read it again.  So the processes take turns.  A process that has the
        turn changes the cas before it reads.  Then the writer that has cached the item has to read it as well, and
        waits for a turn of its own.
        """
        began = monotonic()
        give_up_at = began + patience
        for document in documents:
            # Without meta commands, no writer caches an item, so the update does not wait.
            document.retry_at = began + (random.uniform(0.5, 1.0) * TURN_AFTER if connection.meta else 0.0)
            # The process that has the turn may have been killed, so later the update needs no turn.
            document.turn_until = began + patience / 2
        while documents:
            now = monotonic()
            ready = [document for document in documents if document.item is not None or document.retry_at <= now]
            if now > give_up_at and not any(document.item is not None for document in ready):
                break
            if not ready:
                # An update waits before it reads, and never afterwards, because an item is soon out of date.
                yield min(document.retry_at for document in documents)
                continue
            yield from self._take_turns(connection, [found for found in ready if found.needs_turn(now)], now - began)
            ready = [document for document in ready if not document.needs_turn(now)]
            if ready:
                yield from self._round(connection, ready[:WRITES_PER_ROUND_TRIP])
            self._end_turns(connection, [document for document in documents if document.done])
            documents = [document for document in documents if not document.done]
        for document in documents:
            message = f"Other processes kept writing to the status of message {document.message_id!r}."
            document.fail(Outcome.UNAVAILABLE, BackendError(message))
        self._end_turns(connection, documents)

    def _take_turns(self, connection: Connection, documents: list[PendingItem], waited: float) -> Steps:
        if not documents:
            return
        connection.send(b"".join([b"add %b 0 %d 0\r\n\r\n" % (self._turn_of(found), TURN_TTL) for found in documents]))
        yield None
        interval = max(TURN_INTERVAL * (1 - waited / TURN_AGE), SHORT_TURN_INTERVAL)
        for document in documents:
            document.has_turn = connection.read_stored()[0] is _STORED
            if not document.has_turn:
                document.retry_at = monotonic() + random.uniform(0.5, 1.5) * interval

    def _end_turns(self, connection: Connection, documents: list[PendingItem]) -> None:
        for document in documents:
            self._items.note_contention(document.message_id)
        turns = [self._turn_of(document) for document in documents if document.has_turn]
        if turns:
            connection.send(b"".join([b"delete %b noreply\r\n" % turn for turn in turns]))

    def _turn_of(self, document: PendingItem) -> bytes:
        return f"{self._turn_prefix}{sha256(document.key).hexdigest()[:16]}".encode()

    # Rounds

    def _round(self, connection: Connection, documents: list[PendingItem]) -> Steps:
        now = now_ms()
        writes, reads, requests = [], [], []
        for document in documents:
            item = document.item or self._assumed_item(document, connection, now)
            value = None if item is None else document.apply_to(item, now, connection.max_value_size)
            if item is not None and value is not None:
                writes.append((document, len(value)))
                requests.append(connection.store(document.key, value, expiry_of(document.expires_at, now), item.cas))
                document.sent = True
            elif item is not None and not document.may_guess:
                # The item was just read, and the updates do not change it.
                document.done = True
            else:
                document.reread()
                reads.append(document)
        # The long requests with short replies come first.  In the opposite order, the client and the server could each
        # wait for the other to read.
        touched = [document.conflicts >= PATIENT_CONFLICTS or document.has_turn for document in reads]
        for document, touch in zip(reads, touched):
            requests.append((connection.touch(document.key) if touch else b"") + connection.get(document.key))
        if requests:
            connection.send(b"".join(requests))
            yield None
        for document, size in writes:
            self._receive_stored(connection, document, size, now)
        for document, touch in zip(reads, touched):
            if touch:
                connection.read_touched()
            found = connection.read_item()
            item = ABSENT if found is None else CachedItem(*from_value(found.value, found.ttl, now), found.cas)
            document.receive(item)

    def _receive_stored(self, connection: Connection, document: PendingItem, size: int, now: int) -> None:
        """Read the reply to a value that was sent."""
        stored, cas = connection.read_stored()
        document.sent = False
        if stored is _STORED:
            document.done = True
            if document.error is None and document.is_worth_caching(cas):
                item = CachedItem(document.record, document.expires_at, cas, connection.server, now)
                self._items.put(document.message_id, item, size)
        elif stored is StoreReply.GONE:
            document.receive(ABSENT)
        elif stored is StoreReply.REFUSED:
            if document.refused or document.whole:
                message = f"The server has no memory for the status of message {document.message_id!r}, {size} bytes."
                document.fail(Outcome.UNSTORABLE, StoreRefused(message))
            # The server may have memory for a smaller value.
            document.refused = True
            document.reread()
        else:
            document.conflicts += 1
            document.reread()

    def _assumed_item(self, document: PendingItem, connection: Connection, now: int) -> CachedItem | None:
        """Return the cached item of a message, or :data:`.ABSENT` for a new message.  Return None if the item has to be
        read.

        A wrong guess does no harm, because the server then stores nothing.
        """
        if not document.may_guess:
            return None
        update = document.updates[0]
        item = self._items.take(document.message_id)
        if item is not None and item.serves(update, connection.server, now):
            return item
        return ABSENT if update.kind is Kind.ENQUEUE and update.enqueue_id.generation <= 1 else None
