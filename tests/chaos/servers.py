"""The stores and brokers of a run, and the faults that they can have."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

import pika
import redis

from ..servers import AT_ONCE, MemcachedServer, RabbitmqServer, RedisCluster, RedisSentinels, RedisServer, Server
from .plan import Fault
from .proxy import Proxy

#: Arguments of a Redis that keeps its data over a restart and a crash.  With "appendfsync no", the kernel has the data
#: before the client has the reply, so that only a crash of the host loses it.  With "appendfsync everysec", a killed
#: server loses up to two seconds while the disk is slow.
PERSISTENT: Final = ("--appendonly", "yes", "--appendfsync", "no")

#: Number of slots that one fault moves to other nodes.
MOVED_SLOTS: Final = 8


class Target(Protocol):
    """A store or a broker."""

    #: URL for clients.
    url: str

    def begin(self, fault: Fault) -> None:
        """Let a fault begin."""

    def end(self, fault: Fault) -> None:
        """Let a fault end."""

    def close(self) -> None:
        """End it forever."""


class Proxied:
    """Servers, each behind a proxy.

    Parameters:
      servers: The servers behind the proxies.
    """

    url = ""

    def __init__(self, servers: Sequence[Server]) -> None:
        self.servers = [server.start() for server in servers]
        self.proxies = [Proxy(server.port) for server in servers]
        # A fault may begin on a server while another one still lasts.
        self._locks = [threading.Lock() for _ in servers]

    def begin(self, fault: Fault) -> None:
        server, proxy = self.servers[fault.member], self.proxies[fault.member]
        if fault.kind == "cut":
            proxy.cut()
        elif fault.kind == "delay":
            proxy.delay = fault.amount
        else:
            with self._locks[fault.member]:
                _hurt(server, fault.kind)

    def end(self, fault: Fault) -> None:
        if fault.kind == "delay":
            self.proxies[fault.member].delay = 0.0
        elif fault.kind != "cut":
            with self._locks[fault.member]:
                _mend(self.servers[fault.member])

    def close(self) -> None:
        for proxy in self.proxies:
            proxy.close()
        for server in self.servers:
            server.close()


def _hurt(server: Server, kind: str) -> None:
    if kind == "kill":
        server.kill()
    elif kind == "restart":
        server.stop()
    elif server.running:
        server.pause()


def _mend(server: Server) -> None:
    server.resume()
    server.start()


class RedisTarget(Proxied):
    """A single Redis."""

    def __init__(self, *args: str) -> None:
        super().__init__([RedisServer(*args)])
        self.url = f"redis://127.0.0.1:{self.proxies[0].port}/0"

    def unfinished(self) -> int:
        """Return the number of messages that the broker still has in this Redis."""
        with redis.Redis(port=self.servers[0].port) as client:
            return sum(int(client.hlen(f"dramatiq:{name}.msgs")) for name in ("default", "default.DQ"))  # type: ignore[arg-type]


class RabbitmqTarget(Proxied):
    """A RabbitMQ."""

    def __init__(self) -> None:
        super().__init__([RabbitmqServer()])
        self.url = f"amqp://guest:guest@127.0.0.1:{self.proxies[0].port}/%2F"

    def unfinished(self) -> int:
        """Return the number of messages that wait in it; those that workers hold are not counted."""
        with pika.BlockingConnection(pika.URLParameters(self.servers[0].url)) as connection:
            channel = connection.channel()
            return sum(
                channel.queue_declare(name, passive=True).method.message_count for name in ("default", "default.DQ")
            )


class MemcachedTarget(Proxied):
    """One memcached, or more."""

    def __init__(self, count: int) -> None:
        super().__init__([MemcachedServer() for _ in range(count)])
        self.url = "memcached://" + ",".join(f"127.0.0.1:{proxy.port}" for proxy in self.proxies)


class SqliteTarget:
    """A SQLite file. Its only fault is another process that locks it."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "status.db"
        self.url = f"sqlite:///{self._path}"
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def begin(self, fault: Fault) -> None:
        with self._lock, suppress(sqlite3.OperationalError):
            if self._connection is None:
                connection = sqlite3.connect(self._path, timeout=5, isolation_level=None, check_same_thread=False)
                connection.execute("BEGIN EXCLUSIVE")
                self._connection = connection

    def end(self, fault: Fault) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def close(self) -> None:
        self.end(Fault(0, "store", 0, "lock", 0))


class ClusterTarget:
    """A Redis Cluster of three nodes without replicas, each with its data on disk."""

    def __init__(self) -> None:
        self.cluster = RedisCluster(*PERSISTENT).start()
        self.url = "redis+cluster://" + ",".join(f"{host}:{port}" for host, port in self.cluster.addresses)
        self._lock = threading.Lock()
        self._moving: dict[int, int] = {}

    def begin(self, fault: Fault) -> None:
        with self._lock:
            if fault.kind != "move":
                _hurt(self.cluster.nodes[fault.member], fault.kind)
            elif not self._moving and all(node.running for node in self.cluster.nodes):
                _mend_all(self.cluster.nodes)
                self._begin_move(fault.member)

    def end(self, fault: Fault) -> None:
        with self._lock:
            _mend_all(self.cluster.nodes)
            if fault.kind == "move":
                self.cluster.start()
                for slot, target in self._moving.items():
                    self.cluster.end_move(slot, target)
                self._moving.clear()

    def close(self) -> None:
        self.cluster.close()

    def _begin_move(self, source: int) -> None:
        """Begin to move some slots that hold statuses, and leave them half moved."""
        with self.cluster.client(source) as client:
            keys = {key for _ in range(MOVED_SLOTS) if (key := client.randomkey()) is not None}
            slots = {int(client.execute_command("CLUSTER KEYSLOT", key)) for key in keys}
        for slot in slots:
            target = (source + 1 + slot % 2) % 3
            if self.cluster.owner(slot) == source:
                self.cluster.begin_move(slot, target)
                self._moving[slot] = target
                self.cluster.move_keys(slot, target)


class SentinelTarget:
    """A master and a replica with Sentinels. Each fault is a fault of the present master."""

    def __init__(self) -> None:
        self.sentinels = RedisSentinels()
        for server in self.sentinels.servers:
            server.args = (*AT_ONCE, *PERSISTENT)
        self.sentinels.start()
        hosts = ",".join(f"{host}:{port}" for host, port in self.sentinels.addresses)
        self.url = f"redis+sentinel://{hosts}/{RedisSentinels.service_name}/0"
        self._lock = threading.Lock()

    def begin(self, fault: Fault) -> None:
        with self._lock:
            _mend_all(self.sentinels.servers)
            master = self.sentinels.master
            _hurt(master, fault.kind)
            if fault.kind == "kill":
                self.sentinels.wait_for_failover(master)

    def end(self, fault: Fault) -> None:
        with self._lock:
            _mend_all(self.sentinels.servers)
            time.sleep(0.5)

    def close(self) -> None:
        self.sentinels.close()


def _mend_all(servers: Sequence[Server]) -> None:
    for server in servers:
        _mend(server)


def start_store(kind: str, directory: Path) -> Target:
    """Start a store of a kind that `plan.STORE_FAULTS` names."""
    if kind == "redis":
        return RedisTarget(*PERSISTENT)
    if kind == "redis-memory":
        return RedisTarget()
    if kind == "memcached":
        return MemcachedTarget(1)
    if kind == "fleet":
        return MemcachedTarget(2)
    if kind == "sqlite":
        return SqliteTarget(directory)
    return ClusterTarget() if kind == "cluster" else SentinelTarget()


def start_broker(kind: str) -> RedisTarget | RabbitmqTarget:
    """Start a broker of a kind that `plan.BROKER_FAULTS` names. It loses nothing."""
    return RabbitmqTarget() if kind == "rabbitmq" else RedisTarget(*PERSISTENT)
