"""Pages of reStructuredText whose snippets are run from the first to the last.  docs/README.rst describes the marks."""

from __future__ import annotations

import ast
import doctest
import inspect
import io
import os
import re
import sys
from asyncio import AbstractEventLoop, new_event_loop
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from textwrap import dedent, indent
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

from .sessions import ROOT, Session, background

#: The languages of blocks that are run, and of those that are shown or written to files.
RUN = ("python", "console")
SHOWN = ("sh", "text", "json", "html", "javascript", "css", "ini", "toml", "yaml", "nginx", "docker", "sql")

#: Values that differ from one run to the next.  Output is the same if it differs only in these.
VARYING = [
    (r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "ID"),
    (r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:?\d\d)?", "TIME"),
    (r"datetime\.datetime\([\d, ]+(, tzinfo=datetime\.timezone\.utc)?\)", "TIME"),
    (r"datetime\.timedelta\([^()]*\)", "DURATION"),
    (r"\b\d+(\.\d+)? (ms|s|min)\b", "DURATION"),
    (r'("duration": )\d+\.\d+', r"\1DURATION"),
    (r"(127\.0\.0\.1:)\d+", r"\1PORT"),
]

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

#: A directive for code, or a comment that is a mark for tests: what is before it, its kind, the rest of the line.
MARK = re.compile(r"^( *)\.\. (?:(code-block|auto[a-z]+)::|(test|use|background):)[ ]*(.*)$")
OPTION = re.compile(r"^ +:([\w-]+):[ ]*(.*)$")

#: A caption that is the name of a file.
FILE = re.compile(r"^([\w./-]+\.\w+|Dockerfile)$")


@dataclass
class Block:
    """A block of a page.

    Parameters:
      kind: The directive: ``code-block``, ``autoclass``; or the mark: ``test``, ``use``, ``background``.
      argument: The language, the name of what is documented, or the text behind the mark.
      line: Index of the first line of the text in the page.
      text: The text without its indentation.
      margin: The indentation.
    """

    kind: str
    argument: str
    line: int
    text: str
    margin: str
    options: dict[str, str] = field(default_factory=dict)

    @property
    def is_output(self) -> bool:
        return self.options.get("class") == "output"

    @property
    def is_code(self) -> bool:
        return self.kind == "code-block"


def blocks_of(text: str) -> Iterator[Block]:
    """Find the blocks of a page, from the first to the last."""
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        found = MARK.match(lines[at])
        at += 1
        if found is None:
            continue
        margin, code, mark, argument = found.groups()
        options = {}
        while at < len(lines) and (option := OPTION.match(lines[at])):
            options[option[1]] = option[2]
            at += 1
        while at < len(lines) and not lines[at].strip():
            at += 1
        begin = at
        while at < len(lines) and (not lines[at].strip() or lines[at].startswith(margin + " ")):
            at += 1
        end = at
        while end > begin and not lines[end - 1].strip():
            end -= 1
        body = lines[begin:end]
        depth = len(body[0]) - len(body[0].lstrip()) if body else 0
        yield Block(code or mark, argument, begin, dedent("\n".join(body) + "\n") if body else "", " " * depth, options)


def is_same(want: str, got: str) -> bool:
    """Whether output is as the page shows it, with ``...`` for any text, except for the values that vary."""
    check = doctest.OutputChecker().check_output
    return check(want, got, FLAGS) or check(canonical(want), canonical(got), FLAGS)


def canonical(text: str) -> str:
    for pattern, name in VARYING:
        text = re.sub(pattern, name, text)
    return text


class Difference(NamedTuple):
    """Output that is not as the page shows it."""

    place: str
    line: int
    want: str
    got: str
    block: Block


class Page:
    """A page, and what its snippets have left behind so far.

    Parameters:
      path: The file.
      folder: An empty directory: files of the page are written there, and its commands run there.
      use: Returns the value of a fixture by its name.
      address: Returns the address of a server of the tests by the address that the page shows.
    """

    def __init__(self, path: Path, folder: Path, use: Callable[[str], Any], address: Callable[[str], str]) -> None:
        self.path = path
        self.folder = folder
        self.text = path.read_text(encoding="utf-8")
        self.namespace: dict[str, Any] = {"__name__": "__main__"}
        self.differences: list[Difference] = []
        self._use = use
        self._address = address
        #: Addresses of servers of the tests, by the addresses that the page shows.
        self._addresses: dict[str, str] = {}
        self._printed = ""
        self._ready: str | None = None
        self._stack = ExitStack()
        self._session: Session | None = None
        self._loop: AbstractEventLoop | None = None

    def run(self) -> None:
        """Run all blocks."""
        blocks = list(blocks_of(self.text))
        with self._stack:
            for number, block in enumerate(blocks):
                self._run(block, blocks[number + 1 :])
            if self._session is not None:
                self._session.check("the end of the page")

    def _run(self, block: Block, later: list[Block]) -> None:
        if block.kind == "use":
            for name in re.split(r",\s*", block.argument):
                value = self._use(name)
                self.namespace.update(value if isinstance(value, dict) else {name: value})
        elif block.kind == "background":
            self._ready = block.argument
        elif block.kind == "test":
            self._printed = self._execute(block)
        elif block.kind.startswith("auto"):
            for docstring in docstrings_of(block):
                self._talk(docstring)
        elif block.is_output:
            self._compare(block.line, block.text, self._printed, block)
        elif name := file_of(block):
            self._write(name, block, later)
        elif block.argument == "console":
            self._converse(block)
        elif block.argument == "python":
            if ">>>" in block.text:
                self._talk(block)
            else:
                self._printed = self._execute(block)

    def _write(self, name: str, block: Block, later: list[Block]) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._local(block.text), encoding="utf-8")
        if path.suffix == ".py":
            used = any(
                re.search(rf"\b{re.escape(path.stem)}\b", one.text) for one in later if not one.is_output
            ) or path.stem in ("settings", "urls", "__init__", "conftest")
            assert used, f"{self._place(block.line)}: no later block imports or runs {name}"

    def _execute(self, block: Block) -> str:
        """Run Python, and return what it prints."""
        printed = io.StringIO()
        with redirect_stdout(printed):
            self._evaluate("\n" * block.line + self._local(block.text), "exec")
        return printed.getvalue()

    def _evaluate(self, source: str, mode: str) -> None:
        """Run Python that may use ``await`` outside of functions."""
        code = compile(source, str(self.path), mode, flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, self.namespace)
        if inspect.isawaitable(result):
            if self._loop is None:
                self._loop = self._stack.enter_context(closing(new_event_loop()))
                self._stack.callback(lambda loop: loop.run_until_complete(loop.shutdown_asyncgens()), self._loop)
            self._loop.run_until_complete(result)

    def _talk(self, block: Block) -> None:
        """Run the examples of a dialogue, and compare the answers."""
        for example in doctest.DocTestParser().get_examples(self._local(block.text)):
            line, printed, want = block.line + example.lineno, io.StringIO(), example.want
            with redirect_stdout(printed), patch("sys.displayhook", lambda value: value is None or print(repr(value))):
                try:
                    self._evaluate("\n" * line + example.source, "single")
                    got = re.sub(r"^(?=\n)", "<BLANKLINE>", printed.getvalue(), flags=re.MULTILINE)
                except Exception as e:
                    if example.exc_msg is None:
                        raise
                    got = f"Traceback (most recent call last):\n{type(e).__name__}: {e}\n"
                    # The page need not show the traceback.
                    want = f"Traceback (most recent call last):\n{example.exc_msg}"
            self._compare(line + example.source.count("\n"), want, got, block)

    def _converse(self, block: Block) -> None:
        """Run the commands of a session, and compare their output where the page shows any."""
        ready, self._ready = self._ready, None
        for line, command, want in commands_of(self._local(block.text)):
            place = self._place(block.line + line)
            if ready is not None:
                self._stack.enter_context(background(self.folder, command, ready, place))
                continue
            if self._session is None:
                self._session = self._stack.enter_context(Session(self.folder))
            got = self._session.run(command, place)
            if want:
                begin = block.line + line + command.count("\n") + 1
                self._compare(begin, want, got, block)

    def _compare(self, line: int, want: str, got: str, block: Block) -> None:
        if not is_same(want, got):
            place = f"the docstring of {block.argument}" if block.kind == "docstring" else self._place(line)
            self.differences.append(Difference(place, line, want, got, block))

    def _local(self, text: str) -> str:
        """Replace the addresses of servers by those of servers of the tests."""
        for prefix, port in re.findall(r"(\b127\.0\.0\.1:|--port )(\d+)\b", text):
            address = f"127.0.0.1:{port}"
            if address not in self._addresses:
                self._addresses[address] = self._address(address)
            text = text.replace(prefix + port, prefix + self._addresses[address].partition(":")[2])
        return text

    def _place(self, line: int) -> str:
        return f"{self.path.relative_to(ROOT)}:{line + 1}"

    def report(self) -> str:
        """Return the differences between the output and the page as a text, empty if there are none."""
        return "\n".join(
            f"{one.place} shows\n{indent(one.want, '    ')}and the output is\n{indent(one.got, '    ')}"
            for one in self.differences
        )

    def rewrite(self) -> None:
        """Write the output into the page."""
        lines = self.text.splitlines(keepends=True)
        for one in sorted(self.differences, key=lambda one: one.line, reverse=True):
            if one.block.kind != "docstring":
                got = one.got
                for shown, local in self._addresses.items():
                    got = got.replace(local, shown)
                lines[one.line : one.line + one.want.count("\n")] = indent(got, one.block.margin).splitlines(
                    keepends=True
                )
        self.path.write_text("".join(lines), encoding="utf-8")


def docstrings_of(block: Block) -> Iterator[Block]:
    """Yield the docstrings with a dialogue of a documented name and of its members."""
    module, _, name = block.argument.partition("(")[0].rpartition(".")
    documented = getattr(import_module(module), name)
    members: list[Any] = []
    if "members" in block.options:
        named = re.findall(r"\w+", block.options["members"])
        members = [vars(documented)[name] for name in named or vars(documented) if named or not name.startswith("_")]
    for one in (documented, *members):
        text = inspect.getdoc(one) or ""
        if ">>>" in text:
            yield Block("docstring", block.argument, block.line - 1, text + "\n", "", {})


def file_of(block: Block) -> str | None:
    """Return the name of the file that a block shows, by its caption or by its first line; None if it shows none."""
    first = re.match(r"(?:#|//|<!--|;) ([\w./-]+\.\w+)(?: -->)?\n", block.text)
    caption = block.options.get("caption", first[1] if first else "")
    return caption if FILE.match(caption) else None


def commands_of(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the commands of a session: index of the first line, the command, and the output that follows it."""
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        assert lines[at].startswith("$ "), f"not a command: {lines[at]}"
        begin = at
        command = [lines[at][2:]]
        while command[-1].endswith("\\"):
            at += 1
            command.append(lines[at])
        at += 1
        output = []
        while at < len(lines) and not lines[at].startswith("$ "):
            output.append(lines[at] + "\n")
            at += 1
        yield begin, "\n".join(command), "".join(output)


def snippet(page: str, name: str) -> str:
    """Return the code of a block by its name, for a test that runs it in another way as well."""
    blocks = blocks_of((ROOT / page).read_text(encoding="utf-8"))
    (found,) = [block for block in blocks if block.options.get("name") == name]
    return found.text


def pages() -> list[Path]:
    """Return the pages that have something to run."""
    docs = ROOT / "docs"
    found = [ROOT / "README.rst", *sorted(path for path in docs.rglob("*.rst") if path != docs / "README.rst")]
    return [path for path in found if list(blocks_of(path.read_text(encoding="utf-8")))]


def forget_modules(folder: Path) -> None:
    """Remove the modules that were imported from a directory."""
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(f"{folder}{os.sep}"):
            del sys.modules[name]


def script(name: str) -> ModuleType:
    """Import a script, whose name has no suffix."""
    loader = SourceFileLoader(name.replace("-", "_"), str(ROOT / "scripts" / name))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module
