"""The opening of the channel to a message's status, for the registry and for unpickled handles."""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from typing import Any

import dramatiq

from .backend import StatusBackend
from .channel import BufferChannel, Channel, DirectChannel, RunChannel
from .checks import check_message_id
from .context import current_binding, note_write
from .lookup import find_backend


def _channel_of_unpickled(message_id: str) -> Channel:
    """Open the channel of an unpickled handle."""
    return open_channel(message_id, None, None)


def _as_message_id(channel: Any) -> tuple[Callable[..., Any], tuple[str]]:
    return _channel_of_unpickled, (channel.message_id,)


for _kind in (RunChannel, BufferChannel, DirectChannel):
    copyreg.pickle(_kind, _as_message_id)


def open_channel(
    message: str | dramatiq.Message[Any], backend: StatusBackend | None, broker: dramatiq.Broker | None
) -> Channel:
    message_id = check_message_id(message)
    if backend is None:
        backend = find_backend(None, broker)
    binding = current_binding()
    if binding is not None and binding.writer is not None and binding.writer.backend is backend:
        # Inside a worker, no write waits for the store.
        if binding.channel.message_id == message_id:
            return binding.channel
        buffer = binding.writer.outside(message_id)
        # Note the buffer now: the channel also notes each write, but not on other threads of the run, which have no
        # access to its context.
        note_write(buffer)
        return BufferChannel(buffer, backend, note_write)
    return DirectChannel(backend, message_id)
