"""The SQLite backend: a row a message, in a file that many processes of one host share."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..backend import Query, StatusBackend
from ..record import (
    ACTOR_NAME,
    QUEUE_NAME,
    STATE,
    STATES,
    Outcome,
    Record,
    Update,
    apply,
    from_document,
    is_transition,
    to_document,
)
from ._query import wanted_by
from ._sqlite import Connections

#: The name ends with the number of the format: another one will have tables of its own.
TABLE: Final = "dramatiq_status_1"

#: `place` orders the messages of a namespace by their last change of
#: state.  An index ends with what lists are ordered by, so that a page is
#: read off its end; `actor` and `queue` are JSON texts, as in the record.
#: An actor's messages are in one queue, as a rule, so that a list by both
#: has the index of actors: one more would cost every transition a tenth.
SCHEMA: Final = (
    f"""
    CREATE TABLE IF NOT EXISTS {TABLE} (
        namespace TEXT NOT NULL,
        message_id TEXT NOT NULL,
        document BLOB NOT NULL,
        expires_at INTEGER NOT NULL,
        place INTEGER NOT NULL,
        state TEXT NOT NULL,
        actor TEXT,
        queue TEXT,
        UNIQUE (namespace, message_id)
    )
    """,
    f"CREATE INDEX IF NOT EXISTS {TABLE}_expiry ON {TABLE} (expires_at)",
    f"CREATE INDEX IF NOT EXISTS {TABLE}_states ON {TABLE} (namespace, state, place)",
    f"CREATE INDEX IF NOT EXISTS {TABLE}_actors ON {TABLE} (namespace, actor, state, place, queue)",
    f"CREATE INDEX IF NOT EXISTS {TABLE}_queues ON {TABLE} (namespace, queue, state, place)",
)

#: The columns of the fields that lists are filtered by.
COLUMNS: Final = {STATE: "state", ACTOR_NAME: "actor", QUEUE_NAME: "queue"}

#: How many rows are asked for at once.  SQLite before 3.32 takes 999 variables.
ROWS_A_QUERY: Final = 900

#: How many expired rows are deleted for each one that is made.
SWEPT_A_ROW: Final = 8

#: The latest moment that a column can hold.
END_OF_TIME: Final = 2**63 - 1

_FETCH = f"SELECT message_id, document, expires_at, place FROM {TABLE} WHERE namespace = ? AND message_id IN ({{}})"
_STORE = f"""
    INSERT INTO {TABLE} (namespace, message_id, document, expires_at, place, state, actor, queue)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (namespace, message_id) DO UPDATE SET document = excluded.document, expires_at = excluded.expires_at,
        place = excluded.place, state = excluded.state, actor = excluded.actor, queue = excluded.queue
    """
_REWRITE = f"UPDATE {TABLE} SET document = ?, expires_at = ? WHERE namespace = ? AND message_id = ?"
_DELETE = f"DELETE FROM {TABLE} WHERE namespace = ? AND message_id = ? AND expires_at > ?"
_SWEEP = f"""
    DELETE FROM {TABLE} WHERE rowid IN
        (SELECT rowid FROM {TABLE} WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)
    """
_LAST_PLACE = "SELECT max(place) FROM ({})".format(
    " UNION ALL ".join(
        f"SELECT max(place) AS place FROM {TABLE} WHERE namespace = :namespace AND state = '{state}'"
        for state in range(len(STATES))
    )
)
#: Expired rows are few, and to look each row up would take longer.
_ALIVE = f"rowid NOT IN (SELECT rowid FROM {TABLE} WHERE expires_at <= :now)"


class _Row(NamedTuple):
    """A row of the table: its record, None where there is none, and the columns that no record holds."""

    record: Record | None
    expires_at: int
    place: int


_NO_ROW: Final = _Row(None, 0, 0)


class SQLiteBackend(StatusBackend):
    """Keeps statuses in a SQLite_ file, which any number of processes of
    one host use together.  It needs no server and no package.

    The updates of a call are one transaction.  Only one process writes at
    a time; others wait for up to `timeout`, and readers never do (the
    file is in WAL mode, with two more beside it while it is in use).  It
    must be on a disk of this host: not on NFS, SMB and the like.

    What was stored survives a process that is killed.  It also survives
    a power failure, but for the last moments before it: nobody waits for
    the disk (``synchronous=NORMAL``).

    Expired statuses are never shown.  Their rows are deleted a few at a
    time, as new ones are made, and their space is used again; the file
    itself does not shrink.

    It may be used before and after a fork.  A server that forks in C
    (uWSGI) has to call :meth:`close` before it does.

    Parameters:
      path(str | os.PathLike): The file; it is made where there is none.
        A file that has other tables too will do, a file of its own is better.
      namespace(str): Which rows are this backend's.
      timeout(int): How long one call may wait for others, in milliseconds.
      max_field_size(int): The largest encoded field, in bytes.

    Raises:
      ValueError: When `path` is ``:memory:``, or in a directory that is not there.

    .. _SQLite: https://sqlite.org
    """

    def __init__(self, path: str | os.PathLike[str], **parameters: Any) -> None:
        super().__init__(**parameters)
        self.path = _check_path(path)
        self._connections = Connections(self.path, self.timeout, _prepare)

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
        # The messages that come first in a list from now on, the newest last.
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
            if applied.outcome is Outcome.APPLIED and is_transition(record, update):
                moved.pop(message_id, None)
                moved[message_id] = None
        if moved:
            (last,) = connection.execute(_LAST_PLACE, {"namespace": self.namespace}).fetchone()
            for place, message_id in enumerate(moved, (last or 0) + 1):
                rows[message_id] = rows[message_id]._replace(place=place)
        for message_id, row in rows.items():
            self._store(connection, message_id, found.get(message_id, _NO_ROW), row)
        made = sum(message_id not in found for message_id in rows)
        if made:
            connection.execute(_SWEEP, (now, made * SWEPT_A_ROW))
        connection.execute("COMMIT")
        return outcomes

    def _store(self, connection: sqlite3.Connection, message_id: str, old: _Row, row: _Row) -> None:
        record, expires_at, place = row
        assert record is not None
        document = to_document(record).encode()
        if place == old.place and all(record.get(name) == (old.record or {}).get(name) for name in COLUMNS):
            # Four of the indexes need not be touched.
            connection.execute(_REWRITE, (document, expires_at, self.namespace, message_id))
        else:
            columns = (record.get(name) for name in COLUMNS)
            connection.execute(_STORE, (self.namespace, message_id, document, expires_at, place, *columns))

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
        for first in range(0, len(message_ids), ROWS_A_QUERY):
            ids = list(message_ids[first : first + ROWS_A_QUERY])
            # One of few numbers of variables: statements are kept that are used again.
            size = min(1 << (len(ids) - 1).bit_length(), ROWS_A_QUERY)
            query = _FETCH.format(", ".join("?" * size))
            keys = [self.namespace, *ids, *ids[-1:] * (size - len(ids))]
            for message_id, document, expires_at, place in connection.execute(query, keys).fetchall():
                rows[message_id] = _Row(_to_record(document), expires_at, place)
        return rows

    # Listing

    def find(self, query: Query, *, limit: int, offset: int) -> list[tuple[str, Record]]:
        wanted = self._wanted(query)
        # The newest of each state are merged: that many steps, however many messages there are.
        states = [query.state] if query.state is not None else range(len(STATES))
        index = "actors" if "actor" in wanted else "queues" if "queue" in wanted else "states"
        page = " UNION ALL ".join(
            f"SELECT rowid AS id, place FROM {TABLE} INDEXED BY {TABLE}_{index} "
            f"WHERE {_conditions(wanted)} AND state = '{state}' AND {_ALIVE}"
            for state in states
        )
        statement = f"""
            SELECT message_id, document
            FROM ({page} ORDER BY place DESC LIMIT :limit OFFSET :offset) AS page
            JOIN {TABLE} ON {TABLE}.rowid = page.id ORDER BY page.place DESC
            """
        values = {**wanted, "limit": limit, "offset": offset}
        rows = self._connections.call(lambda connection: connection.execute(statement, values).fetchall())
        found = [(message_id, _to_record(document)) for message_id, document in rows]
        return [(message_id, record) for message_id, record in found if record is not None]

    def count(self, query: Query) -> int:
        wanted = self._wanted(query)
        # All by one index, but for the few that another one knows to be expired.
        statement = f"""
            SELECT (SELECT count(*) FROM {TABLE} WHERE {_conditions(wanted)}) -
                (SELECT count(*) FROM {TABLE} WHERE expires_at <= :now AND {_conditions(wanted, "+")})
            """
        ((number,),) = self._connections.call(lambda connection: connection.execute(statement, wanted).fetchall())
        return int(number)

    def _wanted(self, query: Query) -> dict[str, Any]:
        fields = wanted_by(query)
        columns = {column: fields[name] for name, column in COLUMNS.items() if name in fields}
        return {"namespace": self.namespace, "now": self.now(), **columns}

    # Closing

    def close(self) -> None:
        self._connections.close()


def _check_path(path: Any) -> Path:
    """Check where a file is to be, and make it absolute: a worker may go to another directory."""
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise TypeError(f"path must be a str or an os.PathLike, not {type(path).__name__}.") from None
    if not text or text.startswith((":memory:", "file:")):
        raise ValueError(
            f"path must be the name of a file, which processes share, not {text!r}: to keep statuses in memory, "
            f"for tests, use StubBackend()."
        )
    checked = Path(os.path.abspath(text))
    if checked.is_dir():
        raise ValueError(f"path must be the name of a file, and {str(checked)!r} is a directory.")
    if not checked.parent.is_dir():
        raise ValueError(
            f"path is {str(checked)!r}, but there is no directory {str(checked.parent)!r}: create it first."
        )
    return checked


def _conditions(wanted: Iterable[str], no_index: str = "") -> str:
    columns = ("namespace", *COLUMNS.values())
    return " AND ".join(f"{no_index}{column} = :{column}" for column in columns if column in wanted)


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL").fetchall()
    connection.execute("PRAGMA synchronous = NORMAL")
    last = f"SELECT 1 FROM sqlite_master WHERE name = '{TABLE}_queues'"
    if not connection.execute(last).fetchall():
        connection.execute("BEGIN IMMEDIATE")
        for statement in SCHEMA:
            connection.execute(statement)
        connection.execute("COMMIT")


def _to_record(document: object) -> Record | None:
    try:
        return from_document(document.decode()) if isinstance(document, bytes) else None
    except UnicodeDecodeError:
        return None
