"""Requests to cancel messages: their updates, and what the outcomes of these updates mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from enum import Enum
from typing import Final

import dramatiq

from .aborts import find_abort
from .backend import DEFAULT_MAX_FIELD_SIZE
from .errors import BackendError, StatusMissing
from .fields import encode_value
from .record import CANCEL_REASON
from .update import Kind, Outcome, Update

#: Maximum size of a reason as a JSON text, in bytes.
MAX_REASON_SIZE: Final = 1024


class Cancellation(str, Enum):
    """Result of a request to cancel a message.  It equals its text: ``Cancellation.CANCELLED == "cancelled"``."""

    #: The message has ended. It was waiting and will not run, or it was cancelled before.
    CANCELLED = "cancelled"
    #: The message runs, and its status has the request, which the actor can check.  A retry or a redelivery of the
    #: message is not run, and the message ends then.
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


class CancelRequest:
    """A request to cancel messages.

    Parameters:
      message_ids(Sequence[str])
      reason(str): None for no reason.
      force_after(int): Milliseconds after which dramatiq-abort interrupts a run; None for no interrupt.
      broker(Broker): Broker with dramatiq-abort, by default the default broker.

    Raises:
      TypeError: When the reason is not a string.
      ValueError: When the reason takes more than 1,024 bytes.
      StatusSetupError: When `force_after` is set and the broker has no ``Abortable``.
    """

    def __init__(
        self,
        message_ids: Sequence[str],
        reason: str | None,
        force_after: int | timedelta | None,
        broker: dramatiq.Broker | None,
    ) -> None:
        update = _cancel_update(reason)
        self._abort = find_abort(force_after, broker)
        #: The updates for the store; there may be none.
        self.updates: list[tuple[str, Update]] = [(message_id, update) for message_id in message_ids]

    def results(self, outcomes: Iterable[Outcome]) -> dict[str, Cancellation | None]:
        """Return the meanings of the outcomes by message ids; None for unknown messages.

        Raises:
          BackendError: When a server of the store did not answer, or has refused a message.  To cancel all messages
            again is safe.
        """
        found: dict[str, Cancellation | None] = {}
        unanswered = 0
        for (message_id, _), outcome in zip(self.updates, outcomes):
            unanswered += outcome is Outcome.UNAVAILABLE or outcome is Outcome.UNSTORABLE
            is_missing = outcome is Outcome.MISSING
            found[message_id] = None if is_missing else _CANCELLATIONS.get(outcome, Cancellation.FINISHED)
        if unanswered:
            raise BackendError(
                f"The status store did not answer, or has refused the request, for {unanswered} of {len(found)} "
                f"messages to cancel. To cancel all of them again is safe."
            )
        return found

    def interrupt(self, results: Mapping[str, Cancellation | None]) -> None:
        """Make dramatiq-abort interrupt the messages that run, if the request has a `force_after`."""
        if self._abort is not None:
            for message_id, result in results.items():
                if result is Cancellation.REQUESTED:
                    self._abort(message_id)


def result_of_one(results: Mapping[str, Cancellation | None]) -> Cancellation:
    """Return the result of a request for one message.

    Raises:
      StatusMissing: When the message is unknown.
    """
    ((message_id, result),) = results.items()
    if result is None:
        raise StatusMissing(message_id)
    return result


def _cancel_update(reason: str | None) -> Update:
    if reason is None:
        return Update(Kind.CANCEL)
    if not isinstance(reason, str):
        raise TypeError(f"reason must be a str, not {type(reason).__name__}.")
    text = encode_value("reason", reason, DEFAULT_MAX_FIELD_SIZE)
    if len(text) > MAX_REASON_SIZE:
        raise ValueError(f"reason takes {len(text)} bytes as JSON, more than {MAX_REASON_SIZE}.")
    return Update(Kind.CANCEL, fields={CANCEL_REASON: text})
