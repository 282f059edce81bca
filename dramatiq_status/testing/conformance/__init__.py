"""Tests of the promises of :class:`.StatusBackend`, for every backend.

They need pytest.  The test class of a backend inherits from :class:`BackendConformance` and has the fixture
``backend``:

>>> class TestMyBackend(BackendConformance):
...     @pytest.fixture
...     def backend(self):
...         return MyBackend()

Some tests need another fixture or hook.  They are skipped with the name of this fixture or hook until the test class
has it:

- the fixture ``make_backend`` is a function that makes another backend of the store, with an optional `namespace`,
- the fixture ``outage`` has a server that the test pauses and stops,
- the hooks ``ttl_of`` and ``set_ttl`` read and set a time to live,
- the hook ``damages`` writes values that are no records under the key of a record,
- the hook ``refusals`` makes the store answer reads with errors,
- the hook ``refusing`` makes the store refuse one message,
- the hook ``too_large`` makes an update that is too large for the store.

A backend without :meth:`.StatusBackend.find` does not list, and has to give the reason in ``why_no_list``.  The tests
of subscriptions are skipped if :meth:`.StatusBackend.subscribe` returns None.

If ``conftest.py`` registers the package before its import, a failed assert shows the values that it has compared:

>>> pytest.register_assert_rewrite("dramatiq_status.testing.conformance")

``examples/third_party_backend.py`` is a backend with its test.
"""

from __future__ import annotations

from ..updates import counting, deleting, enqueue, finish, fold, heartbeat, outside, start, timeless, to_total, write
from .batches import Batches
from .cancel import Cancels
from .concurrency import Concurrency
from .lifetimes import Lifetimes
from .lists import Lists
from .names import Names
from .outages import Outages
from .outcomes import Outcomes
from .pages import Pages
from .refused import Refused
from .store import PausableServer, pages_of, read_many, together
from .subscriptions import Subscriptions

__all__ = [
    "BackendConformance",
    "PausableServer",
    "counting",
    "deleting",
    "enqueue",
    "finish",
    "fold",
    "heartbeat",
    "outside",
    "pages_of",
    "read_many",
    "start",
    "timeless",
    "to_total",
    "together",
    "write",
]


class BackendConformance(
    Outcomes, Cancels, Batches, Names, Lifetimes, Lists, Pages, Concurrency, Subscriptions, Outages, Refused
):
    """Tests of a backend.  A subclass has the fixture ``backend``."""
