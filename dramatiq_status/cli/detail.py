"""The page of one job that ``get`` prints."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final

from ..snapshot import Snapshot
from ..words import COMPLETED, FAILED, QUEUED, STALLED, STATES, WORKING, Step, age, life_of, steps_of
from .facts import Facts, facts_of, reason_of
from .rows import Job, bar_of, has_bar, id_row, mark_of, stripped, style_of, table
from .terminal import Segment, Terminal
from .text import clean, cut, pad, width, wrapped

#: Width of the column of names, in cells.
_NAMES: Final = 14

#: Cells before the content of the first lines, and cells of the bar there.
_INDENT: Final = 13
_BAR: Final = 41

#: Minimum number of cells for a text about a step; with fewer, the text is left out instead of being cut.
_LEAST: Final = 16

#: Maximum number of children that have a row, and maximum number of items of a list or a dict that has a row for each
#: item.
_ROWS: Final = 12
_ITEMS: Final = 10

#: Width of a terminal below which long texts have lines of their own, in cells.
_NARROW: Final = 40

#: Minimum width of a terminal on which a row shows two times, and minimum room for a cut value and its size, in cells.
_TWO_TIMES: Final = 60
_CUT: Final = 45

#: Styles of runs in the timeline to scale.
_STYLES: Final = {COMPLETED: "good", WORKING: "working", STALLED: ""}

_JOINT: Final = " · "

#: Maximum length of a value that is printed whole, in characters.
_WHOLE: Final = 2000

Row = list[Segment]


def detail_of(snapshot: Snapshot, children: Sequence[Snapshot], terminal: Terminal, now: datetime) -> Iterator[Row]:
    """Lay out all that the store has of a job.

    Parameters:
      snapshot(Snapshot)
      children(Sequence[Snapshot]): The messages that its field ``children`` names, as far as they are known.
      terminal(Terminal)
      now(datetime)
    """
    facts = facts_of(snapshot.message_id, snapshot, now)
    yield from _head(facts, terminal)
    yield from _timeline(snapshot, facts, terminal, now)
    exception = snapshot.exception
    if exception is not None and not snapshot.completed:
        run = snapshot.attempts if snapshot.queued or snapshot.finished else snapshot.attempts - 1
        # The second half of the note has no room on a terminal of less than 80 cells.
        later = "" if snapshot.finished or terminal.width < 80 else "; is removed if a later run completes"
        note = f"of run {run}{later}" if run > 0 else ""
        yield from _section("Exception", note, terminal)
        for line in wrapped(reason_of(exception), terminal.width - 3, terminal.ellipsis):
            yield [("   ", ""), (line, "bold")]
        for line in _frames(snapshot.get("traceback"), reason_of(exception)):
            yield [("   ", ""), (cut(clean(line), terminal.width - 3, terminal.ellipsis), "dim")]
    if children:
        yield from _children(children, terminal, now)
    if snapshot.fields:
        yield from _section("Fields", "of this job", terminal)
        for name, value in snapshot.fields.items():
            yield from _value(clean(name), value, terminal, 1)
    yield from _section("Message", "", terminal)
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
            passed = "" if time > now or terminal.width < _TWO_TIMES else f"   {age(now - time)}"
            yield from _value(name.removesuffix("_at"), f"{when}{passed}", terminal, 1, quoted=False)
    if snapshot.truncated:
        yield from _value("left out", ", ".join(snapshot.truncated), terminal, 1, quoted=False)


def _head(facts: Facts, terminal: Terminal) -> Iterator[Row]:
    """Lay out the state, the name and the id; below them the bar, and what the job does."""
    name = facts.name or facts.message_id
    if terminal.width < 80:
        yield from table([Job(facts)], terminal)
        if name != facts.message_id:
            yield id_row(facts.message_id, terminal)
        return
    state = mark_of(facts.state, terminal)
    room = terminal.width - _INDENT - width(facts.message_id) - 3
    name = cut(name, max(8, room), terminal.ellipsis)
    gap = max(2, min(terminal.width, 80) - _INDENT - width(name) - width(facts.message_id))
    yield [*state, (name, "bold"), *([(" " * gap, ""), (facts.message_id, "dim")] if facts.name else [])]
    if has_bar(facts):
        percent = "" if facts.percent is None else f"  {facts.percent}%"
        right = _INDENT + _BAR + width(percent) + width(facts.time)
        gap = max(2, min(terminal.width, 80) - right)
        yield [(" " * _INDENT, ""), *bar_of(facts, _BAR, terminal), (percent, ""), (" " * gap + facts.time, "")]
        details = facts.detail
    else:
        details = _JOINT.join(filter(None, (facts.detail, facts.time)))
    if details:
        yield [(" " * _INDENT, ""), (cut(details, terminal.width - _INDENT, terminal.ellipsis), "dim")]


def _timeline(snapshot: Snapshot, facts: Facts, terminal: Terminal, now: datetime) -> Iterator[Row]:
    """Lay out the life of a job: to scale, then in words."""
    steps = list(steps_of(snapshot, now))
    if not any(step.at for step in steps):
        return
    yield from _section("Timeline", life_of(snapshot, now), terminal)
    yield from _track(steps, terminal)
    titles, texts = (max(width(text) for text in column) for column in zip(*((s.title, s.text) for s in steps)))
    for step in steps:
        row: Row = [("   ", "")]
        if terminal.width < _NARROW:
            whole = ", ".join(filter(None, (step.title, step.text)))
            head, *others = _wrapped(whole, 5, terminal)
            yield [*row, (terminal.glyph(step.state), style_of(step.state)), (f" {head}", "")]
            yield from ([("     ", ""), (line, "")] for line in others)
            continue
        if terminal.width >= _TWO_TIMES:
            row += [(pad("" if step.at is None else _clock(step.at), 8), "dim"), ("  ", "")]
        row += [(terminal.glyph(step.state), style_of(step.state)), (f" {pad(step.title, titles)}", "")]
        room = max(0, terminal.width - sum(width(text) for text, _ in row) - 2)
        row.append((f"  {pad(cut(step.text, room, terminal.ellipsis), min(texts, room))}", ""))
        details = _step_details(step, snapshot, facts)
        room = terminal.width - sum(width(text) for text, _ in row) - 2
        if room >= _LEAST or width(details) <= room:
            row.append((f"  {cut(details, room, terminal.ellipsis)}", "dim"))
        yield stripped(row)


def _step_details(step: Step, snapshot: Snapshot, facts: Facts) -> str:
    """Return further text about a step: the exception, the present activity, the time of a delay, or the queue."""
    if step.run is not None:
        if step.run.exception:
            return reason_of(step.run.exception)
        return _JOINT.join(filter(None, (facts.step, facts.done))) if step.run.outcome is None else ""
    if step.until is not None:
        return f"for {_clock(step.until)}"
    return f"to {clean(snapshot.queue_name)}" if step.state == QUEUED and snapshot.queue_name else ""


def _track(steps: Sequence[Step], terminal: Terminal) -> Iterator[Row]:
    """Draw the steps that have a length, to scale, with their lengths below as far as these fit."""
    drawn = [(step, step.length.total_seconds()) for step in steps if step.length is not None]
    total, room = sum(seconds for _, seconds in drawn), min(terminal.width, 80) - 4 - len(drawn)
    if total <= 0 or room < 2 * len(drawn):
        return
    # Each step has at least two cells.  The longest step gets fewer cells in return.
    cells = [max(2, int(room * seconds / total)) for _, seconds in drawn]
    cells[cells.index(max(cells))] += room - sum(cells)
    bar, words = list[Segment]([("   ", "")]), "   "
    at = 3
    for (step, _), size in zip(drawn, cells):
        done, rest = terminal.bar[0], terminal.bar[2]
        bar += [
            (rest * size, "dim") if step.run is None else (done * size, _STYLES.get(step.state, "broken")),
            (" ", ""),
        ]
        text = step.text.removeprefix("waited ").removeprefix("ran ").removeprefix("waiting for ")
        if width(text) <= size and width(words) <= at:
            words = f"{pad(words, at)}{text} "
        at += size + 1
    yield []
    yield stripped(bar)
    if words.strip():
        yield [(words.rstrip(), "dim")]
    yield []


def _children(children: Sequence[Snapshot], terminal: Terminal, now: datetime) -> Iterator[Row]:
    """Roll up the children, and lay out those that failed or stalled."""
    facts = [facts_of(child.message_id, child, now) for child in children]
    counts = [(state, sum(one.state == state for one in facts)) for state in STATES]
    words = ", ".join(f"{count:,} {state.lower()}" for state, count in counts if count)
    yield from _section("Children", f"{len(children):,}: {words}", terminal)
    trouble = [one for one in facts if one.state in (FAILED, STALLED)]
    shown = trouble[:_ROWS]
    yield from table([Job(one) for one in shown], terminal) if shown else ()
    if len(trouble) > len(shown):
        yield [(f"   and {len(trouble) - len(shown):,} more", "dim")]


def _section(title: str, note: str, terminal: Terminal) -> Iterator[Row]:
    yield []
    if terminal.width < _NARROW:
        yield [(f" {title}", "bold")]
        yield from ([("   ", ""), (line, "dim")] for line in _wrapped(note, 3, terminal) if line)
        return
    yield stripped(
        [(f" {pad(title, _INDENT - 1)}", "bold"), (cut(note, terminal.width - _INDENT, terminal.ellipsis), "dim")]
    )


def _wrapped(text: str, indent: int, terminal: Terminal) -> list[str]:
    return wrapped(text, terminal.width - indent, terminal.ellipsis)


def _clock(then: datetime) -> str:
    return then.astimezone().strftime("%H:%M:%S")


def _value(name: str, value: Any, terminal: Terminal, depth: int, *, quoted: bool = True) -> Iterator[Row]:
    """Lay out one value, and below it the values inside of a list or a dict."""
    indent = "  " * depth + " "
    room = max(10, terminal.width - len(indent) - _NAMES)
    label = pad(cut(name, _NAMES - 1, terminal.ellipsis), _NAMES)
    if isinstance(value, (list, dict)) and value and depth < 6:
        opening, closing = "[]" if isinstance(value, list) else "{}"
        is_long = len(value) > _ITEMS
        size = f"{opening}{len(value):,}{closing}{'  whole by --json' if is_long else ''}"
        yield [(indent, ""), (label, ""), (size, "dim")]
        if is_long:
            return
        items = enumerate(value) if isinstance(value, list) else value.items()
        for inner, item in items:
            yield from _value(clean(str(inner)), item, terminal, depth + 1)
        return
    text = value if isinstance(value, str) and not quoted else json.dumps(value, ensure_ascii=False)
    shown = clean(text[:_WHOLE])
    if room < _CUT and width(shown) > terminal.width - len(indent) - _NAMES:
        yield [(indent, ""), (label, "")]
        yield from ([(f"{indent}  ", ""), (line, "")] for line in _wrapped(shown, len(indent) + 2, terminal))
        return
    if width(shown) > room or len(text) > _WHOLE:
        size = f"  {len(text):,} characters, whole by --json"
        shown = cut(shown, room - len(size), terminal.ellipsis) + size
    yield [(indent, ""), (label, ""), (shown, "")]


def _frames(text: Any, reason: str) -> list[str]:
    """Return the last 12 lines of a traceback, without its head, and without the reason that is printed above it."""
    lines = text.rstrip().split("\n") if isinstance(text, str) else []
    return [line for line in lines if not line.startswith("Traceback (") and clean(line) != reason][-12:]
