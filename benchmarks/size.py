"""The size of a job in bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import dramatiq
import pymemcache
import redis
from dramatiq.brokers.stub import StubBroker
from dramatiq.worker import Worker

from dramatiq_status import StatusMiddleware, StatusRegistry, current_status
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends.memcached import MemcachedBackend
from dramatiq_status.backends.redis import RedisBackend
from tests.servers import MemcachedServer, RedisServer

from .common import Options, Table


def run(options: Options) -> Iterator[Table]:
    rows = [["store", "while it runs", "at its end", "how it is kept", "goal (stretch)"]]
    with RedisServer() as redis_server, MemcachedServer() as memcached_server:
        client = redis.Redis(port=redis_server.port)

        def in_redis(key: str) -> int:
            return int(client.memory_usage(key, samples=0))

        during, after, key = measure(RedisBackend(url=redis_server.url), in_redis)
        kept = client.object("encoding", key).decode()
        rows.append(["Redis (MEMORY USAGE)", str(during), str(after), kept, "<= 300 (220)"])

        items = pymemcache.Client(memcached_server.address)
        during, after, _ = measure(
            MemcachedBackend(servers=memcached_server.address), lambda key: len(key) + len(items.get(key))
        )
        rows.append(["memcached (key and value)", str(during), str(after), "one item", ""])
    yield Table("Bytes a job: total, progress and one short field of the user's", rows)


def measure(backend: StatusBackend, size_of: Callable[[str], int]) -> tuple[int, int, str]:
    """Run a job, and return its bytes while it runs, its bytes at its end, and its key."""
    broker = StubBroker()
    broker.add_middleware(StatusMiddleware(backend=backend))
    broker.emit_after("process_boot")
    sizes = []

    @dramatiq.actor(broker=broker)
    def import_rows(key_prefix: str) -> None:
        status = current_status()
        status.update(total=1000, progress=500, step="reading")
        status.flush()
        sizes.append(size_of(key_prefix + status.message_id))

    worker = Worker(broker, worker_threads=1, worker_timeout=100)
    worker.start()
    try:
        message = import_rows.send("dramatiq-status:")
        broker.join(message.queue_name)
        StatusRegistry.wait(message, backend=backend)
    finally:
        worker.stop()
        broker.close()
    key = "dramatiq-status:" + message.message_id
    return sizes[0], size_of(key), key
