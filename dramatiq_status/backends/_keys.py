"""Keys of messages in memcached and in caches.  A cache may store its values in memcached.

No code here calls a store.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

#: Maximum size of a key in memcached, in bytes.
MAX_KEY_SIZE: Final = 250

#: Character behind the prefix of a key that contains a hash instead of the message id, and the length of the hash.
HASHED: Final = "#"
HASH_SIZE: Final = 64


def key_of(prefix: str, message_id: str, max_size: int = MAX_KEY_SIZE) -> str:
    """Return the key of a message: its prefix and the message id, or a hash of an id that cannot be part of a key.

    Such an id is too long, is not ASCII, or contains spaces or control characters.  An id that begins with
    :data:`HASHED` is hashed as well, so that two ids never have the same key.

    Parameters:
      prefix(str): Prefix.  It must consist of characters that memcached allows in a key.
      message_id(str)
      max_size(int): Maximum size of the key, in bytes.

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
