"""Generates the notebooks from their sources: `python notebooks/convert.py`.

A source is a Python file whose code cells begin with `# %%` and whose text cells, in comments,
begin with `# %% [markdown]`, the format of Jupytext and many editors.
"""

import sys
from pathlib import Path
from typing import Any

import nbformat

FOLDER = Path(__file__).resolve().parent


def sources() -> list[Path]:
    """The source files, in order."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.py"))


def notebook(source: str) -> Any:
    r"""Converts a source to a notebook, deterministically.

    Example:
        >>> cells = notebook("# %% [markdown]\n# # Title\n\n# %%\nx = 1\n").cells
        >>> [(cell.cell_type, cell.source) for cell in cells]
        [('markdown', '# Title'), ('code', 'x = 1')]
    """
    made = nbformat.v4.new_notebook()
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    made.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    for number, part in enumerate(f"\n{source}".split("\n# %%")[1:]):
        kind, _, body = part.partition("\n")
        body = body.strip("\n")
        if kind.strip() == "[markdown]":
            body = "\n".join(line.removeprefix("#").removeprefix(" ") for line in body.split("\n"))
            cell = nbformat.v4.new_markdown_cell(body)
        else:
            cell = nbformat.v4.new_code_cell(body)
        cell.id = f"cell-{number}"
        made.cells.append(cell)
    return made


def main() -> None:
    """Writes every notebook next to its source, without outputs."""
    for path in sources():
        nbformat.write(notebook(path.read_text()), path.with_suffix(".ipynb"))
        print(path.with_suffix(".ipynb"), file=sys.stderr)


if __name__ == "__main__":
    main()
