"""Sphinx with MyST and furo: the pages stay the Markdown that pytest runs, and autodoc reads the docstrings.

`make docs` builds into docs/_build/html; every warning is an error.
"""

import os
import re
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras_flax_bridge as kfb

project = "keras_flax_bridge"
version = release = kfb.__version__
copyright = "keras-flax-bridge developers"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
default_role = "py:obj"  # single backticks in docstrings are names, and links where the name is on the site

myst_heading_anchors = 3  # `page.md#section` works here as it does in a repository browser
smartquotes = False  # tables hold code

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_attr_annotations = False

# the button copies what is typed: neither prompts nor outputs
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "keras_flax_bridge"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False


def tighten(app: Any, page: str, source: list[str]) -> None:
    """Takes away the blank line that ends a doctest in Markdown and that the site would show."""
    source[0] = re.sub(r"\n\n```\n", "\n```\n", source[0])


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", tighten)
