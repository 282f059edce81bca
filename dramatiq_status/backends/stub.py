"""An in-memory backend, for tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from threading import Lock
from typing import Any

from ..backend import Listed, Query, StatusBackend
from ..cancel_log import add_to_log, cancelled_by, read_log
from ..cursor import Cursor
from ..record import Record
from ..update import Outcome, Update, apply, is_moved
from ._query import wanted_by


class StubBackend(StatusBackend):
    """A backend that stores statuses in the memory of this process, for unit tests.  Its semantics are those of the
    other backends.

    Parameters:
      **parameters: See :class:`.StatusBackend`.
    """

    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self._lock = Lock()
        # By message: the record, the time at which it expires, and its position in lists.  The message whose state has
        # changed last is the last entry.
        self._records: dict[str, tuple[Record, int, int]] = {}
        self._last_position = 0
        self._cancels: str | None = None

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        outcomes = []
        with self._lock:
            for message_id, update in updates:
                now = self.now()
                record, expires_at, position = self._find(message_id, now)
                applied = apply(record, update, now)
                if is_moved(record, update, applied):
                    self._records.pop(message_id, None)
                    self._last_position = position = self._last_position + 1
                if applied.record is not None:
                    self._records[message_id] = (
                        applied.record,
                        expires_at if applied.ttl is None else now + applied.ttl,
                        position,
                    )
                outcomes.append(applied.outcome)
            if cancelled := cancelled_by(updates, outcomes):
                self._cancels = add_to_log(self._cancels, cancelled)
        return outcomes

    def read_cancels(self, position: Any) -> tuple[int, list[int]]:
        return read_log(self._cancels, position or 0)

    def read_many(self, message_ids: Sequence[str]) -> list[Record | None]:
        with self._lock:
            now = self.now()
            found = (self._find(message_id, now)[0] for message_id in message_ids)
            return [dict(record) if record else None for record in found]

    def find(self, query: Query, *, limit: int, after: Cursor | None) -> list[Listed]:
        with self._lock:
            matches = (found for found in self._matches(query) if after is None or found.position < after.position)
            return [found._replace(record=dict(found.record or {})) for found in islice(matches, limit)]

    def count(self, query: Query) -> int:
        with self._lock:
            return sum(1 for _ in self._matches(query))

    def delete(self, message_id: str) -> bool:
        with self._lock:
            return self._records.pop(message_id, None) is not None

    def expires_in(self, message_id: str) -> int | None:
        """Return the milliseconds until a status expires, None if there is no status."""
        with self._lock:
            now = self.now()
            record, expires_at, _ = self._find(message_id, now)
            return expires_at - now if record else None

    def clear(self) -> None:
        """Delete all statuses."""
        with self._lock:
            self._records.clear()

    def _find(self, message_id: str, now: int) -> tuple[Record | None, int, int]:
        record, expires_at, position = self._records.get(message_id, (None, 0, 0))
        if record is not None and expires_at <= now:
            del self._records[message_id]
            record = None
        return record, expires_at, position

    def _matches(self, query: Query) -> Iterator[Listed]:
        now = self.now()
        wanted = wanted_by(query).items()
        for message_id, (record, expires_at, position) in reversed(self._records.items()):
            if expires_at > now and all(record.get(name) == text for name, text in wanted):
                yield Listed(message_id, record, position)
