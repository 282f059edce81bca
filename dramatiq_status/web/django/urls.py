"""The URLs, to be included under any prefix."""

from __future__ import annotations

from django.urls import path

from .views import status

app_name = "dramatiq_status"

urlpatterns = [path("<path:path>", status, name="status")]
