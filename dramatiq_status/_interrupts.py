"""Where time limits, aborts and shutdowns strike.

Dramatiq raises them asynchronously in its workers' threads, between any two instructions of Python.  Python ignores what
is raised while it drops an object: in ``__del__``, in the callback of a weak reference, in a generator that is closed.
An interrupt that strikes there is lost, and its job goes on forever.  Therefore nothing of this package executes
a function when it is dropped on such a thread.
"""

from __future__ import annotations

import socket
import threading
from typing import Final

#: Whether an interrupt may strike anywhere: gevent raises them only where a greenlet waits.
ARE_THREADS_REAL: Final = socket.socket.__module__ == "socket"


def strike_here() -> bool:
    """Whether an interrupt may strike the present thread at any instruction."""
    kinds = type(threading.current_thread()).__mro__
    return ARE_THREADS_REAL and any(kind.__module__ == "dramatiq.worker" for kind in kinds)
