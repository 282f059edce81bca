"""A store of many servers of which one does not answer: its messages are neither unknown nor missing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from uuid import uuid4

import pytest

from dramatiq_status import BackendError, Snapshot, State, StatusMissing, StatusRegistry, StatusTimeout, aio
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends import RedisBackend, StubBackend
from dramatiq_status.backends.redis.keys import TAGS, shard_of, slot_of
from dramatiq_status.record import Record
from dramatiq_status.rollup import BatchSnapshot
from dramatiq_status.testing.conformance import finish, start

from .aio.test_registry import begun_in_loop
from .recording import answered, begun, eventually
from .servers import RedisCluster

#: Time-outs that no test reaches by chance, in milliseconds and in seconds.
PATIENT, PATIENCE = 20_000, 20.0

#: Milliseconds after which watchers end, so that a test that fails does not wait for them forever.
FOREVER = 3 * PATIENT


class Halves(StubBackend):
    """A backend that simulates two servers in one dict.  The server of ids that begin with "b" can be switched off."""

    poll_interval = (1, 5)

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self._looks: list[str] = []
        self._looked = threading.Condition()

    def read_many(self, message_ids: Sequence[str]) -> list[Record | BackendError | None]:
        found: list[Record | BackendError | None] = [
            BackendError("b is away") if self.away and message_id.startswith("b") else record
            for message_id, record in zip(message_ids, super().read_many(message_ids))
        ]
        with self._looked:
            self._looks += message_ids
            self._looked.notify_all()
        if found and all(isinstance(one, BackendError) for one in found):
            raise found[0]  # type: ignore[misc]
        return found

    def wait_for_looks(self, *message_ids: str) -> None:
        """Wait until each message was read several times more, by all its watchers."""
        with self._looked:
            self._looks.clear()
            assert self._looked.wait_for(lambda: all(self._looks.count(one) > 6 for one in message_ids), PATIENCE)


@pytest.fixture
def halves() -> Halves:
    halves = Halves()
    for message_id in ("a1", "a2", "b1", "b2"):
        halves.update(message_id, start(1))
    return halves


class InThreads(StatusRegistry):
    """The registry of threads."""

    @staticmethod
    def wait_for_batch(ids: Sequence[str], *, backend: StatusBackend, **parameters: Any) -> BatchSnapshot:
        return StatusRegistry.batch(ids, backend=backend).wait(**parameters)

    @staticmethod
    def watch_batch(ids: Sequence[str], show: Callable[[BatchSnapshot], None], *, backend: StatusBackend) -> None:
        for found in StatusRegistry.batch(ids, backend=backend).watch(timeout=PATIENT):
            show(found)


class InALoop:
    """The registry of event loops, each call in a loop of its own."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **parameters: asyncio.run(getattr(aio.StatusRegistry, name)(*args, **parameters))

    @staticmethod
    def wait_for_batch(ids: Sequence[str], *, backend: StatusBackend, **parameters: Any) -> BatchSnapshot:
        async def wait() -> BatchSnapshot:
            return await aio.StatusRegistry.batch(ids, backend=backend).wait(**parameters)

        return asyncio.run(wait())

    @staticmethod
    def watch_batch(ids: Sequence[str], show: Callable[[BatchSnapshot], None], *, backend: StatusBackend) -> None:
        async def watch() -> None:
            async for found in aio.StatusRegistry.batch(ids, backend=backend).watch(timeout=PATIENT):
                show(found)

        asyncio.run(watch())


@pytest.fixture(params=[InThreads, InALoop])
def reader(request: pytest.FixtureRequest) -> Any:
    """Return a registry whose calls return what they find."""
    return request.param()


def test_reads_return_errors_for_an_unavailable_server(halves: Halves, reader: Any) -> None:
    # Given a server that does not answer
    halves.away = True
    # When messages of both servers are read
    found = reader.read_many(["a1", "b1", "a3"], backend=halves, return_errors=True)
    # Then messages of one have snapshots, those of the other have errors in their places, and unknown ones have None
    assert [type(one) for one in found] == [Snapshot, BackendError, type(None)]
    # And by default the error is raised
    for call in (
        lambda: reader.read_many(["a1", "b1"], backend=halves),
        lambda: reader.read_many(["b1"], backend=halves, return_errors=True),
        lambda: reader.read("b1", backend=halves),
        lambda: reader.wait("b1", backend=halves),
    ):
        with pytest.raises(BackendError, match="b is away"):
            call()
    assert reader.read_many(["a1", "a3"], backend=halves)[1] is None
    assert reader.read_many([], backend=halves) == []


def test_read_raises_a_returned_error(halves: Halves, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a backend that returns the error of a single message in place of raising it
    monkeypatch.setattr(halves, "read_many", lambda ids: [BackendError("away")] * len(ids))
    # When this message is read
    # Then the error is raised
    for call in (halves.read, halves.snapshot, lambda one: StatusRegistry.get(one, backend=halves).to_json()):
        with pytest.raises(BackendError, match="away"):
            call("b1")


def test_wait_continues_while_a_server_is_unavailable(halves: Halves, reader: Any) -> None:
    # Given a caller that waits for a message, and one that waits for two of which one is finished
    halves.update("a1", finish(1))
    with ThreadPoolExecutor() as pool:
        one = pool.submit(reader.wait, "b1", backend=halves, timeout=PATIENT, missing_timeout=1)
        all_ = pool.submit(reader.wait_for_batch, ["a1", "b1"], backend=halves, timeout=PATIENT, missing_timeout=1)
        halves.wait_for_looks("b1")
        # When the server does not answer for longer than a message may be missing
        halves.away = True
        halves.wait_for_looks("b1")
        # And comes back, with the message finished
        halves.update("b1", finish(1))
        assert not one.done() and not all_.done()
        halves.away = False
        # Then both calls return the final snapshot
        assert one.result(PATIENCE).completed and all_.result(PATIENCE).completed


def test_a_batch_is_watched_while_a_server_is_unavailable(halves: Halves, reader: Any) -> None:
    # Given a watcher of messages of both servers, one of which does not answer from the beginning
    halves.away = True
    seen: list[BatchSnapshot] = []

    def show(found: BatchSnapshot) -> None:
        seen.append(found)
        # When the messages of one server finish, and after the next snapshot those of the other
        if len(seen) == 1:
            halves.update_many([(message_id, finish(1)) for message_id in ("a1", "a2")])
        elif found.counts["completed"] == 2 and halves.away:
            halves.update_many([(message_id, finish(1)) for message_id in ("b1", "b2")])
            halves.away = False

    reader.watch_batch(["a1", "a2", "b1", "b2"], show, backend=halves)
    # Then the watcher receives all changes, with the unavailable messages as unavailable
    assert seen[0].unavailable == ("b1", "b2") and not any(found.missing for found in seen)
    assert not any(found.finished for found in seen[:-1])
    assert (seen[-1].completed, seen[-1].unavailable) == (True, ())


def test_wait_raises_after_its_timeout_while_a_server_is_unavailable(halves: Halves, reader: Any) -> None:
    # Given a server that never answers
    halves.away = True
    halves.update("a1", finish(1))
    # When a caller waits for messages of both, and for some of which one is missing
    # Then each wait ends by its time-out, and not earlier
    with pytest.raises(StatusTimeout):
        reader.wait_for_batch(["a1", "b1"], backend=halves, timeout=50, missing_timeout=1)
    with pytest.raises(StatusTimeout):
        reader.wait_for_batch(["a1", "b1", "a-unknown"], backend=halves, timeout=50, missing_timeout=1)
    # And a message that is missing on a server that answers raises StatusMissing
    with pytest.raises(StatusMissing):
        reader.wait_for_batch(["a1", "a-unknown"], backend=halves, timeout=None, missing_timeout=1)


# A cluster


def test_watchers_while_a_node_is_frozen(redis_cluster: RedisCluster) -> None:
    # Given watchers of single messages on all nodes, and of all of them together
    redis_cluster.reset()
    ids = [uuid4().hex for _ in range(30)]
    frozen = [message_id for message_id in ids if redis_cluster.owner(slot_of(TAGS[shard_of(message_id)])) == 1]
    others = sorted(set(ids) - set(frozen))
    assert frozen and others
    patience: Any = {"timeout": FOREVER, "missing_timeout": 300}

    async def follow(message_id: str) -> State:
        found, following = await begun_in_loop(
            lambda: aio.StatusRegistry.watch(message_id, backend=backend, **patience)
        )
        state = found.state
        async for found in following:
            state = found.state
        return state

    async def follow_all() -> list[Any]:
        whole = aio.StatusRegistry.batch(ids, backend=backend).wait(**patience)
        return await asyncio.gather(whole, *map(follow, ids))

    def watch(message_id: str) -> State:
        found, watching = begun(lambda: StatusRegistry.watch(message_id, backend=backend, **patience))
        return [found.state, *(later.state for later in watching)][-1]

    with (
        closing(RedisBackend(cluster_nodes=redis_cluster.addresses, timeout=1000)) as backend,
        ThreadPoolExecutor(40) as pool,
    ):
        answered(lambda: backend.update_many([(message_id, start(1)) for message_id in ids]))
        followed = pool.submit(lambda: asyncio.run(follow_all()))
        watched = [pool.submit(watch, message_id) for message_id in (*frozen[:4], *others[:4])]
        batch = StatusRegistry.batch(ids, backend=backend)
        waited = pool.submit(batch.wait, **patience)
        # Each watcher subscribes after its first read, so wait until all have subscribed.
        assert eventually(lambda: listeners(redis_cluster) >= len(watched) + 2)
        # When a node is frozen for several times as long as a message may be missing
        redis_cluster.nodes[1].pause()
        try:
            until = time.monotonic() + 5 * patience["missing_timeout"] / 1000
            while time.monotonic() < until:
                found = StatusRegistry.read_many(ids, backend=backend, return_errors=True)
                # Then its messages are unavailable, and no others are
                assert [isinstance(one, BackendError) for one in found] == [one in frozen for one in ids]
                assert set(batch.read().unavailable) == set(frozen)
                with pytest.raises(BackendError):
                    StatusRegistry.get(frozen[0], backend=backend).to_json()
                time.sleep(0.05)
        finally:
            redis_cluster.nodes[1].resume()
        # And when it continues, and all messages finish, each watch ends
        assert eventually(lambda: None not in backend.read_many(ids) and not batch.read().unavailable)
        assert eventually(lambda: backend.update_many([(one, finish(1)) for one in ids]) and batch.read().completed)
        whole, *states = followed.result(PATIENCE)
        assert whole.completed and states == [State.COMPLETED] * len(ids)
        assert [one.result(PATIENCE) for one in watched] == [State.COMPLETED] * len(watched)
        assert waited.result(PATIENCE).completed


def listeners(cluster: RedisCluster) -> int:
    """Return the number of subscribed connections."""
    number = 0
    for node in range(3):
        with cluster.client(node) as client:
            number += len(client.client_list(_type="pubsub"))
    return number
