"""The arguments of all commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Final

from .exits import EXPLANATION, EXPLANATIONS
from .text import columns_of, did_you_mean

#: States by which jobs are filtered.  Stores index the first four.
STATES: Final = (
    *("queued", "working", "completed", "failed"),
    *("cancelled", "stalled", "retrying", "scheduled"),
)

_DEMO: Final = "Shows five jobs that run on a worker in this process.\nTheir statuses are in a temporary file."

SHELLS: Final = ("bash", "zsh", "fish")

#: Values of ``--progress``.
PROGRESS_OUTPUTS: Final = ("auto", "live", "plain", "json", "quiet")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Formatter of help for the width of the terminal.  argparse would find the width with shutil, which imports
    the modules of all archive formats.
    """

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=columns_of(sys.stdout) - 2)


def command_in(arguments: Sequence[str]) -> str | None:
    """Return the first argument if it is a command, or else None."""
    return arguments[0] if arguments and arguments[0] in _COMMANDS else None


def unknown_command(arguments: Sequence[str]) -> str | None:
    """Return the error text for a first word that is no command, with a similar command.  The first word is the first
    argument that is no option.  Return None if it is a command, or if there is none.
    """
    first = next((argument for argument in arguments if not argument.startswith("-")), None)
    if first is None or first in _COMMANDS:
        return None
    return f"{first} is no command{did_you_mean(first, _COMMANDS)} See: dramatiq-status --help"


def make_parser(only: str | None = None) -> argparse.ArgumentParser:
    """Make the parser of the command line.  The attribute ``command`` of a parsed namespace is the command's name.

    Parameters:
      only(str): The one command to add; None to add all.  It takes 0.7 ms to add one command, and 2.5 ms to add all.
    """
    parser = argparse.ArgumentParser(
        prog="dramatiq-status",
        description="Shows what Dramatiq's jobs are doing, and waits for them.",
        epilog=EXPLANATION,
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and end")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (text, description, add_arguments) in _COMMANDS.items():
        if only in (None, name):
            command = commands.add_parser(
                name,
                help=text,
                description=description or text[0].upper() + text[1:] + ".",
                epilog=EXPLANATIONS.get(name),
                formatter_class=_Formatter,
            )
            add_arguments(command)
    return parser


def _add_store(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("store: the first one given, else DRAMATIQ_STATUS_URL, else pyproject.toml")
    group.add_argument("--url", help="URL of the store, for example redis://127.0.0.1:6379/1 or sqlite:///status.db")
    group.add_argument("--broker", metavar="MODULE[:ATTRIBUTE]", help="a broker with the StatusMiddleware")
    group.add_argument("--namespace", help="namespace of the statuses in the store")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, one object a line")


def _add_where(parser: argparse.ArgumentParser) -> None:
    _add_json(parser)
    _add_store(parser)


def _add_get(parser: argparse.ArgumentParser) -> None:
    _add_where(parser)
    _add_ids(parser)


def _add_wait(parser: argparse.ArgumentParser) -> None:
    _add_get(parser)
    _add_timeout(parser)
    parser.add_argument("--any", action="store_true", help="wait for the first job that ends, not for all")


def _add_watch(parser: argparse.ArgumentParser) -> None:
    _add_get(parser)
    _add_timeout(parser)
    parser.add_argument("--batch", action="store_true", help="show a bar of the total, for jobs that belong together")
    _add_progress(parser)


def _add_count(parser: argparse.ArgumentParser) -> None:
    _add_where(parser)
    text = "queued, working, completed, failed, cancelled, stalled, retrying or scheduled"
    parser.add_argument("--state", choices=STATES, metavar="STATE", help=text)
    parser.add_argument("--actor", metavar="NAME")
    parser.add_argument("--queue", metavar="NAME")


def _add_list(parser: argparse.ArgumentParser) -> None:
    _add_count(parser)
    parser.add_argument("--limit", type=limit, default=50, help="number of jobs, from 1 to 1,000; by default 50")
    parser.add_argument("--after", metavar="CURSOR", help="begin behind this cursor, the end of the previous page")
    parser.add_argument(
        "--watch",
        action="store_true",
        help="show changes in place until Ctrl-C; the key n shows new jobs",
    )
    parser.set_defaults(progress="auto")


def _add_cancel(parser: argparse.ArgumentParser) -> None:
    _add_get(parser)
    parser.add_argument("--reason", metavar="TEXT", help="text that the status shows; at most 1,024 bytes")
    parser.add_argument("--wait", action="store_true", help="wait until the jobs that run have ended")


def _add_delete(parser: argparse.ArgumentParser) -> None:
    _add_store(parser)
    _add_ids(parser)
    parser.add_argument("--yes", action="store_true", help="delete without a question")


def _add_serve(parser: argparse.ArgumentParser) -> None:
    _add_store(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address of the server; by default 127.0.0.1")
    parser.add_argument("--port", type=port, default=8000, help="port; by default 8000, 0 for any free one")
    parser.add_argument(
        "--allow-all", action="store_true", help="allow a --host that other machines reach; their visitors see all jobs"
    )
    parser.add_argument("--write", action="store_true", help="let visitors cancel jobs and delete statuses")


def _add_demo(parser: argparse.ArgumentParser) -> None:
    _add_json(parser)
    _add_progress(parser)
    parser.add_argument("--keep", action="store_true", help="keep the file with the statuses")
    parser.add_argument("--web", action="store_true", help="show the jobs on a web page as well")


def _add_completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS)


def _add_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--timeout", type=seconds, metavar="SECONDS", help="end after this time; by default never")


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


#: By command: its line in the list of commands, its description if that is another text, and the function that adds its
#: arguments to a parser.
_COMMANDS: Final[dict[str, tuple[str, str, Callable[[argparse.ArgumentParser], None]]]] = {
    "get": ("show jobs: state, fields, times, runs, exception", "", _add_get),
    "wait": ("wait until jobs are completed or failed", "", _add_wait),
    "watch": ("watch jobs until they are completed or failed", "", _add_watch),
    "list": ("list jobs; the one whose state changed last comes first", "", _add_list),
    "count": ("count jobs", "", _add_count),
    "cancel": ("cancel jobs: those that wait end at once, those that run are asked to stop", "", _add_cancel),
    "delete": ("delete the statuses of jobs; the jobs themselves stay in their queues", "", _add_delete),
    "where": ("show which store was found, by which rule, and what it can do", "", _add_where),
    "serve": ("serve the dashboard for this machine's browsers", "", _add_serve),
    "demo": ("show five jobs that run here; no server is needed", _DEMO, _add_demo),
    "completion": (
        "print a script with which a shell completes commands",
        "Prints a script with which a shell completes commands, options and their values.",
        _add_completion,
    ),
}
