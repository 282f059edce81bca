"""What a query asks of a record."""

from __future__ import annotations

from ..backend import Query
from ..fields import encode_value
from ..record import ACTOR_NAME, QUEUE_NAME, STATE, Record


def wanted_by(query: Query) -> Record:
    """The fields that the records have which a query is for: stored name -> JSON text.

    >>> wanted_by(Query(state=1, actor_name="import_rows"))
    {'s': '1', 'a': '"import_rows"'}
    """
    wanted = {} if query.state is None else {STATE: str(query.state)}
    for stored, name in ((ACTOR_NAME, query.actor_name), (QUEUE_NAME, query.queue_name)):
        if name is not None:
            wanted[stored] = encode_value("name", name, 6 * len(name) + 2)
    return wanted
