"""Models whose parameters carry sharding annotations, and the tools that map over their state."""

import functools
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests import contract

# optax.inject_hyperparams and Adam mix dtypes.
pytestmark = pytest.mark.standard_promotion
X = jnp.asarray(np.random.default_rng(0).standard_normal((8, 4)), jnp.float32)


def meshes():
    return [
        pytest.param(
            devices,
            kind,
            id=f"{kind.name}-{devices}",
            marks=[pytest.mark.slow] * (devices == 1 or kind == AxisType.Explicit),
        )
        for kind in (AxisType.Auto, AxisType.Explicit)
        for devices in (1, 2)
    ]


class Net(nnx.Module):
    """Two annotated matrices and a bias."""

    def __init__(self, rngs: nnx.Rngs):
        kernel = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "fsdp"))
        self.up = nnx.Linear(4, 6, kernel_init=kernel, rngs=rngs)
        self.down = nnx.Linear(6, 2, kernel_init=kernel, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return self.down(nnx.relu(self.up(x)))


@pytest.mark.parametrize(("devices", "kind"), meshes())
@contract.mostly_slow(contract.OPTIMIZERS)
def test_an_annotated_nnx_model_trains(name, devices, kind):
    mesh = jax.make_mesh((devices,), ("fsdp",), (kind,))
    with jax.set_mesh(mesh):
        model = Net(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, contract.make(name), wrt=nnx.Param)
        state = nnx.state(optimizer)
        specs = nnx.get_partition_spec(state)
        is_box = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
        boxes = (jax.tree.leaves(tree, is_leaf=is_box) for tree in (specs, state))
        for spec, box in zip(*boxes, strict=True):
            value = box.get_value()
            assert isinstance(value, optax.MaskedNode) or len(spec.get_value()) <= value.ndim

        def loss(model):
            return jnp.mean(model(X) ** 2)

        @nnx.jit
        def step(model, optimizer):
            before, gradients = nnx.value_and_grad(loss)(model)
            extra = contract.EXTRA | {"grad_fn": lambda params: gradients}
            optimizer.update(model, gradients, **extra)
            return before, loss(model)

        before, after = step(model, optimizer)
        assert float(after) != float(before)


class Dense(nn.Module):
    """The same in linen, with boxed parameters."""

    @nn.compact
    def __call__(self, x):
        kernel = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "fsdp"))
        x = nn.relu(nn.Dense(6, kernel_init=kernel)(x))
        return nn.Dense(2, kernel_init=kernel, use_bias=False)(x)


@pytest.mark.parametrize(("devices", "kind"), meshes())
@contract.mostly_slow(contract.OPTIMIZERS)
def test_an_annotated_linen_model_trains(name, devices, kind):
    mesh = jax.make_mesh((devices,), ("fsdp",), (kind,))
    tx, model = optax.with_extra_args_support(contract.make(name)), Dense()

    def init():
        params = model.init(jax.random.key(0), X)
        return params, tx.init(params)

    # What a linen user does: shapes, their specs, then one jitted init with these as out_shardings.
    # On Explicit axes only outside `jax.set_mesh`: within it, linen's own init fails.
    specs = nn.get_partition_spec(jax.eval_shape(init))
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P)
    )
    params, state = jax.jit(init, out_shardings=shardings)()

    def loss(params):
        return jnp.mean(jnp.asarray(model.apply(params, X)) ** 2)

    # The specs say that arrays without names are replicated. A statistic of each row (NorMuon) is
    # sharded as the row from the first step on, so its first buffer could not be used again.
    donated = (0, 1) if kind == AxisType.Auto else (0,)

    @functools.partial(jax.jit, donate_argnums=donated)
    def step(params, state):
        grad_fn = jax.grad(loss)
        extra = contract.EXTRA | {"grad_fn": grad_fn}
        updates, state = tx.update(grad_fn(params), state, params, **extra)
        return optax.apply_updates(params, updates), state

    with jax.set_mesh(mesh) if kind == AxisType.Explicit else nullcontext():
        kernel = params["params"]["Dense_0"]["kernel"].value
        assert kernel.sharding.spec == P(None, "fsdp")
        before = float(jax.jit(loss)(params))
        params, state = step(params, state)
        after = float(jax.jit(loss)(params))
        assert params["params"]["Dense_0"]["kernel"].value.sharding.is_equivalent_to(
            NamedSharding(mesh, P(None, "fsdp")), 2
        )
    assert after < before


@contract.every_factory
def test_tree_map_params_finds_the_parameters_alone(name):
    tx = contract.make(name)
    params = contract.PARAMS
    state = tx.init(params)
    is_mask = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
    marked = optax.tree_map_params(
        tx,
        lambda x, p: x if is_mask(x) else ("parameter", x.shape == p.shape),
        state,
        params,
        transform_non_params=lambda x: jax.tree.map(lambda _: ("other", True), x),
        is_leaf=is_mask,
    )
    is_mark = lambda x: isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], str)  # noqa: E731
    marks = jax.tree.leaves(marked, is_leaf=is_mark)
    assert len(marks) == len(jax.tree.leaves(state))
    assert all(fits for _, fits in marks)


@contract.every_factory
def test_a_fresh_state_can_be_donated(name):
    state = contract.make(name).init(contract.PARAMS)
    leaves = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state) if x.size]
    assert len(set(leaves)) == len(leaves)
