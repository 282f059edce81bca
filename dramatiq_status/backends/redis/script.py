"""The Lua scripts that the server executes."""

from __future__ import annotations

import re
from hashlib import sha1
from importlib.resources import files
from typing import Final, NamedTuple

# Patterns of the definition of a constant in a script, and of a name that may be a constant.  As local variables, the
# constants of the update script would cost each call 2 microseconds of 15: Lua links each of them to each function that
# uses it.
_CONSTANT: Final = re.compile(r"^local ([A-Z_]+) = (.+)\n", re.MULTILINE)
_NAME: Final = re.compile(r"\b[A-Z_]+\b")


class Script(NamedTuple):
    """A script that the server runs, and its name there."""

    text: str
    sha: str

    @staticmethod
    def load(*names: str) -> Script:
        """Load files of the folder ``lua``, from a zip file as well, join them, and replace their constants."""
        folder = files(__package__) / "lua"
        text = "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names)
        constants = dict(_CONSTANT.findall(text))
        return Script.of(_NAME.sub(lambda name: constants.get(name[0], name[0]), _CONSTANT.sub("", text)))

    @staticmethod
    def of(text: str) -> Script:
        return Script(text, sha1(text.encode()).hexdigest())


#: The script that applies updates: the mirror of ``update.apply``.
UPDATE: Final = Script.load(
    *(f"update/{part}.lua" for part in ("head", "index", "record", "history", "cancel", "apply", "main"))
)

#: The script that returns a page of a list, or a count.
LIST: Final = Script.load("list.lua")

#: The script that adds an entry to one key of the index.
INDEX: Final = Script.load("index.lua")
