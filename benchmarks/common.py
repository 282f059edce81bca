"""Parts of all benchmarks: timing in interleaved rounds, pinning, the status of a running job, tables."""

from __future__ import annotations

import gc
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from itertools import repeat
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final, NamedTuple
from uuid import uuid4

from dramatiq_status.backend import StatusBackend, now_ms
from dramatiq_status.backends.memcached import MemcachedBackend
from dramatiq_status.backends.redis import RedisBackend
from dramatiq_status.record import ACTOR_NAME, ENQUEUED_AT, PROGRESS, QUEUE_NAME, RATE, STARTED_AT, TOTAL
from dramatiq_status.testing.updates import enqueue, heartbeat, start
from dramatiq_status.update import EnqueueId, Update
from tests.servers import MemcachedServer, RedisServer, Server

#: Directory in which subprocesses start, so that they find these modules.
ROOT: Final = Path(__file__).resolve().parent.parent

#: A function to time.
Case = Callable[[], Any]


class Options(NamedTuple):
    """Options of the command line.

    Parameters:
      quick: Whether to run few rounds, only to check that the benchmarks work.
      scale: Factor of the number of rounds.
    """

    quick: bool = False
    scale: float = 1.0

    def rounds(self, wanted: int) -> int:
        """Return the number of rounds to run; `wanted` is the usual number."""
        return 3 if self.quick else max(3, round(wanted * self.scale))


class Table(NamedTuple):
    """Rows of text.  The first row has the heads of the columns."""

    title: str
    rows: Sequence[Sequence[str]]
    note: str = ""

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(*self.rows)]
        rule = "  ".join("=" * width for width in widths)
        head, *body = ("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in self.rows)
        lines = [self.title, "-" * len(self.title), "", rule, head, rule, *body, rule]
        if self.note:
            lines += ["", self.note]
        return "\n".join(lines) + "\n"


# Timing


def interleave(cases: Mapping[str, Case], *, rounds: int, calls: int) -> dict[str, list[float]]:
    """Time all cases in turns, so that a disturbance of the machine disturbs all of them.

    Returns:
      Microseconds a call, one number for each round, by case.
    """
    times: dict[str, list[float]] = {name: [] for name in cases}
    for case in cases.values():
        for _ in repeat(None, max(1, calls // 4)):
            case()
    gc.collect()
    for _ in range(rounds):
        for name, case in cases.items():
            begin = perf_counter()
            for _ in repeat(None, calls):
                case()
            times[name].append((perf_counter() - begin) / calls * 1e6)
    return times


def ratios(times: Sequence[float], base: Sequence[float]) -> list[float]:
    """Return the ratios of two series, round by round."""
    return [a / b for a, b in zip(times, base)]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share of all values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def spread(values: Sequence[float]) -> str:
    """Return the range of eight of ten values."""
    return f"{percentile(values, 0.1):.2f}-{percentile(values, 0.9):.2f}"


def timed_rows(
    times: Mapping[str, Sequence[float]], base: str, *, divide: float = 1.0, goals: Mapping[str, str] | None = None
) -> list[list[str]]:
    """Return one row for each case: microseconds, ratio to `base`, and the range of eight of ten ratios."""
    rows = []
    for name, series in times.items():
        found = ratios(series, times[base])
        row = [name, f"{median(series) / divide:.2f}", f"{median(found):.2f}", spread(found)]
        if goals is not None:
            row.append(goals.get(name, ""))
        rows.append(row)
    return rows


# Placement


def pin(pid: int, cpus: set[int]) -> None:
    """Keep all threads of a process, and the threads that they start, on these processors."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        try:
            os.sched_setaffinity(int(thread), cpus)
        except ProcessLookupError:
            pass


@contextmanager
def placed(placement: str, *servers: Server) -> Iterator[None]:
    """Pin the servers and this process: all to one core ("same"), the process to one core and the servers to another
    ("cross"), or nothing ("free").

    Nothing is pinned on other systems than Linux.
    """
    if placement == "free" or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    here = max(before)
    there = here if placement == "same" else min(before)
    try:
        for server in servers:
            pin(server.pid, {there})
        pin(os.getpid(), {here})
        yield
    finally:
        pin(os.getpid(), before)
        for server in servers:
            pin(server.pid, before)


# Jobs


@contextmanager
def fresh_stores() -> Iterator[dict[str, Callable[[], StatusBackend]]]:
    """Start servers, and yield functions that create a backend of them, by the name of the store."""
    with RedisServer() as redis_server, MemcachedServer() as memcached_server:
        yield {
            "Redis": lambda: RedisBackend(url=redis_server.url, timeout=20_000),
            "memcached": lambda: MemcachedBackend(servers=memcached_server.address),
            "memcached, gets and cas": lambda: MemcachedBackend(servers=memcached_server.address, meta=False),
        }


def running_job(backend: StatusBackend, message_id: str | None = None) -> tuple[str, EnqueueId]:
    """Store the status of a running job: all values of the middleware, a progress and two fields of the user's."""
    message_id = message_id or str(uuid4())
    enqueue_id = EnqueueId(1_234_567_890, 1)
    backend.update_many([(message_id, update) for update in running_updates(enqueue_id)])
    return message_id, enqueue_id


def running_updates(enqueue_id: EnqueueId) -> list[Update]:
    """Return the updates that :func:`running_job` stores."""
    now = now_ms()
    enqueued = {ACTOR_NAME: '"import_rows"', QUEUE_NAME: '"default"', ENQUEUED_AT: str(now)}
    fields = {STARTED_AT: str(now), TOTAL: "1000", PROGRESS: "123", RATE: "48.25"}
    return [
        enqueue(*enqueue_id, **enqueued),
        start(RUN_TOKEN, *enqueue_id, create=False, step='"reading"', user_id="42", **fields),
        heartbeat(RUN_TOKEN),
    ]


#: Token of the run that :func:`running_job` begins.
RUN_TOKEN: Final = 1_987_654_321


# Versions


def versions() -> str:
    """Return the versions and the machine, on which all figures depend."""
    parts = [f"Python {platform.python_version()}"]
    for package in ("dramatiq", "redis", "hiredis", "pymemcache"):
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            parts.append(f"no {package}")
    parts += [_server_version(RedisServer, b"INFO server\r\n"), _server_version(MemcachedServer, b"version\r\n")]
    load = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    return f"{', '.join(parts)}; {_processor()}, {os.cpu_count()} cores; load {load}"


def _server_version(kind: type[Server], request: bytes) -> str:
    with kind() as server:
        answer = server.ask(request).decode()
    for line in answer.splitlines():
        name, _, number = line.replace(" ", ":").partition(":")
        if name in ("redis_version", "valkey_version", "VERSION"):
            return f"{kind.package} {number}"
    return kind.package


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()
