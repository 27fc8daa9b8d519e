"""The measures against float64 singular values, and the order between them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimuon_jax.linalg.measures import MEASURES, frobenius, gap, rms, spectral_norm
from tests import spectra

# (m, n, matrices): 1,000 in all, each of a random rank, in one batch per shape.
DRAWS = [(3, 3, 250), (4, 9, 250), (12, 7, 250), (16, 16, 250)]


def drawn(m: int, n: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Matrices of every rank from 2 to full, spectra over up to four decades, and their ranks."""
    generator = np.random.default_rng(m * n)
    k = min(m, n)
    ranks = generator.integers(2, k + 1, size=count)
    matrices = []
    for seed, rank in enumerate(ranks):
        s = np.zeros(k)
        s[:rank] = np.sort(10.0 ** generator.uniform(-generator.uniform(0, 4), 0, rank))[::-1]
        wide = spectra.with_singular_values(s, max(m, n), seed)
        matrices.append(wide if m <= n else wide.T)
    return np.stack(matrices).astype(np.float32), ranks


@pytest.mark.parametrize(("m", "n", "count"), DRAWS)
def test_every_bound_is_at_least_the_gap(m, n, count):
    x, ranks = drawn(m, n, count)
    smallest = np.asarray(gap(jnp.asarray(x)))
    assert np.isfinite(smallest).all()
    # Slack: 8 ulps, the rounding of s_1 in the SVD (observed: only needed for ties).
    least = smallest * (1 - 8 * np.finfo(np.float32).eps)
    assert (np.asarray(frobenius(jnp.asarray(x))) >= least).all()
    assert (np.asarray(spectral_norm(jnp.asarray(x))) >= least).all()
    full = ranks == min(m, n)
    assert full.sum() > 10
    assert (np.asarray(rms(jnp.asarray(x)))[full] >= least[full]).all()


def test_the_rms_bound_needs_three_singular_values():
    x = jnp.diag(jnp.array([1.0, 0.1]))
    assert float(rms(x)) < float(gap(x))


@pytest.mark.parametrize(("m", "n", "count"), DRAWS[1:3])
def test_gap_is_exact(m, n, count):
    x, ranks = drawn(m, n, count)
    s = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    exact = [-np.diff(row[:rank]).max() for row, rank in zip(s, ranks, strict=True)]
    # s_1 <= 1: the error of a singular value is eps s_1 times a small number. Observed: 3e-7.
    np.testing.assert_allclose(gap(jnp.asarray(x)), exact, atol=2e-6)


def test_gap_counts_repeated_values_and_forgets_zeros():
    diagonals = jnp.array(
        [[5.0, 2.0, 2.0, 1.0], [5.0, 3.0, 0.0, 0.0], [5.0, 0, 0, 0], [0, 0, 0, 0]]
    )
    gaps = gap(jax.vmap(jnp.diag)(diagonals))
    np.testing.assert_allclose(gaps, [0.0, 2.0, np.inf, np.inf], atol=1e-6)


@pytest.mark.parametrize("name", MEASURES)
def test_measures_are_homogeneous_from_1e_minus_30_to_1e30(name):
    x, _ = drawn(*DRAWS[1])
    unit = np.asarray(MEASURES[name](jnp.asarray(x[:8])), np.float64)
    for scale in (1e-30, 1e30):
        scaled = np.asarray(MEASURES[name](jnp.asarray(x[:8] * np.float32(scale))), np.float64)
        np.testing.assert_allclose(scaled, unit * scale, atol=2e-6 * scale)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_measures_give_one_float32_per_matrix(name, dtype):
    measure = MEASURES[name]
    x = jnp.asarray(drawn(*DRAWS[1])[0][:6]).reshape(2, 3, 4, 9).astype(dtype)
    value = measure(x)
    chex.assert_shape(value, (2, 3))
    assert value.dtype == jnp.float32
    # Singular values are exact to s_1 eps, not to their own; s_1 <= 1 here. Observed: 4e-7.
    chex.assert_trees_all_close(jax.jit(measure)(x), value, atol=2e-6)
    chex.assert_trees_all_close(jax.vmap(jax.vmap(measure))(x), value, atol=2e-6)
    chex.assert_trees_all_close(measure(x.mT), value, atol=2e-6)
    chex.assert_trees_all_close(measure(x[1, 2]), value[1, 2], atol=2e-6)


@pytest.mark.parametrize("name", MEASURES)
def test_measures_of_nothing(name):
    expected = np.inf if name == "gap" else 0.0
    assert float(MEASURES[name](jnp.zeros((3, 5)))) == expected
    assert float(MEASURES[name](jnp.zeros((0, 5)))) == expected
    assert np.isnan(float(MEASURES[name](jnp.full((3, 5), jnp.nan))))


def test_frobenius_and_rms_are_numpys():
    x, _ = drawn(*DRAWS[2])
    exact = np.linalg.norm(x.astype(np.float64), axis=(-2, -1))
    np.testing.assert_allclose(frobenius(jnp.asarray(x)), exact, rtol=1e-6)
    np.testing.assert_allclose(rms(jnp.asarray(x)), exact / np.sqrt(7), rtol=1e-6)


def test_spectral_norm_approaches_numpys_from_below():
    x, _ = drawn(*DRAWS[3])
    exact = np.linalg.norm(x.astype(np.float64), ord=2, axis=(-2, -1))
    # Observed at 20: 0.044, from two singular values that differ by 4 %.
    for iterations, bar in ((20, 0.06), (200, 0.006)):
        value = np.asarray(spectral_norm(jnp.asarray(x), iterations=iterations))
        assert (value <= exact * (1 + 1e-6)).all()
        assert (value >= exact * (1 - bar)).all()


def test_spectral_norm_needs_an_iteration():
    with pytest.raises(ValueError, match="iterations=0 is below 1"):
        spectral_norm(jnp.eye(3), iterations=0)
