"""The binding of the running message, for :func:`current_status`, :func:`current_progress` and :func:`track`.

A context variable holds the binding.  Coroutines, tasks and ``asyncio.to_thread``
inherit it.  By default, a thread that the actor starts does not inherit it: pass a handle to the thread. A process that
the actor forks inherits the binding, and writes from outside of a worker.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterable, Callable, Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from ._process import at_fork
from .channel import Channel, DetachedChannel, RunChannel
from .fields import check_count, check_total, encode_fields
from .progress import Progress
from .status import Status, channel_of
from .track_loop import Track, iterated_by

if TYPE_CHECKING:
    from .backend import StatusBackend
    from .lifecycle import Delivery
    from .writer import MessageBuffer, Writer

T = TypeVar("T")

# Classes of handles.  `_detached_channel()` compares types, because isinstance() on a proxy of another library may
# execute the proxy's code and raise an error.
_HANDLES: Final = frozenset((Status, Progress, Track))


class Binding:
    """The handles of a message.  Many runs use none, so a handle of the running message is made at its first use.

    Parameters:
      channel(Channel): Channel of the handles; None for the channel of the delivery.
      writer(Writer)
      delivery(Delivery): Delivery of the running message.
      suspended(SuspendedBinding)
      backend(StatusBackend): Backend that the registry uses inside :func:`dramatiq_status.testing.bound_status`; None
        elsewhere.
    """

    _status: Status | None = None
    _progress: Progress | None = None

    def __init__(
        self,
        channel: Channel | None = None,
        writer: Writer | None = None,
        delivery: Delivery | None = None,
        suspended: SuspendedBinding | None = None,
        backend: StatusBackend | None = None,
    ) -> None:
        self._channel = channel
        self.writer = writer
        self.delivery = delivery
        self.suspended = suspended
        self.backend = backend

    @property
    def channel(self) -> Channel:
        """The channel of the handles."""
        if self._channel is None:
            assert self.writer is not None and self.delivery is not None
            made = RunChannel(self.delivery.buffer, self.writer.backend)
            # If two threads of the run come here at once, both get the channel of the first one.
            self._channel = self.__dict__.setdefault("_made", made)
        return self._channel

    @property
    def status(self) -> Status:
        if self._status is None:
            self._status = Status(self.channel)
        return self._status

    @property
    def progress(self) -> Progress:
        if self._progress is None:
            self._progress = Progress(self.channel)
        return self._progress


class SuspendedBinding(NamedTuple):
    """The binding of the outer message, and the id of the untracked message that runs inside of its run."""

    binding: Binding
    message_id: str


_binding: ContextVar[Binding | None] = ContextVar("dramatiq_status", default=None)


#: Bind the handles of a message to this context; None to unbind.
bind: Final[Callable[[Binding | None], object]] = _binding.set

#: Return the binding of this context; None without one.
current_binding: Final[Callable[[], Binding | None]] = _binding.get


def note_write(buffer: MessageBuffer) -> None:
    """Make the acknowledgement of this context's message, if there is one, wait for a write to another message."""
    binding = _binding.get()
    if binding is not None and binding.delivery is not None:
        binding.delivery.note(buffer)


def _reset_in_child() -> None:
    # A process that an actor has forked is no worker: its handles write from outside of the run (see
    # `MessageBuffer.inherit`), and so do handles that it gets from the registry.
    binding = _binding.get()
    if binding is not None:
        bind(Binding(binding.channel))


at_fork(after_in_child=_reset_in_child)


def suspend(binding: Binding, message_id: str) -> Binding:
    """Make detached handles for an untracked message that runs inside of another message's run.

    Parameters:
      binding(Binding): Binding of the outer message.
      message_id(str): Id of the untracked message.
    """
    return Binding(DetachedChannel(), suspended=SuspendedBinding(binding, message_id))


def resume(message_id: str) -> None:
    """Bind the handles of the outer message again, at the end of an untracked message that has suspended them."""
    binding = _binding.get()
    if binding is not None and binding.suspended is not None and binding.suspended.message_id == message_id:
        bind(binding.suspended.binding)


def current_status() -> Status:
    """Return the status handle of the running message.

    Outside of a worker, for example in a unit test that calls an actor's function
    directly, the handle is detached: it keeps values in memory.  It shares its values with the detached handles
    that the calling function has in variables, and with the loop over :func:`track` that the function executes. Each
    call of the function has its own values, and begins without any.  Inside
    :func:`dramatiq_status.testing.bound_status`, all handles share their values, and a test can read them.

    Returns:
      Status
    """
    binding = _binding.get()
    return Status(_detached_channel()) if binding is None else binding.status


def current_progress() -> Progress:
    """Return the progress handle of the running message.  Outside of a worker, the handle is detached, see
    :func:`current_status`.

    Returns:
      Progress
    """
    binding = _binding.get()
    return Progress(_detached_channel()) if binding is None else binding.progress


def _detached_channel() -> Channel:
    """Return the channel for detached handles of the calling function.

    The channel is tied to the call of that function, by variables and loops of its frame.  It is not tied to a context,
    a thread or a handle, because these may outlive the call.  For example, an exception that a log keeps also keeps the
    handles of all functions in its traceback.
    """
    # The caller of current_status(), current_progress() or track().
    frame = sys._getframe(2)
    # Iterate over a copy, because other threads may change the variables of a module.
    for value in list(frame.f_locals.values()):
        if type(value) in _HANDLES and channel_of(value).of_one_call:
            return channel_of(value)
    return iterated_by(frame) or DetachedChannel(of_one_call=True)


def track(
    iterable: Iterable[T] | AsyncIterable[T],
    /,
    total: int | float | None = None,
    *,
    cancellable: bool = True,
    **fields: Any,
) -> Track[T]:
    """Iterate while reporting progress: set the total, set the progress
    to 0, count every item when the loop is done with it, and end with progress and
    total at the number of items.

    >>> for row in track(rows, step="reading"):
    ...     insert(row)
    >>> async for page in track(pages, total=12):
    ...     await index_page(page)

    A loop that is left by ``break`` or by an exception leaves the
    progress where it was.  The item at which the loop was left is not counted.

    Inside the loop, another ``track`` of the same message divides the
    current item: the progress moves by parts of the item, and never back.  Each of several loops, one after the
    other, begins at 0.  A message has one progress: threads or tasks that run side by side
    should set a total and increment :func:`current_progress`.

    Parameters:
      iterable(Iterable[T] | AsyncIterable[T])
      total(int | float): By default ``len(iterable)``, or its length
        hint, when the loop begins.  If the iterable has no length, a total that was set earlier, except by a
        loop, stays until the end.  Without such a total, the total is unknown until the end.
      cancellable(bool): Whether the loop raises :class:`.Cancelled` at the next item when the message is cancelled.
      **fields: Fields to set when the loop begins, in one update with the progress.  With
        ``progress``, the loop counts from that value, for a run that resumes
        earlier work.

    Returns:
      Track[T]: An iterable of the same items, with the length of `iterable`.

    Raises:
      Cancelled: In the loop, when the message is cancelled.
      TypeError: When `iterable` is not iterable, a total is no number, or a
        value is not JSON.
      ValueError: When a name is reserved or is ``status``, a total or a ``progress`` is negative, or a
        value is NaN, infinite or too large.
    """
    if not any(hasattr(iterable, name) for name in ("__iter__", "__aiter__", "__getitem__")):
        raise TypeError(f"Cannot track a {type(iterable).__name__}: it is not iterable.")
    total = None if total is None else check_total(total)
    binding = _binding.get()
    channel = _detached_channel() if binding is None else binding.channel
    done = check_count("progress", fields.pop("progress", 0))
    if done < 0:
        raise ValueError(f"Field 'progress' of track() must not be negative, not {done!r}.")
    encoded, state = encode_fields(fields, max_size=channel.max_field_size)
    if state is not None:
        raise ValueError("Field 'status' cannot be set by track(): write current_status().update(status=...).")
    return Track(channel, iterable, total, done, encoded, cancellable=cancellable)
