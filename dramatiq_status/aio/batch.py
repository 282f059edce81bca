"""Messages that belong together, rolled up in an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from datetime import timedelta

import dramatiq

from ..backend import StatusBackend
from ..cancellation import Cancellation, CancelRequest
from ..checks import DEFAULT_MISSING_TIMEOUT, DEFAULT_WAIT_TIMEOUT, check_duration
from ..following import BatchWatcher
from ..rollup import BatchSnapshot, Chain, Rollup
from .store import async_backend
from .watch import last, watch_loop


class Batch:
    """Messages that belong together: :class:`dramatiq_status.Batch` with methods to await.

    All watches share the subscription of the loop.  After a change, the hub reads only the message that has changed.

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
        """The ids of the messages in the order of the batch, without repetitions."""
        return self._rollup.message_ids

    async def read(self) -> BatchSnapshot:
        """Read all statuses in as few round trips as possible: Redis needs one for 2,000 statuses.

        Raises:
          BackendError: When the store does not answer.
        """
        ids = self._rollup.message_ids
        if not ids:
            return self._rollup.take(())
        return self._rollup.take(await (await async_backend(self._backend)).snapshots(ids))

    async def wait(
        self,
        *,
        timeout: int | timedelta | None = DEFAULT_WAIT_TIMEOUT,
        missing_timeout: int | timedelta = DEFAULT_MISSING_TIMEOUT,
    ) -> BatchSnapshot:
        """Wait until all messages are completed or failed.

        Parameters and errors are those of :meth:`dramatiq_status.Batch.wait`.
        """
        return await last(self._follow(timeout, missing_timeout, 0))

    def watch(
        self,
        *,
        timeout: int | timedelta | None = None,
        missing_timeout: int | timedelta = DEFAULT_MISSING_TIMEOUT,
    ) -> AsyncGenerator[BatchSnapshot, None]:
        """Iterate over the snapshots of the batch: first the present one, then one after every change of a message.
        The iteration ends after the snapshot in which all messages are finished.

        Parameters and errors are those of :meth:`wait`, except that there is no `timeout` by default.
        """
        return self._follow(timeout, missing_timeout, self._backend.watch_interval)

    async def cancel(
        self, reason: str | None = None, *, force_after: int | timedelta | None = None
    ) -> dict[str, Cancellation | None]:
        """Cancel all messages in as few round trips as possible.  Redis needs one for up to 128 messages.

        Parameters and errors are those of :meth:`dramatiq_status.Batch.cancel`.
        """
        request = CancelRequest(self.message_ids, reason, force_after, self._broker)
        updates = request.updates
        results = request.results(await (await async_backend(self._backend)).update_many(updates) if updates else ())
        await asyncio.to_thread(request.interrupt, results)
        return results

    def _follow(
        self, timeout: int | timedelta | None, missing_timeout: int | timedelta, interval: int
    ) -> AsyncGenerator[BatchSnapshot, None]:
        limit = None if timeout is None else check_duration("timeout", timeout)
        missing_limit = check_duration("missing_timeout", missing_timeout)

        def begin(now: float) -> BatchWatcher:
            return BatchWatcher(len(self), now, timeout=limit, missing_timeout=missing_limit, interval=interval)

        return watch_loop(self._backend, self.message_ids, begin, self._rollup.take)

    def __len__(self) -> int:
        return len(self.message_ids)

    def __repr__(self) -> str:
        return f"<Batch of {len(self)} messages>"
