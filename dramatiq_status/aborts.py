"""dramatiq-abort_, which interrupts running actors.  This package works without it.

.. _dramatiq-abort: https://github.com/Flared/dramatiq-abort
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, Final

import dramatiq
from dramatiq.middleware import SkipMessage

from .checks import check_duration
from .errors import StatusSetupError

#: Package of dramatiq-abort.
_PACKAGE: Final = "dramatiq_abort"


def is_abort(exception: BaseException | None) -> bool:
    """Whether dramatiq-abort has raised the exception: ``Abort`` in a running actor, or ``SkipMessage`` before the
    actor is called.
    """
    if exception is None or _PACKAGE not in sys.modules:
        return False
    if not isinstance(exception, SkipMessage):
        return _package_of(type(exception).__module__) == _PACKAGE
    traceback = exception.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and _package_of(traceback.tb_frame.f_globals.get("__name__")) == _PACKAGE


def find_abort(force_after: int | timedelta | None, broker: dramatiq.Broker | None) -> Callable[[str], None] | None:
    """Return a function that interrupts a running message by dramatiq-abort.

    Parameters:
      force_after(int): Milliseconds after which dramatiq-abort interrupts the run; None for no interrupt.
      broker(Broker): Broker with dramatiq-abort; None for the default broker.

    Returns:
      Callable | None: Function that takes a message id and makes dramatiq-abort interrupt the run; None if
      `force_after` is None.

    Raises:
      StatusSetupError: When the broker has no middleware of dramatiq-abort.
    """
    if force_after is None:
        return None
    return partial(_find_abortable(broker).abort, abort_timeout=check_duration("force_after", force_after))


def _find_abortable(broker: dramatiq.Broker | None) -> Any:
    for middleware in (broker or dramatiq.get_broker()).middleware:
        kinds = [kind for kind in type(middleware).__mro__ if kind.__name__ == "Abortable"]
        if any(_package_of(kind.__module__) == _PACKAGE for kind in kinds):
            return middleware
    raise StatusSetupError(
        "force_after needs dramatiq-abort: install it, and call broker.add_middleware(Abortable(backend=...)) in this "
        "process and in the workers. Without force_after, cancel() only stores a request, which the actor has to check."
    )


def _package_of(module: Any) -> str:
    return str(module).partition(".")[0]
