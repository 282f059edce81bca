"""How a worker process writes: one background thread that merges what is
written to each message and sends many messages' updates in one round trip.

Those who write only append to a lane, which takes no lock: an
interrupt (a time limit, an abort, a shutdown) that strikes a
worker thread in the middle of a write can neither tear it nor leave a
lock behind.
"""

from __future__ import annotations

import atexit
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple

from .backend import StatusBackend
from .errors import BackendError
from .fields import check_count
from .outage import LONGEST_PAUSE, Outage, logger
from .rate import RateMeter
from .record import (
    ATTEMPTS,
    CLEARED_BY_START,
    DEFAULT_HEARTBEAT_INTERVAL,
    DEFAULT_STATUS_TTL,
    NO_EPOCH,
    PROGRESS,
    RATE,
    TOTAL,
    Epoch,
    Kind,
    Origin,
    Outcome,
    Record,
    Update,
    number_of,
    number_text,
)

#: For how many messages updates are kept while the store is down.
DEFAULT_MAX_PENDING: Final = 10_000

#: How many increments a lane takes before the writer merges them,
#: whatever the throttle says.
_MERGE_EVERY: Final = 4096

#: How many updates are sent first after an outage.
_PROBE: Final = 16


class Write(NamedTuple):
    """Fields and an increment, in this order."""

    fields: Record
    increment: int | float = 0
    urgent: bool = True


class Start(NamedTuple):
    """The run begins."""

    fields: Record
    attempts: int
    origin: Origin | None


class Finish(NamedTuple):
    """Dramatiq is done with the message."""

    state: int
    fields: Record
    ttl: int


class Enqueue(NamedTuple):
    """The message enters its queue."""

    epoch: Epoch
    fields: Record


class Barrier:
    """What a thread waits for until all that was written before is stored."""

    __slots__ = ("_lock", "stored")

    def __init__(self) -> None:
        #: Whether everything was stored; None while that is not known.
        self.stored: bool | None = None
        self._lock = threading.Lock()
        self._lock.acquire()

    def release(self, stored: bool) -> None:
        self.stored = stored
        self._lock.release()

    def wait(self, timeout: float) -> bool:
        """Wait for so many seconds at most, and tell whether all is stored;
        again, where the wait was interrupted.
        """
        if self.stored is None:
            self._lock.acquire(timeout=timeout)
        return bool(self.stored)


_Operation = int | float | Write | Start | Finish | Enqueue | Barrier


class _Entry:
    """An update in the making; sealed once it has been sent, because it
    has to be sent again the same if its reply is lost.
    """

    __slots__ = (
        "attempts",
        "barriers",
        "enqueue",
        "epoch",
        "fields",
        "increment",
        "origin",
        "sealed",
        "start",
        "state",
        "ttl",
    )

    def __init__(self, epoch: Epoch) -> None:
        #: The enqueue that it belongs to; a retry that follows begins another.
        self.epoch = epoch
        self.fields: Record = {}
        self.increment: int | float = 0
        self.start = False
        self.attempts = 1
        self.origin: Origin | None = None
        self.state: int | None = None
        self.ttl = DEFAULT_STATUS_TTL
        self.enqueue = False
        self.barriers: list[Barrier] = []
        self.sealed: Update | None = None


class Lane:
    """What one run writes, or what this process writes to one message
    from outside of its run, in order.

    Parameters:
      writer(Writer)
      message_id(str)
      run(int): The token of the run; 0 for writes from outside.
      epoch(Epoch): The enqueue that the run belongs to.
      throttle(int): The shortest time between two throttled writes, in
        milliseconds.
      base(Record): What the run knows of its message, should the store lose it.
    """

    def __init__(
        self,
        writer: Writer,
        message_id: str,
        *,
        kind: Kind = Kind.OUTSIDE,
        run: int = 0,
        epoch: Epoch = NO_EPOCH,
        throttle: int = 0,
        base: Record | None = None,
    ) -> None:
        self.message_id = message_id
        #: Whether nothing can be written any more.
        self.closed = False
        #: The thread that runs the message.
        self.thread = threading.current_thread()
        self._writer = writer
        self._put = writer.put
        self._operations: deque[_Operation] = deque()
        # Whether the writer knows that there is something to do.
        self._signalled = False
        # Guards all that follows; writing does not take it.
        self._lock = threading.Lock()
        self._kind = kind
        self._run = run
        self._epoch = epoch
        self._place = 0
        self._entries: list[_Entry] = []
        # Whether something among the entries is not throttled.
        self._urgent = False
        # Whether something is.
        self._throttled = False
        self._throttle = throttle / 1000
        self._due = 0.0
        #: What the run knew of its message before it began.
        self.base: Record = base or {}
        self._known: Record = dict(self.base)
        self._attempts = 1
        self._meter = RateMeter()

    # Writing, on any thread

    def increment(self, n: int | float = 1) -> None:
        """Add to the progress; throttled."""
        if n.__class__ is not int:
            check_count("increment", n)
        if self.closed:
            return
        operations = self._operations
        operations.append(n)
        if not self._signalled:
            self._signalled = True
            self._put(self)
        elif not len(operations) % _MERGE_EVERY:
            self._put(self)

    def write(self, fields: Record, increment: int | float = 0, *, urgent: bool = True) -> None:
        """Set fields, then add to the progress."""
        if self.closed:
            logger.warning("Message %s is finished: what its run writes now is dropped.", self.message_id)
            return
        self.add(Write(fields, increment, urgent))

    def add(self, operation: _Operation) -> None:
        """Add an operation, and tell the writer."""
        self._operations.append(operation)
        self._signalled = True
        self._put(self)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything written so far is stored.

        Returns:
          bool: False where that took longer than `timeout` seconds (by
          default the backend's own), or the store is down.
        """
        barrier = Barrier()
        self.add(barrier)
        return self._writer.wait(barrier, timeout)

    def close(self) -> None:
        """Take no more writes; what was written is still sent."""
        self.closed = True
        self._writer.running.pop(self, None)

    # Looking, on any thread

    def counts(self) -> tuple[int | float | None, int | float | None, float | None]:
        """The progress, the total and the rate, as this process has written them."""
        with self._lock:
            self._merge()
            known = self._known
            return (
                number_of(known[PROGRESS]) if PROGRESS in known else None,
                number_of(known[TOTAL]) if TOTAL in known else None,
                self._meter.rate_at(time.monotonic()),
            )

    def known(self, name: str) -> str | None:
        """The JSON text of a field as this process has written it, None for none."""
        with self._lock:
            self._merge()
            return self._known.get(name)

    # Sending, on the writer's thread

    def collect(self, now: float) -> float | None:
        """Merge what was written, and tell when it is due by the monotonic
        clock: 0 for at once, None for nothing to do.
        """
        with self._lock:
            self._signalled = False
            self._merge()
            if not self._entries:
                return None
            if self._urgent or now >= self._due:
                return 0.0
            # Increments need not tell the writer before that.
            self._signalled = True
            return self._due

    def take(self, now: float) -> list[Update]:
        """Seal all entries and return their updates, to be followed by :meth:`settle`."""
        with self._lock:
            self._merge()
            self._urgent = False
            if self._throttled:
                self._throttled = False
                self._due = now + self._throttle
            for entry in self._entries:
                if entry.sealed is None:
                    entry.sealed = self._seal(entry, now)
            return [entry.sealed for entry in self._entries if entry.sealed is not None]

    def settle(self, outcomes: Iterable[Outcome]) -> bool:
        """Take note of what became of the updates taken last.

        Returns:
          bool: Whether some have to be sent again.
        """
        barriers: list[Barrier] = []
        with self._lock:
            left: list[_Entry] = []
            for entry, outcome in zip(self._entries, outcomes):
                update = entry.sealed
                assert update is not None
                if outcome is Outcome.MISSING and update.kind is Kind.RUN and not update.create:
                    entry.sealed = self._whole(update)
                    left.append(entry)
                    continue
                if outcome is Outcome.MISSING:
                    logger.info("Message %s has no status: what was written to it is dropped.", self.message_id)
                if left:
                    left[-1].barriers += entry.barriers
                else:
                    barriers += entry.barriers
            sent = sum(1 for entry in self._entries if entry.sealed is not None)
            self._entries = left + self._entries[sent:]
        for barrier in barriers:
            barrier.release(True)
        return bool(left)

    def give_up(self, *, entries: bool) -> int:
        """Let those go who wait; forget the updates too if `entries`.

        Returns:
          int: How many updates were forgotten.
        """
        with self._lock:
            barriers = [barrier for entry in self._entries for barrier in entry.barriers]
            for entry in self._entries:
                entry.barriers = []
            forgotten = len(self._entries) if entries else 0
            if entries:
                self._entries = []
        for barrier in barriers:
            barrier.release(False)
        return forgotten

    def heartbeat(self) -> Update:
        return Update(Kind.HEARTBEAT, self._epoch, self._run)

    def restore(self) -> None:
        """The store has lost the record of a running message."""
        self.add(Write({}))

    def _merge(self) -> None:
        operations = self._operations
        while operations:
            operation = operations.popleft()
            if isinstance(operation, (int, float)):
                self._throttled = True
                self._add(operation)
                continue
            if isinstance(operation, Write):
                entry = self._entry()
                if PROGRESS in operation.fields:
                    entry.increment = 0
                entry.fields.update(operation.fields)
                self._note_leg(operation.fields, entry)
                self._known.update(operation.fields)
                self._urgent = self._urgent or operation.urgent
                self._throttled = self._throttled or not operation.urgent
                if operation.increment:
                    self._add(operation.increment)
                continue
            self._urgent = True
            if isinstance(operation, Barrier):
                if self._entries:
                    self._entries[-1].barriers.append(operation)
                else:
                    operation.release(True)
            elif isinstance(operation, Start):
                entry = self._entry()
                entry.start, entry.attempts, entry.origin = True, operation.attempts, operation.origin
                self._attempts = operation.attempts
                entry.fields.update(operation.fields)
                self._known.update(operation.fields)
            elif isinstance(operation, Finish):
                entry = self._entry()
                entry.state, entry.ttl = operation.state, operation.ttl
                entry.fields.update(operation.fields)
                self._known.update(operation.fields)
            else:
                entry = self._entry(fresh=True)
                entry.enqueue, entry.epoch = True, operation.epoch
                self._epoch = operation.epoch
                entry.fields = {**self._left_to_requeue(), **operation.fields}

    def _note_leg(self, fields: Record, entry: _Entry) -> None:
        """A progress of 0, or below the present one, begins a new leg; the
        first progress or total begins the first.
        """
        if PROGRESS in fields:
            count, known = number_of(fields[PROGRESS]), self._known.get(PROGRESS, "0")
            if self._meter.begun and 0 < count >= number_of(known):
                return
        elif TOTAL in fields and not self._meter.begun:
            count = 0
        else:
            return
        self._meter.begin(count, time.monotonic())
        if self._known.pop(RATE, None) is not None:
            entry.fields[RATE] = "null"

    def _left_to_requeue(self) -> Record:
        # Should the store have lost the record: these only fill gaps.
        if self._kind is not Kind.RUN:
            return {}
        left = {name: text for name, text in self._known.items() if name not in CLEARED_BY_START}
        left[ATTEMPTS] = str(self._attempts)
        return left

    def _entry(self, *, fresh: bool = False) -> _Entry:
        if self._entries and not fresh:
            last = self._entries[-1]
            if last.sealed is None and not last.enqueue and last.state is None:
                return last
        entry = _Entry(self._epoch)
        self._entries.append(entry)
        return entry

    def _add(self, n: int | float) -> None:
        self._entry().increment += n
        self._known[PROGRESS] = number_text(number_of(self._known.get(PROGRESS, "0")) + n)

    def _seal(self, entry: _Entry, now: float) -> Update:
        if entry.enqueue:
            return Update(Kind.ENQUEUE, entry.epoch, fields=entry.fields)
        if self._kind is Kind.OUTSIDE:
            return Update(Kind.OUTSIDE, fields=entry.fields, increment=entry.increment)
        self._place += 1
        if entry.state is None:
            if entry.increment or PROGRESS in entry.fields:
                self._meter.observe(number_of(self._known[PROGRESS]), now)
            rate = self._meter.text_at(now)
            if rate is not None and rate != self._known.get(RATE):
                entry.fields[RATE] = self._known[RATE] = rate
        return Update(
            Kind.RUN,
            entry.epoch,
            self._run,
            self._place,
            entry.start,
            False,
            entry.state,
            entry.attempts,
            entry.fields,
            entry.increment,
            entry.ttl,
            entry.origin,
        )

    def _whole(self, update: Update) -> Update:
        # All that the run knows; the increments are in its progress.
        return update._replace(create=True, fields=dict(self._known), increment=0, attempts=self._attempts, origin=None)


class Writer:
    """Sends the updates of a process, on a thread that is started when
    it is first needed, and again after a fork.

    Parameters:
      backend(StatusBackend)
      outage(Outage): What this process knows of the store's outages.
      heartbeat_interval(int): How often running messages say that they
        run, in milliseconds.
      max_pending(int): For how many messages updates are kept while the
        store is down.  Beyond that, those of messages that finished
        first are dropped first.
    """

    def __init__(
        self,
        backend: StatusBackend,
        outage: Outage,
        *,
        heartbeat_interval: int = DEFAULT_HEARTBEAT_INTERVAL,
        max_pending: int = DEFAULT_MAX_PENDING,
    ) -> None:
        self.backend = backend
        self.outage = outage
        self._interval = heartbeat_interval / 1000
        self._max_pending = max_pending
        self._begin()
        _writers.add(self)

    def _begin(self) -> None:
        self._start_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._queue: SimpleQueue[Lane | None] = SimpleQueue()
        #: Tell the writer that a lane has something to send.
        self.put = self._queue.put
        #: The lanes of the messages that run in this process, for heartbeats; each leaves when it is closed.
        self.running: dict[Lane, None] = {}
        self._outside: weakref.WeakValueDictionary[str, Lane] = weakref.WeakValueDictionary()
        # Lanes with something to send, in order; lanes to look at later, and when.
        self._ready: dict[Lane, None] = {}
        self._later: dict[Lane, float] = {}
        self._next_due = math.inf
        # Whether it was said that too many wait for a server that does not answer.
        self._full = False
        self._beat_at = time.monotonic() + self._interval
        self._stopping = False

    def begin_run(self, message_id: str, *, run: int, epoch: Epoch, throttle: int, base: Record) -> Lane:
        """Open the lane of a run."""
        self._ensure_thread()
        return Lane(self, message_id, kind=Kind.RUN, run=run, epoch=epoch, throttle=throttle, base=base)

    def outside(self, message_id: str) -> Lane:
        """Open a lane to a message that this process does not run, or
        whose run does not matter; shared by all who do.
        """
        self._ensure_thread()
        lane = self._outside.get(message_id)
        if lane is None:
            lane = self._outside[message_id] = Lane(self, message_id)
        return lane

    def enqueue(self, message_id: str, operation: Enqueue) -> Barrier:
        """Write that a message enters its queue; wait for the barrier."""
        self._ensure_thread()
        lane, barrier = Lane(self, message_id), Barrier()
        lane.add(operation)
        lane.add(barrier)
        return barrier

    def wait(self, barrier: Barrier, timeout: float | None = None) -> bool:
        """Wait for a barrier: not at all while the store is down, and by
        default no longer than one call to the backend may take.
        """
        if self.outage.down:
            return False
        return barrier.wait(self.backend.timeout / 1000 if timeout is None else timeout)

    def drain(self, timeout: float) -> bool:
        """Send everything now, whatever the throttle says; for so many
        seconds at most.  The thread ends, and begins again when it is needed.

        Returns:
          bool: Whether everything was sent.
        """
        thread = self._thread
        if thread is None or not thread.is_alive():
            return True
        self._stopping = True
        self._queue.put(None)
        thread.join(timeout)
        return not thread.is_alive() and not self._ready and not self._later

    def _ensure_thread(self) -> None:
        if self._thread is not None and not self._stopping:
            return
        with self._start_lock:
            thread = self._thread
            if thread is not None and self._stopping:
                thread.join()
                self._thread = None
            if self._thread is None:
                self._stopping = False
                thread = threading.Thread(target=self._work, name="dramatiq-status-writer", daemon=True)
                thread.start()
                self._thread = thread

    # The thread

    def _work(self) -> None:
        while True:
            try:
                self._look()
                # One that ends tries once more, however early.
                sent = True
                if self._ready and (self._stopping or not self.outage.blocked):
                    sent = self._send()
                if self._stopping and self._queue.empty() and not (self._ready and sent):
                    return
                if time.monotonic() >= self._beat_at:
                    self._beat()
            except Exception:
                # Whatever it was, the next message's status must not suffer.
                logger.exception("The status writer met an unexpected error; it goes on.")
                self._ready.clear()

    def _look(self) -> None:
        """Wait for something to send, and collect all that there is."""
        now = time.monotonic()
        wake_at = self._beat_at
        wake_at = min(wake_at, self._next_due)
        if self._ready:
            wake_at = min(wake_at, self.outage.retry_at)
        try:
            lane = self._queue.get(timeout=max(0.0, wake_at - now)) if wake_at > now else self._queue.get_nowait()
            while True:
                if lane is not None:
                    self._collect(lane)
                lane = self._queue.get_nowait()
        except Empty:
            pass
        now = time.monotonic()
        if self._stopping or now >= self._next_due:
            for lane in [lane for lane, due in self._later.items() if self._stopping or due <= now]:
                del self._later[lane]
                self._collect(lane)
            self._next_due = min(self._later.values(), default=math.inf)

    def _collect(self, lane: Lane) -> None:
        due = lane.collect(time.monotonic())
        if due == 0.0 or (due and self._stopping):
            self._ready[lane] = None
            self._later.pop(lane, None)
            if self.outage.blocked:
                lane.give_up(entries=False)
                if len(self._ready) > self._max_pending:
                    self.outage.dropped(self._drop(self._ready))
        elif due is not None:
            self._later[lane] = due
            self._next_due = min(self._next_due, due)

    def _send(self) -> bool:
        """Send what is ready, and tell whether the store has answered."""
        lanes = list(self._ready)
        if self.outage.down:
            lanes = lanes[:_PROBE]
        now = time.monotonic()
        taken = [(lane, lane.take(now)) for lane in lanes]
        updates = [(lane.message_id, update) for lane, taken_updates in taken for update in taken_updates]
        try:
            outcomes = self.backend.update_many(updates)
        except BackendError as e:
            self._failed(e)
            return False
        except Exception:
            return self._send_singly(taken)
        self.outage.succeeded()
        replies = iter(outcomes)
        for lane, taken_updates in taken:
            self._settle(lane, [next(replies) for _ in taken_updates])
        return True

    def _send_singly(self, taken: list[tuple[Lane, list[Update]]]) -> bool:
        """One of many updates cannot be stored: find out which, and drop it."""
        for lane, updates in taken:
            outcomes = []
            for update in updates:
                try:
                    outcomes += self.backend.update_many(((lane.message_id, update),))
                except BackendError as e:
                    self._failed(e)
                    return False
                except Exception as e:
                    logger.error("An update of message %s cannot be stored and is dropped: %s", lane.message_id, e)
                    outcomes.append(Outcome.REFUSED)
            self._settle(lane, outcomes)
        return True

    def _settle(self, lane: Lane, outcomes: list[Outcome]) -> None:
        if Outcome.UNREACHED in outcomes:
            self._postpone(lane)
        elif not lane.settle(outcomes):
            del self._ready[lane]

    def _postpone(self, lane: Lane) -> None:
        """One server of many does not answer: try its messages later, and let nobody wait for them."""
        lane.give_up(entries=False)
        del self._ready[lane]
        self._later[lane] = due = time.monotonic() + LONGEST_PAUSE
        self._next_due = min(self._next_due, due)
        if len(self._later) > self._max_pending:
            self._drop(self._later)
            if not self._full:
                self._full = True
                logger.warning(
                    "More than %d messages wait for a server of the status store: from now on, updates of those that "
                    "finished first are dropped first.",
                    self._max_pending,
                )

    def _failed(self, error: BackendError) -> None:
        self.outage.failed(error)
        for lane in self._ready:
            lane.give_up(entries=False)

    def _drop(self, lanes: dict[Lane, Any]) -> int:
        """Make room: those that finished first go first, then the oldest."""
        lane = next((lane for lane in lanes if lane.closed), next(iter(lanes)))
        del lanes[lane]
        return lane.give_up(entries=True)

    def _beat(self) -> None:
        """Say of all running messages that they run, in one round trip."""
        self._beat_at = time.monotonic() + self._interval
        lanes = [lane for lane in list(self.running) if lane.thread.is_alive()]
        if not lanes or self.outage.blocked:
            return
        try:
            outcomes = self.backend.update_many([(lane.message_id, lane.heartbeat()) for lane in lanes])
        except BackendError as e:
            self._failed(e)
            return
        self.outage.succeeded()
        for lane, outcome in zip(lanes, outcomes):
            if outcome is Outcome.MISSING:
                lane.restore()


#: All writers of this process.
_writers: weakref.WeakSet[Writer] = weakref.WeakSet()

#: How long a process that ends waits for its last updates, in seconds.
EXIT_TIMEOUT: Final = 5.0


def _begin_all() -> None:
    for writer in list(_writers):
        # What the parent has not sent yet is the parent's to send.
        writer._begin()


def _drain_all() -> None:
    for writer in list(_writers):
        writer.drain(EXIT_TIMEOUT)


os.register_at_fork(after_in_child=_begin_all)
atexit.register(_drain_all)
