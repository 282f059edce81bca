"""The application for ``INSTALLED_APPS``."""

from __future__ import annotations

from django.apps import AppConfig


class StatusConfig(AppConfig):  # type: ignore[misc,untyped-decorator,unused-ignore]
    """Django application with the template tags.  It has no models."""

    name = "dramatiq_status.web.django"
    label = "dramatiq_status"
    verbose_name = "Dramatiq statuses"
