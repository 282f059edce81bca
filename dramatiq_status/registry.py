"""Reading and changing statuses by message id, from any process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, overload

import dramatiq

from .backend import StatusBackend
from .cancellation import Cancellation, result_of_one
from .checks import (
    DEFAULT_MISSING_TIMEOUT,
    DEFAULT_WAIT_TIMEOUT,
    check_duration,
    check_limit,
    check_message_id,
    check_message_ids,
)
from .errors import BackendError
from .lookup import decode_page, find_backend, make_cursor, make_query, raise_first
from .record import State
from .snapshot import Snapshot

if TYPE_CHECKING:
    from .batch import Batch, Group
    from .channel import Channel
    from .progress import Progress
    from .status import Status


@cache
def _handles() -> tuple[type[Status], type[Progress], Callable[..., Channel]]:
    """Return the classes of the handles, and the function that opens their channels.

    Their modules load the writer, which the command line does not need.  The result is cached, because the imports
    would take each call 10 microseconds.
    """
    from .opening import open_channel
    from .progress import Progress
    from .status import Status

    return Status, Progress, open_channel


class StatusRegistry:
    """Registry that finds statuses by message id.

    A method that takes a message id also takes a ``dramatiq.Message``.
    Every method takes `backend`, or `broker` to use the backend of this broker's
    :class:`.StatusMiddleware`.  Without these parameters it uses the backend
    of the default broker, also inside an actor.

    Every method raises ``RuntimeError`` when the broker has no such
    middleware, and ``TypeError`` or ``ValueError`` for an object that is no
    message id.  A method that takes a round trip raises :class:`.BackendError` when the store does not answer.
    """

    @staticmethod
    def get(
        message_id: str | dramatiq.Message[Any],
        *,
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
    ) -> Status:
        """Return a live handle.  It takes no round trip: the message may be unknown."""
        status, _, open_channel = _handles()
        return status(open_channel(message_id, backend, broker))

    @staticmethod
    def progress(
        message_id: str | dramatiq.Message[Any],
        *,
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
    ) -> Progress:
        """Return a handle of a message's progress, with which other messages can increment it.  It takes no round trip.

        Increments are atomic in the store.  After the message is finished, they are stored as well, until
        its status expires, and change neither its state nor its expiry.
        """
        _, progress, open_channel = _handles()
        return progress(open_channel(message_id, backend, broker))

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
        if backend is None:
            backend = find_backend(None, broker)
        return backend.snapshot(check_message_id(message_id))

    @overload
    @staticmethod
    def read_many(
        message_ids: Iterable[str | dramatiq.Message[Any]],
        *,
        return_errors: Literal[False] = False,
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
    ) -> list[Snapshot | None]: ...

    @overload
    @staticmethod
    def read_many(
        message_ids: Iterable[str | dramatiq.Message[Any]],
        *,
        return_errors: bool,
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
    ) -> list[Snapshot | BackendError | None]: ...

    @staticmethod
    def read_many(
        message_ids: Iterable[str | dramatiq.Message[Any]],
        *,
        return_errors: bool = False,
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
    ) -> list[Snapshot | None] | list[Snapshot | BackendError | None]:
        """Read many statuses in as few round trips as possible: Redis needs one for 2,000.

        Parameters:
          message_ids(Iterable[str | Message])
          return_errors(bool): Whether to return the error of a message
            in its place, as ``asyncio.gather`` does with
            `return_exceptions`.  By default the first error is raised.

        Returns:
          list[Snapshot | None]: One snapshot for each id, in the order of the ids.  With
          `return_errors` the list has a :class:`.BackendError` for each message whose own
          server does not answer while others do: a node of a Redis Cluster,
          one of many memcached servers.

        Raises:
          BackendError: When no server answers; without `return_errors`,
            when the server of a message does not answer.
        """
        found = find_backend(backend, broker).snapshots(check_message_ids(message_ids))
        return list(found) if return_errors else raise_first(found)

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

        It takes one round trip if the message is finished already.  Otherwise Redis publishes the end,
        over a connection that is opened for this call.  Other stores
        are polled: 20 times a second at first, then
        less often, down to once a second.

        Parameters:
          message_id(str | Message)
          timeout(int): Milliseconds after which the wait ends; None for no limit.
          missing_timeout(int): Milliseconds for which the message may be unknown.

        Raises:
          StatusTimeout: When the message is not finished in time.
          StatusMissing: When the message is unknown for longer than
            `missing_timeout`, from the beginning or after its status
            has expired or was deleted.
          BackendError: When the store does not answer the first
            read.  A later outage does not end the wait.
        """
        from .watch import follow

        snapshots = follow(
            find_backend(backend, broker),
            check_message_id(message_id),
            timeout=None if timeout is None else check_duration("timeout", timeout),
            missing_timeout=check_duration("missing_timeout", missing_timeout),
        )
        return deque(snapshots, maxlen=1).pop()

    @staticmethod
    def watch(
        message_id: str | dramatiq.Message[Any],
        *,
        timeout: int | timedelta | None = None,
        missing_timeout: int | timedelta = DEFAULT_MISSING_TIMEOUT,
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
    ) -> Iterator[Snapshot]:
        """Iterate over the snapshots of a message: the present one,
        then one after every change, until the final one.  A
        message also changes when it stalls, and when it is no longer stalled.

        Of many changes within a short time (50 milliseconds, the
        backend's `watch_interval`) only the newest is yielded.  A slow caller gets the newest
        snapshot next.  With Redis each watcher has a
        connection of its own, until its iterator ends or is closed.  In :mod:`dramatiq_status.aio` all watchers of an
        event loop that use one backend share one connection.

        Parameters and errors are those of :meth:`wait`.  By default there is no limit of time.
        """
        backend = find_backend(backend, broker)
        from .watch import follow

        return follow(
            backend,
            check_message_id(message_id),
            timeout=None if timeout is None else check_duration("timeout", timeout),
            missing_timeout=check_duration("missing_timeout", missing_timeout),
            interval=backend.watch_interval,
        )

    @staticmethod
    def batch(
        messages: Group | dramatiq.pipeline | dramatiq.Message[Any] | str | Iterable[Any],
        *,
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
    ) -> Batch:
        """Return a batch of messages that belong together.  It takes no round trip.

        A batch can be made before its messages are sent.  A message that is given
        twice counts once.  A group's completion callbacks are not part of the batch.

        Parameters:
          messages: A group, a pipeline, or an iterable of messages, ids,
            groups and pipelines.
          broker(Broker): By default the broker of the groups and pipelines, if
            there are any.

        Raises:
          TypeError: When an object of another type is among the messages.
          ValueError: When a string is no message id, or when groups and pipelines have
            brokers with different backends.
        """
        from .batch import Batch, find_chains

        return Batch(*find_chains(messages, backend, broker))

    @staticmethod
    def list(
        state: State | str | None = None,
        actor_name: str | None = None,
        queue_name: str | None = None,
        limit: int = 50,
        after: Snapshot | str | None = None,
        *,
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
    ) -> list[Snapshot]:
        """List a page of statuses, newest first: the one whose state has changed last comes first.

        A page costs the same wherever it is in the list.  A message whose state changes between two
        pages moves to the front.  No message is listed twice, and all that have not moved are listed once.

        >>> page = StatusRegistry.list(limit=50)
        >>> while page:
        ...     page = StatusRegistry.list(limit=50, after=page[-1])

        Parameters:
          state(State): List only statuses with this state.
          actor_name(str): List only statuses of this actor.
          queue_name(str): List only statuses of this queue.
          limit(int): Maximum number of statuses, from 1 to 1,000.
          after(Snapshot | str): Last snapshot of the page before, or its :attr:`.Snapshot.cursor`, which fits a
            URL; None for the first page.  The status itself may have changed or expired, or been deleted.

        Returns:
          list[Snapshot]: Empty after the last page.

        Raises:
          NotSupported: When the backend cannot list.  Its text has the reason.
          TypeError: When a name is not a string, `limit` is no number, or `after` is neither a snapshot nor a string.
          ValueError: When the state is unknown, `limit` is not a whole number from 1 to 1,000, or `after` is no cursor,
            or a snapshot that is not from a list.
          BackendError: When a part of the store does not answer, or while a
            slot of a Redis Cluster is on its way to another node.
        """
        backend = find_backend(backend, broker)
        query = make_query(state, actor_name, queue_name)
        limit, cursor = check_limit(limit), make_cursor(after)
        while True:
            found = backend.find(query, limit=limit, after=cursor)
            page, cursor = decode_page(found, limit, backend.now())
            if cursor is None:
                return page

    @staticmethod
    def count(
        state: State | str | None = None,
        actor_name: str | None = None,
        queue_name: str | None = None,
        *,
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
    ) -> int:
        """Count the statuses that :meth:`list` would list without a limit.

        With Redis and more than 1,000 unfinished statuses, the number may
        include expired statuses of messages that were never finished, because a worker was killed or a queue
        was purged.

        Raises:
          NotSupported: When the backend cannot list.  Its text has the reason.
          TypeError: When a name is not a string.
          ValueError: When the state is unknown.
          BackendError: As for :meth:`list`.
        """
        return find_backend(backend, broker).count(make_query(state, actor_name, queue_name))

    @staticmethod
    def cancel(
        message_id: str | dramatiq.Message[Any],
        reason: str | None = None,
        *,
        force_after: int | timedelta | None = None,
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
    ) -> Cancellation:
        """Cancel a message in one round trip, or in more with memcached and caches.  With `force_after`, dramatiq-abort
        then makes a call of its own if the message runs.

        A message that waits, is delayed or waits for a retry ends at once, as ``failed`` with
        :attr:`.Snapshot.cancelled`, and is not run. The message itself stays in its queue until a worker gets and drops
        it. A running message gets a request to cancel it, see :meth:`.Status.check_cancelled`. To cancel a message
        twice changes nothing.

        Parameters:
          message_id(str | Message)
          reason(str): Text for people, at most 1,024 bytes as JSON.
          force_after(int): Milliseconds after which dramatiq-abort interrupts a run that has not ended by itself.  By
            default, no run is interrupted.  It needs ``Abortable`` on the broker, in this process and in the workers.

        Returns:
          Cancellation

        Raises:
          StatusMissing: When the message is unknown.
          TypeError: When the reason is not a string, or `force_after` is neither a number nor a timedelta.
          ValueError: When the reason takes more than 1,024 bytes, or `force_after` is negative, not whole or too large.
          StatusSetupError: When `force_after` is set and the broker has no ``Abortable``; nothing is cancelled.
        """
        from .batch import Batch

        batch = Batch(find_backend(backend, broker), [(check_message_id(message_id),)], broker)
        return result_of_one(batch.cancel(reason, force_after=force_after))

    @staticmethod
    def delete(
        message_id: str | dramatiq.Message[Any],
        *,
        backend: StatusBackend | None = None,
        broker: dramatiq.Broker | None = None,
    ) -> bool:
        """Delete a status in one round trip, or in two with caches.  The message itself stays in its queue.

        Returns:
          bool: Whether the message had a status.
        """
        message_id = check_message_id(message_id)
        return find_backend(backend, broker).delete(message_id)
