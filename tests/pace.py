"""A clock for tests of deadlines that stands still while the machine has no time for this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Seconds between two ticks.
_TICK = 0.01


@contextmanager
def own_clock() -> Iterator[Callable[[], float]]:
    """Yield a function that returns the seconds that this process has had since the block began.

    A thread sleeps for a hundredth of a second and counts it, again and again. On an idle machine these are seconds of
    the wall clock. On a busy machine the thread is woken late, as the threads under test are, and the clock runs
    slower than the wall clock.
    """
    ticks, over = 0, threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not over.is_set():
            time.sleep(_TICK)
            ticks += 1

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield lambda: ticks * _TICK
    finally:
        over.set()
        thread.join()
