"""Reading and changing statuses by message id, from any process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import dramatiq

from .backend import StatusBackend, check_duration, check_message_id, check_message_ids
from .channel import Channel, DirectChannel, LaneChannel
from .context import current_binding
from .middleware import StatusMiddleware
from .progress import Progress
from .snapshot import Snapshot, take_snapshot, take_snapshots
from .status import Status
from .watch import DEFAULT_MISSING_TIMEOUT, follow

#: How long :meth:`StatusRegistry.wait` waits by default, in milliseconds.
DEFAULT_WAIT_TIMEOUT = 10_000


class StatusRegistry:
    """Finds statuses by message id.

    A message may be given by its id or as the ``dramatiq.Message``
    itself.  Every method takes `backend`, and `broker` to find the backend of
    the :class:`.StatusMiddleware` on it; with neither, the default
    broker's is used, as ``message.get_result()`` finds its own.

    Every method raises ``RuntimeError`` where there is no such
    middleware, ``TypeError`` or ``ValueError`` for something that is no
    message id, and :class:`.BackendError` where the store does not answer.
    """

    @staticmethod
    def get(
        message_id: str | dramatiq.Message[Any],
        *,
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
    ) -> Status:
        """Get a live handle; no round trip yet, so that the message may be unknown."""
        return Status(_channel(message_id, backend, broker))

    @staticmethod
    def progress(
        message_id: str | dramatiq.Message[Any],
        *,
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
    ) -> Progress:
        """Get the progress of a message, so that others can count on its
        bar; no round trip yet.  Increments are atomic in the store.
        """
        return Progress(_channel(message_id, backend, broker))

    @staticmethod
    def read(
        message_id: str | dramatiq.Message[Any],
        *,
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
    ) -> Snapshot | None:
        """Read a status; one round trip.

        Returns:
          Snapshot: None where the message is unknown or its status has expired.
        """
        message_id, backend = check_message_id(message_id), _backend(backend, broker)
        return take_snapshot(message_id, backend.read(message_id), backend.now())

    @staticmethod
    def read_many(
        message_ids: Iterable[str | dramatiq.Message[Any]],
        *,
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
    ) -> list[Snapshot | None]:
        """Read many statuses; one round trip.

        Returns:
          list[Snapshot | None]: One for each id, in their order.
        """
        ids, backend = check_message_ids(message_ids), _backend(backend, broker)
        return take_snapshots(ids, backend.read_many(ids), backend.now()) if ids else []

    @staticmethod
    def wait(
        message_id: str | dramatiq.Message[Any],
        *,
        timeout: int | timedelta | None = DEFAULT_WAIT_TIMEOUT,
        missing_timeout: int | timedelta = DEFAULT_MISSING_TIMEOUT,
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
    ) -> Snapshot:
        """Wait until a message is completed or failed.

        Parameters:
          message_id(str | Message)
          timeout(int): For how long, in milliseconds; None for ever.
          missing_timeout(int): How long the message may be unknown, in
            milliseconds.

        Raises:
          StatusTimeout: When it is not finished in time.
          StatusMissing: When it is unknown for longer than
            `missing_timeout`, or its status vanishes.
        """
        snapshots = StatusRegistry.watch(
            message_id, timeout=timeout, missing_timeout=missing_timeout, backend=backend, broker=broker
        )
        for snapshot in snapshots:
            if snapshot.finished:
                break
        return snapshot

    @staticmethod
    def watch(
        message_id: str | dramatiq.Message[Any],
        *,
        timeout: int | timedelta | None = None,
        missing_timeout: int | timedelta = DEFAULT_MISSING_TIMEOUT,
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
    ) -> Iterator[Snapshot]:
        """Iterate over the snapshots of a message: first the present one,
        then one after every change seen, the last being the final one.

        Parameters and errors are those of :meth:`wait`; by default it
        goes on as long as the message does.
        """
        return follow(
            _backend(backend, broker),
            check_message_id(message_id),
            timeout=None if timeout is None else check_duration("timeout", timeout),
            missing_timeout=check_duration("missing_timeout", missing_timeout),
        )

    @staticmethod
    def delete(
        message_id: str | dramatiq.Message[Any],
        *,
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
    ) -> bool:
        """Delete a status; one round trip.  The message is not touched.

        Returns:
          bool: Whether there was one.
        """
        message_id = check_message_id(message_id)
        return _backend(backend, broker).delete(message_id)


def _backend(backend: StatusBackend | None, broker: dramatiq.Broker | None) -> StatusBackend:
    if backend is not None:
        return backend
    for middleware in (broker or dramatiq.get_broker()).middleware:
        if isinstance(middleware, StatusMiddleware):
            return middleware.backend
    raise RuntimeError(
        "The broker doesn't have a status backend: call broker.add_middleware(StatusMiddleware(backend=...)), "
        "or pass backend=."
    )


def _channel(
    message: str | dramatiq.Message[Any], backend: StatusBackend | None, broker: dramatiq.Broker | None
) -> Channel:
    message_id, backend = check_message_id(message), _backend(backend, broker)
    binding = current_binding()
    if binding is not None and binding.writer is not None and binding.writer.backend is backend:
        # Inside a worker nobody waits for the store.
        if binding.status.message_id == message_id:
            return binding.status._channel
        return LaneChannel(binding.writer.outside(message_id), backend)
    return DirectChannel(backend, message_id)
