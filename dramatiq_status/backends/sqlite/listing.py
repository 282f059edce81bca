"""The SQL queries of lists and counts.  Each query uses the index that fits best."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ...record import STATES
from .schema import COLUMNS, TABLE

#: Indexes of lists that select by a column, or by the column and the state.
INDEXES: Final = {"actor": "actors", "queue": "queues", "state": "states"}

#: Maximum number of rows that are counted in each of two indexes, to choose the smaller one.
MAX_COMPARED: Final = 200

#: Expired rows that the indexes of lists still contain.
_LATE = (
    f"{TABLE} INDEXED BY {TABLE}_expiry WHERE expires_at < listed_until AND expires_at <= :now AND listed_until > :now"
)


def page_query(connection: sqlite3.Connection, wanted: Mapping[str, Any]) -> str:
    """Return the query for a page: message ids, documents and positions, the newest first.

    Parameters:
      connection(sqlite3.Connection)
      wanted(Mapping[str, Any]): The values of columns that a message must have, with the namespace and, as ``now``, the
        current time.  The query also needs ``limit`` and ``below``, an exclusive upper limit of the positions.
    """
    index = _choose_index(connection, wanted)
    (is_late,) = connection.execute(f"SELECT EXISTS (SELECT 1 FROM {_LATE})", wanted).fetchone()
    alive = "listed_until > :now"
    if is_late:
        alive += f" AND rowid NOT IN (SELECT rowid FROM {_LATE})"
    # Where the state comes before the position in the index, the newest messages of each state are merged.
    states = [""] if "state" in wanted or index == "positions" else [f" AND state = '{n}'" for n in range(len(STATES))]
    page = " UNION ALL ".join(
        f"SELECT rowid AS id, position FROM {TABLE} INDEXED BY {TABLE}_{index} "
        f"WHERE {_conditions(wanted)}{state} AND position >= 0 AND position < :below AND {alive}"
        for state in states
    )
    return f"""
        SELECT message_id, document, page.position
        FROM ({page} ORDER BY position DESC LIMIT :limit) AS page
        JOIN {TABLE} ON {TABLE}.rowid = page.id ORDER BY page.position DESC
        """


def count_query(connection: sqlite3.Connection, wanted: Mapping[str, Any]) -> str:
    """Return the query for the number of messages: the rows of one index, minus the expired rows that the
    index still contains.

    Parameters:
      connection(sqlite3.Connection)
      wanted(Mapping[str, Any]): See :func:`page_query`.
    """
    index = _choose_index(connection, wanted)
    return f"""
        SELECT (SELECT count(*) FROM {TABLE} INDEXED BY {TABLE}_{index}
            WHERE {_conditions(wanted)} AND listed_until > :now) -
            (SELECT count(*) FROM {_LATE} AND {_conditions(wanted)})
        """


def _choose_index(connection: sqlite3.Connection, wanted: Mapping[str, Any]) -> str:
    """Return the index in which the query passes the fewest rows of other messages."""
    if "actor" in wanted and "queue" in wanted:
        of_queue, of_actor = (
            connection.execute(
                f"SELECT count(*) FROM (SELECT 1 FROM {TABLE} INDEXED BY {TABLE}_{index} "
                f"WHERE namespace = :namespace AND {column} = :{column} LIMIT {MAX_COMPARED})",
                wanted,
            ).fetchone()[0]
            for index, column in (("queues", "queue"), ("actors", "actor"))
        )
        return "queues" if of_queue < of_actor else "actors"
    return next((index for column, index in INDEXES.items() if column in wanted), "positions")


def _conditions(wanted: Iterable[str]) -> str:
    return " AND ".join(f"{column} = :{column}" for column in ("namespace", *COLUMNS.values()) if column in wanted)
