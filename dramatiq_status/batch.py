"""The statuses of messages that belong together, rolled up into one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Final

import dramatiq

from . import _time as time
from .backend import StatusBackend, check_duration, check_message_id
from .errors import BackendError
from .record import COMPLETED, STATE, STATES, UPDATED_AT, State
from .snapshot import Snapshot, percent_of
from .watch import DEFAULT_MISSING_TIMEOUT, DEFAULT_WAIT_TIMEOUT, Patience, pursue

#: Names in the counts of a batch of messages without a status, and of
#: messages that the store could not read.
UNKNOWN: Final = "unknown"
UNAVAILABLE: Final = "unavailable"

# What the sum of many fractions may be rounded up to while one of them is less than 1.
_LESS_THAN_ALL: Final = math.nextafter(1.0, 0.0)

#: Messages of which each is enqueued when the one before it has been processed.
Chain = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BatchSnapshot:
    """The statuses of many messages at one moment.  It never changes.

    A message may be unknown: one that was not sent yet, a later stage of
    a pipeline, one whose status has expired.  A message is unavailable while its
    own server does not answer (a node of a Redis Cluster, one of many memcached
    servers) and others do.

    Parameters:
      state(State): ``failed`` if a message is, ``queued`` if all are that
        are known, ``completed`` if all are, else ``working``; None if all
        are unknown or unavailable.  Without any messages it is ``completed``.
      progress(float): The mean of the messages' progress, from 0.0 to
        1.0.  A completed message counts 1, whatever it has reported,
        an unknown one 0; a failed one keeps what it had, and so does an
        unavailable one in a batch that has seen it before.
      finished(bool): Whether all are completed or failed.  After a stage of
        a pipeline that failed or was skipped no other is waited for.  A batch with
        unavailable messages is not finished.
      missing(tuple[str, ...]): Those that should be known and are not.
        They are not waited for for ever.
      unavailable(tuple[str, ...]): Messages that the store could not read.
        They are waited for until their server is back.  A message that
        the batch has seen finished is not among them.
    """

    state: State | None
    progress: float
    finished: bool
    missing: tuple[str, ...]
    unavailable: tuple[str, ...]
    # A hash needs no dict: those that are equal have equal ones without.
    _children: dict[str, Snapshot | None] = field(repr=False, hash=False)
    _counts: dict[str, int] = field(repr=False, hash=False)

    @property
    def children(self) -> Mapping[str, Snapshot | None]:
        """The messages' snapshots by id, in the order in which they were
        given; None for those that are unknown or :attr:`unavailable`.
        """
        return MappingProxyType(self._children)

    @property
    def counts(self) -> Mapping[str, int]:
        """Numbers of messages that are ``queued``, ``working``, ``completed``,
        ``failed``, ``unknown`` and ``unavailable``.
        """
        return MappingProxyType(self._counts)

    @property
    def queued(self) -> bool:
        """Whether nothing has begun: all messages that are known are queued."""
        return self.state is State.QUEUED

    @property
    def working(self) -> bool:
        """Whether it has begun and is not finished, and nothing has failed."""
        return self.state is State.WORKING

    @property
    def completed(self) -> bool:
        """Whether all is done."""
        return self.state is State.COMPLETED

    @property
    def failed(self) -> bool:
        """Whether a message failed; others may go on (see :attr:`finished`)."""
        return self.state is State.FAILED

    @property
    def stalled(self) -> bool:
        """Whether a message's worker is gone, or one waits for more than a day (see :attr:`.Snapshot.stalled`)."""
        return any(child.stalled for child in self._children.values() if child is not None)

    @property
    def percent(self) -> float:
        """The progress from 0.0 to 100.0, rounded down to one decimal place: 100 means all."""
        return percent_of(self.progress)

    def to_dict(
        self, *, only: Iterable[str] | None = None, exclude: Iterable[str] = (), private: bool = True
    ) -> dict[str, Any]:
        """Get the roll-up and the children's fields as JSON values.

        Parameters are those of :meth:`.Snapshot.to_dict`, and apply to each child.
        """
        return {
            "status": None if self.state is None else self.state.value,
            "progress": self.progress,
            "percent": self.percent,
            "finished": self.finished,
            "stalled": self.stalled,
            "counts": dict(self._counts),
            "children": {
                message_id: None if child is None else child.to_dict(only=only, exclude=exclude, private=private)
                for message_id, child in self._children.items()
            },
        }

    def to_json(self, *, only: Iterable[str] | None = None, exclude: Iterable[str] = (), private: bool = True) -> str:
        """Get what :meth:`to_dict` returns as the text of a JSON object."""
        return json.dumps(self.to_dict(only=only, exclude=exclude, private=private))

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self._counts.items() if count)
        reached = f"{self.percent:g}%"
        if self.failed:
            # Not all of the batch's messages will be completed in the end.
            reached = f"{self._counts['completed'] + self._counts['failed']} of {len(self._children)} finished"
        return f"{self.state or UNKNOWN} ({reached}{': ' if counts else ''}{counts})"


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
        follower = BatchFollower(
            len(self.message_ids),
            time.monotonic(),
            timeout=None if timeout is None else check_duration("timeout", timeout),
            missing_timeout=check_duration("missing_timeout", missing_timeout),
            interval=interval,
        )
        return pursue(self._backend, self.message_ids, follower, self.read)

    def __len__(self) -> int:
        return len(self.message_ids)

    def __repr__(self) -> str:
        return f"<Batch of {len(self)} messages>"


class Rollup:
    """Makes one of many snapshots, and remembers what must not be forgotten
    from one time to the next.  It does not ask the store.

    Parameters:
      chains(Iterable[Chain]): The messages.
    """

    def __init__(self, chains: Iterable[Chain]) -> None:
        chains = [chain for chain in chains if chain]
        #: The ids, in their order, each once.
        self.message_ids: tuple[str, ...] = tuple(dict.fromkeys(message_id for chain in chains for message_id in chain))
        self._chains = list(dict.fromkeys(chain for chain in chains if len(chain) > 1))
        staged = {message_id for chain in self._chains for message_id in chain}
        self._singles = [message_id for message_id in self.message_ids if message_id not in staged]
        # The last snapshot of those that were finished, and how far the others were.
        self._final: dict[str, Snapshot] = {}
        self._reached: dict[str, float] = {}

    def take(self, snapshots: Iterable[Snapshot | BackendError | None]) -> BatchSnapshot:
        """Roll up.

        Parameters:
          snapshots(Iterable[Snapshot | None | BackendError]): One for each of :attr:`message_ids`.
        """
        children: dict[str, Snapshot | None] = {}
        unavailable: dict[str, None] = {}
        tally = [0] * len(STATES)
        total, most = 0.0, 1.0
        final, reached = self._final, self._reached
        for message_id, snapshot in zip(self.message_ids, snapshots):
            if snapshot is None or isinstance(snapshot, BackendError):
                error, snapshot = snapshot, final.get(message_id)
                if snapshot is None:
                    children[message_id] = None
                    if error is not None:
                        unavailable[message_id] = None
                    total += reached.get(message_id, 0.0)
                    continue
            children[message_id] = snapshot
            number: int = snapshot._values[STATE]
            tally[number] += 1
            if number >= COMPLETED:
                final[message_id] = snapshot
            elif final:
                # It was enqueued anew.
                final.pop(message_id, None)
            fraction = reached[message_id] = 1.0 if number == COMPLETED else snapshot.progress or 0.0
            total += fraction
            if fraction < 1.0:
                most = _LESS_THAN_ALL
        counts = {state.value: count for state, count in zip(STATES, tally)}
        counts[UNKNOWN] = len(children) - sum(tally) - len(unavailable)
        counts[UNAVAILABLE] = len(unavailable)
        missing = [
            message_id for message_id in self._singles if children[message_id] is None and message_id not in unavailable
        ]
        passed = set[str]()
        for chain in self._chains:
            missing += _look_along(chain, children, unavailable.keys(), passed)
        total += sum(1.0 - reached.get(message_id, 0.0) for message_id in passed)
        finished = not (missing or unavailable or counts["queued"] or counts["working"])
        state = _state_of(counts, finished=finished, passed=bool(passed))
        progress = 1.0 if state is State.COMPLETED else min(most, total / len(children)) if children else 0.0
        return BatchSnapshot(
            state, progress, finished, tuple(dict.fromkeys(missing)), tuple(unavailable), children, counts
        )


def _look_along(
    chain: Chain, children: Mapping[str, Snapshot | None], unavailable: Set[str], passed: set[str]
) -> tuple[str, ...]:
    """Find the stage of a pipeline that should be known and is not, none or one.
    Stages without a status ahead of one that is known have been ``passed``.
    """
    known = [index for index, message_id in enumerate(chain) if children[message_id] is not None]
    last = known[-1] if known else -1
    passed.update(message_id for message_id in chain[: max(0, last)] if children[message_id] is None)
    if not unavailable.isdisjoint(chain[last + 1 :]):
        # The pipeline may have come that far.
        return ()
    if not known:
        return chain[:1]
    stage = children[chain[last]]
    assert stage is not None
    # Dramatiq enqueues a stage before it is done with the one ahead of it, and never after one that
    # failed or was skipped.
    over = stage.failed or stage.skipped or not stage.finished
    return () if over else chain[last + 1 : last + 2]


def _state_of(counts: Mapping[str, int], *, finished: bool, passed: bool) -> State | None:
    known = sum(counts.values()) - counts[UNKNOWN] - counts[UNAVAILABLE]
    if counts["failed"]:
        return State.FAILED
    if finished:
        return State.COMPLETED
    if not known:
        return None
    return State.QUEUED if counts["queued"] == known and not passed else State.WORKING


class BatchFollower(Patience):
    """What one watcher of a batch is shown, and when it gives up: the
    :class:`dramatiq_status.watch.Watcher` of many messages.

    Parameters:
      size(int): How many messages there are.
      now(float)
      **parameters: See :class:`dramatiq_status.watch.Patience`.
    """

    __slots__ = ("_seen", "_versions")

    def __init__(self, size: int, now: float, **parameters: Any) -> None:
        super().__init__(f"The batch of {size} messages", now, **parameters)
        self._versions: dict[str, int] = {}
        self._seen: list[Any] | None = None

    def saw(self, snapshot: BatchSnapshot, now: float) -> bool:
        """Take note of what the store holds.

        Returns:
          bool: Whether to show it: it is not what was shown last.

        Raises:
          StatusMissing: When only messages are left that are unknown, and have been for too long.
        """
        children = snapshot.children.values()
        seen: list[Any] = [
            child and (child.version, child._values.get(UPDATED_AT), child.stalled) for child in children
        ]
        seen.append(snapshot.unavailable)
        changed = seen != self._seen
        if changed:
            self._seen = seen
            self._versions = {child.message_id: child.version for child in children if child is not None}
            self.version: int = self.version + 1
            self._missing_since = None
        moving = snapshot.counts["queued"] or snapshot.counts["working"] or snapshot.unavailable
        self._answer(now, None if moving or not snapshot.missing else snapshot.missing[0])
        # Nothing announces that a server is back: look again and again, as in any outage.
        self.answering: bool = not snapshot.unavailable
        if not changed or (snapshot.state is None and not snapshot.finished):
            return False
        self._shown_at = now
        self.finished: bool = snapshot.finished
        return True

    def news(self, heard: dict[str, int]) -> int | None:
        """A version that was not seen yet, if one of a message was heard of; else None."""
        if all(self._versions.get(message_id, 0) == version for message_id, version in heard.items()):
            return None
        return self.version + 1


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
