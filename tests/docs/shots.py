"""Screenshots of pages that a test serves."""

from __future__ import annotations

import os

from ..web.browser import Tab, chromium
from .pages import ROOT


def shoot(url: str, name: str) -> None:
    """Open a page with a bar, wait until the bar moves and until its job is done.  With ``UPDATE_PAGES``, write
    pictures of the bar to ``docs/``, in light and in dark.
    """
    with chromium() as browser:
        for colours in ("light", "dark"):
            context = browser.new_context(color_scheme=colours, viewport={"width": 560, "height": 64})  # type: ignore[arg-type]
            tab = Tab(context.new_page()).open(url)
            tab.until("() => (document.querySelector('dramatiq-status')?.snapshot?.percent ?? 0) >= 40")
            assert "Orders of May" in tab.text() and "reading" in tab.text()
            if os.environ.get("UPDATE_PAGES"):
                tab.page.screenshot(path=ROOT / "docs" / f"{name}-{colours}.png", animations="disabled", scale="css")
            if colours == "dark":
                tab.until_state("completed")
            assert tab.troubles == []
