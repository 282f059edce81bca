"""Shells that run the commands of a page."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from select import select
from tempfile import TemporaryFile
from typing import Any, TypeVar

ROOT = Path(__file__).parents[2]

ShellT = TypeVar("ShellT", bound="Shell")

#: Maximum number of seconds until a command ends, or until a process in the background is ready.
PATIENCE = 240.0


class Shell:
    """A shell in a directory, which finds the commands of this Python first.  It ends with its ``with`` block, and
    with it all that runs in it.

    Parameters:
      folder(Path): The directory.
      command(str): What the shell runs; by default the commands that it reads from its standard input.
      output(int | IO): Where its output goes.
    """

    def __init__(self, folder: Path, command: str | None = None, output: Any = subprocess.PIPE) -> None:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("COVERAGE_", "PYTEST_", "VIRTUAL_ENV"))
        }
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        self.process = subprocess.Popen(
            ["bash", "--norc"] if command is None else ["bash", "--norc", "-c", command],
            cwd=folder,
            env={**environment, "PYTHONUNBUFFERED": "1", "COLUMNS": "88"},
            stdin=subprocess.PIPE if command is None else subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def __enter__(self: ShellT) -> ShellT:
        return self

    def __exit__(self, *exception: object) -> None:
        # All that runs in the shell gets the signal that a service manager sends.
        for end in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, end)
                self.process.communicate(timeout=15)
                return
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue


class Session(Shell):
    """A shell that runs one command after the other."""

    _status = 0
    _output = ""

    def run(self, command: str, place: str) -> str:
        """Run a command, and return its output.  A command that fails is an error, unless the next one shows ``$?``."""
        if command != "echo $?":
            self.check(place)
        mark = token_hex(8)
        self._send(f"(exit {self._status})\n{{ {command}\n}} </dev/null\nprintf '\\n{mark} %d\\n' $?\n")
        found = self._read_until(re.compile(rf"\n{mark} (\d+)\n".encode()), place)
        self._status, self._output = int(found[1]), found.string[: found.start()].decode()
        return self._output

    def check(self, place: str) -> None:
        """Fail if the last command has failed."""
        assert self._status == 0, f"before {place} a command ended with {self._status}:\n{self._output}"

    def _send(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def _read_until(self, end: re.Pattern[bytes], place: str) -> re.Match[bytes]:
        assert self.process.stdout is not None
        got, deadline = b"", time.monotonic() + PATIENCE
        while (found := end.search(got)) is None:
            left = deadline - time.monotonic()
            ready = left > 0 and select([self.process.stdout], [], [], left)[0]
            part = os.read(self.process.stdout.fileno(), 65_536) if ready else b""
            assert part, f"{place} {'has ended' if ready else 'takes too long'}; it has printed\n{got.decode()}"
            got += part
        return found


def run_python(file: str) -> None:
    """Run a file of a page in a process of its own, which can import the tests."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, file]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout.decode()


@contextmanager
def background(folder: Path, command: str, ready: str, place: str) -> Iterator[None]:
    """Run a command for the length of the block, which begins when the command has printed a text."""
    # A process whose output is not read could fill a pipe, but not a file.
    with TemporaryFile() as output, Shell(folder, command, output) as shell:
        deadline = time.monotonic() + PATIENCE
        while ready.encode() not in (printed := os.pread(output.fileno(), 1_000_000, 0)):
            ended = shell.process.poll() is not None
            late = time.monotonic() > deadline
            assert not (ended or late), f"{place} {'has ended' if ended else 'takes too long'}:\n{printed.decode()}"
            time.sleep(0.02)
        yield
