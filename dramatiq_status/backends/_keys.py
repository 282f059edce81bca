"""The key of a message in a store that takes only some keys: memcached, and caches that may be one.  Pure."""

from __future__ import annotations

from hashlib import sha256
from typing import Final

#: The longest key that memcached takes, in bytes.
MAX_KEY_SIZE: Final = 250

#: What is behind the prefix of a key that has a hash instead of an id, and the length of the hash.
HASHED: Final = "#"
HASH_SIZE: Final = 64


def key_of(prefix: str, message_id: str, max_size: int = MAX_KEY_SIZE) -> str:
    """Make the key of a message: its id, or a hash where the id is too
    long, not ASCII, or has spaces or control characters.

    An id is not its own key where it looks like a hash, either, so that
    no two ids have the same key.

    Parameters:
      prefix(str): What the key starts with; it has to be fit for a key.
      message_id(str): The message.
      max_size(int): The longest key, in bytes.

    >>> key_of("shop:", "7f3a")
    'shop:7f3a'
    """
    key = prefix + message_id
    if (
        len(key) > max_size
        or not message_id.isascii()
        or not message_id.isprintable()
        or " " in message_id
        or message_id[:1] == HASHED
    ):
        key = prefix + HASHED + sha256(message_id.encode("utf-8", "surrogatepass")).hexdigest()
    return key
