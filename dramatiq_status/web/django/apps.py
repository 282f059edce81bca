"""The application for ``INSTALLED_APPS``."""

from __future__ import annotations

from django.apps import AppConfig


class StatusConfig(AppConfig):  # type: ignore[misc,untyped-decorator,unused-ignore]
    """Brings the template tags along; there are no models."""

    name = "dramatiq_status.web.django"
    label = "dramatiq_status"
    verbose_name = "Dramatiq statuses"
