"""Messages under any encoder, between processes with the middleware and without, and messages with forged parts."""

from __future__ import annotations

import ast
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from enum import Enum, IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import dramatiq
import msgspec
import orjson
import pytest
import redis
from dramatiq.brokers.stub import StubBroker
from dramatiq.encoder import Encoder, JSONEncoder, PickleEncoder

from dramatiq_status import State, Status, StatusMiddleware, StatusRegistry, current_status
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends import RedisBackend, SQLiteBackend
from dramatiq_status.options import ENQUEUE_ID_OPTION
from dramatiq_status.record import ATTEMPTS, ENQUEUED_AT, GENERATION, MAX_WHOLE_NUMBER, ORIGIN

from . import mixed_app
from .recording import PATIENCE, RecordingBackend, make_broker, run, working

ROOT_DIRECTORY = Path(__file__).parent.parent


class CustomEncoder(Encoder):
    """Encoder that takes the types of JSON and no subclass of them."""

    def encode(self, data: dict[str, Any]) -> bytes:
        return repr(self._checked({**data, "args": list(data["args"])})).encode()

    def decode(self, data: bytes) -> dict[str, Any]:
        found: dict[str, Any] = ast.literal_eval(data.decode())
        return found

    def _checked(self, value: Any) -> Any:
        assert type(value) in (dict, list, str, int, float, bool, type(None)), f"{value!r} is no plain JSON"
        for part in (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ():
            self._checked(part)
        return value


class OrjsonEncoder(Encoder):
    def encode(self, data: dict[str, Any]) -> bytes:
        return orjson.dumps(data, option=orjson.OPT_PASSTHROUGH_SUBCLASS)

    def decode(self, data: bytes) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads(data)
        return found


class MsgspecEncoder(Encoder):
    def encode(self, data: dict[str, Any]) -> bytes:
        return msgspec.msgpack.encode(data)

    def decode(self, data: bytes) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.msgpack.decode(data)
        return found


ENCODERS: dict[str, Callable[[], Encoder]] = {
    "json": JSONEncoder,
    "pickle": PickleEncoder,
    "orjson": OrjsonEncoder,
    "msgspec": MsgspecEncoder,
    "custom": CustomEncoder,
}


class Include(str, Enum):
    MESSAGE = "message"


class Duration(IntEnum):
    SECONDS = 5000
    HOUR = 3_600_000


class Label(str):
    """A subclass of str, which orjson and msgspec do not encode."""


#: Valid options of this package that are not plain JSON.
OPTIONS: dict[str, Any] = {
    "status": MappingProxyType(
        {
            Label("label"): Label("Orders"),
            "status": State.QUEUED,
            "total": 7,
            "pair": (1, 2),
            "deep": {Label("name"): [Label("value"), 0.5, None, True]},
        }
    ),
    "status_includes": {Include.MESSAGE},
    "status_ttl": Duration.HOUR,
    "status_throttle": timedelta(milliseconds=1),
}


@pytest.fixture(params=list(ENCODERS))
def encoder(request: pytest.FixtureRequest) -> Iterator[Encoder]:
    before = dramatiq.get_encoder()
    encoder = ENCODERS[request.param]()
    dramatiq.set_encoder(encoder)
    yield encoder
    dramatiq.set_encoder(before)


@pytest.fixture
def backend() -> RecordingBackend:
    return RecordingBackend()


class Sent(dramatiq.Middleware):
    """Middleware that keeps the messages as the broker sends them."""

    def __init__(self) -> None:
        self.messages: list[dramatiq.Message[Any]] = []

    def after_enqueue(self, broker: dramatiq.Broker, message: Any, delay: int | None) -> None:
        self.messages.append(message)


@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["plain", "options"])
@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
@pytest.mark.parametrize("delay", [None, 0], ids=["", "delayed"])
def test_encoders_return_messages_unchanged(
    backend: RecordingBackend, encoder: Encoder, options: dict[str, Any], inside: bool, delay: int | None
) -> None:
    # Given a worker with its own heartbeat interval, which messages carry, and a job that fails once
    sent = Sent()
    broker = make_broker(backend, sent, heartbeat_interval=Duration.SECONDS, includes={"message"})
    failed: list[str] = []

    @dramatiq.actor(broker=broker, max_retries=1)
    def work() -> None:
        if current_status().message_id not in failed:
            failed.append(current_status().message_id)
            raise ValueError("once")

    @dramatiq.actor(broker=broker)
    def outer() -> None:
        work.send_with_options(delay=delay, **options)

    # When the job is sent, by another job or by the test, and runs
    if inside:
        outer.send()
    else:
        outer.fn()
    run(broker)
    # Then each message, including the retry, is unchanged after encoding and decoding
    for message in sent.messages:
        assert dramatiq.Message.decode(message.encode()) == message
    assert all(type(message.options[ENQUEUE_ID_OPTION]) is list for message in sent.messages)
    # And the job has the right status
    (message_id,) = set(failed)
    assert {m.options[ENQUEUE_ID_OPTION][1] for m in sent.messages if m.message_id == message_id} == {1, 2}
    snapshot = StatusRegistry.read(message_id, broker=broker)
    assert snapshot is not None and snapshot.completed and snapshot.attempts == 2
    if options:
        assert dict(snapshot.fields) == {
            "label": "Orders",
            "pair": [1, 2],
            "deep": {"name": ["value", 0.5, None, True]},
        }
        assert snapshot.total == 7 and snapshot.to_dict()["args"] == []


def test_pickled_messages_are_read_without_this_package(backend: RecordingBackend) -> None:
    # Given a message that was pickled by a process with the middleware
    broker = make_broker(backend, heartbeat_interval=5000, includes={"message"})

    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    raw = PickleEncoder().encode(work.send_with_options(**OPTIONS).asdict())
    # When it is read by a process without this package
    script = """
import pickle, sys
sys.modules["dramatiq_status"] = sys.modules["tests"] = None
print(sorted(pickle.load(sys.stdin.buffer)["options"]))
"""
    read = subprocess.run([sys.executable, "-c", script], input=raw, capture_output=True, timeout=60)
    # Then the message has all its options
    assert read.returncode == 0, read.stderr.decode()
    assert {"status", ENQUEUE_ID_OPTION, "status_heartbeat"} <= set(ast.literal_eval(read.stdout.decode()))
    # And a process with this package reads them, too
    assert pickle.loads(raw)["options"][ENQUEUE_ID_OPTION][1] == 1


@pytest.mark.parametrize("given", [(7, 3), [7, 3]], ids=["tuple", "list"])
def test_the_generation_of_an_older_message_is_counted_on(
    backend: RecordingBackend, broker: StubBroker, given: Any
) -> None:
    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    # When a message with an enqueue id is enqueued again
    message = work.message().copy(options={ENQUEUE_ID_OPTION: given})
    broker.enqueue(message)
    # Then its generation is one higher
    assert message.options[ENQUEUE_ID_OPTION] == [7, 4]
    assert [backend.field(message.message_id, name) for name in (ORIGIN, GENERATION)] == ["7", "4"]


@pytest.fixture
def broker(backend: RecordingBackend) -> StubBroker:
    return make_broker(backend)


@pytest.mark.parametrize(
    "forged",
    [
        {"options": {ENQUEUE_ID_OPTION: given}}
        for given in (
            *("7", None, 7, [7], [7, 1, 1], [7, "1"], [True, True], [7, None], {"7": 1, "1": 7}, [0, 5], [-7, 1]),
            *([7, 0], [10**15, 1], [7, MAX_WHOLE_NUMBER], [7, 10**4000], [7.5, [1]]),
        )
    ]
    + [{"options": {"retries": given}} for given in (10**4000, MAX_WHOLE_NUMBER, "3", -5, [1], True, 1e300)]
    + [{"message_timestamp": given} for given in (None, "x", -1, 10**4000, [1], True)]
    + [{"options": {"status": given}} for given in (None, 5, [], {"attempts": 5}, {"": 1}, {"x": 10**4000})]
    + [{"options": {"status_includes": given}} for given in (5, [["message"]], "message", {"message": 1})],
    ids=lambda forged: str(forged)[:60],
)
def test_wrong_options_of_a_message_do_not_affect_others(
    backend: RecordingBackend, broker: StubBroker, forged: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[str] = []

    @dramatiq.actor(broker=broker)
    def work(name: str) -> None:
        ran.append(name)
        current_status()["name"] = name
        current_status().flush()

    # Given a message of another program in the queue
    fields = {**work.message("forged").asdict(), **forged}
    # When it runs, with other messages before and after it
    first = work.send("first")
    broker.queues["default"].put(json.dumps(fields).encode())
    last = work.send("last")
    with working(broker, threads=3):
        for message in (first, last):
            assert StatusRegistry.wait(message, broker=broker, timeout=20_000)["name"] == message.args[0]
        backend.wait_for(lambda: backend.read(fields["message_id"]) and len(ran) == 3)
        snapshot = StatusRegistry.wait(fields["message_id"], broker=broker, timeout=20_000)
    # Then all are completed in one run each, and no code of this package has raised an error
    assert sorted(ran) == ["first", "forged", "last"] and snapshot.completed
    assert backend.field(fields["message_id"], ATTEMPTS) == "1"
    assert "StatusMiddleware" not in caplog.text and "unexpected" not in caplog.text
    assert (backend.field(fields["message_id"], ENQUEUED_AT) is None) is ("message_timestamp" in forged)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_message_without_a_queue_does_not_affect_others(
    backend: RecordingBackend, broker: StubBroker, caplog: pytest.LogCaptureFixture
) -> None:
    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    # Given a message without the name of its queue, by which Dramatiq's own thread dies when the job is done
    broker.queues["default"].put(json.dumps({**work.message().asdict(), "queue_name": None}).encode())
    # When other messages run after it
    messages = [work.send() for _ in range(3)]
    with working(broker):
        # Then these are completed
        for message in messages:
            assert StatusRegistry.wait(message, broker=broker, timeout=20_000).completed
    assert "StatusMiddleware" not in caplog.text and "unexpected" not in caplog.text


#: Message ids that no store takes.
BAD_IDS = [5, None, ["a"], {"a": 1}, True, 0.5, "", "\ud800", "a\nb", "\x1b[31mred", "x" * 300]


@pytest.mark.parametrize("delayed", [False, True], ids=["", "delayed"])
@pytest.mark.parametrize("bad_id", BAD_IDS, ids=[repr(bad_id)[:20] for bad_id in BAD_IDS])
def test_ids_from_the_queue_are_checked(
    backend: RecordingBackend, broker: StubBroker, bad_id: Any, delayed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[str] = []

    @dramatiq.actor(broker=broker)
    def work(name: str) -> None:
        ran.append(name)
        current_status()["name"] = name
        current_status().flush()

    # Given a message from the queue with an enqueue id, as if its message id had been checked before
    given = {**work.message("bad").asdict(), "message_id": bad_id, "options": {ENQUEUE_ID_OPTION: [7, 1]}}
    if delayed:
        given["options"]["eta"] = 0
    broker.queues["default.DQ" if delayed else "default"].put(json.dumps(given).encode())
    good = work.send("good")
    # When it runs beside other messages
    run(broker)
    # Then it has run without a status, and the other messages have theirs
    assert sorted(ran) == ["bad", "good"]
    assert {message_id for call in backend.calls for message_id, _ in call} == {good.message_id}
    snapshot = StatusRegistry.read(good, broker=broker)
    assert snapshot is not None and snapshot.completed and snapshot["name"] == "good"
    # And the log names it, in lines in which its id is escaped
    lines = [record.getMessage() for record in caplog.records if record.name == "dramatiq_status"]
    assert lines and all(line.startswith(f"Message {bad_id!r:.200}") and line.isprintable() for line in lines)
    assert "StatusMiddleware" not in caplog.text and "unexpected" not in caplog.text


@pytest.mark.parametrize("encoder", ["json", "pickle"], indirect=True)
@pytest.mark.parametrize("ours", ["producer", "worker"])
def test_only_the_producer_or_the_worker_has_the_middleware(
    redis_url: str, redis_broker_url: str, encoder: Encoder, ours: str
) -> None:
    # Given a producer with the middleware and a worker without this package, or the other way round
    backend = RedisBackend(url=redis_url, timeout=20_000)
    producing = (
        [StatusMiddleware(backend=backend, heartbeat_interval=5000, includes={"message"})] if ours == "producer" else []
    )
    broker = mixed_app.make_broker(redis_broker_url, *producing)
    environment = {
        **os.environ,
        "MIXED_BROKER": redis_broker_url,
        "MIXED_ENCODER": "pickle" if isinstance(encoder, PickleEncoder) else "json",
        "dramatiq_worker_timeout": "50",
        **({"MIXED_STORE": redis_url} if ours == "worker" else {}),
    }
    command = [sys.executable, "-m", "dramatiq", "tests.mixed_app", "--processes", "1", "--threads", "1"]
    # When a message is sent that fails once, and is retried
    name = str(uuid4())
    options = mixed_app.OPTIONS if ours == "producer" else {}
    message = broker.get_actor("fail_once").send_with_options(args=(name,), **options)
    with subprocess.Popen(command, cwd=ROOT_DIRECTORY, env=environment) as worker:
        try:
            with redis.Redis.from_url(redis_broker_url, socket_timeout=2 * PATIENCE) as client:
                done = client.blpop([name], timeout=int(PATIENCE))
            if ours == "worker":
                assert StatusRegistry.wait(message, backend=backend, timeout=20_000).attempts == 2
        finally:
            worker.terminate()
    # Then it has run, and its status has the updates of the side with the middleware
    assert done is not None
    snapshot = StatusRegistry.read(message, backend=backend)
    assert snapshot is not None
    if ours == "producer":
        assert snapshot.queued and snapshot["pair"] == [1, 2]
    else:
        assert snapshot.completed and snapshot.actor_name == "fail_once"
    backend.close()
    broker.close()


@pytest.mark.parametrize("odd_id", ["a\u2028b", "a\x9b31mb", "a\x85b"])
def test_no_log_line_is_forged_by_an_id(
    backend: RecordingBackend, broker: StubBroker, odd_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    handles: list[Status] = []

    @dramatiq.actor(broker=broker)
    def work() -> None:
        handles.append(current_status())

    # Given a message whose id a store takes, but a terminal would show as other text
    broker.enqueue(work.message().copy(message_id=odd_id))
    run(broker)
    # When the log names it
    handles[0]["late"] = 1
    # Then the line has printable characters only
    (line,) = (record.getMessage() for record in caplog.records if record.name == "dramatiq_status")
    assert f"message {odd_id!r} has ended" in line and line.isprintable()
    assert StatusRegistry.get(odd_id, broker=broker).completed


@pytest.mark.parametrize(
    "delay",
    [10**14, 10**20, 10**400, -(10**20), 0.5],
    ids=["15 digits", "21 digits", "401 digits", "negative", "fraction"],
)
@pytest.mark.parametrize("store", ["redis", "sqlite"])
def test_delays_that_are_too_large_for_a_record(
    store: str, delay: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    backend: StatusBackend
    if store == "redis":
        backend = RedisBackend(url=request.getfixturevalue("redis_url"), timeout=20_000)
    else:
        backend = SQLiteBackend(tmp_path / "status.db", timeout=20_000)
    broker = make_broker(backend)

    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    # When a message has a delay that Dramatiq takes, and that is too large for a store
    message = work.send_with_options(delay=delay)
    # Then the message still has a status
    snapshot = StatusRegistry.read(message, broker=broker)
    assert snapshot is not None and snapshot.queued and snapshot.to_dict()["actor_name"] == "work"
    backend.close()
