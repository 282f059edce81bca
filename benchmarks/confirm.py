"""Confirmation of final states by leader and followers, beside the background thread alone; on three brokers."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from tests.servers import RabbitmqServer, RedisServer

from .common import Options, Table, placed, ratios, spread
from .throughput import CPU_BOUND, work

MODES = {
    "off": "tracking off",
    "on": "leader and followers",
    "thread": "background thread alone",
}

JOBS = 1500


def run(options: Options) -> Iterator[Table]:
    rows = [["broker", "case", "jobs/s", "share of off", "80 % in", "CPU us/job"]]
    with RedisServer() as server, RabbitmqServer() as rabbitmq_server:
        brokers = {"Redis": "", "RabbitMQ": rabbitmq_server.url, "stub": "stub"}
        with placed("free", server, rabbitmq_server):
            for name, url in brokers.items():
                rows += measure(name, server.url, url, options)
    yield Table("No-op jobs, 8 threads, store in Redis", rows)


def measure(name: str, url: str, broker_url: str, options: Options) -> Iterator[list[str]]:
    """Measure one broker.  The modes take turns, in reverse order in every second round, each in its own process."""
    jobs = JOBS // 10 if options.quick else JOBS
    rates: dict[str, list[float]] = {mode: [] for mode in MODES}
    cpu: dict[str, list[float]] = {mode: [] for mode in MODES}
    for round_ in range(options.rounds(5)):
        for mode in list(MODES) if round_ % 2 == 0 else reversed(MODES):
            found = work(CPU_BOUND, url=url, mode=mode, jobs=jobs, sleep=0.0, broker_url=broker_url)
            rates[mode].append(jobs / found["seconds"])
            cpu[mode].append(found["cpu"] / jobs * 1e6)
    for mode, label in MODES.items():
        share = ratios(rates[mode], rates["off"])
        yield [
            name,
            label,
            f"{median(rates[mode]):.0f}",
            f"{median(share):.2f}",
            spread(share),
            f"{median(cpu[mode]):.0f}",
        ]
