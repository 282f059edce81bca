"""The timeline of a job: a drawing to scale, and below it a list of the steps."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple

from ..snapshot import Snapshot
from ..words import CANCELLED, COMPLETED, QUEUED, SCHEDULED, SKIPPED, STALLED, WORKING, Step, life_of, steps_of
from .display import StatusDisplay
from .markup import Markup, icon, join, tag
from .rows import reason

#: Classes of runs by their states: the colours of the track.
_CLASSES: Final = {COMPLETED: "r-completed", WORKING: "r-working", STALLED: "r-stalled", CANCELLED: "r-cancelled"}

#: Percent of the track's width that one character of a text takes on a wide page, and on a phone.
_WIDE: Final = 0.85
_NARROW: Final = 1.9

#: Percent between two segments, and the smallest width of a segment.
_GAP: Final = 0.3
_LEAST: Final = 0.4


class Timeline(NamedTuple):
    """The timeline of a job, and the length of its life in words; both are empty if no step has a time."""

    content: Markup = Markup("")
    note: str = ""


def timeline(snapshot: Snapshot, display: StatusDisplay, now: datetime, *, with_message: bool) -> Timeline:
    """Make the timeline of a job.

    Parameters:
      snapshot(Snapshot)
      display(StatusDisplay): The job as it is now.
      now(datetime)
      with_message(bool): Whether the texts of exceptions may leave the server.
    """
    steps = list(steps_of(snapshot, now))
    words = [_words(step, snapshot, display, now, with_message=with_message) for step in steps]
    if not any(step.at for step in steps):
        return Timeline()
    return Timeline(join(_track(steps), tag("ol", *words, class_="steps")), life_of(snapshot, now))


def _track(steps: Sequence[Step]) -> Markup:
    """Draw the steps that have a length, to scale."""
    drawn = [(step, step.length.total_seconds()) for step in steps if step.length is not None]
    total = sum(seconds for _, seconds in drawn)
    if total <= 0:
        return Markup("")
    # A step that would be too short to see gets a minimum width, and the other steps are drawn shorter.
    widths = [max(_LEAST + _GAP, 100 * seconds / total) for _, seconds in drawn]
    at, parts = 0.0, []
    for (step, _), width in zip(drawn, widths):
        width *= 100 / sum(widths)
        x = f"{at:.4g}%"
        box = {"x": x, "width": f"{max(_LEAST, width - _GAP):.4g}%"}
        if step.run is None:
            parts.append(tag("rect", class_="wait", y="3", height="4", **box))
        else:
            parts.append(tag("rect", class_=_CLASSES.get(step.state, "r-failed"), y="0", height="10", **box))
        if width > len(step.short) * _WIDE:
            class_ = "w" if width < len(step.short) * _NARROW else None
            parts.append(tag("text", step.short, class_=class_, x=x, y="28"))
        at += width
    return tag("svg", *parts, class_="track", aria_hidden="true", focusable="false")


def _words(step: Step, snapshot: Snapshot, display: StatusDisplay, now: datetime, *, with_message: bool) -> Markup:
    detail: object = ""
    if step.run is not None and step.run.exception:
        found = step.run.exception
        detail = reason((str(found.get("type", "")), str(found.get("message", "")) if with_message else ""))
    elif step.run is not None and step.run.outcome is None:
        detail = display.facts
    elif step.until is not None:
        detail = join("for ", clock(step.until, now))
    elif step.state == QUEUED and snapshot.queue_name:
        detail = f"to {snapshot.queue_name}"
    state = {SCHEDULED: "queued", SKIPPED: "cancelled"}.get(step.state, step.state.lower())
    what = tag(
        "span",
        tag("b", step.title),
        join(" ", tag("span", step.text, class_="long")) if step.text else "",
        join(" ", tag("small", detail)) if detail else "",
        class_="what",
    )
    return tag("li", "" if step.at is None else clock(step.at, now), icon(state), what, class_=f"s-{state}")


def clock(then: datetime, now: datetime) -> Markup:
    """Make a time of the day, with its date if the time is 12 hours or more away."""
    text = f"{then:%H:%M:%S}" if abs((now - then).total_seconds()) < 43_200 else f"{then:%d %b, %H:%M}"
    # The script writes the time of the visitor's zone in its place.
    text = join(text, tag("span", " UTC", class_="utc"))
    return tag("time", text, datetime=then.isoformat(timespec="seconds"), title=f"{then:%d %b %Y, %H:%M:%S} UTC")
