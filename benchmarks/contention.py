"""The time of an update while many processes write to one job as fast as they can."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from statistics import quantiles
from time import perf_counter
from typing import Any

from dramatiq_status import BackendError, StatusRegistry
from dramatiq_status.backend import StatusBackend

from .common import Options, Table, fresh_stores, running_job

#: Numbers of processes.  The first one is the base.
WRITERS = (1, 2, 8)
#: Total number of fields that all processes write, so that the record has the same size in each row.
FIELDS = 16_000


def run(options: Options) -> Iterator[Table]:
    fields = 160 if options.quick else FIELDS
    rows = [["store", "writers", "fields written", "lost", "errors", "us, median", "us, p90", "ratio of p90", "goal"]]
    with fresh_stores() as stores:
        for store, make in stores.items():
            base = 0.0
            for writers in WRITERS:
                errors, lost, median, p90 = measure(make, writers, fields // writers)
                base = base or p90
                goal = "" if writers == 1 else "0 lost, 0 errors, 10"
                figures = (lost, errors, f"{median:.0f}", f"{p90:.0f}", f"{p90 / base:.1f}", goal)
                rows.append([store, str(writers), str(fields), *map(str, figures)])
    yield Table("One job, many writers", rows)


def measure(make: Callable[[], StatusBackend], writers: int, count: int) -> tuple[int, int, float, float]:
    """Return the numbers of errors and of lost fields, and the median and the p90 in microseconds."""
    backend = make()
    message_id, _ = running_job(backend)
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(writers), context.SimpleQueue()
    processes = [
        context.Process(target=write, args=(make, message_id, writer, count, barrier, results))
        for writer in range(writers)
    ]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    errors = sum(failed for failed, _ in found)
    times = sorted(seconds for _, of_one in found for seconds in of_one)
    snapshot = StatusRegistry.read(message_id, backend=backend)
    assert snapshot is not None
    stored = sum(name.startswith("field-") for name in snapshot.fields)
    deciles = quantiles(times, n=10)
    return errors, writers * count - errors - stored, deciles[4] * 1e6, deciles[8] * 1e6


def write(
    make: Callable[[], StatusBackend], message_id: str, writer: int, count: int, barrier: Any, results: Any
) -> None:
    """Write fields in one process."""
    status = StatusRegistry.get(message_id, backend=make())
    errors, times = 0, []
    barrier.wait(60)
    for number in range(count):
        begin = perf_counter()
        try:
            status.update(**{f"field-{writer}-{number}": number})
        except BackendError:
            errors += 1
        times.append(perf_counter() - begin)
    results.put((errors, times))
