"""The cost of the web application: memory, processor time and connections of streams, the end of a server, and pages of
a long list.
"""

from __future__ import annotations

import http.client
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, sleep

import redis

from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends.redis import RedisBackend
from dramatiq_status.backends.sqlite import SQLiteBackend
from dramatiq_status.update import EnqueueId, Kind, Update
from tests.servers import RedisServer, free_port

from .common import ROOT, Options, Table, running_job
from .listing import fill

STREAMS = 1_000
JOBS = 100_000

#: Seconds after which a page of the list is read from the store again.
STALE = 1.1


def run(options: Options) -> Iterator[Table]:
    streams = 50 if options.quick else STREAMS
    with RedisServer() as server:
        yield Table(f"{streams:,} streams under uvicorn, each of a message of its own", list(_streams(server, streams)))
    jobs = 1_000 if options.quick else JOBS
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory()))
        server = stack.enter_context(RedisServer())
        stores: dict[str, tuple[StatusBackend, str]] = {
            "Redis": (RedisBackend(url=server.url, timeout=20_000), server.url),
            "SQLite": (SQLiteBackend(directory / "status.db", timeout=20_000), f"sqlite:///{directory}/status.db"),
        }
        rows = [["case", "ms", "goal"]]
        for name, (backend, url) in stores.items():
            fill(backend, jobs)
            with serving(url) as (_, port):
                for what, path in (("first page", "/"), ("failed ones", "/?state=failed"), ("as JSON", "/list.json")):
                    fresh = [_timed(port, path, rest=STALE) for _ in range(options.rounds(5))]
                    rows.append([f"{name}, {what}", f"{median(fresh) * 1000:.0f}", "<= 100"])
                shared = [_timed(port, "/") for _ in range(options.rounds(20))]
                rows.append([f"{name}, first page, while others look", f"{median(shared) * 1000:.0f}", ""])
        yield Table(f"A page of the dashboard of {jobs:,} jobs", rows)


def _streams(server: RedisServer, number: int) -> Iterator[list[str]]:
    yield ["case", "value", "goal"]
    backend = RedisBackend(url=server.url)
    jobs = [running_job(backend) for _ in range(number)]
    with closing(redis.Redis(port=server.port)) as client, serving(server.url) as (process, port), ExitStack() as stack:
        for job, _ in jobs[:20]:
            # The modules that the first streams load are no cost of a stream.
            _visit(port, job).close()
        sleep(0.5)
        connections, memory, spent = len(client.client_list()), _memory(process.pid), _processor(process.pid)
        visitors = [stack.enter_context(closing(_visit(port, job))) for job, _ in jobs]
        opened = _processor(process.pid) - spent
        yield ["memory a stream, KiB", f"{(_memory(process.pid) - memory) / number / 1024:.1f}", "<= 20"]
        yield ["processor time to open a stream, us", f"{opened / number * 1e6:.0f}", ""]
        yield ["connections to Redis", str(len(client.client_list()) - connections + 1), "2"]
        spent = _processor(process.pid)
        for position in range(1, 6):
            backend.update_many([(job, _step(enqueue_id, position + 1)) for job, enqueue_id in jobs])
            for visitor in visitors:
                _read_until(visitor, f'"step":"{position + 1}"'.encode())
        yield [
            "processor time a change and stream, us",
            f"{(_processor(process.pid) - spent) / number / 5 * 1e6:.0f}",
            "",
        ]
        spent = _processor(process.pid)
        sleep(3)
        yield ["processor time of a second of silence, ms", f"{(_processor(process.pid) - spent) / 3 * 1e3:.1f}", ""]
        begin = perf_counter()
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        yield ["from SIGTERM to the end, ms", f"{(perf_counter() - begin) * 1000:.0f}", "<= 1,000"]


def _step(enqueue_id: EnqueueId, position: int) -> Update:
    from .common import RUN_TOKEN

    return Update(Kind.RUN, enqueue_id, RUN_TOKEN, position, fields={":step": f'"{position}"'})


@contextmanager
def serving(url: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run uvicorn with the application, in a process of its own."""
    port = free_port()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * STREAMS)), hard))
    command = [sys.executable, "-m", "uvicorn", "tests.web.streams_app:app", f"--port={port}", "--log-level=error"]
    environment = {**os.environ, "DRAMATIQ_STATUS_URL": url}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        try:
            while True:
                with closing(socket.socket()) as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                sleep(0.05)
            yield process, port
        finally:
            process.kill()


def _timed(port: int, path: str, *, rest: float = 0.0) -> float:
    sleep(rest)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    begin = perf_counter()
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    if answer.status != 200:
        raise AssertionError(f"{path}: {answer.status}")
    connection.close()
    return perf_counter() - begin


def _visit(port: int, message_id: str) -> socket.socket:
    visitor = socket.create_connection(("127.0.0.1", port), 60)
    visitor.sendall(f"GET /{message_id}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    _read_until(visitor, b"working")
    return visitor


def _read_until(visitor: socket.socket, end: bytes) -> None:
    received = b""
    while end not in received:
        part = visitor.recv(65_536)
        if not part:
            raise AssertionError(received)
        received += part


def _memory(pid: int) -> int:
    """Return the resident memory of the process, in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _processor(pid: int) -> float:
    """Return the processor time of the process, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
