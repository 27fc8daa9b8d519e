"""Variance reduction pays: MVR2 against Muon on a noisy quadratic, at equal steps."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mimuon_jax import ema, muon, muon_mvr2

pytestmark = pytest.mark.standard_promotion

STEPS, SEEDS = 4000, 5
CURVATURE = jnp.asarray(np.geomspace(1.0, 10.0, 8), jnp.float32)[:, None]
SETTINGS = {"orthogonalizer": "jordan", "gain": None}


def plain(t):
    """Muon with the schedules of its rate ``T^(-1/4)``."""
    momentum = ema(1 - 0.9 * t ** (-1 / 2), start="gradient")
    return muon(2 * t ** (-3 / 4), momentum=momentum, nesterov=False, **SETTINGS)


def reduced(t):
    """Muon-MVR2, as STORM, with the schedules of its rate ``T^(-1/3)``."""
    momentum = 1 - 0.9 * t ** (-2 / 3)
    return muon_mvr2(2 * t ** (-2 / 3), gamma=1.0, momentum=momentum, **SETTINGS)


def gradient_norms(optimizer):
    """Frobenius norm of the exact gradient along the runs ``[seeds, steps]``.

    ``f(W) = sum(h W^2) / 2`` with stochastic gradients ``h W (1 + 0.1 z') + z``, ``z`` and ``z'``
    standard normal: a second gradient of the same sample measures the drift, which MVR2 subtracts.
    """

    def grad_fn(params, noise):
        additive, multiplied = noise
        return {"w": CURVATURE * params["w"] * (1 + 0.1 * multiplied) + additive}

    def one_seed(key):
        params = {"w": jnp.ones((8, 8))}
        state = optimizer(jnp.ones(())).init(params)

        def step(carry, sample):
            (params, state), (key, t) = carry, sample
            noise = jax.random.normal(key, (2, 8, 8))
            updates, state = optimizer(t).update(
                grad_fn(params, noise), state, params, grad_fn=lambda params: grad_fn(params, noise)
            )
            norm = jnp.linalg.norm(CURVATURE * params["w"])
            return (optax.apply_updates(params, updates), state), norm

        samples = jax.random.split(key, STEPS), jnp.arange(1.0, STEPS + 1)
        return jax.lax.scan(step, (params, state), samples)[1]

    return np.asarray(jax.jit(jax.vmap(one_seed))(jax.random.split(jax.random.key(0), SEEDS)))


def slope(norms):
    """Slope of log norm against log step over six octaves, averaged over seeds."""
    edges = [STEPS // 64 * 2**i for i in range(7)]
    octaves = list(itertools.pairwise(edges))
    steps = [np.log(i * j) / 2 for i, j in octaves]
    logs = np.log([norms[:, i:j].mean(axis=1) for i, j in octaves])
    return np.polyfit(steps, logs, 1)[0].mean()


@pytest.mark.slow
def test_mvr2_falls_faster_than_muon():
    muon_norms, mvr2_norms = gradient_norms(plain), gradient_norms(reduced)
    # Seen: -0.245 and -0.363, where the theory has -1/4 and -1/3; seeds differ by 0.02.
    assert slope(mvr2_norms) < slope(muon_norms) - 0.06
    # Seen: 1.36 and 0.38 over the last 500 steps.
    assert mvr2_norms[:, -500:].mean() < 0.5 * muon_norms[:, -500:].mean()
