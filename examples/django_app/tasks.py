"""The actor; `rundramatiq` finds this module by its name."""

import time

import dramatiq

from dramatiq_status import track


@dramatiq.actor
def import_orders() -> None:
    for _ in track(range(100), step="reading"):
        time.sleep(0.01)
