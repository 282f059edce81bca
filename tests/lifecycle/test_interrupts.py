"""Time limits, aborts and shutdowns are raised asynchronously in worker threads, and so in the middle of our hooks."""

from __future__ import annotations

import gc
import itertools
import json
import linecache
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, NamedTuple

import dramatiq
import pytest
from dramatiq.middleware import Shutdown, TimeLimit, TimeLimitExceeded
from dramatiq.middleware.threading import raise_thread_exception
from dramatiq_abort import Abort

import dramatiq_status
from dramatiq_status import BackendError, StatusMiddleware, StatusRegistry, current_progress, current_status, track
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends import MemcachedBackend, RedisBackend, SQLiteBackend
from dramatiq_status.record import COMPLETED, STATE
from dramatiq_status.update import Kind, Update
from dramatiq_status.writer import Writer

from ..conftest import StartServer
from ..recording import PATIENCE, Gate, RecordingBackend, eventually, join, make_broker, working
from ..servers import MemcachedServer, RedisServer, free_port
from .recorder import RecordingStubBackend
from .scenarios import DONE, RETRIED, End, failed, skipped
from .stage import Boom, Stage, watch_acks
from .test_scenarios import end_of

PACKAGE = str(Path(dramatiq_status.__file__).parent)


class Aim:
    """An interrupt that strikes a thread before the n-th line that our package executes in a hook."""

    def __init__(self, hook: str, line: int) -> None:
        self.hook = hook
        self.hit: str | None = None
        self._left = line

    @contextmanager
    def taken(self) -> Iterator[None]:
        previous = sys.gettrace()
        sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(previous)

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any] | None:
        code = frame.f_code
        # The wrapper _through_interrupts is left out: an interrupt before its ``try`` is an interrupt before the hook.
        ours = code.co_filename.startswith(PACKAGE) and code.co_name != "wrapper"
        return self._count if ours and not is_in_store(frame) else None

    def _count(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any]:
        if event == "line" and not is_with(frame):
            self._left -= 1
            if self._left == 0:
                self.hit = f"{frame.f_code.co_qualname if sys.version_info >= (3, 11) else ''}:{frame.f_lineno}"
                raise TimeLimitExceeded
        return self._count


def is_with(frame: FrameType) -> bool:
    """Whether a line enters or leaves a ``with`` block. A tracer is called there, and an interrupt cannot strike there.

    The interpreter raises an interrupt only behind calls and jumps, and so not between the last statement of the block
    and the call of ``__exit__``. Behind the call of ``__enter__``, it raises none until ``__exit__`` is sure to follow.
    """
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with ")


def is_in_store(frame: FrameType | None) -> bool:
    """Whether a frame belongs to a call of the store. The store here is a stub. Only a tracer can strike where the lock
    of the stub would stay locked. Other tests interrupt calls of real stores.
    """
    while frame is not None and frame.f_code.co_name != "update_many":
        frame = frame.f_back
    return frame is not None


class Struck(StatusMiddleware):
    """StatusMiddleware whose hook is struck by `aim` in its next call on a worker's thread."""

    aim: Aim | None = None

    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        for hook in HOOKS:
            setattr(self, hook, self._struck(hook, getattr(self, hook)))

    def _struck(self, hook: str, inner: Callable[..., None]) -> Callable[..., None]:
        def struck(*args: Any, **named: Any) -> None:
            aim = self.aim
            if aim is None or aim.hook != hook or not self._deliveries.thread_state.worker:
                return inner(*args, **named)
            self.aim = None
            with aim.taken():
                return inner(*args, **named)

        return struck


class Case(NamedTuple):
    """A case: what the message does, and the end that it must have."""

    hook: str
    end: End
    script: tuple[str, ...] = ("return",)
    options: dict[str, Any] = {}  # noqa: RUF012 - never written to


#: Cases of interrupts after the actor, which change no end of a message.
CASES = (
    Case("after_process_message", DONE),
    Case("after_process_message", RETRIED, ("raise", "return")),
    Case("after_skip_message", skipped("qwc"), ("skip",)),
    Case("before_enqueue", RETRIED, ("raise", "return")),
    Case("after_enqueue", RETRIED, ("raise", "return")),
    Case("before_ack", DONE),
    Case("before_ack", RETRIED, ("raise", "return")),
    Case("after_ack", DONE),
    Case("before_nack", failed(), ("raise",), {"max_retries": 0}),
    Case("after_nack", failed(), ("raise",), {"max_retries": 0}),
)
HOOKS = ("before_process_message", *dict.fromkeys(case.hook for case in CASES))


@pytest.fixture(params=["first", "last"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    # No heartbeat wakes a writer that an interrupt has left asleep
    stage = Stage(
        "stub://",
        RecordingStubBackend(timeout=20_000),
        position=request.param,
        ours=Struck,
        heartbeat_interval=3_600_000,
    )
    yield stage
    stage.close()


def strikes(stage: Stage, hook: str, *script: str, every: int = 1, **options: Any) -> Iterator[tuple[Aim, str]]:
    """Strike one line of a hook after the other, each with a message of its own, until the last line was struck.

    Parameters:
      every: Distance of the lines.
    """
    assert isinstance(stage.middleware, Struck)
    with stage.working(threads=1) as worker:
        # Some code runs only for the first message of a process.
        stage.audit.wait(stage.send())
        for line in itertools.count(1, every):
            aim = stage.middleware.aim = Aim(hook, line)
            message_id = stage.send(*script, **options)
            stage.audit.wait(message_id)
            assert stage.middleware.aim is None
            if aim.hit is None:
                return
            yield aim, message_id
            # The worker's thread is alive, and no finished message has heartbeats.
            assert all(thread.is_alive() for thread in worker.workers), aim.hit
            eventually(lambda: not stage.middleware._writer.running)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.hook} {case.end.states}")
def test_an_interrupt_after_the_actor_does_not_change_the_outcome(stage: Stage, case: Case) -> None:
    # Given a message whose actor has returned or raised
    # When an interrupt strikes before any line of a hook of this package
    struck = 0
    for aim, message_id in strikes(stage, case.hook, *case.script, **case.options):
        # Then the message ends as it would have without the interrupt
        assert (aim.hit, end_of(stage, message_id)) == (aim.hit, case.end)
        struck += 1
    assert struck > 2


@pytest.mark.parametrize("retries", [True, False], ids=["retried", "not-retried"])
def test_an_interrupt_before_the_actor_is_a_failure(stage: Stage, retries: bool) -> None:
    # Given a message that is about to run
    options = {} if retries else {"max_retries": 0}
    struck = 0
    # When an interrupt strikes before any line of a hook of this package
    for aim, message_id in strikes(stage, "before_process_message", **options):
        # Then its actor does not run, and the message has failed, whether it was shown as `working` or not
        end = end_of(stage, message_id)
        if retries:
            assert (aim.hit, end.states) in [(aim.hit, "qwqwc"), (aim.hit, "qwc")]
        else:
            assert (aim.hit, end.states) in [(aim.hit, "qwf"), (aim.hit, "qf")]
            assert end.exception == "TimeLimitExceeded"
        struck += 1
    assert struck > 2


# In the middle of the store's work


@pytest.fixture(autouse=True)
def without_collectors_callbacks() -> Iterator[None]:
    """Remove the garbage collector's callbacks, such as Hypothesis's: Python ignores an interrupt in a callback."""
    callbacks = gc.callbacks[:]
    gc.callbacks.clear()
    yield
    gc.callbacks[:] = callbacks


@pytest.fixture
def untraced() -> Iterator[None]:
    """Measure no coverage during a test.  While an interrupt waits for a thread that sleeps, CPython 3.11 lets no other
    traced thread enter a function, so that no other thread can wake the sleeping one.
    """
    of_this_thread, of_new_threads = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)  # type: ignore[arg-type] # typeshed
    yield
    threading.settrace(of_new_threads)  # type: ignore[arg-type] # typeshed
    sys.settrace(of_this_thread)


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("interrupt", [TimeLimitExceeded, Shutdown, Abort], ids=lambda interrupt: interrupt.__name__)
def test_an_interrupt_while_the_final_status_is_stored(interrupt: type[BaseException]) -> None:
    # Given a message whose actor has returned, and a store that is slow for the final state
    backend = RecordingBackend(timeout=int(PATIENCE * 1000))
    gate = Gate(backend, holds=lambda updates: any(update.state is not None for _, update in updates))
    broker = make_broker(backend)
    runs: list[int] = []
    at_ack: list[object] = []

    @dramatiq.actor(broker=broker, max_retries=3)
    def work() -> None:
        runs.append(threading.get_ident())

    work.send()
    with working(broker, threads=1) as worker:
        watch_acks(worker, lambda message: at_ack.append(backend.field(message.message_id, STATE)))
        assert gate.reached.wait(PATIENCE)
        # When its thread is interrupted, and the store then answers
        raise_thread_exception(runs[0], interrupt)
        gate.open()
        join(broker, worker)
        # Then the message is acknowledged after its status was stored, and is not run again
        assert at_ack == [str(COMPLETED)]
        assert runs == [runs[0]]
        # And the thread runs the next message
        following = work.send()
        join(broker, worker)
    assert backend.field(following.message_id, STATE) == str(COMPLETED)
    assert runs == [runs[0]] * 2


def test_an_interrupt_while_writes_to_other_messages_are_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an actor that writes to another message and raises, and a store that holds this write
    backend = RecordingBackend(timeout=int(PATIENCE * 1000))
    broker = make_broker(backend)
    waits: list[int] = []
    confirm_others = Writer.confirm_others

    @dramatiq.actor(broker=broker, queue_name="later")
    def later() -> None: ...

    @dramatiq.actor(broker=broker, max_retries=1)
    def work() -> None:
        StatusRegistry.get(other, backend=backend)["note"] = 1
        if not waits:
            raise Boom

    other = later.send().message_id
    # The updates of the other message's own run are not held: the worker's only thread would wait for them.
    gate = Gate(
        backend, holds=lambda updates: (other, Kind.OUTSIDE) in [(each, update.kind) for each, update in updates]
    )

    # When an interrupt strikes as the enqueue of the retry waits for the write
    def interrupted(writer: Writer, buffers: Any, written: Any, deadline: Any) -> None:
        assert gate.reached.wait(PATIENCE)
        waits.append(sum(barrier.stored is None for barrier in written))
        if len(waits) == 1:
            raise TimeLimitExceeded
        gate.open()
        confirm_others(writer, buffers, written, deadline)

    monkeypatch.setattr(Writer, "confirm_others", interrupted)
    message = work.send()
    with working(broker, threads=1) as worker:
        join(broker, worker)
    # Then the hook, which begins again, waits for the write as well
    assert waits[1] >= waits[0] > 1
    assert backend.field(message.message_id, STATE) == str(COMPLETED)


@pytest.mark.usefixtures("untraced")
def test_an_interrupt_while_a_retry_is_stored() -> None:
    # Given a message whose actor has raised, and a store that is slow for the retry
    backend = RecordingBackend(timeout=int(PATIENCE * 1000))
    gate = Gate(backend, holds=lambda updates: any(update.enqueue_id.generation == 2 for _, update in updates))
    broker = make_broker(backend)
    runs: list[int] = []

    @dramatiq.actor(broker=broker, max_retries=1)
    def work() -> None:
        runs.append(threading.get_ident())
        if len(runs) == 1:
            raise Boom

    message = work.send()
    with working(broker, threads=1) as worker:
        assert gate.reached.wait(PATIENCE)
        # When its thread is interrupted, and the store then answers
        raise_thread_exception(runs[0], TimeLimitExceeded)
        gate.open()
        join(broker, worker)
    # Then the retry is stored, and the thread is alive
    assert runs == [runs[0]] * 2
    assert backend.field(message.message_id, STATE) == str(COMPLETED)


@pytest.mark.usefixtures("untraced")
def test_an_interrupt_while_the_actor_sends_a_message() -> None:
    # Given an actor that sends a message, and a store that is slow for it
    backend = RecordingBackend(timeout=int(PATIENCE * 1000))
    broker = make_broker(backend)
    threads: list[int] = []
    went_on: list[bool] = []

    @dramatiq.actor(broker=broker)
    def work() -> None:
        threads.append(threading.get_ident())
        child.send()
        went_on.append(True)

    @dramatiq.actor(broker=broker)
    def child() -> None: ...

    message = work.send()
    gate = Gate(backend, holds=lambda updates: any(update.kind is Kind.ENQUEUE for _, update in updates))
    with working(broker, threads=1) as worker:
        assert gate.reached.wait(PATIENCE)
        # When its time limit passes, and the store then answers
        raise_thread_exception(threads[0], TimeLimitExceeded)
        gate.open()
        join(broker, worker)
    # Then the time limit stops the actor
    snapshot = StatusRegistry.read(message, backend=backend)
    assert snapshot is not None and snapshot.failed and snapshot.exception is not None
    assert (snapshot.exception["type"], went_on) == ("TimeLimitExceeded", [])


@pytest.mark.usefixtures("untraced")
def test_an_interrupt_while_the_actor_reads_its_status(store: StatusBackend) -> None:
    # Given actors that write and read their own status, and that of another message, without end
    broker = make_broker(store)
    started: SimpleQueue[int] = SimpleQueue()
    wrong: list[object] = []

    def look() -> None:
        status = current_status()
        status["whose"] = status.message_id
        current_progress().increment()
        for handle in (status, StatusRegistry.get(other, backend=store)):
            snapshot = handle.read()
            if snapshot is None or snapshot["whose"] != handle.message_id:
                wrong.append((handle.message_id, snapshot))

    @dramatiq.actor(broker=broker)
    def work() -> None:
        look()
        started.put(threading.get_ident())
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            look()

    @dramatiq.actor(broker=broker)
    def last() -> None:
        for _ in range(10):
            look()

    other = last.message().message_id
    store.update(other, Update(Kind.ENQUEUE, fields={":whose": json.dumps(other)}))
    with working(broker, threads=1) as worker:
        # When each of them is interrupted at a random time, and followed by another one
        interrupted = []
        for number in range(30):
            interrupted.append(work.send().message_id)
            thread = started.get(timeout=PATIENCE)
            time.sleep(random.random() / 200)
            raise_thread_exception(thread, (TimeLimitExceeded, Shutdown)[number % 2])
            join(broker, worker)
        final = last.send().message_id
        join(broker, worker)
    # Then each has read its own values, and has failed with its interrupt
    assert wrong == []
    ends = [StatusRegistry.read(message_id, backend=store) for message_id in interrupted]
    assert [end and (end.state, end.exception and end.exception["type"], end["whose"]) for end in ends] == [
        ("failed", ("TimeLimitExceeded", "Shutdown")[number % 2], message_id)
        for number, message_id in enumerate(interrupted)
    ]
    # And the connections of their thread still work
    assert StatusRegistry.get(final, backend=store).completed


# While something is dropped: Python ignores what is raised there


@contextmanager
def functions_called() -> Iterator[list[str]]:
    """List the functions of Python that this thread calls."""
    called: list[str] = []

    def note(frame: FrameType, event: str, arg: Any) -> None:
        if event == "call" and frame.f_code not in (functions_called.__wrapped__.__code__, note.__code__):
            called.append(f"{frame.f_code.co_filename}: {frame.f_code.co_name}")

    gc.collect()
    # Hypothesis leaves a callback behind that times collections.
    callbacks, gc.callbacks[:] = gc.callbacks[:], []
    sys.setprofile(note)
    try:
        yield called
    finally:
        sys.setprofile(None)
        gc.callbacks[:] = callbacks
    # The call that ends the trace is in the list as well.
    called[:] = [name for name in called if "contextlib" not in name]


def used(backend: RedisBackend) -> object:
    backend.read("m")
    return backend.transport.pool._idle.pop()


def failed_in_use(backend: RedisBackend) -> object:
    backend.read("m")
    for link in backend.transport.pool._idle:
        link._socket.shutdown(socket.SHUT_RDWR)
    with pytest.raises(BackendError) as caught:
        backend.update("m", Update(Kind.OUTSIDE, increment=1))
    return caught.value


def failed_to_connect(backend: RedisBackend) -> object:
    with pytest.raises(BackendError) as caught:
        RedisBackend(host="127.0.0.1", port=free_port(), socket_keepalive=True).read("m")
    return caught.value


def subscribed(backend: RedisBackend) -> object:
    return backend.subscribe(["m"])


def made_for_one_call(backend: RedisBackend) -> object:
    made = RedisBackend(port=backend.client.connection_pool.connection_kwargs["port"], timeout=20_000)
    made.read("m")
    return made


def made_for_one_call_of_a_file(backend: RedisBackend) -> object:
    with TemporaryDirectory() as directory:
        made = SQLiteBackend(f"{directory}/statuses.db")
        made.read("m")
        return made


def test_a_memcached_backend_that_is_dropped_calls_no_function(memcached_server: MemcachedServer) -> None:
    # Given a backend that was used
    held = [MemcachedBackend(servers=memcached_server.address, timeout=20_000)]
    held[0].read("m")
    # When it is dropped
    with functions_called() as called:
        held.clear()
        gc.collect()
    # Then there is no function of Python in which an interrupt could be lost
    assert called == []


@pytest.mark.parametrize(
    "make",
    [used, failed_in_use, failed_to_connect, subscribed, made_for_one_call, made_for_one_call_of_a_file],
)
def test_connections_and_errors_that_are_dropped_call_no_function(
    redis_url: str, make: Callable[[RedisBackend], object]
) -> None:
    # Given a connection that was used, an error whose traceback has one, or a backend
    backend = RedisBackend(url=redis_url, timeout=20_000)
    held = [make(backend)]
    # When any thread drops it
    with functions_called() as called:
        held.clear()
        gc.collect()
    # Then there is no function of Python in which an interrupt could be lost
    assert called == []
    backend.close()


@pytest.mark.usefixtures("untraced")
def test_a_loop_that_an_actor_leaves_calls_no_function(redis_url: str) -> None:
    # Given an actor that watches a message, and one that tracks a loop
    backend = RedisBackend(url=redis_url, timeout=20_000)
    broker = make_broker(backend)
    lists: list[list[str]] = []

    @dramatiq.actor(broker=broker, max_retries=0)
    def watch() -> None:
        assert current_status().flush()
        seen = StatusRegistry.watch(current_status().message_id, backend=backend, timeout=int(PATIENCE * 1000))
        assert next(seen).working
        current_status()["step"] = 1
        assert next(seen)["step"] == 1
        current_status()["step"] = 2
        assert next(seen)["step"] == 2
        # When it leaves the loop before its end
        with functions_called() as called:
            del seen
        lists.append(called)

    @dramatiq.actor(broker=broker, max_retries=0)
    def loop() -> None:
        items = iter(track(range(5)))
        assert next(items) == 0
        with functions_called() as called:
            del items
        lists.append(called)

    for actor in (watch, loop):
        actor.send()
    with working(broker, threads=1) as worker:
        join(broker, worker)
    # Then only generators end, and no function runs in which an interrupt could be lost
    names = [{name.rpartition(" ")[2] for name in called} for called in lists]
    assert len(names) == 2 and set().union(*names) <= {"follow", "watch_loop", "_items", "watch"}
    backend.close()


@pytest.mark.usefixtures("untraced")
def test_time_limits_stop_actors_in_an_outage(start_server: StartServer) -> None:
    # Given a store that is down, and actors with a time limit that read a status again and again
    server = start_server(RedisServer())
    backend = RedisBackend(url=server.url)
    server.stop()
    limits = TimeLimit(interval=5)
    broker = make_broker(RecordingBackend(), limits)
    ends: list[str] = []

    @dramatiq.actor(broker=broker, max_retries=0, time_limit=20)
    def work() -> None:
        deadline = time.monotonic() + PATIENCE / 4
        try:
            while time.monotonic() < deadline:
                try:
                    StatusRegistry.read("m", backend=backend)
                except BackendError:
                    pass
            ends.append("late")
        except TimeLimitExceeded:
            ends.append("in time")

    for _ in range(150):
        work.send()
    broker.emit_after("process_boot")
    try:
        # When they run
        with working(broker, threads=1) as worker:
            join(broker, worker)
    finally:
        limits.manager.interval = 3600.0
    # Then the time limit stops each of them, on a busy machine before the first read
    assert set(ends) == {"in time"}
