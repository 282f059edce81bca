"""StatusBackend, the base class of the backends, and the promises of every store."""

from __future__ import annotations

import abc
import re
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from .checks import MAX_TIMEOUT, check_duration, check_number
from .cursor import Cursor
from .decoding import take_snapshot, take_snapshots
from .errors import BackendError, NotSupported
from .piggyback import UpdateAttacher
from .record import Record
from .snapshot import Snapshot
from .update import Outcome, Update

__all__ = [
    "Listed",
    "Query",
    "StatusBackend",
    "Subscription",
]

#: Default of `timeout`, in milliseconds.  It is short on purpose: when the store stops answering, one run or enqueue
#: waits this long.  In an outage, later runs and enqueues do not wait.
DEFAULT_TIMEOUT: Final = 500

#: Number of bytes of a request or a reply for which a call gets another second beyond its time-out.
MIN_BYTES_PER_SECOND: Final = 500_000

#: Default of `max_field_size`, in bytes.
DEFAULT_MAX_FIELD_SIZE: Final = 65_536

#: Maximum size of a namespace, in bytes.
MAX_NAMESPACE_SIZE: Final = 48

FoundT = TypeVar("FoundT")

_NAMESPACE = re.compile(r"[!-~]+")

#: Escapes of ``:``, braces and ``%`` in a namespace.  The first ``:`` of a key then ends its namespace, and no
#: namespace contains a hash tag of Redis Cluster.
_ESCAPES: Final = str.maketrans({char: f"%{ord(char):02X}" for char in "%:{}"})


class Query(NamedTuple):
    """Filter of a list of statuses.

    Parameters:
      state(int): Stored number of the state; None for all states.
      actor_name(str): Name of the actor; None for all actors.
      queue_name(str): Name of the queue; None for all queues.
    """

    state: int | None = None
    actor_name: str | None = None
    queue_name: str | None = None


class Listed(NamedTuple):
    """A message on a page of a list.

    Parameters:
      message_id(str)
      record(Record): None if it is damaged or missing, or no longer matches the query.
      position(int): Position of the message in the list, see :class:`.Cursor`.
    """

    message_id: str
    record: Record | None
    position: int


class Subscription(Protocol):
    """Subscription to the changes of some messages.  It receives all changes after its creation."""

    def wait(self, timeout: float) -> dict[str, int]:
        """Wait for the next changes.

        Parameters:
          timeout(float): Maximum number of seconds to wait.

        Returns:
          dict[str, int]: Newest received versions of the messages that have changed since the last
          call, by message ids; 0 for a message that was deleted.  Empty after the time-out.

        Raises:
          BackendError: When the connection was lost.  The subscription may have missed changes: subscribe again,
            then read.
        """

    def close(self) -> None:
        """End the subscription.

        When an actor leaves a watch early, the watch drops the subscription without a call of this method, because
        Python would ignore an interrupt that strikes in the call.
        """


class StatusBackend(abc.ABC):
    """ABC for status backends.

    A backend stores one record for each message, and changes it only as
    :func:`dramatiq_status.update.apply` does.  Each change is atomic: an update with ``Outcome.APPLIED`` is not lost if
    another thread or another process writes at the same time.  Any number of threads may call the methods at once.

    A method raises :class:`.BackendError` when the store cannot be reached, takes longer than `timeout` or answers with
    an error.  For wrong input, it raises ``TypeError`` or ``ValueError``.  A method that the store cannot offer raises
    :class:`.NotSupported`.  A method raises nothing else.

    A store may have several servers, each with its own records.  When one of them does not answer and others do,
    :meth:`read_many` and :meth:`snapshots` return a :class:`.BackendError` for each record of this server, and
    :meth:`update_many` and :meth:`begin_update` return ``Outcome.UNAVAILABLE``.

    Parameters:
      namespace(str): Prefix of the keys of this backend: up to 48 printable ASCII characters without
        spaces.  A backend does not find the statuses of another namespace.
      timeout(int): Maximum duration of a call, in milliseconds; at most a day.
      max_field_size(int): Maximum size of the encoded value of a field, in bytes.
    """

    #: Shortest and longest time that a watcher sleeps between two polls, in milliseconds.
    poll_interval: tuple[int, int] = (50, 1000)

    #: Minimum time between two snapshots that a watcher returns, in milliseconds.  Of several changes in this time it
    #: returns the newest.
    watch_interval: int = 50

    #: Interval in milliseconds at which a watcher with a subscription also polls, because the store publishes no change
    #: when a status expires or a message stalls.
    recheck_interval: int = 5000

    #: Interval in milliseconds at which a worker reads the log of cancelled messages.
    cancel_interval: int = 1000

    #: Reason why :meth:`find` raises :class:`.NotSupported`, and the cure.  It ends the sentence of the error.
    why_no_list: str = "it keeps no index."

    def __init__(
        self,
        *,
        namespace: str = "dramatiq-status",
        timeout: int | timedelta = DEFAULT_TIMEOUT,
        max_field_size: int = DEFAULT_MAX_FIELD_SIZE,
    ) -> None:
        if not isinstance(namespace, str):
            raise TypeError(f"namespace must be a str, not {type(namespace).__name__}.")
        if not _NAMESPACE.fullmatch(namespace) or len(namespace) > MAX_NAMESPACE_SIZE:
            raise ValueError(
                f"namespace must be 1 to {MAX_NAMESPACE_SIZE} printable ASCII characters without spaces, "
                f"not {namespace!r}."
            )
        self.namespace = namespace
        self.timeout: int = check_duration("timeout", timeout, minimum=1, maximum=MAX_TIMEOUT)
        self.max_field_size: int = check_number("max_field_size", max_field_size, minimum=1)

    @abc.abstractmethod
    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        """Carry out updates in their order, in as few round trips as possible.  Redis needs one for 128 updates.

        Parameters:
          updates(Sequence[tuple[str, Update]]): Message ids and their updates.

        Returns:
          list[Outcome]: Outcomes in the order of the updates.  ``Outcome.REFUSED`` also stands for an update that
          is too large for the store.  ``Outcome.UNSTORABLE`` stands for a message that the store refuses while it
          accepts others.  The server of an update with ``Outcome.UNAVAILABLE`` did not answer, while others did. The
          update may have been carried out or not.  If it is sent again, it counts once, unless it is an increment from
          outside of a run.

        Raises:
          StoreRefused: When the store refuses one of the messages, and has carried out no update.  The
            writer then sends the updates one by one, and drops those that the store refuses while it accepts others.
          BackendError: When the store does not answer.  Each of the updates may have been carried out or not.
          ValueError: When an update cannot be encoded, and none was carried out.  The writer then sends the updates
            one by one.
        """

    @abc.abstractmethod
    def read_many(self, message_ids: Sequence[str]) -> Sequence[Record | BackendError | None]:
        """Read records in as few round trips as possible.  Redis needs one for 2,000 records.

        Returns:
          Sequence[Record | None | BackendError]: Records in the order of the ids.  None stands for
          a message that is unknown or expired, and for a damaged record.  An error that is returned and not raised
          stands for a record that the store could not read, while it has read others.

        Raises:
          BackendError: When the store could read no record.
        """

    @abc.abstractmethod
    def delete(self, message_id: str) -> bool:
        """Delete a record in one round trip, or in two with caches.

        Returns:
          bool: Whether there was a record.
        """

    def update(self, message_id: str, update: Update) -> Outcome:
        """Carry out one update, as :meth:`update_many` does."""
        return self.update_many(((message_id, update),))[0]

    def read(self, message_id: str) -> Record | None:
        """Read a record in one round trip."""
        return answered(self.read_many((message_id,))[0])

    def snapshot(self, message_id: str) -> Snapshot | None:
        """Read a status and decode it, in one round trip."""
        return take_snapshot(message_id, self.read(message_id), self.now())

    def snapshots(self, message_ids: Sequence[str]) -> Sequence[Snapshot | BackendError | None]:
        """Read statuses as :meth:`read_many` does, and decode them."""
        return take_snapshots(message_ids, self.read_many(message_ids), self.now()) if message_ids else []

    def begin_update(self, message_id: str, update: Update) -> Callable[[], Outcome]:
        """Begin an update.

        A backend may send the update and return before the reply arrives, so that the caller can do something
        else in the meantime.  The default implementation carries out the whole update.

        Returns:
          Callable: Waits for the reply, and returns the outcome.
        """
        outcome = self.update(message_id, update)
        return lambda: outcome

    def find(self, query: Query, *, limit: int, after: Cursor | None) -> list[Listed]:
        """List a page of statuses, newest first.

        An update that sets the state of a message, or with which a worker drops a cancelled message, gives the message
        a new position, which is higher than all others.  Other updates do not change the position.  The order is that
        of :class:`.Cursor`: a message that moves while a reader lists page after page is listed once at most, and all
        others are listed once.  The work should not depend on the position of the page.

        Parameters:
          query(Query): Statuses to list.
          limit(int): Maximum number of statuses.
          after(Cursor): Last message of the previous page; None for the first page.  The message may have
            been deleted, have expired or have moved since.

        Returns:
          list[Listed]: The page.  It has fewer than `limit` messages only at the end of the list.

        Raises:
          NotSupported: When this backend cannot list.
        """
        raise self.cannot_list()

    def count(self, query: Query) -> int:
        """Count statuses.

        Raises:
          NotSupported: When this backend cannot list.
        """
        raise self.cannot_list()

    def read_cancels(self, position: Any) -> tuple[Any, Sequence[int]]:
        """Read the log of cancelled messages (``cancel_log.py``).  :meth:`update_many` adds the message of each
        ``Kind.CANCEL`` update that it accepts.

        A worker calls this every :attr:`cancel_interval`, and after each change that :meth:`subscribe_cancels`
        publishes, so it must be cheap while nothing is added.  A backend without a log returns no marks.  Its workers
        then find a request in the outcome of the update that starts the run, or of a heartbeat.

        Parameters:
          position: Position that the last call has returned; None for the first call.

        Returns:
          tuple[Any, Sequence[int]]: The position for the next call, and the marks that were added since `position`.  A
          log may drop its oldest marks, but has to keep at least 8,192.  After a call that returns so many marks, a
          worker also reads the record before each run of a message that was enqueued before that call, or up to a
          minute after it.
        """
        return None, ()

    def subscribe_cancels(self) -> Subscription | None:
        """Subscribe to the log of cancelled messages.  A worker then reads the log as soon as it changes, and not only
        every :attr:`cancel_interval`.

        Returns:
          Subscription: None if the store does not publish changes.
        """
        return None

    def cannot_list(self) -> NotSupported:
        """Make the error of a backend that does not list."""
        return NotSupported(f"{type(self).__name__} cannot list statuses: {self.why_no_list}")

    def subscribe(self, message_ids: Sequence[str]) -> Subscription | None:
        """Subscribe to the changes of some messages.

        Returns:
          Subscription: It receives changes from now on.  None if the store does not publish changes; watchers then
          poll.
        """
        return None

    def update_attacher(self, broker: Any) -> UpdateAttacher | None:
        """Return an update attacher for the broker's client, if this client can send updates in one transaction with
        the broker's commands; otherwise None.  The default implementation returns None.
        """
        return None

    def now(self) -> int:
        """Return the current time in epoch milliseconds, by the clock that dates this backend's records: the
        store's own clock, if it has one.
        """
        return now_ms()

    def close(self) -> None:  # noqa: B027 - most backends have nothing to close
        """Close the connections of this backend.  The next call opens new ones."""


class BackendOwner:
    """Base class by which a program finds the middleware of a broker, and its backend, without loading the module of
    the middleware.

    Attributes:
      backend(StatusBackend)
    """

    backend: StatusBackend


def answered(found: FoundT | BackendError) -> FoundT:
    """Return what :meth:`StatusBackend.read_many` has found for a message, or raise its error."""
    if isinstance(found, BackendError):
        raise found
    return found


def escape_namespace(namespace: str) -> str:
    """Escape a namespace for keys that consist of the namespace, ``:`` and a message id.  No key of a namespace is
    then a key of another one.

    >>> escape_namespace("shop"), escape_namespace("shop:eu")
    ('shop', 'shop%3Aeu')
    """
    return namespace.translate(_ESCAPES)


def now_ms() -> int:
    """Return the current time by this host's clock, in epoch milliseconds."""
    return time.time_ns() // 1_000_000
