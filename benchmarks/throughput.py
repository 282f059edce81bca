"""The throughput of a worker, with and without tracking, and with Dramatiq's own Results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from statistics import median
from typing import Any, NamedTuple

from tests.servers import RedisServer

from .common import ROOT, Options, Table, placed, ratios, spread

MODES = ("off", "on", "results")


CPU_BOUND = {"dramatiq_queue_prefetch": "1000"}


class Setting(NamedTuple):
    """Settings of a worker."""

    name: str
    jobs: int
    rounds: int
    goal: str
    sleep: float = 0.0
    environment: dict[str, str] = {}  # noqa: RUF012 - never written to
    placement: str = "free"


SETTINGS = (
    Setting("no-op jobs, default", 1500, 5, ">= 0.97 (0.99)"),
    Setting("5 ms jobs", 1000, 5, ">= 0.95 (0.98)", sleep=0.005),
    Setting("no-op jobs, CPU-bound", 3000, 7, ">= 0.60 (0.80), > Results", environment=CPU_BOUND),
    Setting("no-op jobs, CPU-bound; same", 3000, 7, "", environment=CPU_BOUND, placement="same"),
)


def run(options: Options) -> Iterator[Table]:
    rows = [["worker", "mode", "jobs/s", "share of off", "80 % in", "CPU us/job", "goal (stretch)"]]
    with RedisServer() as server:
        for setting in SETTINGS:
            # A process inherits the pinning of its parent.
            with placed(setting.placement, server):
                measured = measure(server, setting, options)
            rates = {mode: [found["rate"] for found in measured[mode]] for mode in MODES}
            for mode in MODES:
                share = ratios(rates[mode], rates["off"])
                rows.append(
                    [
                        setting.name,
                        {"off": "tracking off", "on": "tracking on", "results": "Results"}[mode],
                        f"{median(rates[mode]):.0f}",
                        f"{median(share):.2f}",
                        spread(share),
                        f"{median(found['cpu'] for found in measured[mode]) * 1e6:.0f}",
                        setting.goal if mode == "on" else "",
                    ]
                )
    yield Table("Worker throughput, 8 threads, Redis broker and store on one server", rows)


def measure(server: RedisServer, setting: Setting, options: Options) -> dict[str, list[dict[str, float]]]:
    """Measure the modes in turns, in reverse order in every second round, each time in a process of its own."""
    measured: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    jobs = setting.jobs // 10 if options.quick else setting.jobs
    for round_ in range(options.rounds(setting.rounds)):
        for mode in MODES if round_ % 2 == 0 else reversed(MODES):
            found = work(setting.environment, url=server.url, mode=mode, jobs=jobs, sleep=setting.sleep)
            measured[mode].append({"rate": jobs / found["seconds"], "cpu": found["cpu"] / jobs})
    return measured


def work(environment: dict[str, str], **parameters: Any) -> dict[str, float]:
    """Run a worker process and return its figures."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.worker", json.dumps(parameters)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        timeout=180,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found
