"""Attention as the compiler for GPUs sees it, if cuDNN is installed (`nvidia-cudnn-cu12`)."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.targets import compiler_options, devices, missing_compiler
from models.attention import dot_product_attention

pytestmark = [pytest.mark.standard_promotion, pytest.mark.gpu_compiler]


def kernels(number, dtype, **options):
    """cuDNN in a gradient on `number` H100s: 1000 tokens, 4 query heads, 2 key heads."""
    target = f"gpu:h100:{number}"
    if missing := missing_compiler(target):
        pytest.skip(missing)
    if importlib.util.find_spec("nvidia.cudnn") is None:
        pytest.skip("cuDNN is not installed: uv pip install nvidia-cudnn-cu12")
    mesh = Mesh(np.array(devices(target)), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, P("data"))
    query, key = (jax.ShapeDtypeStruct((8, 1000, n, 64), dtype, sharding=rows) for n in (4, 2))

    def loss(*operands):
        context = dot_product_attention(*operands, implementation="auto", **options)
        return context.astype(jnp.float32).sum()

    run = jax.jit(jax.grad(loss, (0, 1, 2)))
    lowered = run.trace(query, key, key).lower(lowering_platforms=("cuda",))
    text = lowered.compile(dict(compiler_options(target))).as_text() or ""
    return re.findall(r"__cudnn\$(\w+)", text)


@pytest.mark.parametrize("number", [1, 8])
def test_bfloat16_is_computed_by_cudnn(number):
    found = kernels(number, jnp.bfloat16, is_causal=True)
    assert found == ["fmhaSoftmax", "fmhaSoftmaxBackward"]


def test_float32_and_masks_are_not():
    assert kernels(1, jnp.float32, is_causal=True) == []
    mask = jnp.ones((1, 1, 1000, 1000), bool)
    assert kernels(1, jnp.bfloat16, mask=mask, is_causal=True) == []
