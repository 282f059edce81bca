"""For the unit tests of those who use this package.

:mod:`dramatiq_status.testing.conformance` is for those who write a
backend.  It needs pytest; this module does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..context import bind, current_binding, detached_binding
from ..status import Status


@contextmanager
def bound_status() -> Iterator[Status]:
    """Bind detached handles for the length of a ``with`` block, so that a
    test can call an actor's function and look at what it wrote.  All handles
    that are taken inside agree.  Threads that the function starts have
    to be passed one, as in a worker.

    >>> with bound_status() as status:
    ...     import_rows.fn("f.csv")
    >>> status["step"]
    'indexing'
    """
    previous = current_binding()
    binding = detached_binding()
    bind(binding)
    try:
        yield binding.status
    finally:
        bind(previous)
