"""Messages that belong together, as one handle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Protocol

import dramatiq

from . import _time as time
from .backend import StatusBackend
from .checks import check_duration, check_message_id
from .following import BatchWatcher
from .rollup import BatchSnapshot, Chain, Rollup
from .watch import DEFAULT_MISSING_TIMEOUT, DEFAULT_WAIT_TIMEOUT, watch_loop


class Group(Protocol):
    """A ``dramatiq.group``, which has no type annotations of its own."""

    @property
    def children(self) -> Iterable[Any]:
        """Its messages, groups and pipelines."""


class Batch:
    """Messages that belong together; made by :meth:`.StatusRegistry.batch`.

    It remembers the messages that it has seen finished: should their
    statuses expire before the others have ended, they still count.

    Parameters:
      backend(StatusBackend)
      chains(Iterable[Chain]): The messages, by :func:`chains_of`.
    """

    def __init__(self, backend: StatusBackend, chains: Iterable[Chain]) -> None:
        self._backend = backend
        self._rollup = Rollup(chains)

    @property
    def message_ids(self) -> tuple[str, ...]:
        """The ids of the messages, in the order in which they were given, each once."""
        return self._rollup.message_ids

    def read(self) -> BatchSnapshot:
        """Read all statuses; one round trip, however many they are.

        Raises:
          BackendError: When the store does not answer.  Where it does for some of
            the messages, the others are :attr:`.BatchSnapshot.unavailable`.
        """
        return self._rollup.take(self._backend.snapshots(self._rollup.message_ids))

    def wait(
        self,
        *,
        timeout: int | timedelta | None = DEFAULT_WAIT_TIMEOUT,
        missing_timeout: int | timedelta = DEFAULT_MISSING_TIMEOUT,
    ) -> BatchSnapshot:
        """Wait until all messages are completed or failed.

        That some fail raises nothing, and does not end it before the others have ended.

        Parameters:
          timeout(int): For how long, in milliseconds; None for ever.
          missing_timeout(int): How long messages may be unknown while
            no other one waits or runs and nothing changes, in milliseconds.

        Raises:
          StatusTimeout: When they are not finished in time.
          StatusMissing: When only messages are left that are unknown,
            for longer than `missing_timeout`.
          BackendError: When the store does not answer at the first look.
        """
        snapshots = self._follow(timeout, missing_timeout, 0)
        for snapshot in snapshots:
            if snapshot.finished:
                break
        return snapshot

    def watch(
        self,
        *,
        timeout: int | timedelta | None = None,
        missing_timeout: int | timedelta = DEFAULT_MISSING_TIMEOUT,
    ) -> Iterator[BatchSnapshot]:
        """Iterate over the roll-ups: first the present one, then one after
        every change of a message, the last being the final one.

        Parameters and errors are those of :meth:`wait`; by default it
        goes on as long as the messages do.
        """
        return self._follow(timeout, missing_timeout, self._backend.watch_interval)

    def _follow(
        self, timeout: int | timedelta | None, missing_timeout: int | timedelta, interval: int
    ) -> Iterator[BatchSnapshot]:
        watcher = BatchWatcher(
            len(self.message_ids),
            time.monotonic(),
            timeout=None if timeout is None else check_duration("timeout", timeout),
            missing_timeout=check_duration("missing_timeout", missing_timeout),
            interval=interval,
        )
        return watch_loop(self._backend, self.message_ids, watcher, self.read)

    def __len__(self) -> int:
        return len(self.message_ids)

    def __repr__(self) -> str:
        return f"<Batch of {len(self)} messages>"


def chains_of(messages: Any, found: Callable[[dramatiq.Broker], None] = lambda broker: None) -> Iterator[Chain]:
    """Find the messages in groups, pipelines, and iterables of these, of
    messages and of ids, nested as they like.

    Parameters:
      messages: As for :meth:`.StatusRegistry.batch`.
      found(Callable): Is told the broker of each group and pipeline that is in no other one.

    Raises:
      TypeError: When something else is among them.
      ValueError: When an id is none.
    """
    if isinstance(messages, str) or hasattr(messages, "message_id"):
        yield (check_message_id(messages),)
    elif isinstance(messages, dramatiq.pipeline):
        found(messages.broker)
        yield tuple(map(check_message_id, messages.messages))
    elif isinstance(messages, dramatiq.group):
        found(messages.broker)
        yield from chains_of(messages.children)
    elif isinstance(messages, Iterable) and not isinstance(messages, (bytes, bytearray, Mapping)):
        for message in messages:
            yield from chains_of(message, found)
    else:
        raise TypeError(
            f"A batch is made of groups, pipelines, messages, message ids and iterables of these, "
            f"not of a {type(messages).__name__}."
        )
