"""Additions of messages that the script could not add to the index, because their slot was moving.

An update that changes the actor or the queue of a message, and not its state, keeps the position of the message in
lists.  This module gives the message a new position instead.  Only code that calls a backend itself can send such an
update.  The middleware sends the actor and the queue with enqueues, and with updates that create a record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from ...update import Kind, Outcome, Update, is_stored
from .keys import Keys
from .protocol import OUTCOMES, UNLISTED, UpdateCall, renames
from .requests import Command, Request
from .script import INDEX
from .transport import Steps, Transport

#: Maximum number of times that a message is added to the index while its state goes on changing.
_LISTINGS: Final = 4


def relist(keys: Keys, transport: Transport, calls: Iterable[UpdateCall]) -> Steps[None]:
    """Add to the index the messages that the script could not add, key by key.

    If a request fails, lists lack the message.
    """
    unlisted = _unlisted_by(calls)
    listed: dict[str, str] = {}
    for _ in range(_LISTINGS):
        if not unlisted:
            return
        # A state may change after it was read, and another process may add the message first.
        unlisted = yield from _list_changed(keys, transport, unlisted, listed)


def _unlisted_by(calls: Iterable[UpdateCall]) -> dict[str, bool]:
    """Return the messages that calls did not add to the index, and for each whether it keeps its position."""
    unlisted: dict[str, bool] = {}
    for call in calls:
        for (message_id, update), number in zip(call.updates, call.reply):
            outcome = OUTCOMES[number]
            if number >= UNLISTED or (call.arriving and _may_move(update, outcome)):
                unlisted[message_id] = outcome is Outcome.LATE and unlisted.get(message_id, True)
    return unlisted


def _may_move(update: Update, outcome: Outcome) -> bool:
    """Return whether an update may have changed the set or the position of its message in the index."""
    if outcome is Outcome.LATE:
        return renames(update.fields)
    if update.kind is Kind.CANCEL:
        # A running message stays in its set.
        return outcome is Outcome.APPLIED
    if outcome is Outcome.CANCELLED:
        # The message was dropped, so its record has another time to live.
        return update.state is not None
    moves = update.kind is Kind.ENQUEUE or update.start or update.create or update.state is not None
    return (moves or renames(update.fields)) and is_stored(outcome)


def _list_changed(
    keys: Keys, transport: Transport, unlisted: Mapping[str, bool], listed: dict[str, str]
) -> Steps[dict[str, bool]]:
    """Add each message that belongs in another set than the one to which it was added.

    Parameters:
      keys(Keys)
      transport(Transport)
      unlisted(Mapping[str, bool]): Messages, and whether each keeps its position.
      listed(dict[str, str]): Sets to which the messages were added; this function updates it.

    Returns:
      dict[str, bool]: Messages that this call has added.
    """

    def command(message_id: str, name: str, *arguments: str) -> Command:
        return Command(keys.shard_of(message_id), name, keys.key_of(message_id), *arguments)

    states = [command(message_id, "HMGET", "s", "Q", "a") for message_id in unlisted]
    ttls = [command(message_id, "PTTL") for message_id in unlisted]
    sets = {shard: Command(shard, "SMEMBERS", keys.indexes[shard]) for shard in map(keys.shard_of, unlisted)}
    yield [*states, *ttls, *sets.values()]
    changed: dict[str, bool] = {}
    names: dict[int, dict[str, str]] = {shard: {} for shard in sets}
    requests: list[Request] = []
    for message_id, state, ttl in zip(unlisted, states, ttls):
        if state.error or ttl.error or state.reply[0] not in ("0", "1", "2", "3") or ttl.reply <= 0:
            continue
        name, lives = _set_of(state.reply, ttl.reply)
        if listed.get(message_id) != name:
            listed[message_id] = names[state.shard][message_id] = name
            changed[message_id] = stays = unlisted[message_id]
            index, size = keys.indexes[state.shard], keys.max_listed
            position = transport.clock.now() * 1000
            requests += (
                _index_call(state.shard, index + name, message_id, position, lives, size, "NX" if stays else "CH"),
                _index_call(state.shard, index, name, "", lives, size, ""),
            )
    for shard, found in sets.items():
        if found.error is None:
            requests += _leaving(shard, keys.indexes[shard], found.reply, names[shard])
    if requests:
        yield requests
    return changed


def _index_call(shard: int, key: str, *arguments: Any) -> Command:
    """Make a call of the script that adds an entry to one key of the index."""
    call = Command(shard, "EVALSHA", INDEX.sha, 1, key, *arguments)
    call.script = INDEX
    return call


def _leaving(shard: int, index: str, names: Iterable[str], own: Mapping[str, str]) -> Iterable[Request]:
    """Make the requests that remove messages from all sets of the index except their own.  It is unknown which other
    set contains them.
    """
    for other in names:
        ids = [message_id for message_id, name in own.items() if name != other]
        if ids:
            yield Command(shard, "ZREM", index + other, *ids)


def _set_of(names: tuple[str, str | None, str | None], ttl: int) -> tuple[str, int]:
    """Return the name of the set in which a message belongs, and the time for which the set's messages live.

    Parameters:
      names(tuple): State, queue and actor of the message.
      ttl(int): Time for which its record still lives, in milliseconds.
    """
    state, queue, actor = names
    unit = 10 ** max(0, len(str(ttl)) - 2)
    rounded = -(-ttl // unit) * unit
    return f"{state}\n{'' if state < '2' else rounded}\n{queue or ''}\n{actor or ''}", rounded
