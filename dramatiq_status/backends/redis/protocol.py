"""Calls of the update script: their arguments and replies, as ``lua/update/head.lua`` describes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Final

from ...cancel_log import mark_of, text_of
from ...record import ACTOR_NAME, QUEUE_NAME, Record, number_text
from ...transitions import check_request
from ...update import Changes, Kind, Outcome, Update
from .clock import ServerClock
from .keys import Keys
from .requests import ScriptCall, pack_texts
from .script import UPDATE


class WireKind:
    """Kinds of updates on the wire.  ``head.lua`` has the same names and numbers, and the arguments of each kind."""

    ENQUEUE: Final = "0"
    TRANSITION: Final = "1"
    OUTSIDE: Final = "2"
    HEARTBEAT: Final = "3"
    WRITE: Final = "4"
    OUTSIDE_STATE: Final = "5"
    DELETE: Final = "6"
    CHANGES: Final = "7"
    CANCEL: Final = "8"
    WITHDRAWAL: Final = "9"


#: Number that the script adds to the outcome of an update whose message it could not add to the index.
UNLISTED: Final = 20

#: Outcomes by the numbers that the script returns.
OUTCOMES: Final = {outcome.value + more: outcome for outcome in Outcome for more in (0, UNLISTED)}

# Reading an attribute of an Enum takes five times as long as reading a global.
_RUN: Final = Kind.RUN
_ENQUEUE: Final = Kind.ENQUEUE
_OUTSIDE: Final = Kind.OUTSIDE

Updates = Sequence[tuple[str, Update]]


def _packed(text: str) -> str:
    return f"\r\n${len(text)}\r\n{text}"


# Parts of packed calls.  Each part except the first begins with the CR and LF that end the part before it.  To look a
# part up takes a fifth of the time of formatting it.

#: Sizes of texts.
_SIZES: Final = [f"\r\n${size}\r\n" for size in range(1024)]

#: Whole numbers.
_NUMBERS: Final = [_packed(str(number)) for number in range(256)]

#: Beginnings of calls with one key, by the number of their words.
_CALLS: Final = [f"*{size}{_packed('EVALSHA')}{_packed(UPDATE.sha)}{_packed('1')}" for size in range(256)]

_ENQUEUE_KIND: Final = _packed(WireKind.ENQUEUE)
_TRANSITION_KIND: Final = _packed(WireKind.TRANSITION)
_OUTSIDE_KIND: Final = _packed(WireKind.OUTSIDE)

#: Arguments of a run that has one update, by its new state: sequence number, start, creation, state, attempts and
#: increment.
_WHOLE_RUNS: Final = ["".join(map(_packed, ("1", "1", "0", state, "1", "0"))) for state in "0123"]


class UpdateCall(ScriptCall):
    """A call that applies updates of messages of one shard.

    Parameters:
      keys(Keys)
      shard(int)
      updates(Sequence[tuple[str, Update]]): Message ids and updates.
      positions(Sequence[int]): Positions of the updates among all updates of the operation.
    """

    script = UPDATE

    def __init__(self, keys: Keys, shard: int, updates: Updates, positions: Sequence[int]) -> None:
        prefix = keys.prefixes[shard]
        self.shard = shard
        # Most calls have one update.
        self.keys: Sequence[str] = (
            (prefix + updates[0][0],) if len(updates) == 1 else [prefix + message_id for message_id, _ in updates]
        )
        self.updates = updates
        self.positions = positions
        self._names = keys

    @property
    def repeatable(self) -> bool:  # type: ignore[override]
        # An increment from outside of a run has no sequence number by which the script could recognize its repetition.
        outside = [update for _, update in self.updates if update.kind is Kind.OUTSIDE]
        return not any(update.increment or update.changes for update in outside)

    def pack(self, clock: ServerClock) -> bytes:
        if len(self.updates) == 1 and not self.arriving:
            packed = _pack_short(self.keys[0], self.updates[0][1], clock, self._names.packed_indexes[self.shard])
            if packed is not None:
                return packed
        # Texts need no conversion, which would take a third of the time.
        return pack_texts(("EVALSHA", self.script.sha, str(len(self.keys)), *self.keys, *self.arguments(clock)))

    def arguments(self, clock: ServerClock) -> list[str]:
        now, position = clock.texts()
        arguments = [now]
        may_move = False
        for message_id, update in self.updates:
            kind, enqueue_id, run_token, sequence, start, create, state, attempts, fields, by, ttl, changes = update
            added = number_text(by) if by else "0"
            state_text = "" if state is None else str(state)
            is_renamed = renames(fields)
            if changes is not None:
                arguments += _change_arguments(changes)
            if kind is _RUN:
                if start or create or state is not None or changes is not None or is_renamed:
                    may_move = True
                    origin, generation = enqueue_id
                    arguments += (WireKind.TRANSITION, str(origin), str(generation), str(run_token), str(sequence))
                    arguments += ("1" if start else "0", "1" if create else "0", state_text, str(attempts), added)
                    arguments.append(str(ttl))
                else:
                    arguments += (WireKind.WRITE, str(run_token), str(sequence), added)
            elif kind is _OUTSIDE:
                if state is None and changes is None and not is_renamed:
                    arguments += (WireKind.OUTSIDE, added)
                else:
                    may_move = True
                    arguments += (WireKind.OUTSIDE_STATE, state_text, added, str(ttl))
            elif kind is _ENQUEUE:
                may_move = True
                arguments += (WireKind.ENQUEUE, str(enqueue_id.origin), str(enqueue_id.generation))
            elif kind is Kind.CANCEL:
                check_request(fields)
                may_move = True
                log = "" if self.arriving else self._names.cancels[self.shard]
                arguments += (WireKind.CANCEL, log, text_of(mark_of(message_id)))
            elif kind is Kind.WITHDRAWAL:
                may_move = True
                arguments += (WireKind.WITHDRAWAL, str(enqueue_id.origin), str(enqueue_id.generation))
            else:
                arguments += (WireKind.HEARTBEAT, str(run_token))
            arguments.append(str(len(fields)))
            arguments += chain.from_iterable(fields.items())
        if may_move:
            arguments += (position, *self._names.index_arguments(self.shard, self.arriving))
        return arguments

    def split(self) -> Sequence[UpdateCall]:
        found: dict[str, list[int]] = {}
        for index, (message_id, _) in enumerate(self.updates):
            found.setdefault(message_id, []).append(index)
        return (self,) if len(found) == 1 else [self._part(indexes) for indexes in found.values()]

    def _part(self, indexes: Iterable[int]) -> UpdateCall:
        pairs = [(self.updates[index], self.positions[index]) for index in indexes]
        return type(self)(self._names, self.shard, [update for update, _ in pairs], [position for _, position in pairs])


class DeleteCall(ScriptCall):
    """A call that deletes a record.

    Parameters:
      keys(Keys)
      message_id(str)
    """

    script = UPDATE

    def __init__(self, keys: Keys, message_id: str) -> None:
        shard = keys.shard_of(message_id)
        super().__init__(shard, [keys.prefixes[shard] + message_id])
        self._names = keys

    def arguments(self, clock: ServerClock) -> list[Any]:
        return ["", WireKind.DELETE, "0", "", *self._names.index_arguments(self.shard, self.arriving)]


def renames(fields: Record) -> bool:
    """Return whether an update sets the actor or the queue of a message, so that the script may move the message in the
    index.
    """
    return ACTOR_NAME in fields or QUEUE_NAME in fields


def _pack_short(key: str, update: Update, clock: ServerClock, index: str) -> bytes | None:
    """Pack a call for an enqueue, for the start and the end of a run in one update, or for fields and an increment from
    outside of a run.  Return None for other updates, and for texts that are long or other than ASCII.

    A short job has only the first two of these updates, and a handle outside of a worker mostly sends the third.  To
    list the arguments of the first two updates and to pack them with hiredis takes twice as long.
    """
    kind, (origin, generation), run_token, sequence, start, create, state, attempts, fields, by, ttl, changes = update
    try:
        if kind is _ENQUEUE:
            o = str(origin)
            size, own = 13, [_ENQUEUE_KIND, _SIZES[len(o)], o, _NUMBERS[generation]]
        elif start and state is not None and sequence == attempts == 1 and not (create or by or changes):
            o, r, t = str(origin), str(run_token), str(ttl)
            size, own = 21, [_TRANSITION_KIND, _SIZES[len(o)], o, _NUMBERS[generation], _SIZES[len(r)], r]
            own += (_WHOLE_RUNS[state], _SIZES[len(t)], t)
        elif kind is _OUTSIDE and state is None and changes is None and not renames(fields):
            added = number_text(by) if by else "0"
            size, own, index = 8, [_OUTSIDE_KIND, _SIZES[len(added)], added], ""
        else:
            return None
        now, position = clock.texts()
        parts = [_CALLS[size + 2 * len(fields)], _SIZES[len(key)], key, _SIZES[len(now)], now, *own]
        parts.append(_NUMBERS[len(fields)])
        for name, text in fields.items():
            # To add the four texts as one tuple takes longer.
            parts.append(_SIZES[len(name)])
            parts.append(name)
            parts.append(_SIZES[len(text)])
            parts.append(text)
        if index:
            parts += (_SIZES[len(position)], position, index)
    except IndexError:
        return None
    parts.append("\r\n")
    call = "".join(parts)
    return call.encode() if call.isascii() else None


def _change_arguments(changes: Changes) -> list[str]:
    """Make the arguments of the changes of an update.  They come before the other arguments of the update."""
    arguments: list[str] = [WireKind.CHANGES, "1" if changes.to_total else "0"]
    arguments += (str(len(changes.deleted)), *changes.deleted, str(len(changes.counts)))
    for name, n in changes.counts.items():
        arguments += (name, number_text(n))
    return arguments
