"""Tests of the oracles: identities between them, and comparisons with optax."""

import chex
import numpy as np
import optax
import optax.contrib
import pytest

from tests import oracles
from tests.oracles.comparison import assert_agreement, assert_close, assert_trees_close, nested, run

pytestmark = pytest.mark.standard_promotion

SETTINGS = {"learning_rate": 0.1, "auxiliary": oracles.adamw(0.01)}


@pytest.fixture(scope="module")
def mixed():
    return oracles.fixed_mixed_tree()


def matrices_only(mixed, trees):
    """The leaves of each tree that are matrices."""
    return [{path: tree[path] for path, axes in mixed.numbers.items() if axes} for tree in trees]


# --- identities on the fixed tree ---


@pytest.mark.parametrize("gain", list(oracles.GAINS))
def test_mimuon_at_threshold_0_is_muon(mixed, gain):
    settings = {"momentum": oracles.heavy_ball(0.9), "gain": gain, "weight_decay": 0.1, **SETTINGS}
    chex.assert_trees_all_equal(
        oracles.mimuon(*mixed[:2], numbers=mixed.numbers, threshold=0, measure="gap", **settings),
        oracles.muon(*mixed[:2], numbers=mixed.numbers, **settings),
    )


@pytest.mark.parametrize("measure", list(oracles.MEASURES))
def test_mimuon_at_threshold_infinity_is_momentum_sgd(mixed, measure):
    momentum = oracles.heavy_ball(0.9, nesterov=True)
    settings = {"momentum": momentum, "weight_decay": 0.1, "learning_rate": 0.1}
    closed = oracles.mimuon(
        *mixed[:2],
        numbers=mixed.numbers,
        threshold=np.inf,
        measure=measure,
        gain="width",
        auxiliary=oracles.adamw(0.01),
        **settings,
    )
    plain = oracles.sgdm(*mixed[:2], **settings)
    chex.assert_trees_all_equal(matrices_only(mixed, closed), matrices_only(mixed, plain))


@pytest.mark.parametrize("clip", [None, 1e9])
def test_mvr_with_gamma_0_is_muon_on_the_average_from_the_first_gradient(mixed, clip):
    settings = {"numbers": mixed.numbers, "gain": "spectral", "weight_decay": 0.1, **SETTINGS}
    muon = oracles.muon(*mixed[:2], momentum=oracles.ema(0.9, from_first=True), **settings)
    settings |= {"beta": 0.9, "gamma": 0.0, "clip": clip}
    assert_trees_close(oracles.muon_mvr1(*mixed[:2], **settings), muon)
    mvr2 = oracles.muon_mvr2(mixed.params, lambda t, _: mixed.gradients[t], steps=10, **settings)
    assert_trees_close(mvr2, muon)


def test_mvr2_with_gamma_1_is_storm(mixed):
    gradient_at = oracles.curved(mixed.gradients)
    trees = oracles.muon_mvr2(
        mixed.params,
        gradient_at,
        steps=4,
        numbers=mixed.numbers,
        beta=0.8,
        gamma=1.0,
        gain=None,
        **SETTINGS,
    )
    path = "dense/wide/kernel"
    visited = [mixed.params, *trees]
    m = gradient_at(0, visited[0])[path]
    for t in range(4):
        if t:
            old = gradient_at(t, visited[t - 1])[path]
            m = gradient_at(t, visited[t])[path] + 0.8 * (m - old)
        expected = visited[t][path] - 0.1 * oracles.orthogonal(m)
        assert_close(visited[t + 1][path], expected)


def test_mvr1_corrects_by_the_gradient_of_the_step_before(mixed):
    settings = {"numbers": mixed.numbers, "gain": None, **SETTINGS}
    trees = oracles.muon_mvr1(*mixed[:2], beta=0.8, gamma=0.5, **settings)
    path = "dense/tall/kernel"
    visited = [mixed.params, *trees]
    g = [tree[path] for tree in mixed.gradients]
    m = g[0]
    for t in range(10):
        if t:
            m = 0.8 * m + 0.2 * g[t] + 0.4 * (g[t] - g[t - 1])
        assert_close(visited[t + 1][path], visited[t][path] - 0.1 * oracles.orthogonal(m))


MUSGD = {"learning_rate": 0.1, "beta": 0.9, "mu": 0.8, "nesterov": True, "gain": "width"}


def test_musgd_with_weights_1_and_0_is_muon(mixed):
    musgd = oracles.musgd(
        *mixed[:2], numbers=mixed.numbers, muon_weight=1, sgd_weight=0, weight_decay=0.1, **MUSGD
    )
    muon = oracles.muon(
        *mixed[:2],
        numbers=mixed.numbers,
        learning_rate=0.1,
        momentum=oracles.ema(0.9, nesterov=True),
        gain="width",
        auxiliary=oracles.sgd(0.0),
    )
    assert_trees_close(musgd, muon)


@pytest.mark.parametrize("nesterov", [False, True])
def test_musgd_with_weights_0_and_1_is_sgd_with_coupled_decay(mixed, nesterov):
    mixed = mixed.part("dense/tall/kernel", "norm/scale")
    musgd = oracles.musgd(
        *mixed[:2],
        numbers=mixed.numbers,
        muon_weight=0,
        sgd_weight=1,
        sgd_nesterov=nesterov,
        weight_decay=0.1,
        **MUSGD,
    )
    sgd = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, 0.8, nesterov=nesterov))
    assert_agreement(run(sgd, *mixed[:2]), musgd)


def test_spectral_sgd_ends_at_muon_and_at_momentum_sgd(mixed):
    momentum = oracles.heavy_ball(0.9)
    settings = {"learning_rate": 0.1, "momentum": momentum, "weight_decay": 0.1}
    plain = oracles.sgdm(*mixed[:2], **settings)
    settings["numbers"] = mixed.numbers
    assert_trees_close(oracles.spectral_sgd(*mixed[:2], p=1.0, **settings), plain)
    settings["auxiliary"] = oracles.adamw(0.01)
    assert_trees_close(
        oracles.spectral_sgd(*mixed[:2], p=0.0, **settings),
        oracles.muon(*mixed[:2], gain="width", **settings),
    )


# --- comparisons with optax ---


def test_spectral_adam_with_p_1_is_adamw(mixed):
    mixed = mixed.part("dense/tall/kernel", "norm/scale")
    adam = oracles.spectral_adam(
        *mixed[:2],
        numbers=mixed.numbers,
        learning_rate=0.1,
        p=1.0,
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        weight_decay=0.1,
    )
    assert_agreement(run(optax.adamw(0.1, b2=0.95, weight_decay=0.1), *mixed[:2]), adam)


@pytest.mark.parametrize(
    ("rule", "witness"),
    [
        (oracles.adamw(0.1), optax.adamw(0.1, weight_decay=0.0)),
        (oracles.adamw(0.1, b1=0.8, weight_decay=0.1), optax.adamw(0.1, b1=0.8, weight_decay=0.1)),
        (oracles.sgd(0.1), optax.sgd(0.1)),
        (oracles.sgd(0.1, oracles.heavy_ball(0.9)), optax.sgd(0.1, 0.9)),
        (oracles.lion(0.1, weight_decay=0.1), optax.lion(0.1, weight_decay=0.1)),
    ],
    ids=["adamw", "adamw with decay", "sgd", "heavy ball", "lion"],
)
def test_auxiliary_rules_are_those_of_optax(mixed, rule, witness):
    mixed = mixed.part("norm/scale", "head/kernel")
    trees = oracles.muon(
        *mixed[:2],
        numbers=mixed.numbers,
        learning_rate=0.1,
        momentum=oracles.heavy_ball(0.9),
        gain=None,
        auxiliary=rule,
    )
    assert_agreement(run(witness, *mixed[:2]), trees)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("gain", "consistent_rms"), [("width", None), ("rms", 0.2)])
def test_muon_is_optax_muon_when_both_iterate(mixed, nesterov, gain, consistent_rms):
    mixed = mixed.part("stem/conv/kernel", "layers/attention/value/kernel", "norm/scale")
    trees = oracles.muon(
        *mixed[:2],
        numbers=mixed.numbers,
        learning_rate=0.1,
        momentum=oracles.ema(0.95, debias=True, nesterov=nesterov),
        gain=gain,
        weight_decay=0.1,
        orth=lambda m: oracles.newton_schulz(m, eps=1e-8),
        auxiliary=oracles.adamw(0.01),
    )
    numbers = {
        path: axes and optax.contrib.MuonDimensionNumbers(*axes)
        for path, axes in mixed.numbers.items()
    }
    witness = optax.contrib.muon(
        0.1,
        beta=0.95,
        nesterov=nesterov,
        weight_decay=0.1,
        consistent_rms=consistent_rms,
        adam_learning_rate=0.01,
        muon_weight_dimension_numbers=nested(numbers),
    )
    # Without auxiliary parameters: optax passes `nesterov` and the decay on to its Adam.
    optax_trees = run(witness, *mixed[:2])
    assert_agreement(matrices_only(mixed, optax_trees), matrices_only(mixed, trees))


# --- the fixed tree ---


def test_every_estimate_of_the_fixed_tree_is_well_conditioned(mixed):
    estimates = [
        oracles.heavy_ball(0.9),
        oracles.heavy_ball(0.95, nesterov=True),
        oracles.ema(0.9),
        oracles.ema(0.95, debias=True, nesterov=True),
        oracles.adam(),
        oracles.adam(0.9, 0.95),
    ]
    for path, axes in mixed.numbers.items():
        if axes is None:
            continue
        for step in range(10):
            history = [tree[path] for tree in mixed.gradients[: step + 1]]
            for estimate in estimates:
                for m in oracles.as_matrices(estimate(history), axes):
                    s = np.linalg.svd(m, compute_uv=False)
                    assert s[-1] > 0.2 * s[0], f"{path}, step {step}: singular values {s}"


def test_the_fixed_tree_is_fixed(mixed):
    chex.assert_trees_all_equal(oracles.fixed_mixed_tree(), mixed)
    other = oracles.fixed_mixed_tree(2)
    assert not np.array_equal(other.params["norm/scale"], mixed.params["norm/scale"])
    assert [len(mixed.gradients), len(mixed.params)] == [10, len(mixed.numbers)]
