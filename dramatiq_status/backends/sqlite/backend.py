"""The SQLite backend: a row a message, in a file that many processes of one host share."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..._time import host_time_ns
from ...backend import Listed, Query, StatusBackend
from ...cursor import Cursor
from ...record import (
    ACTOR_NAME,
    MAX_WHOLE_NUMBER,
    QUEUE_NAME,
    STATE,
    STATES,
    Record,
    from_document,
    is_finished,
    to_document,
)
from ...update import Outcome, Update, apply, is_stored, is_transition
from .._query import wanted_by
from .connections import Connections

#: The name ends with the number of the format: another one will have tables of its own.
TABLE: Final = "dramatiq_status_1"

#: `place` orders the messages of a namespace by their last change of
#: state, and a page is read off the end of an index, nothing of what it
#: leaves out being looked up.  `actor` and `queue` are JSON texts, as in
#: the record.  A list by both has the index of the one that has fewer
#: messages: an index of both would cost every transition a tenth.
#:
#: `gone_by` is when an index takes a row for expired: never before
#: `expires_at`, and a little later while the message lives.  So, most
#: writes that renew the expiry leave the indexes of lists as they are;
#: they would take half as long again.  Rows that have expired and are not
#: gone are few, and have an index of their own.
SCHEMA: Final = (
    f"""
    CREATE TABLE IF NOT EXISTS {TABLE} (
        namespace TEXT NOT NULL,
        message_id TEXT NOT NULL,
        document BLOB NOT NULL,
        expires_at INTEGER NOT NULL,
        gone_by INTEGER NOT NULL,
        place INTEGER NOT NULL,
        state TEXT NOT NULL,
        actor TEXT,
        queue TEXT,
        UNIQUE (namespace, message_id)
    )
    """,
    f"CREATE INDEX IF NOT EXISTS {TABLE}_gone ON {TABLE} (expires_at) WHERE expires_at = gone_by",
    f"CREATE INDEX IF NOT EXISTS {TABLE}_expiry ON {TABLE} (expires_at, gone_by) WHERE expires_at < gone_by",
    f"CREATE INDEX IF NOT EXISTS {TABLE}_places ON {TABLE} (namespace, place, gone_by)",
    f"CREATE INDEX IF NOT EXISTS {TABLE}_states ON {TABLE} (namespace, state, place, gone_by)",
    f"CREATE INDEX IF NOT EXISTS {TABLE}_actors ON {TABLE} (namespace, actor, state, place, queue, gone_by)",
    f"CREATE INDEX IF NOT EXISTS {TABLE}_queues ON {TABLE} (namespace, queue, state, place, actor, gone_by)",
)

#: The columns of the fields that lists are filtered by.
COLUMNS: Final = {STATE: "state", ACTOR_NAME: "actor", QUEUE_NAME: "queue"}

#: Which index a list has that is filtered by a column, or by that and the state.
INDEXES: Final = {"actor": "actors", "queue": "queues", "state": "states"}

#: How many rows are asked for at once.  SQLite before 3.32 takes 999 variables.
ROWS_A_QUERY: Final = 900

#: How many expired rows a call deletes for each message whose state it changes.
SWEPT_A_ROW: Final = 8

#: A call that changes more messages than this deletes one expired row for
#: each, and any other at most so many: others wait for it.
MAX_SWEPT: Final = 200

#: Which part of its time to live the indexes keep a message longer that is
#: not finished: of a week, two and a half hours.
SLACK: Final = 64

#: How far to count when it is asked which of two indexes has less to look through.
FEW: Final = 200

#: A place that no message has: every place is lower.
END_OF_PLACES: Final = MAX_WHOLE_NUMBER + 1

#: Latest timestamp that a column can hold.
END_OF_TIME: Final = 2**63 - 1

_FETCH = f"""
    SELECT message_id, document, expires_at, gone_by, place FROM {TABLE} WHERE namespace = ? AND message_id IN ({{}})
    """
_STORE = f"""
    INSERT INTO {TABLE} (namespace, message_id, document, expires_at, gone_by, place, state, actor, queue)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (namespace, message_id) DO UPDATE SET document = excluded.document, expires_at = excluded.expires_at,
        gone_by = excluded.gone_by, place = excluded.place, state = excluded.state, actor = excluded.actor,
        queue = excluded.queue
    """
_REWRITE = f"UPDATE {TABLE} SET document = ?, expires_at = ? WHERE namespace = ? AND message_id = ?"
_DELETE = f"DELETE FROM {TABLE} WHERE namespace = ? AND message_id = ? AND expires_at > ?"
_SWEEP = f"""
    DELETE FROM {TABLE} WHERE rowid IN (
        SELECT * FROM (
            SELECT rowid FROM {TABLE} INDEXED BY {TABLE}_gone
            WHERE expires_at = gone_by AND expires_at <= :now ORDER BY expires_at LIMIT :most)
        UNION ALL SELECT * FROM (
            SELECT rowid FROM {TABLE} INDEXED BY {TABLE}_expiry
            WHERE expires_at < gone_by AND expires_at <= :now ORDER BY expires_at LIMIT :most)
        LIMIT :most)
    """
# Another program may have stored any value in a row: the place of a message is never counted on from that.
_LAST_PLACE = f"SELECT max(place) FROM {TABLE} WHERE namespace = ? AND place BETWEEN 0 AND {MAX_WHOLE_NUMBER}"
#: What the indexes of lists do not know to be expired.
_LATE = f"{TABLE} INDEXED BY {TABLE}_expiry WHERE expires_at < gone_by AND expires_at <= :now AND gone_by > :now"


class _Row(NamedTuple):
    """A row of the table: its record, None where there is none, and the columns that no record holds."""

    record: Record | None
    expires_at: int
    gone_by: int
    place: int


_NO_ROW: Final = _Row(None, 0, 0, 0)


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
    time, as messages change their states, and their space is used again;
    the file itself does not shrink.

    A page of a list takes the same time wherever it is, however many statuses there
    are.  To count 100,000 takes about 10 milliseconds.  Rows that have expired
    and are not yet deleted take their time, too.

    All processes date and expire statuses by the clock of their host.
    A process that freezes its time (freezegun) uses it, too: it neither
    misses the statuses of others nor deletes them.

    When the file is deleted or replaced, the backend notices within a
    second and goes on with what is there then, a new one if need be.

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
        self.path: Path = _check_path(path)
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
            if is_stored(applied.outcome) and is_transition(record, update):
                moved.pop(message_id, None)
                moved[message_id] = None
        if moved:
            (last,) = connection.execute(_LAST_PLACE, (self.namespace,)).fetchone()
            for place, message_id in enumerate(moved, int(last or 0) + 1):
                rows[message_id] = rows[message_id]._replace(place=place)
        for message_id, row in rows.items():
            self._store(connection, message_id, found.get(message_id, _NO_ROW), row, now)
        if moved:
            most = max(min(len(moved) * SWEPT_A_ROW, MAX_SWEPT), len(moved))
            connection.execute(_SWEEP, {"now": now, "most": most})
        connection.execute("COMMIT")
        return outcomes

    def _store(self, connection: sqlite3.Connection, message_id: str, old: _Row, row: _Row, now: int) -> None:
        record, expires_at, gone_by, place = row
        assert record is not None
        document = to_document(record).encode()
        columns = [record.get(name) for name in COLUMNS]
        is_listed_alike = place == old.place and columns == [(old.record or {}).get(name) for name in COLUMNS]
        if is_listed_alike and expires_at <= gone_by:
            # The indexes of lists need not be touched.
            connection.execute(_REWRITE, (document, expires_at, self.namespace, message_id))
            return
        gone_by = expires_at if is_finished(record) else min(expires_at + (expires_at - now) // SLACK, END_OF_TIME)
        connection.execute(_STORE, (self.namespace, message_id, document, expires_at, gone_by, place, *columns))

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
            for message_id, document, *rest in connection.execute(query, keys).fetchall():
                if all(isinstance(number, int) for number in rest):
                    rows[message_id] = _Row(_to_record(document), *rest)
        return rows

    # Listing

    def find(self, query: Query, *, limit: int, after: Cursor | None) -> list[Listed]:
        wanted = self._wanted(query)
        # No two messages have the same place.
        values = {**wanted, "limit": limit, "below": END_OF_PLACES if after is None else after.position}
        rows = self._connections.call(
            lambda connection: connection.execute(_page(connection, wanted), values).fetchall()
        )
        return [
            Listed(str(message_id), _to_record(document) if isinstance(message_id, str) else None, int(place))
            for message_id, document, place in rows
        ]

    def count(self, query: Query) -> int:
        wanted = self._wanted(query)

        def count(connection: sqlite3.Connection) -> Any:
            index = _choose_index(connection, wanted)
            # All by one index, but for the few that another one knows to be expired.
            statement = f"""
                SELECT (SELECT count(*) FROM {TABLE} INDEXED BY {TABLE}_{index}
                    WHERE {_conditions(wanted)} AND gone_by > :now) -
                    (SELECT count(*) FROM {_LATE} AND {_conditions(wanted)})
                """
            return connection.execute(statement, wanted).fetchone()[0]

        return int(self._connections.call(count))

    def _wanted(self, query: Query) -> dict[str, Any]:
        fields = wanted_by(query)
        columns = {column: fields[name] for name, column in COLUMNS.items() if name in fields}
        return {"namespace": self.namespace, "now": self.now(), **columns}

    # Clock and connections

    def now(self) -> int:
        """The current time by the clock of the host, in epoch milliseconds; no test freezes it."""
        return host_time_ns() // 1_000_000

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


def _page(connection: sqlite3.Connection, wanted: Mapping[str, Any]) -> str:
    """The query for a page: what its index leaves out is not looked up."""
    index = _choose_index(connection, wanted)
    (is_late,) = connection.execute(f"SELECT EXISTS (SELECT 1 FROM {_LATE})", wanted).fetchone()
    alive = f"gone_by > :now AND rowid NOT IN (SELECT rowid FROM {_LATE})" if is_late else "gone_by > :now"
    # The newest of each state are merged where the index has one state after another.
    states = [""] if "state" in wanted or index == "places" else [f" AND state = '{n}'" for n in range(len(STATES))]
    page = " UNION ALL ".join(
        f"SELECT rowid AS id, place FROM {TABLE} INDEXED BY {TABLE}_{index} "
        f"WHERE {_conditions(wanted)}{state} AND place >= 0 AND place < :below AND {alive}"
        for state in states
    )
    return f"""
        SELECT message_id, document, page.place
        FROM ({page} ORDER BY place DESC LIMIT :limit) AS page
        JOIN {TABLE} ON {TABLE}.rowid = page.id ORDER BY page.place DESC
        """


def _choose_index(connection: sqlite3.Connection, wanted: Mapping[str, Any]) -> str:
    """The index with the least to pass that the list does not want."""
    if "actor" in wanted and "queue" in wanted:
        of_queue, of_actor = (
            connection.execute(
                f"SELECT count(*) FROM (SELECT 1 FROM {TABLE} INDEXED BY {TABLE}_{index} "
                f"WHERE namespace = :namespace AND {column} = :{column} LIMIT {FEW})",
                wanted,
            ).fetchone()[0]
            for index, column in (("queues", "queue"), ("actors", "actor"))
        )
        return "queues" if of_queue < of_actor else "actors"
    return next((index for column, index in INDEXES.items() if column in wanted), "places")


def _conditions(wanted: Iterable[str]) -> str:
    return " AND ".join(f"{column} = :{column}" for column in ("namespace", *COLUMNS.values()) if column in wanted)


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
