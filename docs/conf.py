"""The documentation site: Sphinx, Markdown (MyST), Furo. `make site` builds it offline; a warning is an error."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))
os.environ["MTLCORE_PLUGINS"] = "off"  # the site describes this distribution, whatever else is installed

import mtlbench  # noqa: E402 - after the switch above
import mtlcore  # noqa: E402
import mtlverify  # noqa: E402
from mtlcore import hosting  # noqa: E402

# Public names are imported on first use; autodoc documents those that a module has.
for package in (mtlcore, hosting, mtlverify, mtlbench):
    for name in getattr(package, "__all__", ()):
        getattr(package, name)

project = "mtlcore"
author = "The mtlcore developers"
project_copyright = author
version = release = mtlcore.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "docstrings",
    "mathml",
]
exclude_patterns = ["_build"]
html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath", "colon_fence"]
smartquotes = False  # an option's value is copied from a page: 'conflict' is Python, with curved quotes it is not
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # generated pages may skip a heading level

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
toc_object_entries_show_parents = "hide"
napoleon_numpy_docstring = False
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True

# With a network, names of torch and Python become links: MTLCORE_DOCS_LINKS=1 make site
if os.environ.get("MTLCORE_DOCS_LINKS"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "numpy": ("https://numpy.org/doc/stable", None),
    }

html_theme = "furo"
html_title = f"mtlcore {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {"color-brand-primary": "#0b5fa5", "color-brand-content": "#0b5fa5"},
    "dark_css_variables": {"color-brand-primary": "#7ab8f5", "color-brand-content": "#7ab8f5"},
}
