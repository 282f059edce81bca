"""What a store and a broker that share a server agree on: updates that go along with a command of the broker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from .update import Outcome, Update


class Rider(Protocol):
    """Updates that a hook has left for the next command of the broker on the same thread."""

    def board(self) -> Sequence[tuple[str, Update]]:
        """Return message ids and the updates that go along, in order; none if they were sent in another way."""

    def arrive(self, outcomes: Sequence[Outcome]) -> None:
        """Take the outcomes of these updates, which the store has carried out."""

    def stay(self) -> None:
        """Send the updates in the usual way: the broker's command went without them."""


class Carrier(Protocol):
    """A client of the broker that takes updates along."""

    def leave(self, message: Any, rider: Rider) -> bool:
        """Leave updates for the command of the broker that enqueues, acknowledges or rejects a message.

        Parameters:
          message(Message): The message as the broker has passed it to a hook.
          rider(Rider): It replaces the last one that this thread has left.

        Returns:
          bool: False if the carrier does not take updates along now.
        """
