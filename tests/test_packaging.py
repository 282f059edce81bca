"""What a user gets who installs the package: its files, its dependencies, and an import that needs no extra."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from configparser import RawConfigParser
from pathlib import Path

import pytest

import dramatiq_status

ROOT = Path(__file__).parent.parent
METADATA = RawConfigParser()
METADATA.read(ROOT / "setup.cfg", encoding="utf-8")


def run_without(modules: list[str], script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a new interpreter in which these modules cannot be imported."""
    block = f"import sys; sys.modules.update(dict.fromkeys({modules!r}))\n"
    return subprocess.run([sys.executable, "-c", block + script], cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names of the files in the wheel."""
    # Built from a copy: setuptools leaves its traces in the tree, and an old `build/` would end up in the wheel.
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "setup.py", "MANIFEST.in", "LICENSE", "README.rst", "CHANGELOG.rst"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    for package in ("dramatiq_status", "tests"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation"]
    built = subprocess.run(
        [*pip, "--use-pep517", "--wheel-dir", "dist", "."],
        cwd=source,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert built.returncode == 0, built.stdout
    (path,) = (source / "dist").glob("dramatiq_status-*.whl")
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def test_version_is_the_same_in_code_and_metadata() -> None:
    assert METADATA["metadata"]["version"] == dramatiq_status.__version__


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


@pytest.mark.parametrize("name", ["dramatiq_status/py.typed", "dramatiq_status/backends/redis.lua"])
def test_wheel_has_its_data(wheel: list[str], name: str) -> None:
    assert name in wheel


def test_wheel_has_nothing_but_the_package(wheel: list[str]) -> None:
    assert {name.split("/")[0].split("-")[0] for name in wheel} == {"dramatiq_status"}
