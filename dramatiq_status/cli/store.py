"""The store of a command: its backend, and the rule that has found it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .exits import CommandError
from .text import clean, did_you_mean

if TYPE_CHECKING:
    from types import ModuleType

    from ..backend import StatusBackend

VARIABLE: Final = "DRAMATIQ_STATUS_URL"

#: Section of ``pyproject.toml`` with the options ``url``, ``broker`` and ``namespace``.
SECTION: Final = "dramatiq-status"


class StoreRule(NamedTuple):
    """A rule by which a store may be found.

    Parameters:
      name(str): Name of the option, the variable or the file.
      kind(str): ``"url"`` or ``"broker"``.
      value(str): The URL, or the broker as ``MODULE[:ATTRIBUTE]``; empty if the rule names no store.
    """

    name: str
    kind: str
    value: str


class Store(NamedTuple):
    """The store of a command.

    Parameters:
      backend(StatusBackend)
      name(str): The store's URL with its login masked, or the repr of a broker's backend; harmless for a terminal.
      rule(str): The rule that has found it.
    """

    backend: StatusBackend
    name: str
    rule: str


def store_rules(url: str | None, broker: str | None, section: Mapping[str, str] | None = None) -> list[StoreRule]:
    """Return all rules in the order in which they are tried.

    Parameters:
      url(str): The option ``--url``.
      broker(str): The option ``--broker``.
      section(Mapping[str, str]): The section of the project's file; None to read it.
    """
    section = _section_of(Path("pyproject.toml")) if section is None else section
    return [
        StoreRule("--url", "url", url or ""),
        StoreRule("--broker", "broker", broker or ""),
        StoreRule(VARIABLE, "url", os.environ.get(VARIABLE, "")),
        StoreRule("pyproject.toml", *next(_options_in(section), ("url", ""))),
    ]


def find_store(url: str | None, broker: str | None, namespace: str | None) -> Store:
    """Make the backend of the first rule that names a store.

    Raises:
      CommandError: When no rule names a store, the store's URL or broker is wrong, ``pyproject.toml`` cannot be read,
        or a namespace is given for the store of a broker.
    """
    section = _section_of(Path("pyproject.toml"))
    found = next((rule for rule in store_rules(url, broker, section) if rule.value), None)
    if found is None:
        raise CommandError(f"no store is named. Give --url or --broker, set {VARIABLE}, or use pyproject.toml.")
    namespace = namespace or section.get("namespace")
    if found.kind == "broker":
        if namespace is not None:
            raise CommandError(f"a namespace does not go with {found.name}: the broker's backend has its own.")
        backend = _backend_of_broker(found)
        return Store(backend, clean(repr(backend)), found.name)
    from ..backends.url import backend_from_url, mask

    options: dict[str, Any] = {} if namespace is None else {"namespace": namespace}
    try:
        return Store(backend_from_url(found.value, **options), clean(mask(found.value)), found.name)
    except (ValueError, TypeError, ImportError) as e:
        raise CommandError(f"{found.name}: {e}") from e


def _backend_of_broker(rule: StoreRule) -> StatusBackend:
    """Import a broker and return the backend of its middleware."""
    module_name, _, attribute = rule.value.partition(":")
    where = f"{rule.name} {rule.value}"
    # The `dramatiq` command adds the working directory to sys.path, too.  For a script, Python adds only the script's
    # directory.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    _check_module(module_name, where)
    module = _import(module_name, where)
    from dramatiq import Broker, get_broker

    from ..lookup import find_backend

    broker: Any = get_broker() if not attribute else getattr(module, attribute, None)
    if not isinstance(broker, Broker):
        raise CommandError(f"{where}: {module_name!r} has no broker named {attribute!r}.")
    try:
        return find_backend(None, broker)
    except RuntimeError as e:
        raise CommandError(f"{where}: {e}") from e


def _check_module(name: str, where: str) -> None:
    """Import the packages of a module, and raise an error if the module or one of them does not exist.  The module is
    not imported, so its errors are raised later.
    """
    package = ""
    for part in name.split("."):
        parent, package = package, f"{package}.{part}".lstrip(".")
        if parent:
            _import(parent, where)
        try:
            if find_spec(package) is not None:
                continue
        except (ImportError, ValueError):
            pass
        from pkgutil import iter_modules

        folder = name.partition(".")[0]
        spec = find_spec(parent) if parent else None
        places = [os.getcwd()] if spec is None else list(spec.submodule_search_locations or ())
        hint = did_you_mean(package, [f"{parent}.{found.name}".lstrip(".") for found in iter_modules(places)])
        raise CommandError(f"{where}: no module {package!r} here{hint} Run the command in the directory of {folder}.")


def _import(name: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as e:
        raise CommandError(f"{where}: the import failed with {type(e).__name__}: {e}") from e


def _section_of(path: Path) -> dict[str, str]:
    """Read the section of a project's file; empty where there is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    if f"[tool.{SECTION}]" not in text:
        return {}
    try:
        # Python 3.10 has no tomllib.
        tomllib: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    except ImportError:
        raise CommandError(
            f"{path}: Python 3.10 needs tomli for [tool.{SECTION}]: pip install 'dramatiq-status[cli]', or give --url."
        ) from None
    try:
        section = tomllib.loads(text)["tool"][SECTION]
    except (ValueError, KeyError, TypeError) as e:
        raise CommandError(f"{path}: [tool.{SECTION}] cannot be read: {e}") from e
    wrong = [name for name in section if name not in ("url", "broker", "namespace")]
    if wrong:
        raise CommandError(f"{path}: [tool.{SECTION}] has no option {wrong[0]!r}, only url, broker and namespace.")
    return {name: str(value) for name, value in section.items()}


def _options_in(section: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for kind in ("url", "broker"):
        if section.get(kind):
            yield kind, section[kind]
