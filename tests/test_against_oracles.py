"""`muon`, `mimuon` and `sgdm` against their float64 oracles: ten steps on the fixed tree.

The error may be 1e-5 of the largest magnitude, for each leaf after each step, with the SVD on both
sides. Observed: 3e-7 for matrices, 5e-6 for auxiliary parameters, where Adam's `1 - 0.999^t` loses
digits. Each optimizer runs on the whole tree once; its variants run on a part, to compile faster.
"""

from typing import Any

import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

import mimuon_jax
from tests import oracles
from tests.oracles.comparison import assert_agreement, nested, run

pytestmark = pytest.mark.standard_promotion

WHOLE = oracles.fixed_mixed_tree()
# A wide matrix, a batch of tall ones whose batch axes are not adjacent, an auxiliary parameter.
PART = WHOLE.part("dense/wide/kernel", "layers/attention/value/kernel", "norm/scale")
MOMENTA = {
    "heavy ball": (mimuon_jax.heavy_ball(0.9), oracles.heavy_ball(0.9)),
    "heavy ball, nesterov": (
        mimuon_jax.heavy_ball(0.9, nesterov=True),
        oracles.heavy_ball(0.9, nesterov=True),
    ),
    "ema": (mimuon_jax.ema(0.9), oracles.ema(0.9)),
    "ema, debiased": (mimuon_jax.ema(0.9, debias=True), oracles.ema(0.9, debias=True)),
    "ema, nesterov": (mimuon_jax.ema(0.9, nesterov=True), oracles.ema(0.9, nesterov=True)),
    "ema, debiased, nesterov": (
        mimuon_jax.ema(0.9, debias=True, nesterov=True),
        oracles.ema(0.9, debias=True, nesterov=True),
    ),
    "ema from the first gradient": (
        mimuon_jax.ema(0.9, start="gradient"),
        oracles.ema(0.9, from_first=True),
    ),
}


def matrices(tree):
    """The axes of a tree's matrices as the library takes them."""
    return nested(
        {path: axes and MuonDimensionNumbers(*axes) for path, axes in tree.numbers.items()}
    )


def library(tree) -> dict[str, Any]:
    """The settings that all cases share, for the library."""
    return {
        "orthogonalizer": "svd",
        "weight_decay": 0.1,
        "auxiliary_learning_rate": 0.03,
        "matrices": matrices(tree),
    }


def oracle(tree, **settings: Any) -> dict[str, Any]:
    """The same settings for the oracles."""
    return {
        "numbers": tree.numbers,
        "learning_rate": 0.1,
        "weight_decay": 0.1,
        "auxiliary": oracles.adamw(0.03),
        **settings,
    }


@pytest.mark.parametrize(
    ("tree", "momentum", "gain"),
    [
        (WHOLE, "heavy ball", "width"),
        (PART, "heavy ball, nesterov", "rms"),
        (PART, "ema", "spectral"),
        (PART, "ema, debiased", "width"),
        (PART, "ema, nesterov", "width"),
        (PART, "ema, debiased, nesterov", None),
        (PART, "ema from the first gradient", "width"),
    ],
)
def test_muon(tree, momentum, gain):
    piece, estimate = MOMENTA[momentum]
    muon = mimuon_jax.muon(0.1, momentum=piece, nesterov=False, gain=gain, **library(tree))
    expected = oracles.muon(*tree[:2], momentum=estimate, gain=gain, **oracle(tree))
    assert_agreement(run(muon, *tree[:2]), expected)


def test_muon_with_a_number_as_momentum_is_heavy_ball_with_nesterov():
    muon = mimuon_jax.muon(0.1, momentum=0.9, nesterov=True, gain="width", **library(PART))
    momentum = oracles.heavy_ball(0.9, nesterov=True)
    expected = oracles.muon(*PART[:2], momentum=momentum, gain="width", **oracle(PART))
    assert_agreement(run(muon, *PART[:2]), expected)


def test_muon_with_sgd_for_auxiliary_parameters():
    settings = library(PART) | {"auxiliary_learning_rate": None, "auxiliary": optax.sgd(0.02, 0.8)}
    muon = mimuon_jax.muon(0.1, momentum=0.9, nesterov=False, gain=None, **settings)
    settings = oracle(PART, auxiliary=oracles.sgd(0.02, oracles.heavy_ball(0.8)))
    momentum = oracles.heavy_ball(0.9)
    expected = oracles.muon(*PART[:2], momentum=momentum, gain=None, **settings)
    assert_agreement(run(muon, *PART[:2]), expected)


def threshold_with_a_margin(tree, measure, momentum):
    """A threshold that opens some gates and not others, far from every measured value."""
    values = np.sort(
        [
            oracles.MEASURES[measure](m)
            for path, axes in tree.numbers.items()
            if axes is not None
            for step in range(len(tree.gradients))
            for m in oracles.as_matrices(
                momentum([gradient[path] for gradient in tree.gradients[: step + 1]]), axes
            )
        ]
    )
    middle = values[len(values) // 4 : 3 * len(values) // 4]
    ratios = middle[1:] / middle[:-1]
    widest = int(ratios.argmax())
    assert ratios[widest] > 1.01, f"no threshold is clear of all values of {measure}"
    return float(np.sqrt(middle[widest] * middle[widest + 1]))


@pytest.mark.parametrize(
    ("tree", "momentum", "measure"),
    [
        (WHOLE, "heavy ball", "rms"),
        (PART, "ema, debiased, nesterov", "rms"),
        (PART, "ema", "gap"),
        (PART, "heavy ball", "frobenius"),
        (PART, "heavy ball, nesterov", "spectral"),
    ],
)
def test_mimuon(tree, momentum, measure):
    piece, estimate = MOMENTA[momentum]
    settings = {
        "threshold": threshold_with_a_margin(tree, measure, estimate),
        "measure": measure,
        "gain": "rms",
    }
    mimuon = mimuon_jax.mimuon(0.1, momentum=piece, **settings, **library(tree))
    expected = oracles.mimuon(*tree[:2], momentum=estimate, **settings, **oracle(tree))
    assert_agreement(run(mimuon, *tree[:2]), expected)


@pytest.mark.parametrize("threshold", [0.0, np.inf])
def test_mimuon_at_the_ends_of_its_threshold(threshold):
    settings = {"threshold": threshold, "measure": "gap", "gain": "width"}
    mimuon = mimuon_jax.mimuon(0.1, momentum=0.9, nesterov=True, **settings, **library(PART))
    momentum = oracles.heavy_ball(0.9, nesterov=True)
    expected = oracles.mimuon(*PART[:2], momentum=momentum, **settings, **oracle(PART))
    assert_agreement(run(mimuon, *PART[:2]), expected)


@pytest.mark.parametrize("threshold", [1e30, np.inf])
def test_mimuon_of_rank_one_has_an_infinite_gap_which_an_infinite_threshold_closes(threshold):
    path = "dense/wide/kernel"
    ones = np.outer(np.arange(1.0, 7), np.arange(15.0) - 7)
    tree = PART.part(path)._replace(gradients=[{path: 2.0**-step * ones} for step in range(4)])
    settings = {"threshold": threshold, "measure": "gap", "gain": "width"}
    mimuon = mimuon_jax.mimuon(0.1, momentum=0.5, **settings, **library(tree))
    expected = oracles.mimuon(
        *tree[:2], momentum=oracles.heavy_ball(0.5), **settings, **oracle(tree)
    )
    assert_agreement(run(mimuon, *tree[:2]), expected)


@pytest.mark.parametrize(("tree", "nesterov"), [(WHOLE, False), (PART, True)])
def test_sgdm(tree, nesterov):
    sgdm = mimuon_jax.sgdm(0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.1)
    settings = {"learning_rate": 0.1, "weight_decay": 0.1}
    momentum = oracles.heavy_ball(0.9, nesterov=nesterov)
    expected = oracles.sgdm(*tree[:2], momentum=momentum, **settings)
    assert_agreement(run(sgdm, *tree[:2]), expected)
