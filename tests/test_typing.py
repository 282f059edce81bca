"""What type checkers accept of users: ``tests/typing/`` has code of users, and marks each line that is an error.

A mark has the rules of mypy and of pyright: ``# error: arg-type reportArgumentType``. An error without a mark fails the
test, and so does a mark without an error.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "tests" / "typing").glob("*.py"))

#: Name of the file, line, and the checker's name of the rule.
Error = tuple[str, int, str]


def marked(checker: int) -> set[Error]:
    """Return the errors that the files mark for a checker: 0 is mypy, 1 is pyright."""
    return {
        (path.name, number, found[1].split()[checker])
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if (found := re.search(r"# error: (\S+ \S+)$", line))
    }


def check(*command: object, cwd: Path) -> str:
    """Run a checker in a directory without settings, for the oldest Python, and return what it has printed."""
    environ = {**os.environ, "MYPYPATH": str(ROOT), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command), *map(str, FILES)],
        cwd=cwd,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def test_mypy_finds_the_errors_of_users_and_no_others(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    if version("dramatiq").startswith("1."):
        pytest.skip("Dramatiq 1.x has no types for add_middleware.")
    printed = check("mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}", "--no-pretty", cwd=tmp_path)
    texts: dict[Error, str] = {
        (Path(path).name, int(line), rule): text
        for path, line, text, rule in re.findall(
            r"^(.+?):(\d+): error: (.*)  \[([\w-]+)\]$", printed, flags=re.MULTILINE
        )
    }
    compare(texts, marked(0))


def test_pyright_finds_the_errors_of_users_and_no_others(tmp_path: Path) -> None:
    pytest.importorskip("pyright")
    printed = check("pyright", "--pythonpath", sys.executable, "--outputjson", cwd=tmp_path)
    texts: dict[Error, str] = {
        (Path(one["file"]).name, one["range"]["start"]["line"] + 1, one.get("rule", "")): one["message"]
        for one in json.loads(printed)["generalDiagnostics"]
        if one["severity"] == "error"
    }
    compare(texts, marked(1))


def test_all_public_names_have_a_type(tmp_path: Path) -> None:
    pytest.importorskip("pyright")
    # Given a PATH with this interpreter's directory first: `--verifytypes` looks for packages in that of `python3`
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    # When pyright checks the package as its users see it
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--verifytypes", "dramatiq_status", "--ignoreexternal", "--outputjson"],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout)["typeCompleteness"]
    # Then each name has a type, and no checker has to infer it
    untyped = {
        symbol["name"]: [one["message"] for one in symbol["diagnostics"] if one["severity"] == "error"]
        for symbol in found["symbols"]
        if symbol["isExported"] and not symbol["isTypeKnown"]
    }
    assert untyped == {}
    assert found["completenessScore"] == 1 and len(found["symbols"]) > 2000


def compare(found: dict[Error, str], expected: set[Error]) -> None:
    assert {error: text for error, text in found.items() if error not in expected} == {}
    assert expected - found.keys() == set()
