"""The commands that print and end: get, wait, list, count, delete, where."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from .. import _time as time
from ..errors import BackendError, NotSupported, StatusMissing, StatusTimeout
from ..registry import StatusRegistry
from ..snapshot import Snapshot
from ..state_filter import AMONG, StatePage
from ..words import COMPLETED as COMPLETED_WORD
from ..words import QUEUED, age
from .detail import detail_of
from .exits import COMPLETED, UNKNOWN, UNREACHABLE, USAGE, CommandError, worst
from .facts import facts_of
from .jobs import children_of, full_ids, present, read_jobs, status_of, store_errors, unknown_job
from .rows import Job, table
from .serve import serve
from .store import Store, StoreRule, find_store, store_rules
from .terminal import terminal_of
from .text import clean, pad, wrapped


def get(arguments: Namespace) -> int:
    """Print the details of jobs, or their statuses as JSON."""
    store = store_of(arguments)
    terminal, statuses = terminal_of(sys.stdout), []
    for message_id, snapshot in read_jobs(store, arguments.ids).items():
        statuses.append(status_of(snapshot))
        if snapshot is None:
            print_error(unknown_job(store, message_id))
        elif arguments.json:
            print_json(snapshot)
        else:
            if len(statuses) > 1:
                print()
            for row in detail_of(snapshot, children_of(store, snapshot), terminal, present()):
                print(terminal.paint(row))
    return worst(statuses)


def wait(arguments: Namespace) -> int:
    """Wait for jobs, and print each when it has ended.  With ``--any``, end after the first."""
    store = store_of(arguments)
    ids = full_ids(store, arguments.ids)
    timeout = None if arguments.timeout is None else int(arguments.timeout * 1000)
    batch = StatusRegistry.batch(ids, backend=store.backend)
    seen: dict[str, Snapshot | None] = dict.fromkeys(ids)
    printed: set[str] = set()
    with store_errors(store):
        try:
            for found in batch.watch(timeout=timeout):
                for message_id, snapshot in found.children.items():
                    seen[message_id] = snapshot
                    if snapshot is not None and snapshot.finished and message_id not in printed:
                        printed.add(message_id)
                        print_line(snapshot, as_json=arguments.json)
                if arguments.any and printed:
                    return worst(status_of(seen[message_id]) for message_id in printed)
        except StatusTimeout:
            for message_id, snapshot in seen.items():
                if snapshot is not None and not snapshot.finished:
                    percent = "" if snapshot.percent is None else f", at {int(snapshot.percent)}%"
                    print_error(
                        f"{message_id} is not finished after {arguments.timeout:g} s{percent}. "
                        f"Give a longer --timeout, or see: dramatiq-status get {message_id}"
                    )
        except StatusMissing:
            pass
        # This read also finds the jobs whose status has expired, was deleted or never existed.
        seen = read_jobs(store, ids)
    for message_id, snapshot in seen.items():
        if snapshot is None:
            print_error(unknown_job(store, message_id))
    return worst(map(status_of, seen.values()))


def list_jobs(arguments: Namespace) -> int:
    """Print a page of jobs."""
    store = store_of(arguments)
    terminal = terminal_of(sys.stdout)
    with store_errors(store):
        found = page_of(store, arguments)
        page = found.jobs
        if arguments.json:
            for snapshot in page:
                print(json.dumps({**snapshot.to_dict(), "cursor": snapshot.cursor}))
            return COMPLETED
        now = present()
        if not terminal.live:
            for snapshot in page:
                print_line(snapshot)
            return COMPLETED
        jobs = [
            Job(
                facts_of(snapshot.message_id, snapshot, now),
                clean(snapshot.queue_name or ""),
                "" if snapshot.updated_at is None else age(now - snapshot.updated_at),
            )
            for snapshot in page
        ]
        for row in table(jobs, terminal, heads=True):
            print(terminal.paint(row))
        # Jobs in a state that the store does not index are counted only by `count`.
        total = None if arguments.state in AMONG else StatusRegistry.count(**query_of(arguments), backend=store.backend)
    if not page:
        print(" no jobs" if arguments.after is None else " no more jobs")
        return COMPLETED
    shown = f"{len(page):,} {arguments.state}" if total is None else f"{len(page):,} of {total:,}"
    more = found.after is not None and (total is None or total > len(page))
    print()
    for line in wrapped(f"{shown}, last changed first{'; the next page:' if more else ''}", terminal.width - 1):
        print(f" {line}")
    if more:
        # The cursor has its own line, which fits into 80 columns, because a wrapped cursor cannot be copied.
        print(f" --after {found.after}")
    return COMPLETED


def page_of(store: Store, arguments: Namespace) -> StatePage:
    """Return the page of jobs that the arguments of ``list`` select.

    Raises:
      BackendError: When the store does not answer.
      NotSupported: When the store cannot list.
      CommandError: When ``--after`` is no cursor.
    """
    page = StatePage(arguments.state, arguments.limit, arguments.after, sys.maxsize)
    for _ in _read_parts(page, store, arguments):
        pass
    return page


def _read_parts(page: StatePage, store: Store, arguments: Namespace) -> Iterator[None]:
    """Read the jobs of a page, in one step for each call of the store."""
    query = query_of(arguments)
    try:
        while page.to_read:
            query["state"] = page.read_from
            page.take(StatusRegistry.list(**query, limit=page.to_read, after=page.read_after, backend=store.backend))
            yield
    except ValueError as e:
        raise CommandError(
            f"--after: {arguments.after!r} is no cursor. Give the one that the last page has printed."
        ) from e


def count(arguments: Namespace) -> int:
    """Print the number of jobs.  To count the jobs in a state that the store does not index, read them."""
    store, state = store_of(arguments), arguments.state
    with store_errors(store):
        if state in AMONG:
            page, number = StatePage(state, sys.maxsize, searched=sys.maxsize), 0
            for _ in _read_parts(page, store, arguments):
                number += len(page.jobs)
                page.jobs.clear()
        else:
            number = StatusRegistry.count(**query_of(arguments), backend=store.backend)
    print(json.dumps({"count": number}) if arguments.json else number)
    return COMPLETED


def delete(arguments: Namespace) -> int:
    """Delete the statuses of jobs."""
    store = store_of(arguments)
    found = read_jobs(store, arguments.ids)
    known = [message_id for message_id, snapshot in found.items() if snapshot is not None]
    for message_id, snapshot in found.items():
        if snapshot is None:
            print_error(unknown_job(store, message_id))
    if known and not arguments.yes:
        if not sys.stdin.isatty():
            raise CommandError("delete needs a terminal for its question. Give --yes to delete without a question.")
        what = "1 status" if len(known) == 1 else f"{len(known)} statuses"
        print(
            f"Delete {what} in {store.name}? The jobs stay in their queues. [y/N] ", end="", file=sys.stderr, flush=True
        )
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print_error("nothing was deleted.")
            return USAGE
    with store_errors(store):
        for message_id in known:
            if StatusRegistry.delete(message_id, backend=store.backend):
                print(f"deleted {clean(message_id)}")
    return UNKNOWN if len(known) < len(found) else COMPLETED


#: Abilities of all stores, as :func:`where` names them.
_ABILITIES: Final = ("get", "wait", "cancel", "delete")


def where(arguments: Namespace) -> int:
    """Print which store was found, by which rule, and what it can do."""
    rules = store_rules(arguments.url, arguments.broker)
    if not any(rule.value for rule in rules) and not arguments.json:
        _print_rules(rules, found="")
    store = store_of(arguments)
    backend, begin = store.backend, time.monotonic()
    problem = ""
    try:
        backend.read("dramatiq-status-where")
    except BackendError as e:
        problem = str(e)
    milliseconds = (time.monotonic() - begin) * 1000
    lists = True
    try:
        if not problem:
            StatusRegistry.list(limit=1, backend=backend)
    except NotSupported:
        lists = False
    except BackendError as e:
        problem = str(e)
    status = UNREACHABLE if problem else COMPLETED
    can = [*_ABILITIES, *(("list", "count") if lists else ())]
    if arguments.json:
        found = {"store": store.name, "rule": store.rule, "namespace": backend.namespace, "answers": not problem}
        print(json.dumps({**found, "milliseconds": round(milliseconds, 1), "can": [] if problem else can}))
        return status
    lines = [("Store", store.name), ("Found by", store.rule), ("Namespace", backend.namespace)]
    if problem:
        lines.append(("Answers", f"no: {problem}"))
    else:
        lines += [("Answers", f"in {milliseconds:.1f} ms"), ("Can", ", ".join(can))]
        if not lists:
            lines.append(("Cannot", f"list, count: {backend.why_no_list} Short ids are not possible either."))
    for name, text in lines:
        print(f" {pad(name, 12)}{clean(text)}")
    print()
    _print_rules(rules, found=store.rule)
    return status


def _print_rules(rules: Sequence[StoreRule], *, found: str) -> None:
    """Print the rules by which the store is found.

    Parameters:
      rules(Sequence[StoreRule])
      found(str): Name of the rule that is used, empty for none.
    """
    print(" The first of these that is set is used", flush=True)
    terminal = terminal_of(sys.stdout)
    for rule in rules:
        glyph = terminal.glyph(COMPLETED_WORD if rule.name == found else QUEUED)
        print(f"   {glyph} {pad(rule.name, 22)}{clean(_shown(rule.kind, rule.value))}", flush=True)


def _shown(kind: str, value: str) -> str:
    if not value:
        return "not given"
    from ..backends.url import mask

    return mask(value) if kind == "url" else value


def store_of(arguments: Namespace) -> Store:
    """Return the store that the arguments name."""
    return find_store(arguments.url, arguments.broker, arguments.namespace)


def print_json(snapshot: Snapshot) -> None:
    """Print a status as one line of JSON."""
    print(json.dumps(snapshot.to_dict()), flush=True)


def print_line(snapshot: Snapshot, *, as_json: bool = False) -> None:
    """Print a status as one line."""
    if as_json:
        print_json(snapshot)
    else:
        facts = facts_of(snapshot.message_id, snapshot, present())
        print(facts.line(is_over=snapshot.finished), flush=True)


def print_error(text: str) -> None:
    """Print a line on stderr, with harmless characters only."""
    print(f"dramatiq-status: {clean(text)}", file=sys.stderr, flush=True)


def query_of(arguments: Namespace) -> dict[str, Any]:
    """Return the filters that the arguments of ``list`` and ``count`` select."""
    return {"state": arguments.state, "actor_name": arguments.actor, "queue_name": arguments.queue}


COMMANDS: Final[dict[str, Callable[[Namespace], int]]] = {
    "get": get,
    "wait": wait,
    "list": list_jobs,
    "count": count,
    "delete": delete,
    "where": where,
    "serve": lambda arguments: serve(arguments, store_of(arguments)),
}
