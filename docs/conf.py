"""The site: `uv run --group docs sphinx-build -W --keep-going -c docs . site`.

Its pages are files of the repository as they are: README.md, the Markdown in `docs`, the notebooks
(not executed), and the docstrings of everything public. `docs/README.md` is the front page.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from formulas import render_formulas
from sphinx.application import Sphinx

project = "mimuon-jax"
root_doc = "docs/README"
include_patterns = [
    "docs/**.md",
    "notebooks/*.ipynb",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]

html_theme = "furo"
html_title = project
html_copy_source = False
html_show_copyright = False

nb_execution_mode = "off"
myst_heading_anchors = 4
napoleon_custom_sections = ["Source"]
default_role = "py:obj"  # `muon` in a docstring is a link, or code if it is not public
autodoc_typehints = "none"  # in the signatures they are longer than the texts
autodoc_preserve_defaults = True


def setup(app: Sphinx) -> None:
    """Formulas in docstrings are plain text: ``M_t = mu M_{t-1} + G_t``."""
    app.connect("autodoc-process-docstring", render_formulas)
