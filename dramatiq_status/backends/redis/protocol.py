"""Arguments and replies of the update script, as ``lua/update/head.lua`` describes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from ...record import number_text
from ...update import Changes, Kind, Outcome, Update
from .script import ServerClock


class WireKind:
    """Kinds of updates on the wire.  ``head.lua`` has the same names and numbers, and the arguments of each."""

    ENQUEUE: Final = 0
    TRANSITION: Final = 1
    OUTSIDE: Final = 2
    HEARTBEAT: Final = 3
    WRITE: Final = 4
    OUTSIDE_STATE: Final = 5
    DELETE: Final = 6
    CHANGES: Final = 7


#: The script adds this number to an outcome whose message the index does not have.
UNLISTED: Final = 10

#: Outcomes by the numbers that the script returns.
OUTCOMES: Final = {outcome.value + more: outcome for outcome in Outcome for more in (0, UNLISTED)}

#: Arguments of the index: the maximum number of messages of a set, the length of the part of a key before the
#: message's id, and the prefix of the index's keys, empty for no index.
IndexArguments = tuple[int, int, str]


def update_arguments(
    updates: Iterable[tuple[str, Update]], now: str, clock: ServerClock, index: IndexArguments
) -> list[Any]:
    """Make the arguments of a call that applies updates.

    Parameters:
      updates(Iterable[tuple[str, Update]])
      now(str): The server's time in epoch milliseconds; empty where the script is to ask the server.
      clock(ServerClock): The clock of this server, for positions in the index.
      index(IndexArguments)
    """
    arguments: list[Any] = [now]
    listed = False
    for _, update in updates:
        kind, enqueue_id, run_token, sequence, start, create, state, attempts, fields, increment, ttl, changes = update
        added = number_text(increment) if increment else 0
        if changes is not None:
            arguments += _change_arguments(changes)
        if kind is Kind.RUN:
            if start or create or state is not None or changes is not None:
                listed = True
                arguments += (WireKind.TRANSITION, enqueue_id[0], enqueue_id[1], run_token, sequence, 1 if start else 0)
                arguments += (1 if create else 0, "" if state is None else state, attempts, added, ttl, len(fields))
            else:
                arguments += (WireKind.WRITE, run_token, sequence, added, len(fields))
        elif kind is Kind.OUTSIDE:
            if state is None and changes is None:
                arguments += (WireKind.OUTSIDE, added, len(fields))
            else:
                listed = True
                arguments += (WireKind.OUTSIDE_STATE, "" if state is None else state, added, ttl, len(fields))
        elif kind is Kind.ENQUEUE:
            listed = True
            arguments += (WireKind.ENQUEUE, enqueue_id[0], enqueue_id[1], len(fields))
        else:
            arguments += (WireKind.HEARTBEAT, run_token, len(fields))
        for item in fields.items():
            arguments += item
    if listed:
        arguments += (clock.moment(), *index)
    return arguments


def delete_arguments(index: IndexArguments) -> list[Any]:
    """Make the arguments of a call that deletes one message."""
    return ["", WireKind.DELETE, 0, "", *index]


def _change_arguments(changes: Changes) -> list[Any]:
    """Make the arguments before those of an update that deletes fields, or counts on them."""
    arguments: list[Any] = [WireKind.CHANGES, len(changes.deleted), *changes.deleted, len(changes.counts)]
    for name, n in changes.counts.items():
        arguments += (name, number_text(n))
    return arguments


def may_repeat(updates: Sequence[tuple[str, Update]]) -> bool:
    """Whether updates may be sent again after a call whose reply was lost.  An increment from outside has no sequence
    number by which the script would recognise its repetition.
    """
    return not any((update.increment or update.changes) and update.kind is Kind.OUTSIDE for _, update in updates)
