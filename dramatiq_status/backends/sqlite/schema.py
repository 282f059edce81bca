"""The table of statuses in a SQLite file, and its indexes."""

from __future__ import annotations

import sqlite3
from typing import Final

from ...record import ACTOR_NAME, QUEUE_NAME, STATE

#: Name of the table.  It ends with the number of the format: another format will have tables of its own.
TABLE: Final = "dramatiq_status_1"

#: Statements that create the table and its indexes.
#:
#: `position` orders the messages of a namespace by their last change of state.  An index contains all columns by which
#: a list selects.  So SQLite reads a page from the end of the index, and looks up only the rows of the page.  `actor`
#: and `queue` are JSON texts, as in the record.  A list by actor and queue uses the index in which fewer messages have
#: the wanted value.  An index of both columns would make each change of a state a tenth slower.
#:
#: `listed_until` is the time at which a row expires for the indexes of lists: never before `expires_at`, and a little
#: later while the message is unfinished.  So these indexes stay unchanged by most updates that extend the time to live.
#: Otherwise an update would take 1.5 times as long.  Rows with ``expires_at <= now < listed_until`` are few.
#: Queries find them in the index ``_expiry``.
SCHEMA: Final = (
    f"""
    CREATE TABLE IF NOT EXISTS {TABLE} (
        namespace TEXT NOT NULL,
        message_id TEXT NOT NULL,
        document BLOB NOT NULL,
        expires_at INTEGER NOT NULL,
        listed_until INTEGER NOT NULL,
        position INTEGER NOT NULL,
        state TEXT NOT NULL,
        actor TEXT,
        queue TEXT,
        UNIQUE (namespace, message_id)
    )
    """,
    f"CREATE INDEX IF NOT EXISTS {TABLE}_gone ON {TABLE} (expires_at) WHERE expires_at = listed_until",
    f"CREATE INDEX IF NOT EXISTS {TABLE}_expiry ON {TABLE} (expires_at, listed_until) WHERE expires_at < listed_until",
    f"CREATE INDEX IF NOT EXISTS {TABLE}_positions ON {TABLE} (namespace, position, listed_until)",
    f"CREATE INDEX IF NOT EXISTS {TABLE}_states ON {TABLE} (namespace, state, position, listed_until)",
    f"CREATE INDEX IF NOT EXISTS {TABLE}_actors ON {TABLE} (namespace, actor, state, position, queue, listed_until)",
    f"CREATE INDEX IF NOT EXISTS {TABLE}_queues ON {TABLE} (namespace, queue, state, position, actor, listed_until)",
)

#: Name of the table with the log of cancelled messages.  Its positions are never used again, even if all rows are
#: deleted.
LOG: Final = TABLE + "_cancels"
CREATE_LOG: Final = f"""
    CREATE TABLE IF NOT EXISTS {LOG} (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        namespace TEXT NOT NULL,
        mark INTEGER NOT NULL
    )
    """

#: Columns by which lists select: names of columns by stored names of fields.
COLUMNS: Final = {STATE: "state", ACTOR_NAME: "actor", QUEUE_NAME: "queue"}


def prepare(connection: sqlite3.Connection) -> None:
    """Prepare a new connection: set its pragmas, and create the tables if there are none."""
    connection.execute("PRAGMA journal_mode = WAL").fetchall()
    connection.execute("PRAGMA synchronous = NORMAL")
    last = f"SELECT 1 FROM sqlite_master WHERE name = '{LOG}'"
    if not connection.execute(last).fetchall():
        connection.execute("BEGIN IMMEDIATE")
        for statement in (*SCHEMA, CREATE_LOG):
            connection.execute(statement)
        connection.execute("COMMIT")
