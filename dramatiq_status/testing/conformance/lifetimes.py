"""Times to live of records."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ... import _time as time
from ...backend import StatusBackend
from ...record import DEFAULT_LIVE_TTL, FAILED, WORKING
from ...update import Outcome, Update
from ..updates import counting, enqueue, finish, heartbeat, outside, start, write
from .store import StoreTests

DAY = 86_400_000


#: Cases by names: updates that make a record, and one that renews the expiry.
RENEWING: dict[str, tuple[list[Update], Update]] = {
    "requeue": ([enqueue(), start(1)], enqueue(generation=2)),
    "start": ([enqueue()], start(1)),
    "write": ([start(1)], write(1, 2, step="1")),
    "count": ([start(1)], counting(write(1, 2), rows=1)),
    "heartbeat": ([start(1)], heartbeat(1)),
    "outside": ([start(1)], outside(step="1")),
    "outside, a count": ([start(1)], counting(outside(), rows=1)),
    "outside, a state after the end": ([start(1), finish(1)], outside(state=WORKING)),
}

#: Cases by names: updates that make a record, and one that keeps the expiry.
NOT_RENEWING: dict[str, tuple[list[Update], Update]] = {
    "outside, after the end": ([start(1), finish(1)], outside(step="1")),
    "outside, a count after the end": ([start(1), finish(1)], counting(outside(), rows=1)),
    "late enqueue": ([start(1)], enqueue(step="1")),
    "late enqueue, after the end": ([start(1), finish(1)], enqueue(step="1")),
    "duplicate": ([start(1), write(1, 2)], write(1, 2)),
    "refused": ([start(1), start(2)], write(1, 2)),
    "heartbeat, after the end": ([start(1), finish(1)], heartbeat(1)),
}


class Lifetimes(StoreTests):
    """Tests of times to live."""

    def _check_ttl(self, backend: StatusBackend, message_id: str, expected: int, *, above: int = 0) -> None:
        found = self.ttl_of(backend, message_id)
        assert found is not None
        assert expected - self.ttl_tolerance <= found <= expected + self.ttl_resolution + above

    def test_a_queued_message_has_the_default_live_ttl(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message without a ``live_ttl`` of its own
        # When it is enqueued
        backend.update(message_id, enqueue())
        # Then its record has the default of a week
        self._check_ttl(backend, message_id, DEFAULT_LIVE_TTL)

    @pytest.mark.parametrize("live_ttl", [60_000, DAY, 40 * DAY], ids=["minute", "day", "more than 30 days"])
    def test_a_message_has_its_own_live_ttl(self, backend: StatusBackend, message_id: str, live_ttl: int) -> None:
        # Given a message with a ``live_ttl`` of its own
        # When it is enqueued
        backend.update(message_id, enqueue(L=str(live_ttl)))
        # Then its record has this time to live
        self._check_ttl(backend, message_id, live_ttl)

    @pytest.mark.parametrize(
        "given, update",
        [([], enqueue), ([start(1, L="60000")], lambda **f: enqueue(generation=2, **f))],
        ids=["enqueue", "requeue"],
    )
    def test_a_delay_is_added_to_the_live_ttl(
        self, backend: StatusBackend, message_id: str, given: list[Update], update: Callable[..., Update]
    ) -> None:
        # Given a message that is delayed for an hour
        backend.update_many([(message_id, one) for one in given])
        backend.read(message_id)
        scheduled_at = backend.now() + 3_600_000
        # When it is enqueued
        backend.update(message_id, update(L="60000", D=str(scheduled_at)))
        # Then its record lives for about an hour and a minute: after a slow reply, the backend's measurement of the
        # store's clock is inexact
        self._check_ttl(backend, message_id, 3_660_000, above=self.ttl_tolerance)

    def test_a_write_from_outside_keeps_the_delay(self, backend: StatusBackend, message_id: str) -> None:
        # Given a delayed message
        backend.read(message_id)
        backend.update(message_id, enqueue(L="60000", D=str(backend.now() + 3_600_000)))
        # When another process writes to it
        backend.update(message_id, outside(step="1"))
        # Then its record still lives for an hour and a minute
        self._check_ttl(backend, message_id, 3_660_000, above=self.ttl_tolerance)

    def test_a_delay_that_is_over_is_not_subtracted(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message whose delay has ended a day ago
        # When it is enqueued
        backend.update(message_id, enqueue(L="60000", D=str(backend.now() - DAY)))
        # Then its record has its ``live_ttl``
        self._check_ttl(backend, message_id, 60_000)

    def test_a_finished_message_has_the_ttl_of_its_end(self, backend: StatusBackend, message_id: str) -> None:
        # Given a running message
        backend.update(message_id, start(1))
        # When it finishes
        backend.update(message_id, finish(1, ttl=7_200_000))
        # Then its record has the time to live of this update
        self._check_ttl(backend, message_id, 7_200_000)

    @pytest.mark.parametrize("name", RENEWING)
    def test_updates_that_renew_the_expiry(self, backend: StatusBackend, message_id: str, name: str) -> None:
        # Given a record that expires in a minute
        given, update = RENEWING[name]
        backend.update_many([(message_id, one) for one in given])
        self.set_ttl(backend, message_id, 60_000)
        # When its message is updated
        backend.update(message_id, update)
        # Then it has its whole time to live again
        self._check_ttl(backend, message_id, DEFAULT_LIVE_TTL)

    @pytest.mark.parametrize("name", NOT_RENEWING)
    def test_updates_that_keep_the_expiry(self, backend: StatusBackend, message_id: str, name: str) -> None:
        # Given a record with a time to live of its own
        given, update = NOT_RENEWING[name]
        backend.update_many([(message_id, one) for one in given])
        self.set_ttl(backend, message_id, 50 * DAY)
        # When its message gets an update that is no sign of life
        backend.update(message_id, update)
        # Then its expiry has not changed
        self._check_ttl(backend, message_id, 50 * DAY)

    def test_an_end_from_outside_has_its_own_ttl(self, backend: StatusBackend, message_id: str) -> None:
        # Given a running message
        backend.update(message_id, start(1))
        # When another process sets its state to failed
        backend.update(message_id, outside(state=FAILED, ttl=120_000))
        # Then its record has the time to live of this update
        self._check_ttl(backend, message_id, 120_000)

    def test_a_record_expires(self, backend: StatusBackend, message_id: str) -> None:
        # Given a finished message with a time to live of much less than a second
        backend.update_many([(message_id, start(1)), (message_id, finish(1, ttl=20))])
        # When this time is over
        deadline = time.monotonic() + 10
        while backend.read(message_id) is not None and time.monotonic() < deadline:
            time.sleep(0.02)
        # Then the store has no record of it
        assert (backend.read(message_id), backend.update(message_id, outside(step="1"))) == (None, Outcome.MISSING)
