"""Texts for a terminal: made harmless, measured in cells, and cut."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from typing import Final, TextIO

#: Control characters with an escape sequence of their own in Python's texts.
_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}

#: Categories of characters that are not shown: control, format (bidirectional controls, zero width), surrogates,
#: private use, unassigned, line and paragraph separators.
_HIDDEN: Final = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))

ELLIPSIS: Final = "…"

#: Maximum size of a wrapped text that needs more than three lines, in cells.
_WRAPPED: Final = 240


def clean(text: str) -> str:
    r"""Escape all characters that would move the cursor, change colours, or hide or reorder other characters.

    All output for people passes through this function.

    >>> clean("\x1b[31mred\nrtl: \u202e")
    '\\x1b[31mred\\nrtl: \\u202e'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_clean_character, text))


def _clean_character(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    if unicodedata.category(character) not in _HIDDEN:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def width(text: str) -> int:
    """Return the number of terminal cells of a clean text.

    >>> width("abc"), width("\u4f60\u597d"), width("e\u0301")
    (3, 4, 1)
    """
    if text.isascii():
        return len(text)
    return sum(map(_cells, text))


def _cells(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, cells: int, ellipsis: str = ELLIPSIS) -> str:
    """Cut a clean text to a number of cells.

    >>> cut("insufficient funds", 12), cut("short", 12)
    ('insufficien…', 'short')
    """
    if width(text) <= cells:
        return text
    kept, left = [], cells - width(ellipsis)
    for character in text:
        left -= _cells(character)
        if left < 0:
            break
        kept.append(character)
    return "".join(kept).rstrip() + ellipsis if cells >= width(ellipsis) else ""


def wrapped(text: str, cells: int, ellipsis: str = ELLIPSIS) -> list[str]:
    """Break a clean text into lines at its spaces.  A word is broken only if it is longer than a line.  A text that
    needs more than three lines, and more than 240 cells, is cut.

    Parameters:
      text(str)
      cells(int): Maximum width of a line, at least 2.
      ellipsis(str)

    >>> wrapped("stopped watching; the jobs go on", 20)
    ['stopped watching;', 'the jobs go on']
    """
    found, left = list[str](), text
    while width(left) > cells and len(found) < max(3, _WRAPPED // cells) - 1:
        line = cut(left, cells, "")
        space = left.rfind(" ", 0, len(line) + 1)
        end = space if space > 0 else len(line)
        found.append(left[:end])
        left = left[end:].lstrip(" ")
    return [*found, cut(left, cells, ellipsis)]


def pad(text: str, cells: int) -> str:
    """Fill a clean text with spaces on its right side."""
    return text + " " * (cells - width(text))


def pad_left(text: str, cells: int) -> str:
    """Fill a clean text with spaces on its left side."""
    return " " * (cells - width(text)) + text


def did_you_mean(given: str, names: Iterable[str]) -> str:
    """Return the end of a sentence about a name that is unknown.

    >>> did_you_mean("wach", ["watch", "wait"]), did_you_mean("x", ["watch"])
    ('; did you mean watch?', '.')
    """
    # Only mistakes need this module, whose import takes some milliseconds.
    from difflib import get_close_matches

    found = get_close_matches(given, list(names), 1, 0.7)
    return f"; did you mean {found[0]}?" if found else "."


def columns_of(stream: TextIO, other: int = 80) -> int:
    """Return the width of the terminal to which a stream belongs, in cells; `other` where it is unknown."""
    # shutil.get_terminal_size() returns it, too, but the module shutil imports the modules of all archive formats.
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(stream.fileno()).columns or other
    except OSError:
        return other
