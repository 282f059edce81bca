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

#: For how many seconds a change that is to be told is waited for.
HEARING = 20.0


class Subscriptions(StoreTests):
    """Tests of subscriptions, for backends that have them."""

    @pytest.fixture
    def hearing(self, backend: StatusBackend, message_id: str) -> Iterator[Subscription]:
        """Hears of a message that waits, if the backend can tell."""
        backend.update(message_id, enqueue())
        subscription = backend.subscribe((message_id,))
        if subscription is None:
            pytest.skip("This backend does not tell of changes.")
        yield subscription
        subscription.close()

    def test_a_change_is_told(self, backend: StatusBackend, hearing: Subscription, message_id: str) -> None:
        # Given somebody who hears of a message
        for update in (
            start(1),
            write(1, 2, step="1"),
            outside(increment=1),
            enqueue(generation=2),
            start(2, generation=2),
        ):
            # When it changes
            backend.update(message_id, update)
            # Then they are told, and of which version
            record = backend.read(message_id)
            assert record is not None
            assert heard_of(hearing, message_id, int(record[VERSION])), update

    def test_a_delete_is_told(self, backend: StatusBackend, hearing: Subscription, message_id: str) -> None:
        # Given somebody who hears of a message
        # When it is deleted
        backend.delete(message_id)
        # Then they are told
        assert heard_of(hearing, message_id, 0)

    def test_changes_of_other_messages_are_not_told(
        self, backend: StatusBackend, hearing: Subscription, message_id: str
    ) -> None:
        # Given somebody who hears of a message
        # When another one changes before it does
        backend.update_many([(message_id + "x", enqueue()), (message_id[:-1], enqueue())])
        backend.update(message_id, start(1))
        # Then they are told of theirs alone
        record = backend.read(message_id)
        assert record is not None and heard_of(hearing, message_id, int(record[VERSION]))

    def test_what_happened_before_is_not_told(
        self, backend: StatusBackend, hearing: Subscription, message_id: str
    ) -> None:
        # Given a message that has been written to before somebody hears of it
        # When nothing happens
        # Then nothing is told
        assert hearing.wait(0.05) == {}

    def test_who_no_longer_hears_disturbs_nobody(self, backend: StatusBackend, message_id: str) -> None:
        # Given two who hear of a message
        backend.update(message_id, enqueue())
        one, two = (backend.subscribe((message_id,)) for _ in range(2))
        if one is None or two is None:
            pytest.skip("This backend does not tell of changes.")
        # When one of them has closed, and the message changes
        one.close()
        outcome = backend.update(message_id, start(1))
        # Then the other is told
        record = backend.read(message_id)
        assert outcome is Outcome.APPLIED and record is not None
        assert heard_of(two, message_id, int(record[VERSION]))
        two.close()


def heard_of(subscription: Subscription, message_id: str, version: int) -> bool:
    """Whether a version of a message is told in time, and nothing of any other message."""
    deadline = time.monotonic() + HEARING
    while (left := deadline - time.monotonic()) > 0:
        heard = subscription.wait(left)
        if heard.keys() - {message_id}:
            return False
        if heard.get(message_id) == version:
            return True
    return False
