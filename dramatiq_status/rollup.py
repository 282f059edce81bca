"""The roll-up of many messages' snapshots into one.  It is pure: it does not read the store."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from .errors import BackendError
from .fraction import percent_of
from .record import COMPLETED, STATE, STATES, State
from .snapshot import Snapshot, values_of

#: Keys in a batch's counts: for messages without a status, and for messages that the store could not read.
UNKNOWN: Final = "unknown"
UNAVAILABLE: Final = "unavailable"

# Largest progress of a batch while the progress of a message is less than 1: a sum of many fractions may be rounded up.
_LESS_THAN_ALL: Final = math.nextafter(1.0, 0.0)

#: Ids of the messages of a pipeline, in the order of its stages; or the id of a single message.
Chain = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BatchSnapshot:
    """The statuses of many messages at one time.  It never changes.

    A message is unknown before it is sent, after its status has expired, and while it is a later stage of a
    running pipeline.  A message is unavailable while its
    own server does not answer (a node of a Redis Cluster, one of many memcached
    servers) and others do.

    Parameters:
      state(State): ``failed`` if a message failed; ``completed`` if `finished` is true and no message failed;
        ``queued`` if all known messages are queued, and each stage of a pipeline before a known one is known; else
        ``working``.  None if all messages are unknown or unavailable.  A batch without messages is ``completed``.
      progress(float): Mean of the messages' progress, from 0.0 to
        1.0; always 1.0 if `state` is ``completed``.  A completed message counts as 1, whatever progress it has
        reported.  So does an unknown or unavailable stage of a pipeline before a known one.  A failed message keeps its
        progress.  So does an unknown or unavailable one that the batch has read before.  Any other unknown or
        unavailable message counts as 0.
      finished(bool): Whether all messages are completed or failed.  The stages of a pipeline after one
        that failed or was skipped do not count, and neither do unknown stages before a known one.  A batch with
        unavailable messages is not finished.
      missing(tuple[str, ...]): Unknown messages that should have a status.  A wait for
        them ends after `missing_timeout`.
      unavailable(tuple[str, ...]): Messages that the store could not read.  A wait for them continues
        until their server is back.  A message that the batch has read as finished is not
        among them.
    """

    state: State | None
    progress: float
    finished: bool
    missing: tuple[str, ...]
    unavailable: tuple[str, ...]
    # These are not part of the hash, because a dict has none. Equal snapshots have equal hashes without them.
    _children: dict[str, Snapshot | None] = field(repr=False, hash=False)
    _counts: dict[str, int] = field(repr=False, hash=False)

    @property
    def children(self) -> Mapping[str, Snapshot | None]:
        """Snapshots by message id, in the order of the batch's messages.  An unknown or ``unavailable``
        message has None, unless the batch has read it as finished.
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
        """Whether all known messages are queued, and no message has begun."""
        return self.state is State.QUEUED

    @property
    def working(self) -> bool:
        """Whether the batch has begun and is not finished, and no message has failed."""
        return self.state is State.WORKING

    @property
    def completed(self) -> bool:
        """Whether the batch is finished and no message has failed."""
        return self.state is State.COMPLETED

    @property
    def failed(self) -> bool:
        """Whether a message has failed.  Others may still run, unless ``finished`` is true."""
        return self.state is State.FAILED

    @property
    def stalled(self) -> bool:
        """Whether :attr:`.Snapshot.stalled` is true of a message of the batch."""
        return any(child.stalled for child in self._children.values() if child is not None)

    @property
    def percent(self) -> float:
        """The progress from 0.0 to 100.0, rounded down to one decimal place.  It is 100 only if each message counts
        as 1 in ``progress``, or if the batch is completed.
        """
        return percent_of(self.progress)

    def to_dict(
        self, *, only: Iterable[str] | None = None, exclude: Iterable[str] = (), private: bool = True
    ) -> dict[str, Any]:
        """Return the values of the batch and of its messages as JSON values.

        Parameters are those of :meth:`.Snapshot.to_dict`, and apply to each message.
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
        """Return the values of :meth:`to_dict` as the text of a JSON object."""
        return json.dumps(self.to_dict(only=only, exclude=exclude, private=private))

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self._counts.items() if count)
        reached = f"{self.percent:g}%"
        if self.failed:
            # Not all of the batch's messages will be completed in the end.
            reached = f"{self._counts['completed'] + self._counts['failed']} of {len(self._children)} finished"
        return f"{self.state or UNKNOWN} ({reached}{': ' if counts else ''}{counts})"


class Rollup:
    """Calculation of the snapshots of a batch.  It keeps the final snapshots of the messages for the next roll-up.  It
    does not read the store.

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
        # The final snapshots of finished messages, and the last progress of each message, by message id.
        self._final: dict[str, Snapshot] = {}
        self._reached: dict[str, float] = {}

    def take(self, snapshots: Iterable[Snapshot | BackendError | None]) -> BatchSnapshot:
        """Calculate the snapshot of the batch.

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
            number: int = values_of(snapshot)[STATE]
            tally[number] += 1
            if number >= COMPLETED:
                final[message_id] = snapshot
            elif final:
                # The message was enqueued again.
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
    """Return a tuple with the id of the stage of a pipeline that should have a status and has none; an empty tuple if
    there is no such stage. Add the unknown and unavailable stages before a known one to `passed`.
    """
    known = [index for index, message_id in enumerate(chain) if children[message_id] is not None]
    last = known[-1] if known else -1
    passed.update(message_id for message_id in chain[: max(0, last)] if children[message_id] is None)
    if not unavailable.isdisjoint(chain[last + 1 :]):
        # An unavailable stage may have begun.
        return ()
    if not known:
        return chain[:1]
    stage = children[chain[last]]
    assert stage is not None
    # Dramatiq acknowledges a stage after it has enqueued the next stage. After a stage that failed or was skipped, it
    # enqueues no further stage.
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
