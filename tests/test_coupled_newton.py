"""Coupled Newton against the float64 SVD, and the combinations that it refuses."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimuon_jax.linalg import symmetric
from mimuon_jax.linalg.coupled_newton import _LEAST_DAMPING, coupled_newton
from mimuon_jax.linalg.powers import power
from tests import spectra

STACK = np.stack(
    [spectra.with_singular_values(np.geomspace(1, 0.05, 12), 20, seed) for seed in range(6)]
).reshape(2, 3, 12, 20).astype(np.float32)  # fmt: skip


@pytest.mark.slow
def test_it_is_a_method_of_power():
    x = jnp.asarray(STACK)
    y = power(x, 0.5, method="coupled_newton")
    chex.assert_trees_all_equal(y, coupled_newton(x, 0.5))
    # Damping 1e-8 and the second run's 6 steps; entries are about 0.1. Observed: 2e-4.
    chex.assert_trees_all_close(y, power(x, 0.5), atol=1e-3)


@pytest.mark.slow
def test_laws():
    x = jnp.asarray(STACK).at[1, 1].set(0.0)
    root = functools.partial(coupled_newton, p=0.5)
    y = root(x)
    chex.assert_trees_all_equal(y[1, 1], jnp.zeros((12, 20)))
    chex.assert_trees_all_close(root(x.mT).mT, y, atol=0, rtol=0)
    chex.assert_trees_all_close(jax.jit(jax.vmap(root))(x), y, atol=1e-5)
    chex.assert_trees_all_close(root(x[0, 2]), y[0, 2], atol=1e-5)
    chex.assert_trees_all_close(root(root(x)), coupled_newton(x, 0.25), atol=1e-5)
    for scale in (1e-30, 1e30):
        scaled = root(x * np.float32(scale)) / np.float32(scale**0.5)
        chex.assert_trees_all_close(scaled, y, atol=1e-5)
    for dtype in (jnp.bfloat16, jnp.float16):
        assert root(x.astype(dtype)).dtype == dtype


@pytest.mark.slow
def test_blocks_change_nothing(monkeypatch):
    monkeypatch.setattr(symmetric, "SMALLEST", 1)
    y = coupled_newton(jnp.asarray(STACK[0]), 0.5)
    chex.assert_trees_all_close(y, power(jnp.asarray(STACK[0]), 0.5), atol=1e-3)


@pytest.mark.parametrize(("p", "bar"), [(0.5, 0.025), (0.25, 0.08)])
def test_error_on_real_momenta(p, bar):
    # Observed: 0.0096 and 0.031, on the least well conditioned matrix.
    momenta = spectra.momenta()
    stack = jnp.asarray(spectra.stacked(momenta))
    y = np.asarray(jax.jit(coupled_newton, static_argnums=1)(stack, p))
    errors = [spectra.power_error(*pair, p) for pair in zip(y, momenta.values(), strict=True)]
    assert len(errors) == 8
    assert max(errors) < bar, dict(zip(momenta, errors, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("p", "damping", "dtype", "bar"),
    [
        # Observed, worst first: 0.021, 0.17; 0.16; 0.24.
        (0.5, 1e-8, None, 0.03),
        (0.25, 1e-8, None, 0.2),
        (0.5, 5e-4, jnp.float16, 0.25),
        (0.5, 4e-3, jnp.bfloat16, 0.35),
    ],
)
def test_error_on_synthetic_spectra(p, damping, dtype, bar):
    matrices = spectra.synthetic(64)
    x = spectra.stacked(matrices)
    root = functools.partial(coupled_newton, p=p, damping=damping, dtype=dtype)
    y = np.asarray(jax.jit(root)(jnp.asarray(x)))
    results = dict(zip(matrices, y, strict=True))
    assert (results.pop("zero") == 0).all()
    errors = {name: spectra.power_error(y, matrices[name], p) for name, y in results.items()}
    assert max(errors.values()) < bar, errors


@pytest.mark.parametrize("p", [0.5, 0.25])
@pytest.mark.parametrize(
    "dtype",
    [jnp.float16, *(pytest.param(d, marks=pytest.mark.slow) for d in (jnp.float32, jnp.bfloat16))],
)
def test_the_least_damping_keeps_small_ill_conditioned_matrices_finite(p, dtype):
    """Few rows are hardest: the Gram matrix has large entries with large rounding errors."""
    s = np.arange(1, 9) ** -4.0
    x = np.stack([spectra.with_singular_values(s, 8, seed) for seed in range(40)])
    x = np.concatenate([x, [np.ones((8, 8))]]).astype(np.float32)
    damping = _LEAST_DAMPING[jnp.dtype(dtype)]
    root = functools.partial(coupled_newton, p=p, damping=damping, dtype=dtype)
    y = jax.jit(root)(jnp.asarray(x))
    chex.assert_tree_all_finite(y)
    largest = np.linalg.norm(np.asarray(y), ord=2, axis=(-2, -1))
    exact = np.linalg.norm(x, ord=2, axis=(-2, -1)) ** p
    # Observed: at most 1.03 times the exact one.
    assert (largest < 1.1 * exact).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": jnp.bfloat16}, r"dtype=bfloat16 diverges at damping=1e-08.*at least 0.004"),
        ({"dtype": jnp.float16}, r"dtype=float16 diverges at damping=1e-08.*at least 0.0005"),
        ({"steps": (10, 6)}, r"steps=\(10, 6\) diverges at damping=1e-08.*at least 1e-06"),
        ({"damping": -1.0}, r"damping=-1.0 is not a finite number"),
        ({"damping": float("nan")}, r"damping=nan is not a finite number"),
        ({"steps": (8, 0)}, r"steps=0 is not an integer of at least 1"),
    ],
)
def test_diverging_combinations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        coupled_newton(jnp.ones((3, 5)), 0.5, **options)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_other_powers_are_refused(p):
    with pytest.raises(ValueError, match=f"p={p} must be 0.5 or 0.25"):
        coupled_newton(jnp.ones((3, 5)), p)


def test_a_traced_power_is_refused():
    with pytest.raises(ValueError, match="and not traced"):
        jax.jit(coupled_newton)(jnp.ones((3, 5)), 0.5)
