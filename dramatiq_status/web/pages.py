"""The frame that all pages share, and the boxes of pages that have no content."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from .files import STATIC
from .markup import Markup, icon, join, tag
from .site import Site

#: Content-Security-Policy of the pages: they load files of their own origin only.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'self'; require-trusted-types-for 'script'"
)

_HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}

_SPRITE: Final = Markup((STATIC / "glyphs.svg").read_text())


def page(
    site: Site,
    title: str,
    *main: object,
    crumb: str | None = None,
    live: bool = False,
    root: str = "./",
    search: bool = True,
    status_code: int = 200,
) -> Response:
    """Make a page.

    Parameters:
      site(Site)
      title(str): The title of the window.
      *main: The content.
      crumb(str): None for the list.  Any text makes the word "Jobs" at the top a link to the list.
      live(bool): Whether the top has the word "Live": changes arrive as they happen.
      root(str): The dashboard's URL, relative to the page.
      search(bool): Whether the top has the box that opens a job.
      status_code(int)
    """
    head = join(
        Markup('<meta charset="utf-8">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        *(tag("link", rel="stylesheet", href=root + name) for name in ("tokens.css", "pages.css")),
        tag("script", type="module", src=f"{root}pages.js"),
    )
    jobs = tag("span", "Jobs", aria_current="page") if crumb is None else tag("a", "Jobs", href=root)
    top = tag(
        "header",
        tag(
            "div",
            tag("a", icon("jobs"), site.title, class_="brand", href=root),
            tag("nav", jobs, class_="crumb", aria_label="Breadcrumb"),
            search_box(root) if search else "",
            tag("span", "Live", class_="live", id="live", title="Changes arrive as they happen", hidden=True)
            if live
            else "",
            class_="page",
        ),
        class_="top",
    )
    body = tag(
        "body",
        _SPRITE,
        tag("a", "Skip to the content", class_="skip", href="#main"),
        top,
        tag("p", class_="sr", role="status", id="polite"),
        tag("main", *main, class_="page", id="main"),
    )
    text = "<!doctype html>\n" + tag("html", tag("head", head), body, lang="en")
    return Response(text, status_code, _HEADERS, "text/html")


def search_box(
    root: str, label: str = "Find a job", hint: str = "Job id, or actor:NAME state:failed", name: str = "q"
) -> Markup:
    """Make the box that opens a job by its id, or a list by filters."""
    return tag(
        "form",
        icon("search"),
        tag("label", label, class_="sr", for_=name),
        tag("input", id=name, name="q", type="search", placeholder=hint, autocomplete="off", spellcheck="false"),
        tag("kbd", "/", aria_hidden="true"),
        class_="search",
        role="search",
        aria_label=label,
        action=root,
        method="get",
    )


def empty(glyph: str, title: str, text: object, *links: Markup) -> Markup:
    """Make the box of a page that has nothing to show."""
    row = tag("div", *links, class_="row") if links else ""
    return tag("div", icon(glyph), tag("h2", title), tag("p", text), row, class_="list empty")


def link(text: str, href: str) -> Markup:
    """Make a link that looks like a button."""
    return tag("a", text, class_="btn small", href=href)
