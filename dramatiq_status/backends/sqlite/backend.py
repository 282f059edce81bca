"""The SQLite backend: one row for each message, in a file that many processes of one host share."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..._time import host_time_ns
from ...backend import Listed, Query, StatusBackend
from ...cancel_log import MAX_LOGGED, cancelled_by, mark_of
from ...cursor import Cursor
from ...record import MAX_WHOLE_NUMBER, Record, from_document, is_finished, to_document
from ...update import Outcome, Update, apply, is_moved
from .._query import wanted_by
from .connections import Connections
from .listing import count_query, page_query
from .schema import COLUMNS, LOG, TABLE, prepare

#: Maximum number of rows of a query.  SQLite before 3.32 takes 999 variables.
ROWS_PER_QUERY: Final = 900

#: Number of expired rows that a call deletes for each message whose state it changes.
SWEPT_PER_CHANGE: Final = 8

#: Maximum number of expired rows that a call deletes, because other writers wait in the meantime.  A call that changes
#: the states of more messages may delete one row for each of them.
MAX_SWEPT: Final = 200

#: Divisor of the time to live of an unfinished message: the indexes of lists keep the message longer by the quotient.
#: Example: with a time to live of a week, the indexes keep the message for 2.6 hours more.
LISTING_MARGIN: Final = 64

#: Exclusive upper limit of a position.
END_OF_POSITIONS: Final = MAX_WHOLE_NUMBER + 1

#: The latest time that a column can contain, in epoch milliseconds.
END_OF_TIME: Final = 2**63 - 1

_FETCH = f"""
    SELECT message_id, document, expires_at, listed_until, position
    FROM {TABLE} WHERE namespace = ? AND message_id IN ({{}})
    """
_STORE = f"""
    INSERT INTO {TABLE} (namespace, message_id, document, expires_at, listed_until, position, state, actor, queue)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (namespace, message_id) DO UPDATE SET document = excluded.document, expires_at = excluded.expires_at,
        listed_until = excluded.listed_until, position = excluded.position, state = excluded.state,
        actor = excluded.actor, queue = excluded.queue
    """
_REWRITE = f"UPDATE {TABLE} SET document = ?, expires_at = ? WHERE namespace = ? AND message_id = ?"
_DELETE = f"DELETE FROM {TABLE} WHERE namespace = ? AND message_id = ? AND expires_at > ?"
_SWEEP = f"""
    DELETE FROM {TABLE} WHERE rowid IN (
        SELECT * FROM (
            SELECT rowid FROM {TABLE} INDEXED BY {TABLE}_gone
            WHERE expires_at = listed_until AND expires_at <= :now ORDER BY expires_at LIMIT :most)
        UNION ALL SELECT * FROM (
            SELECT rowid FROM {TABLE} INDEXED BY {TABLE}_expiry
            WHERE expires_at < listed_until AND expires_at <= :now ORDER BY expires_at LIMIT :most)
        LIMIT :most)
    """
# Another program may have stored any value in a row.  The next position is not derived from such a value.
_LAST_POSITION = f"SELECT max(position) FROM {TABLE} WHERE namespace = ? AND position BETWEEN 0 AND {MAX_WHOLE_NUMBER}"
_READ_LOG = f"SELECT position, mark FROM {LOG} WHERE namespace = ? AND position > ? ORDER BY position"


class _Row(NamedTuple):
    """A row of the table: its record, None for none, and the columns that are not in the record."""

    record: Record | None
    expires_at: int
    listed_until: int
    position: int


_NO_ROW: Final = _Row(None, 0, 0, 0)


class SQLiteBackend(StatusBackend):
    """A backend that stores statuses in a SQLite_ file, which any number of processes of one host share.  It needs no
    server and no package.

    The updates of a call are one transaction.  Only one thread of one process writes at a time, and the others wait for
    up to `timeout`.  Readers never wait, because the file is in WAL mode.  While the file is in use, there are two more
    files beside it.  The file must be on a disk of this host, and not on NFS, SMB or the like.

    Statuses survive a process that is killed.  They also survive a power failure, except for the writes of the last
    moments before it, because no call waits for the disk (``synchronous=NORMAL``).

    Expired statuses are never shown.  Each change of a state deletes a few of their rows, and SQLite uses their space
    again.  The file itself does not shrink.

    The time for a page of a list depends neither on its place nor on the number of statuses.  A count of 100,000
    statuses takes about 10 milliseconds.  Expired rows that are not deleted yet also take time.

    All times and expiries come from the clock of the host.  A process whose time is frozen by freezegun also uses the
    clock of the host.  So it finds the statuses of other processes, and does not delete them as expired.

    When the file is deleted or replaced, the backend notices it within a second, and continues with the file that is
    there then.  It creates a new one if there is none.

    The backend may be used before and after a fork.  A server that forks in C (uWSGI) has to call ``close()`` before
    it forks.

    Parameters:
      path(str | os.PathLike): The file.  The backend creates it if there is none.  The file may have other tables as
        well, but a file of its own is better.
      namespace(str): Separates the rows of this backend from those of others.
      timeout(int): Milliseconds that a call may wait for other writers.
      max_field_size(int): Maximum size of an encoded field, in bytes.

    Raises:
      TypeError: When `path` is neither a str nor an os.PathLike.
      ValueError: When `path` is empty, ``:memory:``, a ``file:`` URI or a directory, or in a directory that does not
        exist.

    .. _SQLite: https://sqlite.org
    """

    def __init__(self, path: str | os.PathLike[str], **parameters: Any) -> None:
        super().__init__(**parameters)
        self.path: Path = _check_path(path)
        self._connections = Connections(self.path, self.timeout, prepare)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {str(self.path)!r} {self.namespace!r}>"

    # Writing

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        if not updates:
            return []
        return self._connections.call(lambda connection: self._carry_out(connection, updates))

    def _carry_out(self, connection: sqlite3.Connection, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        connection.execute("BEGIN IMMEDIATE")
        now = self.now()
        found = self._fetch(connection, [message_id for message_id, _ in updates])
        rows: dict[str, _Row] = {}
        # Messages that get a new position, the newest last.
        moved: dict[str, None] = {}
        outcomes = []
        for message_id, update in updates:
            row = rows.get(message_id) or found.get(message_id, _NO_ROW)
            record = row.record if row.expires_at > now else None
            applied = apply(record, update, now)
            outcomes.append(applied.outcome)
            if applied.record is None or applied.record is record:
                continue
            expires_at = row.expires_at if applied.ttl is None else min(now + applied.ttl, END_OF_TIME)
            rows[message_id] = row._replace(record=applied.record, expires_at=expires_at)
            if is_moved(record, update, applied):
                moved.pop(message_id, None)
                moved[message_id] = None
        if moved:
            (last,) = connection.execute(_LAST_POSITION, (self.namespace,)).fetchone()
            for position, message_id in enumerate(moved, int(last or 0) + 1):
                rows[message_id] = rows[message_id]._replace(position=position)
        for message_id, row in rows.items():
            self._store(connection, message_id, found.get(message_id, _NO_ROW), row, now)
        if moved:
            most = max(min(len(moved) * SWEPT_PER_CHANGE, MAX_SWEPT), len(moved))
            connection.execute(_SWEEP, {"now": now, "most": most})
        if cancelled := cancelled_by(updates, outcomes):
            marks = [(self.namespace, mark_of(message_id)) for message_id in cancelled]
            connection.executemany(f"INSERT INTO {LOG} (namespace, mark) VALUES (?, ?)", marks)
            connection.execute(f"DELETE FROM {LOG} WHERE position <= (SELECT max(position) FROM {LOG}) - {MAX_LOGGED}")
        connection.execute("COMMIT")
        return outcomes

    def read_cancels(self, position: Any) -> tuple[int, list[int]]:
        key = self.namespace, position or 0
        rows = self._connections.call(lambda connection: connection.execute(_READ_LOG, key).fetchall())
        marks = [mark for _, mark in rows if isinstance(mark, int)]
        return max([position or 0, *[found for found, _ in rows]]), marks

    def _store(self, connection: sqlite3.Connection, message_id: str, old: _Row, row: _Row, now: int) -> None:
        record, expires_at, listed_until, position = row
        assert record is not None
        document = to_document(record).encode()
        columns = [record.get(name) for name in COLUMNS]
        has_same_columns = position == old.position and columns == [(old.record or {}).get(name) for name in COLUMNS]
        if has_same_columns and expires_at <= listed_until:
            # The indexes of lists stay unchanged.
            connection.execute(_REWRITE, (document, expires_at, self.namespace, message_id))
            return
        listed_until = (
            expires_at if is_finished(record) else min(expires_at + (expires_at - now) // LISTING_MARGIN, END_OF_TIME)
        )
        connection.execute(_STORE, (self.namespace, message_id, document, expires_at, listed_until, position, *columns))

    def delete(self, message_id: str) -> bool:
        key = self.namespace, message_id, self.now()
        return self._connections.call(lambda connection: connection.execute(_DELETE, key).rowcount > 0)

    # Reading

    def read_many(self, message_ids: Sequence[str]) -> list[Record | None]:
        if not message_ids:
            return []
        rows = self._connections.call(lambda connection: self._fetch(connection, message_ids))
        now = self.now()
        found = (rows.get(message_id, _NO_ROW) for message_id in message_ids)
        return [row.record if row.expires_at > now else None for row in found]

    def _fetch(self, connection: sqlite3.Connection, message_ids: Sequence[str]) -> dict[str, _Row]:
        rows = {}
        for first in range(0, len(message_ids), ROWS_PER_QUERY):
            ids = list(message_ids[first : first + ROWS_PER_QUERY])
            # The number of variables is a power of two, so that SQLite has to cache only a few statements.
            size = min(1 << (len(ids) - 1).bit_length(), ROWS_PER_QUERY)
            query = _FETCH.format(", ".join("?" * size))
            keys = [self.namespace, *ids, *ids[-1:] * (size - len(ids))]
            for message_id, document, *rest in connection.execute(query, keys).fetchall():
                if all(isinstance(number, int) for number in rest):
                    rows[message_id] = _Row(_to_record(document), *rest)
        return rows

    # Listing

    def find(self, query: Query, *, limit: int, after: Cursor | None) -> list[Listed]:
        wanted = self._wanted(query)
        # Each message of a namespace has its own position.
        values = {**wanted, "limit": limit, "below": END_OF_POSITIONS if after is None else after.position}
        rows = self._connections.call(
            lambda connection: connection.execute(page_query(connection, wanted), values).fetchall()
        )
        return [
            Listed(str(message_id), _to_record(document) if isinstance(message_id, str) else None, int(position))
            for message_id, document, position in rows
        ]

    def count(self, query: Query) -> int:
        wanted = self._wanted(query)
        (count,) = self._connections.call(
            lambda connection: connection.execute(count_query(connection, wanted), wanted).fetchone()
        )
        return int(count)

    def _wanted(self, query: Query) -> dict[str, Any]:
        fields = wanted_by(query)
        columns = {column: fields[name] for name, column in COLUMNS.items() if name in fields}
        return {"namespace": self.namespace, "now": self.now(), **columns}

    # Clock and connections

    def now(self) -> int:
        """Return the current time by the clock of the host, in epoch milliseconds.  freezegun does not freeze this
        clock.
        """
        return host_time_ns() // 1_000_000

    def close(self) -> None:
        self._connections.close()


def _check_path(path: Any) -> Path:
    """Check the path of a file, and make it absolute, because a worker may change its directory."""
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise TypeError(f"path must be a str or an os.PathLike, not {type(path).__name__}.") from None
    if not text or text.startswith((":memory:", "file:")):
        raise ValueError(
            f"path must be the name of a file that processes share, not {text!r}. To keep statuses in memory, for "
            f"tests, use StubBackend()."
        )
    checked = Path(os.path.abspath(text))
    if checked.is_dir():
        raise ValueError(f"path must be the name of a file, and {str(checked)!r} is a directory.")
    if not checked.parent.is_dir():
        raise ValueError(
            f"path is {str(checked)!r}, but there is no directory {str(checked.parent)!r}: create it first."
        )
    return checked


def _to_record(document: object) -> Record | None:
    try:
        return from_document(document.decode()) if isinstance(document, bytes) else None
    except UnicodeDecodeError:
        return None
