"""Settings of the middleware, of actors and of messages, and the options of a message that contain them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from random import Random
from typing import Any, Final, NamedTuple

import dramatiq

from ._log import logger
from ._process import at_fork
from .checks import check_duration, check_message_id
from .errors import StatusOptionError
from .lifecycle import whole_number
from .record import MAX_WHOLE_NUMBER
from .update import NO_ENQUEUE_ID, EnqueueId

#: Names that ``includes`` may contain.
INCLUDES: Final = frozenset(("message", "traceback", "result"))

#: Message options of this package: the enqueue id of the message, the heartbeat interval of the process that enqueued
#: it, and the time of its first enqueue in epoch milliseconds.  The default interval is left out.  The time is left out
#: if the message was made just before its enqueue.  The values are plain JSON (two whole numbers in a list, and whole
#: numbers), because an encoder may not support other types, and a worker may lack this package.
ENQUEUE_ID_OPTION: Final = "status_enqueue_id"
HEARTBEAT_OPTION: Final = "status_heartbeat"
ENQUEUED_AT_OPTION: Final = "status_enqueued_at"

#: Source of tokens of runs and origins of enqueue ids.  Tokens only have to differ from each other. This generator
#: takes no system call for a token.
_token = Random(os.urandom(32))
at_fork(after_in_child=lambda: _token.seed(os.urandom(32)))


SETTINGS_OPTIONS: Final = frozenset(("status_ttl", "status_throttle", "status_includes", "track_status"))

#: Options that users may give a message.
MESSAGE_OPTIONS: Final = SETTINGS_OPTIONS | {"status"}


class Settings(NamedTuple):
    """Settings of a message: its own options, its actor's, and the middleware's."""

    tracked: bool
    status_ttl: int
    throttle: int
    #: Includes that the message selects, and includes that the actor, or else the middleware, allows.
    includes: frozenset[str]
    allowed: frozenset[str]

    def include(self, name: str) -> bool:
        """Whether to store an include."""
        return name in self.includes and name in self.allowed


class Options:
    """The settings of actors and messages.

    Parameters:
      defaults(Settings): Settings of the middleware.
    """

    def __init__(self, defaults: Settings) -> None:
        self._defaults = defaults
        # Settings by actor name. They are never removed, because actors are few and live as long as the process.
        self._settings: dict[str, Settings] = {}
        # Whether the warning about nested options was logged.
        self._warned_of_options = False

    def declare(self, actor_name: str, options: Mapping[str, Any]) -> None:
        """Note the options of an actor.

        Raises:
          StatusOptionError: When one of them is wrong.
        """
        self._settings[actor_name] = self._of_actor(actor_name, options)

    def of_message(self, broker: dramatiq.Broker, message: Any, *, strict: bool) -> Settings:
        """Return the settings of a message.

        Parameters:
          broker(Broker): Has the message's actor, if this process declares it.
          message(Message)
          strict(bool): Whether to raise an error for a wrong option, instead of ignoring the option.

        Raises:
          StatusOptionError
        """
        name, options = message.actor_name, message.options
        settings = self._settings.get(name)
        if settings is None:
            # The actor was declared before this middleware was added, or is declared in other processes only.
            actor = broker.actors.get(name)
            settings = self._of_actor(name, actor.options if actor else {})
            if actor is not None:
                self._settings[name] = settings
        if not SETTINGS_OPTIONS.isdisjoint(options):
            for option in SETTINGS_OPTIONS.intersection(options):
                try:
                    settings = _refine(settings, {option: options[option]}, f"message {message.message_id!r}")
                except StatusOptionError as e:
                    if strict:
                        raise
                    logger.error("%s The option is ignored.", e)
            # A producer that has not declared the actor cannot check the includes. The worker then ignores the includes
            # that the actor does not allow.
            if strict and name in self._settings:
                _refuse_more(settings, message)
        if settings.tracked:
            # A worker checks the id as well, because the producer may not have this middleware.
            try:
                check_message_id(message.message_id)
            except (TypeError, ValueError) as e:
                logger.warning("Message %.200r of actor %r is not tracked: %s", message.message_id, name, e)
                settings = settings._replace(tracked=False)
        return settings

    def _of_actor(self, name: str, options: Mapping[str, Any]) -> Settings:
        settings = _refine(self._defaults, options, f"actor {name!r}")
        return settings._replace(allowed=settings.includes)

    def warn_of_nested(self, message: Any) -> None:
        """Log one warning about options of this middleware that are nested in an option named 'options', where Dramatiq
        ignores them.
        """
        if self._warned_of_options:
            return
        nested = message.options["options"]
        if not isinstance(nested, Mapping):
            return
        swallowed = sorted(MESSAGE_OPTIONS.intersection(nested))
        if swallowed:
            self._warned_of_options = True
            logger.warning(
                "The options %s of message %.200r of actor %.200r have arrived inside of an option named 'options' and "
                "have no effect, and neither have Dramatiq's own options in it. Some versions of OpenTelemetry's "
                "instrumentor for Dramatiq nest the options of send_with_options() in this way. Send such messages "
                "with broker.enqueue(actor.message(...).copy(options={...})). This is logged once.",
                ", ".join(swallowed),
                message.message_id,
                message.actor_name,
            )


def new_token() -> int:
    """Draw the token of a run, or the origin of an enqueue id."""
    return _token.getrandbits(31) | 1


def next_enqueue_id(enqueue_id: EnqueueId) -> EnqueueId:
    """Return the id of the next enqueue of a message."""
    return EnqueueId(enqueue_id.origin, enqueue_id.generation + 1) if enqueue_id.origin else EnqueueId(new_token(), 1)


def enqueue_id_of(options: dict[str, Any]) -> EnqueueId:
    """Return the enqueue id of a message; NO_ENQUEUE_ID where its option is missing or malformed."""
    given = options.get(ENQUEUE_ID_OPTION)
    if given is None:
        return NO_ENQUEUE_ID
    if isinstance(given, (list, tuple)) and len(given) == 2:
        origin, generation = given
        if origin.__class__ is not int or generation.__class__ is not int:
            origin, generation = whole_number(origin, 0), whole_number(generation, 0)
        # The next generation must not exceed the largest whole number either.
        if 0 < origin <= MAX_WHOLE_NUMBER and 0 < generation < MAX_WHOLE_NUMBER:
            return EnqueueId(origin, generation)
    return NO_ENQUEUE_ID


def _refuse_more(settings: Settings, message: Any) -> None:
    if not settings.includes <= settings.allowed:
        more = ", ".join(sorted(map(repr, settings.includes - settings.allowed)))
        raise StatusOptionError(
            f"The option 'status_includes' of message {message.message_id!r} contains {more}, which actor "
            f"{message.actor_name!r} does not include: a message may only leave something out. Add it to the actor's "
            "status_includes, or to includes of StatusMiddleware."
        )


def _refine(settings: Settings, options: Mapping[str, Any], where: str) -> Settings:
    """Replace settings by the options of an actor or a message."""
    try:
        if options.get("track_status") is not None:
            settings = settings._replace(tracked=bool(options["track_status"]))
        if options.get("status_ttl") is not None:
            settings = settings._replace(status_ttl=check_duration("status_ttl", options["status_ttl"], minimum=1))
        if options.get("status_throttle") is not None:
            settings = settings._replace(throttle=check_duration("status_throttle", options["status_throttle"]))
        if options.get("status_includes") is not None:
            settings = settings._replace(includes=check_includes("status_includes", options["status_includes"]))
    except (TypeError, ValueError) as e:
        raise StatusOptionError(f"An option of {where} is wrong. {e}") from e
    return settings


def write_back(options: dict[str, Any], settings: Settings) -> None:
    """Replace the options of a message by their checked values: a broker cannot send sets and timedeltas."""
    checked = {
        "track_status": settings.tracked,
        "status_ttl": settings.status_ttl,
        "status_throttle": settings.throttle,
        "status_includes": sorted(settings.includes),
    }
    for option in checked.keys() & options:
        if options[option] is not None:
            options[option] = checked[option]


def check_includes(name: str, includes: Iterable[str]) -> frozenset[str]:
    if isinstance(includes, str):
        raise TypeError(f"{name} must be a set of names, not the str {includes!r}: write {{{includes!r}}}.")
    found = frozenset(includes)
    if not found <= INCLUDES:
        unknown = ", ".join(sorted(map(repr, found - INCLUDES)))
        raise ValueError(f"{name} may name {', '.join(sorted(map(repr, INCLUDES)))}, not {unknown}.")
    # Return the package's own strings, because a user's enum may be equal to them.
    return frozenset(include for include in INCLUDES if include in found)
