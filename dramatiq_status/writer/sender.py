"""Sending of updates to the store, and processing of their outcomes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .. import _time as time
from .._log import logger
from ..backend import StatusBackend
from ..circuit_breaker import FIRST_PAUSE, LONGEST_PAUSE, RECOVERY, CircuitBreaker
from ..errors import BackendError, StoreRefused
from ..update import Outcome, Update
from .buffer import MessageBuffer
from .queue import SendQueue

#: Maximum number of buffers in the first probe of an outage: a call that tries the store again.  Each later probe sends
#: one buffer.
MAX_PROBED: Final = 16


class Sender:
    """Sender of the updates of message buffers.  Only the leader calls it; any thread may call :meth:`succeed`.

    Each step may be interrupted and done again: a buffer keeps its updates until their outcomes are known, and an
    update of a run counts once however often it is sent.

    Parameters:
      backend(StatusBackend)
      breaker(CircuitBreaker)
      queue(SendQueue)
      running(dict): Buffers of the messages that run in this process.
      on_recovery(Callable): Called when an outage has ended.
    """

    def __init__(
        self,
        backend: StatusBackend,
        breaker: CircuitBreaker,
        queue: SendQueue,
        running: dict[MessageBuffer, None],
        on_recovery: Callable[[], None],
    ) -> None:
        self._backend = backend
        self._breaker = breaker
        self._queue = queue
        self._running = running
        self._on_recovery = on_recovery
        # Whether the last probe of the present outage failed, so that each further probe sends one buffer.
        self._probes_singly = False

    def send(self, buffers: list[MessageBuffer]) -> bool:
        """Send the updates of these buffers, and return whether the store has answered."""
        if self._breaker.down:
            buffers = buffers[: 1 if self._probes_singly else MAX_PROBED]
        elif failed_alone := [buffer for buffer in buffers if buffer.failed_alone]:
            # A call with a buffer that has failed alone may fail again, for all buffers of the call. So after each
            # call with other buffers, one such buffer is sent alone, even if there are always others to send.
            if len(failed_alone) < len(buffers):
                others = [buffer for buffer in buffers if not buffer.failed_alone]
                return self.send(others) and self.send(failed_alone[:1])
            buffers = failed_alone[:1]
        now = time.monotonic()
        taken = [(buffer, buffer.take(now)) for buffer in buffers]
        updates = [(buffer.message_id, update) for buffer, found in taken for update in found]
        try:
            # All updates may have been sent with a command of the broker.
            outcomes = self._backend.update_many(updates) if updates else []
        except BackendError as e:
            if isinstance(e, StoreRefused) and len(updates) > 1:
                return self._send_singly(taken)
            self._fail(buffers, e)
            return False
        except Exception:
            return self._send_singly(taken)
        if updates:
            self.succeed()
        creators = self._creators() if Outcome.MISSING in outcomes else {}
        first = 0
        for buffer, found in taken:
            last = first + len(found)
            self._settle(buffer, found, outcomes[first:last], creators)
            first = last
        return True

    def _send_singly(self, taken: list[tuple[MessageBuffer, list[Update]]]) -> bool:
        """Send each update alone, because one of them cannot be stored, and drop that one.  An update that the store
        refuses is dropped only when it is refused again.

        If the store refuses all updates, the cause may be the store itself, so an outage begins.
        """
        creators = self._creators()
        refused: dict[MessageBuffer, StoreRefused] = {}
        has_succeeded = False
        for buffer, updates in taken:
            outcomes = []
            for update in updates:
                try:
                    outcomes += self._backend.update_many(((buffer.message_id, update),))
                    has_succeeded = True
                    self.succeed()
                except StoreRefused as e:
                    buffer.settle(updates, outcomes)
                    refused[buffer] = e
                    break
                except BackendError as e:
                    # The updates of this buffer that are stored must not be sent again.
                    buffer.settle(updates, outcomes)
                    self._fail([buffer], e)
                    return False
                except Exception as e:
                    self._drop_unstorable(buffer, e)
                    outcomes.append(Outcome.REFUSED)
            else:
                self._settle(buffer, updates, outcomes, creators)
        if refused and not has_succeeded:
            self._fail(list(refused), next(iter(refused.values())))
            return False
        for buffer, error in refused.items():
            if buffer.failed_alone:
                self._refuse(buffer, error)
            else:
                # The store may have begun to take updates in the middle of these calls.
                buffer.failed_alone = True
        return True

    def _drop_unstorable(self, buffer: MessageBuffer, error: Exception) -> None:
        self._breaker.dropped()
        if buffer.is_first("unstorable"):
            logger.error(
                "An update of message %r cannot be stored and is dropped: %s. Later ones that cannot be stored are "
                "dropped without a log line.",
                buffer.message_id,
                error,
            )

    def succeed(self) -> None:
        """End an outage, because the store has answered."""
        if self._breaker.down:
            self._probes_singly = False
            self._on_recovery()
            self._breaker.succeeded()

    def _fail(self, buffers: list[MessageBuffer], error: BackendError) -> None:
        """Begin or continue an outage, unless a buffer that has failed alone fails again while the store is up.

        A probe may fail because of a single message.  So after a failed probe, each probe sends one buffer, and a
        buffer that fails alone is moved to the back of the queue.  When the store takes another buffer, the outage is
        over.  If a buffer that has failed alone then fails again, no new outage begins.  Its updates are dropped if the
        store has refused them, and postponed otherwise.
        """
        buffer, was_down = buffers[0], self._breaker.down
        if buffer.failed_alone and not was_down:
            if isinstance(error, StoreRefused):
                self._refuse(buffer, error)
            else:
                self._postpone_failed(buffer, error)
            return
        self._queue.fail(error)
        self._probes_singly = was_down
        if was_down and len(buffers) == 1 and buffer in self._queue.ready:
            buffer.failed_alone = True
            self._queue.move_to_back(buffer)

    def _postpone_failed(self, buffer: MessageBuffer, error: BackendError) -> None:
        self._breaker.count_failure()
        # The first failure may be that of a connection which broke as this buffer was sent.
        if not buffer.is_first("postponed") and buffer.is_first("refused"):
            logger.error(
                "The status store does not take updates of message %r, but takes those of others (%s). The writer "
                "keeps trying. Later failures of this message are not logged.",
                buffer.message_id,
                error,
            )
        self._queue.postpone(buffer, LONGEST_PAUSE)

    def _refuse(self, buffer: MessageBuffer, error: StoreRefused | None) -> None:
        """Drop the updates that the store refuses, while it takes others."""
        self._breaker.count_failure()
        dropped, is_more = buffer.drop_sent()
        self._breaker.dropped(dropped)
        buffer.failed_alone = True
        if buffer.is_first("refused"):
            logger.error(
                "The status store refuses updates of message %r, but takes those of others (%s). They are dropped. "
                "Later ones of this message that it refuses are dropped without a log line.",
                buffer.message_id,
                error or "its own log may have the reason",
            )
        self._queue.backlog.update(buffer)
        if not is_more:
            self._queue.remove(buffer)

    # Outcomes

    def _creators(self) -> dict[str, MessageBuffer]:
        """Return the buffers whose updates create a missing record (those of runs and enqueues), by message id.

        The store may never take a buffer that has failed alone. So such buffers are left out, and no other buffer is
        sent again at once because of them.
        """
        buffers = (*list(self._running), *self._queue.later, *self._queue.ready)
        return {buffer.message_id: buffer for buffer in buffers if buffer.repeatable and not buffer.failed_alone}

    def _settle(
        self,
        buffer: MessageBuffer,
        updates: list[Update],
        outcomes: list[Outcome],
        creators: dict[str, MessageBuffer],
    ) -> None:
        """Process the outcomes of a buffer's updates."""
        if Outcome.UNSTORABLE in outcomes:
            self._refuse(buffer, None)
            return
        is_missing, is_unavailable = Outcome.MISSING in outcomes, Outcome.UNAVAILABLE in outcomes
        if not is_missing:
            buffer.failed_alone = buffer.heartbeat_failed = False
        self._queue.backlog.update(buffer)
        if is_unavailable:
            buffer.unavailable = True
        if is_missing and not buffer.repeatable:
            self._settle_missing(buffer, updates, outcomes, creators.get(buffer.message_id))
            return
        is_left = buffer.settle(updates, outcomes)
        if is_unavailable:
            self._queue.postpone(buffer, LONGEST_PAUSE)
            return
        buffer.missing_since, buffer.unavailable = None, False
        if not is_left:
            self._queue.remove(buffer)

    def _settle_missing(
        self, buffer: MessageBuffer, updates: list[Update], outcomes: list[Outcome], creator: MessageBuffer | None
    ) -> None:
        """Keep or drop updates from outside of a run to a message without a record; on the writer's thread.

        The record may still arrive: from a buffer of this process, or within a short time from another process, for
        which the store was slow or down.
        """
        backlog = self._queue.backlog
        backlog.measure()
        now = time.monotonic()
        if buffer.missing_since is None:
            buffer.missing_since = now
        missing = now - buffer.missing_since
        # A worker that ends does not wait for an unknown message, except soon after an outage, or if the message's
        # server did not answer before.
        is_recent = self._breaker.recovering or (missing < RECOVERY and (buffer.unavailable or not self._queue.drains))
        # Updates of known messages do not make room for those of unknown ones.
        is_kept = is_recent and (buffer in backlog or backlog.has_room)
        if not buffer.settle(updates, outcomes, keep_missing=is_kept or creator is not None):
            # Forget since when the record is missing, so that later writes to this message are kept for RECOVERY
            # seconds as well.
            buffer.missing_since = None
            self._queue.remove(buffer)
        elif creator is None or Outcome.UNAVAILABLE in outcomes:
            self._queue.postpone(buffer, min(max(FIRST_PAUSE, missing), LONGEST_PAUSE))
        else:
            self._queue.move_behind(buffer, creator)
