"""What every store has to do, as a class of tests to mix in.

It needs pytest, which nothing else of this package does.  A backend's
test class inherits from :class:`BackendConformance` and gives it the
fixture ``backend``:

>>> class TestMyBackend(BackendConformance):
...     @pytest.fixture
...     def backend(self):
...         return MyBackend()

What needs more than that is skipped, and says what it needs, until the
class has it too: the fixtures ``make_backend`` (a second namespace) and
``outage`` (a server to pause and to stop), the hooks ``ttl_of`` and
``set_ttl`` (a look at the time to live), ``damages`` (what else may lie
under a key), ``refusals`` (how to make the store answer with
errors) and ``refusing`` (how to make it refuse one message).  A backend
without :meth:`.StatusBackend.find` does not list, and has to say why.  One
whose :meth:`.StatusBackend.subscribe` returns None is not asked what it tells.

For asserts that tell what they have compared, ``conftest.py`` says,
before the module is imported:

>>> pytest.register_assert_rewrite("dramatiq_status.testing.conformance")

``examples/third_party_backend.py`` is a whole backend with its test.
"""

from __future__ import annotations

from ..updates import counting, deleting, enqueue, finish, fold, heartbeat, outside, start, timeless, write
from .batches import Batches
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
    "together",
    "write",
]


class BackendConformance(
    Outcomes, Batches, Names, Lifetimes, Lists, Pages, Concurrency, Subscriptions, Outages, Refused
):
    """All tests of a backend.  A subclass has the fixture ``backend`` at least."""
