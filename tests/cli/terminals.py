"""Commands in real processes, on pipes and on real pseudo-terminals."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pyte

ROOT = Path(__file__).parent.parent.parent

#: The command line, as `python -m dramatiq_status` runs it.
COMMAND = (sys.executable, "-m", "dramatiq_status")


class Done(NamedTuple):
    """A command that has ended."""

    status: int
    output: str
    errors: str = ""


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a command, without variables that name a store or choose colours."""
    chosen = (
        "DRAMATIQ_STATUS_URL",
        "NO_COLOR",
        "FORCE_COLOR",
        "COLUMNS",
        "LINES",
        "LC_ALL",
        "LC_CTYPE",
        "LANG",
        "PYTHONIOENCODING",
    )
    found = {name: value for name, value in os.environ.items() if name not in chosen}
    return {**found, "LC_ALL": "C.UTF-8", "TERM": "xterm-256color", "PYTHONPATH": str(ROOT), **more}


def on_pipe(*arguments: str, cwd: Path = ROOT, answer: str = "", **variables: str) -> Done:
    """Run a command on pipes."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        env=environment(**variables),
        input=answer.encode(),
        capture_output=True,
        timeout=60,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def on_terminal(*arguments: str, columns: int = 80, rows: int = 24, answer: str = "", **variables: str) -> Done:
    """Run a command on a pseudo-terminal, and return all that it has written there."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        [*COMMAND, *arguments], cwd=ROOT, env=environment(**variables), stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    if answer:
        os.write(master, answer.encode())
    written = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:
            # Linux reports the end of a pseudo-terminal as an error.
            break
        if not piece:
            break
        written += piece
    os.close(master)
    return Done(process.wait(60), written.decode())


def screen_of(done: Done, columns: int = 80, rows: int = 100) -> list[str]:
    """Return the lines of a terminal that shows the output."""
    screen = pyte.Screen(columns, rows)
    pyte.Stream(screen).feed(done.output)
    return [line.rstrip() for line in screen.display]


class Session:
    """A command that runs on a pseudo-terminal of its own, and the screen that a person would see.

    Parameters:
      command(Sequence[str])
      columns(int)
      rows(int)
    """

    def __init__(self, command: Sequence[str], *, columns: int = 80, rows: int = 24, **variables: str) -> None:
        self.master, slave = pty.openpty()
        self.screen = pyte.HistoryScreen(columns, rows, history=2000)
        self._stream = pyte.ByteStream(self.screen)
        self.written = b""
        self.resize(columns, rows)
        found = environment(**variables)
        found.pop("CI", None)
        self.process = subprocess.Popen(
            # The child opens the terminal as the one that controls its session, like the child of a terminal emulator.
            [sys.executable, "-c", _IN_SESSION, os.ttyname(slave), *command],
            cwd=ROOT, env=found, start_new_session=True, stdin=slave, stdout=slave, stderr=slave,
        )  # fmt: skip
        self.slave = slave

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.screen.resize(rows, columns)

    def send(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def echoes(self) -> bool:
        """Whether the terminal shows the keys that are typed."""
        return bool(termios.tcgetattr(self.slave)[3] & termios.ECHO)

    def read(self, seconds: float = 0.1) -> None:
        """Take what the command has written."""
        while select.select([self.master], [], [], seconds)[0]:
            piece = os.read(self.master, 65536)
            self.written += piece
            self._stream.feed(piece)
            seconds = 0.02

    def until(self, condition: Callable[[], object], seconds: float = 30.0) -> None:
        """Read until a condition is true of the screen."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.text
            self.read()

    def end(self) -> int:
        """Wait for the end of the command."""
        self.until(lambda: self.process.poll() is not None)
        self.read()
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(20)
        os.close(self.slave)
        os.close(self.master)


_IN_SESSION = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[2], sys.argv[2:])
"""
