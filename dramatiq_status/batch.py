"""Batches: messages that belong together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Protocol

import dramatiq

from . import _time as time
from .backend import StatusBackend
from .cancellation import Cancellation, CancelRequest
from .checks import DEFAULT_MISSING_TIMEOUT, DEFAULT_WAIT_TIMEOUT, check_duration, check_message_id
from .following import BatchWatcher
from .lookup import find_backend
from .rollup import BatchSnapshot, Chain, Rollup
from .watch import watch_loop


class Group(Protocol):
    """A ``dramatiq.group``, which has no type annotations of its own."""

    @property
    def children(self) -> Iterable[Any]:
        """Its messages, groups and pipelines."""


class Batch:
    """Messages that belong together.  :meth:`.StatusRegistry.batch` makes a batch of them.

    A batch keeps the final snapshots that it has read.  So a finished message still counts
    after its status has expired.

    Parameters:
      backend(StatusBackend)
      chains(Iterable[Chain]): The messages, as ``chains_of`` returns them.
      broker(Broker): Broker with dramatiq-abort; by default the default broker.
    """

    def __init__(self, backend: StatusBackend, chains: Iterable[Chain], broker: dramatiq.Broker | None = None) -> None:
        self._backend = backend
        self._broker = broker
        self._rollup = Rollup(chains)

    @property
    def message_ids(self) -> tuple[str, ...]:
        """Ids of the messages in the order in which they were given, each once."""
        return self._rollup.message_ids

    def read(self) -> BatchSnapshot:
        """Read all statuses in as few round trips as possible: Redis needs one for 2,000.

        Raises:
          BackendError: When the store does not answer.  When it answers for some of
            the messages, the others are ``unavailable``.
        """
        return self._rollup.take(self._backend.snapshots(self._rollup.message_ids))

    def wait(
        self,
        *,
        timeout: int | timedelta | None = DEFAULT_WAIT_TIMEOUT,
        missing_timeout: int | timedelta = DEFAULT_MISSING_TIMEOUT,
    ) -> BatchSnapshot:
        """Wait until all messages are completed or failed.

        A failed message raises no error, and does not end the wait for the others.

        Parameters:
          timeout(int): Milliseconds after which the wait ends; None for no limit.
          missing_timeout(int): Milliseconds for which messages may be unknown while
            no other message waits or runs and nothing changes.

        Raises:
          StatusTimeout: When the messages are not finished in time.
          StatusMissing: When all unfinished messages are unknown
            for longer than `missing_timeout`.
          BackendError: When the store does not answer the first read.
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
        """Iterate over the snapshots of the batch: the present one, then one after
        every change of a message, until the final one.

        Parameters and errors are those of :meth:`wait`.  By default there is no limit
        of time.
        """
        return self._follow(timeout, missing_timeout, self._backend.watch_interval)

    def cancel(
        self, reason: str | None = None, *, force_after: int | timedelta | None = None
    ) -> dict[str, Cancellation | None]:
        """Cancel all messages, as :meth:`.StatusRegistry.cancel` cancels one, in as few round trips as possible.  Redis
        needs one for 128 messages.

        The later stages of a pipeline have no status before they are sent.  They are not sent if an earlier stage ends
        as cancelled.

        Parameters:
          reason(str): Text for people, at most 1,024 bytes as JSON.
          force_after(int): Milliseconds after which dramatiq-abort interrupts each run that has not ended by itself, as
            for :meth:`.StatusRegistry.cancel`.  After the round trips to the store, dramatiq-abort is called once for
            each message that runs.

        Returns:
          dict[str, Cancellation | None]: Results by message ids; None for an unknown message.

        Raises:
          BackendError: When the store does not answer for some of the messages.  No run is interrupted.  To cancel
            them again is safe.
          TypeError: When the reason is not a string, or `force_after` is neither a number nor a timedelta.
          ValueError: When the reason takes more than 1,024 bytes, or `force_after` is negative, not whole or too large.
          StatusSetupError: When `force_after` is set and the broker has no ``Abortable``; nothing is cancelled.
        """
        request = CancelRequest(self.message_ids, reason, force_after, self._broker)
        results = request.results(self._backend.update_many(request.updates) if request.updates else ())
        request.interrupt(results)
        return results

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
    """Find the messages in groups, pipelines, messages, ids, and iterables of these, to any depth.

    Parameters:
      messages: As for :meth:`.StatusRegistry.batch`.
      found(Callable): Called with the broker of each outermost group and pipeline.

    Raises:
      TypeError: When an object of another type is among them.
      ValueError: When a string is no message id.
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


def find_chains(
    messages: Any, backend: StatusBackend | None, broker: dramatiq.Broker | None
) -> tuple[StatusBackend, list[Chain], dramatiq.Broker | None]:
    brokers: list[dramatiq.Broker] = []
    chains = list(chains_of(messages, brokers.append))
    if backend is None and broker is None and brokers:
        backend, *others = dict.fromkeys(find_backend(None, found) for found in brokers)
        if others:
            raise ValueError(
                "The groups and pipelines belong to brokers with different backends: make a batch for each backend."
            )
    return find_backend(backend, broker), chains, broker or next(iter(brokers), None)
