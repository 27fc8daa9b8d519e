"""Roles of parameters: their cache, names in every container, and views as matrices."""

import dataclasses

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict
from hypothesis import given, settings
from hypothesis import strategies as st
from optax.contrib import MuonDimensionNumbers as Numbers

from mimuon_jax.engine.axes import from_matrices, matrix_shape, to_matrices
from mimuon_jax.transforms import roles as module
from mimuon_jax.transforms.roles import roles

PARAMS = {"embed": jnp.ones((9, 4)), "up": jnp.ones((3, 4, 8)), "bias": jnp.ones(8)}


@settings(deadline=None, max_examples=15, derandomize=True)
@given(st.permutations([0, 1, 2, 3]), st.integers(1, 2), st.integers(1, 2))
def test_views_round_trip(axes, reductions, outputs):
    shape = (2, 3, 4, 5)
    numbers = Numbers(tuple(axes[:reductions]), tuple(axes[reductions : reductions + outputs]))
    x = np.arange(120.0, dtype=np.float32).reshape(shape)
    view = to_matrices(jnp.asarray(x), numbers)
    assert view.shape[1:] == matrix_shape(shape, numbers)
    np.testing.assert_array_equal(from_matrices(view, shape, numbers), x)


def test_a_convolution_is_one_matrix_of_patches():
    kernel = np.arange(3 * 3 * 4 * 8, dtype=np.float32).reshape(3, 3, 4, 8)
    view = to_matrices(jnp.asarray(kernel), Numbers((0, 1, 2), 3))
    np.testing.assert_array_equal(view, kernel.reshape(1, 36, 8))


def test_names_are_the_same_for_every_container():
    class Block(nnx.Module):
        def __init__(self):
            self.up = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
            self.norm = nnx.RMSNorm(8, rngs=nnx.Rngs(0))

    state = nnx.state(Block(), nnx.Param)
    expected = [("norm/scale", "vector"), ("up/bias", "vector"), ("up/kernel", "matrix")]
    for tree in (state, nnx.to_pure_dict(state), FrozenDict(nnx.to_pure_dict(state))):
        assert [(role.path, role.why) for role in roles(tree)] == expected


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Attention:
    """Arrays as attributes, as in a module of the user's own."""

    key: jax.Array
    value: jax.Array


def test_an_attribute_called_value_is_a_name_beside_others():
    params = Attention(jnp.ones((4, 8)), jnp.ones((4, 8)))
    assert [role.path for role in roles({"attn": params})] == ["attn/key", "attn/value"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Array:
    """A wrapper of one array, as in Haliax and Qwix."""

    array: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Quantized:
    """Integers and their scales."""

    qvalue: jax.Array
    scale: jax.Array


def test_boxes_are_not_names():
    params = {
        "embedding": {"weight": Array(jnp.ones((9, 4)))},
        "head": {"kernel": Array(Quantized(jnp.ones((4, 9)), jnp.ones((1, 9))))},
        "up": {"kernel": Array(jnp.ones((4, 8)))},
    }
    found = {role.path: role.why for role in roles(params)}
    assert found["embedding/weight"] == "names an embedding"
    assert found["head/kernel"] == "names an output head"
    assert found["up/kernel"] == "matrix"


def test_a_quantized_parameter_of_an_nnx_state_goes_by_its_own_name():
    weight = nnx.Param(jnp.ones((4, 9)))
    params = nnx.State({"lm_head": {"kernel": {"array": {"qvalue": weight, "scale": weight}}}})
    found = [(role.path, role.why) for role in roles(params)]
    assert found[0] == ("lm_head/kernel", "names an output head")
    assert found[1] == ("lm_head/kernel/array/scale", "names a gain")


def test_a_leaf_that_is_not_an_array_is_one_clear_line():
    with pytest.raises(ValueError, match=r"'relu'.*which is not an array"):
        roles({"w": jnp.ones((2, 2)), "activation": "relu"})


def test_linen_parameters():
    model = flax.linen.Sequential([flax.linen.Embed(9, 4), flax.linen.Dense(8)])
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1,), jnp.int32))["params"]
    assert [role.why for role in roles(params)] == ["names an embedding", "vector", "matrix"]


def masked(tree: dict, *names: str) -> dict:
    """The tree with some of its leaves masked, as one side of `partition` sees it."""
    return tree | dict.fromkeys(names, optax.MaskedNode())


def test_a_function_is_called_once_per_structure_and_shapes():
    calls = []

    def matrices(params):
        calls.append(params)
        return {"up": Numbers(1, 2) if params["embed"].shape == (9, 4) else Numbers(0, 2)}

    whole = roles(PARAMS, matrices)
    assert roles(jax.tree.map(jnp.copy, PARAMS), matrices) == whole
    assert len(calls) == 1
    other = roles(PARAMS | {"embed": jnp.ones((8, 4))}, matrices)
    assert [role.numbers for role in other] == [None, None, Numbers(0, 2)]
    assert len(calls) == 2


def test_a_function_that_fails_is_called_again():
    answers = [{"up": Numbers(0, 3)}, {"up": Numbers(1, 2)}]
    matrices = lambda params: answers.pop(0)  # noqa: E731
    with pytest.raises(ValueError, match="does not fit"):
        roles(PARAMS, matrices)
    assert roles(PARAMS, matrices)[2].numbers == Numbers(1, 2)


def test_a_changed_tree_of_numbers_is_read_again():
    numbers = {"up": Numbers(1, 2)}
    assert roles(PARAMS, numbers)[2].numbers == Numbers(1, 2)
    numbers["up"] = Numbers(0, 2)
    assert roles(PARAMS, numbers)[2].numbers == Numbers(0, 2)
    roles(PARAMS, numbers).clear()  # the caller's own list
    assert len(roles(PARAMS, numbers)) == 3


def test_memory_of_roles_is_bounded():
    for size in range(2, 400):
        roles({"w": jax.ShapeDtypeStruct((size, 2), jnp.float32)})
    assert len(module._DECIDED) <= module._REMEMBERED
