"""The notebooks match their sources, and run with fewer steps."""

import runpy
import warnings
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = sorted((REPOSITORY / "notebooks").glob("[0-9][0-9]_*.py"))
REDUCED = {
    "STEPS = 300": "STEPS = 5",
    "STEPS = 800": "STEPS = 5",
    "LAYERS = 8": "LAYERS = 2",
    "SIZE = 128": "SIZE = 32",
}
CONVERT: Any = runpy.run_path(str(REPOSITORY / "notebooks" / "convert.py"))["notebook"]


def test_there_are_notebooks():
    assert len(SOURCES) >= 5


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_matches_its_source(path: Path):
    written = nbformat.read(str(path.with_suffix(".ipynb")), as_version=4)
    assert written == CONVERT(path.read_text()), "run python notebooks/convert.py"
    nbformat.validate(written)
    assert "pip" in written.cells[1].source  # the first code cell installs what is missing


@pytest.mark.slow
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path):
    source = path.read_text()
    assert any(words in source for words in REDUCED)
    for words, fewer in REDUCED.items():
        source = source.replace(words, fewer)
    made = CONVERT(source)
    made.metadata.kernelspec.name = "python3"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from the client and the kernel, not from the notebook
        NotebookClient(
            made, timeout=900, resources={"metadata": {"path": str(path.parent)}}
        ).execute()
    outputs = [output for cell in made.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
