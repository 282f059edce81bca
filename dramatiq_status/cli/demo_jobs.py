"""The jobs of ``dramatiq-status demo``: loops, a retry, a failure, and a job of many messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import dramatiq

from .. import _time as time
from ..context import current_progress, current_status, track
from ..registry import StatusRegistry

#: Number of messages that the last job sends.
CHILDREN: Final = 60

#: Unit of the pauses between two increments, in seconds.
_BEAT: Final = 0.05


class CardDeclined(Exception):
    """The failure of the job that is not retried."""


class ShopError(Exception):
    """The failure of the job that is retried."""


def declare(broker: dramatiq.Broker) -> Iterator[dramatiq.Message[Any]]:
    """Declare the actors of the jobs on a broker, and yield a message for each job.  The long ones end with the worker,
    so that none of them writes to the store after its end.

    Parameters:
      broker(Broker): With a :class:`.StatusMiddleware`.
    """

    @dramatiq.actor(broker=broker, status_throttle=50, notify_shutdown=True)
    def import_orders() -> None:
        # The inner loop increments the progress by parts of the outer loop's item.
        for file in track(["may-01", "may-02", "may-03", "may-04"]):
            current_status()["step"] = file
            for _ in track(range(45)):
                time.sleep(_BEAT)

    @dramatiq.actor(broker=broker, status_throttle=50, notify_shutdown=True)
    def build_index() -> None:
        # Three loops one after another: each begins at 0 again.
        for step, total, pause in (("download", 40, _BEAT), ("unpack", 300, _BEAT / 5), ("index", 80, _BEAT)):
            for _ in track(range(total), step=step):
                time.sleep(pause)

    @dramatiq.actor(broker=broker, min_backoff=3_000, max_backoff=3_000, status_throttle=50, notify_shutdown=True)
    def sync_stock() -> None:
        # The first run fails, and Dramatiq runs the message again.
        snapshot = current_status().read()
        for shelf in track(range(98), step="syncing"):
            time.sleep(_BEAT)
            if shelf == 60 and snapshot is not None and snapshot.attempts == 1:
                raise ShopError("the shop does not answer")

    @dramatiq.actor(broker=broker, max_retries=0, status_throttle=50, notify_shutdown=True)
    def charge_card() -> None:
        # The total is unknown, and the job fails without a retry.
        current_progress().total = None
        for _ in range(25):
            time.sleep(2 * _BEAT)
            current_progress().increment()
        raise CardDeclined("insufficient funds")

    # The priority is low, so that the retries of the other jobs run first.
    @dramatiq.actor(broker=broker, priority=10, track_status=False)
    def make_thumbnail(parent: str) -> None:
        time.sleep(8 * _BEAT)
        StatusRegistry.progress(parent, broker=broker).increment()

    @dramatiq.actor(broker=broker)
    def make_thumbnails() -> None:
        # The job is over once it has sent its messages; these move its bar.
        status = current_status()
        status.update(total=CHILDREN, progress=0)
        for _ in range(CHILDREN):
            make_thumbnail.send(status.message_id)

    jobs = (
        (import_orders, "Orders of May"),
        (build_index, "Search index"),
        (sync_stock, "Stock"),
        (charge_card, "Payment"),
        (make_thumbnails, "Thumbnails"),
    )
    for number, (actor, label) in enumerate(jobs, start=1):
        message: dramatiq.Message[Any] = actor.message_with_options(status={"label": label})
        yield message.copy(message_id=f"demo-{number}")
