"""Tests that an error reply of Redis raises an error, and never makes a message unknown."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import pytest
import redis

from dramatiq_status import BackendError, StatusRegistry, aio
from dramatiq_status.backend import Query
from dramatiq_status.backends.redis import RedisBackend
from dramatiq_status.backends.redis.operations import UPDATES_PER_CALL
from dramatiq_status.record import COMPLETED, State
from dramatiq_status.testing.conformance import enqueue, finish, outside, read_many, start, write
from dramatiq_status.update import Outcome

from ..conftest import started
from ..recording import answered, eventually
from ..servers import RedisCluster, RedisServer, free_port

#: Time-out in milliseconds that no test reaches by chance, even on a busy machine.
PATIENT = 20_000

Fault = Callable[[redis.Redis], Any]


class _Server(RedisServer):
    """A server of one test, which may change its settings and users."""

    def __init__(self) -> None:
        super().__init__("--enable-debug-command", "yes", "--loading-process-events-interval-bytes", "1024")


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with started(_Server()) as server:
        yield server


@contextmanager
def admin_of(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=server.port, decode_responses=True, socket_timeout=60) as client:
        yield client


@contextmanager
def loading(client: redis.Redis) -> Iterator[None]:
    """Let the server read its data from the disk for the length of the block."""
    client.execute_command("DEBUG POPULATE", 50_000, "filler", 10)
    client.config_set("key-load-delay", 500)
    reload = threading.Thread(target=_reload, args=(client,))
    reload.start()
    assert eventually(lambda: refuses(client, redis.BusyLoadingError))
    try:
        yield
    finally:
        client.config_set("key-load-delay", 0)
        reload.join()
        assert eventually(lambda: not refuses(client, redis.BusyLoadingError))


def _reload(client: redis.Redis) -> None:
    client.execute_command("DEBUG RELOAD")


@contextmanager
def busy(client: redis.Redis) -> Iterator[None]:
    """Let the server execute an endless script for the length of the block."""
    client.config_set("lua-time-limit", 1)
    script = threading.Thread(target=_loop, args=(client,))
    script.start()
    assert eventually(lambda: refuses(client, redis.ResponseError))
    try:
        yield
    finally:
        client.script_kill()
        script.join()


def _loop(client: redis.Redis) -> None:
    with pytest.raises(redis.ResponseError):
        client.eval("while true do end", 0)


def refuses(client: redis.Redis, error: type[Exception]) -> bool:
    try:
        client.get("x")
    except error:
        return True
    return False


@contextmanager
def without_master(client: redis.Redis) -> Iterator[None]:
    """Make the server a replica without a master, which returns no data that may be out of date."""
    client.config_set("replica-serve-stale-data", "no")
    client.replicaof("127.0.0.1", free_port())
    try:
        yield
    finally:
        client.replicaof("NO", "ONE")


def forbidden(*commands: str) -> Callable[[redis.Redis], Any]:
    """Return a function that takes rights from the user for the length of a block."""

    @contextmanager
    def forbid(client: redis.Redis) -> Iterator[None]:
        client.execute_command("ACL", "SETUSER", "default", *(f"-{command}" for command in commands))
        try:
            yield
        finally:
            client.execute_command("ACL", "SETUSER", "default", *(f"+{command}" for command in commands))

    return forbid


@contextmanager
def logged_out(client: redis.Redis) -> Iterator[None]:
    """Set a password, and close all connections."""
    client.config_set("requirepass", "secret")
    client.client_kill_filter(_type="normal", skipme=True)
    try:
        yield
    finally:
        client.config_set("requirepass", "")


#: Faults, each with a pattern of its error.
FAULTS: dict[str, tuple[Callable[[redis.Redis], Any], str]] = {
    "LOADING": (loading, "[Ll]oading|LOADING"),
    "BUSY": (busy, "BUSY"),
    "MASTERDOWN": (without_master, "MASTERDOWN"),
    "NOPERM": (forbidden("hgetall", "hmget", "evalsha"), "NOPERM"),
    "NOAUTH": (logged_out, "[Aa]uth|AUTH"),
}


def look(backend: RedisBackend, message_id: str) -> dict[str, Callable[[], Any]]:
    """Return calls that use the store, by name."""
    return {
        **reads(backend, message_id),
        "find": lambda: backend.find(Query(), limit=10, after=None),
        "count": lambda: backend.count(Query()),
        "delete": lambda: backend.delete(message_id),
        "update": lambda: backend.update(message_id, write(1, 2, step="2")),
        "update, many": lambda: backend.update_many([(message_id, write(1, 2)), ("m2", write(1, 2))]),
        "update, begun": lambda: backend.begin_update(message_id, write(1, 2))(),
    }


def reads(backend: RedisBackend, message_id: str) -> dict[str, Callable[[], Any]]:
    """Return calls that read, by name."""
    registry, status = StatusRegistry, StatusRegistry.get(message_id, backend=backend)
    return {
        "read": lambda: backend.read(message_id),
        "read_many": lambda: backend.read_many([message_id, "m2"]),
        "snapshot": lambda: registry.read(message_id, backend=backend),
        "snapshots": lambda: registry.read_many([message_id, "m2"], backend=backend, return_errors=True),
        "wait": lambda: registry.wait(message_id, backend=backend),
        "watch": lambda: next(registry.watch(message_id, backend=backend)),
        "batch": lambda: registry.batch([message_id, "m2"], backend=backend).read(),
        "batch, waited for": lambda: registry.batch([message_id, "m2"], backend=backend).wait(),
        "state": lambda: status.state,
        "field": lambda: status.get("step"),
        "to_json": status.to_json,
        "bool": lambda: bool(status),
        "total": lambda: registry.progress(message_id, backend=backend).total,
    }


async def look_in_a_loop(backend: RedisBackend, message_id: str) -> list[str]:
    """Return the names of the asynchronous calls that raise no BackendError."""
    registry, status = aio.StatusRegistry, aio.StatusRegistry.get(message_id, backend=backend)
    batch = registry.batch([message_id, "m2"], backend=backend)
    calls = {
        "read": lambda: registry.read(message_id, backend=backend),
        "read_many": lambda: registry.read_many([message_id, "m2"], backend=backend, return_errors=True),
        "wait": lambda: registry.wait(message_id, backend=backend),
        "batch": batch.read,
        "batch, waited for": batch.wait,
        "field": lambda: status.get("step"),
        "to_json": status.to_json,
        "total": lambda: registry.progress(message_id, backend=backend).total,
        "list": lambda: registry.list(backend=backend),
        "count": lambda: registry.count(backend=backend),
        "delete": status.delete,
        "update": lambda: status.update(step="2"),
    }
    found_no_error = []
    for name, call in calls.items():
        try:
            found_no_error.append(f"{name}: {await call()}")
        except BackendError:
            pass
    return found_no_error


@pytest.fixture
def admin(server: RedisServer) -> Iterator[redis.Redis]:
    server.reset()
    with admin_of(server) as client:
        yield client


@pytest.fixture
def backend(server: RedisServer) -> Iterator[RedisBackend]:
    with closing(RedisBackend(url=server.url, timeout=PATIENT)) as backend:
        yield backend


@pytest.mark.parametrize("name", FAULTS)
def test_error_replies_raise_and_do_not_make_messages_unknown(
    admin: redis.Redis, backend: RedisBackend, name: str
) -> None:
    # Given messages in a store
    fault, words = FAULTS[name]
    backend.update_many([(message_id, start(1, step='"1"')) for message_id in ("m", "m2")])
    assert all(backend.read_many(["m", "m2"])) and backend.count(Query()) == 2
    # When the server answers everything with an error
    with fault(admin):
        for call in look(backend, "m").values():
            # Then each call raises it
            with pytest.raises(BackendError, match=words):
                call()
        assert asyncio.run(look_in_a_loop(backend, "m")) == []
    # And after the fault all messages can be read
    assert [record and record[":step"] for record in backend.read_many(["m", "m2"])] == ['"1"', '"1"']
    assert backend.count(Query()) == 2 and len(backend.find(Query(), limit=10, after=None)) == 2


#: Program that prints the results and errors of calls of a backend without hiredis.
WITHOUT_HIREDIS = """
import json, sys
sys.modules["hiredis"] = None
from dramatiq_status import BackendError, StatusMissing
from dramatiq_status.backends.redis import RedisBackend
from tests.backends.test_redis_refusals import look, look_in_a_loop
import asyncio
backend = RedisBackend(url=sys.argv[1], timeout=20_000)
backend.read("other"), print("ready", flush=True)
for line in sys.stdin:
    if line.startswith("read"):
        print(backend.read("m"), flush=True)
        continue
    found = {}
    for name, call in look(backend, "m").items():
        try:
            found[name] = repr(call())
        except BackendError as e:
            found[name] = str(e)
    found["loop"] = asyncio.run(look_in_a_loop(backend, "m"))
    print(json.dumps(found), flush=True)
"""


def test_errors_without_hiredis(server: RedisServer, admin: redis.Redis, backend: RedisBackend) -> None:
    # Given a process whose driver reads replies itself, and makes classes of errors
    backend.update_many([(message_id, start(1, step='"1"')) for message_id in ("m", "m2")])
    process = subprocess.Popen(
        [sys.executable, "-c", WITHOUT_HIREDIS, server.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    with process, process.stdin:
        assert process.stdout.readline() == "ready\n"
        for name in ("LOADING", "BUSY", "MASTERDOWN", "NOPERM", "NOAUTH"):
            # When the server answers everything with an error
            fault, words = FAULTS[name]
            with fault(admin):
                process.stdin.write("look\n")
                process.stdin.flush()
                found = json.loads(process.stdout.readline())
            # Then each call raises it
            assert found.pop("loop") == []
            assert {call for call, text in found.items() if not re.search(f"^Redis: .*({words})", text)} == set(), found
        # And a value of another program under a key is no error
        backend.client.delete(backend.keys.key_of("m"))
        backend.client.set(backend.keys.key_of("m"), "foreign")
        process.stdin.write("read\n")
        process.stdin.flush()
        assert process.stdout.readline() == "None\n"


def test_a_value_of_another_program_is_no_status(backend: RedisBackend, admin: redis.Redis) -> None:
    # Given a value of another program under the key of a message, and a record under another one
    admin.set(backend.keys.key_of("m"), "foreign")
    backend.update("m2", start(1))
    # When both are read
    # Then the first message is unknown, and the second one is not
    assert [record is None for record in backend.read_many(["m", "m2"])] == [True, False]
    assert StatusRegistry.read("m", backend=backend) is None


@pytest.mark.parametrize("command", ["hmget", "hkeys"])
def test_a_script_that_may_not_read(admin: redis.Redis, backend: RedisBackend, command: str) -> None:
    # Given a finished message
    backend.update_many([("m", start(1, step='"1"')), ("m", finish(1))])
    updates = (outside(step="2"), enqueue(origin=8), outside(state=COMPLETED))
    # When the user may run the script, and not read the record
    with forbidden(command)(admin):
        for update in updates if command == "hmget" else updates[1:2]:
            # Then the update raises an error, and the record does not count as missing
            with pytest.raises(BackendError):
                backend.update("m", update)
        if command == "hmget":
            with pytest.raises(BackendError):
                backend.find(Query(), limit=10, after=None)
            with pytest.raises(BackendError):
                backend.delete("m")
    # And the record is unchanged
    record = backend.read("m")
    assert record is not None and (record["s"], record[":step"]) == ("2", '"1"')
    assert backend.count(Query()) == 1


def test_a_key_that_is_refused_hides_no_other(admin: redis.Redis, backend: RedisBackend) -> None:
    # Given messages of which the user may no longer read one
    ids = ["m", "other"]
    backend.update_many([(message_id, start(1)) for message_id in ids])
    admin.execute_command("ACL", "SETUSER", "default", "resetkeys", f"~{backend.keys.key_of('m')}")
    try:
        # When both are read
        found = StatusRegistry.read_many(ids, backend=backend, return_errors=True)
        # Then one has its record, and the other has an error in its place
        assert found[0] is not None and not isinstance(found[0], BackendError) and found[0].working
        assert isinstance(found[1], BackendError) and "NOPERM" in str(found[1])
        with pytest.raises(BackendError, match="NOPERM"):
            StatusRegistry.read_many(ids, backend=backend)
    finally:
        admin.execute_command("ACL", "SETUSER", "default", "~*")


def test_a_batch_that_is_refused_in_the_middle(admin: redis.Redis, backend: RedisBackend) -> None:
    # Given messages of which the user may write some
    ids = [*(f"a{n}" for n in range(UPDATES_PER_CALL)), "b1", "b2"]
    backend.update_many([(message_id, start(1)) for message_id in ids])
    admin.execute_command("ACL", "SETUSER", "default", "resetkeys", f"~{backend.keys.key_of('a')}*")
    try:
        # When all get increments in one call
        outcomes = backend.update_many([(message_id, outside(increment=1)) for message_id in ids])
    finally:
        admin.execute_command("ACL", "SETUSER", "default", "~*")
    # Then the outcomes show which increments were stored, and which the store has refused
    assert outcomes == [Outcome.APPLIED] * UPDATES_PER_CALL + [Outcome.UNSTORABLE] * 2
    records = read_many(backend, ids)
    assert [record and record.get("p") for record in records] == ["1"] * UPDATES_PER_CALL + [None] * 2


@pytest.mark.parametrize("way", ["sync", "aio"])
def test_a_watch_outlasts_errors(admin: redis.Redis, backend: RedisBackend, way: str) -> None:
    # Given watchers of a message and of a batch, which poll often
    backend.recheck_interval = 5
    backend.update_many([("m", start(1)), ("m2", finish(1, create=True))])

    def watch() -> list[State]:
        return [found.state for found in StatusRegistry.watch("m", backend=backend, missing_timeout=1, timeout=PATIENT)]

    def wait() -> bool:
        batch = StatusRegistry.batch(["m", "m2"], backend=backend)
        return batch.wait(missing_timeout=1, timeout=PATIENT).completed

    async def watch_in_a_loop() -> tuple[list[State], bool]:
        registry = aio.StatusRegistry
        batch = registry.batch(["m", "m2"], backend=backend).wait(missing_timeout=1, timeout=PATIENT)
        waiting = asyncio.create_task(batch)
        watched = registry.watch("m", backend=backend, missing_timeout=1, timeout=PATIENT)
        return [found.state async for found in watched], (await waiting).completed

    with ThreadPoolExecutor() as pool:
        if way == "sync":
            calls = [pool.submit(watch), pool.submit(wait)]
        else:
            calls = [pool.submit(asyncio.run, watch_in_a_loop())]
        assert eventually(lambda: len(admin.client_list(_type="pubsub")) == len(calls))
        # When the server replies to their reads with errors for a while
        with forbidden("hgetall")(admin):
            refused = rejected(admin)
            assert eventually(lambda: rejected(admin) > refused + 10)
        # Then they wait until the reads succeed again
        backend.update("m", finish(1))
        results = [call.result(PATIENT / 1000) for call in calls]
    states, completed = results if way == "sync" else results[0]
    assert (states, completed) == ([State.WORKING, State.COMPLETED], True)


def rejected(client: redis.Redis) -> int:
    """Return the number of refused reads."""
    found = client.info("commandstats").get("cmdstat_hgetall")
    return 0 if found is None else int(found["rejected_calls"])


def test_a_full_server_refuses_updates_and_answers_reads(admin: redis.Redis, backend: RedisBackend) -> None:
    # Given a server whose memory is full
    backend.update("m", start(1))
    admin.config_set("maxmemory", 1)
    try:
        # When an update is sent
        # Then the update raises an error, and reads succeed
        with pytest.raises(BackendError, match="OOM"):
            backend.update("m", write(1, 2))
        with pytest.raises(BackendError, match="OOM"):
            backend.update_many([("m", write(1, 2))])
        assert backend.read("m") is not None
    finally:
        admin.config_set("maxmemory", 0)
    assert backend.update("m", write(1, 2)) is Outcome.APPLIED


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    with started(RedisCluster()) as cluster:
        yield cluster


def test_refusals_of_a_cluster_raise(cluster: RedisCluster) -> None:
    # Given messages on all nodes of a cluster
    with closing(RedisBackend(cluster_nodes=cluster.addresses, timeout=1000)) as backend:
        ids = ["m", *map(str, range(100))]
        answered(lambda: backend.update_many([(message_id, start(1)) for message_id in ids]))
        # When the user may read on no node
        clients = [cluster.client(number) for number in range(3)]
        command = forbidden("hgetall", "hmget", "evalsha")
        with closing(clients[0]), closing(clients[1]), closing(clients[2]):
            with command(clients[0]), command(clients[1]), command(clients[2]):
                # Then each call raises the error of a node, unless a reply was late
                calls = look(backend, "m")
                # A call with many updates returns which ones are unavailable.
                assert set(calls.pop("update, many")()) == {Outcome.UNAVAILABLE}
                assert calls.pop("update, begun")() is Outcome.UNAVAILABLE

                def complaint(call: Callable[[], Any]) -> bool:
                    with pytest.raises(BackendError) as caught:
                        call()
                    return "NOPERM" in str(caught.value)

                for call in calls.values():
                    eventually(partial(complaint, call))
                assert asyncio.run(look_in_a_loop(backend, "m")) == []
            # And when the user may not read on one node, its messages have errors in their places
            with command(clients[1]):
                found = StatusRegistry.read_many(ids, backend=backend, return_errors=True)
                assert {type(one).__name__ for one in found} == {"Snapshot", "BackendError"}
            # And when a node lacks a slot, and so refuses all calls, its messages have errors, too
            clients[0].execute_command("CLUSTER DELSLOTS", 0)
            try:
                assert eventually(lambda: clients[0].cluster("INFO")["cluster_state"] == "fail")

                def refusals() -> list[str]:
                    found = StatusRegistry.read_many(ids, backend=backend, return_errors=True)
                    assert None not in found
                    return [str(one) for one in found if isinstance(one, BackendError)]

                assert eventually(
                    lambda: 0 < len(refused := refusals()) < len(ids) and all("CLUSTERDOWN" in one for one in refused)
                )
            finally:
                clients[0].execute_command("CLUSTER ADDSLOTS", 0)
            assert eventually(lambda: clients[0].cluster("INFO")["cluster_state"] == "ok")
            snapshots = answered(lambda: StatusRegistry.read_many(ids, backend=backend))
            assert all(found is not None and found.working for found in snapshots)
