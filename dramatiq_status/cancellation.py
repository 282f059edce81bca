"""Requests to cancel messages: their updates, and what the outcomes of these updates mean."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Final

from .backend import DEFAULT_MAX_FIELD_SIZE
from .errors import BackendError, StatusMissing
from .fields import encode_value
from .record import CANCEL_REASON
from .update import Kind, Outcome, Update

#: Maximum size of a reason as a JSON text, in bytes.
MAX_REASON_SIZE: Final = 1024


class Cancellation(str, Enum):
    """Result of a request to cancel a message.  It equals its name: ``Cancellation.CANCELLED == "cancelled"``."""

    #: The message has ended. It was waiting and will not run, or it was cancelled before.
    CANCELLED = "cancelled"
    #: The message runs, and its status has the request, which the actor can check.  If the run ends without a result,
    #: because it is retried or its worker dies, the message ends then.
    REQUESTED = "requested"
    #: The message had ended in another way, and stays as it is.
    FINISHED = "finished"

    def __str__(self) -> str:
        return self.value


_CANCELLATIONS: Final = {
    Outcome.APPLIED: Cancellation.CANCELLED,
    Outcome.CANCELLED: Cancellation.CANCELLED,
    Outcome.REQUESTED: Cancellation.REQUESTED,
}


def cancel_update(reason: str | None) -> Update:
    """Make the update that cancels a message.

    Raises:
      TypeError: When the reason is not a string.
      ValueError: When the reason takes more than 1,024 bytes.
    """
    if reason is None:
        return Update(Kind.CANCEL)
    if not isinstance(reason, str):
        raise TypeError(f"reason must be a str, not {type(reason).__name__}.")
    text = encode_value("reason", reason, DEFAULT_MAX_FIELD_SIZE)
    if len(text) > MAX_REASON_SIZE:
        raise ValueError(f"reason takes {len(text)} bytes as JSON, more than {MAX_REASON_SIZE}.")
    return Update(Kind.CANCEL, fields={CANCEL_REASON: text})


def cancellation_of(message_id: str, outcome: Outcome) -> Cancellation:
    """Return the meaning of an outcome.

    Raises:
      StatusMissing: When the message is unknown.
    """
    if outcome is Outcome.MISSING:
        raise StatusMissing(message_id)
    return _CANCELLATIONS.get(outcome, Cancellation.FINISHED)


def cancellations_of(message_ids: Iterable[str], outcomes: Iterable[Outcome]) -> dict[str, Cancellation | None]:
    """Return the meanings of the outcomes of many messages, by their ids; None for unknown messages.

    Raises:
      BackendError: When a server of the store did not answer.  To cancel all messages again is safe.
    """
    found: dict[str, Cancellation | None] = {}
    unanswered = 0
    for message_id, outcome in zip(message_ids, outcomes):
        unanswered += outcome is Outcome.UNAVAILABLE
        found[message_id] = None if outcome is Outcome.MISSING else _CANCELLATIONS.get(outcome, Cancellation.FINISHED)
    if unanswered:
        raise BackendError(
            f"The status store did not answer for {unanswered} of {len(found)} messages to cancel, and has answered "
            f"for the others. To cancel all of them again is safe."
        )
    return found
