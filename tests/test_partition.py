"""One transformation for matrices, another for auxiliary parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers as Numbers

from mimuon_jax import diagnostics, mvr1, orthogonalize, partition, scale_by_shampoo, threshold_gate
from tests.contract import assert_close

PARAMS = {"embed": jnp.ones((9, 4)), "up": jnp.ones((4, 8)), "bias": jnp.ones(8), "absent": None}


def test_each_side_sees_its_own_leaves_alone():
    seen = {}

    def spy(name):
        def update(updates, state, params=None, **extra):
            seen[name] = (jax.tree.leaves(updates), jax.tree.leaves(params), extra)
            return updates, state

        return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)

    tx = partition(spy("matrices"), spy("auxiliary"))
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=3.0)
    assert [x.shape for x in seen["matrices"][0]] == [(4, 8)]
    assert [x.shape for x in seen["auxiliary"][0]] == [(8,), (9, 4)]
    assert [x.shape for x in seen["auxiliary"][1]] == [(8,), (9, 4)]
    assert seen["matrices"][2] == seen["auxiliary"][2] == {"value": 3.0}
    assert jax.tree.structure(updates) == jax.tree.structure(PARAMS)


def test_it_equals_optax_partition():
    ours = partition(optax.sgd(0.1, momentum=0.9), optax.adam(0.01))
    labels = {"embed": "b", "up": "a", "bias": "b", "absent": None}
    theirs = optax.partition({"a": optax.sgd(0.1, momentum=0.9), "b": optax.adam(0.01)}, labels)
    one, two = ours.init(PARAMS), theirs.init(PARAMS)
    for _ in range(3):
        with jax.numpy_dtype_promotion("standard"):  # for the Adam of optax
            mine, one = ours.update(PARAMS, one, PARAMS)
            yours, two = theirs.update(PARAMS, two, PARAMS)
        assert_close(mine, yours)


def test_params_may_be_left_out():
    tx = partition(optax.scale(2.0), optax.scale(3.0))
    updates, _ = tx.update(PARAMS, tx.init(PARAMS))
    assert float(updates["up"][0, 0]) == 2
    assert float(updates["bias"][0]) == 3


def test_errors_come_at_init():
    tx = partition(optax.identity(), optax.identity(), matrices={"uq": Numbers(0, 1)})
    with pytest.raises(ValueError, match="'uq', which is not a parameter"):
        tx.init(PARAMS)
    with pytest.raises(ValueError, match="parameter 'experts' of shape"):
        partition(optax.identity(), optax.identity()).init({"experts": jnp.ones((2, 3, 4))})


def test_its_dimension_numbers_reach_the_transformations_inside():
    params = {"w": jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 6)), jnp.float32)}
    numbers = {"w": Numbers(2, 1)}  # [batch, output, reduction]: the default rule would refuse it

    def pieces(**matrices):
        gate = threshold_gate(
            orthogonalize("svd", gain="spectral", **matrices), threshold=1.0, **matrices
        )
        return optax.chain(mvr1(0.9, clip=0.5, **matrices), gate, scale_by_shampoo(**matrices))

    given_once = partition(pieces(), optax.identity(), matrices=numbers)
    repeated = partition(pieces(matrices=numbers), optax.identity(), matrices=numbers)
    one, two = given_once.init(params), repeated.init(params)
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for _ in range(2):
        mine, one = given_once.update(params, one, params)
        yours, two = repeated.update(params, two, params)
        jax.tree.map(np.testing.assert_array_equal, mine, yours)


def test_a_function_decides_once_for_all_transformations():
    calls = []

    def matrices(params):
        calls.append(params)
        return {"up": Numbers(1, 2) if params["embed"].shape == (9, 4) else Numbers(0, 2)}

    params = {"embed": jnp.ones((9, 4)), "up": jnp.ones((3, 4, 8))}
    gated = threshold_gate(orthogonalize("svd"), threshold=1.0)
    tx = partition(gated, optax.identity(), matrices=matrices)
    state = tx.init(params)
    calls.clear()
    _, state = tx.update(params, state, params)
    (gate,) = diagnostics.gates(state)
    assert gate.open["up"].shape == (3,)
    assert not calls


def test_a_transformation_outside_decides_by_itself():
    params = {"w": jnp.ones((2, 3, 6))}
    partition(orthogonalize(), optax.identity(), matrices={"w": Numbers(2, 1)}).init(params)
    with pytest.raises(ValueError, match="parameter 'w'"):
        orthogonalize().init(params)
