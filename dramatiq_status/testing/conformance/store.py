"""What the tests of a store need of a backend's test class."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Protocol
from uuid import uuid4

import pytest

from ... import _time as time
from ...backend import Listed, Query, StatusBackend, answered, now_ms
from ...cursor import Cursor
from ...record import Record
from ...update import Update


class PausableServer(Protocol):
    """A server of a test's own."""

    def start(self) -> Any: ...
    def stop(self) -> Any: ...
    def pause(self) -> Any: ...
    def resume(self) -> Any: ...


class StoreTests:
    """The fixtures and hooks of a chapter's tests.  A subclass has the fixture ``backend`` at least."""

    #: How much less than it should a time to live may be, in
    #: milliseconds: the test's own duration and the store's rounding.
    ttl_tolerance = 10_000

    #: The least by which a store can let records live on: memcached counts in seconds.
    ttl_resolution = 1

    @pytest.fixture
    def message_id(self) -> str:
        """The id of a message that nobody else uses."""
        return uuid4().hex

    @pytest.fixture
    def make_backend(self) -> Callable[..., StatusBackend]:
        """Make another backend for the store of ``backend``, with a `namespace`."""
        pytest.skip("Needs the fixture make_backend.")

    @pytest.fixture
    def outage(self) -> tuple[PausableServer, StatusBackend]:
        """A running server of the test's own, and a backend that uses it, with a short time-out."""
        pytest.skip("Needs the fixture outage.")

    @pytest.fixture
    def listing(self, backend: StatusBackend) -> StatusBackend:
        """``backend``, if it can list."""
        if type(backend).find is StatusBackend.find:
            pytest.skip("This backend does not list.")
        return backend

    def ttl_of(self, backend: StatusBackend, message_id: str) -> int | None:
        """How long a record has left to live, in milliseconds; None for no record."""
        pytest.skip("Needs the hook ttl_of.")

    def set_ttl(self, backend: StatusBackend, message_id: str, ttl: int) -> None:
        """Change that behind the backend's back."""
        pytest.skip("Needs the hook set_ttl.")

    def damages(self) -> dict[str, Callable[[Any, str], None]]:
        """What can lie under a record's key without being one: how to
        plant it there, given the backend and the message id.
        """
        pytest.skip("Needs the hook damages.")

    def refusals(self, backend: StatusBackend) -> dict[str, AbstractContextManager[Any]]:
        """Contexts in which the store answers reads with an error, by the name of the error."""
        pytest.skip("Needs the hook refusals.")

    def refusing(self, backend: StatusBackend, message_id: str) -> AbstractContextManager[Any]:
        """Return a context in which the store refuses this message, and no id with another first letter."""
        pytest.skip("Needs the hook refusing.")

    def too_large(self) -> Update:
        """An update that the store has no room for, or not for all of it."""
        pytest.skip("Needs the hook too_large.")


def read_many(backend: StatusBackend, message_ids: Sequence[str]) -> list[Record | None]:
    """Read records of which none is unavailable."""
    return [answered(found) for found in backend.read_many(message_ids)]


def together(*functions: Callable[[], None]) -> None:
    """Call functions at the same time, each in a thread of its own; raise what they raise."""
    barrier = threading.Barrier(len(functions))

    def run(function: Callable[[], None]) -> None:
        barrier.wait(30)
        function()

    with ThreadPoolExecutor(len(functions)) as threads:
        for future in [threads.submit(run, function) for function in functions]:
            future.result()


def listed(backend: StatusBackend, query: Query) -> list[str]:
    """The ids of all messages that a query is for, page after page."""
    return [one.message_id for page in pages_of(backend, query) for one in page if one.record is not None]


def pages_of(backend: StatusBackend, query: Query, limit: int = 100) -> Iterator[list[Listed]]:
    """All pages of a list."""
    after = None
    while page := backend.find(query, limit=limit, after=after):
        # Otherwise a backend that lists its cursor's message again has pages without end.
        assert after is None or (page[0].position, page[0].message_id) < after, (page[0], after)
        yield page
        after = Cursor(page[-1].position, page[-1].message_id)


def write_later(backend: StatusBackend, message_id: str, update: Update) -> None:
    """Carry out an update in a millisecond of its own, as its order is told by the clock."""
    begin = now_ms()
    while now_ms() <= begin + 1:
        time.sleep(0.001)
    backend.update(message_id, update)
