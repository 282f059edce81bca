"""HTML.  The functions of this module escape all texts except :class:`Markup`."""

from __future__ import annotations

from html import escape as _escape
from typing import Any, Final

_VOID: Final = frozenset(("input", "link", "meta"))


class Markup(str):
    """A text that is HTML already."""

    __slots__ = ()


def escape(value: object) -> Markup:
    """Escape a value, unless it is :class:`Markup`; None and False become nothing."""
    if isinstance(value, Markup):
        return value
    return Markup("" if value is None or value is False else _escape(str(value)))


def join(*children: object) -> Markup:
    """Escape and join values."""
    return Markup("".join(map(escape, children)))


def tag(name: str, /, *children: object, **attributes: Any) -> Markup:
    """Make an element.

    An underscore in the name of an attribute stands for a hyphen; one at its end is dropped.  An attribute that is None
    or False is left out, one that is True has no value.

    >>> tag("a", "1 < 2", href="?a=1&b=2", aria_label="x", class_="y")
    '<a href="?a=1&amp;b=2" aria-label="x" class="y">1 &lt; 2</a>'
    """
    parts = [name]
    for key, value in attributes.items():
        if value is not None and value is not False:
            key = key.rstrip("_").replace("_", "-")
            parts.append(key if value is True else f'{key}="{_escape(str(value))}"')
    opening = f"<{' '.join(parts)}>"
    return Markup(opening if name in _VOID else f"{opening}{join(*children)}</{name}>")


def icon(name: str, *classes: str) -> Markup:
    """Make a reference to a glyph of ``glyphs.svg``'s sprite."""
    return Markup(
        f'<svg class="{" ".join(("i", *classes))}" aria-hidden="true" focusable="false"><use href="#i-{name}"/></svg>'
    )
