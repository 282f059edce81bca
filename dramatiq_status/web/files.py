"""The files that a browser loads."""

from __future__ import annotations

from pathlib import Path
from typing import Final

#: Their folder.
STATIC: Final = Path(__file__).with_name("static")

#: Their names, which are also their URLs, and their types.
FILES: Final = {
    "dramatiq-status.js": "text/javascript",
    "dramatiq-status.d.ts": "text/plain",
    "pages.js": "text/javascript",
    "pages.css": "text/css",
    "tokens.css": "text/css",
}
