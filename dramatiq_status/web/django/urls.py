"""The URLs, to be included under any prefix."""

from __future__ import annotations

from typing import Any

from django.urls import path

from .views import status

app_name = "dramatiq_status"

urlpatterns: list[Any] = [path("<path:path>", status, name="status")]
