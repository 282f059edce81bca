"""The meaning of Dramatiq's hooks. The code here is pure: it calls neither a store nor a broker.

Dramatiq has no hook for "this message is finished" or "this message will run again".  The order of its hooks decides
which of the two is true, and only when a message is acknowledged or rejected.  Before that, a message whose actor
has raised an exception may still be retried, a retry may fail to be enqueued, and a skipped message may be rejected.
An acknowledgement on a delay queue does not end a message.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from enum import Enum
from math import isfinite
from typing import Any, Final, NamedTuple

from .record import COMPLETED, FAILED, MAX_WHOLE_NUMBER
from .update import NO_ENQUEUE_ID, EnqueueId

#: Maximum number of notes per thread about enqueues that have begun and are not completed.
_MAX_BEGUN: Final = 16

#: Number of references to other messages' buffers above which the references to deleted buffers are first removed.
_MIN_SWEEP: Final = 256

#: End of the names of Dramatiq's delay queues.
_DELAY_SUFFIX: Final = ".DQ"


class Decision(Enum):
    """Meaning of an acknowledgement or a rejection."""

    #: The message will run again. Its requeue has already written ``queued``, so nothing is written now.
    REQUEUED = "requeued"
    COMPLETED = "completed"
    FAILED = "failed"
    #: The message was cancelled.
    CANCELLED = "cancelled"

    @property
    def state(self) -> int | None:
        """The stored number of the final state; None where there is none."""
        return _STATES.get(self)


_STATES: Final = {Decision.COMPLETED: COMPLETED, Decision.FAILED: FAILED, Decision.CANCELLED: FAILED}


class Delivery:
    """One delivery of a message, from the first hook that sees it to the last.

    Parameters:
      message_id(str)
      enqueue_id(EnqueueId): Id of the enqueue that led to this delivery.
      run_token(int): Fencing token of the run; 0 if another middleware stopped the message before the hook of
        StatusMiddleware was called.
      buffer(MessageBuffer)
      settings(Settings): Settings of the message.
      previous(Binding): Binding of the context before the delivery; None for none.
      message(Message): The worker's own message object. Dramatiq sets the exception on it, and not on the copy that it
        enqueues for a retry.
    """

    # Values of most deliveries. They are class attributes, so that a new delivery need not set them.

    #: Whether `after_process_message` was called. `exception` and `result` are the values that were passed to it.
    outcome_seen: bool = False
    exception: BaseException | None = None
    result: Any = None
    skipped: bool = False
    #: Whether the message ends as cancelled: the actor has raised :class:`.Cancelled`, was aborted, or was not run.
    cancelled: bool = False
    #: Whether the message was enqueued again during this delivery.
    requeued: bool = False
    #: Whether the end of the delivery was decided, and its final state was passed to the writer.
    settled: bool = False
    #: Confirmation of the final state, for which the acknowledgement waits.
    confirmation: Any = None
    #: Buffers of other messages to which the run has written.  The references are weak: the writer itself keeps each
    #: buffer until its writes are stored. They have no callbacks, because Python ignores an interrupt that strikes in a
    #: callback.
    others: set[weakref.ref[Any]] | None = None
    #: Buffers in `others` that were noted since the run last sent a message.
    fresh: AbstractSet[weakref.ref[Any]] = frozenset()
    #: Buffers in `others` for whose writes the present send waits.
    confirming: AbstractSet[weakref.ref[Any]] = frozenset()
    #: Number of references in `others` above which `note()` removes the references to deleted buffers.
    sweep_at: int = _MIN_SWEEP
    #: Confirmations of enqueues for which no thread has waited.
    enqueues: list[Any] | None = None
    #: End of the acknowledgement's wait, by the monotonic clock.
    deadline: float | None = None

    def __init__(
        self,
        message_id: str,
        enqueue_id: EnqueueId = NO_ENQUEUE_ID,
        run_token: int = 0,
        buffer: Any = None,
        settings: Any = None,
        previous: Any = None,
        message: Any = None,
    ) -> None:
        self.message_id = message_id
        self.enqueue_id = enqueue_id
        self.run_token = run_token
        self.buffer = buffer
        self.settings = settings
        self.previous = previous
        self.message = message

    def note(self, buffer: Any) -> None:
        """Note that the run writes to another message."""
        reference = weakref.ref(buffer)
        # Several threads of the run may come here at once: each gets the same sets.
        others: set[weakref.ref[Any]] = self.__dict__.setdefault("others", set())
        fresh: set[weakref.ref[Any]] = self.__dict__.setdefault("fresh", set())
        others.add(reference)
        fresh.add(reference)
        if len(others) > self.sweep_at:
            for references in (others, fresh):
                references.difference_update([found for found in list(references) if found() is None])
            self.sweep_at = 2 * len(others) + _MIN_SWEEP

    def decide(self, *, rejected: bool) -> Decision:
        """Return the meaning of the end of this delivery."""
        if self.requeued:
            return Decision.REQUEUED
        if self.cancelled:
            return Decision.CANCELLED
        if rejected:
            return Decision.FAILED
        if self.skipped or (self.outcome_seen and self.exception is None):
            return Decision.COMPLETED
        # An exception without Retries, or a retry that could not be enqueued.
        return Decision.FAILED


class BegunEnqueue(NamedTuple):
    """An enqueue that a broker has begun and not completed.

    Parameters:
      message_timestamp: Time at which the message was created. It distinguishes this message from another one with the
        same id.
      before(EnqueueId): Enqueue id that the message carried before.
      enqueue_id(EnqueueId): Id of the enqueue that has begun.
    """

    message_timestamp: Any
    before: EnqueueId
    enqueue_id: EnqueueId

    def is_repeated_by(self, message_timestamp: Any, carried: EnqueueId) -> bool:
        """Whether another call of the hook for the same message id belongs to this enqueue. A broker may repeat an
        enqueue with the same message or with a new copy of it. The same message already has the new enqueue id in its
        options. A new copy still has the earlier id.
        """
        return message_timestamp == self.message_timestamp and carried in (self.before, self.enqueue_id)


class ThreadState:
    """State that the hooks of one thread (under gevent, of one greenlet) share."""

    def __init__(self) -> None:
        #: Whether this is one of Dramatiq's worker threads.
        self.worker = False
        #: Number of copies from a delay queue that this thread holds, by message id. A broker may deliver the same copy
        #: twice.
        self.delayed: dict[str, int] = {}
        #: Ids of the messages that were enqueued since the last acknowledgement, except the one being processed.
        self.enqueued: set[str] = set()
        #: Enqueues that this thread has begun and not completed, by message id. There are several if enqueues are
        #: nested, or if the broker has refused messages.
        self.begun: dict[str, BegunEnqueue] = {}
        #: Id of each of these enqueues, except a retry of the running message, and the buffer with its `queued`; None
        #: where `queued` does not go through the writer. If the enqueue ends in an error, `queued` is withdrawn.
        self.unconfirmed: dict[str, tuple[EnqueueId, Any]] = {}
        #: Callable that waits for the reply to the last enqueue that this thread sent directly to the store; None if no
        #: reply is pending.
        self.pending_enqueue: Any = None
        #: Id of the message that this thread drops because it was cancelled, and the end of its last run, which was
        #: lost; None for none.
        self.lost_run: tuple[str, str] | None = None
        #: Confirmation of the last enqueue of this thread through the writer.
        self.confirmation: Any = None
        #: By message id, updates of enqueues that this thread has begun. They are attached to a command of the broker,
        #: or are sent after an enqueue that is not watched.
        self.attached: dict[str, Any] = {}

    def holds(self, message_id: Any) -> bool:
        """Whether this thread holds a delayed message with this id. The id of a message may be of any type."""
        return isinstance(message_id, str) and message_id in self.delayed

    def hold(self, message_id: str) -> None:
        """Note a delayed copy."""
        self.delayed[message_id] = self.delayed.get(message_id, 0) + 1

    def release(self, message_id: str) -> None:
        """Drop the note of a delayed copy, which was moved to its queue."""
        left = self.delayed[message_id] - 1
        if left:
            self.delayed[message_id] = left
        else:
            del self.delayed[message_id]

    def begin(self, message_id: str, begun: BegunEnqueue) -> None:
        """Note that an enqueue has begun, and drop the oldest note where there are too many."""
        self.begun[message_id] = begun
        if len(self.begun) > _MAX_BEGUN:
            oldest = next(iter(self.begun))
            del self.begun[oldest]
            self.attached.pop(oldest, None)
            self.unconfirmed.pop(oldest, None)

    def forget(self) -> None:
        """Drop the notes about the enqueues of a delivery that has ended."""
        self.enqueued.clear()
        self.begun.clear()
        self.lost_run = None
        self.attached.clear()
        self.unconfirmed.clear()


class ThreadStates(threading.local):
    """The state of each thread.

    To read an attribute of a thread-local object takes seven times as long as to read an attribute of another object.
    So this object has only one attribute.
    """

    def __init__(self) -> None:
        self.own: ThreadState = ThreadState()


def is_delayed_copy(queue_name: str, options: Mapping[str, Any]) -> bool:
    """Whether a message is the copy that waits in a delay queue."""
    return "eta" in options or name_of(queue_name).endswith(_DELAY_SUFFIX)


def queue_of(queue_name: str) -> str:
    """Return the name of a queue, without the suffix of a delay queue."""
    return name_of(queue_name).removesuffix(_DELAY_SUFFIX)


def name_of(given: Any) -> str:
    """Return the name of an actor or a queue as a string. In a message from the queue it may be of any type."""
    return given if isinstance(given, str) else repr(given)


def whole_number(value: Any, default: int) -> int:
    """Read a whole number of at most 15 digits from a message. A float loses its fraction, and any other value becomes
    the default.

    >>> whole_number(3, 0), whole_number(10**15, 0), whole_number(True, 0), whole_number("3", 0), whole_number(None, 0)
    (3, 0, 0, 0, 0)
    """
    if value.__class__ is int and -MAX_WHOLE_NUMBER <= value <= MAX_WHOLE_NUMBER:
        # The usual case.
        return int(value)
    if isinstance(value, float) and isfinite(value):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and -MAX_WHOLE_NUMBER <= value <= MAX_WHOLE_NUMBER:
        return int(value)
    return default
