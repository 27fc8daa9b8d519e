"""Spectral powers as transformations: methods, exponents, fused matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers as Numbers

from mimuon_jax import orthogonalize, power, spectral_adam, spectral_power, spectral_sgd

RANDOM = np.random.default_rng(0)
TREE = {
    "qkv": {"kernel": RANDOM.standard_normal((6, 10)).astype(np.float32)},
    "scanned": RANDOM.standard_normal((2, 10, 6)).astype(np.float32),  # [layers, output, reduction]
    "bias": RANDOM.standard_normal((5,)).astype(np.float32),
}
NUMBERS = {"scanned": Numbers(2, 1)}


def updates_of(tx):
    return jax.jit(tx.update)(TREE, tx.init(TREE))[0]


def powered(x, p):
    """``U S^p V^T`` in float64."""
    u, s, vt = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    return u * s**p @ vt


@pytest.mark.parametrize(("p", "atol"), [(0.5, 0.03), (0.25, 0.08), (0.7, 1e-5)])
def test_the_default_method(p, atol):
    updates = updates_of(spectral_power(p, matrices=NUMBERS))
    np.testing.assert_allclose(
        updates["qkv"]["kernel"], powered(TREE["qkv"]["kernel"], p), atol=atol
    )
    np.testing.assert_array_equal(updates["bias"], TREE["bias"])


def test_power_one_is_the_identity():
    jax.tree.map(
        np.testing.assert_array_equal, updates_of(spectral_power(1.0, matrices=NUMBERS)), TREE
    )


@pytest.mark.parametrize(
    "transformation",
    [
        lambda **settings: orthogonalize("svd", gain="width", **settings),
        lambda **settings: spectral_power(0.5, method="svd", gain="width", **settings),
    ],
    ids=["orthogonalize", "spectral_power"],
)
def test_fused_matrices_are_split_along_the_output_axis(transformation):
    split = {"qkv": (6, 2, 2), "scanned": [5, 5]}
    updates = updates_of(transformation(split=split, matrices=NUMBERS))
    alone = transformation()
    for name, start, stop in (("q", 0, 6), ("k", 6, 8), ("v", 8, 10)):
        part = {name: jnp.asarray(TREE["qkv"]["kernel"][:, start:stop])}
        expected = alone.update(part, alone.init(part))[0][name]
        np.testing.assert_allclose(updates["qkv"]["kernel"][:, start:stop], expected, atol=1e-5)
    halves = {"h": jnp.asarray(TREE["scanned"].reshape(2, 2, 5, 6))}
    expected = transformation(matrices={"h": Numbers(3, 2)})
    expected = expected.update(halves, expected.init(halves))[0]["h"]
    np.testing.assert_allclose(updates["scanned"], expected.reshape(2, 10, 6), atol=1e-5)


def test_only_one_output_axis_can_be_split():
    params = {"query": jnp.ones((4, 3, 2))}
    tx = orthogonalize(split={"query": (3,)}, matrices={"query": Numbers(0, (1, 2))})
    with pytest.raises(ValueError, match=r"output axes \(1, 2\), and only a single one"):
        tx.init(params)


def test_a_function_of_your_own():
    matrix = {"w": jnp.asarray(TREE["qkv"]["kernel"])}
    tx = spectral_power(0.5, method=lambda x, p: power(x, p) + 1)
    expected = power(matrix["w"], 0.5) + 1
    updates, _ = tx.update(matrix, tx.init(matrix))
    np.testing.assert_allclose(updates["w"], expected, rtol=1e-6)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_an_exponent_out_of_range_is_refused(p):
    for factory in (spectral_power, lambda p: spectral_sgd(0.1, p=p)):
        with pytest.raises(ValueError, match=r"must be a Python number in \[0, 1\]"):
            factory(p)


@pytest.mark.usefixtures("unchecked")
def test_a_traced_exponent_shows_the_way_out():
    make = optax.inject_hyperparams(spectral_adam)
    with pytest.raises(ValueError, match="static_args"):
        make(learning_rate=0.1, p=0.5).init(TREE)
    tree = {"w": TREE["qkv"]["kernel"]}
    make = optax.inject_hyperparams(spectral_adam, static_args=("p",))
    tx = make(learning_rate=0.1, p=0.5, method="svd")
    with jax.numpy_dtype_promotion("standard"):  # for the Adam of optax
        tx.update(tree, tx.init(tree), tree)


@pytest.mark.usefixtures("unchecked")
def test_unknown_methods_name_the_alternatives():
    with pytest.raises(ValueError, match=r"unknown for p=0.5; use 'svd', 'coupled_newton'"):
        spectral_power(0.5, method="newton")
    with pytest.raises(ValueError, match="use 'newton_schulz'"):
        spectral_power(0.0, method="newton")
