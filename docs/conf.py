"""Configuration of the site that ``scripts/docs`` builds. The build needs no network."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dramatiq_status

project = "dramatiq-status"
author = "dramatiq-status contributors"
copyright = "dramatiq-status contributors. MIT licence"
version = release = dramatiq_status.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build", "**/README.rst"]
default_role = "code"
highlight_language = "python"
pygments_style = "tango"
pygments_dark_style = "github-dark"
smartquotes = False

html_theme = "furo"
html_title = f"dramatiq-status {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
# Without a trailing index of all Python modules, of which there is one.
html_domain_indices = False

# The button copies a session without its prompts and without its output.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
