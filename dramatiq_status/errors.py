"""The exceptions of this package. Every one of them is a :class:`StatusError`."""

from __future__ import annotations

from dramatiq.middleware.middleware import MiddlewareError, SkipMessage

__all__ = [
    "BackendError",
    "NotSupported",
    "StatusError",
    "StatusMissing",
    "StatusOptionError",
    "StatusSetupError",
    "StatusTimeout",
    "StoreRefused",
]


class StatusError(Exception):
    """Base class for all errors of this package."""


class StatusMissing(StatusError, LookupError):
    """Raised by a write from outside of a worker, a request to cancel, a wait or a watch when the store has no record
    of the message: it was never enqueued with status tracking, or its record has expired or was deleted.
    """

    def __init__(self, message_id: str) -> None:
        super().__init__(
            f"There is no status for message {message_id!r}: it was never enqueued with status tracking, "
            f"or its status has expired or was deleted."
        )
        self.message_id = message_id


class StatusTimeout(StatusError, TimeoutError):
    """Raised when a wait or a watch takes longer than its `timeout`."""


class BackendError(StatusError):
    """Raised when a store cannot be reached, takes too long or answers with an error.  Its ``__cause__`` is the
    exception of the driver, if a driver has raised one.
    """


class StoreRefused(BackendError):
    """Raised when a store is up and refuses a message: the updates of this message fail each time with an error,
    and the updates of other messages do not.
    """


class NotSupported(StatusError):
    """Raised when a backend does not support an operation."""


class Cancelled(StatusError, SkipMessage):
    """Raised by :meth:`.Status.check_cancelled` and by :func:`.track` in an actor whose message was cancelled. An actor
    may raise it itself.

    When it leaves the actor, the message ends as cancelled.  It is a subclass of Dramatiq's SkipMessage.  So no
    middleware retries the message.  Dramatiq calls no callback and enqueues no next stage of a pipeline.  Dramatiq's
    ``Results`` stores None.
    """

    def __init__(self, reason: str | None = None) -> None:
        super().__init__("The message was cancelled." if reason is None else f"The message was cancelled: {reason}")
        self.reason = reason


class StatusOptionError(StatusError, MiddlewareError, ValueError):
    """Raised by ``send()`` or by ``@dramatiq.actor`` when a status option is wrong.  Dramatiq then enqueues no message
    and declares no actor.

    It is one of Dramatiq's middleware errors, because a broker catches all other errors of a middleware.
    """


class StatusSetupError(StatusError, MiddlewareError, RuntimeError):
    """Raised when an actor or a queue is declared, or a worker starts, on a broker that has more than one
    :class:`.StatusMiddleware`.  Also raised by a call with ``force_after`` when the broker has no middleware of
    dramatiq-abort.
    """
