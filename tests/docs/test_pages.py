"""Every snippet of the site does what its page shows."""

from __future__ import annotations

import os
import re
from pathlib import Path

import dramatiq
import pytest

from ..servers import free_port
from .pages import ROOT, RUN, SHOWN, Page, blocks_of, commands_of, forget_modules, pages

PAGES = pages()
ALL_PAGES = [ROOT / "README.rst", *sorted((ROOT / "docs").rglob("*.rst"))]


@pytest.fixture
def page(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    """Return the page of the test's parameter, in a directory of its own."""
    servers = {"127.0.0.1:6379": "redis_server", "127.0.0.1:11211": "memcached_server"}

    def address(shown: str) -> str:
        if shown not in servers:
            return f"127.0.0.1:{free_port()}"
        server = request.getfixturevalue(servers[shown])
        server.reset()
        return f"127.0.0.1:{server.port}"

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return Page(request.param, tmp_path, request.getfixturevalue, address)


# Each command of a page may take as long as any other test: the tutorial fills a new environment.
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES, indirect=True, ids=lambda path: str(path.relative_to(ROOT)))
@pytest.mark.timeout(300)  # A page may install packages, on a busy machine.
def test_page(page: Page) -> None:
    before = dict(os.environ)
    try:
        page.run()
    finally:
        os.environ.clear()
        os.environ.update(before)
        dramatiq.set_broker(None)  # type: ignore[arg-type]
        forget_modules(page.folder)
    if page.differences and os.environ.get("UPDATE_PAGES"):
        page.rewrite()
    if page.differences:
        pytest.fail(page.report(), pytrace=False)


@pytest.mark.parametrize(
    "path", [ROOT / "README.rst", *sorted((ROOT / "docs").rglob("*.rst"))], ids=lambda path: str(path.relative_to(ROOT))
)
def test_all_code_is_in_blocks_that_are_run_or_only_shown(path: Path) -> None:
    if path == ROOT / "docs" / "README.rst":
        pytest.skip("It describes the marks.")
    text = path.read_text(encoding="utf-8")
    for block in blocks_of(text):
        if block.is_code:
            assert block.argument in (*RUN, *SHOWN), block
        if block.argument == "console":
            assert list(commands_of(block.text)), block
    # Literal blocks without a language are not run.
    assert not re.search(r"^(?! *\.\. ).*::$", text, flags=re.MULTILINE)


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "how-to").glob("*.rst")), ids=lambda path: path.stem)
def test_a_how_to_page_fits_a_screen(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 100
