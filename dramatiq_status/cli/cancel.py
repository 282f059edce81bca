"""The command ``cancel``: it requests that jobs end, and reports what has become of each."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Final, NamedTuple

from ..cancellation import Cancellation
from ..errors import StatusMissing, StatusTimeout
from ..registry import StatusRegistry
from ..snapshot import Snapshot
from ..times import duration, measured
from ..words import age
from .commands import print_error, store_of
from .exits import COMPLETED, FAILED, UNFINISHED, UNKNOWN, CommandError, worst
from .facts import Facts, facts_of
from .jobs import present, read_jobs, store_errors, unknown_job
from .rows import SHORT_ID, mark_of
from .store import Store
from .terminal import Segment, Terminal, terminal_of
from .text import clean, cut, pad, width

#: Maximum number of milliseconds that the command waits for running jobs to see the request.
_SEEN_WITHIN: Final = 2_000

#: Maximum width of the column of jobs, in cells.
_WIDEST: Final = 40

#: Minimum width of a terminal on which a row has the word of a state, in cells.
_WITH_WORD: Final = 80


class _Result(NamedTuple):
    """Result of a request to cancel a job.

    Parameters:
      cancellation(Cancellation)
      snapshot(Snapshot): The job after the request.
      was_running(bool): Whether the job was running when it was cancelled.
    """

    cancellation: Cancellation
    snapshot: Snapshot
    was_running: bool

    @property
    def status(self) -> int:
        """The exit status of this job."""
        if self.snapshot.cancelled or self.cancellation is Cancellation.CANCELLED:
            return COMPLETED
        return FAILED if self.snapshot.finished else UNFINISHED


def cancel(arguments: Namespace) -> int:
    """Cancel jobs, and print what has become of each."""
    store = store_of(arguments)
    before = read_jobs(store, arguments.ids)
    known = {message_id: snapshot for message_id, snapshot in before.items() if snapshot is not None}
    with store_errors(store):
        batch = StatusRegistry.batch(list(known), backend=store.backend)
        try:
            cancellations = batch.cancel(arguments.reason)
        except ValueError as e:
            raise CommandError(f"--reason: {e}") from e
        requested = [
            message_id for message_id, cancellation in cancellations.items() if cancellation is Cancellation.REQUESTED
        ]
        _follow(store, requested, until_over=arguments.wait)
        after = batch.read().children
    results = {
        message_id: _Result(
            cancellation, after.get(message_id) or known[message_id], cancellation is Cancellation.REQUESTED
        )
        for message_id, cancellation in cancellations.items()
        if cancellation is not None
    }
    for message_id in before:
        if message_id not in results:
            print_error(unknown_job(store, message_id))
    _print(results, as_json=arguments.json)
    return worst([*(UNKNOWN for i in before if i not in results), *(result.status for result in results.values())])


def _follow(store: Store, ids: list[str], *, until_over: bool) -> None:
    """Wait at most 2 seconds for jobs to see the request.  With ``until_over``, wait until the jobs have ended."""
    if not ids:
        return
    try:
        batch = StatusRegistry.batch(ids, backend=store.backend)
        for view in batch.watch(timeout=None if until_over else _SEEN_WITHIN):
            jobs = view.children.values()
            if not until_over and all(job is None or job.finished or job.cancel_seen_at for job in jobs):
                return
    except (StatusTimeout, StatusMissing):
        pass


def _print(results: Mapping[str, _Result], *, as_json: bool) -> None:
    if as_json:
        for result in results.values():
            print(json.dumps({**result.snapshot.to_dict(), "cancellation": result.cancellation.value}))
        return
    terminal, now = terminal_of(sys.stdout), present()
    jobs = [(facts_of(message_id, result.snapshot, now), result) for message_id, result in results.items()]
    column = min(_WIDEST, max((width(_job_of(facts)) for facts, _ in jobs), default=0))
    for facts, result in jobs:
        if terminal.live:
            for row in _rows_of(facts, result, column, terminal):
                print(terminal.paint(row))
        else:
            print(
                "  ".join(filter(None, (pad(facts.state, 9), facts.message_id, facts.name, _result_text(result, now))))
            )
    if len(results) > 1:
        found = [result.status for result in results.values()]
        texts = ((COMPLETED, "cancelled"), (UNFINISHED, "asked to stop"), (FAILED, "were over"))
        counts = [f"{found.count(status):,} {text}" for status, text in texts if status in found]
        if terminal.live:
            print(terminal.paint([(f"\n {pad(f'{len(results):,} jobs', 12)}", "bold"), (", ".join(counts), "")]))
        else:
            print(f"{len(results):,} jobs: {', '.join(counts)}", file=sys.stderr)


def _job_of(facts: Facts) -> str:
    return f"{facts.name} {facts.message_id[:SHORT_ID]}".strip()


def _rows_of(facts: Facts, result: _Result, column: int, terminal: Terminal) -> Iterator[list[Segment]]:
    head = [*mark_of(facts.state, terminal, with_word=terminal.width >= _WITH_WORD)]
    job = cut(_job_of(facts), min(column, terminal.width - sum(width(text) for text, _ in head)), terminal.ellipsis)
    result_text = _result_text(result, present())
    room = terminal.width - sum(width(text) for text, _ in head) - column - 2
    if width(result_text) <= room:
        yield [*head, (pad(job, column), ""), (f"  {result_text}", "dim")]
    else:
        yield [*head, (job, "")]
        yield [("   ", ""), (cut(result_text, terminal.width - 3, terminal.ellipsis), "dim")]
    if result.status == UNFINISHED and result.snapshot.cancel_seen_at is None and terminal.width >= _WITH_WORD:
        yield from ([(" " * 13, ""), (line, "dim")] for line in _ADVICE)


_ADVICE: Final = (
    "track() and check_cancelled() stop a job. This job may not",
    "have called them yet, or may never do so. --wait waits for it.",
)


def _result_text(result: _Result, now: datetime) -> str:
    """Put the result of a request into words."""
    job = result.snapshot
    since, seen, end = job.cancel_requested_at, job.cancel_seen_at, job.finished_at
    if result.status == FAILED:
        return "was over" if end is None else f"was over, {age(now - end)}"
    if result.status == UNFINISHED:
        if since is not None and seen is not None:
            return f"asked to stop, seen after {measured(seen - since)}"
        return "asked to stop" if since is None else f"asked to stop, not seen for {duration(now - since)}"
    if not result.was_running:
        text = "will not run" if not job.attempts else "will not run again"
    elif since is None or end is None:
        text = "stopped"
    else:
        text = f"stopped after {measured(end - since)}"
    return ", ".join(filter(None, (text, clean(job.cancel_reason or ""))))
