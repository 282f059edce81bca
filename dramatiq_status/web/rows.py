"""The rows of the list, and the plain bar that stands in them while no script has run."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from urllib.parse import quote

from ..snapshot import Snapshot
from ..times import measured
from ..words import age, rate_of
from .display import StatusDisplay, display_of, label_of, name_of, seconds_since
from .markup import Markup, escape, icon, join, tag


def pill(display: StatusDisplay) -> Markup:
    """Make the glyph and the word of a state."""
    return tag("span", icon(display.glyph), display.word, class_=f"pill s-{display.state}")


def when(then: datetime | None, now: datetime) -> Markup:
    """Make an age, with the time itself in its title."""
    if then is None:
        return Markup("")
    title = f"{then:%d %b %Y, %H:%M:%S} UTC"
    return tag("time", age(seconds_since(then, now)), datetime=then.isoformat(timespec="seconds"), title=title)


def reason(error: tuple[str, str]) -> Markup:
    """Make the type and the text of an exception."""
    kind, text = error
    return join(tag("b", f"{kind}:" if text else kind), f" {text}" if text else "")


def bar(
    message_id: str, name: str, display: StatusDisplay, *, variant: str, root: str = "", label: str | None = None
) -> Markup:
    """Make the element ``<dramatiq-status>``, with a plain bar in it for pages without script."""
    slim = variant in ("row", "compact")
    value = "" if display.percent is None else f"{int(display.percent)}%"
    rect = {"width": f"{36 if display.sweep else display.percent or 0:g}%", "height": "100%"}
    fill = tag("rect", part="fill", **rect)
    mark = (
        tag("rect", part="mark", x=f"{display.percent - 0.4:g}%", width="2", height="100%")
        if (display.state == "retrying" and display.percent)
        else ""
    )
    known = display.percent is not None
    track = tag(
        "span",
        tag("svg", fill, mark, aria_hidden="true", focusable="false"),
        part="bar",
        role="progressbar",
        aria_label=name,
        aria_valuenow=f"{display.percent:g}" if known else None,
        aria_valuetext=display.spoken,
    )
    if variant == "row" and display.state == "stalled":
        facts = tag("span", display.next, class_="next")
    else:
        facts = reason(display.error) if display.error else escape(display.facts)
    text = tag("span", facts, part="text", aria_hidden="true")
    if variant == "row" and display.state == "queued":
        plain = tag("span", display.facts if display.glyph == "scheduled" else display.next, class_="so")
    elif slim:
        plain = join(track, tag("span", value, part="value", aria_hidden="true"), text)
    else:
        head = tag(
            "span",
            tag("svg", tag("use", href=f"#i-{display.glyph}"), part="glyph", aria_hidden="true", focusable="false"),
            tag("span", name, part="label"),
            tag(
                "span",
                value if display.state == "working" and known else display.word,
                part="value",
                aria_hidden="true",
            ),
            part="head",
        )
        plain = join(head, track, tag("span", text, tag("span", display.next, part="next"), part="detail"))
    attributes = {"data_state": display.state, "data_variant": "compact" if slim else variant}
    return tag(
        "dramatiq-status",
        tag("span", plain, class_="plain", data_indeterminate=display.sweep, **attributes),
        src=root + quote(message_id, safe=""),
        variant=variant,
        label=label,
    )


def copy_button(text: str, label: str) -> Markup:
    """Make the button that copies an id."""
    return tag("button", icon("copy"), class_="icon-btn", type="button", data_copy=text, aria_label=label)


def confirmation(summary: object, text: str, button: str, action: str, *, in_row: bool = False) -> Markup:
    """Make a button that shows a second button, which confirms the action.  It works without script, too.

    Parameters:
      summary(object): The first button.
      text(str): What the action does, or does not do.
      button(str): The second button.
      action(str): The URL of the action.
      in_row(bool): Whether the button is in a row of the list.  The list then stays as it is after the action.
    """
    form = tag(
        "form",
        tag("span", text, class_="muted"),
        tag("button", button, class_="btn small", type="submit"),
        method="post",
        action=action,
        data_stays=in_row,
    )
    first = tag("summary", summary, class_="icon-btn" if in_row else "btn small")
    return tag("details", first, form, class_="sure", name="sure")


def row(snapshot: Snapshot, shown: dict[str, Any], now: datetime, *, may_write: bool = False) -> Markup:
    """Make one row of the list, with a button that cancels the job if the visitor may write."""
    display = display_of(snapshot, shown, now, with_rate=False)
    message_id, name = snapshot.message_id, name_of(snapshot, shown)
    actor = snapshot.actor_name if label_of(shown) else None
    short = message_id[:8]
    failed, live = display.state == "failed", not snapshot.finished
    scheduled, is_requested = display.glyph == "scheduled", snapshot.cancel_requested_at is not None
    mark = join(icon("cancelled"), tag("span", f"Cancel {name} {short}", class_="sr"))
    cancel = confirmation(mark, f"Cancel {short}?", "Cancel job", f"{quote(message_id, safe='')}/cancel", in_row=True)
    if live:
        content = bar(message_id, f"{name} {short}", display, variant="row", label=f"{name} {short}")
    elif failed:
        content = tag("span", reason(display.error) if display.error else "", class_="why")
    else:
        text = "skipped" if snapshot.skipped else display.facts
        content = tag("span", text, class_="so") if text else Markup("")
    wide = {"colspan": "3", "aria_colspan": "3"} if failed else {}
    rate = rate_of(snapshot) if display.state == "working" else ""
    left = ""
    if scheduled or (display.state == "working" and not display.sweep):
        left = display.next
    elif display.state == "retrying":
        left = display.next.partition(", ")[2]
    took, ran = snapshot.duration, ""
    if took is not None and (snapshot.finished or display.state in ("working", "stalled")):
        ran = measured(took)
    cells = [
        tag("td", pill(display), role="cell", class_="c-state"),
        tag(
            "td",
            tag(
                "span",
                tag("a", name, href=quote(message_id, safe="")),
                tag("span", actor, class_="actor", title=actor) if actor else "",
                tag("code", short),
                copy_button(message_id, f"Copy the id {short}"),
                cancel if live and may_write and not is_requested else "",
                class_="job",
            ),
            role="cell",
            class_="c-job",
        ),
        tag("td", snapshot.queue_name, role="cell", class_="c-queue"),
        tag("td", content, role="cell", class_="c-bar", **wide),
    ]
    if not failed:
        cells.append(tag("td", rate, role="cell", class_="c-rate num"))
        cells.append(
            tag(
                "td",
                left if display.state == "working" else tag("span", left, class_="next"),
                role="cell",
                class_="c-left num left" + ("" if left else " blank"),
            )
        )
    first = " zero" if snapshot.attempts <= 1 else ""
    cells += [
        tag("td", snapshot.attempts or "", role="cell", class_=f"c-try num{first}"),
        tag(
            "td",
            ran,
            role="cell",
            class_="c-took num",
        ),
        tag("td", when(snapshot.updated_at, now), role="cell", class_="c-when num"),
    ]
    return tag("tr", *cells, role="row", data_s=display.state, data_id=message_id, data_scheduled=scheduled)
