"""A whole training step as the compilers for TPUs and GPUs see it."""

import dataclasses
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from benchmarks.hlo import work
from benchmarks.memory import decoder_task
from benchmarks.targets import compiler_options, devices, missing_compiler, platform
from models import cross_entropy
from models.qwen3 import qwen3_0_6b
from models.yolo26.blocks import C3k, ConvNorm
from train.mesh import batch_sharding, make_mesh
from train.optimizers import MiMuon, make_optimizer
from train.step import abstract_state, jit_step, parameter_shardings

pytestmark = pytest.mark.standard_promotion

SMALL = dataclasses.replace(
    qwen3_0_6b(),
    vocab_size=1024,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
)


def compiled_step(target):
    """The compiled step of the small Qwen3, and the bytes of its state per device."""
    if missing := missing_compiler(target):
        pytest.skip(missing)
    mesh = make_mesh("fsdp=8", devices=devices(target))
    task = decoder_task(SMALL, mesh)
    optimizer, schedule = make_optimizer(
        MiMuon(), steps=100, matrices=task.matrices, shardings=parameter_shardings(task, mesh)
    )
    state = abstract_state(task, optimizer, mesh)
    step: Any = jit_step(state, task=task, optimizer=optimizer, schedule=schedule, seed=0)
    tokens = jax.ShapeDtypeStruct((8, 129), jnp.int32, sharding=batch_sharding(mesh))
    lowered = step.trace(state, tokens).lower(lowering_platforms=(platform(target),))
    parts = [
        x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
        for x in jax.tree.leaves(state)
    ]
    return lowered.compile(dict(compiler_options(target))), sum(parts)


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("tpu:v5e:2x4", marks=pytest.mark.tpu_compiler),
        pytest.param("gpu:h100:8", marks=pytest.mark.gpu_compiler),
    ],
)
def test_a_training_step_exchanges_matrices_once(target, monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_LOGITS", 32 * 1024)  # four chunks of 32 tokens
    program, state = compiled_step(target)
    text = program.as_text()
    done = work(text)
    # The update, and the gradient of the embedding from the rows' devices to those of its columns.
    assert done.collectives["all-to-all"] == 2 + 1
    # Also the selection of a step that is not finite writes into the old state.
    assert program.memory_analysis().alias_size_in_bytes >= state
    if platform(target) == "cuda":  # on a TPU the products of the model are 16 bits wide, too
        assert done.operands["f16"] == 2 * 18  # two batches, in six steps
        # The head is tied to the embedding, [1024, 256], whose gradient is added up once.
        summed = [line for line in text.splitlines() if " all-reduce-done(" in line]
        assert summed
        assert not [line for line in summed if re.search(r"1024,256|256,1024", line)]
        assert len(re.findall(r"f32\[1024,32\]\S* reduce-scatter-done\(", text)) == 1


@pytest.mark.gpu_compiler
def test_norms_of_the_detector_communicate_once_in_each_direction():
    """Seven norms, of which two can share: the last bottleneck and the bypass are independent."""
    if missing := missing_compiler("gpu:h100:8"):
        pytest.skip(missing)
    mesh = make_mesh("data=8", devices=devices("gpu:h100:8"))
    dtypes: Any = {"dtype": jnp.float32, "param_dtype": jnp.float32}

    def make():
        options = {"kernel_init": nnx.initializers.ones, "rngs": nnx.Rngs(0), **dtypes}
        return C3k(16, functools.partial(ConvNorm, **options))

    graph, *state = nnx.split(nnx.eval_shape(make), nnx.Param, ...)
    params, model_state = map(nnx.to_pure_dict, state)

    def loss(params, model_state, x):
        model = nnx.merge(graph, params, model_state)
        y = model(x, True)
        return jnp.square(y).sum(), nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    x = jax.ShapeDtypeStruct((16, 8, 8, 16), jnp.float32, sharding=batch_sharding(mesh))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        traced = jax.jit(jax.grad(loss, has_aux=True)).trace(params, model_state, x)
    lowered = traced.lower(lowering_platforms=("cuda",))
    done = work(lowered.compile(dict(compiler_options("gpu:h100:8"))).as_text())
    norms = 7
    assert 0 < done.collectives["all-gather"] < norms
    assert done.collectives["all-reduce"] <= norms + 1  # and one of the gradients of kernels
    assert set(done.collectives) == {"all-gather", "all-reduce"}
