"""The models of this repository on meshes: what is sharded, what is sent, and equal losses."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from jax import P

from models.qwen3 import Qwen3, tiny
from train import sharding_rules
from train.loop import run
from train.mesh import automatic, batch_sharding, make_mesh, tree_shardings
from train.metrics import read_metrics
from train.optimizers import OPTIMIZERS, make_optimizer
from train.step import jit_step, make_state, parameter_shardings
from train.task import split_batch
from train.tasks.language_model import LanguageModel

pytestmark = pytest.mark.standard_promotion

Make = Callable[..., LanguageModel]


@pytest.mark.parametrize("tied", [True, False])
def test_every_kernel_of_qwen3_is_cut_along_both_axes(tied: bool):
    config = dataclasses.replace(tiny(), tie_word_embeddings=tied)
    model = nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    layout = tree_shardings(params, sharding_rules.qwen3(config), make_mesh("fsdp=4,tensor=2"))
    for x, sharding in zip(jax.tree.leaves(params), jax.tree.leaves(layout), strict=True):
        vector = x.shape[-1] == x.size // x.shape[0] or x.ndim == 1
        assert vector == sharding.is_fully_replicated or x.ndim == 2
        if not vector:
            assert np.prod(sharding.shard_shape(x.shape)) * 8 == x.size
    assert layout["layers"]["mlp"]["down"]["kernel"].spec == P(None, "tensor", "fsdp")


@pytest.mark.slow
@pytest.mark.parametrize("axes", ["auto", "explicit"])
def test_fsdp_gathers_weights_and_exchanges_matrices_twice(axes: str, small: Make, tmp_path: Path):
    config = small(tmp_path, mesh="fsdp=8", mesh_axes=axes, optimizer=OPTIMIZERS["muon"]())
    mesh = make_mesh(config.mesh, explicit=axes == "explicit")
    task = config.task(automatic(mesh))
    layout = parameter_shardings(task, mesh)
    optimizer, schedule = make_optimizer(
        config.optimizer, steps=6, matrices=task.matrices, shardings=layout
    )
    state = make_state(task, optimizer, mesh, seed=0)
    step = jit_step(state, task=task, optimizer=optimizer, schedule=schedule, seed=0)
    batch = split_batch(task.batches[0], batch_sharding(mesh))
    lines = (step.lower(state, batch).compile().as_text() or "").splitlines()  # type: ignore
    exchanges = [line for line in lines if " all-to-all(" in line]
    assert sum("/all_to_all" in line for line in exchanges) == 2  # of matrices
    # The embedding's gradient: a row for every token, added up where its columns are stored.
    assert sum("scatter-add" in line for line in exchanges) == 1
    assert len(exchanges) == 3
    # An activation has the sequence of 16 as its middle axis; weights have none of that size.
    moved = [line for line in lines if " all-gather(" in line or " all-reduce(" in line]
    assert moved
    assert not any(",16,16]" in line.split(" all-")[0] for line in moved)


@pytest.mark.slow
def test_every_mesh_trains_alike(small: Make, tmp_path: Path):
    meshes: list[dict[str, Any]] = [
        {"mesh": "data=1"},
        {"mesh": "fsdp=8"},
        {"mesh": "fsdp=4,tensor=2", "mesh_axes": "explicit"},
        {"mesh": "data=2,fsdp=2,tensor=2", "micro_batches": 2},
    ]
    losses = []
    for index, fields in enumerate(meshes):
        common = {"batch_size": 16, "steps": 2, "optimizer": OPTIMIZERS["mimuon"]()}
        run(small(tmp_path / str(index), **common, **fields), quiet=True)
        lines = read_metrics(tmp_path / str(index) / "metrics.jsonl")
        losses.append([line["loss"] for line in lines])
    for others in losses[1:]:
        np.testing.assert_allclose(others, losses[0], rtol=1e-5)
