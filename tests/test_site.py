"""The site: every public name is in the API reference, and formulas of docstrings are rendered."""

import doctest
import inspect
import json
import re
import runpy
from pathlib import Path

import pytest

import mimuon_jax

DOCS = Path(__file__).resolve().parent.parent / "docs"
FORMULAS = runpy.run_path(str(DOCS / "formulas.py"))
REPOSITORY = runpy.run_path(str(DOCS / "repository.py"))
NOTEBOOKS = sorted((DOCS.parent / "notebooks").glob("*.ipynb"))
DOCUMENTED = [getattr(mimuon_jax, name) for name in mimuon_jax.__all__]
LITERALS = sorted(
    {t for o in DOCUMENTED for t in re.findall("``([^`]+)``", inspect.getdoc(o) or "")}
)


def test_the_reference_lists_every_public_name_once():
    page = (DOCS / "api.md").read_text()
    listed = re.findall(r"^\.\. (?:autofunction|autoclass|data):: (\w+)$", page, flags=re.MULTILINE)
    assert sorted(listed) == sorted(set(mimuon_jax.__all__) - {"diagnostics"})
    assert ".. automodule:: mimuon_jax.diagnostics" in page


def test_examples_of_the_conversion_to_latex():
    for module, name in ((FORMULAS, "is_formula"), (FORMULAS, "latex"), (REPOSITORY, "repository")):
        (example,) = doctest.DocTestFinder().find(module[name], name, globs=module)
        assert doctest.DocTestRunner().run(example).failed == 0


@pytest.mark.parametrize("text", [text for text in LITERALS if FORMULAS["is_formula"](text)])
def test_a_formula_becomes_latex_without_plain_words(text):
    made = FORMULAS["latex"](text)
    assert made.count("{") == made.count("}")
    assert made.count(r"\operatorname") + made.count(r"\mathrm") <= len(
        re.findall(r"[A-Za-z]{2}", text)
    )
    plain = re.sub(r"\\(operatorname|mathrm)\{\w+\}|\\[a-z]+", "", made)
    assert re.findall(r"[A-Za-z]{2,}|<-|sqrt", plain) == []


@pytest.mark.parametrize(
    "text", ["weight_decay", "ema(0.95)", '"svd"', "[..., m, n]", "output <= reduction", "jax.jit"]
)
def test_code_stays_code(text):
    lines = [f"See ``{text}``."]
    FORMULAS["render_formulas"](None, "function", "name", None, None, lines)
    assert lines == [f"See ``{text}``."]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_of_a_known_repository_opens_in_colab_and_installs_it(path: Path):
    made = json.loads(
        REPOSITORY["with_badge"](path.read_text(), f"notebooks/{path.name}", "me/name", "v1")
    )
    page = made["cells"][0]["source"]
    assert f"colab.research.google.com/github/me/name/blob/v1/notebooks/{path.name})" in page
    ready = json.loads(REPOSITORY["ready"](path.read_text(), "me/name", "v1"))
    code = next(cell["source"] for cell in ready["cells"] if cell["cell_type"] == "code")
    setting = "".join(line for line in code.splitlines() if "github.com/me/name" in line)
    assert "v1" in setting
    assert setting in page
    assert '= ".."\n' not in code


def test_a_link_to_source_leads_to_the_lines_of_a_function():
    link = REPOSITORY["source_link"]
    found = link("mimuon_jax", "muon", repository="me/name", ref="v1")
    prefix = "https://github.com/me/name/blob/v1/mimuon_jax/optimizers/muon.py#L"
    first, last = map(int, found.removeprefix(prefix).split("-L"))
    lines = (DOCS.parent / "mimuon_jax/optimizers/muon.py").read_text().splitlines()
    assert [line for line in lines[first - 1 : last] if line.startswith("def ")] == ["def muon("]
    assert link("mimuon_jax", "JORDAN", repository="me/name", ref="v1") is None
