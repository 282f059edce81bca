"""Tests that the modules keep to the tables of modules in ``docs/how-it-works.rst``."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import dramatiq_status

PACKAGE = Path(dramatiq_status.__file__).parent
DOCS = Path(__file__).parent.parent / "docs"
TABLE = DOCS / "how-it-works.rst"

#: Maximum number of lines of a file.
MAX_LINES = 450

#: Imports against the tables, as "importer -> imported", each with the reason.
AGAINST_THE_TABLES: dict[str, str] = {
    "record -> update": "`dramatiq_status.record.apply` is a public path; imported for type checkers and on access",
}

#: Private names that are used outside of their module, as "module: name", each with the reason.
PRIVATE_ELSEWHERE: dict[str, str] = {
    "backends.memcached.stream: _connect": "pymemcache has no public way to connect",
}

#: Attributes that tests set and only other packages read: uvicorn, Dramatiq and dramatiq-abort.
READ_BY_OTHERS = {"fail_fast_default", "force_exit", "interval", "should_exit", "wait_timeout"}


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
    """Return the dotted name of a file's module in the package; empty for the package itself."""
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
    """Return all imports between modules of the package, also those in functions and those for type checkers alone."""
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


class Modules(NamedTuple):
    """A table of modules.

    Parameters:
      package(str): Name of the table's package, with a dot behind it; empty for the table of the whole package.
      rows(dict[str, int]): The number of the row of each entry.  An entry that is a package ends with a dot.
    """

    package: str
    rows: dict[str, int]

    def row_of(self, module: str) -> int | None:
        """Return the number of a module's row: of its own entry, or of the innermost package with an entry."""
        if not module.startswith(self.package):
            return None
        if module in self.rows:
            return self.rows[module]
        entries = [entry for entry in self.rows if entry.endswith(".") and f"{module}.".startswith(entry)]
        return self.rows[max(entries, key=len)] if entries else None


@cache
def tables() -> tuple[Modules, ...]:
    """Return the table of the whole package, and those of packages within it."""
    text = TABLE.read_text()
    section = text[text.index("\nModules\n") : text.index("\n``update.apply`` is")]
    # A table has three rules: its rows are between the second and the third, and its title is above the first.
    pieces = re.split(r"^=+  =+$", section, flags=re.MULTILINE)
    found = []
    for above, rows in zip(pieces[0::3], pieces[2::3]):
        title = re.search(r"^Within ``([\w/]+)``", above, flags=re.MULTILINE)
        package = title[1].replace("/", ".") if title else ""
        found.append(Modules(package, dict(_entries_of(package, rows))))
    return tuple(found)


def _entries_of(package: str, rows: str) -> Iterator[tuple[str, int]]:
    for number, line in enumerate(rows.strip().splitlines()):
        for name in re.findall(r"``([\w/]+)``", re.split(r"\s{2,}", line)[0]):
            yield package + name.replace("/", "."), number


def test_every_module_is_in_the_tables() -> None:
    for table in tables():
        modules = [module for module in trees() if module and module.startswith(table.package)]
        assert [module for module in modules if table.row_of(module) is None] == [], table.package


def test_every_package_of_several_modules_has_a_table() -> None:
    inside = {package: [module for module in trees() if module.rpartition(".")[0] == package] for package in packages()}
    several = {f"{package}." for package, modules in inside.items() if len(modules) > 1 and package}
    assert several <= {table.package for table in tables()}


def test_every_entry_of_the_tables_is_a_module() -> None:
    assert [entry for table in tables() for entry in table.rows if entry.rstrip(".") not in trees()] == []


def test_imports_point_to_the_top_of_the_tables() -> None:
    # When all imports are compared with the tables
    against = set()
    for importer, imported, _ in imports():
        for table in tables():
            above, below = table.row_of(imported), table.row_of(importer)
            if above is not None and below is not None and above > below:
                against.add(f"{importer} -> {imported}")
    # Then only those with a reason point to the bottom
    assert against == set(AGAINST_THE_TABLES)


def test_no_imports_form_a_circle() -> None:
    # Given the imports between modules; a package's own file only exports what its modules have
    arrows: dict[str, set[str]] = {module: set() for module in trees()}
    for importer, imported, _ in imports():
        if importer not in packages() and f"{importer} -> {imported}" not in AGAINST_THE_TABLES:
            arrows[importer].add(imported)
    # When modules that import none, or that none imports, are removed until there are no more of these
    ends = {""}
    while ends:
        imports_of_any = set().union(*arrows.values())
        ends = {module for module, found in arrows.items() if not found or module not in imports_of_any}
        arrows = {module: found - ends for module, found in arrows.items() if module not in ends}
    # Then no module remains
    assert arrows == {}


def test_imports_within_the_package_are_relative() -> None:
    # The other tests find only these.
    for module, tree in trees().items():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            assert not any(name.split(".")[0] == PACKAGE.name for name in names), module


def test_private_modules_are_imported_in_their_package_only() -> None:
    for importer, imported, _ in imports():
        parts = imported.split(".")
        for size, part in enumerate(parts):
            if part.startswith("_"):
                package = ".".join(parts[:size])
                assert not package or importer == package or importer.startswith(package + "."), (importer, imported)


def test_private_names_are_used_in_their_module_only() -> None:
    # Given the private names of each module
    private = {
        module: {name for name in _names_defined_in(tree) if _is_private(name)} for module, tree in trees().items()
    }
    # When all uses are looked up; a class may use those of its bases by `self`
    found = set()
    for module, tree in trees().items():
        elsewhere = set().union(*private.values()) - private[module]
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in elsewhere and ast.unparse(node.value) != "self":
                found.add(f"{module}: {node.attr}")
    for importer, _, names in imports():
        found.update(f"{importer}: {name}" for name in names if _is_private(name))
    # Then only those with a reason are of another module
    assert found == set(PRIVATE_ELSEWHERE)


def _is_private(name: str) -> bool:
    # Named tuples have public names that begin with an underscore.
    return name.startswith("_") and not name.endswith("__") and name != "_" and not hasattr(Import, name)


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


def test_no_file_is_too_long() -> None:
    lines = {path.relative_to(PACKAGE).as_posix(): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}


def test_attributes_that_tests_set_are_read() -> None:
    # Given all attributes in the package and in the tests
    of_tests = [ast.parse(path.read_text()) for path in sorted(Path(__file__).parent.rglob("*.py"))]
    nodes = [node for tree in (*trees().values(), *of_tests) for node in ast.walk(tree)]
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Store)}
    # When a test sets one on an object of another module
    found = {
        node.attr
        for tree in of_tests
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if not (isinstance(node.value, ast.Name) and node.value.id == "self")
    }
    # Then some code reads it: without that, the attribute has another name now, and the test has no effect
    assert found - read == READ_BY_OTHERS


def test_all_words_of_the_glossary_are_used() -> None:
    # Given the entries of the glossary, each with one word or more, and the words of the package, also those in names
    entries = re.findall(r"^(\S.*)\n   \S", (DOCS / "glossary.rst").read_text(), flags=re.MULTILINE)
    words = [words_in(word) for entry in entries for word in entry.split(", ")]
    used = words_in(" ".join(path.read_text() for path in PACKAGE.rglob("*.py")))
    # Then the package uses each entry
    assert len(words) > 50
    assert [word for word in words if word not in used] == []


def words_in(text: str) -> str:
    """Return the words of a text in small letters; ``MessageBuffer`` and ``status_ttl`` are two words each."""
    return " ".join(re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", text).lower()))
