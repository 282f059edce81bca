"""The jobs that a command names: their full ids, and their statuses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Final

from ..checks import is_message_id
from ..errors import BackendError, NotSupported
from ..registry import StatusRegistry
from ..short_ids import SEARCHED, SHORTEST, is_short_id, jobs_of
from ..snapshot import Snapshot
from .exits import COMPLETED, FAILED, UNFINISHED, UNKNOWN, UNREACHABLE, CommandError
from .store import Store
from .text import did_you_mean

#: Maximum number of a job's children that are read.
_CHILDREN: Final = 500


@contextmanager
def store_errors(store: Store) -> Iterator[None]:
    """Convert the errors of a store into a :class:`.CommandError` with one line.

    Raises:
      CommandError: When the store does not answer or cannot list.
    """
    try:
        yield
    except NotSupported:
        raise CommandError(
            f"{store.name} cannot list: {store.backend.why_no_list} "
            "Commands with full ids work. To list, use Redis or SQLite."
        ) from None
    except BackendError as e:
        raise CommandError(
            f"{store.name} does not answer ({e}). Start it, or name another store with --url.", UNREACHABLE
        ) from e


def read_jobs(store: Store, ids: Sequence[str]) -> dict[str, Snapshot | None]:
    """Read jobs by their full or short ids, with one call of the store if all ids are full.

    Returns:
      dict[str, Snapshot | None]: By full id; None for an unknown job, under the id that was given.

    Raises:
      CommandError: When an id is invalid, a short id is ambiguous, or the store does not answer.
    """
    given = list(dict.fromkeys(ids))
    with store_errors(store):
        try:
            found = dict(zip(given, StatusRegistry.read_many(given, backend=store.backend)))
        except ValueError as e:
            raise CommandError(str(e)) from e
        short = [i for i, snapshot in found.items() if snapshot is None and is_short_id(i)]
        if short:
            listed = _newest(store) or []
            for prefix in short:
                found[prefix] = _only(prefix, listed)
    return {i if snapshot is None else snapshot.message_id: snapshot for i, snapshot in found.items()}


def full_ids(store: Store, ids: Sequence[str]) -> list[str]:
    """Return the full ids of jobs; an unknown one stays as it was given."""
    if all(len(i) >= 36 for i in ids):
        return list(dict.fromkeys(ids))
    return list(read_jobs(store, ids))


def children_of(store: Store, snapshot: Snapshot) -> list[Snapshot]:
    """Read the statuses of at most 500 messages whose ids are in the field ``children``."""
    listed = snapshot.fields.get("children")
    ids = [one for one in listed if isinstance(one, str) and is_message_id(one)] if isinstance(listed, list) else []
    if not ids:
        return []
    with store_errors(store):
        found = StatusRegistry.read_many(ids[:_CHILDREN], backend=store.backend)
    return [child for child in found if child is not None]


def _newest(store: Store) -> list[Snapshot] | None:
    """Return the newest jobs; None where the store cannot list."""
    try:
        return StatusRegistry.list(limit=SEARCHED, backend=store.backend)
    except NotSupported:
        return None


def _only(prefix: str, listed: Sequence[Snapshot]) -> Snapshot | None:
    candidates = jobs_of(prefix, listed)
    if len(candidates) > 1:
        names = ", ".join(f"{c.message_id} ({c.actor_name or ''})" for c in candidates[:5])
        more = f" and {len(candidates) - 5} more" if len(candidates) > 5 else ""
        raise CommandError(
            f"The ids of {len(candidates)} jobs begin with {prefix}: {names}{more}. Give more characters of the id."
        )
    return candidates[0] if candidates else None


def unknown_job(store: Store, message_id: str) -> str:
    """Return the line about an id without a status, with the id of a job that resembles it."""
    listed: list[Snapshot] | None = []
    try:
        if len(message_id) >= SHORTEST:
            listed = _newest(store)
    except BackendError:
        pass
    hint = did_you_mean(message_id, {snapshot.message_id[: len(message_id)] for snapshot in listed or ()})
    if hint == "." and listed is not None:
        hint = ". See: dramatiq-status list"
    return f"{message_id}: no such job in {store.name}, or its status has expired{hint}"


def status_of(snapshot: Snapshot | None) -> int:
    """Return the exit status of one job."""
    if snapshot is None:
        return UNKNOWN
    if not snapshot.finished:
        return UNFINISHED
    return FAILED if snapshot.failed else COMPLETED


def present() -> datetime:
    """Return the present time."""
    return datetime.now(timezone.utc)
