"""The application for ``INSTALLED_APPS``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Django has no types.
    class AppConfig:
        """Base class of applications."""
else:
    from django.apps import AppConfig


class StatusConfig(AppConfig):
    """Django application with the template tags.  It has no models."""

    name = "dramatiq_status.web.django"
    label = "dramatiq_status"
    verbose_name = "Dramatiq statuses"
