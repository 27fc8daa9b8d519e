"""The orthogonalizing transformation: batches, gains, names."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers as Numbers

from mimuon_jax import JORDAN, newton_schulz, orthogonalize
from mimuon_jax.transforms.orthogonalize import ORTHOGONALIZERS

RANDOM = np.random.default_rng(0)
TREE = {
    "a": RANDOM.standard_normal((4, 6)).astype(np.float32),
    "c": RANDOM.standard_normal((6, 4)).astype(np.float32),
    "conv": {"kernel": RANDOM.standard_normal((3, 3, 2, 5)).astype(np.float32)},
    "scanned": RANDOM.standard_normal((3, 4, 6)).astype(np.float32),
    "bias": RANDOM.standard_normal((5,)).astype(np.float32),
}
NUMBERS = {"scanned": Numbers(1, 2)}


def polar(x):
    """``U V^T`` in float64."""
    u, _, vt = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    return u @ vt


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_every_matrix_against_the_svd(jit):
    tx = orthogonalize("svd", matrices=NUMBERS)
    update = jax.jit(tx.update) if jit else tx.update
    updates, _ = update(TREE, tx.init(TREE))
    np.testing.assert_allclose(updates["a"], polar(TREE["a"]), atol=1e-5)
    np.testing.assert_allclose(updates["c"], polar(TREE["c"]), atol=1e-5)
    np.testing.assert_allclose(updates["scanned"], polar(TREE["scanned"]), atol=1e-5)
    patches = polar(TREE["conv"]["kernel"].reshape(18, 5)).reshape(3, 3, 2, 5)
    np.testing.assert_allclose(updates["conv"]["kernel"], patches, atol=1e-5)
    np.testing.assert_array_equal(updates["bias"], TREE["bias"])


def test_equal_shapes_are_one_call():
    shapes = []

    def spy(x):
        shapes.append(x.shape)
        return x

    tx = orthogonalize(spy, matrices=NUMBERS)
    jax.eval_shape(tx.update, TREE, tx.init(TREE))
    # A user's function gets [reduction, output] without padding: "a" with the scanned ones.
    assert sorted(shapes) == [(1, 6, 4), (1, 18, 5), (4, 4, 6)]


@pytest.mark.parametrize("name", ORTHOGONALIZERS)
def test_the_transformation_applies_its_function(name):
    matrix = {"w": jnp.asarray(TREE["a"])}
    tx = orthogonalize(name)
    updates, _ = tx.update(matrix, tx.init(matrix))
    error = np.abs(np.linalg.svd(updates["w"], compute_uv=False) - 1).max()
    bound = {"jordan": 0.53, "dion": 0.53, "svd": 1e-5}.get(name, 0.006)
    assert error < bound
    # Names are not aliases of each other: the less accurate ones have larger errors.
    assert error > bound / 100 or name == "svd"


def test_a_function_may_be_given():
    matrix = {"w": jnp.asarray(TREE["a"])}
    ours, named = (
        orthogonalize(functools.partial(newton_schulz, schedule=JORDAN)),
        orthogonalize("jordan"),
    )
    one, _ = ours.update(matrix, ours.init(matrix))
    two, _ = named.update(matrix, named.init(matrix))
    np.testing.assert_allclose(one["w"], two["w"], atol=1e-6)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_name_names_the_alternatives():
    with pytest.raises(ValueError, match="'polar' is unknown; use 'newton_schulz'"):
        orthogonalize("polar")


def test_matrices_that_are_not_active_are_skipped():
    calls = []

    def counted(x):
        jax.debug.callback(lambda: calls.append(x.shape[0]))
        return 2 * x

    tx = orthogonalize(counted, matrices=NUMBERS)
    update = jax.jit(lambda tree, active: tx.update(tree, optax.EmptyState(), active=active)[0])
    matrices = {name: jnp.asarray(TREE[name]) for name in ("c", "scanned")}
    off, on = jnp.zeros(3, bool), jnp.array([False, True, False])
    for b, scanned, expected in (
        (False, off, []),
        (True, off, [1]),
        (False, on, [3]),
        (True, on, [1, 3]),
    ):
        calls.clear()
        updates = jax.block_until_ready(update(matrices, {"c": jnp.array(b), "scanned": scanned}))
        jax.effects_barrier()
        assert sorted(calls) == expected
        if b:
            np.testing.assert_array_equal(updates["c"], 2 * TREE["c"])
        if scanned is on:
            np.testing.assert_array_equal(updates["scanned"][1], 2 * TREE["scanned"][1])
