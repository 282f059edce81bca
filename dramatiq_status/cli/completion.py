"""Scripts with which shells complete commands, options and their values.  They run no Python when TAB is pressed."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from .arguments import make_parser

_PROGRAM: Final = "dramatiq-status"

_BASH: Final = """\
_dramatiq_status() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} command= word words=
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case $word in {names}) command=$word; break ;; esac
    done
    case $command:$before in
{values}    esac
    case $command in
        '') words='{commands} --help --version' ;;
{options}    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -F _dramatiq_status dramatiq-status
"""

_ZSH: Final = """\
#compdef dramatiq-status
_dramatiq_status() {{
    if (( CURRENT == 2 )); then
        local -a commands=(
{commands}        )
        _describe command commands
        _arguments '--help[print help]' '--version[print the version]'
        return
    fi
    local command=$words[2]
    shift words
    (( CURRENT-- ))
    case $command in
{options}    esac
}}
compdef _dramatiq_status dramatiq-status
"""


class _Option(NamedTuple):
    """An option of a command, or its positional argument, whose name is empty.

    Parameters:
      name(str): With its dashes.
      takes_value(bool)
      values(tuple[str, ...]): All values; empty if any value is possible.
      text(str)
    """

    name: str
    takes_value: bool
    values: tuple[str, ...]
    text: str


def script_for(shell: str) -> str:
    """Return the script for a shell.

    Parameters:
      shell(str): One of :data:`.arguments.SHELLS`.
    """
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](dict(_commands()))


_Commands = dict[str, tuple[str, list[_Option]]]


def _commands() -> Iterator[tuple[str, tuple[str, list[_Option]]]]:
    """Find the commands in the parser, each with its description and its options."""
    (choices,) = (action for action in make_parser()._actions if isinstance(action.choices, dict))
    parsers: Any = choices.choices
    for name, parser in parsers.items():
        yield name, (parser.description.rstrip("."), [_option_of(action) for action in parser._actions])


def _option_of(action: argparse.Action) -> _Option:
    name = action.option_strings[-1] if action.option_strings else ""
    return _Option(name, action.nargs != 0, tuple(action.choices or ()), action.help or "")


def _bash(commands: _Commands) -> str:
    values, options = "", ""
    for command, (_, found) in commands.items():
        words = " ".join(option.name or " ".join(option.values) for option in found if option.name or option.values)
        options += f"        {command}) words='{words}' ;;\n"
        for option in found:
            if option.name and option.takes_value:
                reply = (
                    f"COMPREPLY=($(compgen -W '{' '.join(option.values)}' -- \"$current\")); " if option.values else ""
                )
                values += f"        {command}:{option.name}) {reply}return ;;\n"
    return _BASH.format(names="|".join(commands), commands=" ".join(commands), values=values, options=options)


def _zsh(commands: _Commands) -> str:
    def quoted(text: str) -> str:
        for character in "\\:[]":
            text = text.replace(character, "\\" + character)
        return text.replace("'", "'\\''")

    lines, options = "", ""
    for command, (text, found) in commands.items():
        lines += f"            '{command}:{quoted(text)}'\n"
        words = []
        for option in found:
            choices = (
                f":value:({' '.join(option.values)})" if option.values else ":value:" if option.takes_value else ""
            )
            if option.name:
                words.append(f"'{option.name}[{quoted(option.text)}]{choices}'")
            elif option.values:
                words.append(f"'1{choices}'")
        options += f"        {command}) _arguments {' '.join(words)} ;;\n"
    return _ZSH.format(commands=lines, options=options)


def _fish(commands: _Commands) -> str:
    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    lines = [f"complete -c {_PROGRAM} -f"]
    for command, (text, found) in commands.items():
        lines.append(f"complete -c {_PROGRAM} -n __fish_use_subcommand -a {command} -d {quoted(text)}")
        start = f"complete -c {_PROGRAM} -n '__fish_seen_subcommand_from {command}'"
        for option in found:
            values = (
                f" -x -a {quoted(' '.join(option.values))}" if option.values else " -x" if option.takes_value else ""
            )
            if option.name:
                lines.append(f"{start} -l {option.name[2:]}{values} -d {quoted(option.text)}")
            elif option.values:
                lines.append(f"{start} -a {quoted(' '.join(option.values))}")
    return "\n".join(lines) + "\n"
