"""The start of the command line, beside a bare Python; the time from the end of a job until ``wait`` ends."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, sleep

from redis import Redis

from dramatiq_status.backends import RedisBackend, SQLiteBackend
from dramatiq_status.testing.updates import enqueue, finish, start
from tests.servers import RedisServer

from .common import ROOT, Options, Table, ratios, spread

#: Number of times that each command is started.
ROUNDS = 30


#: Number of jobs for which each command waits, one after the other, with a process for each job.
WAITS = 12

#: Program that subscribes to a channel by redis-py alone, and ends with the first message.
BARE = """
import sys, redis
subscriber = redis.Redis.from_url(sys.argv[1]).pubsub()
subscriber.subscribe(sys.argv[2])
for message in subscriber.listen():
    if message["type"] == "message":
        break
print("over", flush=True)
"""


def run(options: Options) -> Iterator[Table]:
    yield _start_up(options)
    with RedisServer() as server:
        yield _waiting(options, server)


def _waiting(options: Options, server: RedisServer) -> Table:
    """Measure the times from a change in the store until a waiting process prints its line, and until it ends."""
    names = ("a bare subscriber", "dramatiq-status wait")
    lines: dict[str, list[float]] = {name: [] for name in names}
    ends: dict[str, list[float]] = {name: [] for name in names}
    with closing(RedisBackend(url=server.url)) as backend, closing(Redis.from_url(server.url)) as client:
        for number in range(options.rounds(WAITS)):
            job, channel = f"job-{number}", f"bare-{number}"
            backend.update(job, enqueue())
            backend.update(job, start(1))
            commands = {
                names[0]: (("-c", BARE, server.url, channel), channel, partial(client.publish, channel, "over")),
                names[1]: (
                    ("-m", "dramatiq_status", "wait", job, "--url", server.url),
                    job,
                    partial(backend.update, job, finish(1)),
                ),
            }
            for name, (arguments, topic, end) in commands.items():
                command = [sys.executable, *arguments]
                with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
                    assert process.stdout is not None
                    while not any(topic.encode() in found for found in client.pubsub_channels()):
                        sleep(0.005)
                    # The command reads the job once more after it has subscribed.
                    sleep(0.1)
                    begin = perf_counter()
                    end()
                    process.stdout.readline()
                    lines[name].append(perf_counter() - begin)
                    process.wait()
                    ends[name].append(perf_counter() - begin)
    rows = [["process", "line: median ms", "90 %", "longest", "end: median ms", "longest", "ratio of lines", "goal"]]
    for name in names:
        line, last = sorted(lines[name]), sorted(ends[name])
        shown = [median(line), line[int(len(line) * 0.9)], line[-1], median(last), last[-1]]
        ratio = f"{median(ratios(lines[name], lines[names[0]])):.2f}"
        rows.append([name, *(f"{seconds * 1000:.1f}" for seconds in shown), ratio, "line <= 100 ms"])
    rows[1][-1] = ""
    return Table("From the end of a job until a process that waits for it, on Redis", rows)


def _start_up(options: Options) -> Table:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "status.db"
        backend = SQLiteBackend(path)
        backend.update("job", enqueue())
        backend.close()
        module = ("-m", "dramatiq_status")
        cases = {
            "python -c pass": ("-c", "pass"),
            "dramatiq-status --version": (*module, "--version"),
            "dramatiq-status --help": (*module, "--help"),
            "dramatiq-status completion bash": (*module, "completion", "bash"),
            "python -c 'import dramatiq'": ("-c", "import dramatiq"),
            "dramatiq-status get, on SQLite": (*module, "get", "job", "--url", f"sqlite:///{path}"),
        }
        times: dict[str, list[float]] = {name: [] for name in cases}
        # Bytecode is kept, as in every installation: else each start would compile all modules.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": directory}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for arguments in cases.values():
            _processor_time(arguments, environment)
        for _ in range(options.rounds(ROUNDS)):
            for name, arguments in cases.items():
                times[name].append(_processor_time(arguments, environment))
    base = times["python -c pass"]
    goals = {"dramatiq-status --version": "<= 2.5", "dramatiq-status --help": "<= 2.5"}
    rows = [["command", "ms", "ratio", "80 % in", "goal"]]
    for name, found in times.items():
        of_base = ratios(found, base)
        row = [name, f"{median(found) * 1000:.0f}", f"{median(of_base):.2f}", spread(of_base), goals.get(name, "")]
        rows.append(row)
    own = [a - b for a, b in zip(times["dramatiq-status get, on SQLite"], times["python -c 'import dramatiq'"])]
    rows.append(["get beyond import dramatiq", f"{median(own) * 1000:.0f}", "", "", "<= 30 ms"])
    return Table("Processor time of the command line", rows)


def _processor_time(arguments: tuple[str, ...], environment: dict[str, str]) -> float:
    """Run Python, and return the seconds of processor time that it takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
