"""Configuration of the site that ``scripts/docs`` builds. The build needs no network."""

from __future__ import annotations

import re
import sys
from configparser import RawConfigParser
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dramatiq_status

project = "dramatiq-status"
author = "dramatiq-status contributors"
copyright = "dramatiq-status contributors. MIT licence"
version = release = dramatiq_status.__version__

_metadata = RawConfigParser()
_metadata.read(Path(__file__).resolve().parent.parent / "setup.cfg", encoding="utf-8")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.intersphinx", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build", "README.rst"]
default_role = "code"
highlight_language = "python"
pygments_style = "tango"
pygments_dark_style = "github-dark"
# Convert two hyphens to a dash, and leave quotes and dots as they are.
smartquotes_action = "D"

html_theme = "furo"
html_baseurl = _metadata["metadata"]["url"]
html_title = "dramatiq-status"
html_logo = html_favicon = "_static/logo.svg"
html_theme_options: dict[str, Any] = {
    # The blue of the dashboard, and a size of code at which 92 characters fit.
    "light_css_variables": {
        "color-brand-primary": "#1f5bcc",
        "color-brand-content": "#1f5bcc",
        "code-font-size": "0.78rem",
    },
    "dark_css_variables": {"color-brand-primary": "#83b0ff", "color-brand-content": "#83b0ff"},
}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
# The index of all Python modules would have a single entry.
html_domain_indices = False

# The button copies a session without its prompts and without its output.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_selector = "div:not(.output) > div.highlight pre"

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# The names of other projects to which this site refers. A new name needs a line in its inventory.
intersphinx_mapping = {
    "python": ("https://docs.python.org/3/", "inventories/python.inv"),
    "dramatiq": ("https://dramatiq.io/", "inventories/dramatiq.inv"),
}

#: Names of other projects as docstrings and annotations have them, with their names in the inventories.
OTHER_NAMES = {
    "Broker": "dramatiq.Broker",
    "Message": "dramatiq.Message",
    "dramatiq.broker.Broker": "dramatiq.Broker",
    "dramatiq.message.Message": "dramatiq.Message",
    "dramatiq.composition.pipeline": "dramatiq.pipeline",
    "datetime": "datetime.datetime",
    "timedelta": "datetime.timedelta",
}

# A reference that leads nowhere is an error.
nitpicky = True
nitpick_ignore_regex = [
    # Classes of libraries that have no inventory here.
    (r"py:class", r"(redis\.Redis|redis\.RedisCluster|pymemcache\.Client|starlette\.requests\.Request)"),
    # Types whose methods alone are documented.
    (r"py:class", r"dramatiq_status\.(\w+\.)*(T|Track|Group|Request|UpdateAttacher|\w+UpdateAttacher|BrokerClient)"),
    # Names of types in signatures.
    (r"py:class", r"T|Chain|Record|Request|Authorize|Describe|Group|BrokerClient"),
]

#: Modules with public names, in the order of the search for the name of a reference such as ``.StatusRegistry``.
PUBLIC = ("", ".backends", ".web", ".testing", ".errors", ".backend", ".update", ".cursor", ".circuit_breaker")
HOMES: dict[str, str] = {}
for _module in PUBLIC:
    for _name in vars(import_module(f"dramatiq_status{_module}")).get("__all__", ()):
        HOMES.setdefault(_name, f"dramatiq_status{_module}.{_name}")


def qualify(app: Any, what: str, name: str, documented: Any, options: Any, lines: list[str]) -> None:
    """Complete references to public names: ``StatusRegistry`` is also a name of ``dramatiq_status.aio``."""
    for at, line in enumerate(lines):
        lines[at] = re.sub(
            r":(\w+):`\.(\w+)([\w.]*)`",
            lambda found: f":{found[1]}:`{found[2]}{found[3]} <{HOMES.get(found[2], '.' + found[2])}{found[3]}>`",
            line,
        )


def rename(app: Any, env: Any, node: Any, content: Any) -> None:
    """Give a name of another project the form in which its inventory has it."""
    node["reftarget"] = OTHER_NAMES.get(node["reftarget"], node["reftarget"])


def setup(app: Any) -> None:
    # This priority comes before the search of the inventories.
    app.connect("missing-reference", rename, priority=400)
    app.connect("autodoc-process-docstring", qualify)
