"""The logs of cancelled messages stay small, however many messages are cancelled."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from dramatiq_status.backends import MemcachedBackend, RedisBackend, SQLiteBackend
from dramatiq_status.backends.sqlite.schema import LOG
from dramatiq_status.cancel_log import LOG_TTL, MAX_LOGGED, MAX_MARKS, add_to_log, mark_of, read_log
from dramatiq_status.testing.updates import cancel, enqueue

from ..servers import MemcachedServer

#: Maximum number of entries that Redis keeps beyond the maximum, as it removes entries in groups.
GROUP = 100

FILL = "for number = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', 'm', '00000000') end"


def test_redis_keeps_the_newest_marks_for_a_time(redis_url: str) -> None:
    # Given a log with more marks than it may have
    with closing(RedisBackend(url=redis_url, timeout=20_000)) as backend:
        log = backend.keys.cancels[0]
        backend.client.eval(FILL, 1, log, MAX_LOGGED + 500)
        # When a message is cancelled
        backend.update_many([("m", enqueue()), ("m", cancel())])
        # Then the oldest marks are gone, and the log expires
        assert MAX_LOGGED <= backend.client.xlen(log) <= MAX_LOGGED + GROUP
        assert LOG_TTL - 60_000 < backend.client.pttl(log) <= LOG_TTL
        # And workers find the message
        _, marks = backend.read_cancels(None)
        assert mark_of("m") in marks and len(marks) <= MAX_LOGGED + GROUP


def test_sqlite_keeps_the_newest_marks(tmp_path: Path) -> None:
    # Given a log with more marks than it may have
    with closing(SQLiteBackend(tmp_path / "status.db", timeout=20_000)) as backend:
        backend.update("m", enqueue())
        with closing(sqlite3.connect(tmp_path / "status.db")) as connection:
            rows = [(backend.namespace, 0)] * (MAX_LOGGED + 500)
            connection.executemany(f"INSERT INTO {LOG} (namespace, mark) VALUES (?, ?)", rows)
            connection.commit()
            # When a message is cancelled
            backend.update("m", cancel())
            # Then the oldest marks are gone
            ((count,),) = connection.execute(f"SELECT count(*) FROM {LOG}")
        assert count == MAX_LOGGED
        # And workers find the message
        _, marks = backend.read_cancels(None)
        assert marks[-1] == mark_of("m")


def test_memcached_keeps_the_log_for_a_time(memcached_url: str, memcached_server: MemcachedServer) -> None:
    with closing(MemcachedBackend(servers=memcached_server.address, timeout=20_000)) as backend:
        backend.update_many([("m", enqueue()), ("m", cancel())])
        reply = memcached_server.ask(b"mg " + backend._log_key + b" t\r\n").split()
    assert reply[0] == b"HD" and LOG_TTL // 1000 - 60 < int(reply[1][1:]) <= LOG_TTL // 1000


def test_a_log_of_one_text_has_the_newest_marks() -> None:
    # Given more messages than the log may have
    log = add_to_log("5 ", [f"m{number}" for number in range(MAX_MARKS + 10)])
    # Then it has the newest ones, and counts all
    position, marks = read_log(log, 5)
    assert position == 5 + MAX_MARKS + 10 and len(log) < MAX_MARKS * 8 + 30
    assert marks == [mark_of(f"m{number}") for number in range(10, MAX_MARKS + 10)]
