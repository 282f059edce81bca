"""Comments and docstrings use the words of CONTRIBUTING.rst, as far as a program can check that."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator

from .docs.pages import ROOT

PACKAGE = ROOT / "dramatiq_status"

#: Subjects without a name, and words that have a plainer one.
AVOIDED = re.compile(
    r"\b(nobody|somebody|everybody|anybody|no one|someone|everyone|whoever|anew|likewise|for ever|ditto)\b"
    r"|\b(writer|worker|reader|store|client|watcher|server|broker|process)s? (says?|tells?|knows?|believes?|hears?)\b",
    re.IGNORECASE,
)


def texts_of(source: str) -> Iterator[str]:
    """Yield the comments and the docstrings of a module."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ast.get_docstring(node) or ""


def test_comments_and_docstrings_name_their_subjects() -> None:
    found = [
        (str(path.relative_to(ROOT)), match[0])
        for path in sorted([*PACKAGE.rglob("*.py"), *(ROOT / "examples").rglob("*.py")])
        # Most files have none of the words, not even in code.
        if AVOIDED.search(" ".join(path.read_text(encoding="utf-8").split()))
        for text in texts_of(path.read_text(encoding="utf-8"))
        for match in AVOIDED.finditer(" ".join(text.split()))
    ]
    assert found == []


def test_comments_of_scripts_name_their_subjects() -> None:
    found = [
        (path.name, match[0])
        for path in sorted(PACKAGE.rglob("*.lua"))
        for text in re.findall(r"--.*", path.read_text(encoding="utf-8"))
        for match in AVOIDED.finditer(text)
    ]
    assert found == []


def test_pages_name_their_subjects() -> None:
    pages = [*(ROOT / "docs").rglob("*.rst"), *ROOT.glob("*.rst"), ROOT / "benchmarks" / "README.rst"]
    # The rules themselves name what a program does not do.
    rules = re.compile(r"They do not say, know or believe\.")
    found = [
        (path.name, match[0])
        for path in pages
        for match in AVOIDED.finditer(rules.sub("", " ".join(path.read_text(encoding="utf-8").split())))
    ]
    assert found == []
