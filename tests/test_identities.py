"""At the ends of their ranges optimizers equal others, bit for bit outside jit.

Both sides take their own steps, so that a difference, once made, persists and is found.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from optax.contrib import MuonDimensionNumbers as Numbers

from mimuon_jax import (
    ema,
    heavy_ball,
    mimuon,
    muon,
    muon_mvr1,
    muon_mvr2,
    musgd,
    mvr1,
    mvr2,
    sgdm,
    spectral_adam,
    spectral_sgd,
)
from tests.contract import assert_close, assert_equal

pytestmark = pytest.mark.standard_promotion

RATE = 0.05
NUMBERS = {"scanned": Numbers(1, 2)}
SETTINGS = {"orthogonalizer": "jordan", "matrices": NUMBERS}


def tree(seed):
    """Two matrices with a gain other than 1, a batch without, and a vector."""
    random = np.random.default_rng(seed)
    shapes = {"wide": (4, 7), "wider": (3, 7), "scanned": (2, 6, 4), "bias": (7,)}
    return {
        name: jnp.asarray(random.standard_normal(shape), jnp.float32)
        for name, shape in shapes.items()
    }


PARAMS, GRADIENTS = tree(0), [tree(seed) for seed in range(1, 5)]


def second_gradient(gradient):
    """A ``grad_fn`` whose value at the current parameters is not even needed to differ."""
    return lambda params: jax.tree.map(lambda g, w: g + 0.3 * w, gradient, params)


def walk(tx, jit, *, piece=False):
    """The parameters after each step, or the updates of a building block."""
    tx = optax.with_extra_args_support(tx)

    def step(gradient, state, params):
        grad_fn = second_gradient(gradient)
        updates, state = tx.update(grad_fn(params), state, params, grad_fn=grad_fn)
        return updates if piece else optax.apply_updates(params, updates), state

    step = jax.jit(step) if jit else step
    params, state, trees = PARAMS, tx.init(PARAMS), []
    for gradient in GRADIENTS:
        result, state = step(gradient, state, params)
        params = PARAMS if piece else result
        trees.append(result)
    return trees


def matrices(trees):
    """The trees without their auxiliary leaf."""
    return [{name: x for name, x in tree.items() if name != "bias"} for tree in trees]


def assert_same(actual, expected, jit):
    """Bit for bit outside jit. Under jit two programs may be rounded differently."""
    (assert_close if jit else assert_equal)(actual, expected)


in_both_ways = pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])


@in_both_ways
@pytest.mark.parametrize(
    ("measure", "gain", "nesterov"),
    [pytest.param("rms", "width", False, marks=pytest.mark.slow), ("gap", "rms", True)],
)
def test_mimuon_at_threshold_0_is_muon(jit, measure, gain, nesterov):
    settings = SETTINGS | {"gain": gain, "nesterov": nesterov, "weight_decay": 0.1}
    actual = walk(mimuon(RATE, threshold=0.0, measure=measure, **settings), jit)
    assert_same(actual, walk(muon(RATE, **settings), jit), jit)


@in_both_ways
@pytest.mark.parametrize(
    ("measure", "gain", "nesterov"), [("rms", "width", False), ("gap", "rms", True)]
)
def test_mimuon_at_an_infinite_threshold_is_momentum_sgd(jit, measure, gain, nesterov):
    settings = {"nesterov": nesterov, "weight_decay": 0.1, "momentum": 0.9}
    gated = mimuon(RATE, threshold=np.inf, measure=measure, gain=gain, **settings, **SETTINGS)
    assert_same(matrices(walk(gated, jit)), matrices(walk(sgdm(RATE, **settings), jit)), jit)


@in_both_ways
def test_muon_mvr_at_gamma_0_is_muon_on_an_average(jit):
    settings = SETTINGS | {"weight_decay": 0.1}
    average = ema(0.9, start="gradient")
    expected = walk(muon(RATE, momentum=average, nesterov=False, **settings), jit)
    for optimizer in (muon_mvr1, muon_mvr2):
        assert_same(walk(optimizer(RATE, gamma=0, momentum=0.9, **settings), jit), expected, jit)


@in_both_ways
def test_mvr_at_gamma_0_is_an_average(jit):
    expected = walk(ema(0.9, start="gradient"), jit, piece=True)
    for piece in (mvr1, mvr2):
        assert_same(walk(piece(0.9, 0.0), jit, piece=True), expected, jit)


def test_mvr2_at_gamma_1_is_storm():
    tx, beta = mvr2(0.9, 1.0), 0.9
    params = [tree(seed) for seed in range(10, 15)]
    state, estimate = tx.init(params[0]), None
    for t, gradient in enumerate([*GRADIENTS, GRADIENTS[0]]):
        grad_fn = second_gradient(gradient)
        now, before = grad_fn(params[t]), grad_fn(params[max(t - 1, 0)])
        estimate = (
            now
            if estimate is None
            else jax.tree.map(lambda g, m, p: g + beta * (m - p), now, estimate, before)
        )
        passed_on, state = tx.update(now, state, params[t], grad_fn=grad_fn)
        # Each of the two rounds four times per step, with numbers up to 10.
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), passed_on, estimate)


@in_both_ways
@pytest.mark.parametrize("nesterov", [False, True])
def test_spectral_sgd_at_p_1_is_momentum_sgd(jit, nesterov):
    settings = {"nesterov": nesterov, "weight_decay": 0.1, "momentum": 0.9}
    actual = walk(spectral_sgd(RATE, p=1.0, matrices=NUMBERS, **settings), jit)
    assert_same(actual, walk(sgdm(RATE, **settings), jit), jit)


@in_both_ways
def test_spectral_adam_at_p_1_is_adamw(jit):
    actual = walk(spectral_adam(RATE, p=1.0, b2=0.99, weight_decay=0.1, matrices=NUMBERS), jit)
    adamw = optax.adamw(RATE, b2=0.99, weight_decay=0.1)
    assert_close(actual, walk(adamw, jit))  # optax compiles its bias correction in any case


@in_both_ways
def test_spectral_sgd_at_p_0_is_muon(jit):
    settings = {"weight_decay": 0.1, "auxiliary": optax.adam(0.01), "matrices": NUMBERS}
    actual = walk(spectral_sgd(RATE, p=0.0, method="jordan", **settings), jit)
    expected = walk(muon(RATE, nesterov=False, orthogonalizer="jordan", **settings), jit)
    assert_same(actual, expected, jit)


@in_both_ways
def test_musgd_at_weights_1_and_0_is_muon(jit):
    settings = SETTINGS | {"auxiliary": optax.sgd(0.01)}
    weights = {"muon_weight": 1.0, "sgd_weight": 0.0, "weight_decay": 0.1}
    actual = walk(musgd(RATE, **weights, **settings), jit)
    assert_same(actual, walk(muon(RATE, **settings), jit), jit)


@in_both_ways
@pytest.mark.parametrize("nesterov", [False, True])
def test_musgd_at_weights_0_and_1_is_momentum_sgd_with_coupled_decay(jit, nesterov):
    sgd = {"sgd_momentum": heavy_ball(0.9, nesterov=nesterov), "weight_decay": 0.1}
    actual = walk(musgd(RATE, muon_weight=0.0, sgd_weight=1.0, **sgd, **SETTINGS), jit)
    expected = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(RATE, 0.9, nesterov))
    assert_same(actual, walk(expected, jit), jit)


def test_musgd_at_weights_0_and_0_does_not_move_matrices():
    actual = walk(musgd(RATE, muon_weight=0, sgd_weight=0, **SETTINGS), jit=False)
    assert_equal(matrices(actual), matrices([PARAMS] * len(GRADIENTS)))


@in_both_ways
@pytest.mark.parametrize("nesterov", [False, True])
def test_heavy_ball_is_optax_trace(jit, nesterov):
    actual = walk(heavy_ball(0.9, nesterov=nesterov), jit, piece=True)
    assert_same(actual, walk(optax.trace(0.9, nesterov=nesterov), jit, piece=True), jit)


def scan(tx, params, steps):
    """The parameters after each of many steps on a fixed sequence of gradients, compiled."""
    gradients = [tree(100 + step) for step in range(steps)]
    gradients = [{name: gradient[name] for name in params} for gradient in gradients]

    def step(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)
    return jax.jit(lambda: jax.lax.scan(step, (params, tx.init(params)), stacked)[1])()


@pytest.mark.parametrize(("gain", "consistent_rms"), [("width", None), ("rms", 0.2)])
def test_muon_with_the_conventions_of_optax_is_optax_contrib_muon(gain, consistent_rms):
    momentum = ema(0.95, debias=True)
    ours = muon(RATE, momentum=momentum, orthogonalizer="jordan", gain=gain, weight_decay=0.1)
    theirs = optax.contrib.muon(RATE, weight_decay=0.1, consistent_rms=consistent_rms)
    params = {name: PARAMS[name] for name in ("wide", "wider")}
    assert_close(scan(ours, params, 20), scan(theirs, params, 20))


SCANNED = Numbers(reduction_axis=1, output_axis=2)
PER_LEAF = {"wide": Numbers(), "wider": None, "scanned": SCANNED, "bias": None}


@pytest.mark.parametrize(
    ("spec", "nested"),
    [
        (PER_LEAF, False),
        (lambda params: jax.tree.map(lambda x: SCANNED if x.ndim == 3 else None, params), False),
        ({"a": SCANNED, "b": {"wide": Numbers(), "wider": Numbers(1, 0)}, "c": None}, True),
    ],
    ids=["tree", "function", "prefix"],
)
def test_dimension_numbers_mean_what_they_mean_to_optax(spec, nested):
    params, gradient = PARAMS, GRADIENTS[0]
    if nested:  # two scanned leaves under one entry, two auxiliary ones under another
        params, gradient = (
            {
                "a": {"one": x["scanned"], "two": -x["scanned"]},
                "b": {"wide": x["wide"], "wider": x["wider"]},
                "c": {"bias": x["bias"], "table": x["wide"]},
            }
            for x in (params, gradient)
        )
    auxiliary = optax.adamw(RATE, nesterov=True, weight_decay=0.0)
    settings = {"orthogonalizer": "jordan", "auxiliary": auxiliary, "matrices": spec}
    ours = muon(RATE, momentum=ema(0.95, debias=True), **settings)
    theirs = optax.contrib.muon(RATE, muon_weight_dimension_numbers=spec)
    actual, _ = ours.update(gradient, ours.init(params), params)
    expected, _ = jax.jit(theirs.update)(gradient, theirs.init(params), params)
    assert_close(actual, expected)
