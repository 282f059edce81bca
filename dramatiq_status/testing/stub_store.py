"""Statuses of a broker in memory while a test runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import dramatiq

from ..backends.stub import StubBackend
from ..middleware import StatusMiddleware


@contextmanager
def stub_statuses(broker: dramatiq.Broker | None = None) -> Iterator[StubBackend]:
    """Keep the statuses of a broker's messages in memory in a ``with`` block, whatever store the broker has.

    In the block, the broker's :class:`.StatusMiddleware` is replaced by one with the same settings and an empty
    :class:`.StubBackend`.  A broker without a :class:`.StatusMiddleware` gets one.  Start the broker's workers in the
    block.  The pytest fixture ``status_backend`` calls this function.  Call the function itself where there are no
    fixtures:

    >>> with stub_statuses() as backend:
    ...     message = import_rows.send("orders.csv")
    ...     assert_status_sequence(message, ["queued"])

    Parameters:
      broker(Broker): By default the default broker.

    Returns:
      StubBackend: The store, for the block.
    """
    broker = broker or dramatiq.get_broker()
    backend = StubBackend()
    usual = next((found for found in broker.middleware if isinstance(found, StatusMiddleware)), None)
    if usual is None:
        stub = StatusMiddleware(backend=backend)
        broker.add_middleware(stub)
    else:
        stub = usual.with_backend(backend)
        broker.middleware[broker.middleware.index(usual)] = stub
    try:
        yield backend
    finally:
        if usual is None:
            broker.middleware.remove(stub)
        else:
            broker.middleware[broker.middleware.index(stub)] = usual
