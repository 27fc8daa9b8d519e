"""Laws of orthogonalization, powers and the gate, on random matrices.

There are few sizes, to compile little; hypothesis draws spectra, scales and seeds.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimuon_jax import fast_newton_schulz, newton_schulz, polar, power, threshold_gate
from mimuon_jax.linalg import measures

SHAPES = [(4, 6), (6, 4), (5, 5)]
ORTHOGONALIZERS = {"newton_schulz": newton_schulz, "fast": fast_newton_schulz, "svd": polar}
JITTED = {name: jax.jit(function) for name, function in ORTHOGONALIZERS.items()}
POWER = jax.jit(power, static_argnames="method")
MEASURES = {name: jax.jit(function) for name, function in measures.MEASURES.items()}

shapes = st.sampled_from(SHAPES)
seeds = st.integers(0, 2**32 - 1)
names = st.sampled_from(list(ORTHOGONALIZERS))
exponents = st.floats(0, 1, width=32)
law = settings(deadline=None, max_examples=40, derandomize=True)


def rotation(random, size):
    """A random orthogonal matrix."""
    return np.linalg.qr(random.standard_normal((size, size)))[0]


def matrix(random, shape, spectrum):
    """A matrix of a prescribed spectrum."""
    middle = np.zeros(shape)
    np.fill_diagonal(middle, spectrum)
    return rotation(random, shape[0]) @ middle @ rotation(random, shape[1])


def well_conditioned(random, shape):
    """Singular values in [0.1, 1]: float32 leaves 1e-5 of any law."""
    return matrix(random, shape, np.geomspace(1, 0.1, min(shape)) * random.uniform(0.9, 1.1))


def f32(x):
    return jnp.asarray(x, jnp.float32)


@law
@given(names, shapes, seeds)
def test_orthogonalization_commutes_with_rotations(name, shape, seed):
    random = np.random.default_rng(seed)
    x, q, r = (
        well_conditioned(random, shape),
        rotation(random, shape[0]),
        rotation(random, shape[1]),
    )
    rotated = JITTED[name](f32(q @ x @ r))
    np.testing.assert_allclose(rotated, q @ np.asarray(JITTED[name](f32(x))) @ r, atol=1e-4)


@law
@given(names, shapes, seeds)
def test_orthogonalization_commutes_with_transposition(name, shape, seed):
    x = f32(well_conditioned(np.random.default_rng(seed), shape))
    np.testing.assert_allclose(JITTED[name](x.T), JITTED[name](x).T, atol=1e-5)


@law
@given(names, shapes, seeds, st.integers(-90, 90))
def test_orthogonalization_does_not_see_the_scale(name, shape, seed, exponent):
    x = f32(well_conditioned(np.random.default_rng(seed), shape))
    scaled = JITTED[name](x * jnp.float32(2.0**exponent))
    np.testing.assert_allclose(scaled, JITTED[name](x), atol=1e-6)


@pytest.mark.slow
@law
@given(names, shapes, seeds)
def test_a_batch_is_its_members_one_by_one(name, shape, seed):
    random = np.random.default_rng(seed)
    batch = f32(np.stack([well_conditioned(random, shape) for _ in range(3)]))
    together = JITTED[name](batch)
    alone = jnp.stack([JITTED[name](x) for x in batch])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@law
@given(shapes, seeds, exponents, st.floats(0.125, 8, width=32))
def test_a_power_is_homogeneous_of_its_degree(shape, seed, p, scale):
    x = f32(well_conditioned(np.random.default_rng(seed), shape))
    np.testing.assert_allclose(POWER(x * scale, p), POWER(x, p) * scale**p, atol=1e-4)


@law
@given(shapes, seeds, exponents, exponents)
def test_powers_compose(shape, seed, p, q):
    x = f32(well_conditioned(np.random.default_rng(seed), shape))
    np.testing.assert_allclose(POWER(POWER(x, p), q), POWER(x, p * q), atol=1e-4)


@law
@given(shapes, seeds, st.floats(0, 4, width=32), st.floats(0, 4, width=32))
def test_a_higher_threshold_opens_for_no_more_matrices(shape, seed, low, high):
    low, high = sorted((low, high))
    random = np.random.default_rng(seed)
    # Root mean square singular values of about 2.4 and 1.2.
    tree = {"w": f32(random.standard_normal(shape)), "v": f32(random.standard_normal(shape) / 2)}
    opened = []
    for threshold in (low, high):
        tx = threshold_gate(optax.identity(), threshold=threshold)
        opened.append(np.array(jax.tree.leaves(tx.update(tree, tx.init(tree))[1].open)))
    assert np.all(opened[0] | ~opened[1])


@law
@given(shapes, seeds, st.lists(st.floats(0.0078125, 8, width=32), min_size=2, max_size=4))
def test_where_the_exact_gate_is_open_every_bounded_one_is(shape, seed, spectrum):
    # Any rank >= 2; a gap below float32's rounding of the largest value cannot be computed.
    x = f32(matrix(np.random.default_rng(seed), shape, [*spectrum, *[0.0] * 5][: min(shape)]))
    exact = float(MEASURES["gap"](x))
    slack = 1 + 1e-5
    bounded = ["spectral", "frobenius"] + (["rms"] if len(spectrum) == min(shape) else [])
    for name in bounded:
        assert float(MEASURES[name](x)) * slack >= exact, name
