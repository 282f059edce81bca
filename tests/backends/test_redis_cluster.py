"""Redis Cluster: three nodes, and slots that move."""

from __future__ import annotations

import gc
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import Any
from uuid import uuid4

import dramatiq
import pytest
import redis

from dramatiq_status import StatusRegistry, current_progress, current_status
from dramatiq_status.backend import Query, StatusBackend, Subscription
from dramatiq_status.backends.redis import RedisBackend, cluster
from dramatiq_status.backends.redis.keys import SHARDS, SLOTS, TAGS, shard_of, slot_of
from dramatiq_status.errors import BackendError, NotSupported
from dramatiq_status.record import COMPLETED, FAILED, VERSION
from dramatiq_status.testing.conformance import (
    BackendConformance,
    enqueue,
    finish,
    fold,
    heartbeat,
    outside,
    pages_of,
    start,
    timeless,
    together,
    write,
)
from dramatiq_status.update import Kind, Outcome, Update

from ..recording import eventually, make_broker, raised_by, run
from ..servers import RedisCluster, free_port, open_sockets
from .redis_hooks import RedisHooks

#: Time-out in milliseconds that no test reaches by chance, even on a busy machine.
PATIENT = 20_000

#: Time in milliseconds that is longer than any test.
NEVER = 3_600_000

#: Cases: the updates before, the update, and its outcome.  There is one for each kind of update.
CHANGES: dict[str, tuple[list[Update], Update, Outcome]] = {
    "enqueue": ([], enqueue(step="1"), Outcome.APPLIED),
    "late enqueue": ([start(1)], enqueue(step="1"), Outcome.LATE),
    "late enqueue, a queue": ([start(1)], enqueue(Q='"low"'), Outcome.LATE),
    "requeue": ([start(1)], enqueue(generation=2), Outcome.APPLIED),
    "enqueue with another origin": ([start(1, step="1"), finish(1)], enqueue(origin=8, other="1"), Outcome.APPLIED),
    "start": ([enqueue()], start(1), Outcome.APPLIED),
    "start of another origin": ([enqueue(step="1")], start(1, origin=8), Outcome.APPLIED),
    "write": ([start(1)], write(1, 2, increment=2, step="1"), Outcome.APPLIED),
    "whole write of the unknown": ([], write(1, 2, create=True), Outcome.APPLIED),
    "whole write, another actor": ([start(1, a='"other"')], write(1, 2, create=True), Outcome.APPLIED),
    "write of the unknown": ([], write(1, 2), Outcome.MISSING),
    "end": ([start(1)], finish(1), Outcome.APPLIED),
    "outside": ([start(1)], outside(increment=2), Outcome.APPLIED),
    "outside, an end": ([start(1)], outside(state=FAILED, F="6"), Outcome.APPLIED),
    "heartbeat": ([start(1)], heartbeat(1), Outcome.APPLIED),
}


@pytest.fixture
def client(redis_cluster: RedisCluster) -> Iterator[redis.RedisCluster]:
    """Yield a client of an empty cluster."""
    redis_cluster.reset()
    (host, port), *_ = redis_cluster.addresses
    client = redis.RedisCluster(host, port, decode_responses=True)
    yield client
    client.close()


@pytest.fixture
def backend(client: redis.RedisCluster) -> Iterator[RedisBackend]:
    backend = RedisBackend(client=client, timeout=PATIENT)
    yield backend
    backend.close()


class TestRedisCluster(RedisHooks, BackendConformance):
    @pytest.fixture
    def backend(self, backend: RedisBackend) -> RedisBackend:
        return backend

    @pytest.fixture
    def make_backend(
        self, client: redis.RedisCluster, redis_cluster: RedisCluster
    ) -> Iterator[Callable[..., StatusBackend]]:
        made: list[RedisBackend] = []

        def make(**parameters: Any) -> StatusBackend:
            made.append(RedisBackend(cluster_nodes=redis_cluster.addresses, timeout=PATIENT, **parameters))
            return made[-1]

        yield make
        for backend in made:
            backend.close()

    def test_earlier_changes_are_not_received(
        self, backend: StatusBackend, subscription: Subscription, message_id: str
    ) -> None:
        # Given a message that has changed before the subscription
        record = backend.read(message_id)
        assert record is not None
        # When the message does not change any more
        found = subscription.wait(0.05)
        # Then the subscription receives no later version: nodes pass changes on to each other over their bus, where an
        # earlier one may arrive after the subscription has begun
        assert all(name == message_id and 0 < version <= int(record[VERSION]) for name, version in found.items())

    @pytest.fixture
    def outage(self, redis_cluster: RedisCluster) -> Iterator[tuple[RedisCluster, RedisBackend]]:
        redis_cluster.reset()
        backend = RedisBackend(cluster_nodes=redis_cluster.addresses, timeout=300)
        yield redis_cluster, backend
        backend.close()
        redis_cluster.resume()

    def test_a_backend_that_is_gone_leaves_no_connection_open(self, redis_cluster: RedisCluster) -> None:
        redis_cluster.reset()
        # Given a backend with connections to all nodes
        backend = RedisBackend(cluster_nodes=redis_cluster.addresses, timeout=PATIENT)
        backend.read_many([str(n) for n in range(200)])
        nodes = backend.transport._map.nodes.values()
        used = open_sockets(*(link._connection._sock.fileno() for node in nodes for link in node._idle))
        assert len(used) == 3
        # When the last reference to the backend is gone
        del backend, nodes
        gc.collect()
        # Then its connections are closed
        assert not used & open_sockets()

    # Shards

    def test_the_shard_of_a_message_never_changes(self) -> None:
        # Given message ids, one of them not ASCII
        ids = ("0", "message", "žluťoučký kůň", "00000000-0000-4000-8000-000000000000")
        # When their shards are computed
        # Then they have not changed since the first version
        assert [shard_of(message_id) for message_id in ids] == [33, 63, 28, 23]

    def test_each_shard_has_its_own_part_of_the_slots(self) -> None:
        # Given the hash tags of the shards
        # When their slots are counted by 64ths
        parts = [slot_of(tag) * SHARDS // SLOTS for tag in TAGS]
        # Then each 64th has one slot
        assert parts == list(range(SHARDS))

    def test_all_keys_of_a_message_share_a_slot(self, backend: RedisBackend, client: redis.RedisCluster) -> None:
        # Given messages whose ids and names have braces of their own
        for message_id in ("{a}b", "}{", "plain"):
            client.flushall(target_nodes=client.ALL_NODES)
            backend.update(message_id, enqueue(a='"{b}"', Q='"{c}"'))
            # When the slots of all keys are computed
            keys = client.keys("*", target_nodes=client.ALL_NODES)
            # Then all keys have the slot that the backend computes
            assert {client.keyslot(key) for key in keys} == {slot_of(TAGS[shard_of(message_id)])}
            assert len(keys) == 3

    # Slots that move

    @pytest.mark.parametrize("moved", ["nothing", "the record", "the index", "all"])
    @pytest.mark.parametrize("name", CHANGES)
    def test_an_update_while_its_slot_moves(
        self, redis_cluster: RedisCluster, backend: RedisBackend, message_id: str, name: str, moved: str
    ) -> None:
        # Given a record, and a slot that is moving with all, some or none of its keys
        given, update, expected = CHANGES[name]
        outcomes = [backend.update(message_id, with_actor(one)) for one in given]
        move = Move(redis_cluster, message_id)
        if moved in ("the record", "all"):
            move.keys(backend.keys.key_of(message_id))
        if moved in ("the index", "all"):
            move.keys(*move.index())
        # When an update is sent
        outcome = backend.update(message_id, with_actor(update))
        # Then the outcome and the record are those of `apply`
        now = fold([with_actor(one) for one in (*given, update)])
        assert (outcome, timeless(backend.read(message_id))) == (expected, timeless(now))
        # And when the move is over, the record is still that of `apply`, and the message is listed in its state
        move.end()
        assert timeless(backend.read(message_id)) == timeless(now) and set(outcomes) <= {Outcome.APPLIED}
        state = None if now is None else int(now["s"])
        # Count before the first list, because a list removes outdated entries from the index.
        counted = [backend.count(Query(number, "actor")) for number in range(4)]
        assert counted == [int(number == state) for number in range(4)]
        listed = [
            [one.message_id for one in backend.find(Query(state, "actor"), limit=50, after=None)] for state in range(4)
        ]
        assert listed == [[message_id] if number == state else [] for number in range(4)]

    def test_two_processes_list_a_message_while_its_slot_moves(
        self,
        redis_cluster: RedisCluster,
        backend: RedisBackend,
        client: redis.RedisCluster,
        message_id: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        # Given a slot that is moving, and a producer that has read a state in order to list it
        Move(redis_cluster, message_id)
        run = backend.transport.run
        runs = itertools.count()

        def run_slowly(errands: Any) -> Any:
            done = run(errands)
            if next(runs) == 1:
                # When a worker starts the message and lists it before the producer does
                with closing(RedisBackend(client=client, timeout=PATIENT)) as worker:
                    assert worker.update(message_id, start(1, a='"actor"')) is Outcome.APPLIED
            return done

        monkeypatch.setattr(backend.transport, "run", run_slowly)
        assert backend.update(message_id, enqueue(a='"actor"')) is Outcome.APPLIED
        # Then the message is listed in its state
        slot = slot_of(TAGS[shard_of(message_id)])
        redis_cluster.end_move(slot, (redis_cluster.owner(slot) + 1) % 3)
        assert [backend.count(Query(state, "actor")) for state in range(4)] == [0, 1, 0, 0]
        assert [one.message_id for one in backend.find(Query(actor_name="actor"), limit=50, after=None)] == [message_id]

    def test_a_delete_while_its_slot_moves(
        self, redis_cluster: RedisCluster, backend: RedisBackend, message_id: str
    ) -> None:
        for moved in (False, True):
            # Given a record whose slot is moving
            backend.update(message_id, start(1, a='"actor"'))
            move = Move(redis_cluster, message_id)
            if moved:
                move.keys(backend.keys.key_of(message_id))
            # When it is deleted
            # Then it is unknown, also after the move
            assert (backend.delete(message_id), backend.delete(message_id)) == (True, False)
            move.end()
            assert backend.read(message_id) is None
            assert backend.find(Query(actor_name="actor"), limit=50, after=None) == []

    def test_each_update_of_a_half_moved_slot_is_stored_once(
        self, redis_cluster: RedisCluster, backend: RedisBackend
    ) -> None:
        # Given messages of one shard, of which every other one was moved
        ids = of_one_shard(20)
        backend.update_many([(message_id, start(1, mark=f'"{message_id}"')) for message_id in ids])
        new = of_one_shard(25)[20:]
        move = Move(redis_cluster, ids[0])
        move.keys(*[backend.keys.key_of(message_id) for message_id in ids[::2]])
        # When all messages, and new ones, get two updates each
        updates = [(message_id, write(1, sequence, increment=1)) for sequence in (2, 3) for message_id in ids]
        updates += [(message_id, start(1, p="2", mark=f'"{message_id}"')) for message_id in new]
        outcomes = backend.update_many(updates)
        # Then each update is stored once
        assert outcomes == [Outcome.APPLIED] * 45
        for _ in range(2):
            found = backend.read_many([*ids, *new])
            assert [(record["p"], record[":mark"]) for record in found if record] == [
                ("2", f'"{message_id}"') for message_id in [*ids, *new]
            ]
            move.end()

    def test_a_list_while_a_slot_moves(
        self, redis_cluster: RedisCluster, backend: RedisBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given messages of one shard that do not change, some of them finished
        ids = of_one_shard(30)
        backend.update_many([(message_id, start(1, a='"actor"')) for message_id in ids])
        backend.update_many([(message_id, finish(1)) for message_id in ids[20:]])
        query = Query(actor_name="actor")
        with closing(RedisBackend(cluster_nodes=redis_cluster.addresses, timeout=500)) as hasty:
            assert backend.count(query) == 30
            move = Move(redis_cluster, ids[0])
            for keys in (
                [],
                [backend.keys.key_of(message_id) for message_id in ids[::2]],
                move.index()[:1],
                move.index()[1:],
            ):
                # When it is listed and counted while its keys go one after another
                move.keys(*keys)
                for name, arguments in (("find", {"limit": 50, "after": None}), ("count", {})):
                    # Then each call raises an error in place of an incomplete result. (On a busy machine, the
                    # redirection or the first reply may take all the time.)
                    with pytest.raises(BackendError, match=r"A slot with statuses is moving|ASK |no answer within"):
                        getattr(hasty, name)(query, **arguments)
                    # The time may be over after the first reply
                    with monkeypatch.context() as patch:
                        patch.setattr(cluster, "_PAUSES", (60.0, 60.0))
                        with pytest.raises(BackendError, match="A slot with statuses is moving"):
                            getattr(backend, name)(query, **arguments)
            # And a reader with a longer time-out gets the complete list when the move is over
            with ThreadPoolExecutor() as pool:
                count, page = pool.submit(backend.count, query), pool.submit(backend.find, query, limit=50, after=None)
                move.end()
                assert (count.result(), sorted(one.message_id for one in page.result())) == (30, sorted(ids))
            assert backend.count(Query(COMPLETED)) == 10

    def test_lists_are_complete_while_slots_move(self, redis_cluster: RedisCluster, backend: RedisBackend) -> None:
        # Given many messages that do not change
        ids = [uuid4().hex for _ in range(500)]
        backend.update_many([(message_id, start(1, a='"actor"')) for message_id in ids])
        backend.update_many([(message_id, finish(1)) for message_id in ids[::3]])
        query, counts, pages = Query(actor_name="actor"), set(), []
        # When they are counted and listed, page by page, while slots move
        with moving_slots(redis_cluster):
            for _ in range(150):
                counts.add(backend.count(query))
            for _ in range(3):
                counts |= {backend.count(query), backend.count(Query(COMPLETED)) + 333}
                pages.append([found.message_id for page in pages_of(backend, query) for found in page])
        # Then no message is missing or shown twice
        assert counts == {500} and [sorted(found) for found in pages] == [sorted(ids)] * 3

    def test_a_slot_that_has_moved(self, redis_cluster: RedisCluster, backend: RedisBackend, message_id: str) -> None:
        # Given a backend that has found the node of a message
        backend.update(message_id, start(1))
        # When the slot has moved to another node
        slot = slot_of(TAGS[shard_of(message_id)])
        redis_cluster.move(slot, (redis_cluster.owner(slot) + 1) % 3)
        # Then calls find the message there, including an increment that must not be sent twice
        assert backend.update(message_id, outside(increment=1)) is Outcome.APPLIED
        record = backend.read(message_id)
        assert record is not None and record["p"] == "1"

    def test_no_update_is_lost_while_slots_move(self, redis_cluster: RedisCluster, backend: RedisBackend) -> None:
        # Given messages in all shards, and slots that move again and again
        ids = [uuid4().hex for _ in range(200)]
        outcomes = backend.update_many([(message_id, enqueue(a='"actor"')) for message_id in ids])

        def work(mine: list[str]) -> None:
            for place in range(1, 101):
                update = start(1) if place == 1 else write(1, place, increment=1)
                outcomes.extend(backend.update_many([(message_id, update) for message_id in mine]))
                outcomes.append(backend.update(random.choice(mine), outside(increment=1000)))
                outcomes.append(backend.begin_update(mine[place % len(mine)], outside(increment=0.5))())
            outcomes.extend(backend.update_many([(message_id, finish(1, 101)) for message_id in mine]))

        # When two threads write to them
        with moving_slots(redis_cluster):
            together(lambda: work(ids[::2]), lambda: work(ids[1::2]))
        # Then each update is stored once
        assert set(outcomes) == {Outcome.APPLIED}
        sums = [float(record["p"]) for record in backend.read_many(ids) if record and record["s"] == "2"]
        assert sum(sums) == 200 * 99 + 200 * 1000 + 200 * 0.5
        # And all messages are listed
        listed = backend.find(Query(COMPLETED, "actor"), limit=1000, after=None)
        assert sorted(one.message_id for one in listed) == sorted(ids)

    def test_jobs_while_slots_move(self, redis_cluster: RedisCluster, backend: RedisBackend) -> None:
        # Given a worker, and slots that move all the while
        broker = make_broker(backend)

        @dramatiq.actor(broker=broker, max_retries=1)
        def work(n: int) -> None:
            for _ in range(50):
                current_progress().increment()
            current_status()["n"] = n
            if n % 5 == 0 and current_status().read().attempts == 1:
                raise ValueError("once more")

        messages = [work.send_with_options(args=(n,), status={"user_id": n}) for n in range(300)]
        # When jobs run, some of them twice
        with moving_slots(redis_cluster):
            run(broker, threads=4)
        # Then each status has the right number of runs and the right end
        found = [s for s in StatusRegistry.read_many(messages, backend=backend) if s is not None and s.completed]
        assert [(s["n"], s["user_id"], s["progress"], s.attempts) for s in found] == [
            (n, n, 50, 2 if n % 5 == 0 else 1) for n in range(300)
        ]
        # And all messages are listed
        for state, number in (("queued", 0), ("working", 0), ("completed", 300), ("failed", 0)):
            assert len(StatusRegistry.list(state=state, actor_name="work", limit=1000, backend=backend)) == number

    def test_a_watcher_while_its_slot_moves(
        self, redis_cluster: RedisCluster, backend: RedisBackend, message_id: str
    ) -> None:
        # Given a watcher that polls only once an hour
        backend.recheck_interval, backend.poll_interval = NEVER, (NEVER, NEVER)
        backend.update(message_id, start(1))
        seen = StatusRegistry.watch(message_id, backend=backend, timeout=PATIENT)
        assert next(seen).working
        # When its slot moves, and the message changes during the move and after it
        move = Move(redis_cluster, message_id)
        backend.update(message_id, write(1, 2, step="2"))
        assert next(seen)["step"] == 2
        move.keys(backend.keys.key_of(message_id))
        backend.update(message_id, write(1, 3, step="3"))
        assert next(seen)["step"] == 3
        move.end()
        backend.update(message_id, finish(1, 4))
        # Then the watcher receives all changes
        assert [snapshot.state for snapshot in seen] == ["completed"]

    # Nodes that are gone

    def test_calls_while_one_node_is_down(self, redis_cluster: RedisCluster, backend: RedisBackend) -> None:
        # Given a cluster that works without one of its nodes
        ids = [uuid4().hex for _ in range(100)]
        backend.update_many([(message_id, start(1)) for message_id in ids])
        gone = [redis_cluster.owner(slot_of(TAGS[shard_of(message_id)])) == 1 for message_id in ids]
        assert any(gone) and not all(gone)
        for number in range(3):
            with redis_cluster.client(number) as node:
                node.config_set("cluster-require-full-coverage", "no")
        redis_cluster.nodes[1].kill()
        try:
            # When all messages are written to and read
            outcomes = backend.update_many([(message_id, write(1, 2, increment=1)) for message_id in ids])
            found = backend.read_many(ids)
            # Then messages on the other nodes are stored and read, and those on this node have errors in their places
            assert outcomes == [Outcome.UNAVAILABLE if lost else Outcome.APPLIED for lost in gone]
            assert [isinstance(record, BackendError) for record in found] == gone and None not in found
            # And a read of one message on the missing node raises this error
            lost = ids[gone.index(True)]
            assert backend.update_many([(lost, write(1, 2))]) == [Outcome.UNAVAILABLE]
            assert backend.begin_update(lost, enqueue())() is Outcome.UNAVAILABLE
            for ask in (
                lambda: backend.update(lost, write(1, 2)),
                lambda: backend.read(lost),
                lambda: backend.read_many([lost, lost]),
                lambda: backend.snapshot(lost),
                lambda: StatusRegistry.get(lost, backend=backend).to_json(),
                lambda: StatusRegistry.read_many(ids, backend=backend),
                lambda: StatusRegistry.wait(lost, backend=backend),
            ):
                with pytest.raises(BackendError):
                    ask()
            # And a batch counts it as unavailable
            batch = StatusRegistry.batch(ids, backend=backend).read()
            assert batch.unavailable == tuple(itertools.compress(ids, gone)) and not batch.finished
            assert (batch.counts["working"], batch.counts["unavailable"]) == (gone.count(False), gone.count(True))
            assert (batch.missing, batch.counts["unknown"]) == ((), 0)
            # And a list raises BackendError instead of leaving these messages out
            for call in (lambda: backend.find(Query(), limit=50, after=None), lambda: backend.count(Query())):
                with pytest.raises(BackendError):
                    call()
        finally:
            redis_cluster.start()
        # And when the node is back, its messages can be updated
        assert eventually(lambda: backend.update_many([(lost, enqueue())]) == [Outcome.APPLIED])

    def test_a_cluster_that_is_down_fails_whole_calls(self, redis_cluster: RedisCluster, backend: RedisBackend) -> None:
        # Given a cluster that stops when one of its nodes dies, and messages on the other nodes
        for number in range(3):
            with redis_cluster.client(number) as node:
                node.config_set("cluster-require-full-coverage", "yes")
        ids = [uuid4().hex for _ in range(30)]
        backend.update_many([(message_id, start(1)) for message_id in ids])
        alive = [message_id for message_id in ids if redis_cluster.owner(slot_of(TAGS[shard_of(message_id)])) != 1]
        redis_cluster.nodes[1].kill()
        try:
            for number in (0, 2):
                with redis_cluster.client(number) as node:
                    assert eventually(lambda: node.execute_command("CLUSTER INFO")["cluster_state"] == "fail")

            # When messages on these nodes are updated
            # Then the whole call fails, so that the writer begins an outage, although the nodes answer
            def fails() -> bool:
                with closing(RedisBackend(cluster_nodes=redis_cluster.addresses, timeout=1000)) as hurried:
                    error = raised_by(lambda: hurried.update_many([(one, write(1, 2)) for one in alive]))
                return isinstance(error, BackendError) and "CLUSTERDOWN" in str(error)

            # (It may end otherwise if a reply is late.)
            eventually(fails)
        finally:
            redis_cluster.start()

    def test_outcomes_of_updates_that_were_carried_out_before_all_nodes_failed(
        self, redis_cluster: RedisCluster, backend: RedisBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given messages on all nodes, one of which has lost the script and needs a second request
        ids = [uuid4().hex for _ in range(60)]
        backend.update_many([(message_id, start(1)) for message_id in ids])
        with redis_cluster.client(1) as node:
            node.script_flush()
        there = [redis_cluster.owner(slot_of(TAGS[shard_of(message_id)])) == 1 for message_id in ids]
        any_answers = iter([True, False])
        monkeypatch.setattr(backend.transport._map, "renew", lambda deadline: next(any_answers))
        # When no node answers any more
        outcomes = backend.update_many([(message_id, outside(increment=1)) for message_id in ids])
        # Then the outcomes of the updates that were carried out are returned, and these updates are not sent again
        assert outcomes == [Outcome.UNAVAILABLE if lost else Outcome.APPLIED for lost in there]

    def test_a_call_whose_time_is_over_does_not_take_all_nodes_for_down(self, backend: RedisBackend) -> None:
        # Given a cluster that answers, and a map that is out of date
        assert backend.read("m") is None
        cluster_map = backend.transport._map
        cluster_map.stale, cluster_map._mapped = True, float("-inf")
        # When a call needs a new map after its deadline
        # Then it uses the present map
        assert cluster_map.renew(time.monotonic() - 1)

    def test_nodes_that_another_thread_finds(self, backend: RedisBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        # Given a map to which another thread adds a node whenever a node's circuit breaker is used
        cluster_map, ports = backend.transport._map, itertools.count(1)

        class Breaker:
            def __getattr__(self, name: str) -> Any:
                cluster_map._node(("127.0.0.1", next(ports)))
                return (lambda: None) if name == "succeeded" else True

            def __setattr__(self, name: str, value: Any) -> None:
                cluster_map._node(("127.0.0.1", next(ports)))

        for node in list(cluster_map.nodes.values()):
            monkeypatch.setattr(node, "breaker", Breaker())
        # When a call goes through the nodes
        # Then it goes through those that the map had before
        assert cluster_map.is_down
        cluster_map.answered(cluster_map.first[0])

    def test_the_error_of_a_call_that_reached_no_node_has_a_text(
        self, backend: RedisBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given a call whose time is over before all nodes were queried for the map
        monkeypatch.setattr(backend.transport._map, "renew", lambda deadline: False)
        # When it fails for a node that was not queried
        # Then the error has a text
        with pytest.raises(BackendError, match="no node of the cluster has answered"):
            backend.read("m")

    def test_a_user_who_may_not_load_scripts(self, redis_cluster: RedisCluster, client: redis.RedisCluster) -> None:
        with ExitStack() as stack:
            # Given a user without the right to a command that the backend needs
            for number in range(3):
                node = stack.enter_context(redis_cluster.client(number))
                node.execute_command("ACL", "SETUSER", "poor", "on", "nopass", "~*", "&*", "+@all", "-script")
                stack.callback(node.acl_deluser, "poor")
            backend = RedisBackend(
                cluster_nodes=redis_cluster.addresses, username="poor", password="x", timeout=PATIENT
            )
            stack.callback(backend.close)
            # When an update is sent
            # Then the call raises a BackendError that names the reason
            with pytest.raises(BackendError, match="script"):
                backend.update("m", enqueue())

    # Lists

    def test_a_list_whose_newest_messages_are_all_in_one_shard(self, backend: RedisBackend) -> None:
        # Given many messages of one shard, and some older ones elsewhere
        older, ids = [uuid4().hex for _ in range(50)], of_one_shard(120)
        backend.update_many([(message_id, enqueue(a='"actor"')) for message_id in older])
        for message_id in ids:
            backend.update(message_id, enqueue(a='"actor"'))
        for limit in (10, 50, 100, 119, 120):
            # When they are listed, page by page
            pages = [[one.message_id for one in page] for page in pages_of(backend, Query(actor_name="actor"), limit)]
            # Then the pages are the pieces of the whole list
            whole = [message_id for page in pages for message_id in page]
            assert whole[:120] == ids[::-1] and sorted(whole[120:]) == sorted(older)
            assert all(len(page) == limit for page in pages[:-1])

    def test_pages_are_pieces_of_the_whole_list(self, backend: RedisBackend, client: redis.RedisCluster) -> None:
        # Given many messages, in all shards
        ids = [uuid4().hex for _ in range(5000)]
        for first in range(0, len(ids), 500):
            updates = [(message_id, enqueue(a=f'"actor{first % 3}"')) for message_id in ids[first : first + 500]]
            backend.update_many(updates)
        whole = newest_of(client)
        assert sorted(whole) == sorted(ids)
        for limit in (50, 333, 1000):
            # When they are listed, page by page
            pages = [[one.message_id for one in page] for page in pages_of(backend, Query(), limit)]
            # Then they are the pieces of the whole list
            assert pages == [whole[first : first + limit] for first in range(0, 5000, limit)]
        assert backend.count(Query()) == 5000

    def test_a_cluster_without_an_index(self, redis_cluster: RedisCluster, client: redis.RedisCluster) -> None:
        # Given a backend without an index
        with closing(RedisBackend(client=client, timeout=PATIENT, max_listed=0)) as backend:
            # When a message is written
            backend.update("m", enqueue(a='"actor"'))
            # Then the store has only its record, and a list raises an error with the reason
            assert client.keys("*", target_nodes=client.ALL_NODES) == [backend.keys.key_of("m")]
            with pytest.raises(NotSupported, match="max_listed=0"):
                backend.find(Query(), limit=50, after=None)

    # Ways to get there

    def test_wrong_parameters_raise(self) -> None:
        # Given wrong addresses of nodes
        # When a backend is made
        # Then the error names what to do
        with pytest.raises(ValueError, match="cluster_nodes must not be empty"):
            RedisBackend(cluster_nodes=[])
        with pytest.raises(ValueError, match="db must be 0"):
            RedisBackend(cluster_nodes=[("127.0.0.1", 7000)], db=1)

    def test_one_address_is_enough(self, redis_cluster: RedisCluster, client: redis.RedisCluster) -> None:
        # Given the address of one node, and an address without a server
        addresses = [("127.0.0.1", free_port()), redis_cluster.addresses[2]]
        # When messages of all shards are written
        with closing(RedisBackend(cluster_nodes=addresses, timeout=PATIENT)) as backend:
            outcomes = backend.update_many([(uuid4().hex, enqueue()) for _ in range(300)])
        # Then they are stored, on all nodes
        assert set(outcomes) == {Outcome.APPLIED}
        for number in range(3):
            with redis_cluster.client(number) as node:
                assert node.dbsize() > 0

    def test_addresses_without_a_server_raise_an_error(self) -> None:
        # Given addresses without a server
        with closing(RedisBackend(cluster_nodes=[("127.0.0.1", free_port())], timeout=300)) as backend:
            for call in (backend.read, lambda m: backend.update(m, enqueue()), backend.delete, backend.subscribe):
                # When a call is made
                # Then the call raises BackendError
                with pytest.raises(BackendError):
                    call("m")

    def test_valkeys_client_is_taken(self, redis_cluster: RedisCluster, client: redis.RedisCluster) -> None:
        # Given a cluster client of valkey-py
        valkey = pytest.importorskip("valkey")
        (host, port), *_ = redis_cluster.addresses
        taken = valkey.ValkeyCluster(host, port)
        with closing(RedisBackend(client=taken, timeout=PATIENT)) as backend:
            # When messages of all shards are written
            ids = [uuid4().hex for _ in range(100)]
            backend.update_many([(message_id, enqueue()) for message_id in ids])
            # Then they are read
            assert all(backend.read_many(ids))
        taken.close()


class Move:
    """A message's slot on its way to the next node."""

    def __init__(self, cluster: RedisCluster, message_id: str) -> None:
        self.cluster = cluster
        self.slot = slot_of(TAGS[shard_of(message_id)])
        self.source = cluster.owner(self.slot)
        self.target = (self.source + 1) % 3
        cluster.begin_move(self.slot, self.target)

    def keys(self, *keys: str) -> None:
        """Move these keys."""
        if keys:
            self.cluster.move_keys(self.slot, self.target, *keys)

    def index(self) -> list[str]:
        """Return the keys of the index that are still on the first node."""
        with self.cluster.client(self.source) as client:
            found = client.execute_command("CLUSTER GETKEYSINSLOT", self.slot, 1000)
        return [key for key in found if " index:" in key]

    def end(self) -> None:
        """Move all that is left; a second time does nothing."""
        if self.cluster.owner(self.slot) != self.target:
            self.cluster.end_move(self.slot, self.target)


@contextmanager
def moving_slots(cluster: RedisCluster) -> Iterator[None]:
    """Move slots from node to node during the block, at least twenty."""
    enough = threading.Event()

    def move() -> None:
        for number, tag in enumerate(itertools.cycle(TAGS)):
            if enough.is_set() and number >= 20:
                return
            slot = slot_of(tag)
            cluster.move(slot, (cluster.owner(slot) + 1) % 3)

    with ThreadPoolExecutor() as pool:
        moves = pool.submit(move)
        try:
            yield
        finally:
            enough.set()
            moves.result()


def newest_of(client: redis.RedisCluster) -> list[str]:
    """Return the ids of all messages in the index, newest first."""
    found: list[tuple[float, str]] = []
    for key in client.keys("*index:*", target_nodes=client.ALL_NODES):
        if client.type(key) == "zset":
            found += [(timestamp, message_id) for message_id, timestamp in client.zrange(key, 0, -1, withscores=True)]
    return [message_id for _, message_id in sorted(found, reverse=True)]


def of_one_shard(number: int) -> list[str]:
    """Return the first message ids of one shard, always in the same order."""
    return list(itertools.islice((str(n) for n in itertools.count() if shard_of(str(n)) == 5), number))


def with_actor(update: Update) -> Update:
    """Return an update, with the name of an actor if it may create a record."""
    named = update.kind is Kind.ENQUEUE or update.start or update.create
    return update._replace(fields={"a": '"actor"', **update.fields}) if named else update
