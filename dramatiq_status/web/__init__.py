"""A web application that shows statuses: JSON, event streams, a dashboard, and the element ``<dramatiq-status>``.

It needs the extra ``web``: ``pip install dramatiq-status[web]``.
"""

from __future__ import annotations

from .access import Access, allow_all
from .app import StatusApp, status_app
from .tokens import TokenSigner

__all__ = ["Access", "StatusApp", "TokenSigner", "allow_all", "status_app"]
