"""The binding of the running message: what :func:`current_status`,
:func:`current_progress` and :func:`track` look at.

A context variable holds it.  Coroutines, tasks and ``asyncio.to_thread``
inherit it; threads that a user starts do not (pass them a handle instead).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from .channel import Channel, DetachedChannel
from .progress import Progress, track_progress
from .status import Status

if TYPE_CHECKING:
    from .lifecycle import Frame
    from .writer import Writer

T = TypeVar("T")


class Binding(NamedTuple):
    """The handles of the running message."""

    status: Status
    progress: Progress
    writer: Writer | None = None
    frame: Frame | None = None


_binding: ContextVar[Binding | None] = ContextVar("dramatiq_status", default=None)


def bind(binding: Binding | None) -> None:
    """Bind the handles of a message to this context; None to unbind."""
    _binding.set(binding)


def current_binding() -> Binding | None:
    """The binding of this context."""
    return _binding.get()


def detached_binding(channel: Channel | None = None) -> Binding:
    """Handles that write nowhere but to memory."""
    channel = channel or DetachedChannel()
    return Binding(Status(channel), Progress(channel))


def current_status() -> Status:
    """Get the status of the message that is being processed.

    Outside of a worker, in a unit test that calls an actor's function
    directly say, the handle is detached: it keeps values in memory and
    writes nowhere.  :func:`dramatiq_status.testing.bound_status` shows a test
    what was written.

    Returns:
      Status
    """
    return (_binding.get() or detached_binding()).status


def current_progress() -> Progress:
    """Get the progress of the message that is being processed; outside
    of a worker, a detached one.

    Returns:
      Progress
    """
    return (_binding.get() or detached_binding()).progress


def track(iterable: Iterable[T], total: int | float | None = None, **fields: Any) -> Iterator[T]:
    """Iterate while reporting progress: set the total and the progress
    to 0, count every item when it has been dealt with, and end with progress and
    total equal.

    >>> for row in track(rows, step="reading"):
    ...     insert(row)

    Parameters:
      iterable(Iterable[T])
      total(int | float): By default ``len(iterable)``, or its length
        hint.  Where it has none, the total stays unknown until the end.
      **fields: Fields to set together with the total.

    Returns:
      Iterator[T]: The items.
    """
    binding = _binding.get() or detached_binding()
    if fields:
        binding.status.update(fields)
    return track_progress(binding.progress, iterable, total)
