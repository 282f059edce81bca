"""The capabilities of the output stream: width, colours and glyphs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final, NamedTuple, TextIO

from ..words import (
    CANCELLED,
    COMPLETED,
    FAILED,
    OFFLINE,
    QUEUED,
    RETRYING,
    SCHEDULED,
    SKIPPED,
    STALLED,
    UNKNOWN,
    WORKING,
)
from .text import columns_of

#: A text and the name of its style; the name is empty for a text without a style.
Segment = tuple[str, str]

#: ANSI codes (SGR) by the names of styles.  They use the sixteen colours of the terminal's theme, which fit
#: its background.
_STYLES: Final = {
    "bold": "1",
    "dim": "2",
    "good": "32",
    "working": "94",
    "retrying": "95",
    "broken": "91",
    "failed": "1;97;41",
    "stalled": "1;30;43",
}

#: Styles without colours: failed and stalled states are shown in reverse video.
_PLAIN_STYLES: Final = {"bold": "1", "dim": "2", "failed": "1;7", "stalled": "1;7"}

#: Glyphs of states: in Unicode, and in ASCII.
_GLYPHS: Final = {
    QUEUED: ("◦", "o"),
    SCHEDULED: ("◷", "@"),
    WORKING: ("◒", ">"),
    RETRYING: ("↻", "~"),
    STALLED: ("◬", "!"),
    FAILED: ("✘", "X"),
    COMPLETED: ("✓", "+"),
    SKIPPED: ("⊖", "-"),
    CANCELLED: ("⊖", "-"),
    OFFLINE: ("⊘", "/"),
    UNKNOWN: ("?", "?"),
}

#: Characters of bars: the done part, its half cell, the rest; the part of an earlier run, its end; a stalled job.
_BAR: Final = ("━", "╾", "─", "╌", "┃", "╱")  # noqa: RUF001
_ASCII_BAR: Final = ("=", "=", ".", "-", "|", "/")

_EAST_ASIAN: Final = ("zh", "ja", "ko")


class Terminal(NamedTuple):
    """Capabilities of a stream.

    Parameters:
      live(bool): Whether the stream is a terminal.
      width(int): In cells.
      colours(str): ``"all"``, ``"plain"`` for bold, dim and reverse video alone, or ``"none"``.
      unicode(bool): Whether it can show all glyphs.
    """

    live: bool
    width: int
    colours: str
    unicode: bool

    def glyph(self, state: str) -> str:
        """Return the glyph of a state."""
        return _GLYPHS[state][0 if self.unicode else 1]

    @property
    def bar(self) -> tuple[str, ...]:
        """The characters of bars: done, half, rest, ghost, break, hatch."""
        return _BAR if self.unicode else _ASCII_BAR

    @property
    def ellipsis(self) -> str:
        return "…" if self.unicode else "..."

    @property
    def dot(self) -> str:
        return "·" if self.unicode else "-"

    def paint(self, segments: Iterable[Segment]) -> str:
        """Return styled texts as one line, with the codes of their styles."""
        line = "".join(self._painted(text, style) for text, style in segments)
        return line if self.unicode else line.replace("·", self.dot)

    def _painted(self, text: str, style: str) -> str:
        styles = {"all": _STYLES, "plain": _PLAIN_STYLES}.get(self.colours, {})
        return f"\x1b[{styles[style]}m{text}\x1b[0m" if style in styles and text else text


def terminal_of(stream: TextIO) -> Terminal:
    """Find out what a stream can show, from its descriptor and the environment."""
    live = stream.isatty()
    forced = os.environ.get("FORCE_COLOR", "") not in ("", "0")
    dumb = os.environ.get("TERM") == "dumb"
    if not (live or forced) or (dumb and not forced):
        colours = "none"
    else:
        colours = "plain" if os.environ.get("NO_COLOR") else "all"
    width = max(20, columns_of(stream, 160)) if live else 160
    return Terminal(live, width, colours, _shows_all_glyphs(stream))


def _shows_all_glyphs(stream: TextIO) -> bool:
    locale = os.environ.get("LC_ALL") or os.environ.get("LC_CTYPE") or os.environ.get("LANG") or ""
    if locale[:2] in _EAST_ASIAN:
        # In these locales, terminals show some characters of bars in two cells.
        return False
    try:
        "".join([*_BAR, *(glyph for glyph, _ in _GLYPHS.values()), "…·"]).encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
