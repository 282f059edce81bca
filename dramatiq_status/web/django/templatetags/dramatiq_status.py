"""``{% dramatiq_status message_id %}``: the bar of a job, and the script that draws it."""

from __future__ import annotations

from typing import Any

from django import template
from django.urls import reverse
from django.utils.html import format_html, format_html_join

from ..views import sign

register: Any = template.Library()


@register.simple_tag  # type: ignore[misc,untyped-decorator,unused-ignore]
def dramatiq_status(message_id: Any, **attributes: Any) -> Any:
    """Make the script and the element; further arguments are the element's attributes, such as ``label="Orders"``."""
    message_id = str(getattr(message_id, "message_id", message_id))
    script = reverse("dramatiq_status:status", args=("dramatiq-status.js",))
    token = sign(message_id)
    if token is not None:
        attributes["token"] = token
    return format_html(
        '<script type="module" src="{}"></script><dramatiq-status src="{}"{}></dramatiq-status>',
        script,
        reverse("dramatiq_status:status", args=(message_id,)),
        format_html_join("", ' {}="{}"', ((name.replace("_", "-"), value) for name, value in attributes.items())),
    )
