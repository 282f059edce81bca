"""Tests that the modules keep to the table of rooms in ``docs/how-it-works.rst``."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import dramatiq_status

PACKAGE = Path(dramatiq_status.__file__).parent
TABLE = Path(__file__).parent.parent / "docs" / "how-it-works.rst"

#: Maximum number of lines of a file.
MAX_LINES = 450

#: Longer files, each with the reason.
LONGER: dict[str, str] = {
    "writer.py": "about to become a package",
    "backends/redis/backend.py": "shrinks with the one seam for Redis",
    "backends/redis/cluster.py": "shrinks with the one seam for Redis",
    "backends/redis/connection.py": "shrinks with the one seam for Redis",
}

#: Imports against the table, as "importer -> imported", each with the reason.
AGAINST_THE_TABLE: dict[str, str] = {
    "record -> update": "`dramatiq_status.record.apply` is a public path; imported for type checkers and on access",
}

#: Imports that close a circle, as above, each with the reason.
IN_A_CIRCLE: dict[str, str] = {
    "backends.redis.backend -> backends.redis.shards": "goes with the one seam for Redis",
    "aio.backend -> aio._redis": "goes with the one seam for Redis",
}

#: Private names that are used outside of their room, as "module: name", each with the reason.
PRIVATE_ELSEWHERE: dict[str, str] = {
    "aio._connect: _shards": "goes with the one seam for Redis",
    "aio._connect: _class": "goes with the one seam for Redis",
    "aio._connect: _first": "goes with the one seam for Redis",
    "aio._redis: _shards": "goes with the one seam for Redis",
}


class Import(NamedTuple):
    """An import of a module of the package.

    Parameters:
      importer(str)
      imported(str)
      names(tuple[str, ...]): Names that the importer takes from the module.
    """

    importer: str
    imported: str
    names: tuple[str, ...]


def module_of(path: Path) -> str:
    """The dotted name of a file's module in the package; empty for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def trees() -> dict[str, ast.Module]:
    return {module_of(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def packages() -> frozenset[str]:
    return frozenset(module_of(path) for path in PACKAGE.rglob("__init__.py"))


@cache
def imports() -> tuple[Import, ...]:
    """All imports between modules of the package, also those in functions and those for type checkers alone."""
    return tuple(found for module, tree in trees().items() for found in _imports_of(module, tree))


def _imports_of(module: str, tree: ast.Module) -> Iterator[Import]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        parts = module.split(".") if module else []
        base = parts[: len(parts) - node.level + (module in packages())]
        source = ".".join([*base, *(node.module.split(".") if node.module else [])])
        taken = []
        for alias in node.names:
            name = f"{source}.{alias.name}".lstrip(".")
            if name in trees():
                yield Import(module, name, ())
            else:
                taken.append(alias.name)
        if taken:
            yield Import(module, source, tuple(taken))


@cache
def rows() -> dict[str, int]:
    """The number of the row of each entry in the table of modules.  A package's entry is its name with a dot."""
    text = TABLE.read_text()
    table = re.split(r"^=+  =+$", text[text.index("\nModules\n") :], maxsplit=3, flags=re.MULTILINE)[2]
    found: dict[str, int] = {}
    for number, line in enumerate(table.strip().splitlines()):
        for name in re.findall(r"``([\w/]+)``", re.split(r"\s{2,}", line)[0]):
            found[name.replace("/", ".")] = number
    return found


def room_of(module: str) -> int | None:
    """The number of the row that has a module: of its own entry, or of that of the innermost package with an entry."""
    if module in rows():
        return rows()[module]
    parts = module.split(".")
    for size in range(len(parts), 0, -1):
        package = ".".join(parts[:size]) + "."
        if package in rows():
            return rows()[package]
    return None


def test_every_module_is_in_the_table() -> None:
    assert [module for module in trees() if module and room_of(module) is None] == []


def test_every_entry_of_the_table_is_a_module() -> None:
    assert [entry for entry in rows() if entry.rstrip(".") not in trees()] == []


def test_imports_point_to_the_top_of_the_table() -> None:
    # When all imports are compared with the table
    against = set()
    for importer, imported, _ in imports():
        if imported and importer and (room_of(imported) or 0) > (room_of(importer) or 0):
            against.add(f"{importer} -> {imported}")
    # Then only those with a reason point to its bottom
    assert against == set(AGAINST_THE_TABLE)


def test_no_imports_form_a_circle() -> None:
    # Given the imports between modules; a package's own file only exports what its modules have
    arrows: dict[str, set[str]] = {module: set() for module in trees()}
    for importer, imported, _ in imports():
        if importer not in packages() and f"{importer} -> {imported}" not in {*AGAINST_THE_TABLE, *IN_A_CIRCLE}:
            arrows[importer].add(imported)
    # When modules that import none, or that none imports, are removed until there are no more of these
    ends = {""}
    while ends:
        imported = set().union(*arrows.values())
        ends = {module for module, found in arrows.items() if not found or module not in imported}
        arrows = {module: found - ends for module, found in arrows.items() if module not in ends}
    # Then no module remains
    assert arrows == {}


def test_private_modules_are_imported_in_their_package_only() -> None:
    for importer, imported, _ in imports():
        parts = imported.split(".")
        for size, part in enumerate(parts):
            if part.startswith("_"):
                package = ".".join(parts[:size])
                assert not package or importer == package or importer.startswith(package + "."), (importer, imported)


def test_private_names_are_used_in_their_room_only() -> None:
    # When all private names that a module uses are looked up in its own room
    defined: dict[int | None, set[str]] = {}
    for module, tree in trees().items():
        defined.setdefault(room_of(module), set()).update(_names_defined_in(tree))
    found = set()
    for module, tree in trees().items():
        elsewhere = set().union(*defined.values()) - defined[room_of(module)]
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and _is_private(node.attr) and node.attr in elsewhere:
                found.add(f"{module}: {node.attr}")
    for importer, imported, names in imports():
        if room_of(importer) != room_of(imported):
            found.update(f"{importer}: {name}" for name in names if _is_private(name))
    # Then only those with a reason are of another room
    assert found == set(PRIVATE_ELSEWHERE)


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name != "_"


def _names_defined_in(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # The names in __slots__.
            yield node.value


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_file_is_too_long(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    name = path.relative_to(PACKAGE).as_posix()
    assert (lines > MAX_LINES) == (name in LONGER), f"{name} has {lines} lines"
