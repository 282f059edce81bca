"""The module `time`, with two clocks that do not stand still when a test freezes the time.

freezegun replaces ``time.monotonic`` in every module.  On a thread whose stack is short, the replacement still returns
the real time.  A deadline by a frozen clock never passes, and code could compare times of a frozen clock with times of
the real one.
"""

from __future__ import annotations

import time as _time
from collections.abc import Callable
from functools import partial
from time import sleep as sleep
from typing import Final

#: Seconds of a clock that only goes forward.  freezegun does not replace a function inside a partial, and the partial
#: costs nothing.
monotonic: Final[Callable[[], float]] = partial(_time.monotonic)

#: Nanoseconds since 1970 by the clock that all processes of this host have in common.
host_time_ns: Final[Callable[[], int]] = partial(_time.time_ns)


def time() -> float:
    """Return the seconds since 1970.  A test may freeze this clock."""
    return _time.time()
