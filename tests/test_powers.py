"""Spectral powers against the float64 SVD, and the laws of powers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimuon_jax.linalg.powers import polar, power
from tests import spectra

# Two stacks of well-conditioned matrices, s from 1 to 0.05: float32 keeps U V^T to 1e-5 there.
STACK = np.stack(
    [spectra.with_singular_values(np.geomspace(1, 0.05, 12), 20, seed) for seed in range(6)]
).reshape(2, 3, 12, 20).astype(np.float32)  # fmt: skip


def exact(x: np.ndarray, p: float) -> np.ndarray:
    flat = x.reshape(-1, *x.shape[-2:])
    return np.stack([spectra.spectral_power(matrix, p) for matrix in flat]).reshape(x.shape)


def relative(y: jax.Array, expected: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(y, np.float64) - expected) / np.linalg.norm(expected))


def test_polar_is_the_svds():
    assert relative(polar(jnp.asarray(STACK)), exact(STACK, 0.0)) < 1e-5


@pytest.mark.parametrize("p", [0.0, 0.25, 0.5, 0.8, 1.0])
def test_power_is_the_svds(p):
    assert relative(power(jnp.asarray(STACK), p), exact(STACK, p)) < 1e-5
    traced = jax.jit(power)(jnp.asarray(STACK), jnp.float32(p))
    assert relative(traced, exact(STACK, p)) < 1e-5


def test_the_ends_are_exact():
    x = jnp.asarray(STACK)
    chex.assert_trees_all_equal(power(x, 1), x)
    chex.assert_trees_all_equal(power(x, 0), polar(x))


@pytest.mark.parametrize("function", [polar, lambda x: power(x, 0.5)], ids=["polar", "root"])
def test_transposes_and_batches_commute(function):
    x = jnp.asarray(STACK)
    y = function(x)
    chex.assert_trees_all_close(function(x.mT).mT, y, atol=1e-5)
    chex.assert_trees_all_close(jax.vmap(jax.vmap(function))(x), y, atol=1e-5)
    chex.assert_trees_all_close(function(x[1, 2]), y[1, 2], atol=1e-5)
    for dtype in (jnp.bfloat16, jnp.float16):
        assert function(x.astype(dtype)).dtype == dtype


def test_powers_compose_and_scale():
    x = jnp.asarray(STACK)
    chex.assert_trees_all_close(power(power(x, 0.5), 0.5), power(x, 0.25), atol=1e-5)
    for scale in (1e-30, 1e30):
        scaled = power(jnp.asarray(STACK * np.float32(scale)), 0.5) / np.float32(scale**0.5)
        chex.assert_trees_all_close(scaled, power(x, 0.5), atol=1e-5)


def test_rank_deficient_and_zero_matrices():
    low = spectra.with_singular_values(np.array([3.0, 2.0, 1.0] + [0.0] * 9), 20, 0)
    x = np.stack([low, np.zeros((12, 20))]).astype(np.float32)
    low = x[0]
    s = jnp.linalg.svd(polar(jnp.asarray(x)), compute_uv=False)
    np.testing.assert_allclose(s[0], [1.0] * 3 + [0.0] * 9, atol=1e-5)
    for p in (0.0, 0.5):
        y = power(jnp.asarray(x), p)
        chex.assert_trees_all_equal(y[1], jnp.zeros((12, 20)))
        assert relative(y[0], spectra.spectral_power(low, p, tolerance=1e-6)) < 1e-5


def test_not_a_number_is_not_hidden():
    assert bool(jnp.isnan(polar(jnp.full((3, 4), jnp.nan))).all())


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_exponents_outside_the_interval_are_refused(p):
    with pytest.raises(ValueError, match=f"p={p} is outside"):
        power(jnp.eye(3), p)


@pytest.mark.usefixtures("unchecked")
def test_methods_are_names_or_functions():
    x = jnp.asarray(STACK)
    chex.assert_trees_all_equal(power(x, 0.5, method=lambda x, p: jnp.asarray(p * x)), 0.5 * x)
    with pytest.raises(
        ValueError, match="method='svdd' is unknown; use 'svd', 'coupled_newton' or"
    ):
        power(x, 0.5, method="svdd")
