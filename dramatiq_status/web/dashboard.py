"""The dashboard: the list of all jobs, with counts and filters."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, Final
from urllib.parse import quote, urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from .. import _time as time
from ..errors import BackendError, NotSupported
from ..snapshot import Snapshot
from ..state_filter import AMONG, MAX_SEARCHED
from ..words import age
from .access import Access
from .display import WORDS, seconds_since
from .exposure import encode, tag_of
from .listing import STATES, Counts, Listing, ListPage, ListRequest
from .markup import Markup, icon, join, tag
from .pages import empty, link, page, search_box
from .rows import row
from .site import JSON, RETRY_AFTER, Site, error

_COLUMNS: Final = (
    *(("State", "c-state"), ("Job", "c-job"), ("Queue", "c-queue"), ("Progress", "c-bar"), ("Rate", "c-rate num")),
    *(("Left", "c-left num"), ("Runs", "c-try num"), ("Ran for", "c-took num"), ("Changed", "c-when num")),
)

#: States by which the list can be filtered.
_STATES: Final = (*STATES, *AMONG)

_KEYS: Final = (("/", "find"), ("j k", "down, up"), ("↵", "open"), ("c", "copy id"), ("n", "show new"))


def utc_now() -> datetime:
    return datetime.fromtimestamp(time.time(), timezone.utc)


class Dashboard:
    """The views of the list, as a page and as JSON.

    Parameters:
      site(Site)
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._listing = Listing(site)

    async def page(self, request: Request) -> Response:
        """Answer with the page of the list."""
        query = request.query_params
        if "q" in query:
            return RedirectResponse(_target_of(query["q"].strip()), 303)
        try:
            await self._site.enter(request)
        except HTTPException as e:
            return self._refused(e)
        try:
            wanted, (shown, after), writable, counts = await self._read(request)
        except HTTPException as e:
            return self._no_such_list(request, e.detail)
        except NotSupported as e:
            return self._without_list(str(e))
        except BackendError:
            return self._unavailable(request)
        names = WORDS.get(wanted.state or "", "All")
        return page(
            self._site,
            f"{names if wanted.state else 'Jobs'} · {self._site.title}",
            tag("h1", f"Jobs of {self._site.title}", class_="sr"),
            tag("div", Markup(_BANNER), id="banner", hidden=True),
            _counts(counts, wanted),
            _tools(wanted, shown, counts),
            _table(self._site, shown, writable) if shown else _nothing(wanted, counts, after),
            _pages(wanted, after),
            live=True,
        )

    async def data(self, request: Request) -> Response:
        """Answer with the list as JSON: the statuses of one page, and the counts."""
        await self._site.enter(request)
        try:
            _, (shown, after), _, counts = await self._read(request)
        except NotSupported as e:
            return error(501, str(e))
        jobs = [{"id": one.message_id, "tag": tag_of(one), "status": self._site.exposure.to_dict(one)} for one in shown]
        found = {
            "counts": counts.by_state,
            "among": counts.among,
            "partly_read": sorted(counts.partly_read),
            "jobs": jobs,
            "next": after,
        }
        return JSON(encode(found))

    async def _read(self, request: Request) -> tuple[ListRequest, ListPage, frozenset[str], Counts]:
        """Read a page of the list.  The third value has the ids of the messages that the visitor may change."""
        query = request.query_params
        values = [query.get(name) or None for name in ("state", "actor", "queue", "after")]
        wanted = ListRequest(*values)
        if wanted.state is not None and wanted.state not in _STATES:
            raise HTTPException(400, f"state must be one of {', '.join(_STATES)}.")
        try:
            found, after = await self._listing.page(wanted)
        except (ValueError, TypeError) as e:
            raise HTTPException(400, str(e)) from None
        counts = await self._listing.counts()
        levels = await self._site.access_check.check_many(request, found)
        writable = frozenset(one.message_id for one, level in zip(found, levels) if level is Access.WRITE)
        shown = [one for one, level in zip(found, levels) if level is not Access.NONE]
        return wanted, ListPage(shown, after), writable, counts

    def _without_list(self, why: str) -> Response:
        box = search_box("./", "Open a job by its id", "Job id", name="q2")
        text = join(why, " A Redis or SQLite backend with an index can list jobs.")
        content = empty("jobs", "This store finds jobs by id only", text, box)
        return page(self._site, f"Jobs · {self._site.title}", tag("h1", "Jobs", class_="sr"), content, search=False)

    def _no_such_list(self, request: Request, why: str) -> Response:
        word = request.query_params.get("state")
        title = "There is no such list"
        if word and word not in _STATES:
            title, why = f"There is no state {word[:40]}", f"A state is {', '.join(_STATES[:-1])} or {_STATES[-1]}."
        content = empty("search", title, why, link("All jobs", "./"))
        return page(self._site, title, tag("h1", title, class_="sr"), content, status_code=400)

    def _refused(self, refusal: HTTPException) -> Response:
        content = empty("refused", "No access", refusal.detail)
        title = tag("h1", "No access", class_="sr")
        return page(self._site, "No access", title, content, search=False, status_code=refusal.status_code)

    def _unavailable(self, request: Request) -> Response:
        content = empty(
            "stalled",
            "The store does not answer",
            "The page cannot show the jobs while the store does not answer. The jobs continue to run.",
            link(
                "Try now",
                _query_of(ListRequest(*[request.query_params.get(name) for name in ("state", "actor", "queue")])),
            ),
        )
        response = page(
            self._site, "The store does not answer", tag("h1", "Jobs", class_="sr"), content, status_code=503
        )
        response.headers["Retry-After"] = RETRY_AFTER
        return response


_BANNER: Final = (
    '<div class="banner" role="status"><svg class="i" aria-hidden="true" focusable="false"><use href="#i-stalled"/>'
    '</svg><strong>The store does not answer.</strong><span class="muted">What you see is from '
    '<span id="seen"></span>. Trying again in <span id="again"></span>.</span><a href="">Try now</a></div>'
)


def _target_of(text: str) -> str:
    """Return the relative URL of what was typed into the box: a job's id, or ``actor:NAME queue:NAME state:NAME``."""
    filters = {}
    for word in text.split():
        name, colon, value = word.partition(":")
        if not colon or name not in ("actor", "queue", "state") or not value:
            break
        filters[name] = value
    else:
        return "?" + urlencode(filters) if filters else "./"
    # The text is quoted, so that it cannot lead to another folder.
    return "./" + quote(text, safe="")


def _query_of(wanted: ListRequest, **changes: str | None) -> str:
    values = {**wanted._asdict(), "after": None, **changes}
    found = urlencode({name: value for name, value in values.items() if value})
    return "?" + found if found else "./"


def _number(number: int, is_minimum: bool) -> str:
    """Write a number of jobs: ``100+`` for a minimum of 100."""
    return f"{number:,}{'+' if is_minimum else ''}"


def _among(state: str, number: int, is_minimum: bool, wanted: ListRequest) -> Markup:
    """Make a link to the list of jobs in a state that the store does not index, with their number unless it is 0."""
    current = wanted.state == state
    return tag(
        "a",
        f"{_number(number, is_minimum)} {state}" if number else state,
        # Only a link with a number has the colour of its state.
        class_=f"s-{state}" if number else None,
        hidden=not (number or is_minimum or current),
        href=_query_of(wanted, state=None if current else state),
        aria_current="true" if current else None,
        data_name=state,
    )


def _counts(counts: Counts, wanted: ListRequest) -> Markup:
    now = utc_now()
    boxes = []
    for state in STATES:
        newest = counts.newest.get(state)
        below: list[Any] = []
        if newest is not None and newest.finished_at is not None:
            seconds = seconds_since(newest.finished_at, now)
            finished_at = newest.finished_at.isoformat(timespec="seconds")
            below = [tag("span", "newest ", tag("time", age(seconds), datetime=finished_at))]
        is_minimum = state in counts.partly_read
        below += [_among(name, number, is_minimum, wanted) for name, number in counts.among.get(state, {}).items()]
        current = wanted.state == state
        top = tag(
            "a",
            icon(state, f"s-{state}"),
            tag("span", WORDS[state], class_="of"),
            tag("span", f"{counts.by_state[state]:,}", class_="n", data_count=state),
            href=_query_of(wanted, state=None if current else state),
            aria_current="true" if current else None,
        )
        boxes.append(tag("div", top, tag("span", *below, class_="sub", data_below=state), class_="count"))
    return tag("nav", *boxes, class_="counts", aria_label="Jobs by state")


def _chip(wanted: ListRequest, name: str, title: str) -> Markup:
    """Show a filter that is set, and the link that removes it."""
    value = getattr(wanted, name)
    remove = tag(
        "a",
        icon("x"),
        class_="icon-btn",
        href=_query_of(wanted, **{name: None}),
        aria_label=f"Remove the filter {title} {value}",
    )
    return tag("span", tag("span", tag("span", title, class_="k"), " ", value), remove, class_="chip set")


def _tools(wanted: ListRequest, shown: list[Snapshot], counts: Counts) -> Markup:
    chips = [_chip(wanted, "state", "State")] if wanted.state in AMONG else []
    for name, attribute in (("actor", "actor_name"), ("queue", "queue_name")):
        value = getattr(wanted, name)
        title = name.capitalize()
        if value:
            chips.append(_chip(wanted, name, title))
            continue
        # Offer the names on this page, because the store cannot list all names without reading all statuses.
        seen = sorted({getattr(one, attribute) for one in shown if getattr(one, attribute)})
        kept = [
            tag("input", type="hidden", name=other, value=getattr(wanted, other))
            for other in ("state", "actor", "queue")
            if other != name and getattr(wanted, other)
        ]
        form = tag(
            "form",
            *kept,
            tag(
                "input",
                name=name,
                placeholder=f"Name of {'an actor' if name == 'actor' else 'a queue'}",
                aria_label=f"Name of the {name}",
                autocomplete="off",
                spellcheck="false",
            ),
            action="./",
            method="get",
        )
        links = [tag("a", tag("span", one), href=_query_of(wanted, **{name: one})) for one in seen[:12]]
        summary = tag("summary", title, icon("down"))
        chips.append(tag("details", summary, tag("div", form, *links, class_="pop"), class_="chip", name="filters"))
    new = tag("a", icon("up"), tag("span", ""), class_="new", id="new", href=_query_of(wanted), hidden=True)
    count, is_minimum = counts.number_of(wanted.state) if wanted.state else (counts.total, False)
    if wanted.actor or wanted.queue or (is_minimum and not count):
        total = "last changed first"
    else:
        number = _number(count, is_minimum)
        total = f"{number} job{'' if number == '1' else 's'}{', last changed first' if shown else ''}"
    return tag("div", *chips, tag("span", class_="spring"), new, tag("span", total, class_="total"), class_="tools")


def _table(site: Site, shown: list[Snapshot], writable: frozenset[str]) -> Markup:
    now = utc_now()
    head = tag(
        "tr",
        *(tag("th", name, role="columnheader", scope="col", class_=classes) for name, classes in _COLUMNS),
        role="row",
    )
    rows = [row(one, site.exposure.to_dict(one), now, may_write=one.message_id in writable) for one in shown]
    table = tag(
        "table",
        tag("thead", head, role="rowgroup"),
        tag("tbody", *rows, role="rowgroup", id="rows"),
        class_="jobs",
        role="table",
        aria_label="Jobs, last changed first",
    )
    return tag("div", table, class_="list")


def _nothing(wanted: ListRequest, counts: Counts, after: str | None) -> Markup:
    if after:
        older = link("Older jobs", _query_of(wanted, after=after))
        if wanted.state not in AMONG:
            return empty("refused", "No jobs that you may see on this page", "There are older jobs.", older)
        state, read = wanted.state, f"{MAX_SEARCHED:,} {' and '.join(AMONG[wanted.state])} jobs"
        return empty(
            "search", f"No {state} jobs so far", f"This page has looked at {read}. There are older ones.", older
        )
    if not any(wanted):
        if counts.total:
            return empty("refused", "No jobs that you may see", "There are jobs, but you may not see any of them.")
        return empty(
            "queued",
            "No jobs yet",
            "A job appears here as soon as it is sent. If you have sent some, this page may "
            "look at another store or namespace than your workers.",
        )
    if wanted.after:
        return empty("search", "No older jobs", "The list ends here.", link("Newest", _query_of(wanted)))
    what = f"No {wanted.state or ''} jobs".replace("  ", " ")
    what += f" of {wanted.actor}" if wanted.actor else ""
    what += f" in {wanted.queue}" if wanted.queue else ""
    wider = []
    if wanted.queue and (wanted.actor or wanted.state):
        wider.append(link("All queues", _query_of(wanted, queue=None)))
    elif wanted.actor and wanted.state:
        wider.append(link("All states", _query_of(wanted, state=None)))
    return empty("search", what, "Statuses are kept for a while after a job has ended.", *wider, link("All jobs", "./"))


def _pages(wanted: ListRequest, after: str | None) -> Markup:
    keys = [
        tag("span", *(join(" " if i else "", tag("kbd", one)) for i, one in enumerate(key.split())), " ", text)
        for key, text in _KEYS
    ]
    links = []
    if wanted.after:
        links.append(tag("a", "Newest", class_="btn small", href=_query_of(wanted)))
    if after is not None:
        older = _query_of(wanted, after=after)
        links.append(tag("a", "Older", class_="btn small", rel="next", href=older))
    return tag(
        "nav",
        tag("div", *keys, class_="keys", aria_hidden="true"),
        tag("div", *links),
        class_="pages",
        aria_label="Pages",
    )
