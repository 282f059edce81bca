"""Memcached on several servers: while one is down, jobs, writers and readers continue with the others."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import dramatiq
import pytest
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Callbacks, Retries
from pymemcache.client.hash import HashClient

from dramatiq_status import BackendError, StatusMiddleware, StatusRegistry, aio, current_progress, current_status
from dramatiq_status.backends import MemcachedBackend
from dramatiq_status.backends.memcached.server import ServerWithBreaker
from dramatiq_status.testing.conformance.store import until_answered
from dramatiq_status.testing.updates import enqueue, finish, outside, start, write
from dramatiq_status.update import Outcome, Update
from dramatiq_status.writer import sender as sender_module

from ...aio.test_registry import begun_in_loop
from ...conftest import StartServer, started
from ...pace import own_clock
from ...recording import RecordingBackend, all_completed, answered, begun, eventually, make_broker, raised_by, working
from ...servers import MemcachedServer
from .test_backend import PATIENT, MemcachedConformance

Fleet = list[MemcachedServer]

#: Ways to pass several servers to a backend.
WAYS: dict[str, Callable[[Fleet], dict[str, Any]]] = {
    "servers": lambda fleet: {"servers": [server.address for server in fleet]},
    "a HashClient": lambda fleet: {"client": HashClient([server.address for server in fleet])},
    "without meta": lambda fleet: {"servers": [server.address for server in fleet], "meta": False},
}


@pytest.fixture
def fleet(start_server: StartServer) -> Fleet:
    return [start_server(MemcachedServer()) for _ in range(3)]


@pytest.fixture(params=WAYS)
def backend(request: pytest.FixtureRequest, fleet: Fleet) -> Iterator[MemcachedBackend]:
    backend = MemcachedBackend(timeout=1000, **WAYS[request.param](fleet))
    yield backend
    backend.close()


def address_of(backend: MemcachedBackend, message_id: str) -> str:
    return backend._locate(message_id)[1].address


def test_the_order_of_the_servers_does_not_matter() -> None:
    addresses = [f"10.0.0.{number}:11211" for number in range(5)]
    ids = [str(number) for number in range(100)]
    backends = [MemcachedBackend(servers=servers) for servers in (addresses, addresses[::-1])]
    found = [[address_of(backend, message_id) for message_id in ids] for backend in backends]
    assert found[0] == found[1]
    assert set(found[0]) == set(addresses)


def ids_on(backend: MemcachedBackend, server: MemcachedServer, count: int) -> list[str]:
    """Return new message ids whose items are on a server."""
    found: list[str] = []
    while len(found) < count:
        message_id = uuid4().hex
        if address_of(backend, message_id) == server.address:
            found.append(message_id)
    return found


def call_servers(backend: MemcachedBackend, fleet: Fleet) -> None:
    """Call all servers until they have answered, so that the backend assumes none of them down."""
    updates = [(message_id, enqueue()) for server in fleet for message_id in ids_on(backend, server, 2)]
    answered(lambda: backend.update_many(updates))


def lose(backend: MemcachedBackend, fleet: Fleet) -> None:
    """Let the second server go down after it was called."""
    fleet[1].start()
    call_servers(backend, fleet)
    fleet[1].kill()


def blocked(backend: MemcachedBackend) -> list[ServerWithBreaker]:
    """Return the servers that are not called at the moment."""
    return [server for server in backend._servers.by_node.values() if server.breaker.blocked]


def down(backend: MemcachedBackend) -> list[str]:
    """Return the addresses of the servers whose last call has failed."""
    return [server.address for server in backend._servers.by_node.values() if server.is_down]


def failures(backend: MemcachedBackend) -> int:
    """Return the number of failed calls in outages that have not ended."""
    return sum(server.breaker._failures for server in backend._servers.by_node.values() if server.is_down)


# Jobs


@pytest.mark.parametrize("fault", ["kill", "pause"])
def test_jobs_go_on_without_a_server(
    fleet: Fleet, backend: MemcachedBackend, redis_broker_url: str, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    caplog.set_level(logging.INFO, logger="dramatiq_status")
    broker = RedisBroker(
        url=redis_broker_url,
        middleware=[Callbacks(), Retries(max_retries=0), StatusMiddleware(backend=backend)],
    )
    over = threading.Event()
    done: list[str] = []
    lost = fleet[1]

    @dramatiq.actor(broker=broker)
    def work(n: int, long: bool) -> None:
        status, progress = current_status(), current_progress()
        status.update(n=n)
        while long and not over.wait(0.01):
            progress.increment()
            status["step"] = "more"
        status.flush()
        progress.finish()
        done.append(status.message_id)

    def send(server: MemcachedServer, count: int, *, long: bool = False) -> list[str]:
        ids = ids_on(backend, server, count)
        for n, message_id in enumerate(ids):
            message = work.message_with_options(args=(n, long), status={"user_id": n})
            broker.enqueue(message.copy(message_id=message_id))
        return ids

    with working(broker, threads=6):
        # Given completed jobs and a running job on each of three servers
        before = {server: send(server, 4) for server in fleet}
        long = {server: send(server, 1, long=True)[0] for server in fleet}
        assert eventually(lambda: all(all_completed(ids, backend) for ids in before.values()))
        for message_id in long.values():
            answered(lambda message_id=message_id: StatusRegistry.get(message_id, backend=backend).get("step"))
        caplog.clear()
        # When one server goes down, and more jobs are sent
        getattr(lost, fault)()
        after = {server: send(server, 10) for server in fleet}
        # Then all jobs run, and the statuses on the other servers can be read
        eventually(lambda: {m for ids in after.values() for m in ids} <= set(done))
        living = [m for server in fleet if server is not lost for m in [*before[server], *after[server]]]
        assert eventually(lambda: all_completed(living, backend))
        # And statuses on the server that is down cannot be read, alone or with others
        for message_id in [*after[lost], long[lost]]:
            with pytest.raises(BackendError, match=lost.address):
                StatusRegistry.read(message_id, backend=backend)
        mixed = [after[lost][0], living[0], long[lost], living[1]]
        eventually(
            lambda: (
                [
                    isinstance(one, BackendError) or (one and one.message_id)
                    for one in StatusRegistry.read_many(mixed, backend=backend, return_errors=True)
                ]
                == [True, living[0], True, living[1]]
            )
        )
        with pytest.raises(BackendError, match=lost.address):
            StatusRegistry.read_many(mixed, backend=backend)
        # When the server is back
        lost.reset() if fault == "pause" else lost.start()
        # Then the status of the running job is restored with all fields
        snapshot = answered(lambda: StatusRegistry.read(long[lost], backend=backend))
        assert (snapshot.state, snapshot["user_id"], snapshot["n"], snapshot["step"]) == ("working", 0, 0, "more")
        assert snapshot.actor_name == "work" and snapshot["progress"] > 0
        # And so are the statuses of the jobs that have ended in the outage
        assert eventually(lambda: all_completed(after[lost], backend))
        found = answered(lambda: StatusRegistry.read_many(after[lost], backend=backend))
        assert [(s["user_id"], s["n"], s.progress) for s in found if s] == [(n, n, 1.0) for n in range(10)]
        over.set()
        assert eventually(lambda: all_completed(list(long.values()), backend))
    # And the log has one line for the beginning of the server's outage, one for its end, and none for the whole store
    lines = [line.getMessage() for line in caplog.records if "status store" in line.getMessage()]
    assert [(lost.address in line, "does not answer" in line) for line in lines] == [(True, True), (True, False)]


# Calls


@pytest.fixture
def lost(fleet: Fleet, backend: MemcachedBackend) -> MemcachedServer:
    """Return a server that has gone down after it was called."""
    lose(backend, fleet)
    return fleet[1]


def test_outcomes_of_a_batch_while_a_server_is_down(
    fleet: Fleet, backend: MemcachedBackend, lost: MemcachedServer
) -> None:
    def call_all() -> bool:
        # Given messages on a server that is down, and on others
        lose(backend, fleet)
        there, gone = ids_on(backend, fleet[0], 3), ids_on(backend, lost, 3)
        ids = [message_id for pair in zip(gone, there) for message_id in pair]
        # When all are written in one call
        outcomes = backend.update_many([(message_id, start(1, step="1")) for message_id in ids])
        found = backend.read_many(ids)
        # And each in a call with one update
        single = [one for m in (gone[0], there[0]) for one in backend.update_many([(m, write(1, 2))])]
        begun = [backend.begin_update(m, enqueue(origin=8))() for m in (gone[1], there[1])]
        # Then those on the other servers are stored, and the outcomes name those that are not
        return (
            outcomes == [Outcome.UNAVAILABLE, Outcome.APPLIED] * 3
            and [isinstance(one, BackendError) or (one and one[":step"]) for one in found] == [True, "1"] * 3
            and single == begun == [Outcome.UNAVAILABLE, Outcome.APPLIED]
        )

    assert answered(call_all)


def test_reads_return_errors_for_a_server_that_is_down_and_none_for_unknown_messages(
    fleet: Fleet, backend: MemcachedBackend, lost: MemcachedServer
) -> None:
    # Given messages on a server that is down, and known and unknown messages on the others
    (gone, gone_too), (there,), (unknown,) = (
        ids_on(backend, lost, 2),
        ids_on(backend, fleet[0], 1),
        ids_on(backend, fleet[2], 1),
    )
    answered(lambda: backend.update(there, start(1)))
    # When the messages are read, alone and together
    # Then messages on the server that is down are errors with its address, and unknown messages are None
    for call in (
        backend.read,
        backend.snapshot,
        lambda m: backend.read_many([m]),
        lambda m: backend.snapshots([m, gone_too]),
    ):
        with pytest.raises(BackendError, match=lost.address):
            call(gone)
    for read in (backend.read, backend.snapshot):
        assert until_answered(lambda read=read: read(unknown)) is None
    ids = [gone, there, unknown, gone_too, there]
    for many, kind in (backend.read_many, "dict"), (backend.snapshots, "Snapshot"):

        def kinds(many: Callable[..., Any] = many) -> list[str]:
            found = many(ids)
            assert lost.address in str(found[0])
            return [type(one).__name__ for one in found]

        expected = ["BackendError", kind, "NoneType", "BackendError", kind]
        assert eventually(lambda kinds=kinds, expected=expected: kinds() == expected)


@pytest.mark.parametrize("connected", [True, False], ids=["connected", "new"])
def test_all_servers_together_have_one_time_out(fleet: Fleet, connected: bool) -> None:
    # Given three servers that accept connections and never answer
    backend = MemcachedBackend(servers=[server.address for server in fleet], timeout=500)
    ids = [message_id for server in fleet for message_id in ids_on(backend, server, 3)]
    if connected:
        backend.update_many([(message_id, start(1)) for message_id in ids])
    for server in fleet:
        server.pause()
    calls: dict[str, Callable[[], Any]] = {
        "begin": lambda: backend.begin_update(ids[0], enqueue())(),
        "read_many": lambda: backend.read_many(ids),
        "update_many": lambda: backend.update_many([(message_id, outside(step="1")) for message_id in ids]),
        "update": lambda: backend.update(ids[0], outside(step="1")),
        "read": lambda: backend.read(ids[0]),
    }
    took: dict[str, float] = {}
    # When each call is made by a backend that assumes none of them down
    for name, call in calls.items():
        for server in backend._servers.by_node.values():
            server.forget()
            server.answered_at = float("-inf")
        for server in fleet if connected else ():
            server.resume()
        if connected:
            backend.read_many(ids)
            for server in fleet:
                server.pause()
        with own_clock() as clock:
            raised_by(call)
            took[name] = clock()
    # Then it takes one time-out, and not one for each server
    assert {name: seconds for name, seconds in took.items() if seconds > 1.0} == {}
    backend.close()


def test_a_frozen_server_does_not_hold_back_the_others(fleet: Fleet) -> None:
    # Given three servers, of which one was frozen after the last call
    backend = MemcachedBackend(servers=[server.address for server in fleet], timeout=1000)
    other = MemcachedBackend(servers=[server.address for server in fleet], timeout=PATIENT)
    ids = [message_id for server in fleet for message_id in ids_on(backend, server, 300)]
    other.update_many([(message_id, start(1)) for message_id in ids])

    def call_all() -> bool:
        fleet[0].resume()
        call_servers(backend, fleet)
        fleet[0].pause()
        # When messages on all three are written, in several rounds for each server
        outcomes = backend.update_many([(message_id, outside(step="1")) for message_id in ids])
        # And all are read
        found = backend.read_many(ids)
        # Then those on the two others are stored and found, and those on the frozen one are not
        return (
            outcomes == [Outcome.UNAVAILABLE] * 300 + [Outcome.APPLIED] * 600
            and [isinstance(one, BackendError) for one in found] == [True] * 300 + [False] * 600
        )

    assert answered(call_all)
    fleet[0].resume()
    backend.close()
    other.close()


def test_watchers_wait_for_a_server_that_is_down(fleet: Fleet) -> None:
    # Given watchers that do not wait for missing messages, and a message on one of three servers
    backend = MemcachedBackend(servers=[server.address for server in fleet], timeout=300)
    (message_id,), lost = ids_on(backend, fleet[1], 1), fleet[1]
    others = [message_id for server in (fleet[0], fleet[2]) for message_id in ids_on(backend, server, 1)]
    answered(lambda: backend.update_many([(one, start(1)) for one in [message_id, *others]]))
    seen: dict[str, Any] = {}
    patience: Any = {"timeout": 40_000, "missing_timeout": 1}

    def watch() -> None:
        seen["watch"], watching = begun(lambda: StatusRegistry.watch(message_id, backend=backend, **patience))
        for snapshot in watching:
            seen["watch"] = snapshot

    async def watch_in_a_loop() -> None:
        seen["aio.watch"], watching = await begun_in_loop(
            lambda: aio.StatusRegistry.watch(message_id, backend=backend, **patience)
        )
        async for snapshot in watching:
            seen["aio.watch"] = snapshot

    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(watch), threads.submit(lambda: asyncio.run(watch_in_a_loop()))]
        eventually(lambda: len(seen) == 2)
        # When this server is down for some attempts to read it
        lost.pause()
        eventually(lambda: down(backend) == [lost.address] and failures(backend) >= 3)
        # Then no watcher has ended
        assert [future.exception() for future in waiting if future.done()] == []
        lost.resume()
        eventually(lambda: not isinstance(raised_by(lambda: backend.read(message_id)), BackendError))
        # And when the message ends, the watchers end
        answered(lambda: backend.update(message_id, finish(1)))
        for future in waiting:
            future.result(60)
        assert [snapshot.completed for snapshot in seen.values()] == [True, True]
    backend.close()


def test_direct_writes_to_a_server_that_is_down_raise_an_error(
    fleet: Fleet, backend: MemcachedBackend, lost: MemcachedServer
) -> None:
    # Given a message on a server that is down
    (gone,) = ids_on(backend, lost, 1)
    # When it is written or deleted from outside of a worker
    # Then the call raises an error with the address of the server
    for call in (lambda: backend.update(gone, outside(step="1")), lambda: backend.delete(gone)):
        with pytest.raises(BackendError, match=lost.address) as caught:
            call()
        assert caught.value.__cause__ is not None


@pytest.mark.parametrize("fault", ["kill", "pause"])
def test_begun_updates_while_a_server_goes_down(fleet: Fleet, backend: MemcachedBackend, fault: str) -> None:
    # Given an enqueue that was sent
    backend.update_many([(m, enqueue()) for server in fleet for m in ids_on(backend, server, 1)])
    (message_id,) = ids_on(backend, fleet[1], 1)
    fleet[1].pause()
    complete = backend.begin_update(message_id, enqueue())
    # When its server goes down before it answers
    if fault == "kill":
        fleet[1].kill()
    # Then the store is unavailable when the enqueue is completed
    assert complete() is Outcome.UNAVAILABLE


def test_a_server_that_has_failed_is_not_called_for_a_while(
    fleet: Fleet, backend: MemcachedBackend, lost: MemcachedServer
) -> None:
    # Given a server that was down when it was called, and is back
    message_id, *others = ids_on(backend, lost, 20)
    assert backend.update_many([(message_id, enqueue())]) == [Outcome.UNAVAILABLE]
    (server,) = [server for server in backend._servers.by_node.values() if server.breaker.down]
    lost.start()
    # When a call comes before the time of the next attempt
    server.breaker.retry_at = time.monotonic() + 1000
    # Then the server is not called
    assert backend.update_many([(message_id, enqueue())]) == [Outcome.UNAVAILABLE]

    # And after that time, it is called
    def retry() -> list[Outcome]:
        server.breaker.retry_at = 0.0
        # If a reply is late, the server may have stored the message.
        return backend.update_many([(others.pop(), enqueue())])

    assert answered(retry) == [Outcome.APPLIED]
    assert not server.breaker.down


def test_a_call_raises_an_error_if_all_servers_are_down(fleet: Fleet, backend: MemcachedBackend) -> None:
    # Given messages on three servers, which all go down
    ids = [message_id for server in fleet for message_id in ids_on(backend, server, 1)]
    backend.update_many([(message_id, start(1)) for message_id in ids])
    for server in fleet:
        server.kill()
    calls: list[Callable[[], Any]] = [
        lambda: backend.read(ids[0]),
        lambda: backend.read_many(ids),
        lambda: backend.read_many(ids[1:]),
        lambda: backend.update(ids[0], write(1, 2)),
        lambda: backend.update_many([(message_id, write(1, 2)) for message_id in ids]),
        lambda: backend.update_many([(ids[0], write(1, 2))]),
        lambda: backend.begin_update(ids[0], enqueue())(),
    ]
    eventually(lambda: isinstance(raised_by(calls[0]), BackendError))
    # When they are called
    # Then each call raises an error
    assert [type(raised_by(call)) for call in calls] == [BackendError] * len(calls)
    # And when one server is back, calls that include it raise no error
    fleet[2].start()
    eventually(lambda: not isinstance(raised_by(lambda: backend.read(ids[2])), BackendError))
    eventually(lambda: backend.update_many([(ids[2], start(1))]) == [Outcome.APPLIED])
    assert [isinstance(record, BackendError) for record in backend.read_many(ids)] == [True, True, False]


def test_an_update_that_is_too_large_while_another_server_is_down(
    fleet: Fleet, backend: MemcachedBackend, lost: MemcachedServer, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a message on a server that is down, and one on another server
    (gone,), (there,) = ids_on(backend, lost, 1), ids_on(backend, fleet[0], 1)
    # When both are written, the second one with a field that is too large
    large = outside(big='"' + "x" * 1_100_000 + '"')
    answered(lambda: backend.update(there, start(1)))
    # Then the first one is unavailable, and the log names the field of the second one
    updates = [(gone, start(1)), (there, large)]
    assert answered(lambda: backend.update_many(updates) == [Outcome.UNAVAILABLE, Outcome.APPLIED])
    snapshot = answered(lambda: backend.snapshot(there))
    assert snapshot is not None and snapshot.truncated == ("big",) and "'big'" in caplog.text


def test_a_server_that_the_client_has_given_up_keeps_its_keys(fleet: Fleet) -> None:
    # Given a HashClient that has moved the keys of a dead server to others
    client = HashClient([server.address for server in fleet], retry_attempts=0, timeout=1, ignore_exc=True)
    fleet[1].kill()
    for n in range(100):
        client.get(f"key-{n}")
    assert client._dead_clients
    # When a backend is made with it
    moved = MemcachedBackend(client=client)
    # Then its messages are on the same servers as those of other backends
    other = MemcachedBackend(servers=[server.address for server in fleet])
    ids = [uuid4().hex for _ in range(100)]
    assert [address_of(moved, m) for m in ids] == [address_of(other, m) for m in ids]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Needs os.fork.")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_process_has_new_circuit_breakers(backend: MemcachedBackend, lost: MemcachedServer) -> None:
    # Given a process that has found a server down
    (message_id,) = ids_on(backend, lost, 1)
    assert isinstance(raised_by(lambda: backend.read(message_id)), BackendError) and down(backend) == [lost.address]
    # When the process forks
    if (child := os.fork()) == 0:
        signal.alarm(60)
        code = 1
        try:
            # Then for the child, no server is down until the child has called this one
            before = down(backend)
            found = raised_by(lambda: backend.read(message_id))
            code = 0 if (before, type(found), down(backend)) == ([], BackendError, [lost.address]) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    # And for the parent, the server is still down
    assert down(backend) == [lost.address]


# The writer, with any store that has many servers


class Partial(RecordingBackend):
    """A store on several servers.  The servers of some messages do not answer."""

    def __init__(self) -> None:
        super().__init__()
        self.gone: set[str] = set()

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        reached = iter(super().update_many([pair for pair in updates if pair[0] not in self.gone]))
        return [Outcome.UNAVAILABLE if message_id in self.gone else next(reached) for message_id, _ in updates]


@pytest.fixture
def partial(monkeypatch: pytest.MonkeyPatch) -> Partial:
    monkeypatch.setattr(sender_module, "LONGEST_PAUSE", 0.05)
    return Partial()


def test_the_writer_keeps_updates_for_a_server_that_is_down(partial: Partial) -> None:
    # Given two jobs, one of them on a server that does not answer
    broker = make_broker(partial)
    flushed: dict[str, bool] = {}

    @dramatiq.actor(broker=broker)
    def work() -> None:
        status = current_status()
        status["step"] = 1
        current_progress().increment(5)
        flushed[status.message_id] = status.flush()
        status["last"] = 2

    here, gone = work.send().message_id, work.send().message_id
    partial.gone.add(gone)
    # When both end
    with working(broker) as worker:
        broker.join(work.queue_name, timeout=20_000)
        worker.join()
        # Then the job on the other server is stored, and no thread has waited for the server that does not answer
        assert flushed == {here: True, gone: False}
        found = StatusRegistry.read(here, backend=partial)
        assert found is not None and found.completed
        still = StatusRegistry.read(gone, backend=partial)
        assert still is not None and still.queued
        # And when this server is back, its job is stored with all fields
        partial.gone.clear()
        later = eventually(lambda: completed_one(gone, partial))
    assert (later["step"], later["last"], later["progress"], later.attempts) == (1, 2, 5, 1)


def completed_one(message_id: str, backend: Any) -> Any:
    snapshot = StatusRegistry.read(message_id, backend=backend)
    return snapshot if snapshot is not None and snapshot.completed else None


def test_a_worker_that_ends_tries_a_server_that_is_down_until_its_time_is_over(partial: Partial) -> None:
    # Given a worker with an update for a server that does not answer
    broker = make_broker(partial)

    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    message_id = work.send().message_id
    partial.gone.add(message_id)
    (middleware,) = [m for m in broker.middleware if isinstance(m, StatusMiddleware)]
    with working(broker) as worker:
        broker.join(work.queue_name, timeout=20_000)
        worker.join()
        # When the worker ends, and the server comes back
        stopping = threading.Thread(target=worker.stop)
        stopping.start()
        eventually(lambda: middleware._writer._queue.drains)
        partial.gone.clear()
        stopping.join()
    # Then the update is stored
    snapshot = StatusRegistry.read(message_id, backend=partial)
    assert snapshot is not None and snapshot.completed


def test_the_updates_kept_for_a_server_that_is_down_are_bounded(
    partial: Partial, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a writer that keeps the updates of five messages, and twenty on a server that does not answer
    broker = make_broker(partial, max_pending=5)

    # Ids in the order in which the jobs run: Dramatiq 1 shuffles the messages that it has fetched
    ids: list[str] = []

    @dramatiq.actor(broker=broker)
    def work() -> None:
        ids.append(current_status().message_id)

    partial.gone.update(work.send().message_id for _ in range(20))
    with working(broker) as worker:
        broker.join(work.queue_name, timeout=20_000)
        worker.join()
        # When the server is back
        partial.gone.clear()
        eventually(lambda: completed_one(ids[-1], partial))
    # Then the last messages are completed, the first are not, and the log has one line about these
    states = [StatusRegistry.get(message_id, backend=partial).state for message_id in ids]
    assert 1 <= states.count("completed") <= 10 and states[0] == "queued"
    assert sum("More than 5" in line.getMessage() for line in caplog.records) == 1


# What every store has to do


class AllOf:
    """Several servers that start and stop together."""

    def __init__(self, fleet: Fleet, backend: MemcachedBackend) -> None:
        self._fleet = fleet
        self._backend = backend

    def start(self) -> None:
        for server in self._fleet:
            server.start()
        self._wait()

    def resume(self) -> None:
        for server in self._fleet:
            server.resume()
        self._wait()

    def stop(self) -> None:
        for server in self._fleet:
            server.stop()
        self._forget()

    def pause(self) -> None:
        for server in self._fleet:
            server.pause()
        self._forget()

    def _forget(self) -> None:
        # A server that has answered in the last 0.1 seconds counts as up.
        for server in self._backend._servers.by_node.values():
            server.answered_at = float("-inf")

    def _wait(self) -> None:
        # The backend calls a server again only after the pause of the circuit breaker.
        eventually(lambda: not blocked(self._backend))


@pytest.fixture(scope="module")
def three_servers() -> Iterator[Fleet]:
    fleet = [started(MemcachedServer()) for _ in range(3)]
    yield fleet
    for server in fleet:
        server.close()


class TestMemcachedFleet(MemcachedConformance):
    @pytest.fixture
    def make_backend(self, three_servers: Fleet) -> Iterator[Callable[..., MemcachedBackend]]:
        made: list[MemcachedBackend] = []

        def make(**parameters: Any) -> MemcachedBackend:
            addresses = [server.address for server in three_servers]
            made.append(MemcachedBackend(servers=addresses, timeout=PATIENT, **parameters))
            return made[-1]

        yield make
        for backend in made:
            backend.close()

    @pytest.fixture
    def backend(self, make_backend: Callable[..., MemcachedBackend]) -> MemcachedBackend:
        return make_backend()

    @pytest.fixture
    def outage(self, fleet: Fleet) -> tuple[AllOf, MemcachedBackend]:
        backend = MemcachedBackend(servers=[server.address for server in fleet], timeout=200)
        return AllOf(fleet, backend), backend

    @pytest.fixture(autouse=True)
    def find_server(self, three_servers: Fleet) -> None:
        self.servers = {server.address: server for server in three_servers}

    def server_of(self, backend: MemcachedBackend, message_id: str) -> MemcachedServer:
        return self.servers[address_of(backend, message_id)]
