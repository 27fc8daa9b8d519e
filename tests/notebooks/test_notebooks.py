"""The notebooks match their sources, install nothing blindly, and run with fewer steps."""

import importlib.util
import os
import re
import subprocess
import warnings
from pathlib import Path
from types import SimpleNamespace

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = sorted((REPOSITORY / "notebooks").glob("[0-9][0-9]_*.py"))
REDUCED = {
    "STEPS = 300": "STEPS = 5",
    "STEPS = 800": "STEPS = 5",
    "PRETRAINING_STEPS = 120": "PRETRAINING_STEPS = 2",
    "STEPS = 60": "STEPS = 2",
    "LENGTH = 16, 128": "LENGTH = 2, 16",
    "LAYERS = 8": "LAYERS = 2",
    "SIZE = 128": "SIZE = 32",
}
NOT_ON_PYPI = dict.fromkeys(SOURCES[:4], "not on PyPI yet: set SOURCE")
NEEDS_A_CHECKOUT = dict.fromkeys(SOURCES[4:], "clone the repository, set CHECKOUT")


def read(source: str) -> nbformat.NotebookNode:
    """The notebook of a source."""
    return jupytext.reads(source, fmt="py:percent")


def cells(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_there_are_notebooks():
    assert len(SOURCES) >= 6


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_matches_its_source(path: Path):
    written = nbformat.read(str(path.with_suffix(".ipynb")), as_version=4)
    assert cells(written) == cells(read(path.read_text())), (
        f"run jupytext --to ipynb --update {path.relative_to(REPOSITORY)}"
    )
    nbformat.validate(written)
    assert not any(cell.get("outputs") for cell in written.cells)


@pytest.fixture
def installed(monkeypatch) -> list[str]:
    """What pip is asked for, in an environment that holds nothing."""
    asked = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", lambda command, check: asked.extend(command[5:]))
    monkeypatch.setattr("sys.path", [])
    return asked


def first_code_cell(path: Path) -> str:
    return next(text for kind, text in cells(read(path.read_text())) if kind == "code")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_outside_a_checkout_the_first_cell_says_what_to_do(path, installed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=(NOT_ON_PYPI | NEEDS_A_CHECKOUT)[path]):
        exec(first_code_cell(path), {})
    assert installed == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_in_a_checkout_the_first_cell_installs_it(path, installed, monkeypatch):
    monkeypatch.chdir(path.parent)
    exec(first_code_cell(path), {})
    assert ".." in installed or str(REPOSITORY) in installed
    if path in NEEDS_A_CHECKOUT:  # with what training needs, by its name in pyproject.toml
        assert any(package.startswith("scikit-learn") for package in installed)
    assert "mimuon-jax" not in installed


@pytest.mark.parametrize("path", NOT_ON_PYPI, ids=lambda path: path.stem)
def test_what_the_first_cell_installs_is_what_is_imported(path, monkeypatch):
    asked = []
    found = {"mimuon_jax": SimpleNamespace()}
    monkeypatch.setattr(importlib.util, "find_spec", found.get)
    monkeypatch.setattr(subprocess, "run", lambda command, check: asked.extend(command[5:]))
    exec(first_code_cell(path), {})
    source = path.read_text()
    assert asked == [
        name
        for name in ("flax", "matplotlib")
        if re.search(rf"^(import|from) {name}\b", source, re.M)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, monkeypatch):
    source = path.read_text()
    assert any(words in source for words in REDUCED)
    if "NOTEBOOKS_AT_FULL_SIZE" not in os.environ:  # a release runs them so
        for words, fewer in REDUCED.items():
            source = source.replace(words, fewer)
        # Compiling is most of it.
        monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    made = read(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from the client and the kernel, not from the notebook
        NotebookClient(
            made, timeout=3000, resources={"metadata": {"path": str(path.parent)}}
        ).execute()
    outputs = [output for cell in made.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
