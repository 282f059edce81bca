"""The time to live of items, by the clock of the server."""

from __future__ import annotations

import pytest

from dramatiq_status.backend import now_ms
from dramatiq_status.backends.memcached import MemcachedBackend
from dramatiq_status.backends.memcached import backend as backend_module
from dramatiq_status.backends.memcached import rounds as rounds_module
from dramatiq_status.backends.memcached.item import MAX_SPAN, expiry_of
from dramatiq_status.testing.conformance import finish, outside, start
from dramatiq_status.update import Outcome

from ...servers import MemcachedServer
from .wire import DAY, PATIENT, StartServer, seconds_left


@pytest.mark.parametrize(
    "left, expected",
    [
        (-5, -1),
        (0, -1),
        (1, 2),
        (999, 2),
        (1_000, 2),
        (1_001, 3),
        (60_000, 61),
        (MAX_SPAN * 1000 - 1000, MAX_SPAN),
        (MAX_SPAN * 1000, 1_700_000_000 + MAX_SPAN),
        (40 * DAY + 1, 1_700_000_000 + 40 * DAY // 1000 + 1),
        (100_000 * DAY, MAX_SPAN),
    ],
)
def test_the_expiry_of_an_item_is_rounded_up(left: int, expected: int) -> None:
    # Given a time at which an item expires
    now = 1_700_000_000_000
    # When it is converted for memcached
    # Then it is rounded up, or means "at once"; it never means "forever", and it is a date if it is far away
    assert expiry_of(now + left, now) == expected


@pytest.mark.parametrize("ttl", [1, 1_500, 60_000, MAX_SPAN * 1000, 40 * DAY])
def test_an_item_lives_on_the_server_as_long_as_its_status(
    start_server: StartServer, message_id: str, ttl: int
) -> None:
    # Given a message that finishes with a time to live, and a server whose clock has just been set
    server = start_server(MemcachedServer())
    backend = MemcachedBackend(servers=server.address, timeout=PATIENT)
    # When it is stored
    backend.update_many([(message_id, start(1)), (message_id, finish(1, ttl=ttl))])
    # Then the item lives for this time
    left = seconds_left(server, f"{backend.namespace}:{message_id}")
    assert left is not None and ttl / 1000 - 60 < left <= ttl / 1000 + 3
    backend.close()


@pytest.mark.parametrize("skew", [-DAY, DAY], ids=["behind", "ahead"])
def test_a_host_whose_clock_is_a_day_off_reads_and_writes(
    backend: MemcachedBackend, message_id: str, monkeypatch: pytest.MonkeyPatch, skew: int
) -> None:
    # Given a status that lives for an hour
    backend.update_many([(message_id, start(1)), (message_id, finish(1))])
    # When a host with a clock that is a day off reads it and writes to it
    for module in (backend_module, rounds_module):
        monkeypatch.setattr(module, "now_ms", lambda: now_ms() + skew)
    # Then it finds the status
    assert backend.read(message_id) is not None
    assert backend.update(message_id, outside(step="1")) is Outcome.APPLIED
