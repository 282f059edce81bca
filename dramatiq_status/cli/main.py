"""The entry point: it parses the arguments, runs the command, and turns errors into lines and exit statuses."""

from __future__ import annotations

import gc
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence

from .arguments import command_in, make_parser, unknown_command
from .exits import INTERRUPTED, USAGE, CommandError
from .text import clean


def _function_of(command: str) -> Callable[[Namespace], int]:
    """Import the module of a command, and return the command's function."""
    if command == "demo":
        from .demo import demo

        return demo
    if command == "watch":
        from .watch import watch

        return watch
    if command == "list --watch":
        from .watch import watch_list

        return watch_list
    if command == "cancel":
        from .cancel import cancel

        return cancel
    from .commands import COMMANDS

    return COMMANDS[command]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit status.

    Parameters:
      arguments(Sequence[str]): By default the arguments of the process.

    Raises:
      SystemExit: When an argument is wrong, or after ``--help``.
    """
    if arguments is None:
        arguments = sys.argv[1:]
        gc.disable()
    mistake = unknown_command(arguments)
    if mistake is not None:
        print(f"dramatiq-status: {clean(mistake)}", file=sys.stderr)
        return USAGE
    parser = make_parser(command_in(arguments))
    parsed = parser.parse_args(arguments)
    if parsed.version:
        from .. import __version__

        print(f"dramatiq-status {__version__}")
        return 0
    if parsed.command is None:
        parser.print_help(sys.stderr)
        return USAGE
    if parsed.command == "completion":
        from .completion import script_for

        print(script_for(parsed.shell), end="")
        return 0
    try:
        # _function_of() imports Dramatiq.  The import takes longer than all else, so Ctrl-C may come during it.
        command = "list --watch" if parsed.command == "list" and parsed.watch else parsed.command
        function = _function_of(command)
        if not gc.isenabled():
            # The modules' objects are no garbage.  If the collector does not search them, `get` takes 6 % less time.
            gc.freeze()
            gc.enable()
        status = function(parsed)
        sys.stdout.flush()
        return status
    except CommandError as e:
        print(f"dramatiq-status: {clean(str(e))}", file=sys.stderr, flush=True)
        return e.status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The process that reads the output has ended.  Without this, Python would report the error again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
