"""The second gradient of MVR2: computed once per step, for all parameters, wherever needed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mimuon_jax import mvr1, mvr2, partition

pytestmark = pytest.mark.standard_promotion

PARAMS = {"kernel": jnp.eye(3), "bias": jnp.ones(3)}
AUXILIARY = {"adam": lambda: optax.adam(0.1), "mvr2": lambda: mvr2(0.9, 1.0)}


class Counted:
    """A gradient that counts how often it is computed at run time, and where."""

    def __init__(self):
        self.calls = []

    def __call__(self, params):
        jax.debug.callback(lambda w: self.calls.append(float(w)), params["kernel"][0, 0])
        return jax.tree.map(lambda w: 2 * w, params)

    def count(self):
        jax.effects_barrier()
        return len(self.calls)


@pytest.mark.parametrize("auxiliary", AUXILIARY)
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_one_extra_gradient_per_step(auxiliary, jit):
    tx = partition(mvr2(0.9, 1.0), AUXILIARY[auxiliary]())
    grad_fn = Counted()

    def step(params, state):
        gradients = jax.tree.map(lambda w: 2 * w, params)
        updates, state = tx.update(gradients, state, params, grad_fn=grad_fn)
        return jax.tree.map(lambda w, u: w - 0.1 * u, params, updates), state

    step = jax.jit(step) if jit else step
    params, state = PARAMS, tx.init(PARAMS)
    visited = []
    for _ in range(3):
        visited.append(float(params["kernel"][0, 0]))
        params, state = step(params, state)
    assert grad_fn.count() == 3
    # At the previous parameters: the first step's are the initial ones.
    np.testing.assert_allclose(grad_fn.calls, [visited[0], *visited[:-1]])


def test_accumulated_batches_are_one_step():
    plain = partition(mvr2(0.5, 1.0), optax.adam(0.1))
    several = optax.MultiSteps(plain, 2)
    grad_fn = jax.grad(lambda p: (p["kernel"] ** 3).sum() * p["bias"].sum())
    one, two, params = plain.init(PARAMS), several.init(PARAMS), PARAMS
    update = jax.jit(lambda g, s, p: several.update(g, s, p, grad_fn=grad_fn))
    for _ in range(3):
        gradients = grad_fn(params)
        expected, one = plain.update(gradients, one, params, grad_fn=grad_fn)
        for share in (0.5, 1.5):
            updates, two = update(jax.tree.map(lambda g, s=share: s * g, gradients), two, params)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), updates, expected)
        params = optax.apply_updates(params, jax.tree.map(lambda u: -0.01 * u, expected))


def test_both_sides_see_their_own_part_of_it():
    tx = partition(mvr2(0.5, 1.0), mvr2(0.5, 1.0))
    whole = mvr2(0.5, 1.0)
    grad_fn = jax.grad(lambda p: (p["kernel"] ** 3).sum() * p["bias"].sum())
    one, two, params = tx.init(PARAMS), whole.init(PARAMS), PARAMS
    for _ in range(3):
        gradients = grad_fn(params)
        mine, one = tx.update(gradients, one, params, grad_fn=grad_fn)
        all_at_once, two = whole.update(gradients, two, params, grad_fn=grad_fn)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), mine, all_at_once)
        params = jax.tree.map(lambda w, u: w - 0.01 * u, params, mine)


def test_missing_arguments_are_errors():
    tx = mvr2(0.9)
    with pytest.raises(ValueError, match="grad_fn=lambda params"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="or use mvr1"):
        tx.update(PARAMS, tx.init(PARAMS), grad_fn=lambda params: params)


@pytest.mark.parametrize("factory", [mvr1, mvr2])
@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"decay": 1.0}, "decay=1.0"),
        ({"decay": 0.9, "gamma": -0.1}, "gamma=-0.1"),
        ({"decay": 0.9, "gamma": float("nan")}, "gamma=nan"),
        ({"decay": 0.9, "clip": 0.0}, "clip=0.0"),
    ],
)
def test_numbers_out_of_range_are_refused(factory, settings, match):
    with pytest.raises(ValueError, match=match):
        factory(**settings)
