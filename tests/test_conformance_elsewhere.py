"""Every optimizer and building block inside the wrappers of optax, Orbax, Flax and JAX.

They are found as in `test_conformance`, not listed.
"""

import functools
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import P
from jax.sharding import AxisType, NamedSharding
from optax.contrib import MuonDimensionNumbers
from orbax.checkpoint import v1 as ocp

from tests import contract
from tests.contract import GRADIENTS, PARAMS, assert_close, assert_equal, every_factory, make

pytestmark = pytest.mark.standard_promotion


RANDOM_STACK = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32)
# Entries that are nearly zero in the basis are divided by numbers as small.
IN_A_BASIS = {"precondition_kron", "scale_by_soap", "soap", "soap_muon"}


def injected(name, static):
    """A factory's transformation with all numbers in its state, except the static ones."""
    factory = optax.inject_hyperparams(contract.FACTORIES[name], static_args=static)
    return factory(**contract.arguments(name))


NUMBERS = {"learning_rate": 0.5, "threshold": 0.0, "momentum": 0.5, "decay": 0.5}
WITH_NUMBERS = [n for n in contract.FACTORIES if contract.parameters(n) & NUMBERS.keys()]


@contract.mostly_slow(WITH_NUMBERS)
def test_inject_hyperparams(name):
    tx = injected(name, contract.STATIC & contract.parameters(name))
    step, start = jax.jit(functools.partial(contract.update, tx)), tx.init(PARAMS)
    changes = [{}, *({key: NUMBERS[key]} for key in NUMBERS.keys() & start.hyperparams.keys())]
    assert len(changes) > 1
    # Of its second step a decay changes the norm alone, which is restored.
    gradients = GRADIENTS[: 3 if name == "precondition_kron" else 2]
    # The numbers are float32 here: Adam's 1 - 0.999^t loses digits. Observed: 7e-6, in a basis
    # 3e-5.
    rtol = 1e-4 if name in IN_A_BASIS else 2e-5
    unchanged, _ = contract.run_compiled(name, gradients)
    for setting in changes:
        changed = start.hyperparams | jax.tree.map(jnp.float32, setting)
        with contract.compilations() as found:
            state = start._replace(hyperparams=changed)
            actual, _ = contract.run(step, state, gradients, PARAMS)
        assert not (setting and found), "a number that changes must not compile the step again"
        expected, _ = contract.run_eagerly(make(name, **setting), gradients)
        assert_close(actual, expected, rtol=rtol)
        with pytest.raises(AssertionError) if setting else nullcontext():
            assert_close(actual, unchanged, rtol=rtol)


@contract.mostly_slow(n for n in contract.OPTIMIZERS if "matrices" in contract.parameters(n))
def test_a_loop_of_steps_over_a_stack_whose_layers_are_sharded(name):
    mesh = jax.make_mesh(
        (2,), ("stage",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2]
    )
    with jax.set_mesh(mesh):
        stack = jax.device_put(RANDOM_STACK, NamedSharding(mesh, P("stage")))
        params = {"stack": stack, "bias": jnp.ones(3)}
        tx = make(name, matrices={"stack": MuonDimensionNumbers(1, 2)})

        def step(carry, _):
            updates, state = contract.update(tx, params, carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), None

        start = params, jax.jit(tx.init)(params)
        (moved, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=2))(start)
    assert (moved["stack"] != stack).any((1, 2)).all()


STATIC_ARGUMENTS = [
    (name, argument)
    for name in contract.FACTORIES
    for argument in sorted(contract.STATIC & contract.parameters(name))
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("name", "argument"), STATIC_ARGUMENTS)
def test_what_cannot_be_injected_says_so(name, argument):
    tx = injected(name, contract.STATIC & contract.parameters(name) - {argument})
    with pytest.raises(ValueError, match=rf'pass static_args=\("{argument}",\)'):
        jax.eval_shape(tx.init, PARAMS)


@contract.mostly_slow(contract.FACTORIES)
def test_multi_steps_is_a_step_of_the_mean(name):
    tx = optax.MultiSteps(make(name), every_k_schedule=2)
    step = jax.jit(functools.partial(contract.update, tx))
    accumulated, _ = contract.run(step, tx.init(PARAMS), GRADIENTS[:4], PARAMS)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(accumulated[::2]))
    means = [jax.tree.map(lambda a, b: (a + b) / 2, *GRADIENTS[i : i + 2]) for i in (0, 2)]
    expected, _ = contract.run_compiled(name, means)
    # Small singular values are differences of numbers as large as the limit of a clip.
    loose = name == "clip_spectrum" or name in IN_A_BASIS
    assert_close(accumulated[1::2], expected, rtol=1e-4 if loose else None)


@contract.mostly_slow(contract.FACTORIES)
def test_masked(name):
    mask = jax.tree.map(lambda _: True, PARAMS) | {"wide": False}
    masked, _ = contract.run_eagerly(optax.masked(make(name), mask), GRADIENTS[:3])
    whole, _ = contract.run_compiled(name, GRADIENTS[:3])
    passed = [u | {"wide": g["wide"]} for u, g in zip(whole, GRADIENTS[:3], strict=True)]
    assert_close(masked, passed)


@pytest.fixture(scope="module")
def saved_and_loaded(tmp_path_factory):
    """The states of some transformations after two steps, and as Orbax restores them."""

    @functools.cache
    def states(slow):
        names = [name for name in contract.FACTORIES if (name in contract.SLOW) == slow]
        saved = {name: contract.run_compiled(name, GRADIENTS[:2])[1] for name in names}
        path = tmp_path_factory.mktemp("orbax") / "states"
        ocp.save(path, saved)
        like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)  # noqa: E731
        return saved, ocp.load(path, jax.tree.map(like, saved))

    return states


@contract.mostly_slow(contract.FACTORIES)
def test_the_state_survives_orbax(name, saved_and_loaded):
    saved, loaded = (states[name] for states in saved_and_loaded(name in contract.SLOW))
    assert_equal(loaded, saved)
    _, step = contract.compiled(name)
    assert_equal(step(GRADIENTS[2], loaded, PARAMS), step(GRADIENTS[2], saved, PARAMS))


class Block(nnx.Module):
    """The inner dict of the tree as a module."""

    def __init__(self, block):
        self.tall, self.bias = nnx.Param(block["tall"]), nnx.Param(block["bias"])


class Model(nnx.Module):
    """The tree as a module."""

    def __init__(self, params):
        self.wide, self.temperature = nnx.Param(params["wide"]), nnx.Param(params["temperature"])
        self.block = Block(params["block"])


@every_factory
def test_nnx_optimizer(name):
    tx = optax.with_extra_args_support(make(name))
    model = Model(PARAMS)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    form = jax.tree.structure(nnx.state(model, nnx.Param))
    expected, state = PARAMS, tx.init(PARAMS)
    for gradient in GRADIENTS[:2]:
        gradients = form.unflatten(jax.tree.leaves(gradient))
        optimizer.update(model, gradients, **contract.EXTRA)
        updates, state = contract.update(tx, gradient, state, expected)
        expected = optax.apply_updates(expected, updates)
    assert_close(jax.tree.leaves(nnx.state(model, nnx.Param)), jax.tree.leaves(expected))


@contract.mostly_slow(contract.FACTORIES)
def test_vmap_over_seeds(name):
    tx = make(name)
    seeds = [GRADIENTS[:2], GRADIENTS[2:4]]
    stack = functools.partial(jax.tree.map, lambda *leaves: jnp.stack(leaves))
    step, params = jax.vmap(functools.partial(contract.update, tx)), stack(PARAMS, PARAMS)
    gradients = [stack(*pair) for pair in zip(*seeds, strict=True)]
    together, _ = contract.run(step, jax.vmap(tx.init)(params), gradients, params)
    alone = [contract.run_compiled(name, own)[0] for own in seeds]
    assert_close(together, stack(*alone))


def loss(params):
    """Whose gradient is `contract.grad_fn`."""
    return sum(jnp.square(w / 2 + 0.1).sum() for w in jax.tree.leaves(params))


@contract.mostly_slow(contract.FACTORIES)
def test_derivative_through_a_step_with_a_checkpointed_loss(name):
    tx = optax.with_extra_args_support(make(name))

    def after_a_step(params):
        gradient = jax.grad(jax.checkpoint(loss))
        updates, _ = contract.update(
            tx, gradient(params), tx.init(params), params, grad_fn=gradient
        )
        return loss(optax.apply_updates(params, updates))

    after = jax.jit(jax.value_and_grad(after_a_step))
    _, derivative = after(PARAMS)
    direction, small = GRADIENTS[0], 2e-3
    ahead, behind = (
        after(jax.tree.map(lambda w, d: w + sign * small * d, PARAMS, direction))[0]  # noqa: B023
        for sign in (1, -1)
    )
    along = sum(map(jnp.vdot, jax.tree.leaves(derivative), jax.tree.leaves(direction)))
    np.testing.assert_allclose(along, (ahead - behind) / (2 * small), rtol=0.01)
