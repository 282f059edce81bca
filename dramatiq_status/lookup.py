"""From what callers name to what it stands for: the store, the way to a message's status, the messages of a batch."""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Iterable
from typing import Any

import dramatiq

from .backend import Query, StatusBackend, answered, check_message_id
from .batch import chains_of
from .channel import Channel, DirectChannel, LaneChannel, RunChannel
from .context import current_binding, note_write
from .errors import BackendError
from .fields import state_number
from .middleware import StatusMiddleware
from .record import Record, State
from .rollup import Chain
from .snapshot import Snapshot, take_snapshot


def make_query(state: State | str | None, actor_name: str | None, queue_name: str | None) -> Query:
    for name, value in (("actor_name", actor_name), ("queue_name", queue_name)):
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name} must be a str, not {type(value).__name__}.")
    return Query(None if state is None else state_number(state), actor_name, queue_name)


def decode_page(found: Iterable[tuple[str, Record]], now: int) -> list[Snapshot]:
    """Decode the records of a page, without those that are damaged."""
    snapshots = (take_snapshot(message_id, record, now) for message_id, record in found)
    return [snapshot for snapshot in snapshots if snapshot is not None]


def raise_first(found: Iterable[Snapshot | BackendError | None]) -> list[Snapshot | None]:
    """Raise the first error in the results of a read."""
    return [answered(one) for one in found]


def find_backend(backend: StatusBackend | None, broker: dramatiq.Broker | None) -> StatusBackend:
    if backend is not None:
        return backend
    binding = current_binding()
    if broker is None and binding is not None and binding.backend is not None:
        return binding.backend
    for middleware in (broker or dramatiq.get_broker()).middleware:
        if isinstance(middleware, StatusMiddleware):
            return middleware.backend
    raise RuntimeError(
        "The broker doesn't have a status backend: call broker.add_middleware(StatusMiddleware(backend=...)), "
        "or pass backend=."
    )


def find_chains(
    messages: Any, backend: StatusBackend | None, broker: dramatiq.Broker | None
) -> tuple[StatusBackend, list[Chain]]:
    brokers: list[dramatiq.Broker] = []
    chains = list(chains_of(messages, brokers.append))
    if backend is None and broker is None and brokers:
        backend, *others = dict.fromkeys(find_backend(None, found) for found in brokers)
        if others:
            raise ValueError("The groups and pipelines are of brokers with different backends: make a batch for each.")
    return find_backend(backend, broker), chains


def _found_again(message_id: str) -> Channel:
    """Find the status that an unpickled handle is of."""
    return open_channel(message_id, None, None)


def _as_message_id(channel: Any) -> tuple[Callable[..., Any], tuple[str]]:
    return _found_again, (channel.message_id,)


for _kind in (RunChannel, LaneChannel, DirectChannel):
    copyreg.pickle(_kind, _as_message_id)


def open_channel(
    message: str | dramatiq.Message[Any], backend: StatusBackend | None, broker: dramatiq.Broker | None
) -> Channel:
    message_id, backend = check_message_id(message), find_backend(backend, broker)
    binding = current_binding()
    if binding is not None and binding.writer is not None and binding.writer.backend is backend:
        # Inside a worker nobody waits for the store.
        if binding.status.message_id == message_id:
            return binding.status._channel
        lane = binding.writer.outside(message_id)
        # Threads of the run write without its context.
        note_write(lane)
        return LaneChannel(lane, backend, note_write)
    return DirectChannel(backend, message_id)
