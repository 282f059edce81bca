"""The names of all keys, and the shards over which the backend spreads messages on a cluster."""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Iterable, Sequence
from typing import Final
from zlib import crc32

#: Number of shards over which the backend spreads messages on a cluster.  The keys of a shard are records
#: of messages, and the index that lists these messages.  They share a slot, and so they are on one node.
SHARDS: Final = 64

#: Number of slots of a cluster.
SLOTS: Final = 16_384

#: Number of unfinished messages among which a count looks for expired ones.
_CHECKED: Final = 1000

#: Number of unfinished messages of one shard of a cluster among which a count looks for expired ones.  The sum over all
#: shards is larger than :data:`_CHECKED`, because shards differ in size.
_CHECKED_PER_SHARD: Final = 64


#: Arguments of the index: the maximum number of messages of a set, the length of the part of a key before the
#: message's id, and the prefix of the index's keys, empty for no index.
IndexArguments = tuple[str, str, str]


def slot_of(tag: str) -> int:
    """Return the slot of the keys with a hash tag.

    >>> slot_of("123456789")
    12739
    """
    return crc_hqx(tag.encode(), 0) % SLOTS


def shard_of(message_id: str) -> int:
    """Return the shard of a message: the CRC-32 of its id, modulo the number of shards.

    This must never change: the stored statuses would no longer be found.

    >>> shard_of("0e1ee3ff-0e0e-4a5c-9d7a-0d1c4a3c9c3c") < SHARDS
    True
    """
    return crc32(message_id.encode()) % SHARDS


def _make_tags() -> list[str]:
    """Make a hash tag for each shard, with a slot in the shard's own part of the slots.

    Nodes that share the slots evenly then share the shards evenly.
    """
    tags: dict[int, str] = {}
    number = 0
    while len(tags) < SHARDS:
        tag = str(number)
        tags.setdefault(slot_of(tag) * SHARDS // SLOTS, tag)
        number += 1
    return [tags[shard] for shard in range(SHARDS)]


#: Hash tags of the shards.
TAGS: Final = tuple(_make_tags())


class ListMode:
    """Values of the last argument of the list script."""

    #: The script returns ids, because the records of a page are on several nodes.
    IDS: Final = 0
    #: The script returns records.
    RECORDS: Final = 1
    #: The slot is moving to this node, so the script refuses to list.
    ARRIVING: Final = 2


class Keys:
    """Names of the keys of a single server, where all messages are in one shard.

    Parameters:
      namespace(str): An escaped namespace.
      max_listed(int): Maximum number of messages in each set of the index; 0 for no index.
    """

    #: Number of unfinished messages of a shard among which a count looks for expired ones.
    checked: int = _CHECKED

    #: Last argument of the list script: a value of :class:`ListMode`.
    list_mode: int = ListMode.RECORDS

    def __init__(self, namespace: str, max_listed: int) -> None:
        self._fill([f"{namespace}:"], [f"{namespace} index:"], max_listed)

    def _fill(self, prefixes: list[str], indexes: list[str], max_listed: int) -> None:
        #: The shards.
        self.shards: range = range(len(prefixes))
        #: By shard, the part of a record's key that comes before the id of the message.
        self.prefixes: list[str] = prefixes
        #: By shard, the part of an index's key that comes before the name of a set.  No record's key begins with it: in
        #: a record's key, the first ":" comes before the first space.
        self.indexes: list[str] = indexes
        #: By shard, the key of the log of cancelled messages.  The channel of the log has the same name, and no set of
        #: the index has this name.
        self.cancels: list[str] = [f"{index}cancels" for index in indexes]
        #: Maximum number of messages of a shard in each set of its index; 0 for no index.
        self.max_listed: int = -(-max_listed // len(prefixes))
        sizes = [(str(self.max_listed), str(len(prefix))) for prefix in prefixes]
        self._no_index: list[IndexArguments] = [(*size, "") for size in sizes]
        listed = [(*size, index) for size, index in zip(sizes, indexes)]
        self._index: list[IndexArguments] = listed if max_listed else self._no_index
        #: By shard, the arguments of the index as a part of a packed call.  It begins with the CR and LF
        #: that end the part before it.
        self.packed_indexes: list[str] = [
            "".join([f"\r\n${len(text.encode())}\r\n{text}" for text in arguments]) for arguments in self._index
        ]

    def shard_of(self, message_id: str) -> int:
        """Return the shard of a message."""
        return 0

    def group(self, message_ids: Sequence[str]) -> dict[int, Sequence[int]]:
        """Return the positions of messages, by their shards."""
        return {0: range(len(message_ids))} if message_ids else {}

    def key_of(self, message_id: str) -> str:
        """Return the key of a message's record, which is the name of its channel, too."""
        return self.prefixes[self.shard_of(message_id)] + message_id

    def channels(self, message_ids: Iterable[str]) -> dict[str, str]:
        """Return ids by the names of the channels on which the script publishes changes of the messages."""
        return {self.key_of(message_id): message_id for message_id in message_ids}

    def index_arguments(self, shard: int, arriving: bool) -> IndexArguments:
        """Return the arguments of the update script that describe a shard's index.

        Parameters:
          shard(int)
          arriving(bool): Whether the call goes to a node that may lack parts of the index.  The script then does not
            use the index.
        """
        return (self._no_index if arriving else self._index)[shard]


class ShardedKeys(Keys):
    """Names of the keys of a cluster."""

    checked = _CHECKED_PER_SHARD
    list_mode = ListMode.IDS

    def __init__(self, namespace: str, max_listed: int) -> None:
        self._fill(
            [f"{namespace}:{{{tag}}}:" for tag in TAGS], [f"{namespace} index:{{{tag}}}:" for tag in TAGS], max_listed
        )

    def shard_of(self, message_id: str) -> int:
        return shard_of(message_id)

    def group(self, message_ids: Sequence[str]) -> dict[int, Sequence[int]]:
        found: dict[int, list[int]] = {}
        for position, message_id in enumerate(message_ids):
            found.setdefault(shard_of(message_id), []).append(position)
        return dict(found)
