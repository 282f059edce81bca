"""Fields of a record that are made of a message, an exception or a result."""

from __future__ import annotations

import functools
import json
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Final

from ._log import logger
from .backend import StatusBackend
from .errors import StatusOptionError
from .fields import MAX_FIELDS, encode_fields, encode_value, plain_value
from .lifecycle import name_of, queue_of, whole_number
from .options import ENQUEUED_AT_OPTION, Settings
from .record import (
    ACTOR_NAME,
    ARGS,
    DEFAULT_HEARTBEAT_INTERVAL,
    DEFAULT_LIVE_TTL,
    DEFAULT_STATUS_TTL,
    ENQUEUED_AT,
    EXCEPTION,
    HEARTBEAT_INTERVAL,
    KWARGS,
    LIVE_TTL,
    QUEUE_NAME,
    QUEUED,
    STATUS_TTL,
    TRACEBACK,
    Record,
)

#: Maximum length of the stored text of an exception, in characters.
MAX_EXCEPTION_LENGTH: Final = 1024

#: Maximum number of frames of a stored traceback, as in Dramatiq's Retries.
_TRACEBACK_LIMIT: Final = 30

#: Function that returns the ``type`` and the ``message`` of an exception to store; None to store no exception.
Describe = Callable[[BaseException], "Mapping[str, str] | None"]


def type_and_text(exception: BaseException) -> dict[str, str]:
    """Describe an exception by the name of its type and by its text."""
    try:
        message = str(exception)
    except Exception:
        # The run has failed already: an error in its exception needs no log line.
        message = "<str() of the exception failed>"
    return {"type": type(exception).__name__, "message": message}


def describe_exception(
    exception: BaseException, max_size: int, describe: Describe = type_and_text
) -> dict[str, str] | None:
    """Describe an exception by its type and its message, in at most `max_size` bytes of JSON.

    Parameters:
      exception(BaseException)
      max_size(int)
      describe(Callable): If it fails, only the name of the type is stored, because a text may be secret.
    """
    try:
        found = describe(exception)
        if found is None:
            return None
        name, message = str(found["type"]), str(found.get("message", ""))
    except Exception as e:
        logger.error(
            "describe_exception failed with %s: only the type of a %s is stored.",
            type(e).__name__,
            type(exception).__name__,
        )
        name, message = type(exception).__name__, ""
    if len(message) > MAX_EXCEPTION_LENGTH:
        message = message[: MAX_EXCEPTION_LENGTH - 3] + "..."
    name = shortened(name, max_size // 2)
    return {"type": name, "message": shortened(message, max_size - _size({"type": name, "message": ""}) + 2)}


def shortened(text: str, max_size: int, *, end: bool = False) -> str:
    """Cut a text so that it takes at most `max_size` bytes as JSON.  With `end`, keep the end of the text.

    >>> shortened("abcdefghij", 10), shortened("abcdefghij", 10, end=True), shortened("\\u00e4bc", 9)
    ('abcde...', '...fghij', '...')
    """
    if len(text) * 6 + 2 <= max_size or _size(text) <= max_size:
        return text
    kept, too_many = 0, min(len(text), max(0, max_size))
    while too_many - kept > 1:
        middle = (kept + too_many) // 2
        if _size(_cut(text, middle, end)) <= max_size:
            kept = middle
        else:
            too_many = middle
    return _cut(text, kept, end)


def _cut(text: str, kept: int, end: bool) -> str:
    return "..." + text[len(text) - kept :] if end else text[:kept] + "..."


def _size(value: Any) -> int:
    return len(json.dumps(value, separators=(",", ":")))


class MessageFields:
    """Maker of the fields that the middleware writes.

    Parameters:
      backend(StatusBackend): Limits the size of a field.
      live_ttl(int): In milliseconds.
      heartbeat_interval(int): In milliseconds.
      describe(Callable): Describes an exception; None to store no exception.

    Raises:
      TypeError: When `describe` cannot be called.
    """

    def __init__(
        self, backend: StatusBackend, *, live_ttl: int, heartbeat_interval: int, describe: Describe | None
    ) -> None:
        self._backend = backend
        self._describe = _check_describe(describe)
        # Fields of every record, for settings that differ from the default.
        self._extra: Record = {}
        if live_ttl != DEFAULT_LIVE_TTL:
            self._extra[LIVE_TTL] = str(live_ttl)
        if heartbeat_interval != DEFAULT_HEARTBEAT_INTERVAL:
            self._extra[HEARTBEAT_INTERVAL] = str(heartbeat_interval)

    def of_message(self, message: Any, settings: Settings, *, strict: bool) -> Record:
        """Make the fields of a message: its own attributes, and the fields that were given when it was sent."""
        actor_name, queue_name = message.actor_name, message.queue_name
        if actor_name.__class__ is not str or queue_name.__class__ is not str:
            actor_name, queue_name = name_of(actor_name), name_of(queue_name)
        fields = {**_names(actor_name, queue_name), **self._extra}
        enqueued_at = whole_number(message.options.get(ENQUEUED_AT_OPTION, message.message_timestamp), -1)
        if enqueued_at >= 0:
            fields[ENQUEUED_AT] = str(enqueued_at)
        if settings.status_ttl != DEFAULT_STATUS_TTL:
            # Another process may write the final state, and then uses this time to live.
            fields[STATUS_TTL] = str(settings.status_ttl)
        given = message.options.get("status")
        if given is not None:
            encoded, message.options["status"] = self._given_fields(given, message, strict=strict)
            fields.update(encoded)
        if settings.include("message"):
            self.include(fields, ARGS, "args", list(message.args))
            self.include(fields, KWARGS, "kwargs", message.kwargs)
        return fields

    def _given_fields(self, given: Any, message: Any, *, strict: bool) -> tuple[Record, dict[str, Any]]:
        """Encode the fields that were given when the message was sent.  Return them, and the valid fields as plain JSON
        values, because the encoder of the broker may support no other types.
        """
        where = f"message {message.message_id!r} of actor {message.actor_name!r}"
        if not isinstance(given, Mapping):
            if strict:
                raise StatusOptionError(f"The option 'status' of {where} must be a dict, not {type(given).__name__}.")
            logger.error("The option 'status' of %s is not a dict and is ignored.", where)
            return {}, {}
        if len(given) > MAX_FIELDS:
            if strict:
                raise StatusOptionError(
                    f"The option 'status' of {where} has more than {MAX_FIELDS} fields: {len(given)}."
                )
            logger.error("The option 'status' of %s has more than %d fields and is ignored.", where, MAX_FIELDS)
            return {}, {}
        fields: Record = {}
        right: dict[str, Any] = {}
        wrong: list[Exception] = []
        for name, value in given.items():
            try:
                encoded, state = encode_fields({name: value}, max_size=self._backend.max_field_size)
                if state not in (None, QUEUED):
                    raise ValueError(f"Field 'status' of a message that is sent is 'queued', not {value!r}.")
            except (TypeError, ValueError) as e:
                if strict:
                    raise StatusOptionError(f"The option 'status' of {where} is wrong. {e}") from e
                wrong.append(e)
            else:
                fields.update(encoded)
                right[str.__str__(name)] = plain_value(value, encoded, state)
        if wrong:
            logger.error(
                "In the option 'status' of %s, %d of %d fields are ignored. %s", where, len(wrong), len(given), wrong[0]
            )
        return fields, right

    def of_exception(self, exception: BaseException, settings: Settings) -> Record:
        """Make the fields of an exception."""
        fields: Record = {}
        described = None
        if self._describe is not None:
            # None replaces the exception of an earlier run.
            described = describe_exception(exception, self._backend.max_field_size, self._describe)
            self.include(fields, EXCEPTION, "exception", described)
        if settings.include("traceback"):
            try:
                if self._describe is type_and_text:
                    text = "".join(traceback.format_exception(exception, limit=_TRACEBACK_LIMIT))
                else:
                    text = _described_traceback(exception, described)
            except Exception as e:
                # The error comes from the exception object, for example from its __str__(). The run has failed already.
                logger.warning("The traceback of a failed message cannot be formatted: %s", e)
            else:
                # If the traceback is too long, keep its end: it contains the exception and the line that raised it.
                self.include(fields, TRACEBACK, "traceback", shortened(text, self._backend.max_field_size, end=True))
        return fields

    def of_no_exception(self, settings: Settings) -> Record:
        """Make the fields that replace the exception of an earlier run by None."""
        fields: Record = {EXCEPTION: "null"}
        if settings.include("traceback"):
            fields[TRACEBACK] = "null"
        return fields

    def include(self, fields: Record, stored: str, name: str, value: Any) -> None:
        """Add a value, such as the result or the arguments, as a field. Log a warning if it cannot be encoded."""
        try:
            fields[stored] = encode_value(name, value, self._backend.max_field_size)
        except Exception as e:
            # The value may raise any error, which must not stop the update of the status.
            logger.warning("A value of a message is not stored: %s", e)


@functools.lru_cache(maxsize=1024)
def _names(actor_name: str, queue_name: str) -> Record:
    """Make the fields with the names of an actor and a queue.  The caller must not change them."""
    names = {ACTOR_NAME: actor_name, QUEUE_NAME: queue_of(queue_name)}
    return {stored: encode_value("name", name, 1 << 20) for stored, name in names.items()}


def _described_traceback(exception: BaseException, described: Mapping[str, str] | None) -> str:
    """Format a traceback that ends with the description of its exception.  It contains no other text of an exception,
    and leaves out the exceptions that were handled before.
    """
    lines = ["Traceback (most recent call last):\n", *traceback.format_tb(exception.__traceback__, _TRACEBACK_LIMIT)]
    if described is not None:
        lines.append(": ".join(filter(None, (described["type"], described["message"]))) + "\n")
    return "".join(lines)


def _check_describe(describe: Any) -> Describe | None:
    if describe is not None and not callable(describe):
        raise TypeError(
            f"describe_exception must be a function of an exception, or None, not {type(describe).__name__}."
        )
    found: Describe | None = describe
    return found
