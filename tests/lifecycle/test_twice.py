"""One message that is enqueued twice, so that two workers run it at once: readers see the newer run."""

from __future__ import annotations

from queue import SimpleQueue
from threading import Event
from uuid import uuid4

import dramatiq
import pytest
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Retries

from dramatiq_status import StatusMiddleware, StatusRegistry, current_status
from dramatiq_status.backends import RedisBackend
from dramatiq_status.update import Kind

from ..recording import PATIENCE, RecordingBackend, eventually, make_broker, working
from ..servers import RedisServer


@pytest.mark.parametrize("fails", [False, True], ids=["completed", "retried"])
def test_the_end_of_an_older_run_is_refused(redis_server: RedisServer, fails: bool) -> None:
    # Given a broker that gives each enqueue of a message options of its own
    backend = RedisBackend(url=redis_server.url, namespace=f"s-{uuid4()}", timeout=20_000)
    retries = Retries(min_backoff=3_600_000, max_backoff=3_600_000)
    broker = RedisBroker(url=redis_server.url, namespace=f"b-{uuid4()}", middleware=[retries])
    broker.add_middleware(StatusMiddleware(backend=backend))
    begun: SimpleQueue[Event] = SimpleQueue()

    @dramatiq.actor(broker=broker)
    def work(fails: bool) -> None:
        end = Event()
        begun.put(end)
        assert end.wait(PATIENCE)
        current_status()["ended"] = not fails
        if fails:
            raise RuntimeError("It does not work.")

    message = work.message(fails)
    broker.enqueue(message)
    with working(broker):
        older = begun.get(timeout=PATIENCE)
        # When it is enqueued again, runs a second time, and the first run ends
        broker.enqueue(message)
        newer = begun.get(timeout=PATIENCE)
        older.set()
        if fails:
            eventually(lambda: broker.client.hlen(f"{broker.namespace}:default.DQ.msgs"))
        else:
            eventually(lambda: broker.client.hlen(f"{broker.namespace}:default.msgs") == 1)
        # Then the status is that of the newer run, whose writes are stored
        snapshot = StatusRegistry.read(message, backend=backend)
        assert snapshot is not None and snapshot.working and "ended" not in snapshot
        newer.set()
        if not fails:
            assert StatusRegistry.wait(message, backend=backend, timeout=20_000).completed
        else:
            assert eventually(lambda: StatusRegistry.get(message, backend=backend).get("ended") is False)
            assert eventually(lambda: StatusRegistry.get(message, backend=backend).queued)
    broker.close()
    backend.close()


def test_a_delayed_message_that_a_worker_holds_twice_is_enqueued_once() -> None:
    # Given a delayed message, which the broker delivers twice to one worker
    backend = RecordingBackend()
    broker = make_broker(backend)
    runs: SimpleQueue[None] = SimpleQueue()

    @dramatiq.actor(broker=broker)
    def work() -> None:
        runs.put(None)

    copy = broker.enqueue(work.message(), delay=50)
    broker.queues[copy.queue_name].put(copy.encode())
    # When it is due
    with working(broker):
        for _ in range(2):
            runs.get(timeout=PATIENCE)
    # Then neither copy counts as another enqueue, which would reset the status
    assert [update.enqueue_id.generation for update in backend.updates(copy.message_id, Kind.ENQUEUE)] == [1]
