"""The exceptions of this package. Every one of them is a :class:`StatusError`."""

from __future__ import annotations

from dramatiq.middleware.middleware import MiddlewareError


class StatusError(Exception):
    """Base class for all errors of this package."""


class StatusMissing(StatusError, LookupError):
    """Raised by a read or a write of a status when the store has no record of
    its message: the message was never enqueued, or its record has expired or was deleted.
    """

    def __init__(self, message_id: str) -> None:
        super().__init__(
            f"There is no status for message {message_id!r}: it was never enqueued with status tracking, "
            f"has expired or was deleted."
        )
        self.message_id = message_id


class StatusTimeout(StatusError, TimeoutError):
    """Raised when waiting for a message to finish takes longer than the
    given time-out.
    """


class BackendError(StatusError):
    """Raised when a store cannot be reached, takes too long or answers
    with an error.  The driver's own exception is its ``__cause__``.
    """


class StoreRefused(BackendError):
    """Raised when a store that is up does not take a message: it answers with an error that only
    this message causes, and that it repeats.
    """


class NotSupported(StatusError):
    """Raised when a backend does not support an operation."""


class StatusOptionError(StatusError, MiddlewareError, ValueError):
    """Raised by ``send()`` or by ``@dramatiq.actor`` when a status
    option is wrong.  Dramatiq has then enqueued or declared nothing.

    It is one of Dramatiq's middleware errors, because those are the
    only ones that a broker lets through to the caller.
    """


class StatusSetupError(StatusError, MiddlewareError, RuntimeError):
    """Raised when a broker has more than one
    :class:`.StatusMiddleware`: as soon as the broker declares an actor or a
    queue, or a worker starts.
    """
