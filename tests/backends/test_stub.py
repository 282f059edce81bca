"""The stub, and what only it has."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends import StubBackend
from dramatiq_status.testing.conformance import BackendConformance, enqueue, finish, start


class TestStub(BackendConformance):
    ttl_tolerance = 5_000

    @pytest.fixture
    def backend(self) -> StubBackend:
        return StubBackend()

    # The stub has no connection. And if a tracer lets an interrupt strike
    # while its lock is taken, the lock stays taken.
    test_an_interrupted_call_spoils_no_other = None  # type: ignore[assignment]

    def ttl_of(self, backend: StatusBackend, message_id: str) -> int | None:
        assert isinstance(backend, StubBackend)
        return backend.expires_in(message_id)

    def set_ttl(self, backend: StatusBackend, message_id: str, ttl: int) -> None:
        assert isinstance(backend, StubBackend)
        record, _, position = backend._records[message_id]
        backend._records[message_id] = record, backend.now() + ttl, position

    def test_clear_deletes_all_statuses(self, backend: StubBackend, message_id: str) -> None:
        # Given a record
        backend.update(message_id, enqueue())
        # When the stub is cleared
        backend.clear()
        # Then it is gone
        assert (backend.read(message_id), backend.expires_in(message_id)) == (None, None)

    def test_a_read_returns_a_copy(self, backend: StubBackend, message_id: str) -> None:
        # Given a record that was read
        backend.update(message_id, enqueue(step="1"))
        record = backend.read(message_id)
        assert record is not None
        # When a reader changes it
        record[":step"] = "2"
        # Then the stored record has not changed
        again = backend.read(message_id)
        assert again is not None and again[":step"] == "1"

    def test_expiry_needs_no_sleep(self, message_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
        # Given a finished message, and a clock that a test sets
        now = 1_000_000
        backend = StubBackend()
        monkeypatch.setattr(backend, "now", lambda: now)
        backend.update_many([(message_id, start(1)), (message_id, finish(1, ttl=60_000))])
        # When the clock reaches the time at which the status expires
        expired = []
        for now in (1_059_999, 1_060_000):  # noqa: B007 - the clock reads it
            expired.append(backend.read(message_id) is None)
        # Then it is gone at this time, and not earlier
        assert expired == [False, True]


def test_two_stubs_share_nothing(message_id: str = "m") -> None:
    # Given two stubs
    make: Callable[[], StubBackend] = StubBackend
    one, two = make(), make()
    # When a message is stored in one of them
    one.update(message_id, enqueue())
    # Then the other one does not find it
    assert two.read(message_id) is None
