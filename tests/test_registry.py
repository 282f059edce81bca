"""Reading by message id."""

from __future__ import annotations

import threading
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker

from dramatiq_status import (
    BackendError,
    State,
    StatusMissing,
    StatusRegistry,
    StatusTimeout,
    current_status,
)

from .recording import Broken, RecordingBackend, make_broker, run, working


@pytest.fixture
def backend() -> RecordingBackend:
    backend = RecordingBackend()
    backend.poll_interval = (1, 5)
    return backend


@pytest.fixture
def broker(backend: RecordingBackend) -> StubBroker:
    return make_broker(backend)


def test_many_statuses_are_read_in_order(backend: RecordingBackend, broker: StubBroker) -> None:
    # Given messages, one of them unknown
    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    messages = [work.send() for _ in range(3)]
    run(broker)
    # When they are read in one call
    found = StatusRegistry.read_many([messages[2], "nobody", messages[0].message_id], broker=broker)
    # Then the snapshots are in this order
    assert [snapshot and snapshot.message_id for snapshot in found] == [
        messages[2].message_id,
        None,
        messages[0].message_id,
    ]
    assert StatusRegistry.read_many([], broker=broker) == []


def test_watch_shows_every_state(backend: RecordingBackend, broker: StubBroker) -> None:
    go_on = threading.Event()

    # Given a job that waits until the watcher has received its field
    @dramatiq.actor(broker=broker)
    def work() -> None:
        current_status()["step"] = "seen"
        assert go_on.wait(20)

    # When it is watched
    message = work.send()
    seen: list[Any] = []
    for snapshot in StatusRegistry.watch(message, broker=broker):
        seen.append(snapshot.state)
        if snapshot.queued:
            worker = working(broker)
            worker.__enter__()
        if "step" in snapshot:
            go_on.set()
    worker.__exit__(None, None, None)
    # Then the watcher receives each state, in order
    assert [state for n, state in enumerate(seen) if n == 0 or seen[n - 1] != state] == [
        State.QUEUED,
        State.WORKING,
        State.COMPLETED,
    ]


def test_wait_returns_the_final_snapshot(backend: RecordingBackend, broker: StubBroker) -> None:
    # Given a job that fails
    @dramatiq.actor(broker=broker)
    def work() -> None:
        raise ValueError("boo")

    message = work.send()
    # When wait() is called before it runs
    # Then wait() raises StatusTimeout
    with pytest.raises(StatusTimeout, match=message.message_id):
        StatusRegistry.wait(message, broker=broker, timeout=20)
    # And after the run, wait() returns the final status
    run(broker)
    snapshot = StatusRegistry.wait(message, broker=broker, timeout=None)
    assert snapshot.failed and snapshot.exception == {"type": "ValueError", "message": "boo"}


def test_missing_messages_raise(backend: RecordingBackend, broker: StubBroker) -> None:
    # Given an unknown id
    # When wait() is called for it
    # Then wait() raises StatusMissing
    with pytest.raises(StatusMissing):
        StatusRegistry.wait("nobody", broker=broker, missing_timeout=10)
    assert StatusRegistry.read("nobody", broker=broker) is None
    assert StatusRegistry.delete("nobody", broker=broker) is False


def test_watch_continues_after_an_outage(backend: RecordingBackend, broker: StubBroker, monkeypatch: Any) -> None:
    # Given a message that is watched
    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    message = work.send()
    snapshots = StatusRegistry.watch(message, broker=broker)
    assert next(snapshots).queued
    # When three reads fail, and the message ends meanwhile
    looks = iter([True] * 3)
    read = backend.read_many

    def failing(ids: Any) -> Any:
        if next(looks, False):
            raise BackendError("away")
        return read(ids)

    monkeypatch.setattr(backend, "read_many", failing)
    threading.Thread(target=run, args=(broker,)).start()
    # Then the watcher receives the end
    assert [snapshot.state for snapshot in snapshots][-1] is State.COMPLETED


def test_wait_raises_the_error_of_the_first_read(backend: RecordingBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a store that does not answer
    def failing(ids: Any) -> Any:
        raise BackendError("away")

    monkeypatch.setattr(backend, "read_many", failing)
    # When wait() is called
    # Then BackendError is raised at once
    with pytest.raises(BackendError):
        StatusRegistry.wait("m", backend=backend, timeout=None)


def test_messages_are_enqueued_and_run_while_the_store_is_down(backend: RecordingBackend, broker: StubBroker) -> None:
    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    # Given a store that is down
    broken = Broken(backend)
    # When messages are sent
    messages = [work.send() for _ in range(20)]
    # Then they are enqueued, and not each of them has called the store
    assert 1 <= broken.failures < 20
    # And the worker stores their statuses after the store answers again
    broken.down = False
    run(broker)
    assert all(snapshot and snapshot.completed for snapshot in StatusRegistry.read_many(messages, broker=broker))


def test_a_broker_without_the_middleware_raises() -> None:
    # Given a broker without the middleware
    broker = StubBroker()
    # When a status is read
    # Then the error names what to add
    with pytest.raises(RuntimeError, match="StatusMiddleware"):
        StatusRegistry.read("m", broker=broker)


@pytest.mark.parametrize(
    ("message_id", "error"),
    [("", ValueError), ("a" * 201, ValueError), ("a\nb", ValueError), ("\ud800", ValueError), (7, TypeError)],
)
def test_wrong_message_ids_raise(backend: RecordingBackend, message_id: Any, error: type[Exception]) -> None:
    # Given a value that is no message id
    # When a status is read by it
    # Then the error names what is wrong with it
    with pytest.raises(error, match="message_id"):
        StatusRegistry.get(message_id, backend=backend)


def test_a_string_is_not_a_list_of_ids(backend: RecordingBackend) -> None:
    with pytest.raises(TypeError, match="iterable of ids"):
        StatusRegistry.read_many("abc", backend=backend)
