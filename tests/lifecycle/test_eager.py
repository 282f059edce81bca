"""Tests with dramatiq-eager-broker, which runs a message inside of send() and calls only some of the hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dramatiq
import pytest
from dramatiq.middleware import Callbacks, Pipelines, Retries, SkipMessage
from dramatiq.results import Results
from dramatiq.results import backends as results
from dramatiq_eager_broker import EagerBroker

from dramatiq_status import Cancelled, StatusMiddleware, StatusRegistry, current_progress, current_status
from dramatiq_status.context import current_binding
from dramatiq_status.snapshot import Snapshot

from .recorder import RecordingStubBackend
from .stage import POSITIONS, Boom, Unruly, insert


class Eager:
    """An eager broker whose statuses are recorded. There is no queue, so nothing ever shows ``queued``."""

    def __init__(self, position: str, *, fail_fast: bool) -> None:
        self.backend = RecordingStubBackend(timeout=20_000)
        others = [
            Callbacks(),
            Pipelines(),
            Retries(max_retries=2, min_backoff=1, max_backoff=2),
            Results(backend=results.StubBackend(), store_results=True),
            Unruly(),
        ]
        ours = StatusMiddleware(backend=self.backend)
        self.broker = EagerBroker(insert(others, ours, position), fail_fast=fail_fast)
        #: The ids that were seen as the running message's, in order.
        self.bound: list[str] = []

    def actor(self, fn: Callable[..., Any], **options: Any) -> dramatiq.Actor[..., Any]:
        return dramatiq.actor(fn, broker=self.broker, **options)

    def note(self) -> None:
        self.bound.append(current_status().message_id)

    def end(self, message_id: str) -> tuple[str, int, str | None, bool]:
        """Return the states that a reader saw, the number of runs, the exception, and whether there was a skip."""
        last = self.read(message_id)
        return (
            self.backend.sequence(message_id),
            last.attempts,
            last.exception and last.exception["type"],
            last.skipped,
        )

    def read(self, message_id: str) -> Snapshot:
        found = StatusRegistry.read(message_id, backend=self.backend)
        assert found is not None
        return found


@pytest.fixture(params=POSITIONS)
def position(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[True, False], ids=["fail-fast", "fail-late"])
def eager(request: pytest.FixtureRequest, position: str) -> Eager:
    return Eager(position, fail_fast=bool(request.param))


@pytest.fixture
def lenient(position: str) -> Eager:
    return Eager(position, fail_fast=False)


@pytest.fixture
def strict(position: str) -> Eager:
    return Eager(position, fail_fast=True)


def test_a_message_is_completed_when_send_returns(eager: Eager) -> None:
    # Given an actor that reports progress and a field
    def work() -> str:
        current_progress().progress = 100
        current_status()["step"] = "done"
        return "result"

    # When it is sent
    message = eager.actor(work).send()

    # Then its status is complete and final, and no handle is bound any more
    assert eager.end(message.message_id) == ("wc", 1, None, False)
    last = eager.read(message.message_id)
    assert (last["step"], last.progress, last.actor_name) == ("done", 1.0, "work")
    assert last.finished_at is not None and last.enqueued_at is not None
    assert current_binding() is None


@pytest.mark.parametrize("options", [{}, {"throws": Boom}, {"throws": (Boom, Cancelled)}], ids=["", "class", "tuple"])
def test_a_message_that_is_cancelled_is_not_retried(lenient: Eager, options: dict[str, Any]) -> None:
    # Given an actor that raises Cancelled
    def work() -> None:
        lenient.note()
        raise Cancelled("nothing to do")

    # When it is sent
    message = lenient.actor(work, **options).send()
    # Then it has run once, and is shown as cancelled
    assert lenient.bound == [message.message_id]
    assert lenient.end(message.message_id) == ("wf", 1, None, False)
    assert lenient.read(message.message_id).cancelled


def test_a_message_that_is_sent_by_another_has_a_status_of_its_own(eager: Eager) -> None:
    # Given an actor that sends a message, whose actor sends a third one
    def innermost() -> None:
        eager.note()
        current_status()["who"] = "innermost"

    def inner() -> None:
        eager.note()
        sent.append(third.send().message_id)
        eager.note()
        current_status()["who"] = "inner"

    def outer() -> None:
        eager.note()
        sent.append(second.send().message_id)
        eager.note()
        current_status()["who"] = "outer"

    sent: list[str] = []
    third, second = eager.actor(innermost), eager.actor(inner)

    # When the first message is sent
    message = eager.actor(outer).send()

    # Then each run had its own handle, also after the nested message
    third_id, second_id = sent
    first_id = message.message_id
    assert eager.bound == [first_id, second_id, third_id, second_id, first_id]
    assert {eager.read(found)["who"]: eager.end(found) for found in (first_id, second_id, third_id)} == dict.fromkeys(
        ("outer", "inner", "innermost"), ("wc", 1, None, False)
    )
    assert current_binding() is None


@pytest.mark.parametrize("failing", [False, True], ids=["succeeds", "fails"])
def test_the_outer_binding_resumes_after_an_untracked_message(eager: Eager, failing: bool) -> None:
    # Given an actor that sends an untracked message, whose actor sends a tracked message that may fail
    def innermost() -> None:
        eager.note()

    def inner() -> None:
        eager.note()
        current_status()["who"] = "nobody"
        third.send()
        eager.note()
        if failing:
            raise Boom

    def outer() -> None:
        current_progress().increment(3)
        try:
            second.send()
        except Boom:
            assert failing
        eager.note()
        current_status()["who"] = "outer"
        current_progress().increment(4)

    third, second = eager.actor(innermost), eager.actor(inner, track_status=False, max_retries=1)

    # When it is sent
    message = eager.actor(outer).send()

    # Then its actor has its own handle after the nested messages, and the untracked one has written nowhere
    outer_id = message.message_id
    runs = 2 if failing and not eager.broker.fail_fast else 1
    nested = [("" if found in ("", outer_id) else "tracked") for found in eager.bound[:-1]]
    assert nested == ["", "tracked", ""] * runs and eager.bound[-1] == outer_id
    assert eager.bound.count(outer_id) == 1
    last = eager.read(outer_id)
    assert (eager.end(outer_id), last["who"], last["progress"]) == (("wc", 1, None, False), "outer", 7)
    assert current_binding() is None


def test_a_retry_runs_inside_of_the_first_run(lenient: Eager) -> None:
    # Given an actor that fails once; the broker runs it again inside of a hook of Retries
    def flaky() -> None:
        lenient.note()
        current_progress().increment(10)
        if len(lenient.bound) == 1:
            raise Boom

    # When it is sent
    message = lenient.actor(flaky).send()

    # Then the second run has completed the message: it was never `failed`, and the first run's progress is gone
    assert lenient.end(message.message_id) == ("wc", 2, None, False)
    assert lenient.read(message.message_id)["progress"] == 10
    assert lenient.bound == [message.message_id] * 2
    assert current_binding() is None


def test_retries_that_run_out(lenient: Eager) -> None:
    # Given an actor that always fails, with two retries inside of each other
    def hopeless() -> None:
        lenient.note()
        raise Boom("no use")

    # When it is sent
    message = lenient.actor(hopeless).send()

    # Then the message has failed once, at the end
    assert len(lenient.bound) == 3
    assert lenient.end(message.message_id) == ("wf", 3, "Boom", False)
    assert lenient.read(message.message_id).exception == {"type": "Boom", "message": "no use"}
    assert current_binding() is None


def test_a_nested_message_is_retried(lenient: Eager) -> None:
    # Given an actor that sends a message whose actor fails once
    def flaky() -> None:
        lenient.note()
        if len(lenient.bound) == 2:
            raise Boom

    def outer() -> None:
        lenient.note()
        sent.append(inner.send().message_id)
        lenient.note()

    sent: list[str] = []
    inner = lenient.actor(flaky)

    # When it is sent
    message = lenient.actor(outer).send()

    # Then the inner message was retried, and the outer one has its own handle after that
    assert lenient.bound == [message.message_id, *sent * 2, message.message_id]
    assert lenient.end(sent[0]) == ("wc", 2, None, False)
    assert lenient.end(message.message_id) == ("wc", 1, None, False)


def test_an_exception_that_reaches_the_sender(strict: Eager) -> None:
    # Given an actor that fails, and a broker that calls no hook for that
    def hopeless() -> None:
        strict.note()
        raise Boom("for the sender")

    # When it is sent
    with pytest.raises(Boom):
        strict.actor(hopeless).send()

    # Then the message has failed with its exception, although it is acknowledged and not retried
    (message_id,) = strict.bound
    assert strict.end(message_id) == ("wf", 1, "Boom", False)
    assert strict.read(message_id).exception == {"type": "Boom", "message": "for the sender"}
    assert current_binding() is None


@pytest.mark.parametrize("caught", [True, False], ids=["caught", "uncaught"])
def test_an_exception_of_a_nested_message_reaches_its_sender(strict: Eager, caught: bool) -> None:
    # Given an actor that sends a message whose actor fails
    def hopeless() -> None:
        strict.note()
        raise Boom

    def outer() -> None:
        strict.note()
        try:
            inner.send()
        except Boom:
            strict.note()
            if not caught:
                raise

    inner = strict.actor(hopeless)

    # When it is sent, and its actor catches the exception or not
    send = strict.actor(outer).send
    if caught:
        send()
    else:
        with pytest.raises(Boom):
            send()

    # Then the inner message has failed, and the outer message has completed or failed, depending on whether its actor
    # caught the exception
    first, second, again = strict.bound
    assert first == again != second
    assert strict.end(second) == ("wf", 1, "Boom", False)
    assert strict.end(first) == (("wc", 1, None, False) if caught else ("wf", 1, "Boom", False))
    assert current_binding() is None


def test_a_message_that_succeeds_while_an_exception_is_handled(eager: Eager) -> None:
    # Given an actor that sends a message while it handles an exception
    def inner() -> None:
        eager.note()

    def outer() -> None:
        try:
            raise Boom
        except Boom:
            cleanup.send()

    cleanup = eager.actor(inner)

    # When it is sent
    message = eager.actor(outer).send()

    # Then neither message has failed
    assert eager.end(eager.bound[0]) == eager.end(message.message_id) == ("wc", 1, None, False)


def test_a_skip_is_an_exception_for_this_broker(strict: Eager) -> None:
    # Given an actor that skips its message, and a broker without skips
    def skip() -> None:
        strict.note()
        raise SkipMessage

    # When it is sent
    with pytest.raises(SkipMessage):
        strict.actor(skip).send()

    # Then the message has failed, and its sender got the exception
    assert strict.end(strict.bound[0]) == ("wf", 1, "SkipMessage", False)


def test_a_skip_is_retried_by_this_broker(lenient: Eager) -> None:
    # Given an actor that skips its message, and a broker that passes the exception to Retries
    def skip() -> None:
        lenient.note()
        raise SkipMessage

    # When it is sent
    message = lenient.actor(skip).send()

    # Then the message was retried as after any exception, and has failed at the end
    assert lenient.end(message.message_id) == ("wf", 3, "SkipMessage", False)


def test_a_middleware_skips_the_message(strict: Eager) -> None:
    # Given a middleware that skips the next message
    def never() -> None:
        strict.note()

    message = strict.actor(never).message_with_options(unruly=("before_process_message", "skip"))

    # When it is sent
    with pytest.raises(SkipMessage):
        strict.broker.enqueue(message)

    # Then a StatusMiddleware ahead of that one has recorded a failure, and one behind it has recorded nothing
    order = [type(middleware) for middleware in strict.broker.middleware]
    ahead = order.index(StatusMiddleware) < order.index(Unruly)
    assert strict.backend.sequence(message.message_id) == ("wf" if ahead else "")
    assert strict.bound == []
    assert current_binding() is None


def test_the_messages_of_a_pipeline_complete(eager: Eager) -> None:
    # Given two actors
    def add(n: int) -> int:
        eager.note()
        return n + 1

    actor = eager.actor(add)
    first, second = actor.message(1), actor.message()

    # When they run as a pipeline, the second one inside of a hook of the first one
    dramatiq.pipeline([first, second], broker=eager.broker).run()

    # Then both messages are completed
    assert [eager.end(message.message_id) for message in (first, second)] == [("wc", 1, None, False)] * 2
    assert current_binding() is None
