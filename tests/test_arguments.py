"""Numbers as arguments: every optimizer and building block refuses what makes no sense, by name."""

import functools
import inspect
import math
import typing

import jax
import jax.numpy as jnp
import optax
import pytest

from mimuon_jax import mimuon
from tests import contract

pytestmark = [pytest.mark.standard_promotion, pytest.mark.usefixtures("unchecked")]


signature = functools.partial(inspect.signature, eval_str=True)


def numbers(name):
    """The arguments of a factory that may be floats, and whether they may be traced."""
    found = {}
    for key, parameter in signature(contract.FACTORIES[name]).parameters.items():
        kinds = typing.get_args(parameter.annotation) or (parameter.annotation,)
        if float in kinds:
            found[key] = jax.Array in kinds and optax.Schedule not in kinds
    return found


ARGUMENTS = [(name, key) for name in contract.FACTORIES for key in numbers(name)]
SCHEDULED = [
    (name, key)
    for name in contract.FACTORIES
    for key, is_traced in numbers(name).items()
    if is_traced and not key.endswith("learning_rate")
]


def test_the_arguments_are_found():
    assert len({key for _, key in ARGUMENTS}) > 15
    assert ("muon", "auxiliary_learning_rate") in ARGUMENTS
    assert ("mimuon", "threshold") in SCHEDULED


@pytest.mark.parametrize(("name", "key"), ARGUMENTS)
@pytest.mark.parametrize("value", [math.nan, -1.0, "0.1"])
def test_a_number_that_makes_no_sense_is_refused_by_name(name, key, value):
    with pytest.raises(ValueError, match=rf"^{key}='?{value}'? (must be|is unknown)"):
        contract.make(name, **{key: value})


@pytest.mark.parametrize(("name", "key"), SCHEDULED)
def test_a_schedule_that_is_not_a_learning_rate_names_the_way_out(name, key):
    with pytest.raises(ValueError, match=rf"^{key}=.*inject_hyperparams.*static_args.*{key}=sch"):
        contract.make(name, **{key: optax.linear_schedule(0.1, 0.2, 10)})


@pytest.mark.parametrize("key", ["momentum", "threshold", "weight_decay"])
def test_the_way_out_leads_out(key):
    ramp = lambda count: jnp.where(count == 0, 0.25, 0.75)  # noqa: E731
    make = optax.inject_hyperparams(mimuon, static_args=("matrices", "orthogonalizer", "measure"))
    settings = {"matrices": lambda params: {"block": None}, "orthogonalizer": "jordan"}
    tx = make(0.1, **settings | {key: ramp})
    updates, state = contract.run_eagerly(tx, contract.GRADIENTS[:2])
    assert float(state.hyperparams[key]) == 0.75
    constant, _ = contract.run_eagerly(
        mimuon(0.1, **settings | {key: 0.25}), contract.GRADIENTS[:1]
    )
    contract.assert_close(updates[0]["wide"], constant[0]["wide"])
