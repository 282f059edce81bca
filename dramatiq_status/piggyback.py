"""Protocols for updates that are sent in one transaction with a command of the broker, if the broker and the store
share a server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from .update import Outcome, Update


class AttachedUpdates(Protocol):
    """Updates that a hook has prepared for the next command of the broker on the same thread."""

    def collect(self) -> Sequence[tuple[str, Update]]:
        """Return the message ids and updates to add to the transaction, in order.  Return an empty sequence if they
        were already sent.
        """

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Process the outcomes of the updates, after the transaction was carried out."""

    def send_separately(self) -> None:
        """Send the updates with the writer, because the broker's command was sent without them."""


class UpdateAttacher(Protocol):
    """An object that attaches updates to commands of the broker."""

    def attach(self, message: Any, updates: AttachedUpdates) -> bool:
        """Attach updates to the broker's next command about a message: an enqueue, an acknowledgement or a rejection.

        Parameters:
          message(Message): The message as the broker has passed it to a hook.
          updates(AttachedUpdates): Updates to attach.  They replace the updates that this thread attached before.

        Returns:
          bool: Whether the updates were attached.
        """
