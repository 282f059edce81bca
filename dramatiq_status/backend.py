"""What every store promises: the base class of the backends."""

from __future__ import annotations

import abc
import re
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final, NamedTuple, Protocol, TypeVar

from .checks import MAX_TIMEOUT, check_duration, check_number
from .cursor import Cursor
from .decoding import take_snapshot, take_snapshots
from .errors import BackendError, NotSupported
from .record import Record
from .snapshot import Snapshot
from .update import Outcome, Update

#: How long a single call to a store may take, in milliseconds.  It is
#: short on purpose: while the store does not answer, jobs and
#: enqueues wait for it this long, once, and then do without.
DEFAULT_TIMEOUT: Final = 500

#: The largest encoded value of one field, in bytes.
DEFAULT_MAX_FIELD_SIZE: Final = 65_536

#: The longest namespace, in bytes.
MAX_NAMESPACE_SIZE: Final = 48

FoundT = TypeVar("FoundT")

_NAMESPACE = re.compile(r"[!-~]+")

#: What a namespace's own ``:`` and braces become in a key: the first
#: ``:`` of a key then always ends its namespace, and no namespace has a
#: hash tag of Redis Cluster.
_ESCAPES: Final = str.maketrans({char: f"%{ord(char):02X}" for char in "%:{}"})


class Query(NamedTuple):
    """Which statuses to list.

    Parameters:
      state: Only those in this state, by its stored number; None for all.
      actor_name: Only those of this actor; None for all.
      queue_name: Only those of this queue; None for all.
    """

    state: int | None = None
    actor_name: str | None = None
    queue_name: str | None = None


class Listed(NamedTuple):
    """A message on a page of a list.

    Parameters:
      message_id(str)
      record(Record): None where it is damaged, or has changed since its message was found.
      position(int): Its position in the list, see :class:`.Cursor`.
    """

    message_id: str
    record: Record | None
    position: int


class Subscription(Protocol):
    """A subscription to changes of some messages, which receives them from its creation on."""

    def wait(self, timeout: float) -> dict[str, int]:
        """Wait until something changes, for so many seconds at most.

        Returns:
          dict[str, int]: The messages that have changed since the last
          call, and the newest received version of each; 0 for a message that
          was deleted.  Empty when the time is over.

        Raises:
          BackendError: When the connection was lost.  Changes may have
            been missed: subscribe again, then read.
        """

    def close(self) -> None:
        """End the subscription.

        A watch that an actor leaves before its end drops the subscription and does not call this: a time limit that
        strikes in the call would be lost.
        """


class StatusBackend(abc.ABC):
    """ABC for status backends.

    A backend stores one record a message and changes it only by
    :func:`dramatiq_status.update.apply`, atomically: no update that was
    answered with ``Outcome.APPLIED`` is ever lost to another writer,
    in this process or elsewhere.  Its methods may be called by any
    number of threads at once.

    Every method raises :class:`.BackendError` where the store cannot
    be reached, takes longer than `timeout` or answers with an error;
    it raises no other errors except the ``TypeError`` and ``ValueError`` of bad input.
    A store may have several servers, each with its own records.  While one
    of them does not answer and others do, :meth:`read_many` and
    :meth:`snapshots` return a :class:`.BackendError` in the place of each
    record of that server, and :meth:`update_many` and
    :meth:`begin_update` answer with ``Outcome.UNAVAILABLE``.

    Parameters:
      namespace(str): What the keys of this backend start with: up to
        48 printable ASCII characters without spaces.  Backends with
        different namespaces never see each other's statuses.
      timeout(int): How long one call may take, in milliseconds; a day at most.
      max_field_size(int): The largest encoded value of one field, in
        bytes.
    """

    #: How long a watcher of this backend sleeps between two looks, in
    #: milliseconds: the first time, and at most.
    poll_interval: tuple[int, int] = (50, 1000)

    #: How much time there is at least between two snapshots that a
    #: watcher is shown, in milliseconds; of more changes it sees the newest.
    watch_interval: int = 50

    #: How often a watcher that is told of changes looks all the same, in
    #: milliseconds: nobody tells when a status expires or a message stalls.
    recheck_interval: int = 5000

    #: Why :meth:`find` raises :class:`.NotSupported`, and what to do about it.
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
        """Carry out updates in their order, in as few round trips as
        the store allows: one for all on Redis.

        Parameters:
          updates(Sequence[tuple[str, Update]]): Message ids and what to
            do with their records.

        Returns:
          list[Outcome]: What became of each: ``Outcome.REFUSED`` where the
          store has no room for one, ``Outcome.UNAVAILABLE`` where one was not carried
          out and may be sent again, while others were, or its message alone was in the way;
          ``Outcome.UNSTORABLE`` where the store does not take its message, and has taken another.

        Raises:
          StoreRefused: When the store has answered, does not take one of these messages, and
            has carried out nothing of it.  The writer then sends each by itself, and drops the updates that
            the store refuses while it takes others.
          BackendError: When the store does not answer and has carried out nothing of it.
          ValueError: When nothing of it can be stored: the writer then sends each by itself.
        """

    @abc.abstractmethod
    def read_many(self, message_ids: Sequence[str]) -> Sequence[Record | BackendError | None]:
        """Read records in one round trip.

        Returns:
          Sequence[Record | None | BackendError]: One for each id, in their
          order; None for a message that is unknown or expired, or whose record
          is damaged; an error, not raised, for a message that the store could not
          read while it has read others.

        Raises:
          BackendError: When the store could read none of them.
        """

    @abc.abstractmethod
    def delete(self, message_id: str) -> bool:
        """Delete a record; one round trip.

        Returns:
          bool: Whether there was one.
        """

    def update(self, message_id: str, update: Update) -> Outcome:
        """Carry out one update; one round trip where nobody else writes
        to the same record.
        """
        return self.update_many(((message_id, update),))[0]

    def read(self, message_id: str) -> Record | None:
        """Read one record; one round trip."""
        return answered(self.read_many((message_id,))[0])

    def snapshot(self, message_id: str) -> Snapshot | None:
        """Read one status and decode it; one round trip."""
        return take_snapshot(message_id, self.read(message_id), self.now())

    def snapshots(self, message_ids: Sequence[str]) -> Sequence[Snapshot | BackendError | None]:
        """Read many statuses and decode them; one round trip, as :meth:`read_many`."""
        return take_snapshots(message_ids, self.read_many(message_ids), self.now()) if message_ids else []

    def begin_update(self, message_id: str, update: Update) -> Callable[[], Outcome]:
        """Begin an update and return at once what completes it.

        Where the store allows, the update is on its way when this
        returns, and the caller does something else before it asks for
        the outcome.  The default carries it out before it returns.
        """
        outcome = self.update(message_id, update)
        return lambda: outcome

    def find(self, query: Query, *, limit: int, after: Cursor | None) -> list[Listed]:
        """List a page of statuses, newest first.

        A message gets a new position, the highest of all, when something sets its state; no other write changes it.
        The order is that of :class:`.Cursor`, so that a message that moves between two pages is not listed
        twice, and all others are listed once.  The work should not depend on where the page is.

        Parameters:
          query(Query): Statuses to list.
          limit(int): Maximum number of statuses.
          after(Cursor): Last message of the page before, which may be deleted, expired or moved since;
            None for the first page.

        Returns:
          list[Listed]: Fewer than `limit` only at the end of the list.

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

    def cannot_list(self) -> NotSupported:
        """Make the error of a backend that does not list."""
        return NotSupported(f"{type(self).__name__} cannot list statuses: {self.why_no_list}")

    def subscribe(self, message_ids: Sequence[str]) -> Subscription | None:
        """Begin to hear of every change of some messages.

        Returns:
          Subscription: Has begun when this returns; None where the
          store cannot tell, and has to be asked again and again.
        """
        return None

    def now(self) -> int:
        """The current time in epoch milliseconds, by the clock that dates this
        backend's records: the store's own where it has one.
        """
        return now_ms()

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Close the connections of this backend; it opens new ones when it is used again."""


def answered(found: FoundT | BackendError) -> FoundT:
    """Return what the store has read of one message; raise the error where it could not."""
    if isinstance(found, BackendError):
        raise found
    return found


def escape_namespace(namespace: str) -> str:
    """Make a namespace fit to be followed by ``:`` in a key, so that no
    key of one namespace looks like one of another, whatever message ids are.

    >>> escape_namespace("shop"), escape_namespace("shop:eu")
    ('shop', 'shop%3Aeu')
    """
    return namespace.translate(_ESCAPES)


def now_ms() -> int:
    """The current time by this host's clock, in epoch milliseconds."""
    return time.time_ns() // 1_000_000
