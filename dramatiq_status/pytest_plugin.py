"""Fixtures for pytest, which loads this module in every environment that has the package.

So the module imports no other module of the package until a test uses a fixture, and loads in a millisecond.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import dramatiq

    from .backends.stub import StubBackend


@pytest.fixture
def status_broker() -> dramatiq.Broker:
    """Return the broker whose statuses :func:`status_backend` keeps in memory: the default broker.

    Where the tests have a broker of their own, define this fixture in ``conftest.py``:

    >>> @pytest.fixture
    ... def status_broker(stub_broker):
    ...     return stub_broker
    """
    import dramatiq

    return dramatiq.get_broker()


@pytest.fixture
def status_backend(status_broker: dramatiq.Broker) -> Iterator[StubBackend]:
    """Keep the statuses of a test in memory, whatever store the broker has.

    The fixture is a :class:`.StubBackend`, which is empty when the test begins.  See
    :func:`dramatiq_status.testing.stub_statuses`.  A worker has to start after this fixture:

    >>> @pytest.fixture
    ... def stub_worker(status_broker, status_backend):
    ...     worker = Worker(status_broker, worker_timeout=100)
    ...     worker.start()
    ...     yield worker
    ...     worker.stop()
    """
    from .testing import stub_statuses

    with stub_statuses(status_broker) as backend:
        yield backend
