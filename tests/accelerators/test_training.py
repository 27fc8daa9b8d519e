"""A whole training step as the compilers for TPUs and GPUs see it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks.hlo import work
from benchmarks.memory import decoder_task
from benchmarks.targets import compiler_options, devices, missing_compiler, platform
from models.qwen3 import qwen3_0_6b
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


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("tpu:v5e:2x4", marks=pytest.mark.tpu_compiler),
        pytest.param("gpu:h100:8", marks=pytest.mark.gpu_compiler),
    ],
)
def test_a_training_step_exchanges_matrices_once(target):
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
    done = work(lowered.compile(dict(compiler_options(target))).as_text())
    assert done.collectives["all-to-all"] == 2
    if platform(target) == "cuda":  # on a TPU the products of the model are 16 bits wide, too
        assert done.operands["f16"] == 2 * 18  # two batches, in six steps
