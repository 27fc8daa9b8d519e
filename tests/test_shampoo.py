"""Shampoo beyond its oracle: grafting, scales, numbers out of range."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mimuon_jax import shampoo

pytestmark = pytest.mark.standard_promotion

GRADIENT = {"w": jnp.asarray(np.random.default_rng(0).standard_normal((4, 6)), jnp.float32)}


def steps(tx, scale=1.0, count=3):
    tree = jax.tree.map(lambda x: x * jnp.float32(scale), GRADIENT)
    state = tx.init(tree)
    update = jax.jit(tx.update)
    for _ in range(count - 1):
        _, state = update(tree, state)
    return update(tree, state)[0]["w"]


@pytest.mark.parametrize("grafting", [optax.identity(), optax.scale_by_adam()])
def test_grafting_lends_its_norm_and_nothing_else(grafting):
    plain, grafted = steps(shampoo(1.0)), steps(shampoo(1.0, grafting=grafting))
    lent = steps(grafting)
    np.testing.assert_allclose(jnp.linalg.norm(grafted), jnp.linalg.norm(lent), rtol=1e-5)
    np.testing.assert_allclose(
        grafted / jnp.linalg.norm(grafted), plain / jnp.linalg.norm(plain), atol=1e-6
    )


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_the_first_updates_do_not_depend_on_the_scale(scale):
    np.testing.assert_allclose(steps(shampoo(1.0), scale), steps(shampoo(1.0)), rtol=1e-3)


def test_zero_stays_zero():
    np.testing.assert_array_equal(steps(shampoo(1.0), 0.0), 0.0)


@pytest.mark.parametrize("max_dim", [4, 3])
def test_a_side_that_is_not_preconditioned_has_no_state(max_dim):
    state = shampoo(1.0, max_dim=max_dim).init(GRADIENT)
    sizes = sorted(x.size for x in jax.tree.leaves(state) if x.ndim == 3)
    # Not an array without entries: Orbax cannot save one.
    assert sizes == {4: [1, 16, 16], 3: [1]}[max_dim]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"max_dim": 0}, "max_dim=0 must be a Python int >= 1"),
        ({"update_every": 0}, "update_every=0"),
        ({"damping": 0.0}, "damping=0.0"),
    ],
)
def test_bad_numbers_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        shampoo(0.1, **settings)
