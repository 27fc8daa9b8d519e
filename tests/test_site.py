"""The site: every public name is in the API reference, and formulas of docstrings are rendered."""

import doctest
import inspect
import re
import runpy
from pathlib import Path

import pytest

import mimuon_jax

DOCS = Path(__file__).resolve().parent.parent / "docs"
FORMULAS = runpy.run_path(str(DOCS / "formulas.py"))
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
    for name in ("is_formula", "latex"):
        (example,) = doctest.DocTestFinder().find(FORMULAS[name], name, globs=FORMULAS)
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
