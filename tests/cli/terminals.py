"""Commands in real processes, on pipes and on real pseudo-terminals."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
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
    """The environment of a command: nothing in it names a store or chooses colours."""
    chosen = ("DRAMATIQ_STATUS_URL", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "LC_ALL", "LC_CTYPE", "LANG")
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
    """The lines of a terminal that shows the output."""
    screen = pyte.Screen(columns, rows)
    pyte.Stream(screen).feed(done.output)
    return [line.rstrip() for line in screen.display]
