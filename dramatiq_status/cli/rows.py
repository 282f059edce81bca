"""Rows of jobs: one job, one row, by the width of the terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from ..words import CANCELLED, COMPLETED, FAILED, RETRYING, STALLED, WORKING
from .facts import Facts
from .terminal import Segment, Terminal
from .text import cut, pad, pad_left, width

#: Number of characters of a message id in a row.
SHORT_ID: Final = 8

#: Maximum width of the column of jobs on terminals of up to 80 cells, in cells.
_WIDEST_JOB: Final = 24

#: Minimum number of cells of a row beside its job: glyph and gap, a percentage, and "silent for 2 min".
_LEAST: Final = 25

#: Maximum width of the column of queues, in cells.
_WIDEST_QUEUE: Final = 20

#: Width of the column of states, in cells.
_WORD: Final = 10

#: Styles of glyphs and bars.
_STYLES: Final = {COMPLETED: "good", WORKING: "working", RETRYING: "retrying", FAILED: "failed", STALLED: "stalled"}
_LIVE: Final = frozenset((WORKING, RETRYING, STALLED, FAILED))
_WITH_BAR: Final = frozenset((WORKING, RETRYING, STALLED))


class Job(NamedTuple):
    """A row of a list.

    Parameters:
      facts(Facts)
      queue(str): Name of the queue.
      changed(str): Age of the last change of the status.
      phase(int): Position of the moving segment of a bar without a total; None for one that does not move.
    """

    facts: Facts
    queue: str = ""
    changed: str = ""
    phase: int | None = None


class _Layout(NamedTuple):
    """Widths of the columns, in cells; 0 for a column that is not shown."""

    job: int
    queue: int
    bar: int
    percent: int
    changed: int
    middle: int
    with_word: bool
    with_id: bool
    with_step: bool
    with_count: bool
    with_rate: bool


def table(jobs: Sequence[Job], terminal: Terminal, *, heads: bool = False) -> list[list[Segment]]:
    """Lay out jobs as rows of styled texts.

    Parameters:
      jobs(Sequence[Job])
      terminal(Terminal)
      heads(bool): Whether the first row has the names of the columns.
    """
    layout = _layout_of(jobs, terminal, heads=heads)
    rows = [_row_of(job, layout, terminal) for job in jobs]
    return [_column_heads(layout), *rows] if heads and layout.with_word else rows


def _layout_of(jobs: Sequence[Job], terminal: Terminal, *, heads: bool) -> _Layout:
    cells = terminal.width
    with_word, with_id = cells >= 80, cells >= 80
    queue = min(_WIDEST_QUEUE, max((width(job.queue) for job in jobs), default=0)) if cells >= 120 else 0
    queue = max(queue, len("Queue")) if queue and heads else queue
    changed = max((width(job.changed) for job in jobs), default=0) if cells >= 120 else 0
    changed = max(changed, len("Changed")) if changed and heads else changed
    longest = max((width(_job_text(job.facts, with_id=with_id)) for job in jobs), default=0)
    widest = min(_WIDEST_JOB, cells - _LEAST) if cells <= 80 else _WIDEST_JOB + (cells - 80) // 4
    if cells < 40:
        # The glyph, the name, and the percentage.
        return _Layout(max(1, cells - 8), 0, 0, 4, 0, 4, False, False, False, False, False)
    job = max(min(longest, widest), len("Job"))
    with_bar = any(has_bar(job.facts) for job in jobs)
    bar = 0 if cells < 60 or not with_bar else 10 if cells <= 80 else 12 if cells < 160 else 24
    before = 3 + (_WORD if with_word else 0) + job + 1 + (queue + 2 if queue else 0)
    middle = max(4, cells - before - (changed + 2 if changed else 0))
    percent = 4 if any(job.facts.percent is not None and has_bar(job.facts) for job in jobs) else 0
    return _Layout(job, queue, bar, percent, changed, middle, with_word, with_id, cells > 60, cells > 80, cells >= 120)


def has_bar(facts: Facts) -> bool:
    """Return whether a job has a bar: it is working, has stalled or waits for a retry, or other messages still
    increment its progress.
    """
    return facts.moves or facts.state in _WITH_BAR


def _column_heads(layout: _Layout) -> list[Segment]:
    queue = pad("Queue", layout.queue + 2) if layout.queue else ""
    changed = pad_left("Changed", layout.changed + 2) if layout.changed else ""
    text = (
        " "
        + pad("State", _WORD + 2)
        + pad("Job", layout.job + 1)
        + queue
        + pad("Progress", layout.middle - 4)
        + "Time"
        + changed
    )
    return [(text.rstrip(), "dim")]


def _job_text(facts: Facts, *, with_id: bool) -> str:
    short = facts.message_id[:SHORT_ID]
    return " ".join(filter(None, (facts.name, short if with_id or not facts.name else "")))


def _row_of(job: Job, layout: _Layout, terminal: Terminal) -> list[Segment]:
    facts = job.facts
    row = mark_of(facts.state, terminal, with_word=layout.with_word)
    row += _job_of(facts, layout, terminal)
    if layout.queue:
        row.append((pad(cut(job.queue, layout.queue, terminal.ellipsis), layout.queue + 2), "dim"))
    time, layout = _time_of(facts, layout)
    # A reason is worth more than the number of attempts.
    if facts.state == FAILED and width(facts.reason) + width(time) + 2 > layout.middle:
        time = ""
    room = layout.middle - (width(time) + 1 if time else 0)
    middle = _middle_of(job, layout, terminal, room)
    row += middle
    row.append((" " * (layout.middle - sum(width(text) for text, _ in middle) - width(time)), ""))
    row.append((time, "" if facts.state in _LIVE else "dim"))
    if layout.changed:
        row.append((pad_left(job.changed, layout.changed + 2), "dim"))
    return stripped(row)


def style_of(state: str) -> str:
    """Return the style of a state's glyph."""
    return _STYLES.get(state, "dim")


def mark_of(state: str, terminal: Terminal, *, with_word: bool = True) -> list[Segment]:
    """Lay out the glyph and the word of a state."""
    glyph, style, row = terminal.glyph(state), style_of(state), list[Segment]()
    if style in ("failed", "stalled"):
        # The glyph and the word share one background.
        row.append((f" {glyph} {state} " if with_word else f" {glyph} ", style))
    else:
        row += [(" ", ""), (glyph, style), (" ", "")]
        if with_word:
            row += [(state, "bold" if state in _LIVE else "dim"), (" ", "")]
    if with_word:
        row.append((" " * (_WORD - len(state) - 1), ""))
    return row


def _job_of(facts: Facts, layout: _Layout, terminal: Terminal) -> list[Segment]:
    if not layout.with_id:
        name = cut(facts.name or facts.message_id, layout.job, terminal.ellipsis)
        return [(pad(name, layout.job + 1), "")]
    short = facts.message_id[:SHORT_ID]
    name = cut(facts.name, layout.job - len(short) - 1, terminal.ellipsis)
    start = f"{name} " if name else ""
    return [(start, ""), (pad(short, layout.job + 1 - width(start)), "dim")]


def _time_of(facts: Facts, layout: _Layout) -> tuple[str, _Layout]:
    """Return the time of a row, and the layout of the row.  The time has the longest wording that fits beside the bar
    and the percentage, and is empty if none fits.  The row of a stalled job loses its bar if the time needs the room.
    """
    short, layouts = _in_one_unit(facts.time), [layout]
    times = [facts.time, short]
    if facts.state == RETRYING and not layout.with_count:
        # The attempt gets the room of the second unit.
        times = [short]
    elif facts.state == STALLED:
        times.append(short.replace("no sign of life for", "silent for"))
        layouts.append(layout._replace(bar=0))
    for one in layouts:
        taken = one.percent + (one.bar + 1 if one.bar else 0) if has_bar(facts) else 0
        for time in times:
            if width(time) + taken < one.middle:
                return time, one
    return "", layout


def _in_one_unit(time: str) -> str:
    """Leave out the second unit of a time.

    >>> _in_one_unit("again in 6 min 9 s")
    'again in 6 min'
    """
    return re.sub(r"( (?:d|h|min)) \d+ (?:h|min|s)\b", r"\1", time)


def _middle_of(job: Job, layout: _Layout, terminal: Terminal, room: int) -> list[Segment]:
    """Make the bar, the percentage, and as many other texts as fit."""
    found: list[Segment] = []
    facts = job.facts
    if has_bar(facts):
        if layout.bar:
            found += bar_of(facts, layout.bar, terminal, phase=job.phase)
            room -= layout.bar
        if layout.percent and (facts.percent is not None or layout.with_count):
            text = "" if facts.percent is None else f"{facts.percent}%"
            found.append((pad_left(text, layout.percent + (1 if layout.bar else 0)), ""))
            room -= layout.percent + (1 if layout.bar else 0)
    elif layout.middle == 4 and facts.percent is not None:
        return [(pad_left(f"{facts.percent}%", 4), "")]
    gap = "" if not found else "  " if layout.with_rate else " "
    detail = _detail_of(facts, layout, room - len(gap), terminal)
    if detail:
        found.append((gap + detail, "" if facts.state in _LIVE else "dim"))
    return found


def _detail_of(facts: Facts, layout: _Layout, room: int, terminal: Terminal) -> str:
    if facts.reason:
        if facts.state == RETRYING and width(facts.reason) > room and facts.attempt and layout.bar <= 10:
            return facts.attempt if width(facts.attempt) <= room else ""
        return cut(facts.reason, room, terminal.ellipsis) if room > 3 else ""
    # A job without a total shows its count rather than its step: nothing else shows that it moves.
    with_step = layout.with_step and (layout.with_count or facts.percent is not None or not facts.done)
    step = facts.step if with_step or facts.state == CANCELLED else ""
    count = facts.done if layout.with_count or not step else ""
    rate = facts.rate if layout.with_rate else ""
    attempt = facts.attempt if layout.with_count else ""
    parts = [part for part in (step, count, rate, attempt) if part]
    while parts:
        text = " · ".join(parts)
        if width(text) <= room:
            return text
        if len(parts) == 1:
            # Only a step may be cut: a number without its end would be wrong.
            return cut(text, room, terminal.ellipsis) if parts[0] == step and room > 3 else ""
        parts.pop()
    return ""


def id_row(message_id: str, terminal: Terminal) -> list[Segment]:
    """Lay out a full id.  If it is wider than the terminal, the terminal breaks it, and copies it as one text."""
    return [("   " if 3 + width(message_id) <= terminal.width else "", ""), (message_id, "dim")]


def bar_of(
    facts: Facts, cells: int, terminal: Terminal, *, phase: int | None = None, style: str | None = None
) -> list[Segment]:
    """Draw a bar.

    Parameters:
      facts(Facts): A job for which :func:`has_bar` is true, or the total of a batch.
      cells(int): Width of the bar.
      terminal(Terminal)
      phase(int): Position of the moving segment; None for the middle.
      style(str): Style of what is done; by default that of the state.
    """
    done, half, rest, ghost, broken, hatch = terminal.bar
    style = _STYLES[WORKING if facts.moves else facts.state] if style is None else style
    if facts.percent is None:
        if facts.state == WORKING:
            third = cells // 3
            free = cells - third
            # The segment goes to the end of the bar and back.
            before = third if phase is None else free - abs(phase % (2 * free) - free)
            return [(rest * before, "dim"), (done * third, style), (rest * (free - before), "dim")]
        return [((hatch if facts.state == STALLED else ghost) * cells, "dim")]
    halves = facts.percent * cells * 2 // 100
    full, is_half = halves // 2, halves % 2 == 1 and (facts.moves or facts.state == WORKING)
    if facts.state == RETRYING:
        full = min(full, cells - 1)
        return [(ghost * full + broken, style), (rest * (cells - full - 1), "dim")]
    if facts.state == STALLED:
        return [(hatch * full, ""), (rest * (cells - full), "dim")]
    return [(done * full + (half if is_half else ""), style), (rest * (cells - full - is_half), "dim")]


def stripped(row: list[Segment]) -> list[Segment]:
    """Remove the spaces at the end of a row."""
    while row and not row[-1][0].strip():
        row.pop()
    if row:
        row[-1] = (row[-1][0].rstrip(), row[-1][1])
    return row
