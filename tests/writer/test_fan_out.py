"""Tests of writes to other messages: they are stored before the message of their run is acknowledged."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from dramatiq.middleware import Middleware

from dramatiq_status import (
    BackendError,
    Progress,
    StatusMiddleware,
    StatusRegistry,
    aio,
    current_progress,
    current_status,
)
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends import MemcachedBackend, RedisBackend, SQLiteBackend, StubBackend
from dramatiq_status.circuit_breaker import CircuitBreaker
from dramatiq_status.context import current_binding
from dramatiq_status.record import COMPLETED, PROGRESS, STATE
from dramatiq_status.update import EnqueueId, Kind, Outcome, Update
from dramatiq_status.writer import Confirmation, Finish, MessageBuffer, Start, Writer

from ..recording import (
    PATIENCE,
    Broken,
    Gate,
    RecordingBackend,
    eventually,
    join,
    make_broker,
    run,
    start_worker,
    working,
)
from ..servers import MemcachedServer, RedisServer, Server

CHILDREN = 400

STORES = ["redis", "cluster", "memcached", "fleet", "sqlite"]


@pytest.fixture(params=STORES)
def backend(request: pytest.FixtureRequest, tmp_path: Path, start_server: Any) -> Iterator[StatusBackend]:
    backend: StatusBackend
    if request.param == "redis":
        backend = RedisBackend(url=request.getfixturevalue("redis_url"), timeout=20_000)
    elif request.param == "cluster":
        cluster = request.getfixturevalue("redis_cluster")
        cluster.reset()
        backend = RedisBackend(cluster_nodes=cluster.addresses, timeout=20_000)
    elif request.param == "memcached":
        address = request.getfixturevalue("memcached_url").removeprefix("memcached://")
        backend = MemcachedBackend(servers=address, timeout=20_000)
    elif request.param == "fleet":
        servers = [start_server(MemcachedServer()).address for _ in range(3)]
        backend = MemcachedBackend(servers=servers, timeout=20_000)
    else:
        backend = SQLiteBackend(tmp_path / "status.db", timeout=20_000)
    yield backend
    backend.close()


def test_increments_of_a_child_are_stored_before_it_is_completed(backend: StatusBackend) -> None:
    # Given a parent, and children that increment its progress
    broker = make_broker(backend)

    @dramatiq.actor(broker=broker)
    def child() -> None:
        StatusRegistry.progress("parent", backend=backend).increment()

    backend.update("parent", Update(Kind.ENQUEUE, EnqueueId(1, 1)))
    messages = [child.send() for _ in range(CHILDREN)]
    early: list[tuple[int, int]] = []
    completed = 0
    with working(broker, threads=8):
        # When a reader reads the children, and then the parent, until all are completed
        while completed < CHILDREN:
            completed = sum(found is not None and found.completed for found in backend.snapshots(ids_of(messages)))
            counted = StatusRegistry.get("parent", backend=backend).read()
            assert counted is not None
            if counted.get("progress", 0) < completed:
                early.append((counted.get("progress", 0), completed))
    # Then the parent has the increment of each completed child
    assert early == []
    assert counted["progress"] == CHILDREN


def ids_of(messages: list[Any]) -> list[str]:
    return [message.message_id for message in messages]


def test_increments_of_killed_children_are_stored_before_the_ack(redis_url: str, redis_broker_url: str) -> None:
    # Given twenty workers whose writer's thread is slow, each of which is killed once it has acknowledged a child
    script = f"""
import os, signal, time, dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Middleware
from dramatiq_status import StatusMiddleware, StatusRegistry
from dramatiq_status.backends import RedisBackend
from dramatiq_status.writer import Confirmation, Finish, MessageBuffer, Start, Writer
rest = Writer._wait_for_work
Writer._wait_for_work = lambda self: (rest(self), time.sleep(0.05))
class Killer(Middleware):
    def after_ack(self, broker, message):
        os.kill(os.getpid(), signal.SIGKILL)
def setup():
    broker = RedisBroker(url={redis_broker_url!r}, middleware=[Killer()])
    broker.add_middleware(StatusMiddleware(backend=RedisBackend(url={redis_url!r}, timeout=20_000)))
    @dramatiq.actor(broker=broker)
    def child():
        StatusRegistry.progress("parent", broker=broker).increment()
    return broker, child
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        broker, child = setup()
        child.send()
        dramatiq.Worker(broker, worker_timeout=10, worker_threads=1).start()
        signal.pause()
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
"""
    backend = RedisBackend(url=redis_url, timeout=20_000)
    backend.update("parent", Update(Kind.ENQUEUE, EnqueueId(1, 1)))
    # When they have run
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    # Then the parent has the increments of all children
    assert StatusRegistry.get("parent", backend=backend)["progress"] == 20
    backend.close()


def a_redis(start_server: Any) -> tuple[Server, StatusBackend]:
    server = start_server(RedisServer())
    return server, RedisBackend(url=server.url, timeout=500)


def a_memcached(start_server: Any) -> tuple[Server, StatusBackend]:
    server = start_server(MemcachedServer())
    return server, MemcachedBackend(servers=server.address, timeout=500)


@pytest.mark.parametrize("throttle", [0, 3_600_000])
@pytest.mark.parametrize("store", [a_redis, a_memcached])
def test_increments_on_a_parent_that_was_not_stored_are_kept(start_server: Any, store: Any, throttle: int) -> None:
    # Given a store that is down, and a parent whose `queued` could not be stored
    server, backend = store(start_server)
    server.stop()
    broker = make_broker(backend, status_throttle=throttle)
    counted, back = threading.Semaphore(0), threading.Event()

    @dramatiq.actor(broker=broker)
    def parent() -> None:
        # It starts before its children write, and ends after them
        current_status()["children"] = 4
        for _ in range(4):
            child.send(current_status().message_id)
        assert back.wait(PATIENCE)
        current_progress().increment(1)

    @dramatiq.actor(broker=broker)
    def child(parent_id: str) -> None:
        StatusRegistry.progress(parent_id, backend=backend).increment()
        counted.release()

    with working(broker, threads=4) as worker:
        message = parent.send()
        for _ in range(4):
            assert counted.acquire(timeout=PATIENCE)
        # When the store is back
        server.start()
        back.set()
        join(broker, worker)
    # Then the parent has all increments
    snapshot = StatusRegistry.wait(message, backend=backend)
    assert (snapshot.state, snapshot["progress"], snapshot["children"]) == ("completed", 5, 4)
    backend.close()


def test_a_parent_that_another_process_stores_after_an_outage_is_counted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a store that was down, a process that has incremented a message, and another one with unsent updates of it
    monkeypatch.setattr("dramatiq_status.writer.sender.LONGEST_PAUSE", 0.01)
    backend = RecordingBackend()
    broken = Broken(backend)
    writer = Writer(backend, CircuitBreaker("RecordingBackend"))
    buffer = writer.outside("parent")
    buffer.increment(3)
    eventually(lambda: broken.failures)
    # When the store is back, and the other process sends its updates later
    broken.down = False
    backend.wait_for(lambda: backend.updates("parent", Kind.OUTSIDE))
    backend.update("parent", Update(Kind.ENQUEUE, EnqueueId(1, 1)))
    # Then the increment counts once
    backend.wait_for(lambda: backend.field("parent", PROGRESS))
    assert writer.drain(PATIENCE)
    assert backend.field("parent", PROGRESS) == "3"


def test_a_parent_that_is_stored_late_is_counted_on() -> None:
    # Given a message whose record another process is about to store
    backend = RecordingBackend()
    writer = Writer(backend, CircuitBreaker("RecordingBackend"))
    buffer = writer.outside("parent")
    buffer.increment(3)
    # When no thread waits for an increment of it
    assert buffer.flush(PATIENCE)
    buffer.increment(4)
    # And the record is stored
    backend.update("parent", Update(Kind.ENQUEUE, EnqueueId(1, 1)))
    # Then each increment counts once
    backend.wait_for(lambda: backend.field("parent", PROGRESS) == "7")
    assert writer.drain(PATIENCE) and backend.field("parent", PROGRESS) == "7"


def test_increments_on_an_unknown_parent_are_dropped_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an unknown message
    monkeypatch.setattr("dramatiq_status.writer.sender.RECOVERY", 0.2)
    backend = RecordingBackend()
    writer = Writer(backend, CircuitBreaker("RecordingBackend"))
    buffer = writer.outside("parent")
    # When it is incremented
    buffer.increment(3)
    assert buffer.flush(PATIENCE)
    # Then the writer tries that for some time
    eventually(lambda: not buffer.count_unsent())
    assert len(backend.calls) > 1
    # And the end of the process does not wait for it
    writer.outside("other").increment(1)
    assert writer.drain(PATIENCE)


def test_flush_is_false_for_writes_to_an_unknown_message_in_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a message that was unknown for so long that an increment on it was dropped
    monkeypatch.setattr("dramatiq_status.writer.sender.RECOVERY", 0.0)
    backend = RecordingBackend(timeout=20_000)
    writer = Writer(backend, CircuitBreaker("RecordingBackend"))
    buffer = writer.outside("parent")
    buffer.increment()
    eventually(lambda: not buffer.count_unsent())
    # When it is incremented as an outage begins
    backend.update("parent", Update(Kind.ENQUEUE, EnqueueId(1, 1)))

    def broken(updates: Any) -> Any:
        raise BackendError("It does not answer.")

    with monkeypatch.context() as patched:
        patched.setattr(backend, "update_many", broken)
        buffer.increment()
        # Then a flush returns that it is not stored
        assert not buffer.flush(PATIENCE)
    assert writer.drain(PATIENCE) and backend.field("parent", PROGRESS) == "1"


class Away(StubBackend):
    """A store with many servers. The server of one message does not answer."""

    away = True

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for message_id, update in updates:
            away = self.away and message_id == "job"
            outcomes += [Outcome.UNAVAILABLE] if away else super().update_many([(message_id, update)])
        return outcomes


def test_writes_to_unknown_messages_cost_no_final_state() -> None:
    # Given a job that has ended while the server of its message does not answer
    backend = Away()
    writer = Writer(backend, CircuitBreaker("Away"), max_pending=10)
    run = writer.begin_run("job", run_token=5, enqueue_id=EnqueueId(1, 1), throttle=0, base=dict)
    run.add(Start({}, 1))
    confirmation = Confirmation()
    run.finish(Finish(COMPLETED, {}, 1_000_000), confirmation)
    assert not writer.confirm(run, confirmation)
    # When many unknown messages are incremented
    buffers = [writer.outside(str(n)) for n in range(50)]
    for buffer in buffers:
        buffer.increment()
        assert buffer.flush(PATIENCE)
    assert len(writer._queue.later) <= 10
    # Then the final state is stored when the server is back
    backend.away = False
    assert writer.drain(PATIENCE)
    assert (backend.read("job") or {})[STATE] == "2"


def test_a_running_parent_that_the_store_has_lost_is_counted_on() -> None:
    # Given a parent that runs and has nothing to write, and whose record the store loses
    backend = RecordingBackend(timeout=20_000)
    broker = make_broker(backend)
    done = threading.Event()

    @dramatiq.actor(broker=broker)
    def parent() -> None:
        current_status()["step"] = 1
        assert current_status().flush() and current_status().delete()
        child.send(current_status().message_id)
        assert done.wait(PATIENCE)

    @dramatiq.actor(broker=broker)
    def child(parent_id: str) -> None:
        progress = StatusRegistry.progress(parent_id, backend=backend)
        progress.increment(2)
        assert progress.flush()
        done.set()

    # When a child increments it
    message = parent.send()
    run(broker)
    # Then the record is there again, with all that the parent has written
    snapshot = StatusRegistry.read(message, backend=backend)
    assert snapshot is not None and (snapshot["step"], snapshot["progress"]) == (1, 2)


class Acks(Middleware):
    """Middleware behind ours that calls a function before messages are acknowledged."""

    def __init__(self, look: Callable[[], Any]) -> None:
        self.seen: list[Any] = []
        self._look = look

    def before_ack(self, broker: dramatiq.Broker, message: Any) -> None:
        self.seen.append(self._look())


kept: list[Progress] = []


def in_its_thread(backend: StatusBackend) -> None:
    StatusRegistry.progress("other", backend=backend).increment()


def in_a_thread_of_its_own(backend: StatusBackend) -> None:
    progress = StatusRegistry.progress("other", backend=backend)
    thread = threading.Thread(target=progress.increment)
    thread.start()
    thread.join()


def by_a_handle_of_another_run(backend: StatusBackend) -> None:
    kept.pop().increment()


async def in_a_coroutine(backend: StatusBackend) -> None:
    await aio.StatusRegistry.progress("other", backend=backend).increment()


@pytest.fixture
def late_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Yield an event for which writers' threads wait. A thread that waits for a confirmation sets it, too."""
    event = threading.Event()
    rest, confirm_others = Writer._wait_for_work, Writer.confirm_others

    def late(self: Writer) -> None:
        rest(self)
        assert event.wait(PATIENCE)

    def confirm(self: Writer, *args: Any) -> None:
        event.set()
        confirm_others(self, *args)

    monkeypatch.setattr(Writer, "_wait_for_work", late)
    monkeypatch.setattr(Writer, "confirm_others", confirm)
    yield event
    event.set()


@pytest.mark.parametrize("write", [in_its_thread, in_a_thread_of_its_own, by_a_handle_of_another_run, in_a_coroutine])
def test_the_ack_waits_for_writes_to_other_messages(
    late_thread: threading.Event, write: Callable[[StatusBackend], Any]
) -> None:
    # Given a writer whose thread is slow, and a job that increments another message
    backend = RecordingBackend(timeout=20_000)
    broker = make_broker(backend, asyncio=True)
    backend.update("other", Update(Kind.ENQUEUE, EnqueueId(1, 1)))
    acks = Acks(lambda: backend.field("other", PROGRESS))
    broker.add_middleware(acks)

    @dramatiq.actor(broker=broker)
    def before() -> None:
        kept.append(StatusRegistry.progress("other", backend=backend))

    def job() -> Any:
        return write(backend)

    async def async_job() -> None:
        await write(backend)

    actor = dramatiq.actor(async_job if write is in_a_coroutine else job, broker=broker, actor_name="job")
    with working(broker) as worker:
        before.send()
        join(broker, worker)
        late_thread.clear()
        # When it has run
        actor.send()
        join(broker, worker)
        late_thread.set()
    # Then it was acknowledged after the store had the other message's update
    assert acks.seen == [None, "1"]
    kept.clear()


def test_the_ack_waits_for_the_enqueues_of_a_coroutine() -> None:
    # Given a store that is slow for a message that a coroutine sends
    backend = RecordingBackend(timeout=20_000)
    broker = make_broker(backend, asyncio=True)
    sent: list[str] = []
    acks = Acks(lambda: [backend.field(message_id, STATE) for message_id in sent])
    broker.add_middleware(acks)

    @dramatiq.actor(broker=broker, queue_name="later")
    def later() -> None: ...

    @dramatiq.actor(broker=broker)
    async def sender() -> None:
        message = later.message()
        sent.append(message.message_id)
        broker.enqueue(message)

    gate = Gate(backend, holds=lambda updates: any(message_id in sent for message_id, _ in updates))
    worker = start_worker(broker, threads=1, queues={"default"})
    sender.send()
    # When the store takes this message
    assert gate.reached.wait(PATIENCE)
    gate.open()
    broker.join("default", timeout=20_000)
    worker.stop()
    # Then the coroutine's message was acknowledged after the store had the other message's update
    assert acks.seen == [["0"]]


def test_the_ack_does_not_wait_for_writes_of_other_jobs() -> None:
    # Given a message whose server does not answer, and two jobs, of which one writes to it
    backend = Lame("lame")
    broker = make_broker(backend)

    @dramatiq.actor(broker=broker)
    def work(other_id: str) -> None:
        StatusRegistry.progress(other_id, backend=backend).increment()

    for name in ("lame", "sound"):
        StubBackend.update_many(backend, [(name, Update(Kind.ENQUEUE, EnqueueId(1, 1)))])
    messages = [work.send(name) for name in ("lame", "sound")]
    with working(broker) as worker:
        # When they run
        join(broker, worker)
        # Then both are completed, and the sound message has its increment
        assert [StatusRegistry.get(message, backend=backend).state for message in messages] == ["completed"] * 2
        assert backend.read("sound")[PROGRESS] == "1"  # type: ignore[index]
        backend.lame = ""
    # And the other message gets its increment after its server has answered
    assert backend.read("lame")[PROGRESS] == "1"  # type: ignore[index]


class Lame(StubBackend):
    """A store with many servers. The server of one message does not answer."""

    def __init__(self, lame: str) -> None:
        super().__init__(timeout=20_000)
        self.lame = lame

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        return [
            Outcome.UNAVAILABLE if message_id == self.lame else super(Lame, self).update_many([(message_id, update)])[0]
            for message_id, update in updates
        ]


def test_flush_waits_for_increments() -> None:
    # Given a store that is slow for increments, and a job that flushes its own
    backend = RecordingBackend(timeout=20_000)
    broker = make_broker(backend, status_throttle=3_600_000)
    seen: list[Any] = []

    @dramatiq.actor(broker=broker)
    def work() -> None:
        current_progress().increment(1)
        current_progress().flush()
        current_progress().increment(2)
        seen.extend([current_progress().flush(), backend.field(current_status().message_id, PROGRESS)])

    # When it runs
    work.send()
    run(broker)
    # Then the increment is stored after the flush, throttled or not
    assert seen == [True, "3"]
    # And a flush of a handle from outside returns at once
    assert current_progress().flush() and StatusRegistry.progress("other", backend=backend).flush()
    assert asyncio.run(aio.StatusRegistry.progress("other", backend=backend).flush())


def test_buffers_of_other_messages_are_freed() -> None:
    # Given a writer
    writer = Writer(StubBackend(), CircuitBreaker("StubBackend"))
    # When thousands of other messages are written to
    for n in range(5000):
        writer.outside(str(n))
    buffer = writer.outside("last")
    # Then the writer keeps only the buffers that are in use
    assert writer.outside("last") is buffer and len(writer._outside) < 1000


def test_a_run_drops_buffers_that_are_stored() -> None:
    # Given a job that writes to thousands of other messages, and a coroutine that sends some
    backend = StubBackend()
    broker = make_broker(backend, asyncio=True)
    kept_at_once: list[int] = []

    @dramatiq.actor(broker=broker, queue_name="later")
    def later() -> None: ...

    def delivery_of_this() -> Any:
        binding = current_binding()
        assert binding is not None
        return binding.delivery

    @dramatiq.actor(broker=broker)
    def writes() -> None:
        for n in range(5000):
            StatusRegistry.get(str(n), backend=backend)
        kept_at_once.append(len(delivery_of_this().others) // 1000)

    @dramatiq.actor(broker=broker)
    async def sends() -> None:
        for _ in range(3):
            later.send()
            assert delivery_of_this().enqueues[-1].wait(PATIENCE)
        kept_at_once.append(len(delivery_of_this().enqueues))

    # When they run
    worker = start_worker(broker, threads=1, queues={"default"})
    for actor in (writes, sends):
        actor.send()
        broker.join("default", timeout=20_000)
    worker.stop()
    # Then their acknowledgements check only buffers that may not be stored
    assert kept_at_once == [0, 1]


def test_a_run_with_many_handles_checks_each_once_before_it_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a job that sends messages and keeps their handles
    backend = StubBackend()
    broker = make_broker(backend)
    looks: list[str] = []
    unstored = MessageBuffer.unstored

    def look(self: MessageBuffer) -> Confirmation | None:
        looks.append(self.message_id)
        return unstored(self)

    monkeypatch.setattr(MessageBuffer, "unstored", look)

    @dramatiq.actor(broker=broker)
    def child() -> None: ...

    @dramatiq.actor(broker=broker)
    def parent() -> None:
        handles = []
        for _ in range(100):
            message = child.send()
            handles.append(StatusRegistry.get(message, backend=backend))
        of_children.append(sum(message_id != current_status().message_id for message_id in looks))

    of_children: list[int] = []
    parent.send()
    run(broker)
    # Then it checks each of them once before it sends
    assert of_children == [99]


def test_a_run_that_sends_waits_for_one_timeout() -> None:
    # Given a store that hangs
    backend = RecordingBackend(timeout=200)
    broker = make_broker(backend)
    waits: list[bool] = []
    gate = Gate(backend, holds=lambda updates: any(":step" in update.fields for _, update in updates))
    writer = next(m for m in broker.middleware if isinstance(m, StatusMiddleware))._writer
    wait = writer.wait

    @dramatiq.actor(broker=broker, queue_name="later")
    def later() -> None: ...

    @dramatiq.actor(broker=broker)
    def sender() -> None:
        def noted(confirmation: Confirmation, timeout: float | None = None) -> bool:
            waits.append(confirmation.stored is None)
            return wait(confirmation, timeout)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(writer, "wait", noted)
            # When a job writes and sends
            current_status()["step"] = "x"
            later.send()
        gate.open()

    worker = start_worker(broker, threads=1, queues={"default"})
    sender.send()
    broker.join("default", timeout=20_000)
    worker.stop()
    # Then it waits before the broker gets the message, and does not wait again afterwards
    assert gate.reached.is_set() and waits == []
