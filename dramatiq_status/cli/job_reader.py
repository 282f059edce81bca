"""The statuses that ``watch`` shows: a thread reads them again and again, and notes outages of the store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Final, NamedTuple

from .. import _time as time
from .._interrupts import Sleep
from ..batch import Batch
from ..errors import BackendError
from ..rollup import BatchSnapshot
from ..snapshot import Snapshot
from .jobs import present

#: Seconds between two reads while jobs change, and maximum number of seconds between two reads while no job changes.
_SHORTEST: Final = 0.1
_LONGEST: Final = 0.5

#: Seconds between two reads in an outage: at first, and at most.
_FIRST_RETRY: Final = 0.5
_LAST_RETRY: Final = 5.0

#: Factor by which a pause is longer than the one before.
_BACK_OFF: Final = 1.5

#: Seconds between two reads of the list whose jobs are watched, and this pause as a multiple of the time that the last
#: read has taken.  The longer of the two applies, because a list of stalled jobs may need a read of a hundred
#: thousand jobs.
_LIST_AGAIN: Final = 1.0
_LIST_REST: Final = 10

#: Seconds after which an unknown job counts as vanished.
_MISSING: Final = 1.0


class JobsView(NamedTuple):
    """The statuses of the jobs at one time.

    Parameters:
      found(BatchSnapshot): Roll-up of the last successful read.
      at(datetime): The time of that read.
      vanished(frozenset[str]): Ids of jobs whose status is unknown, has expired or was deleted.
      known(Mapping[str, Snapshot]): Last snapshots by id, including those of vanished jobs.
      problem(str): Error of the store; empty while the store answers.
      retry_at(float): Time of the next read in an outage, by the monotonic clock.
      added(int): Number of jobs that are in the list now and are not watched.
    """

    found: BatchSnapshot
    at: datetime
    vanished: frozenset[str] = frozenset()
    known: Mapping[str, Snapshot] = MappingProxyType({})
    problem: str = ""
    retry_at: float = 0.0
    added: int = 0

    @property
    def is_over(self) -> bool:
        """Whether the store answers, and each job is finished or has vanished."""
        children = self.found.children.items()
        return not self.problem and all(
            message_id in self.vanished or (snapshot is not None and snapshot.finished)
            for message_id, snapshot in children
        )

    @property
    def jobs(self) -> Sequence[tuple[str, Snapshot | None]]:
        """The ids in their order, each with its last snapshot; None for a job that has vanished or was never found."""
        return [
            (i, None if i in self.vanished else snapshot or self.known.get(i))
            for i, snapshot in self.found.children.items()
        ]


class JobReader:
    """Reader of the jobs on a thread of its own, so that the picture moves on while the store does not answer.

    Parameters:
      make_batch(Callable): Makes the batch of the jobs with some ids.
      ids(Sequence[str]): The jobs.
      read_list(Callable): Reads the ids of the list whose jobs are watched; None for jobs that do not come from a list.
    """

    def __init__(
        self,
        make_batch: Callable[[Sequence[str]], Batch],
        ids: Sequence[str],
        read_list: Callable[[], Sequence[str]] | None = None,
    ) -> None:
        self._make_batch = make_batch
        self._batch = make_batch(ids)
        self._read_list = read_list
        self._listed = list(ids)
        self._list_at = time.monotonic() + _LIST_AGAIN
        self._missing: dict[str, float] = {}
        self._known: dict[str, Snapshot] = {}
        # The first read raises the errors of the store, because there is no view to show yet.
        self._view = self._read()
        self._sleep = Sleep()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dramatiq-status-reader", daemon=True)
        self._thread.start()

    @property
    def view(self) -> JobsView:
        """The newest view."""
        return self._view

    def wait(self, seconds: float) -> None:
        """Wait for a new view, or for the end of the time."""
        self._sleep.sleep(seconds)

    def renew(self) -> None:
        """Watch the jobs that the list has now, from the next read on."""
        self._batch = self._make_batch(self._listed)

    def close(self) -> None:
        """Stop reading."""
        self._closed.set()

    def _read(self) -> JobsView:
        now = time.monotonic()
        if self._read_list is not None and now >= self._list_at:
            self._listed = list(self._read_list())
            read_at = time.monotonic()
            self._list_at = read_at + max(_LIST_AGAIN, _LIST_REST * (read_at - now))
        found, now = self._batch.read(), time.monotonic()
        for message_id, snapshot in found.children.items():
            if snapshot is not None:
                self._known[message_id] = snapshot
            if snapshot is None and message_id not in found.unavailable:
                self._missing.setdefault(message_id, now)
            else:
                self._missing.pop(message_id, None)
        vanished = frozenset(i for i, since in self._missing.items() if now - since >= _MISSING)
        added = sum(message_id not in found.children for message_id in self._listed)
        return JobsView(found, present(), vanished, dict(self._known), added=added)

    def _run(self) -> None:
        pause, retry = _SHORTEST, _FIRST_RETRY
        while not self._closed.wait(retry if self._view.problem else pause):
            before = self._view
            try:
                self._view = self._read()
            except BackendError as e:
                retry = min(_LAST_RETRY, retry * _BACK_OFF) if before.problem else _FIRST_RETRY
                self._missing.clear()
                self._view = before._replace(problem=str(e), retry_at=time.monotonic() + retry)
                self._sleep.wake()
                continue
            view = self._view
            is_new = before.problem or (before.vanished, before.added) != (view.vanished, view.added)
            is_new = is_new or before.found != view.found
            pause = _SHORTEST if is_new else min(pause * _BACK_OFF, _LONGEST)
            if is_new:
                self._sleep.wake()
