"""Products of all optimizers as lowered for TPUs and GPUs, which needs no compiler for these."""

import functools
import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tests import contract

pytestmark = pytest.mark.standard_promotion

PARAMS = {"wide": jnp.zeros((8, 24)), "block": {"tall": jnp.zeros((24, 8)), "bias": jnp.zeros(3)}}


SLOW = set(contract.OPTIMIZERS) - {"muon", "mimuon", "shampoo"}


@functools.cache
def documented():
    """The optimizers of which docs/sharding.md says that their products are float32."""
    text = (Path(__file__).parents[2] / "docs" / "sharding.md").read_text(encoding="utf-8")
    paragraph = text.split("**Products in float32.**")[1].split("\n\n")[0]
    return set(re.findall(r"`(\w+)`", paragraph)) & set(contract.OPTIMIZERS)


@pytest.mark.parametrize("name", contract.marked(contract.OPTIMIZERS, SLOW))
def test_products_are_16_bits_wide_by_default_except_where_documented(name):
    factory = contract.FACTORIES[name]
    required = {
        key: contract.REQUIRED[key]
        for key, parameter in inspect.signature(factory).parameters.items()
        if parameter.default is inspect.Parameter.empty
    }
    tx = factory(**required)
    state = jax.eval_shape(tx.init, PARAMS)
    traced = jax.jit(functools.partial(contract.update, tx)).trace(PARAMS, state, PARAMS)
    for platform, short in (("cuda", "f16"), ("tpu", "bf16")):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        lines = [line for line in text.splitlines() if "dot_general" in line]
        assert bool(lines) == (name != "sgdm")
        found = {re.findall(r"tensor<[\dx]*x(\w+)>", line)[0] for line in lines}
        if name in documented():
            assert "f32" in found
        else:
            assert found <= {short}
