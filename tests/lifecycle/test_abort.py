"""Messages that are aborted before and while they run: the real dramatiq-abort."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import timedelta
from typing import ClassVar
from uuid import uuid4

import dramatiq
import pytest
from dramatiq_abort import Abort, Abortable
from dramatiq_abort import backends as aborts
from dramatiq_abort.middleware import AbortMode

from dramatiq_status import Cancellation, StatusRegistry, StatusSetupError, aio
from dramatiq_status.backends import StubBackend
from dramatiq_status.testing.updates import enqueue

from ..recording import PATIENCE, eventually, make_broker
from .recorder import Recorder, RecordingRedisBackend, RecordingStubBackend
from .scenarios import End, failed
from .stage import Stage, make_middleware
from .test_scenarios import end_of


class EndingAbortable(Abortable):
    """The middleware of dramatiq-abort, whose threads end with their test.

    Otherwise, the threads would never end. After a test that has left a message, a thread looks for requests without a
    pause. A few dozen of these threads would take all processor time of later tests.
    """

    threads: ClassVar[list[threading.Thread]] = []
    is_over = False

    def _watcher(self) -> None:
        self.threads.append(threading.current_thread())
        # Pytest would warn of a thread that SystemExit ends, in the test that runs at that time.
        with suppress(SystemExit):
            super()._watcher()

    def _get_abort_requests(self) -> None:
        if self.is_over:
            raise SystemExit
        super()._get_abort_requests()


@pytest.fixture(scope="module", autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Wait for the end of all threads before the tests of another module begin; on Redis that takes up to a second."""
    yield
    for thread in EndingAbortable.threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in EndingAbortable.threads)


class AbortStage(Stage):
    """A stage whose messages can be aborted."""

    abortable: EndingAbortable
    #: Actor that plays its message, too, and has Abort in `throws`.
    thrower: dramatiq.Actor[..., object]

    def wait_until_it_runs(self, message_id: str) -> None:
        """Wait until a script has come to its step ``say:step=running``."""
        eventually(lambda: self.sequence(message_id) and self.read(message_id).get("step") == "running")

    def abort(self, message_id: str, mode: AbortMode = AbortMode.ABORT) -> None:
        self.abortable.abort(message_id, mode=mode)


def cancelled(states: str = "qwf", attempts: int = 1) -> End:
    """Return the end of a cancelled message, which has no exception."""
    return failed(states, attempts, None)


StageMaker = Callable[..., AbstractContextManager[AbortStage]]


#: Names of the store of aborts and statuses, each with the position of our middleware.  On Redis, dramatiq-abort takes
#: a second or more for each abort, and the position makes no other difference.
STAGES = [("stub", "first"), ("stub", "last"), ("redis", "last")]


@pytest.fixture(params=STAGES, ids="-".join)
def setting(request: pytest.FixtureRequest) -> tuple[str, str]:
    store, position = request.param
    return store, position


@pytest.fixture
def position(setting: tuple[str, str]) -> str:
    return setting[1]


@pytest.fixture
def make(request: pytest.FixtureRequest, setting: tuple[str, str]) -> StageMaker:
    """Return a function that makes a stage, whose worker is not started yet."""
    store, position = setting

    @contextmanager
    def make_it(*, retries: bool = True) -> Iterator[AbortStage]:
        backend: Recorder = RecordingStubBackend(timeout=20_000)
        url, events = "stub://", aborts.StubBackend()
        if store == "redis":
            server = request.getfixturevalue("redis_server")
            backend = RecordingRedisBackend(url=server.url, namespace=f"s-{uuid4()}", timeout=20_000)
            url, events = server.database(1), aborts.RedisBackend.from_url(server.database(2))
        abortable = EndingAbortable(backend=events)
        if store == "stub":
            # Milliseconds between two looks of dramatiq-abort for messages; on Redis, a look takes a second or more.
            abortable.wait_timeout = 20
        middleware = [abortable, *make_middleware(retries=retries)]
        stage = AbortStage(url, backend, position=position, name=f"q-{uuid4()}", retries=retries, middleware=middleware)
        stage.abortable = abortable
        limits = {"throws": Abort} if retries else {}
        stage.thrower = dramatiq.actor(
            stage._play, broker=stage.broker, queue_name=stage.name, actor_name="thrower", **limits
        )
        with ExitStack() as stack:
            stack.callback(setattr, abortable, "is_over", True)
            stack.callback(stage.close)
            yield stage

    return make_it


def test_a_message_that_is_aborted_before_it_starts_is_cancelled(make: StageMaker, position: str) -> None:
    with make() as stage:
        # Given a message that waits, and is aborted
        message_id = stage.send()
        stage.abort(message_id)
        # When a worker gets it
        with stage.working():
            stage.audit.wait(message_id)
        # Then it was cancelled; a StatusMiddleware ahead of dramatiq-abort has recorded its start
        assert end_of(stage, message_id) == (cancelled("qf", 0) if position == "last" else cancelled())
        assert stage.read(message_id).cancelled


def test_a_delayed_message_that_is_aborted_is_cancelled(make: StageMaker, position: str) -> None:
    with make() as stage, stage.working():
        # Given a delayed message
        message_id = stage.send(delay=300)
        # When it is aborted before it is due
        stage.abort(message_id)
        stage.audit.wait(message_id)
        # Then it was cancelled when it was due
        assert end_of(stage, message_id) == (cancelled("qf", 0) if position == "last" else cancelled())
        assert stage.read(message_id).cancelled


def test_a_running_message_that_is_aborted_is_cancelled(make: StageMaker) -> None:
    with make() as stage, stage.working():
        # Given a message that runs, and may not be retried
        message_id = stage.send("say:step=running,loop", max_retries=0)
        stage.wait_until_it_runs(message_id)
        # When it is aborted
        stage.abort(message_id)
        stage.audit.wait(message_id)
        # Then it was cancelled
        assert end_of(stage, message_id) == cancelled()
        assert stage.read(message_id).cancelled


def test_the_retry_of_an_aborted_message_is_cancelled(make: StageMaker, position: str) -> None:
    with make() as stage, stage.working():
        # Given a message that runs, and may be retried
        message_id = stage.send("say:step=running,loop", "return")
        stage.wait_until_it_runs(message_id)
        # When it is aborted
        stage.abort(message_id)
        stage.audit.wait(message_id)
        # Then its retry was aborted as well, and was cancelled
        last = position == "last"
        assert end_of(stage, message_id) == (failed("qwqf", 1, "Abort") if last else failed("qwqwf", 2, "Abort"))
        assert stage.read(message_id).cancelled


def test_a_running_message_that_is_aborted_is_cancelled_without_retries(make: StageMaker) -> None:
    with make(retries=False) as stage, stage.working():
        # Given a running message on a broker without retries
        message_id = stage.send("say:step=running,loop")
        stage.wait_until_it_runs(message_id)
        # When it is aborted
        stage.abort(message_id)
        stage.audit.wait(message_id)
        # Then it was cancelled
        assert end_of(stage, message_id) == cancelled()
        assert stage.read(message_id).cancelled


def test_a_message_is_cancelled_if_its_actor_throws_abort(make: StageMaker) -> None:
    with make() as stage, stage.working():
        # Given a running message of an actor that has Abort in `throws`
        message_id = stage.thrower.send("say:step=running,loop", "return").message_id
        stage.wait_until_it_runs(message_id)
        # When it is aborted
        stage.abort(message_id)
        stage.audit.wait(message_id)
        # Then it was cancelled at once
        assert end_of(stage, message_id) == cancelled()
        assert stage.read(message_id).cancelled


def test_a_running_message_that_dramatiq_abort_cancels_completes(make: StageMaker) -> None:
    with make() as stage, stage.working():
        # Given a message that runs
        is_over: list[bool] = []
        stage.steps["until cancelled"] = lambda rest: eventually(lambda: is_over)
        message_id = stage.send("say:step=running,until cancelled")
        stage.wait_until_it_runs(message_id)
        # When dramatiq-abort cancels it, which has an effect on waiting messages only
        stage.abort(message_id, AbortMode.CANCEL)
        is_over.append(True)
        stage.audit.wait(message_id)
        # Then it has run to its end
        assert end_of(stage, message_id) == End("qwc")


def test_the_message_after_an_aborted_one_has_its_own_status(make: StageMaker) -> None:
    with make() as stage, stage.working(threads=1):
        # Given a worker of one thread that has aborted a message
        aborted_id = stage.send("say:step=running,loop", max_retries=0)
        stage.wait_until_it_runs(aborted_id)
        stage.abort(aborted_id)
        stage.audit.wait(aborted_id)
        # When the worker gets another message
        next_id = stage.send("say:step=next")
        stage.audit.wait(next_id)
        # Then that message has its own status, and the status of the aborted one is unchanged
        assert end_of(stage, next_id) == End("qwc")
        assert stage.read(next_id)["step"] == "next"
        assert stage.read(aborted_id)["step"] == "running"


@pytest.mark.parametrize("is_async", [False, True], ids=["called", "awaited"])
def test_a_run_that_does_not_listen_is_interrupted(make: StageMaker, is_async: bool) -> None:
    with make() as stage, stage.working():
        # Given a running message that does not check, and may be retried
        message_id = stage.send("say:step=running,loop", "return")
        stage.wait_until_it_runs(message_id)
        # When it is cancelled, and interrupted a moment later
        known = {"backend": stage.backend, "broker": stage.broker}
        if is_async:
            found = asyncio.run(aio.StatusRegistry.cancel(message_id, force_after=50, **known))
        else:
            found = StatusRegistry.cancel(message_id, force_after=50, **known)
        # Then it ends as cancelled, without another run
        snapshot = StatusRegistry.wait(message_id, backend=stage.backend)
        assert found is Cancellation.REQUESTED and snapshot.cancelled and snapshot.attempts == 1


@pytest.mark.parametrize("is_async", [False, True], ids=["called", "awaited"])
def test_the_runs_of_a_batch_that_do_not_listen_are_interrupted(make: StageMaker, is_async: bool) -> None:
    with make() as stage, stage.working():
        # Given a group of two running messages that do not check, and one that waits, on a broker that is no default
        messages = [stage.play.message("say:step=running,loop", "return") for _ in range(2)]
        messages.append(stage.play.message_with_options(args=("return",), delay=3_600_000))
        for message in messages:
            stage.broker.enqueue(message, delay=message.options.get("delay"))
        for message in messages[:2]:
            stage.wait_until_it_runs(message.message_id)
        group = dramatiq.group(messages, broker=stage.broker)
        # When it is cancelled, and its runs are interrupted a moment later
        if is_async:
            found = asyncio.run(aio.StatusRegistry.batch(group).cancel("user left", force_after=50))
        else:
            found = StatusRegistry.batch(group).cancel("user left", force_after=timedelta(milliseconds=50))
        # Then all end as cancelled, without another run
        assert list(found.values()) == [Cancellation.REQUESTED, Cancellation.REQUESTED, Cancellation.CANCELLED]
        snapshots = StatusRegistry.batch(group).wait().children.values()
        ends = [(snapshot.cancelled, snapshot.attempts) for snapshot in snapshots if snapshot is not None]
        assert ends == [(True, 1), (True, 1), (True, 0)]


@pytest.mark.parametrize("is_batch", [False, True], ids=["one", "batch"])
def test_force_needs_dramatiq_abort_on_the_broker(backend: StubBackend, is_batch: bool) -> None:
    # Given a message on a broker without dramatiq-abort
    broker = make_broker(backend)
    backend.update("id", enqueue())
    # When cancel() is called with force_after, an error is raised, and the message is not cancelled
    with pytest.raises(StatusSetupError, match="Abortable"):
        if is_batch:
            StatusRegistry.batch(["id"], broker=broker).cancel(force_after=5_000)
        else:
            StatusRegistry.cancel("id", force_after=5_000, broker=broker)
    assert not StatusRegistry.get("id", backend=backend).cancelled


@pytest.fixture
def backend() -> StubBackend:
    return StubBackend()
