"""What a user gets who installs the package: its files, its dependencies, and an import that needs no extra."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import RawConfigParser
from pathlib import Path

import pytest

import dramatiq_status

ROOT = Path(__file__).parent.parent

#: Files and folders of the repository that the source distribution contains.
FILES = (
    *("setup.cfg", "setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.rst", "CHANGELOG.rst"),
    *("ruff.toml", "tox.ini", "SECURITY.rst", "CONTRIBUTING.rst"),
)
FOLDERS = ("dramatiq_status", "tests", "benchmarks", "docs", "examples", "scripts", ".ci")

METADATA = RawConfigParser()
METADATA.read(ROOT / "setup.cfg", encoding="utf-8")


def run_without(modules: list[str], script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a new interpreter in which these modules cannot be imported."""
    block = f"import sys; sys.modules.update(dict.fromkeys({modules!r}))\n"
    return subprocess.run([sys.executable, "-c", block + script], cwd=ROOT, capture_output=True, text=True)


def run(*command: object, cwd: Path) -> str:
    """Run a command to its end, and return what it has printed."""
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of the source distribution and the wheel that a release would upload."""
    dist = tmp_path_factory.mktemp("dist")
    run(ROOT / "scripts" / "package", dist, cwd=ROOT)
    return dist


@pytest.fixture(scope="module")
def source(distributions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the unpacked source distribution."""
    (path,) = distributions.glob("dramatiq_status-*.tar.gz")
    folder = tmp_path_factory.mktemp("source")
    shutil.unpack_archive(path, folder, filter="data")
    (unpacked,) = folder.iterdir()
    return unpacked


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> list[str]:
    """Return the names of the files in the wheel."""
    (path,) = distributions.glob("dramatiq_status-*.whl")
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def test_the_version_is_in_one_place(distributions: Path) -> None:
    version = dramatiq_status.__version__
    assert sorted(path.name for path in distributions.iterdir()) == [
        f"dramatiq_status-{version}-py3-none-any.whl",
        f"dramatiq_status-{version}.tar.gz",
    ]
    assert version not in (ROOT / "setup.cfg").read_text(encoding="utf-8")


def test_the_files_of_the_distributions_have_one_time_owner_and_mode(distributions: Path) -> None:
    """Check the conditions for builds that are equal to the byte. ``scripts/try-release`` compares two builds."""
    (path,) = distributions.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    assert len({member.mtime for member in members}) == 1
    assert {(member.uid, member.gid, member.uname, member.gname) for member in members} == {(0, 0, "", "")}
    assert {member.mode for member in members} == {0o644, 0o755}
    (path,) = distributions.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        assert len({info.date_time for info in archive.infolist()}) == 1


def test_files_that_are_no_sources_do_not_matter(source: Path, tmp_path: Path) -> None:
    # Given a file beside the sources that cannot be copied, like a file that a test of another process removes
    pipe = source / ".coverage.of-another-process"
    os.mkfifo(pipe)
    # When the distributions are built
    run(source / "scripts" / "package", tmp_path, cwd=source)
    pipe.unlink()
    # Then both of them are there
    assert len(list(tmp_path.iterdir())) == 2


def test_dramatiq_is_the_only_hard_dependency() -> None:
    assert METADATA["options"]["install_requires"].split() == ["dramatiq>=1.17"]


def test_import_needs_no_extra() -> None:
    result = run_without(
        ["redis", "valkey", "hiredis", "pymemcache"], "import dramatiq_status, dramatiq_status.backends"
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("backend", "modules", "extra"),
    [("RedisBackend", ["redis", "valkey"], "redis"), ("MemcachedBackend", ["pymemcache"], "memcached")],
)
def test_backend_without_its_driver_names_the_extra(backend: str, modules: list[str], extra: str) -> None:
    result = run_without(modules, f"from dramatiq_status.backends import {backend}")
    error = result.stderr.strip().splitlines()[-1]
    assert error.startswith(("ImportError:", "ModuleNotFoundError:"))
    assert f"dramatiq-status[{extra}]" in error


def test_wheel_has_every_module(wheel: list[str]) -> None:
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "dramatiq_status").rglob("*.py")}
    assert modules <= set(wheel)


@pytest.mark.parametrize("name", ["dramatiq_status/py.typed", "dramatiq_status/backends/redis/lua/update/main.lua"])
def test_wheel_has_its_data(wheel: list[str], name: str) -> None:
    assert name in wheel


def test_wheel_has_nothing_but_the_package(wheel: list[str]) -> None:
    assert {name.split("/")[0].split("-")[0] for name in wheel} == {"dramatiq_status"}


def test_source_distribution_is_the_repository(source: Path) -> None:
    expected = {ROOT / name for name in FILES}
    for folder in FOLDERS:
        expected |= {path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    found = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    assert {str(path.relative_to(ROOT)) for path in expected} <= found


def test_source_distribution_collects_its_own_tests(source: Path) -> None:
    """Collect the tests, which import the benchmarks and read the examples: this fails where either is missing."""
    collected = run("-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider", "--assert=plain", cwd=source)
    assert "tests/test_benchmarks.py: " in collected
    assert "tests/test_examples.py: " in collected


def test_top_level_has_what_annotations_need() -> None:
    for name in ("Batch", "BatchSnapshot", "Snapshot", "Status", "StatusBackend"):
        assert name in dramatiq_status.__all__
        assert isinstance(getattr(dramatiq_status, name), type)


def test_links_of_the_readme_work_on_any_page() -> None:
    """Check that all links are absolute: a package index shows the README without the files beside it."""
    targets = re.findall(r"`[^`]*<([^`>]+)>`_", (ROOT / "README.rst").read_text(encoding="utf-8"))
    assert targets
    assert [target for target in targets if not target.startswith("https://")] == []
