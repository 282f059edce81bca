"""The start of the command line, in processor time beside a bare Python."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from dramatiq_status.backends import SQLiteBackend
from dramatiq_status.testing.updates import enqueue

from .common import ROOT, Options, Table, ratios, spread

#: Number of times that each command is started.
ROUNDS = 30


def run(options: Options) -> Iterator[Table]:
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
    yield Table("Processor time of the command line", rows)


def _processor_time(arguments: tuple[str, ...], environment: dict[str, str]) -> float:
    """Run Python, and return the seconds of processor time that it takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
