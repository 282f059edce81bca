"""Statuses that are sent with the broker's commands, and statuses on another server than the broker's queues."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import NamedTuple

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from dramatiq_status import StatusMiddleware
from dramatiq_status.backends.redis import RedisBackend
from tests.servers import MemcachedServer, RabbitmqServer, RedisServer

from .common import Options, Table, placed, ratios, spread
from .enqueue import declare, measure, tracked
from .throughput import CPU_BOUND, work
from .worker import PreparedCalls

#: Modes of the worker by the name of the case, with queues and statuses in one Redis database.
MODES = {
    "tracking off": "off",
    "tracking off, our client": "client",
    "tracking off, our client, prepared statuses": "prepared",
    "tracking on": "on",
    "tracking on, our client": "piggyback",
    "Results": "results",
    "Results, tracking on, our client": "piggyback+results",
}


class Setting(NamedTuple):
    """Settings of a worker."""

    name: str
    jobs: int
    rounds: int
    sleep: float = 0.0
    environment: dict[str, str] = {}  # noqa: RUF012 - never written to
    placement: str = "free"


SETTINGS = (
    Setting("no-op jobs, default", 1000, 3),
    Setting("5 ms jobs", 600, 3, sleep=0.005),
    Setting("no-op jobs, CPU-bound", 2000, 5, environment=CPU_BOUND),
    Setting("no-op jobs, CPU-bound; same", 2000, 5, environment=CPU_BOUND, placement="same"),
    Setting("no-op jobs, CPU-bound; cross", 2000, 5, environment=CPU_BOUND, placement="cross"),
)


def run(options: Options) -> Iterator[Table]:
    with RedisServer() as server:
        yield Table("Enqueueing, broker and statuses in one Redis database", list(enqueue_rows(server, options)))
        rows = [["worker", "case", "jobs/s", "share of off", "80 % in", "CPU us/job", "CPU share"]]
        for setting in SETTINGS:
            with placed(setting.placement, server):
                cases = {name: {"mode": mode, "url": server.url} for name, mode in MODES.items()}
                rows += worker_rows(setting, cases, options)
    yield Table("Worker throughput, 8 threads, broker and statuses in one Redis database", rows)
    rows = [["broker, store", "case", "jobs/s", "share of off", "80 % in", "CPU us/job", "CPU share"]]
    with RedisServer() as server, RedisServer() as other, MemcachedServer() as memcached, RabbitmqServer() as rabbitmq:
        pairs = {
            "Redis, another Redis": {"store": other.url},
            "RabbitMQ, Redis": {"broker_url": rabbitmq.url},
            "RabbitMQ, memcached": {"broker_url": rabbitmq.url, "store": memcached.url},
        }
        for name, parameters in pairs.items():
            cases = {
                "tracking off": {"mode": "off", "url": server.url, **parameters},
                "tracking on": {"mode": "on", "url": server.url, **parameters},
            }
            rows += worker_rows(Setting(name, 1500, 5, environment=CPU_BOUND), cases, options)
    yield Table("Worker throughput, 8 threads, no-op jobs, CPU-bound, two servers", rows)


def enqueue_rows(server: RedisServer, options: Options) -> Iterator[list[str]]:
    yield ["placement", "case", "messages/s", "share of off", "80 % in"]
    backend = RedisBackend(url=server.database(3))
    client = RedisBackend(url=server.database(4)).broker_client()
    prepared = RedisBackend(url=server.database(5)).broker_client()
    prepared.broker_calls = PreparedCalls(RedisBackend(url=server.database(5)))
    actors = {
        "tracking off": declare(RedisBroker(url=server.database(1))),
        "tracking off, our client": declare(RedisBroker(client=client)),
        "tracking off, our client, prepared statuses": declare(RedisBroker(client=prepared)),
        "tracking on": declare(tracked(server.database(2), RedisBackend(url=server.database(2)))),
        "tracking on, our client": declare(with_client(backend)),
    }
    for placement in ("free", "same", "cross"):
        with placed(placement, server):
            rates = measure(actors, options.rounds(12))
        for name, found in rates.items():
            share = ratios(found, rates["tracking off"])
            yield [placement, name, f"{median(found):.0f}", f"{median(share):.2f}", spread(share)]


def with_client(backend: RedisBackend) -> dramatiq.Broker:
    broker = RedisBroker(client=backend.broker_client())
    broker.add_middleware(StatusMiddleware(backend=backend))
    return broker


def worker_rows(setting: Setting, cases: dict[str, dict[str, str]], options: Options) -> Iterator[list[str]]:
    """Measure the cases in turns, each in a process of its own.  Every second round takes them in reverse order."""
    jobs = setting.jobs // 10 if options.quick else setting.jobs
    rates: dict[str, list[float]] = {name: [] for name in cases}
    cpu: dict[str, list[float]] = {name: [] for name in cases}
    for round_ in range(options.rounds(setting.rounds)):
        for name in list(cases) if round_ % 2 == 0 else reversed(cases):
            found = work(setting.environment, jobs=jobs, sleep=setting.sleep, **cases[name])
            rates[name].append(jobs / found["seconds"])
            cpu[name].append(found["cpu"] / jobs * 1e6)
    for name in cases:
        share = ratios(rates[name], rates["tracking off"])
        yield [
            setting.name,
            name,
            f"{median(rates[name]):.0f}",
            f"{median(share):.2f}",
            spread(share),
            f"{median(cpu[name]):.0f}",
            f"{median(ratios(cpu[name], cpu['tracking off'])):.2f}",
        ]
