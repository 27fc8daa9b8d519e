"""The site: `uv run --group docs sphinx-build -W --keep-going -c docs . site`.

Its pages are files of the repository as they are: README.md, the Markdown in `docs`, the notebooks
(not executed), and the docstrings of everything public. `docs/README.md` is the front page. Where
the repository is known (docs/repository.py), pages link to their source, and notebooks to Colab.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from formulas import render_formulas
from repository import here, source_link, with_badge
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

repository, ref = here()
if repository is not None:
    extensions.append("sphinx.ext.linkcode")
    linkcheck_ignore = [rf"https://github\.com/{repository}/blob/"]  # of a commit not yet there
    html_theme_options = {
        "source_repository": f"https://github.com/{repository}",
        "source_branch": ref,
        "source_directory": "",
        "top_of_page_buttons": ["view"],
    }


def linkcode_resolve(domain: str, info: dict[str, str]) -> str | None:
    """The address of the source of a function or class, for the link beside it."""
    assert repository is not None
    return source_link(info["module"], info["fullname"], repository=repository, ref=ref)


def add_badge(app: Sphinx, page: str, source: list[str]) -> None:
    """Links the page of a notebook to Colab."""
    if repository is not None and page.startswith("notebooks/"):
        source[0] = with_badge(source[0], f"{page}.ipynb", repository, ref)


def write_index(app: Sphinx, error: Exception | None) -> None:
    """Hosts show `index.html` first; it leads to the front page."""
    if error is None and app.builder.format == "html":
        page = f'<!doctype html><meta http-equiv="refresh" content="0; url={root_doc}.html">'
        (Path(app.outdir) / "index.html").write_text(page + "\n")


def setup(app: Sphinx) -> None:
    """Formulas in docstrings are plain text: ``M_t = mu M_{t-1} + G_t``."""
    app.connect("autodoc-process-docstring", render_formulas)
    app.connect("source-read", add_badge)
    app.connect("build-finished", write_index)
