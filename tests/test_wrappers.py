"""Lookahead, outer steps and running means: no-ops, definitions, readouts, compiled loops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mimuon_jax import evaluation_params, lookahead_ema, muon, outer_nesterov, track_average
from tests.contract import assert_close
from tests.test_identities import GRADIENTS, PARAMS, RATE, SETTINGS, walk

pytestmark = pytest.mark.standard_promotion

INNER = muon(RATE, weight_decay=0.1, auxiliary=optax.sgd(0.1), **SETTINGS)


def test_without_lookahead_and_with_plain_outer_steps_the_optimizer_is_the_inner_one():
    expected = walk(INNER, jit=True)
    assert_close(walk(lookahead_ema(INNER, scale=0.0), jit=True), expected)
    plain = outer_nesterov(INNER, every=2, outer_rate=1.0, outer_momentum=0.0)
    assert_close(walk(plain, jit=True), expected, rtol=1e-6)


def test_outer_steps_of_single_sgd_steps_are_nesterov_sgd():
    outer = outer_nesterov(optax.sgd(0.1), every=1, outer_rate=0.7, outer_momentum=0.5)
    expected = walk(optax.sgd(0.07, 0.5, nesterov=True), jit=True)
    assert_close(walk(outer, jit=True), expected, rtol=1e-5)


def test_lookahead_follows_its_definition_inside_a_scan():
    """A rewrite with the previous point, which the state does not keep."""
    rate, decay, steps = 0.1, 0.8, 10
    gradient = jax.grad(lambda w: jnp.sum(jnp.cos(w) + 0.3 * w**2))
    scale = lambda t: jnp.where(t < 6, 0.1 * t, 0.2)  # noqa: E731
    tx = lookahead_ema(optax.sgd(rate), decay, scale=scale)

    def step(carry, _):
        w, state = carry
        updates, state = tx.update(gradient(w), state, w)
        w = optax.apply_updates(w, updates)
        return (w, state), (w, evaluation_params(state, w))

    start = jnp.asarray([0.5, -1.0, 2.0])
    _, (ahead, points) = jax.lax.scan(step, (start, tx.init(start)), length=steps)
    w, e = np.array([0.5, -1.0, 2.0]), np.zeros(3)
    for t in range(steps):
        before, b = w, 0.1 * t if t < 6 else 0.2
        p = w + b * e
        w = p - rate * (-np.sin(p) + 0.6 * p)
        e = decay * e + (1 - decay) * (w - before)
        b = 0.1 * (t + 1) if t + 1 < 6 else 0.2
        np.testing.assert_allclose(points[t], w, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(ahead[t], w + b * e, rtol=1e-5, atol=1e-6)


def test_outer_steps_follow_their_definition():
    tx = outer_nesterov(optax.sgd(0.1), every=2, outer_rate=0.7, outer_momentum=0.5)
    params, state = PARAMS, tx.init(PARAMS)
    w = start = np.asarray(PARAMS["wide"], np.float64)
    u = np.zeros_like(w)
    for t, gradient in enumerate(GRADIENTS):
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        w = w - 0.1 * np.asarray(gradient["wide"], np.float64)
        if t % 2 == 1:
            u = 0.5 * u + (start - w)
            w = start = start - 0.7 * (0.5 * u + (start - w))
        np.testing.assert_allclose(params["wide"], w, rtol=1e-5, atol=1e-6)


def test_the_running_mean_starts_late_and_is_mixed_in():
    tx = optax.chain(INNER, track_average(4.0, first_step=1))
    params, state = PARAMS, tx.init(PARAMS)
    w = mean = np.zeros((4, 7))
    for t, gradient in enumerate(GRADIENTS[:3]):
        updates, state = jax.jit(tx.update)(gradient, state, params)
        params = optax.apply_updates(params, updates)
        w = np.asarray(params["wide"], np.float64)
        mean = w if t == 0 else mean + (w - mean) / 4
    readout = evaluation_params(state, params, weight=0.6)
    np.testing.assert_allclose(readout["wide"], 0.4 * w + 0.6 * mean, rtol=1e-5, atol=1e-6)
    assert_close(evaluation_params(state, params, weight=0.0), params)


@pytest.mark.usefixtures("unchecked")
def test_what_is_refused():
    with pytest.raises(ValueError, match="every=0 must be a Python int >= 1"):
        outer_nesterov(INNER, every=0)
    with pytest.raises(ValueError, match="first_step=-1 must be a Python int >= 0"):
        track_average(10.0, first_step=-1)
    twice = optax.chain(track_average(2.0), track_average(3.0))
    with pytest.raises(ValueError, match="the state holds 2 of TailState"):
        evaluation_params(twice.init(PARAMS), PARAMS)
    for tx in (outer_nesterov(INNER), track_average(2.0)):
        with pytest.raises(ValueError, match="needs the parameters"):
            tx.update(GRADIENTS[0], tx.init(PARAMS))
