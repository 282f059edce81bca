"""Subscriptions to changes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ... import _time as time
from ...backend import StatusBackend, Subscription
from ...record import VERSION
from ...update import Outcome
from ..updates import enqueue, outside, start, write
from .store import StoreTests

#: Maximum number of seconds to wait for a change.
CHANGE_TIMEOUT = 20.0


class Subscriptions(StoreTests):
    """Tests of subscriptions, for backends that have them."""

    @pytest.fixture
    def subscription(self, backend: StatusBackend, message_id: str) -> Iterator[Subscription]:
        """Yield a subscription to a queued message if the backend has subscriptions; otherwise skip the test."""
        backend.update(message_id, enqueue())
        found = backend.subscribe((message_id,))
        if found is None:
            pytest.skip("This backend has no subscriptions.")
        yield found
        found.close()

    def test_a_change_is_received(self, backend: StatusBackend, subscription: Subscription, message_id: str) -> None:
        # Given a subscription to a message
        for update in (
            start(1),
            write(1, 2, step="1"),
            outside(increment=1),
            enqueue(generation=2),
            start(2, generation=2),
        ):
            # When the message changes
            backend.update(message_id, update)
            # Then the subscription receives the new version
            record = backend.read(message_id)
            assert record is not None
            assert receives(subscription, message_id, int(record[VERSION])), update

    def test_a_delete_is_received(self, backend: StatusBackend, subscription: Subscription, message_id: str) -> None:
        # Given a subscription to a message
        # When the message is deleted
        backend.delete(message_id)
        # Then the subscription receives the version 0
        assert receives(subscription, message_id, 0)

    def test_changes_of_other_messages_are_not_received(
        self, backend: StatusBackend, subscription: Subscription, message_id: str
    ) -> None:
        # Given a subscription to a message
        # When other messages change, and then this one
        backend.update_many([(message_id + "x", enqueue()), (message_id[:-1], enqueue())])
        backend.update(message_id, start(1))
        # Then the subscription receives the change of this message only
        record = backend.read(message_id)
        assert record is not None and receives(subscription, message_id, int(record[VERSION]))

    def test_earlier_changes_are_not_received(
        self, backend: StatusBackend, subscription: Subscription, message_id: str
    ) -> None:
        # Given a message that has changed before the subscription
        # When it does not change any more
        # Then the subscription receives nothing
        assert subscription.wait(0.05) == {}

    def test_a_closed_subscription_does_not_disturb_others(self, backend: StatusBackend, message_id: str) -> None:
        # Given two subscriptions to a message
        backend.update(message_id, enqueue())
        one, two = (backend.subscribe((message_id,)) for _ in range(2))
        if one is None or two is None:
            pytest.skip("This backend has no subscriptions.")
        # When one of them is closed, and the message changes
        one.close()
        outcome = backend.update(message_id, start(1))
        # Then the other one receives the change
        record = backend.read(message_id)
        assert outcome is Outcome.APPLIED and record is not None
        assert receives(two, message_id, int(record[VERSION]))
        two.close()


def receives(subscription: Subscription, message_id: str, version: int) -> bool:
    """Return whether a subscription receives a version of a message in time, and no change of another message."""
    deadline = time.monotonic() + CHANGE_TIMEOUT
    while (left := deadline - time.monotonic()) > 0:
        changes = subscription.wait(left)
        if changes.keys() - {message_id}:
            return False
        if changes.get(message_id) == version:
            return True
    return False
