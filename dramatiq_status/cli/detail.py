"""The page of one job that ``get`` prints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

from ..snapshot import Snapshot
from .rows import Job, table
from .terminal import Segment, Terminal
from .text import clean, cut, pad, width
from .words import ago, facts_of, reason_of

#: Width of the column of names, in cells.
_NAMES: Final = 14

#: Longest value that is printed whole, in characters.
_WHOLE: Final = 2000

Row = list[Segment]


def detail_of(snapshot: Snapshot, terminal: Terminal, now: datetime) -> Iterator[Row]:
    """Lay out all that the store has of a job.

    Parameters:
      snapshot(Snapshot)
      terminal(Terminal)
      now(datetime)
    """
    facts = facts_of(snapshot.message_id, snapshot, now)
    yield from table([Job(facts)], terminal)
    yield [("   ", ""), (facts.message_id, "dim")]
    if snapshot.runs or snapshot.finished:
        yield from _section("Timeline")
        for event in snapshot.timeline:
            yield [("   ", ""), (cut(clean(event), terminal.width - 3, terminal.ellipsis), "")]
    exception = snapshot.exception
    if exception is not None:
        yield from _section("Exception")
        yield [("   ", ""), (reason_of(exception), "bold")]
        for line in _text_lines(snapshot.get("traceback")):
            yield [("   ", ""), (cut(clean(line), terminal.width - 3, terminal.ellipsis), "dim")]
    if snapshot.fields:
        yield from _section("Fields")
        for name, value in snapshot.fields.items():
            yield from _value(clean(name), value, terminal, 1)
    yield from _section("Message")
    included = [
        (name, snapshot.get(name)) for name in ("args", "kwargs") if name in snapshot and name not in snapshot.fields
    ]
    for name, value in (("actor", snapshot.actor_name), ("queue", snapshot.queue_name), *included):
        if value is not None:
            yield from _value(name, value, terminal, 1, quoted=name in ("args", "kwargs"))
    yield from _value("attempts", snapshot.attempts, terminal, 1)
    times = ("enqueued_at", "scheduled_at", "started_at", "finished_at", "updated_at", "heartbeat_at")
    for name in times:
        time = getattr(snapshot, name)
        if time is not None:
            when = time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
            passed = "" if time > now else f"   {ago(time, now)}"
            yield from _value(name.removesuffix("_at"), f"{when}{passed}", terminal, 1, quoted=False)
    if snapshot.truncated:
        yield from _value("left out", ", ".join(snapshot.truncated), terminal, 1, quoted=False)


def _section(title: str) -> Iterator[Row]:
    yield []
    yield [(f" {title}", "bold")]


def _value(name: str, value: Any, terminal: Terminal, depth: int, *, quoted: bool = True) -> Iterator[Row]:
    """Lay out one value; those inside of a list or a dict below it."""
    indent = "  " * depth + " "
    room = max(10, terminal.width - len(indent) - _NAMES)
    label = pad(cut(name, _NAMES - 1, terminal.ellipsis), _NAMES)
    if isinstance(value, (list, dict)) and value and depth < 6:
        opening, closing = "[]" if isinstance(value, list) else "{}"
        yield [(indent, ""), (label, ""), (f"{opening}{len(value)}{closing}", "dim")]
        items = enumerate(value) if isinstance(value, list) else value.items()
        for inner, item in items:
            yield from _value(clean(str(inner)), item, terminal, depth + 1)
        return
    text = value if isinstance(value, str) and not quoted else json.dumps(value, ensure_ascii=False)
    shown = clean(text[:_WHOLE])
    if width(shown) > room or len(text) > _WHOLE:
        size = f"  {len(text):,} characters, whole by --json"
        shown = cut(shown, max(3, room - len(size)), terminal.ellipsis) + size
    yield [(indent, ""), (label, ""), (shown, "")]


def _text_lines(text: Any) -> list[str]:
    """Return the last lines of a traceback."""
    return text.rstrip().split("\n")[-12:] if isinstance(text, str) else []
