"""The other optimizers against their float64 oracles: MVR, MuSGD, spectral powers, Shampoo.

Tolerance and tree are those of `test_against_oracles`. Observed for matrices: 4e-7, Shampoo 4e-6.
Shampoo is tried at a damping of 1e-2 because float32's eigenvalues of a singular `G G^T` scatter by
about 1e-6 of the largest, here 10 to 130: at 1e-4 the error is 3e-5, at 1e-6 it is 1e-4.
"""

from typing import Any

import jax
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

import mimuon_jax
from tests import oracles
from tests.oracles.comparison import assert_agreement, flat, nested, on_device, run

pytestmark = pytest.mark.standard_promotion

WHOLE = oracles.fixed_mixed_tree()
PART = WHOLE.part("dense/wide/kernel", "layers/attention/value/kernel", "norm/scale")


def library(tree, **settings: Any) -> dict[str, Any]:
    """The settings that all cases share, for the library."""
    matrices = {path: axes and MuonDimensionNumbers(*axes) for path, axes in tree.numbers.items()}
    return {"weight_decay": 0.1, "matrices": nested(matrices), **settings}


def oracle(tree, **settings: Any) -> dict[str, Any]:
    """The same settings for the oracles."""
    return {"weight_decay": 0.1, "numbers": tree.numbers, "learning_rate": 0.1, **settings}


@pytest.mark.parametrize(
    ("tree", "gamma", "clip"),
    [(WHOLE, 0.05, None), (PART, 0.0, None), (PART, 1.0, None), (PART, 0.5, 4.0)],
)
def test_muon_mvr1(tree, gamma, clip):
    settings = library(tree, auxiliary_learning_rate=0.03, orthogonalizer="svd")
    mvr1 = mimuon_jax.muon_mvr1(0.1, gamma=gamma, clip=clip, momentum=0.9, gain="rms", **settings)
    settings = oracle(tree, beta=0.9, gamma=gamma, clip=clip, gain="rms")
    expected = oracles.muon_mvr1(*tree[:2], auxiliary=oracles.adamw(0.03), **settings)
    assert_agreement(run(mvr1, *tree[:2]), expected)


def run_with_grad_fn(transformation, tree):
    """The parameters after each jitted step on `curved(tree.gradients)`, in float32."""

    @jax.jit
    def step(params, state, gradient, curvature):
        def grad_fn(params):
            return jax.tree.map(lambda g, w: g + curvature * w, gradient, params)

        updates, state = transformation.update(grad_fn(params), state, params, grad_fn=grad_fn)
        return optax.apply_updates(params, updates), state

    params = on_device(tree.params)
    state = transformation.init(params)
    trees = []
    for index, gradient in enumerate(tree.gradients):
        params, state = step(params, state, on_device(gradient), oracles.curvature(index))
        trees.append(flat(params))
    return trees


@pytest.mark.parametrize(
    ("tree", "gamma", "clip"),
    [(WHOLE, 0.05, None), (PART, 0.0, None), (PART, 1.0, None), (PART, 0.5, 4.0)],
)
def test_muon_mvr2(tree, gamma, clip):
    settings = library(tree, auxiliary_learning_rate=0.03, orthogonalizer="svd")
    mvr2 = mimuon_jax.muon_mvr2(0.1, gamma=gamma, clip=clip, momentum=0.9, gain="rms", **settings)
    settings = oracle(tree, beta=0.9, gamma=gamma, clip=clip, gain="rms", steps=10)
    gradient_at = oracles.curved(tree.gradients)
    expected = oracles.muon_mvr2(
        tree.params, gradient_at, auxiliary=oracles.adamw(0.03), **settings
    )
    assert_agreement(run_with_grad_fn(mvr2, tree), expected)


@pytest.mark.parametrize(
    ("tree", "weights", "nesterov"),
    [(WHOLE, (0.7, 0.4), False), (PART, (0.5, 0.5), True), (PART, (1.0, 0.0), False)],
)
def test_musgd(tree, weights, nesterov):
    sgd_momentum = mimuon_jax.heavy_ball(0.8, nesterov=nesterov)
    muon_weight, sgd_weight = weights
    settings = {"muon_weight": muon_weight, "sgd_weight": sgd_weight, "gain": "width"}
    musgd = mimuon_jax.musgd(
        0.1,
        momentum=0.9,
        nesterov=True,
        sgd_momentum=sgd_momentum,
        orthogonalizer="svd",
        **settings,
        **library(tree),
    )
    momenta = {"beta": 0.9, "mu": 0.8, "nesterov": True, "sgd_nesterov": nesterov}
    expected = oracles.musgd(*tree[:2], **momenta, **settings, **oracle(tree))
    assert_agreement(run(musgd, *tree[:2]), expected)


POWERS = [(WHOLE, 0.0), (PART, 0.25), (PART, 0.5), (PART, 0.7), (PART, 1.0)]


@pytest.mark.parametrize(("tree", "p"), POWERS)
def test_spectral_sgd(tree, p):
    spectral = mimuon_jax.spectral_sgd(0.1, p=p, momentum=0.9, method="svd", **library(tree))
    momentum = oracles.heavy_ball(0.9)
    expected = oracles.spectral_sgd(*tree[:2], p=p, momentum=momentum, **oracle(tree))
    assert_agreement(run(spectral, *tree[:2]), expected)


@pytest.mark.parametrize(("tree", "p"), POWERS)
def test_spectral_adam(tree, p):
    adam = {"p": p, "b1": 0.9, "b2": 0.95, "eps": 1e-8}
    spectral = mimuon_jax.spectral_adam(0.1, method="svd", **adam, **library(tree))
    expected = oracles.spectral_adam(*tree[:2], **adam, **oracle(tree))
    assert_agreement(run(spectral, *tree[:2]), expected)


def test_spectral_sgd_with_adamw_for_auxiliary_parameters():
    settings = library(PART, auxiliary=optax.adam(0.03))
    spectral = mimuon_jax.spectral_sgd(0.1, p=0.5, momentum=0.9, method="svd", **settings)
    settings = oracle(PART, momentum=oracles.heavy_ball(0.9), auxiliary=oracles.adamw(0.03))
    assert_agreement(run(spectral, *PART[:2]), oracles.spectral_sgd(*PART[:2], p=0.5, **settings))


@pytest.mark.parametrize(
    ("tree", "settings"),
    [
        pytest.param(
            WHOLE,
            {"max_dim": 768, "update_every": 1, "damping": 1e-2},
            marks=pytest.mark.slow,
        ),
        (PART, {"max_dim": 768, "update_every": 3, "damping": 1e-2}),
        (PART, {"max_dim": 6, "update_every": 2, "damping": 1e-2}),
        pytest.param(
            PART, {"max_dim": 3, "update_every": 2, "damping": 1e-2}, marks=pytest.mark.slow
        ),
    ],
)
def test_shampoo(tree, settings):
    shampoo = mimuon_jax.shampoo(0.1, **settings, **library(tree, auxiliary_learning_rate=0.03))
    auxiliary = oracles.adamw(0.03)
    expected = oracles.shampoo(*tree[:2], auxiliary=auxiliary, **settings, **oracle(tree))
    assert_agreement(run(shampoo, *tree[:2]), expected)
