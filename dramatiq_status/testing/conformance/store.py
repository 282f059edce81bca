"""Fixtures and hooks of a backend's test class, and helpers of several test modules."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar
from uuid import uuid4

import pytest

from ... import _time as time
from ...backend import Listed, Query, StatusBackend, answered, now_ms
from ...cursor import Cursor
from ...errors import BackendError
from ...record import Record
from ...update import Outcome, Update

T = TypeVar("T")


class PausableServer(Protocol):
    """Server that no other test uses.  After ``pause()`` it sends no replies, and after ``resume()`` it sends them."""

    def start(self) -> Any: ...
    def stop(self) -> Any: ...
    def pause(self) -> Any: ...
    def resume(self) -> Any: ...


class StoreTests:
    """Base class of the test classes.  A subclass has the fixture ``backend``."""

    #: Maximum number of milliseconds by which a time to live is shorter than expected: the duration of the test, and
    #: the rounding of the store.
    ttl_tolerance = 10_000

    #: Resolution of times to live in the store, in milliseconds: 2,000 for memcached, which counts seconds.
    ttl_resolution = 1

    @pytest.fixture
    def message_id(self) -> str:
        """Return the id of a message that no other test uses."""
        return uuid4().hex

    @pytest.fixture
    def make_backend(self) -> Callable[..., StatusBackend]:
        """Return a function that makes another backend for the store of ``backend``.  The function has the optional
        parameter `namespace`.
        """
        pytest.skip("Needs the fixture make_backend.")

    @pytest.fixture
    def outage(self) -> tuple[PausableServer, StatusBackend]:
        """Return a running server that no other test uses, and a backend that uses it, with a short time-out."""
        pytest.skip("Needs the fixture outage.")

    @pytest.fixture
    def listing(self, backend: StatusBackend) -> StatusBackend:
        """Return ``backend`` if it lists; otherwise skip the test."""
        if type(backend).find is StatusBackend.find:
            pytest.skip("This backend does not list.")
        return backend

    def ttl_of(self, backend: StatusBackend, message_id: str) -> int | None:
        """Return the time to live of a record in milliseconds; None without a record."""
        pytest.skip("Needs the hook ttl_of.")

    def set_ttl(self, backend: StatusBackend, message_id: str, ttl: int) -> None:
        """Set the time to live of a record in the store, without the backend."""
        pytest.skip("Needs the hook set_ttl.")

    def damages(self) -> dict[str, Callable[[Any, str], None]]:
        """Return functions by names of values.  Each function writes one value, which is no record, under the key of a
        record.  A function takes the backend and the message id.
        """
        pytest.skip("Needs the hook damages.")

    def refusals(self, backend: StatusBackend) -> dict[str, AbstractContextManager[Any]]:
        """Return contexts in which the store answers reads with an error, by texts of the errors."""
        pytest.skip("Needs the hook refusals.")

    def refusing(self, backend: StatusBackend, message_id: str) -> AbstractContextManager[Any]:
        """Return a context in which the store refuses this message.  The store must still accept messages whose ids
        begin with another character.
        """
        pytest.skip("Needs the hook refusing.")

    def too_large(self) -> Update:
        """Return an update that is too large for the store: the store has room for none of the fields, or only for
        some.
        """
        pytest.skip("Needs the hook too_large.")


def read_many(backend: StatusBackend, message_ids: Sequence[str]) -> list[Record | None]:
    """Read records, and raise the error of a record that the store cannot read."""
    return [answered(found) for found in backend.read_many(message_ids)]


def until_answered(call: Callable[[], T]) -> T:
    """Repeat a call until all servers of the store answer in time, and return the result.  On a busy machine, they may
    take longer than a short time-out.
    """
    deadline = time.monotonic() + 20
    while True:
        try:
            found = call()
            results = found if isinstance(found, list) else [found]
            if not any(one is Outcome.UNAVAILABLE or isinstance(one, BackendError) for one in results):
                return found
        except BackendError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.05)


def together(*functions: Callable[[], None]) -> None:
    """Call functions at the same time, each on a separate thread.  Raise the first error of one of them."""
    barrier = threading.Barrier(len(functions))

    def run(function: Callable[[], None]) -> None:
        barrier.wait(30)
        function()

    with ThreadPoolExecutor(len(functions)) as threads:
        for future in [threads.submit(run, function) for function in functions]:
            future.result()


def listed(backend: StatusBackend, query: Query) -> list[str]:
    """List the ids of all messages of a query, page by page."""
    return [one.message_id for page in pages_of(backend, query) for one in page if one.record is not None]


def pages_of(backend: StatusBackend, query: Query, limit: int = 100) -> Iterator[list[Listed]]:
    """List all pages of a query."""
    after = None
    while page := backend.find(query, limit=limit, after=after):
        # A backend that lists the message of the cursor again would have endless pages.
        assert after is None or (page[0].position, page[0].message_id) < after, (page[0], after)
        yield page
        after = Cursor(page[-1].position, page[-1].message_id)


def write_later(backend: StatusBackend, message_id: str, update: Update) -> None:
    """Carry out an update in a later millisecond than all earlier updates: a store may order them by its clock."""
    begin = now_ms()
    while now_ms() <= begin + 1:
        time.sleep(0.001)
    backend.update(message_id, update)
