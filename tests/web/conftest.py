"""Fixtures of the web's tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from playwright.sync_api import Browser

from dramatiq_status.backends import RedisBackend

from ..jobs import Job
from .browser import Tab, chromium


@pytest.fixture
def backend(redis_url: str) -> Iterator[RedisBackend]:
    """Yield the backend of an empty Redis."""
    with closing(RedisBackend(url=redis_url, timeout=5_000)) as made:
        yield made


@pytest.fixture
def job(backend: RedisBackend) -> Job:
    """Store the status of a running job."""
    return Job(backend).enqueue().start().write(step="reading", user_id=42)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Yield one browser for all tests here; while it runs, an event loop runs in this thread."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    """Yield a tab in a profile of its own, in which nothing may fail."""
    with closing(browser.new_context(bypass_csp=False)) as context:
        tab = Tab(context.new_page())
        yield tab
        assert not tab.troubles
