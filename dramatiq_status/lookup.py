"""The look-ups of the registry: the backend of a broker, and the page of a list."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import dramatiq

from .backend import BackendOwner, Listed, Query, StatusBackend, answered
from .checks import check_message_id, is_message_id
from .cursor import MAX_SIZE as MAX_CURSOR_SIZE
from .cursor import Cursor
from .cursor import decode as decode_cursor
from .decoding import take_snapshot
from .errors import BackendError
from .fields import state_number
from .record import State
from .snapshot import Snapshot, set_position


def make_query(state: State | str | None, actor_name: str | None, queue_name: str | None) -> Query:
    for name, value in (("actor_name", actor_name), ("queue_name", queue_name)):
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name} must be a str, not {type(value).__name__}.")
    return Query(None if state is None else state_number(state), actor_name, queue_name)


def make_cursor(after: Snapshot | str | None) -> Cursor | None:
    """Check the `after` of a list, and decode it; None for the first page."""
    text = after.cursor if isinstance(after, Snapshot) else after
    if text is None:
        if after is None:
            return None
        raise ValueError(
            f"after must be a snapshot that list() has returned, not {after!r}, which was read by its message id: "
            f"pass the last snapshot of the page before, or its cursor."
        )
    if not isinstance(text, str):
        raise TypeError(
            f"after must be a Snapshot or a str, not {type(after).__name__}: pass the last snapshot of the page "
            f"before, or its cursor."
        )
    try:
        cursor = decode_cursor(text)
        check_message_id(cursor.message_id)
    except ValueError:
        raise ValueError(
            f"after is no cursor of a list, {text[:MAX_CURSOR_SIZE]!r}: pass the last snapshot of the page before, "
            f"or its cursor unchanged."
        ) from None
    return cursor


def decode_page(found: Sequence[Listed], limit: int, now: int) -> tuple[list[Snapshot], Cursor | None]:
    """Decode the records of a page, without those that are damaged.

    Returns:
      tuple[list[Snapshot], Cursor | None]: The snapshots, and None. If all records of a full page are
      damaged: an empty list, and the cursor of the next page. The caller then reads that page, because to users an
      empty page means the end of the list.
    """
    snapshots = []
    for message_id, record, position in found:
        snapshot = take_snapshot(message_id, record, now)
        if snapshot is not None and is_message_id(message_id):
            set_position(snapshot, position)
            snapshots.append(snapshot)
    if snapshots or len(found) < limit:
        return snapshots, None
    return snapshots, Cursor(found[-1].position, found[-1].message_id)


def raise_first(found: Iterable[Snapshot | BackendError | None]) -> list[Snapshot | None]:
    """Return the results of a read, or raise the first error among them."""
    return [answered(one) for one in found]


def find_backend(backend: StatusBackend | None, broker: dramatiq.Broker | None) -> StatusBackend:
    if backend is not None:
        return backend
    # The module of the context loads the writer. The command line does not need the writer, and passes a backend.
    from .context import current_binding

    binding = current_binding()
    if broker is None and binding is not None and binding.backend is not None:
        return binding.backend
    for middleware in (broker or dramatiq.get_broker()).middleware:
        if isinstance(middleware, BackendOwner):
            return middleware.backend
    raise RuntimeError(
        "The broker doesn't have a status backend: call broker.add_middleware(StatusMiddleware(backend=...)), "
        "or pass backend=."
    )
