"""The number of updates that are lost while two processes write to the same jobs at the same time."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

from dramatiq_status import StatusRegistry
from dramatiq_status.backend import StatusBackend

from .common import Options, Table, fresh_stores, running_job

WRITERS = 2
#: Number of jobs.  Both processes write to the first job at the same time, then to the second one, and so on.
JOBS = 20
#: Number of fields, and of increments, that each process writes to each job.
WRITES = 100


def run(options: Options) -> Iterator[Table]:
    jobs = 2 if options.quick else JOBS
    rows = [["store", "fields written", "lost", "increments", "lost", "us an update, each", "goal"]]
    with fresh_stores() as stores:
        for store, make in stores.items():
            fields, increments, microseconds = measure(make, jobs)
            written = WRITERS * jobs * WRITES
            rows.append(
                [
                    store,
                    str(written),
                    str(written - fields),
                    str(written),
                    str(written - increments),
                    f"{microseconds:.0f}",
                    "0",
                ]
            )
    yield Table(f"Updates lost, {WRITERS} processes at once", rows)


def measure(make: Callable[[], StatusBackend], jobs: int) -> tuple[int, int, float]:
    """Return the numbers of stored fields and increments, and microseconds an update."""
    backend = make()
    ids = [running_job(backend)[0] for _ in range(jobs)]
    for message_id in ids:
        StatusRegistry.get(message_id, backend=backend).update(progress=0)
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(WRITERS)
    writers = [context.Process(target=write, args=(make, ids, writer, barrier)) for writer in range(WRITERS)]
    begin = perf_counter()
    for process in writers:
        process.start()
    for process in writers:
        process.join(120)
        if process.exitcode != 0:
            process.kill()
            raise RuntimeError(f"A writer ended with {process.exitcode}.")
    microseconds = (perf_counter() - begin) / (2 * jobs * WRITES) * 1e6
    fields = increments = 0
    for snapshot in StatusRegistry.read_many(ids, backend=backend):
        assert snapshot is not None
        increments += int(snapshot["progress"])
        fields += sum(
            snapshot.get(f"field-{writer}-{number}") == number for writer in range(WRITERS) for number in range(WRITES)
        )
    return fields, increments, microseconds


def write(make: Callable[[], StatusBackend], ids: list[str], writer: int, barrier: Any) -> None:
    """Write the fields and increments of one process."""
    backend = make()
    for message_id in ids:
        status = StatusRegistry.get(message_id, backend=backend)
        progress = StatusRegistry.progress(message_id, backend=backend)
        barrier.wait(60)
        for number in range(WRITES):
            status[f"field-{writer}-{number}"] = number
            progress.increment()
