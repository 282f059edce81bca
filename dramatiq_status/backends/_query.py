"""The fields by which a query selects records."""

from __future__ import annotations

from ..backend import Query
from ..fields import encode_value
from ..record import ACTOR_NAME, QUEUE_NAME, STATE, Record


def wanted_by(query: Query) -> Record:
    """Return the stored names and JSON texts that a record must contain to be selected by a query.

    >>> wanted_by(Query(state=1, actor_name="import_rows"))
    {'s': '1', 'a': '"import_rows"'}
    """
    wanted = {} if query.state is None else {STATE: str(query.state)}
    for stored, name in ((ACTOR_NAME, query.actor_name), (QUEUE_NAME, query.queue_name)):
        if name is not None:
            wanted[stored] = encode_value("name", name, 6 * len(name) + 2)
    return wanted
