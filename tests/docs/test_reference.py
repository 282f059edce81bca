"""The reference has each public name once, each field, each option and each part of the element."""

from __future__ import annotations

import re
from importlib import import_module
from inspect import isfunction, signature

import pytest

from dramatiq_status import StatusError, StatusMiddleware
from dramatiq_status.cli.arguments import make_parser
from dramatiq_status.cli.exits import EXPLANATION
from dramatiq_status.names import DERIVED, NAMES
from dramatiq_status.options import MESSAGE_OPTIONS
from dramatiq_status.web.django.views import _NAMES as DJANGO_SETTINGS
from dramatiq_status.web.files import STATIC

from .pages import ROOT, blocks_of

REFERENCE = ROOT / "docs" / "reference"

#: Modules with public names.
MODULES = [
    f"dramatiq_status{name}"
    for name in (
        *("", ".backend", ".backends", ".aio", ".errors", ".update", ".web", ".web.wsgi", ".web.django"),
        *(".testing", ".testing.conformance"),
    )
]

#: Public names of modules whose other names are not public.
OTHERS = (
    "dramatiq_status.circuit_breaker.Health",
    "dramatiq_status.cursor.Cursor",
    "dramatiq_status.record.from_document",
    "dramatiq_status.record.to_document",
)


def page(name: str) -> str:
    return (REFERENCE / f"{name}.rst").read_text(encoding="utf-8")


def found(name: str) -> object:
    module, _, last = name.rpartition(".")
    return getattr(import_module(module), last)


def test_the_reference_has_each_public_name_once_with_an_example() -> None:
    # Given the public names; a name that two modules have counts once
    names = [f"{module}.{name}" for module in MODULES for name in import_module(module).__all__]
    public = {found(name) for name in [*names, *OTHERS]}
    # When the names on the pages are compared with them
    documented, without_example = [], []
    for path in REFERENCE.glob("*.rst"):
        blocks = list(blocks_of(path.read_text(encoding="utf-8")))
        code = "\n".join(block.text for block in blocks if block.argument == "python")
        for block in blocks:
            if block.kind.startswith("auto"):
                name = block.argument.removesuffix("()")
                documented.append(found(name))
                used = re.search(rf"\b{name.rpartition('.')[2]}\b", code)
                if not used and ">>>" not in (found(name).__doc__ or ""):
                    without_example.append(name)
    # Then the pages have all of them once, and no others, and each has an example on its page
    assert len(documented) == len(set(documented))
    assert set(documented) == public
    assert without_example == []


@pytest.mark.parametrize("name", ["actor", "aio"])
def test_the_reference_has_all_methods_of_the_handle_of_a_status(name: str) -> None:
    # Its attributes are those of a snapshot, so the page lists its methods by their names.
    (block,) = [one for one in blocks_of(page(name)) if one.argument.endswith(".Status()")]
    handle = found(block.argument.removesuffix("()"))
    methods = {key for key, value in vars(handle).items() if isfunction(value) and not key.startswith("_")}
    assert set(re.findall(r"\w+", block.options["members"])) == {"message_id", *methods}


def test_the_reference_has_all_fields() -> None:
    text = page("fields")
    tables = dict(re.findall(r":name: (\w+)-fields\n\n((?:   .*\n|\n)+)", text))
    rows = {
        name: set(re.findall(r"``(\w+)``", " ".join(re.findall(r"\* - (``.*)", table))))
        for name, table in tables.items()
    }
    assert rows["stored"] == {"message_id", *NAMES.values()}
    assert rows["derived"] == set(DERIVED)


def test_the_reference_has_all_options() -> None:
    text = page("middleware")
    assert set(re.findall(r"^``(\w+)`` +(?:actor|message)", text, flags=re.MULTILINE)) == MESSAGE_OPTIONS
    docstring = StatusMiddleware.__doc__ or ""
    assert set(signature(StatusMiddleware).parameters) == set(
        re.findall(r"^      (\w+)\(", docstring, flags=re.MULTILINE)
    )


def test_the_reference_has_all_commands_and_exit_statuses() -> None:
    text = page("command-line")
    (commands,) = [action.choices for action in make_parser()._actions if isinstance(action.choices, dict)]
    assert set(re.findall(r"^(\w+)\n~+$", text, flags=re.MULTILINE)) == set(commands)
    statuses = set(re.findall(r"^  (\d+)  ", EXPLANATION, flags=re.MULTILINE))
    assert statuses == {*re.findall(r"^(\d+) {3,}\w", text, flags=re.MULTILINE), "2", "130"}


def test_the_reference_has_all_routes() -> None:
    source = (ROOT / "dramatiq_status" / "web" / "app.py").read_text(encoding="utf-8")
    routes = {path.replace("{message_id}", "ID") for path in re.findall(r'Route\("([^"]+)"', source)}
    shown = {path.partition("?")[0] for path in re.findall(r"^``(?:GET|POST) (\S+)``", page("web"), flags=re.MULTILINE)}
    assert shown == {*routes, "/dramatiq-status.js"}
    assert set(re.findall(r"^``([A-Z_]+)``  ", page("web"), flags=re.MULTILINE)) == set(DJANGO_SETTINGS)


def test_the_reference_has_the_cause_and_the_cure_of_all_errors() -> None:
    # Given the rows of the table: an error, its cause, its cure
    rows = re.findall(r"^   \* - :class:`~([\w.]+)`\n     - \S.*\n     - \S.*$", page("errors"), flags=re.MULTILINE)
    # Then each error of the package has one row, except the base of all errors
    errors = {one for one in vars(import_module("dramatiq_status.errors")).values() if isinstance(one, type)}
    assert len(rows) == len(set(rows))
    assert {found(name) for name in rows} == {one for one in errors if issubclass(one, StatusError)} - {StatusError}


@pytest.mark.parametrize("title", ["Attributes", "Events", "Properties"])
def test_the_reference_has_all_of_the_element(title: str) -> None:
    script = (STATIC / "dramatiq-status.js").read_text(encoding="utf-8")
    types = (STATIC / "dramatiq-status.d.ts").read_text(encoding="utf-8")
    wanted = {
        "Attributes": re.findall(r'"([\w-]+)"', re.findall(r"observedAttributes = \[(.*)\]", script)[0]),
        "Events": re.findall(r"(\w+): CustomEvent", types),
        "Properties": re.findall(r"^  (?:readonly )?(\w+): ", types.partition("interface")[0], flags=re.MULTILINE),
    }
    section = re.split(r"^-+$", page("element").partition(f"\n{title}\n")[2], flags=re.MULTILINE)[1]
    assert set(re.findall(r"^``([\w-]+)``", section, flags=re.MULTILINE)) == set(wanted[title])


def test_the_reference_has_all_parts_and_states_of_the_element() -> None:
    script = (STATIC / "dramatiq-status.js").read_text(encoding="utf-8")
    types = (STATIC / "dramatiq-status.d.ts").read_text(encoding="utf-8")
    text = page("element")
    parts = set(re.findall(r'\bpart\("(\w+)"', script))
    states = set(re.findall(r'"(\w+)"', types.partition("export type State =")[2].partition(";")[0]))
    assert set(re.findall(r"``(\w+)``", text.partition("The parts are")[2].partition(".")[0])) == parts
    assert set(re.findall(r"``(\w+)``", text.partition("The states are")[2].partition(".")[0])) == states
