"""A picture that changes in place in a terminal, and that leaves the terminal as it was."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
from collections.abc import Sequence
from types import FrameType
from typing import Any, Final

from .terminal import Segment, Terminal
from .text import width

#: Codes that hide the cursor and switch line wrapping off, and codes that undo both.
_BEGIN: Final = "\x1b[?25l\x1b[?7l"
_END: Final = "\x1b[?7h\x1b[?25h"

_CLEAR_REST_OF_LINE: Final = "\x1b[K"
_CLEAR_BELOW: Final = "\x1b[J"
_CLEAR_ALL: Final = "\x1b[H\x1b[J"


class Screen:
    """A part of a terminal's screen whose rows are redrawn in place, from the cursor's line on.  The cursor stays on
    the free line below them.

    While it is open, the terminal shows no cursor, does not wrap long lines and does not echo keys.  A stop by Ctrl-Z,
    SIGTERM, SIGHUP and the end of the context restore this.

    Parameters:
      descriptor(int): File descriptor of the terminal.
      with_keys(bool): Whether to take the keys that are pressed.  Otherwise they stay for the shell.
    """

    def __init__(self, descriptor: int, *, with_keys: bool = False) -> None:
        self._descriptor = descriptor
        self._drawn: list[str] = []
        self._size = os.get_terminal_size(descriptor)
        #: Whether keys can be read: they are wanted, and the input is a terminal.
        self.has_keys: bool = with_keys and sys.stdin is not None and sys.stdin.isatty()
        self._settings: list[Any] | None = None
        self._begun = False
        self._handlers: dict[int, Any] = {}
        # Whether rows are being drawn, whether the process has to stop after that, and whether it has continued.
        self._is_drawing = self._must_stop = self._has_continued = False

    @property
    def size(self) -> os.terminal_size:
        """The present size of the terminal; one that reports none has 80 columns and 24 rows."""
        columns, rows = os.get_terminal_size(self._descriptor)
        return os.terminal_size((columns or 80, rows or 24))

    def __enter__(self) -> Screen:
        for number, handler in (
            (signal.SIGTSTP, self._stop),
            (signal.SIGCONT, self._continue),
            (signal.SIGTERM, self._terminate),
            (signal.SIGHUP, self._terminate),
        ):
            self._handlers[number] = signal.signal(number, handler)
        self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def draw(self, rows: Sequence[Sequence[Segment]], terminal: Terminal) -> None:
        """Replace the rows that are shown.  Only rows that differ are written.

        Parameters:
          rows(Sequence[Sequence[Segment]]): Fewer than the terminal has.
          terminal(Terminal)
        """
        if not self._is_in_foreground():
            return
        self._is_drawing = True
        try:
            self._draw(rows, terminal)
        finally:
            self._is_drawing = False
        if self._must_stop:
            self._must_stop = False
            self._stop()

    def _draw(self, rows: Sequence[Sequence[Segment]], terminal: Terminal) -> None:
        if self._has_continued:
            # The shell has written below the picture: draw a new one there.
            self._has_continued, self._drawn, self._size = False, [], self.size
        written = []
        if self.size != self._size:
            self._size = self.size
            if self._drawn:
                # Where the old rows are after a change of size depends on the terminal.
                written.append(_CLEAR_ALL)
                self._drawn = []
        lines = [self._line(row, terminal) for row in rows]
        if self._drawn:
            written.append(f"\x1b[{len(self._drawn)}A")
        skipped = 0
        for at, line in enumerate(lines):
            if at < len(self._drawn) and self._drawn[at] == line:
                skipped += 1
                continue
            written += [f"\x1b[{skipped}B" if skipped else "", "\r", line, "\n"]
            skipped = 0
        if skipped:
            written.append(f"\x1b[{skipped}B")
        written.append("\r")
        if len(lines) < len(self._drawn):
            written.append(_CLEAR_BELOW)
        self._drawn = lines
        if written != ["\r"]:
            self._write("".join(written))

    def _line(self, row: Sequence[Segment], terminal: Terminal) -> str:
        # After a full row, the cursor is in the last column, where some terminals would clear the last character.
        is_full = sum(width(text) for text, _ in row) >= self._size.columns
        return terminal.paint(row) + ("" if is_full else _CLEAR_REST_OF_LINE)

    def _begin(self) -> None:
        if not self._is_in_foreground():
            return
        try:
            settings = termios.tcgetattr(self._descriptor)
        except termios.error:
            return
        if not self._begun:
            self._settings = settings
        quiet = list(settings)
        # Without ICANON, a key can be read before the return key is pressed; Ctrl-C and Ctrl-Z stay signals.
        quiet[3] &= ~(termios.ECHO | (termios.ICANON if self.has_keys else 0))
        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, quiet)
        self._begun = True
        self._write(_BEGIN)

    def keys(self) -> str:
        """Return the keys that were pressed since the last call."""
        if not (self.has_keys and self._is_in_foreground()):
            return ""
        descriptor = sys.stdin.fileno()
        ready = select.select([descriptor], [], [], 0)[0]
        return os.read(descriptor, 1024).decode("ascii", "replace") if ready else ""

    def restore(self) -> None:
        """Show the cursor, wrap long lines and echo keys again."""
        if not self._begun:
            return
        self._begun = False
        self._write(_END)
        if self._settings is not None and self._is_in_foreground():
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._settings)

    def _stop(self, *_: object) -> None:
        if self._is_drawing:
            # What was drawn in part could not be continued below the lines of the shell.
            self._must_stop = True
            return
        self.restore()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        # The process continues here.
        signal.signal(signal.SIGTSTP, self._stop)

    def _continue(self, number: int, frame: FrameType | None) -> None:
        self._has_continued = True
        self._begin()

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    def _is_in_foreground(self) -> bool:
        try:
            return os.tcgetpgrp(self._descriptor) == os.getpgrp()
        except OSError:
            # The descriptor's terminal is not the one that controls this process.
            return True

    def _write(self, text: str) -> None:
        data = text.encode(sys.stdout.encoding or "utf-8", "replace")
        while data:
            data = data[os.write(self._descriptor, data) :]
