"""The ways in which ``watch`` shows views: a live picture, lines, JSON, or nothing."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from datetime import datetime
from types import TracebackType
from typing import Final, Protocol

from .. import _time as time
from ..times import duration, measured
from .exits import CommandError
from .facts import Facts
from .job_reader import JobsView
from .jobs import present
from .picture import Picture, PictureOptions, facts_in, totals_of
from .screen import Screen
from .terminal import terminal_of

#: Seconds between two pictures, and between two steps of the moving segment in a bar without a total.
FRAME: Final = 0.1

#: Seconds after which an unchanged job gets another line.
_REPEAT: Final = 30.0

#: Percent between two lines of a job.
_STEP: Final = 10


class WatchOutput(Protocol):
    """An output of ``watch``: it shows one view after the other."""

    #: Maximum number of seconds between two views.
    pause: float

    def __enter__(self) -> WatchOutput: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, view: JobsView) -> None:
        """Show a view, which may be the same as before."""

    def adds_new(self, view: JobsView) -> bool:
        """Return whether to watch the new jobs of a list from now on."""

    def end(self, view: JobsView, note: str = "") -> None:
        """Show the last view."""


def output_for(
    arguments: Namespace, store: str, *, is_batch: bool, clock: bool = False, heads: bool = False
) -> WatchOutput:
    """Choose how to show jobs, by the arguments, the terminal and the environment.

    Raises:
      CommandError: When ``--progress live`` is given and the output is no terminal.
    """
    wanted = "json" if arguments.json else arguments.progress
    is_terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    if wanted == "live" and not is_terminal:
        raise CommandError("--progress live needs a terminal. Give --progress plain.")
    if wanted == "auto":
        wanted = "live" if is_terminal and not os.environ.get("CI") else "plain"
    if wanted == "live":
        return LiveOutput(Picture(store, is_batch=is_batch, heads=heads), clock=clock, with_keys=heads)
    return {"plain": LineOutput, "json": JsonOutput, "quiet": QuietOutput}[wanted](store)


class LiveOutput:
    """A picture that changes in place.

    Parameters:
      picture(Picture)
      clock(bool): Whether the total shows the elapsed time.
      with_keys(bool): Whether a key shows new jobs.
    """

    pause: float = FRAME

    def __init__(self, picture: Picture, *, clock: bool = False, with_keys: bool = False) -> None:
        self._picture = picture
        self._clock = clock
        self._terminal = terminal_of(sys.stdout)
        self._screen = Screen(sys.stdout.fileno(), with_keys=with_keys)
        self._began = time.monotonic()

    def __enter__(self) -> LiveOutput:
        sys.stdout.flush()
        self._screen.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._screen.__exit__()

    def show(self, view: JobsView) -> None:
        options = self._options(view)
        self._screen.draw(self._picture.draw(view, options), options.terminal)

    def adds_new(self, view: JobsView) -> bool:
        # A key that was pressed before there were new jobs has no effect.  An empty list shows new jobs
        # without a key, because no row moves.
        keys = self._screen.keys()
        return view.added > 0 and ("n" in keys or not view.found.children)

    def end(self, view: JobsView, note: str = "") -> None:
        options = self._options(view)
        rows = self._picture.end(view, options, note)
        # The last picture may be taller than the screen, and its reasons may be wider.
        self._screen.draw([], options.terminal)
        self._screen.restore()
        for row in rows:
            print(options.terminal.paint(row))
        sys.stdout.flush()

    def _options(self, view: JobsView) -> PictureOptions:
        columns, rows = self._screen.size
        now = time.monotonic()
        elapsed = now - self._began
        terminal = self._terminal._replace(width=max(20, columns))
        retry_in = max(0.0, view.retry_at - now)
        return PictureOptions(
            terminal, rows, present(), elapsed, int(elapsed / FRAME), retry_in, self._clock, self._screen.has_keys
        )


class _PrintedLine:
    """The last printed line about a job: state, attempt, tenths of the progress, and its time."""

    def __init__(self, facts: Facts, attempts: int, at: float) -> None:
        self.key = (facts.state, attempts, None if facts.percent is None else facts.percent // _STEP)
        self.at = at


class LineOutput:
    """A line for each change of a state, each new attempt and each tenth of a bar, and a line every 30 seconds for each
    job that is not over.

    Parameters:
      store(str): Name of the store.
    """

    pause: float = 1.0

    def __init__(self, store: str) -> None:
        self._store = store
        self._printed: dict[str, _PrintedLine] = {}
        self._offline_since: datetime | None = None
        self._began = time.monotonic()

    def __enter__(self) -> LineOutput:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, view: JobsView) -> None:
        now, clock = present(), time.monotonic()
        self._note_outage(view, now)
        if view.problem:
            return
        for message_id, facts in facts_in(view, now).items():
            snapshot = view.known.get(message_id)
            if snapshot is None and message_id not in view.vanished:
                continue
            line = _PrintedLine(facts, 0 if snapshot is None else snapshot.attempts, clock)
            before = self._printed.get(message_id)
            is_over = message_id in view.vanished or (snapshot is not None and snapshot.finished)
            if before is None or before.key != line.key or (clock - before.at >= _REPEAT and not is_over):
                self._printed[message_id] = line
                self._print_line(facts, now, is_over=is_over)

    def adds_new(self, view: JobsView) -> bool:
        # A new job moves no line that is printed already, so there is no need for a key.
        return view.added > 0

    def end(self, view: JobsView, note: str = "") -> None:
        self.show(view)
        if len(view.found.children) > 1:
            elapsed = measured(time.monotonic() - self._began)
            self._print_note(f"{totals_of(view, present())}, in {elapsed}")
        if note:
            self._print_note(note)

    def _print_line(self, facts: Facts, now: datetime, *, is_over: bool) -> None:
        print(f"{_clock(now)}  {facts.line(is_over=is_over)}", flush=True)

    def _note_outage(self, view: JobsView, now: datetime) -> None:
        if view.problem and self._offline_since is None:
            self._offline_since = now
            again = max(1, round(view.retry_at - time.monotonic()))
            self._print_note(f"{_clock(now)}  Offline    {self._store} does not answer, again in {again} s")
        elif not view.problem and self._offline_since is not None:
            self._print_note(f"{_clock(now)}  Back       after {duration(now - self._offline_since)}")
            self._offline_since = None

    @staticmethod
    def _print_note(text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class JsonOutput(LineOutput):
    """A line with a JSON object for each change of a job."""

    def __init__(self, store: str) -> None:
        super().__init__(store)
        self._seen: dict[str, object] = {}

    def show(self, view: JobsView) -> None:
        self._note_outage(view, present())
        if view.problem:
            return
        for message_id, snapshot in view.found.children.items():
            key = None if snapshot is None else (snapshot.version, snapshot.updated_at, snapshot.stalled)
            if snapshot is None and message_id not in view.vanished:
                continue
            if message_id in self._seen and self._seen[message_id] == key:
                continue
            self._seen[message_id] = key
            event = {"message_id": message_id, "status": None} if snapshot is None else snapshot.to_dict()
            print(json.dumps(event), flush=True)

    def end(self, view: JobsView, note: str = "") -> None:
        self.show(view)
        if note:
            self._print_note(note)


class QuietOutput(LineOutput):
    """An output that shows nothing."""

    def show(self, view: JobsView) -> None:
        pass

    def end(self, view: JobsView, note: str = "") -> None:
        pass


def _clock(now: datetime) -> str:
    return now.astimezone().strftime("%H:%M:%S")
