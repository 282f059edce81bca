"""Helpers for tests of actors.

:func:`bound_status` is for tests that call an actor's function.  The other helpers are for tests that send messages to
a worker.  With pytest, the fixture ``status_backend`` is there without an import:

>>> def test_import_rows(status_backend, stub_worker):
...     message = import_rows.send("orders.csv")
...     snapshot = wait_for_final_state(message, "completed")
...     assert snapshot["step"] == "indexing"
...     assert_status_sequence(message, ["queued", "working", "completed"])

:mod:`dramatiq_status.testing.conformance` has tests of backends.  It needs pytest; this module does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..backend import StatusBackend
from ..backends.stub import StubBackend
from ..channel import DetachedChannel, DirectChannel
from ..checks import check_message_id
from ..context import Binding, bind, current_binding
from ..status import Status
from ..update import EnqueueId, Kind, Update
from .states import assert_status_sequence, wait_for_final_state
from .stub_store import stub_statuses

__all__ = [
    "assert_status_sequence",
    "bound_status",
    "stub_statuses",
    "wait_for_final_state",
]


@contextmanager
def bound_status(message_id: str | None = None) -> Iterator[Status]:
    """Bind handles in a ``with`` block, so that a test can call the function of an actor and check the fields that it
    has written.

    ``current_status()`` and ``current_progress()`` return handles of the same values everywhere in the block.  As in
    a worker, they return detached handles in a thread that the function starts.

    >>> with bound_status() as status:
    ...     import_rows.fn("f.csv")
    >>> status["step"]
    'indexing'

    With a message id, :class:`.StatusRegistry` finds the status in the block without a broker, and also the statuses
    of the blocks around it.  This is for actors that increment the progress of another message.

    >>> with bound_status("parent") as parent, bound_status("child"):
    ...     import_one.fn("orders.csv", parent_id="parent")
    >>> parent.progress
    0.01

    Parameters:
      message_id(str): Message id of the status.  By default, the status has no id, and the registry searches its
        usual backend.

    Raises:
      ValueError: When the message id is invalid.
    """
    previous = current_binding()
    binding = Binding(DetachedChannel()) if message_id is None else _stored_binding(message_id, previous)
    bind(binding)
    try:
        yield binding.status
    finally:
        bind(previous)


def _stored_binding(message_id: str, previous: Binding | None) -> Binding:
    """Make handles of a running message in memory: in the store of the enclosing blocks, or in a new store."""
    backend: StatusBackend = StubBackend() if previous is None or previous.backend is None else previous.backend
    channel = DirectChannel(backend, check_message_id(message_id))
    backend.update(message_id, Update(Kind.RUN, EnqueueId(1, 1), run_token=1, sequence=1, start=True, create=True))
    return Binding(channel, backend=backend)
