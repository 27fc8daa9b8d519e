"""Optax's conventions: gains as numbers, masks of decay, dtypes of state, optax's own arguments."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict

from mimuon_jax import ema, muon, newton_schulz, polar_express, scale_by_gain
from tests import contract
from tests.contract import GRADIENTS, PARAMS

pytestmark = pytest.mark.standard_promotion  # Adam, in optax, promotes dtypes implicitly

WITH_GAIN = [n for n in contract.OPTIMIZERS if "gain" in contract.parameters(n)]
#: Optimizers whose default auxiliary transformation is AdamW, and those whose gain may be AdamW's.
WITH_ADAMW = [n for n in contract.OPTIMIZERS if "auxiliary_weight_decay" in contract.parameters(n)]
WITH_RATES = [n for n in WITH_ADAMW if n in WITH_GAIN and n != "polargrad"]  # not scaled by a norm


def first_update(name, **settings):
    """The first update of an optimizer on the suite's tree, whose heads MuonClip does not clip."""
    if "tau" in contract.parameters(name):
        settings["tau"] = math.inf
    return contract.run_eagerly(contract.make(name, **settings), GRADIENTS[:1])[0][0]


def test_a_number_as_gain_is_the_rms_of_an_update():
    tree = {"w": jnp.eye(4, 9)}  # orthogonal: RMS 1 / 3
    tx = scale_by_gain(0.5)
    updates, _ = tx.update(tree, tx.init(tree))
    assert math.isclose(np.linalg.norm(np.asarray(updates["w"])) / 6, 0.5, rel_tol=1e-6)
    named = scale_by_gain("rms")
    expected, _ = named.update(tree, named.init(tree))
    actual, _ = scale_by_gain(0.2).update(tree, tx.init(tree))
    contract.assert_equal(actual, expected)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("gain", [0, -0.2, math.nan, math.inf, True, jnp.ones(())])
def test_a_gain_that_is_not_a_positive_number_is_refused(gain):
    with pytest.raises(ValueError, match="a positive Python number, which is the RMS"):
        scale_by_gain(gain)


@pytest.mark.parametrize("name", contract.marked(WITH_RATES))
@pytest.mark.parametrize(
    ("gain", "ratio"), [("rms", 1.0), (0.3, 1.0), ("width", 0.015), (None, 0.015)]
)
def test_with_a_gain_that_keeps_rates_of_adamw_the_auxiliary_rate_is_the_learning_rate(
    name, gain, ratio
):
    for rate in (3e-4, lambda count: 3e-4 / (1 + count)):
        bias = first_update(name, learning_rate=rate, gain=gain)["block"]["bias"]
        np.testing.assert_allclose(abs(bias), ratio * 3e-4, rtol=1e-4)  # Adam's first update


@pytest.mark.parametrize("name", contract.marked(WITH_GAIN))
def test_every_optimizer_with_a_gain_takes_a_number(name):
    settings = {"p": 0.0} if "p" in contract.parameters(name) else {}
    named = first_update(name, gain="rms", **settings)
    contract.assert_equal(first_update(name, gain=0.2, **settings), named)


WITH_MASK = [n for n in contract.OPTIMIZERS if "weight_decay_mask" in contract.parameters(n)]
MASK = {"wide": True, "block": {"tall": False, "bias": False}, "temperature": False}


@pytest.mark.parametrize("name", contract.marked(WITH_MASK))
def test_what_the_mask_leaves_out_does_not_decay(name):
    chosen = {"weight_decay": 0.5}
    none, all_, tree, function = (
        first_update(name, **settings)
        for settings in (
            {"weight_decay": 0.0},
            chosen,
            chosen | {"weight_decay_mask": MASK},
            chosen | {"weight_decay_mask": lambda params: jax.tree.map(masked, params)},
        )
    )
    expected = none | {"wide": all_["wide"]}
    contract.assert_close(tree, expected)
    contract.assert_close(function, expected)
    assert not np.allclose(none["wide"], all_["wide"])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            {"wide": True, "blok": False},
            "has an entry for 'blok', which is not a parameter; .*block/",
        ),
        ({"wide": True, "block": {"bias": False}}, "has no entry for parameter 'block/tall'"),
        (MASK | {"wide": {"kernel": True}}, "has an entry for 'wide/kernel', which is not a param"),
        (MASK | {"wide": 0.1}, "holds 0.1 at 'wide'; give True or False"),
        (lambda params: {"wide": True}, "has no entry for parameter"),
        ([True, False], "has an entry for '0', which is not a parameter"),
    ],
)
@pytest.mark.parametrize("name", ["muon", "sgdm"])
def test_a_mask_that_does_not_fit_names_the_path(name, mask, message):
    tx = contract.make(name, weight_decay=0.5, weight_decay_mask=mask)
    with pytest.raises(ValueError, match=f"^weight_decay_mask {message}"):
        tx.init(PARAMS)


def test_a_mask_may_be_a_prefix_or_look_up_names_and_its_containers_may_differ():
    settings = {"weight_decay": 0.5, "weight_decay_mask": MASK}
    expected = first_update("sgdm", **settings)
    prefix = MASK | {"block": False}
    by_name = lambda params: prefix | {"wide": params["block"]["tall"].ndim < 3}  # noqa: E731
    for mask in (prefix, by_name):
        tx = contract.make("sgdm", **settings | {"weight_decay_mask": mask})
        frozen = [FrozenDict(tree) for tree in (GRADIENTS[0], PARAMS)]
        update = contract.update(tx, frozen[0], tx.init(frozen[1]), frozen[1])[0]
        contract.assert_equal(update.unfreeze(), expected)
    tx = muon(0.1, weight_decay=0.5, weight_decay_mask=by_name)
    tx.init(PARAMS)


def masked(leaf):
    """`MASK` by shape."""
    return leaf.shape == PARAMS["wide"].shape


@pytest.mark.parametrize("name", contract.marked(WITH_ADAMW))
def test_decay_of_the_default_auxiliary_is_that_of_adamw(name):
    update = first_update(name, auxiliary_learning_rate=0.1, auxiliary_weight_decay=0.5)
    plain = first_update(name, auxiliary_learning_rate=0.1)
    bias = PARAMS["block"]["bias"]
    np.testing.assert_allclose(
        update["block"]["bias"], plain["block"]["bias"] - 0.05 * bias, rtol=1e-5, atol=1e-7
    )
    contract.assert_equal(update["wide"], plain["wide"])
    with pytest.raises(ValueError, match=r"auxiliary_weight_decay=0.5 is for the default"):
        contract.make(name, auxiliary=optax.sgd(0.1), auxiliary_weight_decay=0.5)


WITH_STATE_DTYPE = [n for n in contract.OPTIMIZERS if "state_dtype" in contract.parameters(n)]


@pytest.mark.parametrize("name", contract.marked(WITH_STATE_DTYPE))
def test_momentum_of_another_dtype(name):
    tx, whole = contract.make(name, state_dtype=jnp.bfloat16), contract.make(name)
    updates, state = contract.run_eagerly(tx, GRADIENTS[:3])
    expected, _ = contract.run_eagerly(whole, GRADIENTS[:3])
    found = optax.tree.get_all_with_path(state, "mu")
    dtypes = {x.dtype for _, mu in found for x in jax.tree.leaves(mu) if x.ndim == 2}
    assert dtypes == {jnp.dtype(jnp.bfloat16)}
    contract.assert_close(updates, expected, rtol=0.05)


@pytest.mark.parametrize(
    "name", sorted(set(WITH_STATE_DTYPE) - {"dion2", "muon_mvr1", "muon_mvr2", "spectral_adam"})
)
def test_a_momentum_that_is_a_transformation_has_its_own_dtype(name):
    with pytest.raises(ValueError, match=r"state_dtype.* needs a number as momentum"):
        contract.make(name, momentum=ema(0.9), state_dtype=jnp.bfloat16)


@pytest.mark.parametrize(
    "name",
    contract.marked(
        [n for n in contract.OPTIMIZERS if "orthogonalizer" in contract.parameters(n)],
        slow=set(contract.OPTIMIZERS) - {"muon"},
    ),
)
def test_polar_express_by_name_and_by_number_of_steps(name):
    steps = functools.partial(newton_schulz, schedule=polar_express(6))
    named, given, default = (
        first_update(name, orthogonalizer=orthogonalizer)
        for orthogonalizer in ("polar_express", steps, "newton_schulz")
    )
    contract.assert_equal(named, default)
    contract.assert_equal(given, default)
