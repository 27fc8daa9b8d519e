"""Equinox models as parameters: their classes decide, and nothing calls them."""

from collections import namedtuple
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from optax.contrib import MuonDimensionNumbers as Numbers

from mimuon_jax import describe, muon, partition, roles_of
from mimuon_jax.engine.axes import axes_of
from mimuon_jax.transforms.roles import roles

pytestmark = pytest.mark.standard_promotion
eqx = pytest.importorskip("equinox")
KEY = jax.random.key(0)


class Model(eqx.Module):
    """Layers of all kinds, a custom array, and fields that may not be parameters."""

    embedding: Any
    conv: Any
    grouped: Any
    depthwise: Any
    up: Any
    cell: Any
    attention: Any
    norm: Any
    spectral: Any
    lm_head: Any
    value: jax.Array
    query: jax.Array
    activation: object = jax.nn.relu

    def __call__(self, x):
        raise AssertionError("a model among the parameters was called")


@pytest.fixture(scope="module")
def model():
    return Model(
        embedding=eqx.nn.Embedding(9, 4, key=KEY),
        conv=eqx.nn.Conv2d(4, 8, 3, key=KEY),
        grouped=eqx.nn.Conv2d(4, 8, 3, groups=2, key=KEY),
        depthwise=eqx.nn.Conv1d(4, 4, 3, groups=4, key=KEY),
        up=eqx.nn.ConvTranspose2d(4, 8, 3, key=KEY),
        cell=eqx.nn.LSTMCell(3, 5, key=KEY),
        attention=eqx.nn.MultiheadAttention(2, 8, use_query_bias=True, key=KEY),
        norm=eqx.nn.LayerNorm((2, 4)),
        spectral=eqx.nn.WeightNorm(eqx.nn.Linear(3, 5, key=KEY)),
        lm_head=eqx.nn.Linear(4, 9, key=KEY),
        value=jnp.ones((4, 6)),
        query=jnp.ones((4, 6)),
    )


EXPECTED = {
    "embedding/weight": None,
    "conv/weight": ((1, 2, 3), (0,)),
    "conv/bias": None,
    "grouped/weight": None,
    "depthwise/weight": None,
    "up/weight": ((1, 2, 3), (0,)),
    "cell/weight_ih": ((1,), (0,)),
    "cell/weight_hh": ((1,), (0,)),
    "attention/query_proj/weight": ((1,), (0,)),
    "attention/query_proj/bias": None,
    "norm/weight": None,
    "spectral/layer/weight": ((1,), (0,)),
    "lm_head/weight": None,
    "value": ((0,), (1,)),
    "query": ((0,), (1,)),
}


def axes(role):
    """Reduction and output axes, counted from the front."""
    return None if role.numbers is None else axes_of(len(role.shape), role.numbers)[1:]


def test_classes_decide_without_being_asked(model):
    params = eqx.filter(model, eqx.is_inexact_array)
    found = {role.path: axes(role) for role in roles(params)}
    assert {path: found[path] for path in EXPECTED} == EXPECTED
    assert {role.path: axes(role) for role in roles(params, roles_of(model))} == found


def test_a_stack_of_layers_is_a_batch():
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 8, key=key))(jax.random.split(KEY, 3))
    table = describe(eqx.filter(stack, eqx.is_array))
    assert "weight     (3, 8, 4)  3 x [4, 8]  weight of Linear  type" in table
    assert "bias       (3, 8)     auxiliary   bias of Linear    type" in table


Axis = namedtuple("Axis", "name size")


@jax.tree_util.register_pytree_node_class
class NamedArray:
    """As in Haliax: one array, under no name, and the names of its axes."""

    def __init__(self, array, axes):
        self.array, self.axes = array, axes

    def tree_flatten(self):
        return (self.array,), self.axes

    @classmethod
    def tree_unflatten(cls, axes, children):
        return cls(*children, axes)


def of_haliax(name, **fields):
    """An instance of a class that is called as one of Haliax, which needs an older JAX."""
    static = {key: eqx.field(static=True) for key in fields if key in ("In", "Out")}
    kind = type(name, (eqx.Module,), {"__annotations__": dict.fromkeys(fields, Any)} | static)
    kind.__module__ = "haliax.nn"
    return kind(**fields)


def test_layers_of_haliax_are_read_by_the_names_of_their_axes():
    inputs, outputs, layers, rows = (Axis(*x) for x in zip("ioln", (4, 8, 3, 9), strict=True))
    heads = (Axis("h", 2), Axis("d", 5))

    def linear(*axes, of, to):
        weight = NamedArray(jnp.ones([axis.size for axis in axes]), axes)
        return of_haliax("Linear", weight=weight, In=of, Out=to)

    model = {
        "up": linear(inputs, outputs, of=inputs, to=outputs),
        "transposed": linear(outputs, inputs, of=inputs, to=outputs),
        "stack": linear(layers, inputs, outputs, of=inputs, to=outputs),
        "query": linear(*heads, inputs, of=(inputs,), to=heads),
        "embed": of_haliax("Embedding", weight=NamedArray(jnp.ones((9, 4)), (rows, inputs))),
        "lm_head": linear(inputs, rows, of=inputs, to=rows),
    }
    found = {role.path: axes(role) for role in roles(eqx.filter(model, eqx.is_array))}
    assert found == {
        "up/weight": ((0,), (1,)),
        "transposed/weight": ((1,), (0,)),
        "stack/weight": ((1,), (2,)),
        "query/weight": ((2,), (0, 1)),
        "embed/weight": None,
        "lm_head/weight": None,
    }


def test_a_model_of_numbers_is_a_tree_of_numbers(model):
    params = eqx.filter(model, eqx.is_inexact_array)
    numbers = jax.tree.map(lambda x: Numbers(-2, -1) if x.ndim == 4 else None, params)
    given = {role.path: role.numbers for role in roles(params, numbers)}
    assert given["conv/weight"] == Numbers(-2, -1)
    assert given["value"] is None
    partition(optax.identity(), optax.identity(), matrices=numbers).init(params)


def test_an_unfiltered_model_is_one_clear_line(model):
    with pytest.raises(ValueError, match=r"which is not an array.*eqx\.filter"):
        roles(model)


def test_an_optimizer_trains_it(model):
    network = eqx.nn.MLP(2, 1, 8, 2, key=KEY)
    params = eqx.filter(network, eqx.is_inexact_array)
    optimizer = muon(1e-2)
    state = optimizer.init(params)
    gradients = eqx.filter_grad(lambda network: jnp.sum(network(jnp.ones(2)) ** 2))(network)
    updates, _ = jax.jit(optimizer.update)(gradients, state, params)
    # [out, in] = [8, 2]: the gain of width is that of the transposed matrix, 2 -> 8.
    update = updates.layers[0].weight
    assert update.shape == (8, 2)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
