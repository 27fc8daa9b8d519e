"""Runs an optax transformation and compares it with an oracle."""

from collections.abc import Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.oracles.rules import Tree


def nested(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a/b": x}` as `{"a": {"b": x}}`, the form in which Flax keeps parameters."""
    result: dict[str, Any] = {}
    for path, leaf in tree.items():
        *folders, name = path.split("/")
        folder = result
        for part in folders:
            folder = folder.setdefault(part, {})
        folder[name] = leaf
    return result


def on_device(tree: Tree) -> dict[str, Any]:
    """A flat float64 tree as nested float32 JAX arrays."""
    return nested({path: jnp.asarray(leaf, jnp.float32) for path, leaf in tree.items()})


def flat(tree: Any) -> Tree:
    """The inverse of `on_device`, still at float32 precision."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf, np.float64)
        for path, leaf in leaves
    }


def run(
    transformation: optax.GradientTransformation, params: Tree, gradients: Sequence[Tree]
) -> list[Tree]:
    """The parameters after each jitted step, in float32."""

    @jax.jit
    def step(weights: Any, state: Any, gradient: Any) -> tuple[Any, Any]:
        updates, state = transformation.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state

    weights = on_device(params)
    state = transformation.init(weights)
    trees = []
    for gradient in gradients:
        weights, state = step(weights, state, on_device(gradient))
        trees.append(flat(weights))
    return trees


def assert_agreement(actual: Sequence[Tree], expected: Sequence[Tree], rtol: float = 1e-5) -> None:
    """Checks every leaf after every step: largest error <= `rtol` times largest magnitude."""
    assert len(actual) == len(expected)
    errors = {
        f"{path} after step {step}": np.abs(a[path] - e[path]).max() / np.abs(e[path]).max()
        for step, (a, e) in enumerate(zip(actual, expected, strict=True))
        for path in a.keys() | e.keys()
    }
    failures = {place: float(error) for place, error in errors.items() if not error <= rtol}
    assert not failures, f"relative errors above {rtol}: {failures}"


def assert_close(actual: Any, expected: Any) -> None:
    """Compares float64 arrays that may differ by the order of a few additions."""
    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-12)


def assert_trees_close(actual: Any, expected: Any) -> None:
    """Compares float64 trees that may differ by the order of a few additions."""
    chex.assert_trees_all_close(actual, expected, rtol=1e-11, atol=1e-12)
