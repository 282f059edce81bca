"""The rules of a pool of idle connections."""

from __future__ import annotations

import os

import pytest

from dramatiq_status.backends import _pool
from dramatiq_status.backends._pool import IdlePool


class Connection:
    """A connection to a server that exists only in the test."""

    def __init__(self, *, stale: bool = False) -> None:
        self.used = 0.0
        self.stale = stale
        self.closed = False

    def is_stale(self) -> bool:
        return self.stale

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def pool() -> IdlePool[Connection]:
    return IdlePool()


def test_the_connection_that_was_used_last_is_taken_first(pool: IdlePool[Connection]) -> None:
    # Given two idle connections
    first, second = Connection(), Connection()
    pool.give(first)
    pool.give(second)
    # When three connections are taken
    taken = [pool.take_idle(second.used) for _ in range(3)]
    # Then the newest one comes first, and there is no third one
    assert taken == [second, first, None]
    assert not pool.has_idle


@pytest.mark.parametrize("stale", [True, False])
@pytest.mark.parametrize("seconds", [_pool.IDLE_CHECK / 2, _pool.IDLE_CHECK * 2])
def test_a_connection_is_checked_after_a_while(pool: IdlePool[Connection], stale: bool, seconds: float) -> None:
    # Given a connection that was idle for some time
    connection = Connection(stale=stale)
    pool.give(connection)
    # When it is taken
    taken = pool.take_idle(connection.used + seconds)
    # Then a stale one is closed, if it was idle for long enough to be checked
    is_found = stale and seconds > _pool.IDLE_CHECK
    assert taken is (None if is_found else connection)
    assert connection.closed is is_found


def test_close_closes_the_idle_connections(pool: IdlePool[Connection]) -> None:
    connections = [Connection() for _ in range(3)]
    for connection in connections:
        pool.give(connection)
    pool.close()
    assert [connection.closed for connection in connections] == [True] * 3
    assert not pool.has_idle


@pytest.mark.skipif(not hasattr(os, "fork"), reason="No process forks here.")
def test_a_child_leaves_the_connections_to_its_parent(pool: IdlePool[Connection]) -> None:
    # Given a pool with an idle connection
    connection = Connection()
    pool.give(connection)
    # When the process forks
    child = os.fork()
    if not child:
        os._exit(int(pool.has_idle or connection.closed))
    # Then the child has an empty pool, and the parent's is as before
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert pool.take_idle(connection.used) is connection
