"""The operations of the Redis backend, as generators that yield requests.

A generator yields requests, gets them back with their replies, and returns the result of the operation.  So the same
code serves threads and event loops, and single servers and clusters: a single server is a cluster with one shard.

No generator has a ``try`` around a ``yield``.  An interrupt leaves the generator at its ``yield``, and Python drops it
there.  The drop would execute an ``except`` or a ``finally``, and Python would ignore another interrupt there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from ...backend import Listed, Query, answered
from ...cancel_log import is_mark
from ...cursor import Cursor
from ...decoding import take_texts
from ...errors import BackendError, StoreRefused
from ...record import ACTOR_NAME, QUEUE_NAME, STATE, Record, from_pairs
from ...snapshot import Snapshot
from ...update import Outcome, Update
from .._query import wanted_by
from .clock import ServerClock
from .keys import Keys, ListMode
from .protocol import OUTCOMES, UNLISTED, DeleteCall, UpdateCall, Updates
from .relisting import relist
from .requests import Command, ReadRequest, Request, ScriptCall, refusal_of
from .script import LIST
from .transport import Steps, Transport

FoundT = TypeVar("FoundT")

#: Maximum number of updates of one script call.  A server does nothing else while it executes a script; this many
#: updates take it about a millisecond.
UPDATES_PER_CALL: Final = 128

#: Maximum number of records that are read together.
READS_PER_CALL: Final = 2000

#: Maximum number of entries of the log of cancelled messages that are read together.
LOG_ENTRIES_PER_CALL: Final = 10_000

#: Maximum number of calls to one shard for a list of its messages; a page needs one or two lists.  All calls except
#: the last one only remove expired messages from the index.
CALLS_PER_PAGE: Final = 64

#: Number of messages that are requested from a shard in addition to twice its share of a page.
_EXTRA_MESSAGES: Final = 6

#: The script's arguments in place of a cursor, for the first page.
_NEWEST: Final = ("", "")


class ListCall(ScriptCall):
    """A call of the script that lists and counts messages of one shard.

    Parameters:
      keys(Keys)
      shard(int)
      wanted(Record): State, queue and actor of the messages to list; one that is missing stands for all.
      *arguments: The script's ``ARGV[4]`` to ``ARGV[6]``.
    """

    script = LIST

    def __init__(self, keys: Keys, shard: int, wanted: Record, *arguments: Any) -> None:
        super().__init__(shard, [keys.indexes[shard]])
        filters = (wanted.get(STATE, ""), wanted.get(QUEUE_NAME, ""), wanted.get(ACTOR_NAME, ""))
        self._arguments = (*filters, *arguments, keys.prefixes[shard])
        self._mode = keys.list_mode

    def arguments(self, clock: ServerClock) -> Sequence[Any]:
        return (*self._arguments, ListMode.ARRIVING if self.arriving else self._mode)


class Operations:
    """The operations on the statuses of a namespace.

    Parameters:
      keys(Keys)
      transport(Transport): Has the clock of the servers, and checks whether they are down.  The code that runs an
        operation may send its requests in another way, as an event loop does.
      update_call(type[UpdateCall])
    """

    def __init__(self, keys: Keys, transport: Transport, update_call: type[UpdateCall] = UpdateCall) -> None:
        self.keys = keys
        self._transport = transport
        self._update_call = update_call

    @property
    def clock(self) -> ServerClock:
        """The clock of the servers."""
        return self._transport.clock

    # Writing

    def requests_of(self, updates: Updates) -> Sequence[UpdateCall]:
        """Make the requests of updates, for a server that has all messages in one shard."""
        return [self._update_call(self.keys, 0, updates, range(len(updates)))] if updates else []

    def update(self, message_id: str, update: Update, *, lenient: bool = False) -> Steps[Outcome]:
        """Carry out one update.

        Parameters:
          message_id(str)
          update(Update)
          lenient(bool): Whether to return ``Outcome.UNAVAILABLE`` if only the node of the message does not answer.
        """
        call = self.call_of(message_id, update)
        yield (call,)
        return (yield from self.complete(call, lenient=lenient))

    def call_of(self, message_id: str, update: Update) -> UpdateCall:
        """Make the request of one update."""
        keys = self.keys
        return self._update_call(keys, keys.shard_of(message_id), ((message_id, update),), (0,))

    def complete(self, call: UpdateCall, *, lenient: bool = False) -> Steps[Outcome]:
        """Return the outcome of one update after its request.  Add the message to the index if the script could
        not add it.
        """
        failure = call.error
        if failure is not None:
            if lenient and not isinstance(failure, StoreRefused) and not self._transport.is_down(failure):
                return Outcome.UNAVAILABLE
            raise failure
        number = call.replies[0][0]
        if number >= UNLISTED or call.arriving:
            yield from self._relist((call,))
        return OUTCOMES[number]

    def update_many(self, updates: Updates) -> Steps[list[Outcome]]:
        """Carry out updates.  The updates of each message keep their order."""
        if len(updates) == 1:
            # This takes half of the time that the code below takes.
            return [(yield from self.update(*updates[0], lenient=True))]
        outcomes = [Outcome.UNAVAILABLE] * len(updates)
        failures: list[BackendError] = []
        waiting = self.keys.group([message_id for message_id, _ in updates])
        # Each shard has one call under way.  If its slot were moving, a second call could overtake the first.
        while calls := [self._call(shard, updates, positions) for shard, positions in waiting.items()]:
            rest = {shard: positions[UPDATES_PER_CALL:] for shard, positions in waiting.items()}
            failed = yield from self._settle((yield calls), outcomes)
            failures += failed.values()
            waiting = {shard: positions for shard, positions in rest.items() if positions and shard not in failed}
        if failures:
            yield from self._complete(updates, outcomes, failures)
        return outcomes

    def _call(self, shard: int, updates: Updates, positions: Sequence[int]) -> UpdateCall:
        positions = positions[:UPDATES_PER_CALL]
        if len(positions) < len(updates):
            updates = [updates[position] for position in positions]
        return self._update_call(self.keys, shard, updates, positions)

    def _settle(self, calls: Iterable[UpdateCall], outcomes: list[Outcome]) -> Steps[dict[int, BackendError]]:
        """Note the outcomes of calls, and return the errors of calls that have failed, by shard."""
        failed: dict[int, BackendError] = {}
        incomplete = []
        for call in calls:
            if call.error is not None:
                failed[call.shard] = call.error
                continue
            numbers = call.replies[0]
            for position, number in zip(call.positions, numbers):
                outcomes[position] = OUTCOMES[number]
            if call.arriving or max(numbers) >= UNLISTED:
                incomplete.append(call)
        if incomplete:
            yield from self._relist(incomplete)
        return failed

    def _complete(self, updates: Updates, outcomes: list[Outcome], failures: Sequence[BackendError]) -> Steps[None]:
        """Complete the outcomes after calls have failed.

        Raises:
          BackendError: When all calls have failed, because no server answers or a server has refused one of the calls.
        """
        refusal = next((failure for failure in failures if isinstance(failure, StoreRefused)), None)
        if outcomes.count(Outcome.UNAVAILABLE) == len(outcomes):
            if refusal is not None or self._transport.is_down(failures[0]):
                raise refusal or failures[0]
        elif refusal is not None:
            # The server refuses a whole call because of one of its messages. Send the updates without an outcome one by
            # one, to find that message.
            for position in [position for position, found in enumerate(outcomes) if found is Outcome.UNAVAILABLE]:
                call = self._call(self.keys.shard_of(updates[position][0]), updates, (position,))
                failed = yield from self._settle((yield (call,)), outcomes)
                if isinstance(failed.get(call.shard), StoreRefused):
                    outcomes[position] = Outcome.UNSTORABLE

    def _relist(self, calls: Iterable[UpdateCall]) -> Steps[None]:
        if self.keys.max_listed:
            yield from relist(self.keys, self._transport, calls)

    def delete(self, message_id: str) -> Steps[bool]:
        """Delete a record, and return whether there was one."""
        call = DeleteCall(self.keys, message_id)
        yield (call,)
        return OUTCOMES[call.result()[0]] is Outcome.APPLIED

    # Reading

    def read_many(self, message_ids: Sequence[str]) -> Steps[list[Record | BackendError | None]]:
        """Read records."""
        replies = yield from self._read(message_ids)
        return raise_if_all([to_record(reply) for reply in replies])

    def snapshot(self, message_id: str) -> Steps[Snapshot | None]:
        """Read one record and decode it."""
        keys = self.keys
        shard = keys.shard_of(message_id)
        reads = ReadRequest(shard, (keys.prefixes[shard] + message_id,), (0,))
        yield (reads,)
        if reads.error is not None:
            # On a cluster, this call renews the map of the nodes, for the next operation.
            self._transport.is_down(reads.error)
            raise reads.error
        reply = reads.replies[0]
        if reply and reply.__class__ is list:
            return take_texts(message_id, reply[::2], reply[1::2], self._transport.clock.now())
        return answered(absence(reply))

    def snapshots(self, message_ids: Sequence[str]) -> Steps[list[Snapshot | BackendError | None]]:
        """Read records and decode them."""
        replies = yield from self._read(message_ids)
        now = self._transport.clock.now()
        return raise_if_all(
            [
                take_texts(message_id, reply[::2], reply[1::2], now)
                if reply and reply.__class__ is list
                else absence(reply)
                for message_id, reply in zip(message_ids, replies)
            ]
        )

    def _read(self, message_ids: Sequence[str]) -> Steps[list[Any]]:
        """Read records, and return for each of them its names and texts in turn, nothing, or an error."""
        found: list[Any] = []
        for first in range(0, len(message_ids), READS_PER_CALL):
            ids = message_ids[first : first + READS_PER_CALL]
            replies: list[Any] = [None] * len(ids)
            failure, answered = None, False
            for reads in (yield self._reads(ids)):
                if reads.error is None:
                    answered = True
                    for position, reply in zip(reads.positions, reads.replies):
                        replies[position] = reply
                else:
                    failure = reads.error
                    for position in reads.positions:
                        replies[position] = failure
            if failure is not None and not answered and self._transport.is_down(failure):
                raise failure
            found += replies
        return found

    def _reads(self, ids: Sequence[str]) -> list[ReadRequest]:
        groups, prefixes = self.keys.group(ids), self.keys.prefixes
        return [
            ReadRequest(shard, [prefixes[shard] + ids[position] for position in positions], positions)
            for shard, positions in groups.items()
        ]

    def read_cancels(self, position: Mapping[int, str]) -> Steps[tuple[dict[int, str], list[int]]]:
        """Read the log of cancelled messages.

        Parameters:
          position(Mapping[int, str]): By shard, the id of the last entry that was read.
        """
        found, marks = dict(position), []
        shards: Sequence[int] = self.keys.shards
        while shards:
            begins = [f"({found[shard]}" if shard in found else "-" for shard in shards]
            calls = yield [
                Command(shard, "XRANGE", self.keys.cancels[shard], begin, "+", "COUNT", LOG_ENTRIES_PER_CALL)
                for shard, begin in zip(shards, begins)
            ]
            errors = [call.error for call in calls if call.error is not None]
            if len(errors) == len(calls):
                self._transport.is_down(errors[0])
                raise errors[0]
            shards = []
            for call in calls:
                if call.error is None and call.reply:
                    found[call.shard] = call.reply[-1][0]
                    # Another program may have added other entries.
                    marks += [int(texts[1], 16) for _, texts in call.reply if is_mark(texts[1])]
                    if len(call.reply) == LOG_ENTRIES_PER_CALL:
                        shards.append(call.shard)
        return found, marks

    # Listing

    def find(self, query: Query, limit: int, after: Cursor | None) -> Steps[list[Listed]]:
        """List a page of statuses."""
        wanted = wanted_by(query)
        page = yield from self._page(wanted, limit, after)
        unread = [cursor.message_id for cursor, reply in page if not reply]
        read = dict(zip(unread, (yield from self._read(unread))))
        found: list[Listed] = []
        for cursor, reply in page:
            record = answered(to_record(reply or read[cursor.message_id]))
            # The record may have changed since the script listed the message.
            is_wanted = record is not None and wanted.items() <= record.items()
            found.append(Listed(cursor.message_id, record if is_wanted else None, cursor.position))
        return found

    def _page(self, wanted: Record, limit: int, after: Cursor | None) -> Steps[list[_Entry]]:
        """Return the messages of a page.

        The first requests are for somewhat more than each shard's share: with 64 shards and a page of 50 messages, they
        are for 6 messages of each shard.  If all 6 are on the page, the shard may have more, and a second request is
        for 50.
        """
        shards = self.keys.shards
        number = min(limit, limit // len(shards) * 2 + _EXTRA_MESSAGES)
        lists = yield from self._lists(wanted, shards, number, after)
        newest = _newest(lists, limit)
        last = newest[-1][0] if len(newest) == limit else (0, "")
        full = [shard for shard, found in lists.items() if len(found) >= number and found[-1][0] > last]
        if full and number < limit:
            lists.update((yield from self._lists(wanted, full, limit, after)))
            newest = _newest(lists, limit)
        return newest

    def _lists(
        self, wanted: Record, shards: Sequence[int], limit: int, after: Cursor | None
    ) -> Steps[dict[int, list[_Entry]]]:
        """Return, by shard, the newest messages that come after a cursor."""
        lists = {}
        for _ in range(CALLS_PER_PAGE):
            unfinished = []
            for call in (yield from self._call_list(wanted, shards, limit, *(after or _NEWEST))):
                more, page = call.reply
                lists[call.shard] = [(Cursor(int(position), message_id), reply) for position, message_id, reply in page]
                if more:
                    unfinished.append(call.shard)
            shards = unfinished
            if not shards:
                break
        return lists

    def count(self, query: Query) -> Steps[int]:
        """Count statuses."""
        calls = yield from self._call_list(wanted_by(query), self.keys.shards, 0, self.keys.checked, "")
        return sum(call.reply for call in calls)

    def _call_list(self, wanted: Record, shards: Sequence[int], *arguments: Any) -> Steps[Sequence[Request]]:
        """Call the list script for each of these shards.

        Raises:
          BackendError: When a shard does not answer, or its slot is moving: a list without its messages would look
            complete.
        """
        calls = yield [ListCall(self.keys, shard, wanted, *arguments) for shard in shards]
        for call in calls:
            call.result()
        return calls


#: A message of a page, and the names and texts of its record in turn; no texts if the record has to be read.
_Entry = tuple[Cursor, Sequence[str]]


def _newest(lists: Mapping[int, Iterable[_Entry]], number: int) -> list[_Entry]:
    return sorted((entry for found in lists.values() for entry in found), reverse=True)[:number]


def to_record(reply: Any) -> Record | BackendError | None:
    """Decode the reply to ``HGETALL``."""
    return from_pairs(reply) if reply and reply.__class__ is list else absence(reply)


def absence(reply: Any) -> BackendError | None:
    """Return the meaning of a reply without a record.

    Returns:
      BackendError: When the server could not read the record; None when the message is unknown, or when another program
        has stored a value of another type under its key.
    """
    if isinstance(reply, BackendError):
        return reply
    if not isinstance(reply, Exception) or str(reply).startswith("WRONGTYPE"):
        return None
    return refusal_of(reply)


def raise_if_all(found: list[FoundT]) -> list[FoundT]:
    """Raise the first error if all items are errors; otherwise return the items."""
    # Usually the last item is no error, so the check ends after one comparison.
    if found and isinstance(found[-1], BackendError) and all(isinstance(one, BackendError) for one in found):
        raise found[0]  # type: ignore[misc]
    return found
