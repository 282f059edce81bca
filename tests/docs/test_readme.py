"""The README is short, renders on a package index, and its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from configparser import RawConfigParser
from pathlib import Path

from .pages import ROOT

README = ROOT / "README.rst"

METADATA = RawConfigParser()
METADATA.read(ROOT / "setup.cfg", encoding="utf-8")

#: URL of the published site.
SITE = METADATA["metadata"]["url"]


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 300


def test_the_readme_links_to_pages_that_exist() -> None:
    links = re.findall(r"`[^`]*<([^`>]+)>`_", README.read_text(encoding="utf-8"))
    pages = [link.removeprefix(SITE) for link in links if link.startswith(SITE)]
    assert len(pages) >= 4
    assert [page for page in pages if not (ROOT / "docs" / page).with_suffix(".rst").exists()] == []


def test_the_picture_of_the_readme_is_one_of_the_site() -> None:
    # Given that a package index shows the README without the files beside it
    (picture,) = re.findall(r"image:: (\S+)", README.read_text(encoding="utf-8"))
    # Then Sphinx puts the file there, because a page shows it
    assert picture == f"{SITE}_images/demo.svg"
    assert ".. image:: demo.svg\n" in (ROOT / "docs" / "index.rst").read_text(encoding="utf-8")


def test_the_readme_renders_on_a_package_index(tmp_path: Path) -> None:
    # Given a source distribution that has nothing but its metadata
    metadata = "Metadata-Version: 2.1\nName: dramatiq-status\nVersion: 0.1.0\nDescription-Content-Type: text/x-rst\n\n"
    folder = tmp_path / "dramatiq_status-0.1.0"
    folder.mkdir()
    (folder / "PKG-INFO").write_text(metadata + README.read_text(encoding="utf-8"), encoding="utf-8")
    archive = tmp_path / "dramatiq_status-0.1.0.tar.gz"
    subprocess.run(["tar", "-czf", archive, "-C", tmp_path, folder.name], check=True)
    # When twine checks it, then there is no warning
    command = [sys.executable, "-m", "twine", "check", "--strict", str(archive)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0 and "PASSED" in done.stdout, done.stdout
