"""Threads in which interrupts are raised: time limits, aborts and shutdowns.

Dramatiq raises these interrupts asynchronously in its workers' threads, between any two instructions of Python.
Python ignores an exception that is raised while it drops an object: in ``__del__``, in the callback of a weak
reference, or in a generator that a loop has left.  An interrupt that strikes there is lost, and the run goes on
forever.  Therefore no object of this package executes a function when it is dropped on such a thread.
"""

from __future__ import annotations

import socket
import threading
import weakref
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

T = TypeVar("T")

#: Whether an interrupt may strike at any instruction.  gevent raises interrupts only where a greenlet waits.
ARE_THREADS_REAL: Final = socket.socket.__module__ == "socket"


def may_be_interrupted() -> bool:
    """Whether an interrupt may strike the present thread at any instruction."""
    kinds = type(threading.current_thread()).__mro__
    return ARE_THREADS_REAL and any(kind.__module__ == "dramatiq.worker" for kind in kinds)


class Sleep:
    """A sleep of one thread, which other threads can end.  A call of :meth:`wake` before the sleep ends it at once.

    It waits for a lock, which is one call into C that signals do not prolong.  Ctrl-C in the wait of a
    :class:`threading.Event` may raise RuntimeError instead of KeyboardInterrupt.  Before Python 3.13, the wait of a
    :class:`queue.SimpleQueue` never ends if a signal, such as a stop by Ctrl-Z, interrupts it for longer than its
    time-out.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wake(self) -> None:
        """Wake the thread."""
        try:
            self._lock.release()
        except RuntimeError:
            # It is awake.
            pass

    def sleep(self, timeout: float) -> bool:
        """Sleep until another thread wakes this one, for at most `timeout` seconds.  Return whether it was woken."""
        return self._lock.acquire(timeout=timeout)


class WeakList(Generic[T]):
    """A list that does not keep its objects alive.  An iteration leaves out the objects that are gone.

    It replaces a :class:`weakref.WeakSet`, which executes a function whenever it loses an object.
    """

    def __init__(self) -> None:
        self._references: list[weakref.ref[T]] = []

    def add(self, item: T) -> None:
        """Add an object, and remove references to objects that are gone."""
        # This takes no lock, because another thread might hold the lock at a fork.
        for reference in [reference for reference in self._references if reference() is None]:
            self._remove(reference)
        self._references.append(weakref.ref(item))

    def discard(self, item: T) -> None:
        """Remove an object, if the list has it."""
        self._remove(weakref.ref(item))

    def __iter__(self) -> Iterator[T]:
        found = (reference() for reference in list(self._references))
        return (item for item in found if item is not None)

    def _remove(self, reference: weakref.ref[T]) -> None:
        try:
            self._references.remove(reference)
        except ValueError:
            pass
