"""Jobs by the beginning of their ids, as lists show them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from .snapshot import Snapshot

#: Number of newest jobs that are searched for a short id, and minimum number of characters of a short id.
SEARCHED: Final = 1000
SHORTEST: Final = 4

#: Number of characters of the ids that Dramatiq makes.
_FULL: Final = 36


def is_short_id(text: str) -> bool:
    """Whether a text may be the beginning of an id."""
    return SHORTEST <= len(text) < _FULL


def jobs_of(short_id: str, listed: Iterable[Snapshot]) -> list[Snapshot]:
    """Return the jobs whose ids begin with a short id."""
    return [snapshot for snapshot in listed if snapshot.message_id.startswith(short_id)]
