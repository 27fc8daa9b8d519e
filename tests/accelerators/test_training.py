"""A whole training step as the compilers for TPUs and GPUs see it."""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks.hlo import work
from benchmarks.memory import decoder_task
from benchmarks.targets import compiler_options, devices, missing_compiler, platform
from models import cross_entropy
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


def compiled_step(target):
    """The compiled step of the small Qwen3, one row per device, and the bytes of its state."""
    if missing := missing_compiler(target):
        pytest.skip(missing)
    chips = devices(target)
    mesh = make_mesh(f"fsdp={len(chips)}", devices=chips)
    task = decoder_task(SMALL, mesh)
    optimizer, schedule = make_optimizer(
        MiMuon(), steps=100, matrices=task.matrices, shardings=parameter_shardings(task, mesh)
    )
    state = abstract_state(task, optimizer, mesh)
    step: Any = jit_step(state, task=task, optimizer=optimizer, schedule=schedule, seed=0)
    tokens = jax.ShapeDtypeStruct((len(chips), 129), jnp.int32, sharding=batch_sharding(mesh))
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
def test_a_training_step_on_one_gpu_writes_over_the_old_state(monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_LOGITS", 32 * 1024)
    program, state = compiled_step("gpu:h100:1")
    done = work(program.as_text())
    assert not done.collectives
    assert done.operands["f16"] == 3 * 18  # three batches, in six steps
    assert program.memory_analysis().alias_size_in_bytes >= state


@pytest.mark.tpu_compiler
def test_a_training_step_on_256_tpus_exchanges_matrices_once():
    program, state = compiled_step("tpu:v5e:16x16")
    assert work(program.as_text()).collectives["all-to-all"] == 2 + 1
    assert program.memory_analysis().alias_size_in_bytes >= state
