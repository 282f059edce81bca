"""The arguments of all commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Final

from .exits import EXPLANATION, EXPLANATIONS
from .text import columns_of, did_you_mean

STATES: Final = ("queued", "working", "completed", "failed")

_DEMO: Final = "Shows five jobs that run on a worker in this process.\nTheir statuses are in a temporary file."

SHELLS: Final = ("bash", "zsh", "fish")

#: Values of ``--progress``.
PROGRESS_OUTPUTS: Final = ("auto", "live", "plain", "json", "quiet")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Formats help for the width of the terminal.  argparse would import all formats of archives to find the width."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=columns_of(sys.stdout) - 2)


def unknown_command(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> str | None:
    """Return a complaint about the first argument, with a command that it resembles; None if it is a command."""
    first = next((argument for argument in arguments if not argument.startswith("-")), None)
    (names,) = [list(action.choices) for action in parser._actions if isinstance(action.choices, dict)]
    if first is None or first in names:
        return None
    return f"{first} is no command{did_you_mean(first, names)} See: dramatiq-status --help"


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line.  Each command's namespace has the attribute ``command``."""
    parser = argparse.ArgumentParser(
        prog="dramatiq-status",
        description="Shows what Dramatiq's jobs are doing, and waits for them.",
        epilog=EXPLANATION,
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and end")
    store = argparse.ArgumentParser(add_help=False, formatter_class=_Formatter)
    group = store.add_argument_group(
        "store: the first of these that is given, then DRAMATIQ_STATUS_URL, then pyproject.toml"
    )
    group.add_argument("--url", help="URL of the store, for example redis://127.0.0.1:6379/1 or sqlite:///status.db")
    group.add_argument("--broker", metavar="MODULE[:ATTRIBUTE]", help="a broker with the StatusMiddleware")
    group.add_argument("--namespace", help="namespace of the statuses in the store")
    output = argparse.ArgumentParser(add_help=False, formatter_class=_Formatter)
    output.add_argument("--json", action="store_true", help="print JSON, one object a line")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            parents=[*parents, store],
            epilog=EXPLANATIONS.get(name),
            formatter_class=_Formatter,
        )

    get = command("get", "show jobs: state, fields, times, runs, exception", output)
    _add_ids(get)
    wait = command("wait", "wait until jobs are completed or failed", output)
    _add_ids(wait)
    wait.add_argument("--timeout", type=seconds, metavar="SECONDS", help="end after this time; by default never")
    wait.add_argument("--any", action="store_true", help="wait for the first job that ends, not for all")
    watch = command("watch", "watch jobs until they are completed or failed", output)
    _add_ids(watch)
    watch.add_argument("--timeout", type=seconds, metavar="SECONDS", help="end after this time; by default never")
    watch.add_argument("--batch", action="store_true", help="the jobs belong together: show a bar of the total")
    _add_progress(watch)
    listing = command("list", "list jobs, most recently changed state first", output)
    _add_filters(listing)
    listing.add_argument("--limit", type=limit, default=50, help="number of jobs, from 1 to 1,000; by default 50")
    listing.add_argument("--after", metavar="CURSOR", help="begin after this job of the page before")
    listing.add_argument(
        "--watch",
        action="store_true",
        help="show changes in place, new jobs by the key n, until Ctrl-C",
    )
    listing.set_defaults(progress="auto")
    _add_filters(command("count", "count jobs", output))
    cancel = command("cancel", "cancel jobs: those that wait end at once, those that run are asked to stop", output)
    _add_ids(cancel)
    cancel.add_argument("--reason", metavar="TEXT", help="for people; at most 1,024 bytes")
    cancel.add_argument("--wait", action="store_true", help="wait until the jobs that run have ended")
    delete = command("delete", "delete the statuses of jobs; the jobs themselves stay in their queues")
    _add_ids(delete)
    delete.add_argument("--yes", action="store_true", help="delete without a question")
    command("where", "show which store was found, by which rule, and what it can do", output)
    serve = command("serve", "serve the dashboard for this machine's browsers")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at; by default 127.0.0.1")
    serve.add_argument("--port", type=port, default=8000, help="port; by default 8000, 0 for any free one")
    serve.add_argument(
        "--allow-all", action="store_true", help="allow a --host that other machines reach; their visitors see all jobs"
    )
    serve.add_argument("--write", action="store_true", help="let visitors cancel jobs and delete statuses")
    demo = commands.add_parser(
        "demo",
        help="show five jobs that run here: no server is needed",
        parents=[output],
        formatter_class=_Formatter,
        description=_DEMO,
    )
    _add_progress(demo)
    demo.add_argument("--keep", action="store_true", help="keep the file with the statuses")
    demo.add_argument("--web", action="store_true", help="show the jobs on a web page as well")
    completion = commands.add_parser(
        "completion",
        help="print a script with which a shell completes commands",
        formatter_class=_Formatter,
        description="Prints a script with which a shell completes commands, options and their values.",
    )
    completion.add_argument("shell", choices=SHELLS)
    return parser


def _add_progress(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--progress",
        choices=PROGRESS_OUTPUTS,
        default="auto",
        help="how to show jobs; auto is live on a terminal, else plain",
    )


def _add_ids(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "ids", nargs="+", metavar="ID", help="message id; its first eight characters suffice if the store can list"
    )


def _add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state", choices=STATES)
    parser.add_argument("--actor", metavar="NAME")
    parser.add_argument("--queue", metavar="NAME")


def seconds(text: str) -> float:
    """Read a number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 365 * 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0 to a year")
    return value


def limit(text: str) -> int:
    """Read the number of jobs of a page."""
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 1000")
    return int(text)


def port(text: str) -> int:
    """Read the number of a port."""
    if not text.isascii() or not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port from 0 to 65535")
    return int(text)
