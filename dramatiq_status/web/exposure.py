"""Selection of the fields of a status that may leave the server, and the tag of a version."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

from ..names import check_names
from ..snapshot import Snapshot

#: Name that stands for all fields that the application's code writes.
ALL: Final = "*"

#: Name that stands for the text of an exception.  The exception's type always leaves the server.
EXCEPTION_MESSAGE: Final = "exception.message"

_INCLUDED: Final = ("args", "kwargs", "traceback")


class Exposure:
    """The selection of the fields that leave the server.

    The library's own fields leave the server, except ``args``, ``kwargs``, ``traceback`` and the text of the exception.

    Parameters:
      fields(Iterable[str]): Names of further fields.  ``"*"`` stands for all fields that the application's code
        writes, ``"exception.message"`` for the text of the exception.
    """

    def __init__(self, fields: Iterable[str]) -> None:
        self._names = check_names("fields", fields)
        self._included = [name for name in _INCLUDED if name in self._names]
        self.message: bool = EXCEPTION_MESSAGE in self._names

    def to_dict(self, snapshot: Snapshot) -> dict[str, Any]:
        """Get the fields that may leave the server, as JSON values."""
        written = () if ALL in self._names else tuple(name for name in snapshot.fields if name not in self._names)
        found = snapshot.to_dict(private=False, exclude=written)
        more = [*self._included, "exception", "runs"] if self.message else self._included
        if more:
            found.update(snapshot.to_dict(only=more))
        return found

    def to_json(self, snapshot: Snapshot) -> str:
        """Get what :meth:`to_dict` returns as a JSON text of one line."""
        return encode(self.to_dict(snapshot))


def encode(value: object) -> str:
    """Encode a JSON value as one line, without spaces."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def tag_of(snapshot: Snapshot) -> str:
    """Return a text that changes with each change of a status except a heartbeat, and when the message stalls or
    becomes due.

    The version alone does not suffice: a record that was lost and restored may have any version, and a message stalls
    or becomes due without a write.
    """
    updated_at = snapshot.updated_at
    milliseconds = 0 if updated_at is None else int(updated_at.timestamp() * 1000)
    return f"{snapshot.version}-{milliseconds:x}-{snapshot.stalled + 2 * snapshot.scheduled}"
