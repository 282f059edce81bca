"""Recorded events.  Each process writes its own file, one line for each event.

No fault touches these files, and a process that is killed loses no line of its own. Moments are epoch seconds.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Fact = dict[str, Any]


class FactFile:
    """The file of a process, in a directory that all processes share. Threads may share the file."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._pid = 0
        self._descriptor = -1

    def write(self, what: str, **values: Any) -> None:
        """Add a fact; it is in the file when this returns."""
        pid = os.getpid()
        if pid != self._pid:
            # Dramatiq forks its workers.
            self._descriptor = os.open(
                self._directory / f"{pid}.facts", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            )
            self._pid = pid
        line = json.dumps({"t": time.time(), "pid": pid, "what": what, **values}, separators=(",", ":"))
        os.write(self._descriptor, line.encode() + b"\n")


def read_facts(directory: Path) -> list[Fact]:
    """Read all facts, the earliest first."""
    return sorted(_lines(directory), key=lambda fact: fact["t"])


def _lines(directory: Path) -> Iterator[Fact]:
    for path in directory.glob("*.facts"):
        for line in path.read_bytes().splitlines():
            yield json.loads(line)
