"""A real browser: Debian's Chromium, driven by playwright."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, TimeoutError, sync_playwright

from ..recording import PATIENCE

FLAGS = ["--headless", "--no-sandbox", "--disable-quic", "--disable-background-networking"]

#: The strictest policy that the element has to work under.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "require-trusted-types-for 'script'"
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a browser. Where there is none the test is skipped, or fails under CI=true."""
    path = shutil.which("chromium")
    if path is None:
        if os.environ.get("CI", "").lower() in {"1", "true"}:
            raise RuntimeError("chromium is missing: scripts/services installs it.")
        pytest.skip("chromium is missing: scripts/services installs it.")
    with sync_playwright() as playwright:
        # playwright switches the cache for pages of the history off.
        ignored = ["--disable-back-forward-cache"]
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS, ignore_default_args=ignored)
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """A tab in which no script fails, and no policy is violated."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.troubles: list[str] = []
        page.set_default_timeout(PATIENCE * 1000)
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("console", lambda message: self._note(message))

    def _note(self, message: Any) -> None:
        # The browser itself reports answers such as 404 as errors.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.troubles.append(message.text)

    def open(self, url: str) -> Tab:
        self.page.goto(url)
        return self

    def run(self, script: str, argument: Any = None) -> Any:
        return self.page.evaluate(script, argument)

    def until(self, script: str, argument: Any = None) -> None:
        """Wait until a function returns something true.

        While a page loads, an element that the function reads may be missing: an exception counts as "not yet". After
        the time-out, it is raised.
        """
        tried = f"(argument) => {{ try {{ return ({script})(argument) }} catch {{ return false }} }}"
        try:
            self.page.wait_for_function(tried, arg=argument, polling=20)
        except TimeoutError:
            self.run(script, argument)
            raise

    def text(self, selector: str = "dramatiq-status") -> str:
        """Return the texts that an element shows."""
        found: str = self.run("(s) => document.querySelector(s).shadowRoot.textContent", selector)
        return found

    def until_state(self, state: str, selector: str = "dramatiq-status") -> None:
        self.until("([s, state]) => document.querySelector(s)?.state == state", [selector, state])


def axe(folder: Path) -> str | None:
    """Get the script of axe-core by npm; None if npm cannot get it."""
    script = folder / "node_modules/axe-core/axe.min.js"
    if not script.exists():
        npm = shutil.which("npm")
        if npm is None:
            return None
        command = [npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), "axe-core@4"]
        if subprocess.run(command, capture_output=True, timeout=100).returncode:
            return None
    return script.read_text()
