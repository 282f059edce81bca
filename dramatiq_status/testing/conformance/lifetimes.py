"""How long records live."""

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


#: Updates that give an unfinished record its whole life back.
RENEWING: dict[str, tuple[list[Update], Update]] = {
    "requeue": ([enqueue(), start(1)], enqueue(generation=2)),
    "start": ([enqueue()], start(1)),
    "write": ([start(1)], write(1, 2, step="1")),
    "count": ([start(1)], counting(write(1, 2), rows=1)),
    "heartbeat": ([start(1)], heartbeat(1)),
    "outside": ([start(1)], outside(step="1")),
    "outside, a count": ([start(1)], counting(outside(), rows=1)),
    "outside, back to life": ([start(1), finish(1)], outside(state=WORKING)),
}

#: Updates that leave the time to live as it was.
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
    """Tests of the time to live."""

    def _check_ttl(self, backend: StatusBackend, message_id: str, expected: int, *, above: int = 0) -> None:
        found = self.ttl_of(backend, message_id)
        assert found is not None
        assert expected - self.ttl_tolerance <= found <= expected + self.ttl_resolution + above

    def test_a_waiting_message_lives(self, backend: StatusBackend, message_id: str) -> None:
        # Given an enqueued message
        # When nobody says how long it lives
        backend.update(message_id, enqueue())
        # Then it is a week
        self._check_ttl(backend, message_id, DEFAULT_LIVE_TTL)

    @pytest.mark.parametrize("live_ttl", [60_000, DAY, 40 * DAY], ids=["minute", "day", "more than 30 days"])
    def test_its_own_live_ttl(self, backend: StatusBackend, message_id: str, live_ttl: int) -> None:
        # Given a live time to live
        # When a message is enqueued with it
        backend.update(message_id, enqueue(L=str(live_ttl)))
        # Then it lives that long
        self._check_ttl(backend, message_id, live_ttl)

    @pytest.mark.parametrize(
        "given, update",
        [([], enqueue), ([start(1, L="60000")], lambda **f: enqueue(generation=2, **f))],
        ids=["enqueue", "requeue"],
    )
    def test_a_delay_is_on_top(
        self, backend: StatusBackend, message_id: str, given: list[Update], update: Callable[..., Update]
    ) -> None:
        # Given a message that is delayed for an hour
        backend.update_many([(message_id, one) for one in given])
        backend.read(message_id)
        scheduled_at = backend.now() + 3_600_000
        # When it is enqueued
        backend.update(message_id, update(L="60000", D=str(scheduled_at)))
        # Then it lives for that hour and a minute, give or take: a slow answer makes what the backend knows of the
        # store's clock inexact
        self._check_ttl(backend, message_id, 3_660_000, above=self.ttl_tolerance)

    def test_a_delay_is_kept_by_an_outside_write(self, backend: StatusBackend, message_id: str) -> None:
        # Given a delayed message
        backend.read(message_id)
        backend.update(message_id, enqueue(L="60000", D=str(backend.now() + 3_600_000)))
        # When somebody writes to it
        backend.update(message_id, outside(step="1"))
        # Then it lives for the hour and a minute still
        self._check_ttl(backend, message_id, 3_660_000, above=self.ttl_tolerance)

    def test_a_delay_that_is_over_counts_for_nothing(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message whose delay is long over
        # When it is enqueued
        backend.update(message_id, enqueue(L="60000", D=str(backend.now() - DAY)))
        # Then nothing is taken off
        self._check_ttl(backend, message_id, 60_000)

    def test_a_finished_message_lives_its_own_time(self, backend: StatusBackend, message_id: str) -> None:
        # Given a running message
        backend.update(message_id, start(1))
        # When it finishes
        backend.update(message_id, finish(1, ttl=7_200_000))
        # Then its time to live is the final one, and the live one no longer matters
        self._check_ttl(backend, message_id, 7_200_000)

    @pytest.mark.parametrize("name", RENEWING)
    def test_writes_renew(self, backend: StatusBackend, message_id: str, name: str) -> None:
        # Given a record that has a minute left
        given, update = RENEWING[name]
        backend.update_many([(message_id, one) for one in given])
        self.set_ttl(backend, message_id, 60_000)
        # When something happens to its message
        backend.update(message_id, update)
        # Then it has its whole life before it
        self._check_ttl(backend, message_id, DEFAULT_LIVE_TTL)

    @pytest.mark.parametrize("name", NOT_RENEWING)
    def test_other_writes_leave_the_ttl(self, backend: StatusBackend, message_id: str, name: str) -> None:
        # Given a record with a time to live of its own
        given, update = NOT_RENEWING[name]
        backend.update_many([(message_id, one) for one in given])
        self.set_ttl(backend, message_id, 50 * DAY)
        # When something comes that is no sign of life
        backend.update(message_id, update)
        # Then its expiry is as it was
        self._check_ttl(backend, message_id, 50 * DAY)

    def test_an_outside_end_has_a_final_ttl(self, backend: StatusBackend, message_id: str) -> None:
        # Given a running message
        backend.update(message_id, start(1))
        # When somebody else says that it failed
        backend.update(message_id, outside(state=FAILED, ttl=120_000))
        # Then the final time to live counts
        self._check_ttl(backend, message_id, 120_000)

    def test_a_record_expires(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message that finished with a time to live of much less than a second
        backend.update_many([(message_id, start(1)), (message_id, finish(1, ttl=20))])
        # When that is over
        deadline = time.monotonic() + 10
        while backend.read(message_id) is not None and time.monotonic() < deadline:
            time.sleep(0.02)
        # Then nothing is left of it
        assert (backend.read(message_id), backend.update(message_id, outside(step="1"))) == (None, Outcome.MISSING)
