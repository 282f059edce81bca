"""The speed of enqueueing, with and without tracking."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from statistics import median
from time import perf_counter
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Middleware

from dramatiq_status import StatusMiddleware
from dramatiq_status.backend import StatusBackend, now_ms
from dramatiq_status.backends.memcached import MemcachedBackend
from dramatiq_status.backends.redis import RedisBackend
from dramatiq_status.backends.redis.requests import Exchange
from dramatiq_status.record import ACTOR_NAME, ENQUEUED_AT, QUEUE_NAME
from dramatiq_status.update import EnqueueId, Kind, Update
from tests.servers import MemcachedServer, RedisServer

from .common import Options, Table, placed, ratios, spread

#: Placeholder of a message's id.
ANY_ID = "0" * 36


class Floor(Middleware):
    """A middleware that sends the same bytes as the backend over a raw socket before the enqueue, and reads the reply
    after it.
    """

    def __init__(self, server: RedisServer, backend: RedisBackend) -> None:
        while not backend.transport.clock.known:
            backend.read("unknown")
        fields = {ACTOR_NAME: '"import_rows"', QUEUE_NAME: '"default"', ENQUEUED_AT: str(now_ms())}
        update = Update(Kind.ENQUEUE, EnqueueId(1_234_567_890, 1), fields=fields)
        backend.update(ANY_ID, update)
        self.request = Exchange(next(backend.operations.update(ANY_ID, update)), backend.transport.clock).packed
        self.socket = socket.create_connection(("127.0.0.1", server.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def before_enqueue(self, broker: dramatiq.Broker, message: Any, delay: int | None) -> None:
        self.socket.sendall(self.request.replace(ANY_ID.encode(), message.message_id.encode()))

    def after_enqueue(self, broker: dramatiq.Broker, message: Any, delay: int | None) -> None:
        self.socket.recv(4096)


#: Number of messages in a turn.  Many short turns reduce the noise.
MESSAGES = 400


def run(options: Options) -> Iterator[Table]:
    rows = [["placement", "case", "messages/s", "share of off", "80 % in", "goal (stretch)"]]
    with RedisServer() as server, MemcachedServer() as memcached_server:
        actors = {
            "off": declare(RedisBroker(url=server.database(1))),
            "off, our bytes by a raw socket": declare(
                with_middleware(server.database(0), Floor(server, RedisBackend(url=server.database(0))))
            ),
            "on, Redis": declare(tracked(server.database(2), RedisBackend(url=server.database(2)))),
            "on, memcached": declare(tracked(server.database(3), MemcachedBackend(servers=memcached_server.address))),
        }
        for placement in ("free", "same", "cross"):
            with placed(placement, server, memcached_server):
                rates = measure(actors, options.rounds(30))
            for name, found in rates.items():
                share = ratios(found, rates["off"])
                goal = ">= 0.85 (0.95)" if name == "on, Redis" else ""
                rows.append([placement, name, f"{median(found):.0f}", f"{median(share):.2f}", spread(share), goal])
    yield Table("Enqueueing, Redis broker", rows)


def tracked(url: str, backend: StatusBackend) -> RedisBroker:
    return with_middleware(url, StatusMiddleware(backend=backend))


def with_middleware(url: str, middleware: Middleware) -> RedisBroker:
    broker = RedisBroker(url=url)
    broker.add_middleware(middleware)
    return broker


def declare(broker: RedisBroker) -> dramatiq.Actor[[int], None]:
    @dramatiq.actor(broker=broker)
    def import_rows(number: int) -> None:
        pass

    return import_rows


def measure(actors: dict[str, dramatiq.Actor[[int], None]], rounds: int) -> dict[str, list[float]]:
    """Return messages a second, one number for each round, by name."""
    rates: dict[str, list[float]] = {name: [] for name in actors}
    for round_ in range(rounds + 1):
        for name, actor in actors.items():
            begin = perf_counter()
            for number in range(MESSAGES):
                actor.send(number)
            rate = MESSAGES / (perf_counter() - begin)
            actor.broker.flush_all()
            if round_:
                rates[name].append(rate)
    return rates
