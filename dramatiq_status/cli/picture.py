"""The picture of ``watch``: which jobs have a row, the line about the others, and the total."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from ..snapshot import Snapshot
from ..times import duration, measured
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
from .facts import Facts, facts_of
from .job_reader import JobsView
from .rows import Job, bar_of, id_row, table
from .terminal import Segment, Terminal
from .text import clean, cut, pad, pad_left, width, wrapped

Row = list[Segment]

#: Ranks of states: jobs with a lower rank get a row first.
_RANKS: Final = {FAILED: 0, UNKNOWN: 0, STALLED: 0, RETRYING: 1, WORKING: 2, QUEUED: 3, SCHEDULED: 4}
_LAST_RANK: Final = 5

#: States in the order in which their counts are shown.
_COUNTED: Final = (FAILED, STALLED, UNKNOWN, RETRYING, WORKING, QUEUED, CANCELLED, SKIPPED, COMPLETED)

#: Beginnings of times that are not shown while the store does not answer, because they would be wrong.
_DOUBTFUL: Final = ("again in", "starts in", "waiting for", "for ", "no sign of life", "silent")

#: Width of the first column of the total, in cells.
_HEAD: Final = 12

#: Maximum number of reasons below the last picture.
_REASONS: Final = 10


class Slots:
    """The jobs that have a row.  So that rows do not move, a row gets another job only if its own job is queued,
    scheduled, or over without a failure, and if the other job has a lower rank.  If the number of rows changes, or if a
    job with a row is gone, the jobs of all rows are chosen again.
    """

    def __init__(self) -> None:
        self._slots: list[str] = []

    def choose(self, states: Mapping[str, str], number: int) -> list[str]:
        """Return the jobs to show.

        Parameters:
          states(Mapping[str, str]): Words of states by id, in the order of the arguments.
          number(int): Number of rows.
        """
        if len(states) <= number:
            self._slots = list(states)
            return self._slots
        ranks = {i: _RANKS.get(state, _LAST_RANK) for i, state in states.items()}
        wanted = sorted(states, key=ranks.__getitem__)
        # Failed, stalled and unknown jobs get at most a third of the rows while other jobs need rows.
        troubled = [i for i in wanted if ranks[i] == 0]
        first = max(1, number // 3)
        if len(troubled) > first:
            moving = [i for i in wanted if ranks[i] != 0]
            wanted = [*troubled[:first], *moving, *troubled[first:]]
        if len(self._slots) != number or not states.keys() >= set(self._slots):
            chosen = set(wanted[:number])
            self._slots = [i for i in states if i in chosen]
            return self._slots
        shown = set(self._slots)
        waiting = [i for i in wanted[:number] if i not in shown and ranks[i] < _LAST_RANK]
        for position, i in enumerate(self._slots):
            if waiting and ranks[i] > 2 and ranks[waiting[0]] < ranks[i]:
                self._slots[position] = waiting.pop(0)
        return self._slots


class PictureOptions(NamedTuple):
    """Parameters of one picture.

    Parameters:
      terminal(Terminal)
      rows(int): Height of the terminal.
      now(datetime)
      elapsed(float): Seconds since the watch began.
      phase(int): Position of the moving segment of bars without a total.
      retry_in(float): Seconds until the store is tried again.
      clock(bool): Whether the total shows the elapsed time.
      with_keys(bool): Whether the terminal's keys can be read.
      is_last(bool): Whether this is the last picture, which shows no countdowns.
    """

    terminal: Terminal
    rows: int
    now: datetime
    elapsed: float
    phase: int = 0
    retry_in: float = 0.0
    clock: bool = False
    with_keys: bool = False
    is_last: bool = False


class Picture:
    """The picture of a set of jobs: it draws one view after the other.

    Parameters:
      store(str): Name of the store, for the line about an outage.
      is_batch(bool): Whether the total has a bar even if each job has a row.
      heads(bool): Whether the columns have heads.
    """

    def __init__(self, store: str, *, is_batch: bool = False, heads: bool = False) -> None:
        self._store = clean(store)
        self._is_batch = is_batch
        self._heads = heads
        self._slots = Slots()
        self._first_progress: float | None = None

    def draw(self, view: JobsView, options: PictureOptions) -> list[Row]:
        """Return the rows of a picture: at most one fewer than the terminal has."""
        facts = facts_in(view, options.now)
        room = options.rows - 3 - self._heads
        if len(facts) <= max(1, room):
            shown, others = list(facts), Counter[str]()
        else:
            shown = self._slots.choose({i: one.state for i, one in facts.items()}, max(1, room))
            others = _count(one for i, one in facts.items() if i not in set(shown))
        terminal = options.terminal
        jobs = [self._job(facts[i], view, options) for i in shown]
        rows = table(jobs, terminal, heads=self._heads)
        if not facts:
            rows.append([(" no jobs yet", "dim")])
        if view.problem:
            rows = [[(text, "dim") for text, _ in row] for row in rows]
        if others:
            rows.append(_line(f"{sum(others.values()):,} more", _words_of(others), terminal))
        elif (len(facts) > 1 or view.problem or view.added) and len(rows) <= room + self._heads:
            rows.append([])
        if view.problem:
            rows.append(self._offline(view, options))
        elif len(facts) > 1 or view.added:
            rows.append(self._total(view, _count(facts.values()), options, with_bar=self._is_batch or bool(others)))
        return rows[-max(1, options.rows - 1) :]

    def end(self, view: JobsView, options: PictureOptions, note: str = "") -> list[Row]:
        """Return the rows of the last picture.  If not all jobs have room, only failed, unknown and stalled jobs have
        rows.  Reasons that were cut stand below the rows.  The picture of a list stays as it was, because jobs of a
        list may not have ended.
        """
        options = options._replace(is_last=True, with_keys=False)
        notes: list[Row] = [[(f" {line}", "dim")] for line in wrapped(note, options.terminal.width - 1)] if note else []
        if self._heads:
            # The note and the shell's next line have room below.
            return [*self.draw(view, options._replace(rows=options.rows - len(notes or " "))), *notes]
        facts, terminal = facts_in(view, options.now), options.terminal
        room, others = options.rows - 3, Counter[str]()
        shown = list(facts)
        if len(facts) > max(1, room):
            shown = [i for i in facts if facts[i].state in (FAILED, UNKNOWN, STALLED)][: max(1, room)]
            others = _count(one for i, one in facts.items() if i not in set(shown))
        jobs = [self._job(facts[i], view, options) for i in shown]
        rows = table(jobs, terminal)
        cuts = [
            i
            for i, row in zip(shown, rows[-len(shown) :])
            if facts[i].reason and facts[i].reason not in "".join(t for t, _ in row)
        ]
        if others:
            rows.append(_line(f"{sum(others.values()):,} more", _words_of(others), terminal))
        for i in cuts[:_REASONS]:
            rows += [[], *_reason(facts[i], view.known.get(i), terminal)]
        if len(cuts) > _REASONS:
            rows.append([(f" and {len(cuts) - _REASONS} more reasons: see dramatiq-status get", "dim")])
        if len(facts) > 1:
            words = _words_of(_count(facts.values()))
            rows += [
                [],
                _line(_number_of(facts), words, terminal, f"in {measured(options.elapsed)}"),
            ]
        return [*rows, *notes]

    def _job(self, facts: Facts, view: JobsView, options: PictureOptions) -> Job:
        if view.problem and (facts.time.startswith(_DOUBTFUL) or facts.time.endswith(" left")):
            facts = facts._replace(time="")
        snapshot = view.known.get(facts.message_id)
        if options.is_last:
            facts = facts._replace(time=_time_that_stays(facts.time, snapshot, options.now))
        queue = "" if snapshot is None or options.terminal.width < 160 else clean(snapshot.queue_name or "")
        return Job(facts, queue, phase=None if view.problem else options.phase)

    def _offline(self, view: JobsView, options: PictureOptions) -> Row:
        terminal = options.terminal
        when = view.at.astimezone().strftime("%H:%M:%S")
        again = f"again in {max(1, round(options.retry_in))} s"
        right = f"at {when}, {again}" if terminal.width >= 80 else again if terminal.width >= 40 else ""
        head = f" {terminal.glyph(OFFLINE)} {pad(OFFLINE, 10)}"
        room = max(0, terminal.width - width(head) - width(right) - 2)
        verb = " does not answer"
        store = cut(self._store.partition("?")[0], max(0, room - width(verb)), terminal.ellipsis)
        what = f"{store}{verb}" if store else cut(verb.strip(), room, terminal.ellipsis)
        head = head.rstrip() if not what else head
        return [(head, "bold"), (what, ""), (pad_left(right, terminal.width - width(head) - width(what)), "")]

    def _total(self, view: JobsView, counts: Counter[str], options: PictureOptions, *, with_bar: bool) -> Row:
        terminal, number = options.terminal, _number_of(view.found.children)
        right = f"{options.elapsed:.1f} s" if options.clock else ""
        if self._heads:
            # New jobs are only counted here, so that the rows stay where they are.
            new = f"{view.added:,} new{': press n' if options.with_keys else ''}" if view.added else ""
            return _line(number, _words_of(counts), terminal, new, style="working")
        if not with_bar or terminal.width < 60:
            return _line(number, _words_of(counts), terminal, right)
        percent, progress = int(view.found.percent), view.found.progress
        if self._first_progress is None:
            self._first_progress = progress - 1e-9
        gained = progress - self._first_progress
        if not right and options.elapsed > 3 and gained > 0.01 and progress < 1:
            right = f"{duration((1 - progress) * options.elapsed / gained)} left"
        trouble = Counter({state: counts[state] for state in (FAILED, STALLED, UNKNOWN) if counts[state]})
        ended = sum(counts[state] for state in (FAILED, COMPLETED, CANCELLED, SKIPPED))
        words = _fitting(_words_of(trouble), 28 if terminal.width < 120 else 40)
        bar = bar_of(Facts(WORKING, "", "", percent), 12, terminal, style="")
        left: Row = [(f" {pad(number, _HEAD)}", "bold"), (pad(words, max(width(words) + (2 if words else 0), 20)), "")]
        left += [*bar, (f"{percent:4d}% ", ""), (f"{ended:,} ended", "")]
        used = sum(width(text) for text, _ in left)
        if used + width(right) + 1 > terminal.width:
            right = ""
        return [*left, (pad_left(right, terminal.width - used), "")] if right else left


def facts_in(view: JobsView, now: datetime) -> dict[str, Facts]:
    """Put the jobs of a view into words, by id."""
    found = {}
    for message_id, snapshot in view.jobs:
        facts = facts_of(message_id, snapshot, now)
        last = view.known.get(message_id)
        if snapshot is None and last is not None:
            facts = facts._replace(name=facts_of(message_id, last, now).name, step="deleted or expired")
        elif snapshot is None and message_id not in view.vanished:
            facts = facts._replace(step="not found yet")
        elif snapshot is None:
            facts = facts._replace(step="no such job")
        found[message_id] = facts
    return found


def totals_of(view: JobsView, now: datetime) -> str:
    """Return the number of jobs, and the number of jobs in each state."""
    facts = facts_in(view, now)
    return f"{_number_of(facts)}: {', '.join(_words_of(_count(facts.values())))}"


def _time_that_stays(time: str, snapshot: Snapshot | None, now: datetime) -> str:
    """Return the time of a row of the last picture.  A countdown becomes the time of day at which it ends; an estimate
    becomes an empty text.
    """
    due = None if snapshot is None else snapshot.scheduled_at
    if due is not None and time.startswith(("again in ", "starts in ")):
        day = "%H:%M" if due - now < timedelta(hours=12) else "%Y-%m-%d"
        return f"{time.partition(' ')[0]} at {due.astimezone():{day}}"
    return "" if time.endswith(" left") else time


def _reason(facts: Facts, snapshot: Snapshot | None, terminal: Terminal) -> list[Row]:
    """Lay out a reason on several lines, and below it the job to which it belongs."""
    kind, cells = facts.reason.partition(": ")[0], terminal.width
    head, *others = wrapped(facts.reason, cells - 1, terminal.ellipsis)
    rows: list[Row] = [
        [(f" {head[: len(kind)]}", "bold"), (head[len(kind) :], "")],
        *([(f" {one}", "")] for one in others),
    ]
    when = ""
    if snapshot is not None and snapshot.finished_at is not None:
        when = f", run {max(1, snapshot.attempts)}, at {snapshot.finished_at.astimezone():%H:%M:%S}"
    name, message_id = facts.name, facts.message_id
    if width(f"   {name} {message_id}{when}") <= cells:
        return [*rows, [(f"   {name} ", ""), (message_id, "dim"), (when, "")]]
    # The id has a line of its own, so that it can be copied.
    rows += [[(f"   {line}", "")] for line in wrapped(f"{name}{when}", cells - 3, terminal.ellipsis)]
    return [*rows, id_row(message_id, terminal)]


def _count(jobs: Iterable[Facts]) -> Counter[str]:
    return Counter(QUEUED if facts.state == SCHEDULED else facts.state for facts in jobs)


def _words_of(counts: Mapping[str, int]) -> list[str]:
    return [f"{counts[state]:,} {state.lower()}" for state in _COUNTED if counts.get(state)]


def _number_of(jobs: Sequence[str] | Mapping[str, object]) -> str:
    return "1 job" if len(jobs) == 1 else f"{len(jobs):,} jobs"


def _fitting(words: Sequence[str], room: int) -> str:
    """Join as many counts as have room, and add the number of jobs in the other states."""
    for kept in range(len(words), 0, -1):
        left = sum(int(word.split()[0].replace(",", "")) for word in words[kept:])
        text = ", ".join([*words[:kept], *([f"{left:,} more"] if left else [])])
        if width(text) <= room:
            return text
    return ""


def _line(head: str, words: Sequence[str], terminal: Terminal, right: str = "", *, style: str = "dim") -> Row:
    """Make a row with a head, counts, and a text on the right side."""
    head = pad(head, _HEAD) if terminal.width >= 80 else f"{head}: "
    room = terminal.width - 1 - width(head)
    text = _fitting(words, room - width(right) - 2 if right else room)
    if not text and words:
        right = ""
        text = _fitting(words, room) or cut(
            f"{words[0]}{terminal.ellipsis * (len(words) > 1)}", room, terminal.ellipsis
        )
    return [
        (f" {head}", "bold"),
        (text, ""),
        (pad_left(right, terminal.width - 1 - width(head) - width(text)) if right else "", style),
    ]
