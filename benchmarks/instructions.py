"""Instructions of the client's process and of the Redis server: ``python -m benchmarks.instructions``.

Callgrind counts them.  Two counts of the same code differ by 1 to 7 %, also beside other work, so a count shows what
the times of a few rounds cannot show.  But some instructions take longer than others, and the kernel's are not counted.
It needs ``valgrind``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final
from unittest.mock import patch

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker

from dramatiq_status import StatusMiddleware, StatusRegistry
from dramatiq_status.backends.redis import RedisBackend
from tests.servers import RedisServer, ServerMissing

from .common import ROOT, Case, Table, versions
from .enqueue import declare

#: Number of calls of each case before the counted calls.
WARM_UP: Final = 50

#: Limits in seconds that a program exceeds under callgrind.  Each job would count as a long one, whose start is sent
#: before its end, and each reply as too late for a measurement of the server's clock.
LIMITS: Final = ("dramatiq_status.deliveries._START_AFTER", "dramatiq_status.backends.redis.clock.QUICK")

FIELDS: Final = {"stage": "loading", "rows": 120, "user": "u-17"}


class CountedServer(RedisServer):
    """A Redis server whose instructions are counted."""

    start_timeout = 60.0

    def _command(self) -> Sequence[str]:
        return [*under_callgrind(self.directory), *super()._command()]


def under_callgrind(directory: Path) -> list[str]:
    """Return the beginning of a command that counts the instructions of a program."""
    if shutil.which("callgrind_control") is None:
        raise ServerMissing("valgrind is not installed: as root, apt-get install valgrind")
    return ["valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={directory}/count.%p"]


def count(pid: int, directory: Path) -> int:
    """Return the instructions of a process since the last call."""
    # The shell reads the dump, because the instructions of this process may be counted.
    command = f"callgrind_control --dump=count {pid} >&2 && cat count.{pid}.* | grep ^totals: && rm count.{pid}.*"
    found = subprocess.run(["sh", "-c", command], cwd=directory, check=True, capture_output=True, text=True)
    return int(found.stdout.split()[1])


def cases(url: str) -> dict[str, dict[str, Case]]:
    """Return the cases by the title of their table.  The first case of a table is its base."""
    backend = RedisBackend(url=url, timeout=60_000)
    client = redis.Redis.from_url(url)
    brokers = {
        "tracking off": RedisBroker(url=url),
        "tracking off, our client": RedisBroker(client=backend.broker_client(), namespace="client"),
        "tracking on": RedisBroker(url=url, namespace="apart"),
        "tracking on, our client": RedisBroker(client=backend.broker_client(), namespace="tracked"),
    }
    for name in ("tracking on", "tracking on, our client"):
        brokers[name].add_middleware(StatusMiddleware(backend=backend))
    actors = {name: declare(broker) for name, broker in brokers.items()}
    message_id = actors["tracking on, our client"].send(0).message_id

    def pipeline() -> None:
        with client.pipeline(transaction=False) as commands:
            commands.hset("job", mapping={name: json.dumps(value) for name, value in FIELDS.items()})
            commands.expire("job", 604_800)
            commands.execute()

    return {
        "Enqueueing": {name: partial(actor.send, 0) for name, actor in actors.items()},
        "A no-op job: hooks, actor, acknowledgement": {name: run_jobs(actor) for name, actor in actors.items()},
        "An update of three fields": {
            "redis-py pipeline: HSET, EXPIRE": pipeline,
            "StatusRegistry.get(id).update": lambda: StatusRegistry.get(message_id, backend=backend).update(**FIELDS),
        },
        "A read": {
            "redis-py, hgetall": lambda: client.hgetall("dramatiq-status:" + message_id),
            "StatusRegistry.read": lambda: StatusRegistry.read(message_id, backend=backend),
        },
    }


def run_jobs(actor: dramatiq.Actor[[int], None]) -> Case:
    """Return a function that runs the next job of an actor, with the hooks that a worker calls, on this thread."""
    broker = actor.broker
    messages = broker.consume(actor.queue_name, prefetch=1000)

    def run_job() -> None:
        message = next(messages)
        if message is None:
            raise AssertionError("There is no message left.")
        broker.emit_before("process_message", message)
        actor(*message.args)
        broker.emit_after("process_message", message, result=None)
        broker.emit_before("ack", message)
        messages.ack(message)
        broker.emit_after("ack", message)

    return run_job


def measure(server_pid: int, directory: Path, url: str, calls: int) -> dict[str, dict[str, tuple[int, int]]]:
    """Return the instructions of a call in this process and in the server, by table and case."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for title, table in cases(url).items():
        found[title] = {}
        for name, call in table.items():
            for _ in range(WARM_UP):
                call()
            # The second of two counts in a row has only the instructions of a count itself.
            ours, servers = [(count(pid, directory), count(pid, directory))[1] for pid in (os.getpid(), server_pid)]
            for _ in range(calls):
                call()
            own, server = count(os.getpid(), directory) - ours, count(server_pid, directory) - servers
            found[title][name] = (own // calls, server // calls)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--calls", type=int, default=300, help="counted calls of each case")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        with patch(LIMITS[0], 3600.0), patch(LIMITS[1], 3600.0):
            print(json.dumps(measure(**json.loads(options.inside), directory=Path.cwd(), calls=options.calls)))
        return
    print(versions(), end="\n\n", flush=True)
    with CountedServer() as server:
        directory = server.directory
        command = [*under_callgrind(directory), sys.executable, "-m", "benchmarks.instructions", "--inside"]
        command += [json.dumps({"server_pid": server.pid, "url": server.url}), "--calls", str(options.calls)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"}
        answer = subprocess.run(command, cwd=directory, env=environment, check=True, stdout=subprocess.PIPE)
    for title, found in json.loads(answer.stdout).items():
        rows = [["case", "client", "server", "client's ratio", "server's ratio"]]
        base = next(iter(found.values()))
        for name, (own, servers) in found.items():
            rows.append([name, f"{own:,}", f"{servers:,}", f"{own / base[0]:.2f}", f"{servers / base[1]:.2f}"])
        print(Table(f"{title}: instructions of a call", rows), flush=True)


if __name__ == "__main__":
    main()
