"""The page of one job: its bar, its exception, its children, its fields and its times."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ..aio import StatusRegistry
from ..checks import is_message_id
from ..errors import BackendError, NotSupported
from ..short_ids import SEARCHED, is_short_id, jobs_of
from ..snapshot import Snapshot
from ..times import duration
from .access import Access
from .dashboard import utc_now
from .display import StatusDisplay, display_of, label_of, name_of, seconds_since
from .markup import Markup, icon, join, tag
from .pages import empty, link, page
from .rows import bar, confirmation, copy_button, pill, reason
from .site import REFUSED, RETRY_AFTER, UNAVAILABLE, Site
from .timeline import clock, timeline

#: Maximum number of children that are read, and of those that have a row.
MAX_CHILDREN: Final = 500
MAX_ROWS: Final = 12

#: Maximum number of items of a list or an object that the tree of fields shows.
MAX_ITEMS: Final = 100

_KINDS: Final = {bool: "boolean", str: "string", int: "number", float: "number", list: "array", dict: "object"}

#: States in the order of the legend of the children, and in the order of their rows.
_ROLLUP: Final = ("completed", "failed", "cancelled", "stalled", "working", "retrying", "queued")
_ORDER: Final = ("failed", "stalled", "retrying", "working", "queued", "cancelled", "completed")
_CLASSES: Final = {"completed": "ok", "failed": "ko", "retrying": "re", "working": "go", "stalled": "go"}


class JobPage:
    """The view of the page of a job.

    Parameters:
      site(Site)
    """

    def __init__(self, site: Site) -> None:
        self._site = site

    async def page(self, request: Request) -> Response:
        """Answer with the page."""
        site, message_id = self._site, request.path_params["message_id"]
        try:
            snapshot, access = await site.read(request)
            children = await self._children(request, snapshot)
        except HTTPException as e:
            return await self._nothing(request, message_id, e.status_code)
        except BackendError:
            response = page(
                site,
                "The store does not answer",
                empty("stalled", UNAVAILABLE, "The jobs go on."),
                crumb=message_id,
                status_code=503,
            )
            response.headers["Retry-After"] = RETRY_AFTER
            return response
        now = utc_now()
        shown = site.exposure.to_dict(snapshot)
        display = display_of(snapshot, shown, now)
        name = name_of(snapshot, shown)
        main = [
            tag(
                "section",
                bar(message_id, name, display, variant="big"),
                class_="card pad",
                aria_label="Progress",
            ),
            _timeline(snapshot, display, now, site),
            _exception(snapshot, shown, site.exposure.message),
            _children(children, now, site) if children else "",
            _fields(snapshot, shown),
            _raw(shown),
        ]
        return page(
            site,
            f"{name} {message_id[:8]} · {site.title}",
            self._head(snapshot, shown, display, access),
            tag(
                "div",
                tag("div", *main, class_="col"),
                tag("aside", *_facts(snapshot, children, shown, now), class_="col", aria_label="Facts"),
                class_="cols",
            ),
            crumb=message_id,
        )

    def _head(self, snapshot: Snapshot, shown: dict[str, Any], display: StatusDisplay, access: Access) -> Markup:
        message_id = snapshot.message_id
        own = quote(message_id, safe="")
        acts: list[Markup] = [
            tag("a", name, icon("out"), class_="btn small", rel="external noopener", href=url)
            for name, url in ((name, _fill(template, snapshot)) for name, template in self._site.links.items())
            if url is not None
        ]
        acts.append(tag("a", "JSON", class_="btn small", href=f"{own}.json"))
        if access is Access.WRITE and not snapshot.finished and snapshot.cancel_requested_at is None:
            waits = "It will not run again." if snapshot.attempts else "It will not run."
            consequence = "A job that runs is asked to stop." if snapshot.working else waits
            acts.append(confirmation("Cancel…", consequence, "Cancel job", f"{own}/cancel"))
        if access is Access.WRITE:
            consequence = "Only the status is deleted." if snapshot.finished else "The job itself goes on."
            acts.append(confirmation("Delete…", consequence, "Delete status", f"{own}/delete"))
        return tag(
            "div",
            tag("h1", name_of(snapshot, shown)),
            pill(display),
            tag("span", tag("code", message_id), copy_button(message_id, "Copy the id"), class_="id"),
            tag("div", *acts, class_="acts"),
            class_="job-head",
            data_state=display.state,
            data_version=snapshot.version,
        )

    async def _children(self, request: Request, snapshot: Snapshot) -> list[Snapshot]:
        """Read the children that the field ``children`` names and that the visitor may see."""
        listed = snapshot.fields.get("children")
        ids = [one for one in listed if isinstance(one, str) and is_message_id(one)] if isinstance(listed, list) else []
        if not ids:
            return []
        site = self._site
        batch = StatusRegistry.batch(ids[:MAX_CHILDREN], backend=site.backend, broker=site.broker)
        found = [child for child in (await batch.read()).children.values() if child is not None]
        levels = await site.access_check.check_many(request, found)
        return [child for child, level in zip(found, levels) if level is not Access.NONE]

    async def _nothing(self, request: Request, message_id: str, status_code: int) -> Response:
        if status_code == 403:
            return self._empty("refused", "No access", REFUSED, status_code)
        site = self._site
        text = "The job was never sent with the middleware, or its status has expired or is in another store."
        links = [link("All jobs", "./")]
        if len(message_id) < 36:
            try:
                found = await self._by_short_id(request, message_id)
                text = "No job has this id. To search by name, type actor:NAME."
            except NotSupported:
                found, text = [], "No job has this id. This store finds jobs by their full ids only."
            if len(found) == 1:
                # The id is quoted, so that it cannot lead to another folder.
                return RedirectResponse("./" + quote(found[0].message_id, safe=""), 303)
            if found:
                text = f"{len(found):,} jobs have ids that begin with {message_id}. Give more of an id, or open a job:"
                links = [
                    link(f"{name_of(one, site.exposure.to_dict(one))} {one.message_id}", quote(one.message_id, safe=""))
                    for one in found[:MAX_ROWS]
                ]
        return self._empty("unknown", f"There is no status of {message_id[:36]}", text, status_code, *links)

    def _empty(self, glyph: str, title: str, text: str, status_code: int, *links: Markup) -> Response:
        content = empty(glyph, title, text, *(links or [link("All jobs", "./")]))
        return page(self._site, title, tag("h1", title, class_="sr"), content, crumb="", status_code=status_code)

    async def _by_short_id(self, request: Request, short_id: str) -> list[Snapshot]:
        """Search the newest 1,000 jobs for ids that begin with a short id, and return those that the visitor may see.
        Return an empty list if the visitor may not see the dashboard, or if the store does not answer.

        Raises:
          NotSupported: When the store cannot list.
        """
        site = self._site
        if not is_short_id(short_id) or await site.access_check.check(request, None) is Access.NONE:
            return []
        try:
            listed = await StatusRegistry.list(limit=SEARCHED, backend=site.backend, broker=site.broker)
        except BackendError:
            return []
        found = jobs_of(short_id, listed)
        levels = await site.access_check.check_many(request, found)
        return [one for one, level in zip(found, levels) if level is not Access.NONE]


def _fill(template: str, snapshot: Snapshot) -> str | None:
    """Fill in a template of a URL; return None if a field that it names is neither a text nor a number."""
    missing = False

    def value_of(match: re.Match[str]) -> str:
        nonlocal missing
        value = snapshot.get(match[1])
        missing = missing or not isinstance(value, (str, int, float))
        return quote(str(value), safe="")

    url = re.sub(r"\{(\w+)\}", value_of, template)
    return None if missing else url


def _card(title: str, *content: object, note: str = "", classes: str = "") -> Markup:
    head = tag("header", tag("h2", title), tag("span", note, class_="muted") if note else "")
    return tag("section", head, tag("div", *content, class_="in"), class_=f"card {classes}".strip(), aria_label=title)


def _timeline(snapshot: Snapshot, display: StatusDisplay, now: datetime, site: Site) -> Markup:
    found = timeline(snapshot, display, now, with_message=site.exposure.message)
    return _card("Timeline", found.content, note=found.note) if found.content else Markup("")


def _exception(snapshot: Snapshot, shown: dict[str, Any], with_text: bool) -> Markup:
    found = shown.get("exception")
    if not isinstance(found, dict) or snapshot.completed:
        return Markup("")
    kind, text = str(found.get("type", "")), str(found.get("message", ""))
    message = tag("p", tag("b", kind), f": {text}" if text else "", class_="msg")
    traceback = shown.get("traceback")
    more: Any = ""
    if isinstance(traceback, str):
        more = tag(
            "details",
            tag("summary", "Traceback"),
            tag("pre", traceback, tabindex="0", role="region", aria_label="Traceback"),
            class_="more",
        )
    elif not with_text:
        more = tag(
            "p",
            "Its text is not shown here: it is not among the fields that this page may send.",
            class_="muted",
        )
    note = "" if snapshot.finished else "is removed if a later run completes"
    run = snapshot.attempts if snapshot.queued or snapshot.finished else snapshot.attempts - 1
    return _card(f"Exception of run {run}" if run else "Exception", message, more, note=note, classes="exc")


def _children(children: list[Snapshot], now: datetime, site: Site) -> Markup:
    displays = [(child, display_of(child, site.exposure.to_dict(child), now, with_rate=False)) for child in children]
    counts = {state: sum(display.state == state for _, display in displays) for state in _ROLLUP}
    counts = {state: count for state, count in counts.items() if count}
    ended = sum(counts.get(state, 0) for state in ("completed", "failed", "cancelled"))
    rects, at = [], 0.0
    for state, class_ in _CLASSES.items():
        if width := 100 * counts.get(state, 0) / len(children):
            # A gap between two colours.
            drawn = max(0.4, width - 0.3)
            rects.append(tag("rect", class_=class_, x=f"{at:.4g}%", width=f"{drawn:.4g}%", height="100%"))
            at += width
    spoken = ", ".join(f"{count} {state}" for state, count in counts.items())
    rollup = tag(
        "span",
        tag("svg", *rects, aria_hidden="true", focusable="false"),
        class_="rollup",
        role="img",
        aria_label=f"{len(children)} children: {spoken}",
    )
    legend = tag(
        "ul",
        *(tag("li", icon(state), f"{count:,} {state}", class_=f"s-{state}") for state, count in counts.items()),
        class_="legend",
    )
    displays.sort(key=lambda pair: _ORDER.index(pair[1].state))
    # Queued, cancelled and completed children have a row only if there are no others: the roll-up counts them.
    worth = [pair for pair in displays if pair[1].state not in ("queued", "cancelled", "completed")] or displays
    rows = [_child(child, display, site) for child, display in worth[:MAX_ROWS]]
    failed = f", {counts['failed']:,} failed" if "failed" in counts else ""
    more = f", {len(rows)} shown" if len(rows) < len(children) else ""
    note = f"{ended:,} of {len(children):,} ended{failed}{more}"
    return _card("Children", rollup, legend, tag("ul", *rows, class_="kids"), note=note)


def _child(child: Snapshot, display: StatusDisplay, site: Site) -> Markup:
    label = label_of(site.exposure.to_dict(child))
    name = label or f"{child.actor_name or 'job'} {child.message_id[:8]}"
    link_ = tag("a", name, href=quote(child.message_id, safe=""))
    if display.state == "failed":
        middle = tag("span", reason(display.error) if display.error else "", class_="why")
    elif child.finished:
        middle = tag("span", display.facts, class_="so")
    else:
        middle = bar(child.message_id, name, display, variant="row", label=name)
    upcoming = "" if display.state == "queued" and display.glyph == "queued" else display.next
    head = tag("span", icon(display.glyph), link_, class_="name")
    return tag(
        "li",
        head,
        middle,
        tag("span", upcoming, class_="num"),
        class_=f"s-{display.state}",
        data_scheduled=display.glyph == "scheduled",
    )


def _fields(snapshot: Snapshot, shown: dict[str, Any]) -> Markup:
    names = sorted(snapshot.fields, key=lambda name: (name not in ("label", "step"), name))
    written: dict[str, Any] = {name: shown[name] for name in names if name in shown}
    included = {name: shown[name] for name in ("args", "kwargs") if name in shown and name not in written}
    if not written and not included:
        return Markup("")
    items = [_node(name, value) for name, value in (*written.items(), *included.items())]
    return _card("Fields", tag("ul", *items, class_="tree"), note="of this job")


def _node(name: object, value: Any, depth: int = 0) -> Markup:
    if isinstance(value, (dict, list)) and value and depth < 8:
        pairs = list(value.items() if isinstance(value, dict) else enumerate(value))
        items = [_node(key, inner, depth + 1) for key, inner in pairs[:MAX_ITEMS]]
        if len(pairs) > MAX_ITEMS:
            items.append(
                tag(
                    "li",
                    tag("span", class_="k"),
                    tag("span", class_="t"),
                    tag("span", f"{len(pairs) - MAX_ITEMS:,} more in the raw JSON", class_="v none"),
                    class_="f",
                )
            )
        kind, size = (
            ("object", f"{{ {len(value):,} }}") if isinstance(value, dict) else ("array", f"[ {len(value):,} ]")
        )
        summary = tag("summary", *_cells(name, kind, size))
        return tag("li", tag("details", summary, tag("ul", *items), open=len(value) <= 10))
    kind = _KINDS.get(type(value), "null")
    text = value if isinstance(value, str) else json.dumps(value)
    return tag("li", *_cells(name, kind, text, none=value is None), class_="f")


def _cells(name: object, kind: str, text: str, *, none: bool = False) -> tuple[Markup, ...]:
    value = tag("span", text, class_="v none" if none else "v")
    return tag("span", str(name), class_="k"), tag("span", kind, class_="t"), value


def _raw(shown: dict[str, Any]) -> Markup:
    text = json.dumps(shown, indent=2, ensure_ascii=False, allow_nan=False)
    pre = tag("pre", text, tabindex="0", role="region", aria_label="Raw JSON")
    return tag("section", tag("details", tag("summary", "Raw JSON"), pre, class_="raw"), class_="card")


def _facts(snapshot: Snapshot, children: list[Snapshot], shown: dict[str, Any], now: datetime) -> tuple[Markup, Markup]:
    def listed(name: str, value: str | None) -> object:
        return tag("a", value, href=f"./?{name}={quote(value, safe='')}") if value else None

    parent = shown.get("parent")
    first = [
        ("Actor", listed("actor", snapshot.actor_name)),
        ("Queue", listed("queue", snapshot.queue_name)),
        ("Runs so far", snapshot.attempts or None),
        ("Parent", tag("a", parent, href=quote(parent, safe="")) if isinstance(parent, str) and parent else None),
        ("Children", f"{len(children):,}" if children else None),
        ("Reason", snapshot.cancel_reason),
        ("Truncated", ", ".join(snapshot.truncated) or None),
    ]
    times = [
        ("Enqueued", snapshot.enqueued_at),
        ("Scheduled", snapshot.scheduled_at if snapshot.queued else None),
        (f"Run {snapshot.attempts} began" if snapshot.attempts else "Began", snapshot.started_at),
        ("Last heartbeat", snapshot.heartbeat_at if snapshot.working else None),
        ("Last change", snapshot.updated_at),
        ("Asked to stop" if snapshot.attempts else "Cancel requested", snapshot.cancel_requested_at),
        ("Request seen", snapshot.cancel_seen_at),
        ("Ended", snapshot.finished_at),
    ]
    second = [(name, _time(then, now)) for name, then in times if then is not None]
    return _list([(name, value) for name, value in first if value is not None]), _list(second)


def _time(then: datetime, now: datetime) -> Markup:
    seconds = seconds_since(then, now)
    ago = f"in {duration(-seconds)}" if seconds < 0 else f"{duration(seconds)} ago"
    return join(clock(then, now), " ", tag("small", ago))


def _list(pairs: Sequence[tuple[str, object]]) -> Markup:
    content = [part for name, value in pairs for part in (tag("dt", name), tag("dd", value))]
    return tag("section", tag("dl", *content, class_="facts"), class_="card pad")
