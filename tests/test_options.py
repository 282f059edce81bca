"""Tests of the settings of the middleware, of actors and of messages."""

from __future__ import annotations

import json
from datetime import timedelta
from types import MappingProxyType
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.results import Results
from dramatiq.results.backends import StubBackend as StubResults

from dramatiq_status import StatusMiddleware, StatusOptionError, StatusRegistry, current_status
from dramatiq_status.checks import MAX_DURATION, MAX_TIMEOUT
from dramatiq_status.record import EXCEPTION, HEARTBEAT_INTERVAL, LIVE_TTL, TRACEBACK

from .recording import RecordingBackend, make_broker, run


@pytest.fixture
def backend() -> RecordingBackend:
    return RecordingBackend()


@pytest.fixture
def broker(backend: RecordingBackend) -> StubBroker:
    return make_broker(backend, Results(backend=StubResults()))


def test_fields_are_stored_together_with_queued(backend: RecordingBackend, broker: StubBroker) -> None:
    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    # When a message is sent with fields
    message = work.send_with_options(status={"user_id": 42, "total": 7, "status": "queued"})
    # Then one update has stored them, together with the state
    assert len(backend.updates(message.message_id)) == 1
    snapshot = StatusRegistry.read(message, broker=broker)
    assert snapshot is not None and snapshot.queued and snapshot["user_id"] == 42 and snapshot.total == 7
    # And they stay after the run
    run(broker)
    assert StatusRegistry.get(message, broker=broker)["user_id"] == 42


@pytest.mark.parametrize(
    "options",
    [
        {"status": {"user": object()}},
        {"status": {"attempts": 7}},
        {"status": {"status": "completed"}},
        {"status": [1]},
        {"status_ttl": -1},
        {"status_ttl": "1"},
        {"status_ttl": MAX_DURATION + 1},
        {"status_ttl": timedelta.max},
        {"status_throttle": -1},
        {"status_throttle": 10**30},
        {"status_includes": {"everything"}},
        {"status_includes": "message"},
    ],
)
def test_wrong_options_raise_in_send(backend: RecordingBackend, broker: StubBroker, options: dict[str, Any]) -> None:
    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    # When a message is sent with a wrong option
    # Then send() raises an error
    with pytest.raises(StatusOptionError, match=next(iter(options))):
        work.send_with_options(**options)
    # And no message is enqueued, and no status stored
    assert broker.queues[work.queue_name].qsize() == 0 and backend.calls == []


def test_wrong_options_in_an_actor_are_logged_and_ignored(backend: RecordingBackend, broker: StubBroker) -> None:
    sent: list[Any] = []

    @dramatiq.actor(broker=broker)
    def inner() -> None: ...

    # Given an actor that sends a message with a good field, a wrong field and a wrong option
    @dramatiq.actor(broker=broker)
    def outer() -> None:
        sent.append(inner.send_with_options(status={"good": 1, "attempts": 7}, status_ttl=-1))
        sent.append(inner.send_with_options(status=[1]))

    # When it runs
    outer.send()
    run(broker)
    # Then the good field is stored
    first, second = (StatusRegistry.get(message, broker=broker) for message in sent)
    assert first.completed and first["good"] == 1 and second.completed


@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({"status_includes": {"traceback", "message"}}, {"status_includes": ["message", "traceback"]}),
        ({"status_ttl": timedelta(minutes=2)}, {"status_ttl": 120_000}),
        ({"status_throttle": timedelta(seconds=3)}, {"status_throttle": 3000}),
        ({"status": MappingProxyType({"user_id": 42})}, {"status": {"user_id": 42}}),
        ({"status_includes": frozenset(), "track_status": False}, {"status_includes": [], "track_status": False}),
    ],
)
def test_options_that_are_not_json_become_json(
    backend: RecordingBackend, broker: StubBroker, inside: bool, options: dict[str, Any], sent: dict[str, Any]
) -> None:
    found: list[Any] = []

    @dramatiq.actor(broker=broker, status_includes={"message", "traceback"})
    def work() -> None: ...

    @dramatiq.actor(broker=broker)
    def outer() -> None:
        found.append(work.send_with_options(**options))

    # When a message is sent with options that are not JSON
    if inside:
        outer.send()
        run(broker)
    else:
        outer.fn()
    # Then they have become JSON values with the same meaning
    (message,) = found
    given = dramatiq.Message.decode(message.encode()).options
    assert {name: given[name] for name in sent} == sent
    # And the worker gets all of them
    run(broker)
    snapshot = StatusRegistry.read(message, broker=broker)
    if sent.get("track_status") is False:
        assert snapshot is None
    else:
        assert (
            snapshot is not None
            and snapshot.completed
            and snapshot.get("user_id") == sent.get("status", {}).get("user_id")
        )
        assert "args" in snapshot.to_dict()


def test_wrong_options_that_are_not_json_do_not_stop_an_actor(backend: RecordingBackend, broker: StubBroker) -> None:
    sent: list[Any] = []

    @dramatiq.actor(broker=broker, status_includes={"message"})
    def inner() -> None: ...

    # Given an actor that sends messages with one good option, and with options that cannot become JSON
    @dramatiq.actor(broker=broker)
    def outer() -> None:
        sent.append(inner.send_with_options(status={"good": 1, "bad": object()}))
        sent.append(inner.send_with_options(status={1, 2}))
        sent.append(inner.send_with_options(status_ttl=object(), status_includes={"message"}))

    # When it runs
    message = outer.send()
    run(broker)
    # Then all messages have run, and the good option has its effect
    assert StatusRegistry.get(message, broker=broker).completed
    one, two, three = (StatusRegistry.get(message, broker=broker) for message in sent)
    assert one.completed and one["good"] == 1 and two.completed and three.completed and three["args"] == []


@pytest.mark.parametrize(
    ("option", "value"),
    [("status_ttl", 0), ("status_ttl", 10**30), ("status_throttle", "1"), ("status_includes", {"x"})],
)
def test_wrong_options_of_an_actor_raise(broker: StubBroker, option: str, value: Any) -> None:
    # When an actor is declared with a wrong option
    # Then an error is raised
    with pytest.raises(StatusOptionError, match=option):

        @dramatiq.actor(broker=broker, **{option: value})
        def work() -> None: ...


@pytest.mark.parametrize(
    ("parameter", "value", "error"),
    [
        ("status_ttl", 0, ValueError),
        ("status_ttl", 10**30, ValueError),
        ("live_ttl", -1, ValueError),
        ("live_ttl", timedelta.max, ValueError),
        ("status_throttle", 0.5, ValueError),
        ("heartbeat_interval", True, TypeError),
        ("heartbeat_interval", MAX_DURATION + 1, ValueError),
        ("includes", {"x"}, ValueError),
        ("includes", "result", TypeError),
        ("max_pending", "x", TypeError),
        ("max_pending", 0, ValueError),
        ("max_pending", -1, ValueError),
        ("max_pending_bytes", "64 MiB", TypeError),
        ("max_pending_bytes", 0, ValueError),
        ("max_pending_bytes", 0.5, ValueError),
    ],
)
def test_wrong_parameters_of_the_middleware_raise(
    backend: RecordingBackend, parameter: str, value: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match=parameter):
        StatusMiddleware(**{"backend": backend, parameter: value})


def test_the_longest_durations_are_accepted(backend: RecordingBackend) -> None:
    # Given times to live of a hundred years, and a time-out of one day
    century = timedelta(days=36_525)
    broker = make_broker(backend, live_ttl=century, status_ttl=century)

    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    # When they are passed
    message = work.send()
    run(broker)
    # Then each has its effect, also in wait()
    assert StatusRegistry.wait(message, broker=broker, timeout=century).completed
    assert 0 <= MAX_DURATION - (backend.expires_in(message.message_id) or 0) < 60_000
    assert RecordingBackend(timeout=timedelta(days=1)).timeout == MAX_TIMEOUT
    # And longer durations raise errors
    with pytest.raises(ValueError, match=r"timeout must be at most 3,155,760,000,000 milliseconds \(36,525 days\)"):
        StatusRegistry.wait(message, broker=broker, timeout=timedelta.max)
    with pytest.raises(ValueError, match=r"timeout must be at most 86,400,000 milliseconds \(1 days\)"):
        RecordingBackend(timeout=MAX_TIMEOUT + 1)


@pytest.mark.parametrize("bad", ["", "a b\n", "ž" * 10, "x" * 49])
def test_wrong_namespaces_raise(bad: str) -> None:
    with pytest.raises(ValueError, match="namespace"):
        RecordingBackend(namespace=bad)


def test_statuses_live_for_the_times_in_the_settings(backend: RecordingBackend) -> None:
    broker = make_broker(backend, live_ttl=timedelta(hours=2), heartbeat_interval=5000, status_ttl=50_000)

    # Given actors and messages with a time to live of their own
    @dramatiq.actor(broker=broker)
    def plain() -> None: ...

    @dramatiq.actor(broker=broker, status_ttl=timedelta(minutes=5))
    def longer() -> None: ...

    messages = [plain.send(), longer.send(), longer.send_with_options(status_ttl=100_000)]
    # Then the status of a waiting message has the live_ttl of the middleware
    assert all(0 <= 7_200_000 - (backend.expires_in(m.message_id) or 0) < 60_000 for m in messages)
    assert backend.field(messages[0].message_id, LIVE_TTL) == "7200000"
    assert backend.field(messages[0].message_id, HEARTBEAT_INTERVAL) == "5000"
    # When they have finished
    run(broker)
    # Then the status stays for the time of the message, else of the actor, else of the middleware
    left = [backend.expires_in(m.message_id) or 0 for m in messages]
    assert all(0 <= ttl - found < 45_000 for ttl, found in zip((50_000, 300_000, 100_000), left))


@pytest.mark.parametrize("by", ["middleware", "actor", "message"])
def test_untracked_messages_write_nothing(backend: RecordingBackend, by: str) -> None:
    broker = make_broker(backend, track_status=by != "middleware")

    # Given a message that is not to be tracked
    @dramatiq.actor(broker=broker, track_status=False if by == "actor" else None)
    def work() -> None:
        current_status()["step"] = "nowhere"

    # When it is sent and runs
    message = work.send_with_options(track_status=False) if by == "message" else work.send()
    run(broker)
    # Then no update is sent
    assert backend.calls == [] and StatusRegistry.read(message, broker=broker) is None


def test_a_message_with_an_odd_id_runs_untracked(backend: RecordingBackend, broker: StubBroker) -> None:
    ran: list[bool] = []

    @dramatiq.actor(broker=broker)
    def work() -> None:
        ran.append(True)

    # Given a message with an odd id
    broker.enqueue(work.message().copy(message_id="a" * 300))
    # When it runs
    run(broker)
    # Then it has run, and no status is stored
    assert ran == [True] and backend.calls == []


def test_includes_are_stored(backend: RecordingBackend) -> None:
    broker = make_broker(backend, Results(backend=StubResults()), includes={"message", "traceback", "result"})

    @dramatiq.actor(broker=broker)
    def work(a: int, b: int = 0) -> dict[str, int]:
        return {"sum": a + b}

    @dramatiq.actor(broker=broker, max_retries=0)
    def fail() -> None:
        raise ValueError("boo")

    @dramatiq.actor(broker=broker, status_includes=())
    def private(a: int) -> None: ...

    # When messages have run
    messages = [work.send(1, b=2), fail.send(), private.send(1)]
    run(broker)
    # Then their statuses have the included values
    done, failed, quiet = (StatusRegistry.get(message, broker=broker).to_dict() for message in messages)
    assert (done["args"], done["kwargs"], done["result"]) == ([1], {"b": 2}, {"sum": 3})
    assert "ValueError: boo" in failed["traceback"] and "result" not in failed
    assert not {"args", "kwargs", "result"} & set(quiet)


def test_includes_that_are_too_large_are_left_out(backend: RecordingBackend) -> None:
    backend.max_field_size = 100
    broker = make_broker(backend, Results(backend=StubResults()), includes={"message", "result"})

    @dramatiq.actor(broker=broker)
    def work(text: str) -> str:
        return text

    # When arguments and a result are too large
    message = work.send("x" * 200)
    run(broker)
    # Then the message is completed without them
    found = StatusRegistry.get(message, broker=broker)
    assert found.completed and "args" not in found and "result" not in found


@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("size", [200, 1000, 65_536])
def test_an_exception_that_is_too_large_is_shortened(backend: RecordingBackend, retries: int, size: int) -> None:
    # Given a store with a small max_field_size, and an exception whose type, text and traceback are longer
    backend.max_field_size = size
    broker = make_broker(backend, includes={"traceback"})
    loud = type("Loud" * 20_000, (Exception,), {})

    @dramatiq.actor(broker=broker, max_retries=retries)
    def work() -> None:
        raise loud("\u00e4\n" * 600_000 + "the end")

    # When a job fails with it, at once or after a retry
    message = work.send()
    run(broker)
    # Then it has failed, and the store has the beginning of the text and the end of the traceback
    snapshot = StatusRegistry.read(message, broker=broker)
    assert snapshot is not None and snapshot.failed and snapshot.attempts == retries + 1
    for name in (EXCEPTION, TRACEBACK):
        stored = [update.fields[name] for update in backend.updates(message.message_id) if name in update.fields]
        assert (len(stored) == retries + 1 and all(size - 30 < len(text) <= size for text in stored)) or (
            name == EXCEPTION and max(map(len, stored)) <= size
        )
        assert json.loads(stored[-1])
    exception = snapshot.exception
    assert exception is not None and exception["type"].startswith("Loud") and exception["message"].endswith("...")
    trace = snapshot.to_dict()["traceback"]
    assert trace.startswith("...") and trace.endswith("the end\n")


class Broken(dict[str, Any]):
    def items(self) -> Any:
        raise RuntimeError("no items")


def test_a_result_that_cannot_be_encoded_is_left_out(backend: RecordingBackend) -> None:
    broker = make_broker(backend, includes={"result"})

    # Given an actor whose result raises an error when it is encoded
    @dramatiq.actor(broker=broker)
    def work() -> Any:
        return Broken(a=1)

    # When it has run
    message = work.send()
    run(broker)
    # Then the message is completed without the result
    snapshot = StatusRegistry.read(message, broker=broker)
    assert snapshot is not None and snapshot.completed and "result" not in snapshot.to_dict()


@pytest.mark.parametrize(
    ("producer", "worker", "said"),
    [(15_000, 15_000, None), (100, 15_000, "15000"), (15_000, 200, "200"), (100, 200, "200"), (200, 200, "200")],
)
def test_the_worker_sets_the_heartbeat_interval(
    backend: RecordingBackend, producer: int, worker: int, said: str | None
) -> None:
    # Given a message that was sent by a process with one interval
    sender = make_broker(backend, heartbeat_interval=producer)
    broker = make_broker(backend, heartbeat_interval=worker)
    found: list[str | None] = []

    def look() -> None:
        current_status().flush()
        found.append(backend.field(current_status().message_id, HEARTBEAT_INTERVAL))

    message = dramatiq.actor(look, broker=sender).send()
    dramatiq.actor(look, broker=broker)
    # When it runs in a worker with another interval
    broker.enqueue(dramatiq.Message.decode(message.encode()))
    run(broker)
    # Then its record has the worker's interval, or none if both are the default
    assert found == [said]


# What is private


def details(exception: BaseException) -> dict[str, str]:
    return {"type": "Error", "message": f"code {exception.args[0]}"}


def broken(exception: BaseException) -> dict[str, str]:
    raise KeyError("secret")


@pytest.mark.parametrize(
    ("describe", "expected"),
    [
        (None, None),
        (details, {"type": "Error", "message": "code 7"}),
        (lambda exception: {"type": "Error"}, {"type": "Error", "message": ""}),
        (lambda exception: {"type": "x" * 10**6, "message": "y" * 10**6}, "long"),
        (lambda exception: None, None),
        (broken, {"type": "RuntimeError", "message": ""}),
        (lambda exception: "text", {"type": "RuntimeError", "message": ""}),
    ],
    ids=["off", "details", "type only", "long", "nothing", "broken", "wrong"],
)
@pytest.mark.parametrize("retries", [0, 1])
def test_describe_exception_decides_what_is_stored(
    backend: RecordingBackend, describe: Any, expected: Any, retries: int, caplog: pytest.LogCaptureFixture
) -> None:
    broker = make_broker(backend, describe_exception=describe, includes={"traceback"})
    seen: list[Any] = []
    # The source lines in a traceback do not contain the secret text.
    hidden = "terces"[::-1]

    # Given an actor whose exceptions contain secrets
    @dramatiq.actor(broker=broker, max_retries=retries, min_backoff=1)
    def work() -> None:
        seen.append(current_status().exception)
        try:
            raise ValueError(hidden)
        except ValueError as e:
            raise RuntimeError(7, hidden) from e

    # When it fails
    message = work.send()
    run(broker)
    # Then the store has what describe_exception returns, at each retry and at the end
    found = StatusRegistry.get(message, broker=broker).exception
    if expected == "long":
        assert found is not None and found["type"].startswith("xxx") and len(json.dumps(found)) <= 65_536
    else:
        assert found == expected and seen[1:] == [expected] * retries
    # And no text of an exception is anywhere in the store
    record = backend.read(message.message_id) or {}
    assert "secret" not in str(record) and "in work" in record[TRACEBACK]
    assert all("secret" not in str(update) for update in backend.updates())
    assert "secret" not in "".join(one.getMessage() for one in caplog.records if one.name == "dramatiq_status")


def test_a_run_that_sets_failed_removes_the_exception_of_an_earlier_run(backend: RecordingBackend) -> None:
    # Given an actor that raises an exception, and whose retry sets the state without an exception
    broker = make_broker(backend, includes={"traceback"})
    seen: list[Any] = []

    @dramatiq.actor(broker=broker, max_retries=1, min_backoff=1)
    def work() -> None:
        seen.append(current_status().exception)
        if len(seen) == 1:
            raise ValueError("first run")
        current_status().update(status="failed", reason="second run")

    # When both runs have ended
    message = work.send()
    run(broker)
    # Then the retry has seen the exception of the first run, and the final status has none
    assert seen == [None, {"type": "ValueError", "message": "first run"}]
    status = StatusRegistry.read(message, broker=broker)
    assert status is not None and status.failed and status["reason"] == "second run"
    assert status.exception is None and status.get("traceback") is None


def test_describe_exception_must_be_a_function(backend: RecordingBackend) -> None:
    with pytest.raises(TypeError, match="describe_exception"):
        StatusMiddleware(backend=backend, describe_exception="type")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("included", "actor_includes", "asked", "stored"),
    [
        ((), None, None, set()),
        ({"message", "result"}, None, None, {"args", "result"}),
        ({"message", "result"}, None, {"result"}, {"result"}),
        ({"message", "result"}, None, [], set()),
        ((), {"message", "result"}, {"message"}, {"args"}),
        ({"message", "result"}, [], None, set()),
    ],
)
def test_a_message_may_leave_out_includes(
    backend: RecordingBackend, included: Any, actor_includes: Any, asked: Any, stored: set[str]
) -> None:
    # Given the includes of the middleware and of the actor
    broker = make_broker(backend, includes=included)

    @dramatiq.actor(broker=broker, status_includes=actor_includes)
    def work(name: str) -> str:
        return name

    # When a message names some of them
    message = work.send_with_options(args=("a",), **({} if asked is None else {"status_includes": asked}))
    run(broker)
    # Then these are stored
    assert {"args", "result"} & StatusRegistry.get(message, broker=broker).to_dict().keys() == stored


@pytest.mark.parametrize(("included", "actor_includes"), [({"message"}, []), ((), None), ({"result"}, {"result"})])
def test_a_message_cannot_add_includes(backend: RecordingBackend, included: Any, actor_includes: Any) -> None:
    # Given the includes of the middleware and of the actor
    broker = make_broker(backend, includes=included)

    @dramatiq.actor(broker=broker, status_includes=actor_includes, max_retries=0)
    def work(name: str) -> None:
        raise ValueError(name)

    # When a message names further ones
    # Then send() raises an error
    asked = {"status_includes": ["message", "traceback", "result"]}
    with pytest.raises(StatusOptionError, match=r"status_includes.*'message'.*may only leave something out"):
        work.send_with_options(args=("a",), **asked)
    # And a worker ignores them, whichever program has sent the message
    message = work.message_with_options(args=("a",), **asked)
    broker.queues["default"].put(message.encode())
    run(broker)
    found = StatusRegistry.get(message, broker=broker).to_dict()
    assert found["status"] == "failed" and not {"args", "kwargs", "traceback"} & found.keys()


def test_a_message_keeps_includes_that_only_its_worker_has(backend: RecordingBackend) -> None:
    # Given a producer that includes nothing and has no actor, and a worker whose actor includes its arguments
    producer = make_broker(backend)
    producer.declare_queue("default")
    worker = make_broker(backend)

    @dramatiq.actor(broker=worker, status_includes={"message"})
    def work(name: str) -> None: ...

    # When a message names more than the producer includes
    message = work.message_with_options(args=("a",), status_includes={"message"})
    sent = producer.enqueue(message)
    assert "args" not in StatusRegistry.get(sent, backend=backend)
    # Then the message still has their names for the worker
    assert sent.options["status_includes"] == ["message"]


def test_options_inside_of_an_option_cause_one_warning(
    backend: RecordingBackend, broker: StubBroker, caplog: pytest.LogCaptureFixture
) -> None:
    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    # When options arrive inside of an option named "options"
    work.send_with_options(options={"max_retries": 3})
    work.send_with_options(options=["status"])
    assert caplog.text == ""
    for _ in range(3):
        work.send_with_options(options={"max_retries": 3, "status": {"step": "waiting"}, "status_ttl": 5})
    # Then one warning names the lost options and the right way to pass them, and this way works
    assert caplog.text.count("status, status_ttl") == 1
    message = broker.enqueue(work.message().copy(options={"status": {"step": "waiting"}}))
    assert StatusRegistry.get(message, backend=backend)["step"] == "waiting"
