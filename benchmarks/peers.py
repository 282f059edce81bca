"""Progress of one job, three fields, beside other libraries that store it in Redis: ``python -m benchmarks.peers``.

The other libraries are installed into a virtual environment of their own, in the folder ``.peers``, because they need
certain versions of the drivers.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import venv
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any, Final

import redis
import redis.asyncio

from dramatiq_status import StatusRegistry, aio
from dramatiq_status.backends.redis import RedisBackend
from tests.servers import RedisServer

from .common import ROOT, Case, Options, Table, interleave, placed, running_job, timed_rows, versions

#: The other libraries, and the driver that all of them share.
PACKAGES: Final = (
    *("celery==5.7.0", "rq==3.0.0", "saq==0.26.4", "taskiq==0.13.0", "taskiq-redis==1.2.4"),
    *("redis==8.1.0", "hiredis==3.5.0"),
)

HERE: Final = ROOT / ".peers"

#: Seconds for which each library keeps a job, if it takes a time to live.
TTL: Final = 604_800

#: Number of calls of one round of the event loop.
AIO_CALLS: Final = 50

BASE: Final = "redis-py pipeline: HSET, EXPIRE"
AIO_BASE: Final = "redis.asyncio pipeline: HSET, EXPIRE"
AIO_READ_BASE: Final = "redis.asyncio: HGETALL"
READ_BASE: Final = "redis-py: HGETALL"
GOALS: Final = {
    "same": {"StatusRegistry.get(id).update": "<= 0.80 (0.70)"},
    "cross": {"StatusRegistry.get(id).update": "<= 0.87 (0.80)"},
}
AIO_GOALS: Final = {
    "aio.StatusRegistry.get(id).update": "<= 1.00 (0.80)",
    "aio.StatusRegistry.read": "<= 1.00 (0.80)",
}

steps = count()


def fields() -> dict[str, Any]:
    """Return three fields to write."""
    return {"step": "reading", "progress": next(steps), "total": 1_000_000}


def texts() -> dict[str, str]:
    """Return three fields as texts, for the driver alone."""
    return {"step": '"reading"', "progress": str(next(steps)), "total": "1000000"}


def run(options: Options) -> Iterator[Table]:
    with RedisServer() as server:
        writes, reads = thread_cases(server)
        for placement in ("same", "cross"):
            with placed(placement, server):
                written = interleave(writes, rounds=options.rounds(80), calls=100)
                read = interleave(reads, rounds=options.rounds(80), calls=100)
            head = ["case", "us", "ratio", "80 % in", "goal (stretch)"]
            rows = timed_rows(written, BASE, goals=GOALS[placement])
            yield Table(f"Progress of one job, three fields; {placement}", [head, *rows])
            yield Table(
                f"Progress of one job, read and decoded; {placement}",
                [head, *timed_rows(read, READ_BASE, goals={})],
            )
        for placement in ("same", "cross"):
            with placed(placement, server), closing(asyncio.new_event_loop()) as loop:
                writes, reads = loop_cases(server, loop)
                written = interleave(writes, rounds=options.rounds(80), calls=1)
                read = interleave(reads, rounds=options.rounds(80), calls=1)
                loop.run_until_complete(loop.shutdown_asyncgens())
            for title, times, base in (
                ("Progress of one job, three fields, in an event loop", written, AIO_BASE),
                ("Progress of one job, read in an event loop", read, AIO_READ_BASE),
            ):
                rows = timed_rows(times, base, divide=AIO_CALLS, goals=AIO_GOALS)
                yield Table(f"{title}; {placement}", [head, *rows])


def thread_cases(server: RedisServer) -> tuple[dict[str, Case], dict[str, Case]]:
    """Return the cases of threads: writes and reads."""
    import celery
    import rq.job

    client = redis.Redis(port=server.port)
    backend = RedisBackend(url=server.url)
    message_id, _ = running_job(backend)
    app = celery.Celery(broker=server.url, backend=server.url)
    app.conf.result_expires = TTL
    job = rq.job.Job.create("math.sqrt", [4], connection=redis.Redis(port=server.port))
    job.save()

    def pipeline() -> None:
        commands = client.pipeline(transaction=False)
        commands.hset("base", mapping=texts())
        commands.expire("base", TTL)
        commands.execute()

    def save_meta() -> None:
        job.meta.update(fields())
        job.save_meta()

    writes: dict[str, Case] = {
        BASE: pipeline,
        "StatusRegistry.get(id).update": lambda: StatusRegistry.get(message_id, backend=backend).update(**fields()),
        "rq: save_meta (no expiry, no push)": save_meta,
        "celery: store_result of PROGRESS": lambda: app.backend.store_result("job", fields(), "PROGRESS"),
    }
    reads: dict[str, Case] = {
        READ_BASE: lambda: client.hgetall("base"),
        "StatusRegistry.read": lambda: StatusRegistry.read(message_id, backend=backend)["step"],  # type: ignore[index]
        "rq: Job.fetch": lambda: rq.job.Job.fetch(job.id, connection=job.connection).meta["step"],
        "celery: AsyncResult.info": lambda: app.AsyncResult("job").info["step"],
    }
    return writes, reads


def loop_cases(server: RedisServer, loop: asyncio.AbstractEventLoop) -> tuple[dict[str, Case], dict[str, Case]]:
    """Return the cases of an event loop: writes and reads."""
    from saq.queue import Queue
    from taskiq.depends.progress_tracker import TaskProgress
    from taskiq_redis import RedisAsyncResultBackend

    client = redis.asyncio.Redis(port=server.port)
    backend = RedisBackend(url=server.url)
    message_id, _ = running_job(backend)
    queue = Queue.from_url(server.url)
    job = loop.run_until_complete(queue.enqueue("sqrt", x=4))
    assert job is not None
    results: Any = RedisAsyncResultBackend(server.url, result_ex_time=TTL)

    async def pipeline() -> None:
        commands = client.pipeline(transaction=False)
        commands.hset("aio", mapping=texts())
        commands.expire("aio", TTL)
        await commands.execute()

    async def stored() -> Any:
        found = await queue.job(job.key)
        assert found is not None
        return found.meta["step"]

    async def read() -> Any:
        found = await aio.StatusRegistry.read(message_id, backend=backend)
        assert found is not None
        return found["step"]

    def timed(call: Callable[[], Awaitable[Any]]) -> Case:
        async def calls() -> None:
            for _ in range(AIO_CALLS):
                await call()

        return lambda: loop.run_until_complete(calls())

    writes: dict[str, Callable[[], Awaitable[Any]]] = {
        AIO_BASE: pipeline,
        "aio.StatusRegistry.get(id).update": lambda: aio.StatusRegistry.get(message_id, backend=backend).update(
            **fields()
        ),
        "saq: Job.update (no expiry)": lambda: job.update(meta=fields()),
        "taskiq: set_progress (no push)": lambda: results.set_progress("job", TaskProgress(state="R", meta=fields())),
    }
    reads: dict[str, Callable[[], Awaitable[Any]]] = {
        AIO_READ_BASE: lambda: client.hgetall("aio"),
        "aio.StatusRegistry.read": read,
        "saq: Queue.job": stored,
        "taskiq: get_progress": lambda: results.get_progress("job"),
    }
    return {name: timed(call) for name, call in writes.items()}, {name: timed(call) for name, call in reads.items()}


def make_environment() -> Path:
    """Install the other libraries, once, and return the environment's Python."""
    python = HERE / "bin" / "python"
    done = HERE / "installed"
    if not done.exists() or done.read_text().split() != list(PACKAGES):
        venv.create(HERE, with_pip=True, clear=True)
        wanted = ("-e", f"{ROOT}[redis,memcached]", *PACKAGES)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        done.write_text("\n".join(PACKAGES))
    return python


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only check that everything works")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the number of rounds; 2 runs twice as many")
    options = parser.parse_args()
    if Path(sys.prefix) != HERE:
        python = make_environment()
        os.execv(python, [str(python), "-m", "benchmarks.peers", *sys.argv[1:]])
    peers = ", ".join(f"{package.partition('=')[0]} {version(package.partition('=')[0])}" for package in PACKAGES[:5])
    print(f"{versions()}; {peers}", end="\n\n", flush=True)
    for table in run(Options(options.quick, options.scale)):
        print(table, flush=True)


if __name__ == "__main__":
    main()
