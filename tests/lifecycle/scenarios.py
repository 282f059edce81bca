"""A table of what can happen to a message, with the states that a reader finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import dramatiq
import pytest

from .stage import Nasty, Stage

#: Ids of the messages that a scenario has sent, by role.
Sent = Mapping[str, str]


class End(NamedTuple):
    """The end of one message, as a reader finds it.

    Parameters:
      states: All its states: queued, working, completed and failed by their first letters.
      attempts: Number of runs at the end.
      exception: The type of the last failure.
      skipped: Whether the status is ``skipped``.
    """

    states: str
    attempts: int = 1
    exception: str | None = None
    skipped: bool = False


DONE: Final = End("qwc")


@dataclass(frozen=True)
class Scenario:
    """One scenario.

    Parameters:
      name: A few words, most of them after a number. Related scenarios have the same number.
      end: The expected end of the message if StatusMiddleware comes after the middleware `cause`.
      script: What the actor does, run by run.
      options: Options of the message.
      without: The expected end without Retries, if it differs.
      cause: The middleware that makes the difference between standing ahead and behind.
      ahead: The expected end if StatusMiddleware comes before the cause, if it differs.
      ahead_without: That end without Retries.
      perform: Sends the messages and returns their ids; the role "it" is the message with the ends above.
      others: The expected end of all other messages.
    """

    name: str
    end: End
    script: tuple[str, ...] = ("return",)
    options: dict[str, Any] = field(default_factory=dict)
    without: End | None = None
    cause: str | None = None
    ahead: End | None = None
    ahead_without: End | None = None
    perform: Callable[[Stage, Scenario], Sent] = lambda stage, it: {"it": stage.send(*it.script, **it.options)}
    others: End = DONE

    def expected(self, *, retries: bool, ahead: bool) -> End:
        """Return the expected end of the message."""
        behind = self.end if retries or self.without is None else self.without
        if not ahead or self.ahead is None:
            return behind
        return self.ahead if retries or self.ahead_without is None else self.ahead_without


def failed(states: str = "qwf", attempts: int = 1, exception: str | None = "Boom") -> End:
    return End(states, attempts, exception)


def skipped(states: str, attempts: int = 1) -> End:
    return End(states, attempts, None, True)


# Ways to send the messages of unusual scenarios


def _aged(stage: Stage, it: Scenario) -> Sent:
    message = stage.play.message_with_options(max_age=1)
    stage.broker.enqueue(message.copy(message_timestamp=message.message_timestamp - 1000))
    return {"it": message.message_id}


def _unknown(stage: Stage, it: Scenario) -> Sent:
    message: dramatiq.Message[Any] = stage.play.message().copy(actor_name="nobody")
    stage.broker.enqueue(message)
    return {"it": message.message_id}


def _refused(stage: Stage, it: Scenario) -> Sent:
    message = stage.play.message_with_options(args=it.script, **it.options)
    with pytest.raises(Nasty):
        stage.broker.enqueue(message)
    return {"it": message.message_id}


def _twice(stage: Stage, it: Scenario) -> Sent:
    message = stage.play.message()
    stage.broker.enqueue(message)
    stage.audit.wait(message.message_id)
    stage.broker.enqueue(message)
    stage.audit.wait(message.message_id, rounds=2)
    return {"it": message.message_id}


def _pipeline(stage: Stage, it: Scenario) -> Sent:
    first = stage.play.message_with_options(args=it.script, **it.options)
    others = [stage.other.message(), stage.other.message()]
    dramatiq.pipeline([first, *others], broker=stage.broker).run()
    found = {"it": first.message_id}
    if "f" not in it.end.states:
        found |= {f"stage {n}": message.message_id for n, message in enumerate(others, 2)}
    return found


def _group(stage: Stage, it: Scenario) -> Sent:
    members = [stage.play.message() for _ in range(3)]
    callback = stage.other.message()
    group = dramatiq.group(members, broker=stage.broker)
    group.add_completion_callback(callback)
    group.run()
    first, *others = members
    found = {f"member {n}": message.message_id for n, message in enumerate(others, 2)}
    return {"it": first.message_id, **found, "callback": callback.message_id}


def _nested(stage: Stage, it: Scenario) -> Sent:
    message = stage.play.message()
    inner = f"{message.message_id}-inner"
    script = [part.replace("INNER", inner) for part in it.script]
    stage.broker.enqueue(message.copy(args=tuple(script)))
    return {"it": message.message_id, "inner": inner}


def unruly(hook: str, deed: str, **options: Any) -> dict[str, Any]:
    return {"unruly": (hook, deed), **options}


RETRIED: Final = End("qwqwc", 2)

SCENARIOS: Final = (
    Scenario("1 success", DONE),
    Scenario("2 a result", DONE, ("result:x",)),
    Scenario("3 an exception, retried, then success", RETRIED, ("raise", "return"), without=failed()),
    Scenario("4 retries exhausted", failed("qwqwqwf", 3), ("raise",), {"max_retries": 2}, failed()),
    Scenario("5 no retries allowed", failed(), ("raise",), {"max_retries": 0}),
    Scenario("6 an exception of throws=", failed(exception="Expected"), ("throw",)),
    Scenario("6 retried, then one of throws=", failed("qwqwf", 2, "Expected"), ("raise", "throw"), without=failed()),
    Scenario("7 Retry with a delay", RETRIED, ("retry:30", "return"), without=failed(exception="Retry")),
    Scenario("7 Retry without delay", RETRIED, ("retry:0", "return"), without=failed(exception="Retry")),
    Scenario(
        "9 too old", End("qf", 0, "SkipMessage", True), cause="AgeLimit",
        ahead=End("qwf", 1, "SkipMessage", True), perform=_aged,
    ),
    Scenario(
        "10 skipped by a middleware", skipped("qc", 0), (), unruly("before_process_message", "skip"),
        cause="Unruly", ahead=skipped("qwc"),
    ),
    Scenario("10b failed by a middleware", failed(exception=None), (), unruly("before_process_message", "fail")),
    Scenario(
        "10c requeued and skipped by a middleware", DONE, (), unruly("before_process_message", "requeue and skip"),
        cause="Unruly", ahead=RETRIED,
    ),
    Scenario(
        "10c put back and skipped by a middleware", DONE, (), unruly("before_process_message", "put back and skip"),
        cause="Unruly", ahead=RETRIED,
    ),
    Scenario("10d skipped by the actor", skipped("qwc"), ("skip",)),
    Scenario(
        "11 time limit, no retries allowed", failed(exception="TimeLimitExceeded"), ("loop",),
        {"max_retries": 0, "time_limit": 300},
    ),
    Scenario(
        "11 time limit, retried", RETRIED, ("loop", "return"), {"time_limit": 300},
        without=failed(exception="TimeLimitExceeded"),
    ),
    Scenario("14 delayed", DONE, (), {"delay": 50}),
    Scenario("14 delayed by nothing", DONE, (), {"delay": 0}),
    Scenario("14 delayed, then retried", RETRIED, ("raise", "return"), {"delay": 20}, failed()),
    Scenario("15 a pipeline", DONE, (), {"pipe_ignore": True}, perform=_pipeline),
    Scenario("15 a pipeline that breaks", failed(exception="Expected"), ("throw",), perform=_pipeline),
    Scenario("16 a group with a callback", DONE, perform=_group),
    Scenario("17 an unknown actor", failed("qf", 0, "ActorNotFound"), perform=_unknown),
    Scenario("22 the actor calls another's function", DONE, ("call:x",)),
    Scenario("22 the actor sends another", DONE, ("send:INNER",), perform=_nested),
    Scenario(
        "22 the actor sends another and fails", failed(exception="Expected"), ("send:INNER,throw",), perform=_nested
    ),
    Scenario("23 the same id twice, one after the other", End("qwcqwc"), perform=_twice),
    Scenario("23c the actor sends its own id", RETRIED, ("send self", "return")),
    Scenario("24 an error before enqueue", DONE, (), unruly("before_enqueue", "error")),
    Scenario(
        "24b a middleware forbids the enqueue", End("", 0), (), unruly("before_enqueue", "nasty"),
        perform=_refused,
    ),
    Scenario("24c an error before the actor", DONE, (), unruly("before_process_message", "error")),
    Scenario("24c an error after the actor", DONE, (), unruly("after_process_message", "error")),
    Scenario("24c an error before the ack", DONE, (), unruly("before_ack", "error")),
    Scenario(
        "24d a middleware raises ahead of the actor", failed("qf", 0, "Nasty"), (),
        unruly("before_process_message", "nasty", max_retries=0),
        cause="Unruly", ahead=failed(exception="Nasty"),
    ),
    Scenario(
        "24d the same, retried", End("qwc", 2), (), unruly("before_process_message", "nasty"),
        without=failed("qf", 0, "Nasty"), cause="Unruly", ahead=RETRIED, ahead_without=failed(exception="Nasty"),
    ),
    Scenario("24f a middleware raises behind the actor", DONE, (), unruly("after_process_message", "nasty")),
    Scenario(
        "24h a middleware fails a message that succeeded", failed(exception=None), (),
        unruly("after_process_message", "fail"),
    ),
    Scenario(
        "24j a middleware forbids the retry", failed(), ("raise",), unruly("before_retry", "nasty"),
        cause="Unruly", ahead=failed("qwqf"), ahead_without=failed(),
    ),
    # Interrupts that come too late to stop the actor: Dramatiq calls after_process_message twice.
    Scenario(
        "an interrupt behind the actor, no retries allowed", failed(exception="TimeLimitExceeded"), (),
        unruly("after_process_message", "interrupt", max_retries=0),
    ),
    Scenario(
        "an interrupt behind the actor, retried", RETRIED, (), unruly("after_process_message", "interrupt"),
        without=failed(exception="TimeLimitExceeded"),
    ),
    # States that the actor sets itself.
    Scenario("the actor says failed and returns", failed(exception=None), ("say:status=failed",)),
    Scenario("the actor says completed and returns", DONE, ("say:status=completed",)),
    Scenario("the actor says failed and is retried", RETRIED, ("say:status=failed,raise", "return"), without=failed()),
    Scenario(
        "the actor says completed and is rejected", failed(exception="Expected"), ("say:status=completed,throw",)
    ),
    Scenario("the actor says failed, then working", DONE, ("say:status=failed,say:status=working",)),
)  # fmt: skip
