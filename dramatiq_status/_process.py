"""Hooks that run when the process forks, and interrupts that strike in them."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Final

from ._interrupts import ARE_THREADS_REAL

try:
    from dramatiq.threading import Interrupt, raise_thread_exception
except ImportError:  # Dramatiq 1.x
    from dramatiq.middleware.threading import Interrupt, raise_thread_exception

logger = logging.getLogger("dramatiq_status")

#: Seconds after a fork until an interrupt is raised again.  By then, the hooks of other packages have ended.
RAISE_DELAY: Final = 0.01

# Interrupts that have struck in hooks, and interrupts to raise again after the fork, by thread.
_caught: dict[int, type[BaseException]] = {}
_due: dict[int, type[BaseException]] = {}


# Hooks before a fork: first the hooks that still need connections to a store, then the hooks that close connections.
_flushes: list[Callable[[], None]] = []
_befores: list[Callable[[], None]] = []


def at_fork(*, flush: Callable[[], object] | None = None, **hooks: Callable[[], object]) -> None:
    """Register hooks as ``os.register_at_fork`` does; do nothing on Windows, where no process forks.

    Python ignores what a hook raises.  If an interrupt strikes in a hook of the parent, the hook begins again, and the
    interrupt is raised again after the fork.

    Parameters:
      flush(Callable): Called before a fork, and before all functions that are passed as ``before``, even if they were
        registered earlier.
      **hooks(Callable): Functions by the names that ``os.register_at_fork``
        has for them: ``before``, ``after_in_parent``, ``after_in_child``.
    """
    if flush is not None:
        _flushes.append(_repeated_after_interrupt("flush", flush))
    if "before" in hooks:
        _befores.insert(0, _repeated_after_interrupt("before", hooks.pop("before")))
    if hasattr(os, "register_at_fork"):
        for name, hook in hooks.items():
            # In a child process, no other thread exists that could raise an interrupt.
            os.register_at_fork(**{name: hook if name == "after_in_child" else _repeated_after_interrupt(name, hook)})


def _run_before_fork() -> None:
    for hook in (*_flushes, *_befores):
        try:
            hook()
        except BaseException:
            # As in Python, the other hooks run after an error of one hook, and the process forks.
            logger.exception("A hook that runs before a fork has failed.")


def note_interrupt(error: BaseException) -> None:
    """Note an interrupt that has struck in a hook, so that it is raised again after the fork."""
    # An interrupt of a greenlet cannot be raised again.
    if ARE_THREADS_REAL:
        _caught[threading.get_ident()] = type(error)


def _repeated_after_interrupt(name: str, hook: Callable[[], object]) -> Callable[[], None]:
    def carried() -> None:
        while True:
            try:
                hook()
                break
            except Interrupt as e:
                note_interrupt(e)
        if name == "after_in_parent":
            _raise_again()

    return carried


def _raise_again() -> None:
    thread = threading.get_ident()
    caught = _caught.pop(thread, None)
    if caught is not None:
        _due[thread] = caught
        threading.Timer(RAISE_DELAY, _raise, (thread,)).start()


def _raise(thread: int) -> None:
    due = _due.pop(thread, None)
    if due is not None:
        raise_thread_exception(thread, due)  # type: ignore[no-untyped-call]


def drop_interrupt() -> None:
    """Drop the interrupt that would be raised again in this thread.  The interrupted run has ended, and the interrupt
    would strike the next run.
    """
    if _due:
        _due.pop(threading.get_ident(), None)


def _forget() -> None:
    _caught.clear()
    _due.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_run_before_fork)
at_fork(after_in_parent=_raise_again, after_in_child=_forget)
