"""Signed tokens with which a visitor may read certain statuses until a certain time."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Final

import dramatiq
from itsdangerous import BadData, URLSafeSerializer

from .. import _time as time
from ..checks import check_duration, check_message_ids

#: Milliseconds for which a token is valid by default.
DEFAULT_EXPIRY: Final = 3_600_000

#: Maximum number of characters of a token; a longer one is refused unread.
MAX_SIZE: Final = 65_536

_SALT: Final = "dramatiq_status.web.tokens"


class TokenSigner:
    """Signer of read tokens; it also checks them.

    A token permits reading the statuses of the messages for which it was signed, whatever `authorize` returns.  It
    travels in the header ``X-Status-Token`` or in the body of ``POST /events``, never in a URL.

    >>> signer = TokenSigner(SECRET_KEY)
    >>> token = signer.sign(message, expires_in=600_000)
    >>> app = status_app(authorize=deny_all, signer=signer)

    Parameters:
      secret_key(str): A secret that all processes of the application share.  Of several secrets, the last one signs
        tokens, and tokens of all are accepted, so that a secret can be replaced.
    """

    def __init__(self, secret_key: str | bytes | Iterable[str] | Iterable[bytes]) -> None:
        if not secret_key:
            raise ValueError("secret_key must not be empty: a client could sign tokens with an empty one.")
        self._serializer = URLSafeSerializer(secret_key, salt=_SALT)

    def sign(
        self,
        messages: str | dramatiq.Message[Any] | Iterable[str | dramatiq.Message[Any]],
        *,
        expires_in: int | timedelta = DEFAULT_EXPIRY,
    ) -> str:
        """Sign a token for one message or several.

        Parameters:
          messages(str | Message): A message, its id, or an iterable of these.
          expires_in(int): Milliseconds for which the token is valid.

        Raises:
          TypeError: When `messages` has a value that is neither a message nor an id, or `expires_in` is no duration.
          ValueError: When an id is invalid, or `expires_in` is negative, too long or no whole number.
        """
        if isinstance(messages, (str, dramatiq.Message)):
            messages = [messages]
        ids = check_message_ids(messages)
        expires_at = int(time.time() * 1000) + check_duration("expires_in", expires_in)
        return str(self._serializer.dumps([expires_at, *ids]))

    def allows(self, token: str, message_id: str) -> bool:
        """Return whether a token is genuine, is for this message and has not expired."""
        if len(token) > MAX_SIZE:
            return False
        try:
            expires_at, *ids = self._serializer.loads(token)
        except (BadData, TypeError, ValueError):
            return False
        return message_id in ids and bool(time.time() * 1000 < expires_at)
