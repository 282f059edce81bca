"""The files that a browser loads."""

from __future__ import annotations

from hashlib import sha1
from importlib.resources import files
from typing import Final, NamedTuple

#: Folder of the files.  The package may be in a zip file.
STATIC: Final = files(__package__) / "static"

#: Media types of the files by their names, which are also their URLs.
FILES: Final = {
    "dramatiq-status.js": "text/javascript",
    "dramatiq-status.d.ts": "text/plain",
    "pages.js": "text/javascript",
    "pages.css": "text/css",
    "tokens.css": "text/css",
}


class StaticFile(NamedTuple):
    """A file in memory.  Starlette's ``StaticFiles`` needs a folder, and a zip file has none.

    Parameters:
      content(bytes)
      tag(str): Changes with the content.
    """

    content: bytes
    tag: str

    @staticmethod
    def load(name: str) -> StaticFile:
        """Read a file of the folder."""
        content = (STATIC / name).read_bytes()
        return StaticFile(content, sha1(content).hexdigest())
