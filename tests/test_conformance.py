"""What a user of optax expects of every optimizer and building block in `mimuon_jax.__all__`.

They are found by their annotated return type, and `contract` builds them, so a new one is tested as
soon as it is public. This file tests dtypes, compilations, forms of trees and kinds of gradients.
"""

import functools
import inspect
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict
from jaxtyping import AbstractArray

import mimuon_jax
from tests import contract
from tests.contract import (
    GRADIENTS,
    PARAMS,
    assert_close,
    assert_equal,
    every_factory,
    every_factory_by_default,
    make,
)

pytestmark = pytest.mark.standard_promotion


def test_every_public_name_is_annotated():
    # `by_path` and `roles_of` return values for `matrices`; `equivariant` is a decorator; the last
    # two return parameters.
    others = contract.FACTORIES.keys() | {
        "by_path",
        "roles_of",
        "equivariant",
        "evaluation_params",
        "clip_qk",
    }
    for name in set(mimuon_jax.__all__) - others:
        value = getattr(mimuon_jax, name)
        if inspect.isroutine(value):
            returned = inspect.signature(value, eval_str=True).return_annotation
            known = isinstance(returned, type) and issubclass(
                returned, str | mimuon_jax.Schedule | AbstractArray
            )
            assert known, f"{name} returns {returned}: is it an optimizer?"
        else:
            assert isinstance(value, types.ModuleType | mimuon_jax.Schedule | type | dict)


def test_optimizers_take_a_learning_rate_and_then_keywords_alone():
    assert len(contract.OPTIMIZERS) >= 9
    for name in contract.OPTIMIZERS:
        first, *rest = inspect.signature(contract.FACTORIES[name]).parameters.values()
        assert first.name == "learning_rate"
        assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in rest)


WITH_ADAM = {"spectral_adam", "from_optax_muon"}


@every_factory_by_default
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtypes_are_kept_and_never_promoted(name, dtype):
    chosen = {"weight_decay": 0.1, "auxiliary": optax.sgd(0.1)}  # the default, Adam, promotes
    settings = {key: chosen[key] for key in chosen.keys() & contract.parameters(name)}
    tx, params = make(name, **settings), contract.like(PARAMS, dtype)
    with jax.numpy_dtype_promotion("standard" if name in WITH_ADAM else "strict"):
        state = jax.eval_shape(tx.init, params)
        step = functools.partial(contract.update, tx)
        updates, after = jax.eval_shape(step, params, state, params)
    # `repr` has the weak types too: a change of one would compile the second step again.
    assert jax.tree.map(repr, updates) == jax.tree.map(repr, jax.eval_shape(lambda x: x, params))
    assert jax.tree.map(repr, after) == jax.tree.map(repr, state)


@contract.mostly_slow(contract.FACTORIES)
def test_bfloat16_is_float32_rounded(name):
    tx, rounded = make(name), contract.like(GRADIENTS[:3], jnp.bfloat16)
    params = contract.like(PARAMS, jnp.bfloat16)
    actual, _ = contract.run_eagerly(tx, rounded, params)
    wide = contract.like(rounded, jnp.float32), contract.like(params, jnp.float32)
    expected, _ = contract.run_eagerly(tx, *wide)
    assert_close(contract.like(actual, jnp.float32), expected, rtol=0.02)  # observed: 0.0095


WITH_ACCUMULATOR = [n for n in contract.FACTORIES if "accumulator_dtype" in contract.parameters(n)]


@pytest.mark.parametrize("name", WITH_ACCUMULATOR)
def test_state_in_float32_for_bfloat16(name):
    params = contract.like(PARAMS, jnp.bfloat16)
    tx = make(name, accumulator_dtype=jnp.float32)
    updates, state = contract.update(tx, params, tx.init(params), params)
    assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}
    state = getattr(state, "inner", state)  # mvr2 keeps the previous parameters next to it
    wide = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype for x in wide} == {jnp.dtype(jnp.float32)}


def test_compilations_are_counted():
    with contract.compilations() as found:
        jax.jit(lambda x: x + 12345)(jnp.ones(3)).block_until_ready()
    assert found


@every_factory
def test_a_step_compiles_once_and_jit_equals_eager(name):
    init, step = contract.compiled(name)
    (first,), state = contract.run(step, init(PARAMS), GRADIENTS[:1], PARAMS)
    with contract.compilations() as found:
        others, state = contract.run(step, state, GRADIENTS[1:4], PARAMS)
    assert not found
    assert_close(([first, *others], state), contract.run_eagerly(make(name), GRADIENTS[:4]))


@contract.mostly_slow(contract.FACTORIES)
def test_outside_jit_a_step_compiles_once(name):
    tx = make(name)
    _, state = contract.run_eagerly(tx, GRADIENTS[:2])
    with contract.compilations() as found:
        contract.run(functools.partial(contract.update, tx), state, GRADIENTS[2:], PARAMS)
    assert not found


@every_factory
def test_trees_of_every_form(name):
    tx = make(name)
    step = lambda tree: contract.update(tx, tree, tx.init(tree), tree)[0]  # noqa: E731
    whole = step(PARAMS)
    assert step({}) == {}
    assert_close(step(PARAMS | {"absent": None}), whole | {"absent": None})
    assert_close(jax.tree.leaves(step(FrozenDict(PARAMS))), jax.tree.leaves(whole))
    assert isinstance(step(FrozenDict(PARAMS)), FrozenDict)
    vectors = {"block": {"bias": PARAMS["block"]["bias"]}, "temperature": PARAMS["temperature"]}
    assert_close(jax.tree.leaves(step(vectors)), jax.tree.leaves(whole)[::2])
    assert_close(step(PARAMS["wide"]), whole["wide"])


@pytest.mark.usefixtures("unchecked")  # the types say jax.Array
@every_factory
def test_numpy_arrays(name):
    tx = make(name)
    numpy = jax.tree.map(np.asarray, PARAMS)
    actual = contract.update(tx, numpy, tx.init(numpy), numpy)
    assert_equal(actual, contract.update(tx, PARAMS, tx.init(PARAMS), PARAMS))


@contract.every_optimizer
def test_schedules(name):
    rates = (0.5, 0.25, 0.0)
    tx = make(name, learning_rate=lambda step: jnp.asarray(rates)[step])
    scheduled, _ = contract.run_eagerly(tx, GRADIENTS[:3])
    for i, rate in enumerate(rates):
        tx = make(name, learning_rate=rate)
        constant, _ = contract.run_eagerly(tx, GRADIENTS[: i + 1])
        assert_close(scheduled[i], constant[i])


@every_factory
def test_zero_gradients_do_not_move_matrices(name):
    # MVR2's second gradient is zero as well at these parameters.
    params = jax.tree.map(lambda x: jnp.full_like(x, -0.2), PARAMS)
    assert not any(np.any(x) for x in jax.tree.leaves(contract.grad_fn(params)))
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, state = contract.run_compiled(name, [zeros] * 3, params)
    assert contract.finite((updates, state))
    decays = name in {"add_cautious_decay", "scion", "qk_clip", "muonclip"}
    assert decays == any(np.any(x) for x in contract.matrices(updates))


# Squares overflow above 1e19: the updates of a second moment are zero from then on. What ends on a
# sphere of radius 4 does not move by less than its rounding.
VANISHING = {("spectral_adam", 1e20), ("normalize_units", 1e20)}
VANISHING |= {(name, scale) for name in ("retract", "pin_radius") for scale in (1e-20, 1e-10)}
WAITING = {"scale_by_soap", "soap"}  # their first update is zero


@every_factory
def test_rank_deficient_gradients(name):
    one = jax.tree.map(jnp.ones_like, PARAMS)
    rows = jax.tree.map(lambda x: x.at[0].set(0) if x.ndim else x, GRADIENTS[0])
    for gradients in ([one] * 3, [rows] * 3, [one, rows, one]):
        updates, state = contract.run_compiled(name, gradients)
        assert contract.finite((updates, state))
        assert all(np.any(x) for x in contract.matrices(updates[name in WAITING :]))


@every_factory
@pytest.mark.parametrize("scale", [1e-20, 1e-10, 1e10, 1e20])
def test_huge_and_tiny_gradients(name, scale):
    gradients = jax.tree.map(lambda x: x * jnp.float32(scale), GRADIENTS[:3])
    updates, _ = contract.run_compiled(name, gradients)
    assert contract.finite(updates)
    if (name, scale) not in VANISHING:
        assert all(np.any(x) for x in contract.matrices(updates[name in WAITING :]))
