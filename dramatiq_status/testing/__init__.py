"""For the unit tests of those who use this package.

:mod:`dramatiq_status.testing.conformance` is for those who write a
backend.  It needs pytest; this module does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..backend import StatusBackend
from ..backends.stub import StubBackend
from ..channel import DirectChannel
from ..checks import check_message_id
from ..context import Binding, bind, current_binding, detached_binding
from ..progress import Progress
from ..status import Status
from ..update import EnqueueId, Kind, Update


@contextmanager
def bound_status(message_id: str | None = None) -> Iterator[Status]:
    """Bind detached handles for the length of a ``with`` block, so that a
    test can call an actor's function and look at what it wrote.  All handles
    that are taken inside agree.  Threads that the function starts have
    to be passed one, as in a worker.

    >>> with bound_status() as status:
    ...     import_rows.fn("f.csv")
    >>> status["step"]
    'indexing'

    With a message id, :class:`.StatusRegistry` finds the status inside of the
    block, without a broker, and the statuses of blocks around it.  Use it
    for an actor that counts on the bar of another message.

    >>> with bound_status("parent") as parent, bound_status("child"):
    ...     import_one.fn("orders.csv", parent_id="parent")
    >>> parent.progress
    0.01

    Parameters:
      message_id(str): Message id of the status.  By default the status has no id, and
        the registry searches its usual backend.

    Raises:
      ValueError: When the message id is not valid.
    """
    previous = current_binding()
    binding = detached_binding() if message_id is None else _stored_binding(message_id, previous)
    bind(binding)
    try:
        yield binding.status
    finally:
        bind(previous)


def _stored_binding(message_id: str, previous: Binding | None) -> Binding:
    """Create handles of a running message in memory, beside those of the blocks around it."""
    backend: StatusBackend = StubBackend() if previous is None or previous.backend is None else previous.backend
    channel = DirectChannel(backend, check_message_id(message_id))
    backend.update(message_id, Update(Kind.RUN, EnqueueId(1, 1), run_token=1, sequence=1, start=True, create=True))
    return Binding(Status(channel), Progress(channel), backend=backend)
