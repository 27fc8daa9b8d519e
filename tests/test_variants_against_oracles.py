"""The variants of Muon against their float64 oracles: ten steps, errors within 1e-5.

Tree and tolerance are those of `test_against_oracles`.
"""

from typing import Any

import pytest
from optax.contrib import MuonDimensionNumbers

import mimuon_jax
from tests import oracles
from tests.oracles import variants
from tests.oracles.comparison import assert_agreement, nested, run

pytestmark = pytest.mark.standard_promotion

WHOLE = oracles.fixed_mixed_tree()
PART = WHOLE.part("dense/wide/kernel", "layers/attention/value/kernel", "norm/scale")
DECAY = {"weight_decay": 0.1}
HEAVY = oracles.heavy_ball(0.9, nesterov=True)


def library(tree, **settings: Any) -> dict[str, Any]:
    """The settings that all cases share, for the library."""
    matrices = {path: axes and MuonDimensionNumbers(*axes) for path, axes in tree.numbers.items()}
    shared = {"orthogonalizer": "svd", "auxiliary_learning_rate": 0.03, "momentum": 0.9}
    return {**shared, "matrices": nested(matrices), **settings}


def check(tree, optimizer, move, momentum=HEAVY, auxiliary=None):
    """Compares an optimizer with an oracle on a tree."""
    expected = variants.variant(
        *tree[:2],
        numbers=tree.numbers,
        auxiliary=auxiliary or oracles.adamw(0.03),
        momentum=momentum,
        move=move,
    )
    assert_agreement(run(optimizer, *tree[:2]), expected)


@pytest.mark.parametrize(
    ("tree", "per", "gain"),
    [
        (PART, "longer", "width"),
        pytest.param(WHOLE, "output", "rms", marks=pytest.mark.slow),
        pytest.param(PART, "scalar", "spectral", marks=pytest.mark.slow),
    ],
)
def test_normuon(tree, per, gain):
    settings = {"beta2": 0.8, "per": per, "eps": 1e-8, "gain": gain, **DECAY}
    optimizer = mimuon_jax.normuon(0.1, **settings, **library(tree))
    check(tree, optimizer, variants.normuon(learning_rate=0.1, **settings))


@pytest.mark.parametrize("tree", [PART, pytest.param(WHOLE, marks=pytest.mark.slow)])
def test_adamuon(tree):
    settings = {"beta2": 0.8, "rms": 0.2, "eps": 1e-8, **DECAY}
    optimizer = mimuon_jax.adamuon(0.1, **settings, **library(tree))
    check(tree, optimizer, variants.adamuon(learning_rate=0.1, **settings))
