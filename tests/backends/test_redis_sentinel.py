"""Redis Sentinel: a master, its replica, and what happens when they change places."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import dramatiq
import pytest
import redis

from dramatiq_status import BackendError, StatusRegistry, aio, current_progress, current_status
from dramatiq_status.aio.connector import Connector
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends.redis import RedisBackend
from dramatiq_status.testing.conformance import BackendConformance, enqueue, outside, start, write
from dramatiq_status.update import Outcome

from ..conftest import StartServer
from ..recording import PATIENCE, all_completed, answered, begun, eventually, make_broker, working
from ..servers import AT_ONCE, RedisSentinels, RedisServer, _Sentinel, free_port
from .redis_hooks import RedisHooks

#: Time-out in milliseconds that no test reaches by chance, even on a busy machine.
PATIENT = 20_000


def make(sentinels: RedisSentinels, timeout: int = PATIENT, **parameters: Any) -> RedisBackend:
    return RedisBackend(
        sentinels=sentinels.addresses, service_name=sentinels.service_name, timeout=timeout, **parameters
    )


@pytest.fixture
def sentinels(redis_sentinels: RedisSentinels) -> RedisSentinels:
    """Return the Sentinels of a master and its replica, both empty."""
    redis_sentinels.reset()
    return redis_sentinels


@pytest.fixture(scope="module")
def whole(redis_sentinels: RedisSentinels) -> RedisSentinels:
    """Return the Sentinels of a master and its replica, both empty, for tests without a failover."""
    redis_sentinels.reset()
    return redis_sentinels


class TestSentinel(RedisHooks, BackendConformance):
    @pytest.fixture
    def backend(self, whole: RedisSentinels) -> Iterator[RedisBackend]:
        whole.master.reset()
        backend = make(whole, decode_responses=True)
        yield backend
        backend.close()

    @pytest.fixture
    def make_backend(self, whole: RedisSentinels) -> Iterator[Callable[..., StatusBackend]]:
        made: list[RedisBackend] = []

        def make_one(**parameters: Any) -> StatusBackend:
            made.append(make(whole, **parameters))
            return made[-1]

        yield make_one
        for backend in made:
            backend.close()

    @pytest.fixture
    def outage(self, start_server: StartServer) -> Iterator[tuple[RedisServer, RedisBackend]]:
        master = start_server(RedisServer())
        # A master without a replica, and a Sentinel that always names it: no failover happens while it is stopped.
        patience = f"sentinel down-after-milliseconds {RedisSentinels.service_name} 3600000"
        sentinel = start_server(_Sentinel(master.port, patience))
        backend = RedisBackend(
            sentinels=[("127.0.0.1", sentinel.port)], service_name=RedisSentinels.service_name, timeout=300
        )
        yield master, backend
        backend.close()


def test_a_client_that_sentinels_have_made(sentinels: RedisSentinels) -> None:
    # Given a client that redis-py's Sentinel has made
    client = redis.Sentinel(sentinels.addresses).master_for(sentinels.service_name)
    # When a backend is made with it, and a record is written
    backend = RedisBackend(client=client, timeout=PATIENT)
    backend.update("m", enqueue())
    # Then the master has the record
    assert RedisBackend(url=sentinels.master.url, timeout=PATIENT).read("m") is not None
    backend.close()


def test_a_client_of_replicas_that_sentinels_have_made(sentinels: RedisSentinels) -> None:
    # Given a record on a master, and a client of its replicas
    backend = RedisBackend(url=sentinels.master.url, timeout=PATIENT)
    backend.update("m", enqueue())
    replicas = RedisBackend(
        client=redis.Sentinel(sentinels.addresses).slave_for(sentinels.service_name), timeout=PATIENT
    )
    # When a thread and an event loop read it
    eventually(lambda: replicas.read("m") is not None)
    found = asyncio.run(aio.StatusRegistry.read("m", backend=replicas))
    # Then the replica answers both
    assert found is not None and found.queued
    for one in (backend, replicas):
        one.close()


def test_valkeys_client_that_sentinels_have_made(sentinels: RedisSentinels) -> None:
    # Given a client that valkey-py's Sentinel has made
    valkey = pytest.importorskip("valkey.sentinel")
    client = valkey.Sentinel(sentinels.addresses).master_for(sentinels.service_name)
    # When a backend is made with it, and a record is written
    backend = RedisBackend(client=client, timeout=PATIENT)
    backend.update("m", enqueue())
    # Then the master has the record
    assert RedisBackend(url=sentinels.master.url, timeout=PATIENT).read("m") is not None
    backend.close()


def test_wrong_parameters_raise() -> None:
    # Given wrong parameters of Sentinels
    # When a backend is made
    # Then the error names what to do
    with pytest.raises(ValueError, match="service_name must be the Sentinels"):
        RedisBackend(sentinels=[("127.0.0.1", 26379)])
    with pytest.raises(ValueError, match="sentinels must not be empty"):
        RedisBackend(sentinels=[], service_name="mymaster")


def test_a_sentinel_that_does_not_run_raises_an_error() -> None:
    # Given the address of a Sentinel that does not run
    backend = RedisBackend(sentinels=[("127.0.0.1", free_port())], service_name="mymaster", timeout=300)
    for call in (backend.read, lambda m: backend.update(m, enqueue()), backend.delete, backend.subscribe):
        # When a call is made
        # Then the call raises BackendError
        with pytest.raises(BackendError):
            call("m")


def test_errors_show_no_passwords_of_sentinels() -> None:
    # Given Sentinels that do not answer: the errors of redis-py 6.4 and 7.1 then contain the parameters
    ports = [free_port(), free_port()]
    backend = RedisBackend(
        sentinels=[("127.0.0.1", port) for port in ports],
        service_name="mymaster",
        sentinel_kwargs={"password": "s3cr3t"},
        timeout=300,
    )

    async def connect() -> None:
        connector = Connector.of(backend.transport)
        assert connector is not None
        await connector.connect()

    calls: list[Callable[[], Any]] = [
        lambda: backend.read("m"),
        lambda: backend.begin_update("m", enqueue())(),
        lambda: backend.subscribe(["m"]),
        lambda: asyncio.run(connect()),
    ]
    for call in calls:
        # When no master is found
        with pytest.raises(
            BackendError, match=f"names a master 'mymaster': .*1:{ports[0]}, 127.0.0.1:{ports[1]}"
        ) as caught:
            call()
        # Then neither the error nor its causes contain the password
        error: BaseException | None = caught.value
        while error is not None:
            assert "s3cr3t" not in repr(error)
            error = error.__cause__ or error.__context__


def test_sentinels_have_parameters_of_their_own() -> None:
    # Given parameters for the master, and others for the Sentinels
    backend = RedisBackend(
        sentinels=[("127.0.0.1", 26379)],
        service_name="mymaster",
        sentinel_kwargs={"password": "theirs"},
        username="masters",
        password="its",
        db=3,
        timeout=300,
    )
    # When the parameters of the connections are read
    pool = backend.client.connection_pool
    (sentinel,) = pool.sentinel_manager.sentinels
    theirs = sentinel.connection_pool.connection_kwargs
    # Then the master and the Sentinels have their own parameters, with short time-outs
    assert (theirs["password"], theirs.get("username"), theirs["db"]) == ("theirs", None, 0)
    assert (pool.connection_kwargs["password"], pool.connection_kwargs["db"]) == ("its", 3)
    assert (theirs["socket_timeout"], theirs["socket_connect_timeout"]) == (0.3, 0.3)


class Wandering(redis.Connection):
    """A connection class that connects to the present master."""

    master: RedisServer

    def connect(self) -> None:
        self.host, self.port = "127.0.0.1", self.master.port
        super().connect()


def test_a_master_that_was_demoted(start_server: Callable[[RedisServer], RedisServer]) -> None:
    # Given connections to a master
    old, new = (start_server(RedisServer(*AT_ONCE)) for _ in range(2))
    Wandering.master = old
    backend = RedisBackend(
        client=redis.Redis(connection_pool=redis.ConnectionPool(connection_class=Wandering)), timeout=PATIENT
    )
    backend.update("m", start(1))
    with redis.Redis(port=new.port) as client:
        client.replicaof("127.0.0.1", old.port)
        eventually(lambda: client.info("replication")["master_link_status"] == "up")
        # When another server becomes the master, and the connections stay open
        client.replicaof("NO", "ONE")
    with redis.Redis(port=old.port) as client:
        client.replicaof("127.0.0.1", new.port)
    Wandering.master = new
    # Then each update is stored on the new master once, including an update that was only begun
    assert backend.update("m", outside(increment=1)) is Outcome.APPLIED
    assert backend.begin_update("m", outside(increment=1))() is Outcome.APPLIED
    record = RedisBackend(url=new.url, timeout=PATIENT).read("m")
    assert record is not None and record["p"] == "2"
    backend.close()


def test_a_planned_failover(sentinels: RedisSentinels) -> None:
    # Given a backend that is in use
    backend = make(sentinels)
    backend.update("m", start(1))
    old = sentinels.master
    # When the Sentinels get the command to make the replica the master
    with redis.Redis(port=sentinels.sentinels[0].port) as client:
        client.execute_command("SENTINEL FAILOVER", sentinels.service_name)
    sentinels.wait_for_failover(old)
    # Then it uses the new master after its next query of the Sentinels, long before the old master is demoted
    backend.transport.pool.query_at = 0.0
    assert backend.update("m", write(1, 2, step="2")) is Outcome.APPLIED
    new = RedisBackend(url=sentinels.master.url, timeout=PATIENT)
    record = new.read("m")
    assert sentinels.master is not old and record is not None and record[":step"] == "2"
    new.close()
    backend.close()


def test_a_planned_failover_in_an_event_loop(sentinels: RedisSentinels) -> None:
    # Given a backend that an event loop uses
    backend = make(sentinels)
    backend.update("m", start(1))
    pool: Any = backend.transport.pool

    async def main() -> None:
        handle = aio.StatusRegistry.get("m", backend=backend)
        assert (await handle.read()) is not None
        old = sentinels.master
        # When the Sentinels get the command to make the replica the master
        with redis.Redis(port=sentinels.sentinels[0].port) as client:
            client.execute_command("SENTINEL FAILOVER", sentinels.service_name)
        await asyncio.to_thread(sentinels.wait_for_failover, old)
        # Then the loop uses the new master after the next query of the Sentinels
        pool.query_at = 0.0
        await handle.update(step="2")
        with closing(RedisBackend(url=sentinels.master.url, timeout=PATIENT)) as new:
            record = new.read("m")
        assert sentinels.master is not old and record is not None and record[":step"] == '"2"'
        # And the loop keeps it while no Sentinel answers
        pool.sentinels.clear()
        pool.query_at = 0.0
        await handle.update(step="3")
        # And it does not wait for them again with each call
        assert not pool.is_due

    asyncio.run(main())
    backend.close()


def test_sentinels_that_are_gone(sentinels: RedisSentinels) -> None:
    # Given a backend that is in use
    backend = make(sentinels)
    backend.update("m", start(1))
    # When no Sentinel answers any more
    backend.transport.pool.sentinels.clear()
    backend.transport.pool.query_at = 0.0
    # Then the backend goes on with the last known master
    assert backend.update("m", write(1, 2, step="2")) is Outcome.APPLIED
    backend.close()


def test_jobs_go_on_when_the_master_is_killed(sentinels: RedisSentinels) -> None:
    # Given running jobs, and jobs that wait
    backend = make(sentinels, timeout=500)
    broker = make_broker(backend)

    @dramatiq.actor(broker=broker)
    def work(n: int) -> None:
        current_status()["n"] = n
        for _ in range(20):
            current_progress().increment()
            time.sleep(0.01)

    with working(broker, threads=4) as worker:
        messages = [work.send(n) for n in range(60)]
        eventually(lambda: StatusRegistry.get(messages[10], backend=backend).completed)
        # When the master is killed, after the replica has received all of its writes
        old = sentinels.master
        with redis.Redis(port=old.port) as master:
            master.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
            eventually(lambda: in_step(sentinels))
        old.kill()
        messages += [work.send(n) for n in range(60, 120)]
        sentinels.wait_for_failover(old)
        messages += [work.send(n) for n in range(120, 130)]
        broker.join(work.queue_name, timeout=60_000)
        worker.join()
        # Then the status of each job is complete
        found = eventually(lambda: all_completed(messages, backend))
    assert [(s["n"], s["progress"], s.attempts) for s in found] == [(n, 20, 1) for n in range(130)]
    backend.close()


def test_a_failover_loses_what_the_replica_lacks_except_of_running_jobs(sentinels: RedisSentinels) -> None:
    # Given a job that has finished, and one that runs
    backend = make(sentinels, timeout=500)
    broker = make_broker(backend, heartbeat_interval=100)
    goes_on, written = threading.Event(), threading.Event()

    @dramatiq.actor(broker=broker)
    def work(waits: bool) -> None:
        current_status().update(user_id=42, total=50)
        if waits:
            current_progress().increment(7)
            current_status().flush()
            written.set()
            goes_on.wait(PATIENCE)

    with working(broker) as worker:
        before = work.send(False)
        eventually(lambda: StatusRegistry.get(before, backend=backend).completed)
        eventually(lambda: in_step(sentinels))
        # When the master has no connection to its replica any more
        old, new = sentinels.master, sentinels.replica
        with redis.Redis(port=new.port) as client, redis.Redis(port=old.port) as master:
            client.config_set("masteruser", "nobody")
            client.config_set("masterauth", "x")
            master.execute_command("CLIENT KILL TYPE replica")
            eventually(lambda: client.info("replication")["master_link_status"] == "down")
        # And jobs start and finish after that, and it is killed
        running, finished = work.send(True), work.send(False)
        eventually(lambda: StatusRegistry.get(finished, backend=backend).completed)
        assert written.wait(PATIENCE)
        # And the worker has the reply to the final state: without it, the worker would send the state again
        eventually(lambda: broker.queues[work.queue_name].unfinished_tasks == 1)
        old.kill()
        sentinels.wait_for_failover(old)
        # Then the status of the running job is complete again after its next heartbeat
        seen = answered(lambda: StatusRegistry.read(running, backend=backend))
        fields = seen.to_dict()
        assert (seen.state, fields["user_id"], fields["progress"], fields["total"]) == ("working", 42, 7, 50)
        goes_on.set()
        broker.join(work.queue_name, timeout=60_000)
        worker.join()
    read = StatusRegistry.read_many([running, before, finished], backend=backend)
    # And the final state of the finished job is lost, because the replica did not have it
    assert [snapshot and snapshot.state for snapshot in read] == ["completed", "completed", None]
    backend.close()


def test_a_watcher_during_a_failover(sentinels: RedisSentinels) -> None:
    # Given a watcher of a running message
    backend = make(sentinels, timeout=500)
    answered(lambda: backend.update("m", start(1)))
    first, seen = begun(lambda: StatusRegistry.watch("m", backend=backend, timeout=60_000))
    assert first.working
    eventually(lambda: in_step(sentinels))
    # When the master is killed
    old = sentinels.master
    old.kill()
    sentinels.wait_for_failover(old)
    answered(lambda: backend.update("m", write(1, 2, step="2")))
    # Then the watcher receives the next change
    assert next(seen)["step"] == 2
    # And the change after it, which the new master publishes
    answered(lambda: backend.update("m", write(1, 3, step="3")))
    assert next(seen)["step"] == 3
    seen.close()
    backend.close()


def in_step(sentinels: RedisSentinels) -> bool:
    """Whether the replica has all that the master has."""
    offsets = []
    for server, name in ((sentinels.master, "master_repl_offset"), (sentinels.replica, "slave_repl_offset")):
        with redis.Redis(port=server.port) as client:
            offsets.append(client.info("replication").get(name))
    return offsets[0] == offsets[1]
