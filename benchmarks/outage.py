"""The throughput of a worker while the store is down for its whole run, beside one without tracking."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

from tests.servers import RedisServer

from .common import Options, Table, ratios, spread
from .throughput import SETTINGS, work

MODES = ("off", "refused", "silent")


def run(options: Options) -> Iterator[Table]:
    rows = [["worker", "store", "jobs/s", "share of off", "80 % in", "CPU us/job", "goal"]]
    with RedisServer() as server, RedisServer() as refused, RedisServer() as silent:
        stores = {"off": None, "refused": refused.url, "silent": silent.url}
        refused.stop()
        silent.pause()
        for setting in SETTINGS[:3]:
            jobs = setting.jobs // 10 if options.quick else setting.jobs
            measured: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
            for round_ in range(options.rounds(setting.rounds)):
                for mode in MODES if round_ % 2 == 0 else reversed(MODES):
                    parameters: dict[str, Any] = {"jobs": jobs, "sleep": setting.sleep, "store": stores[mode]}
                    found = work(
                        setting.environment, url=server.url, mode="off" if mode == "off" else "on", **parameters
                    )
                    measured[mode].append({"rate": jobs / found["seconds"], "cpu": found["cpu"] / jobs})
            off = [found["rate"] for found in measured["off"]]
            for mode in MODES:
                share = ratios([found["rate"] for found in measured[mode]], off)
                rows.append(
                    [
                        setting.name,
                        {"off": "tracking off", "refused": "refuses", "silent": "is silent"}[mode],
                        f"{median(found['rate'] for found in measured[mode]):.0f}",
                        f"{median(share):.2f}",
                        spread(share),
                        f"{median(found['cpu'] for found in measured[mode]) * 1e6:.0f}",
                        ">= 0.95" if mode != "off" and setting is not SETTINGS[2] else "",
                    ]
                )
    yield Table("Worker throughput with the store down, 8 threads, Redis broker", rows)
