"""The detector as the compilers for TPUs and GPUs see it: its norms, and a whole training step."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.hlo import work
from benchmarks.targets import compiler_options, devices, missing_compiler, platform
from models.yolo26.blocks import C3k, ConvNorm
from train.data.detection import DetectionData
from train.mesh import batch_sharding, make_mesh
from train.optimizers import MuSGD, make_optimizer
from train.step import abstract_state, jit_step, parameter_shardings
from train.tasks.detection import Detection, Detector

pytestmark = pytest.mark.standard_promotion


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


# 80 s of processor time, at any size of the pictures and any width of the layers.
@pytest.mark.slow
@pytest.mark.parametrize("target", [pytest.param("gpu:h100:8", marks=pytest.mark.gpu_compiler)])
def test_a_training_step_communicates_once_per_norm_in_each_direction(target, tmp_path):
    if missing := missing_compiler(target):
        pytest.skip(missing)
    chips = devices(target)
    mesh = make_mesh(f"data={len(chips)}", devices=chips)
    config = Detection(
        preset="detect",
        run_dir=tmp_path,
        steps=4,
        evaluate_every=2,
        batch_size=len(chips),
        optimizer=MuSGD(),
        data=DetectionData(size=64, max_objects=8, scenes=16, held_out_scenes=12),
        model=Detector(width=0.03125),
    )
    task = config.task(mesh)
    optimizer, schedule = make_optimizer(
        config.optimizer,
        steps=config.steps,
        matrices=task.matrices,
        shardings=parameter_shardings(task, mesh),
    )
    state = abstract_state(task, optimizer, mesh)
    step: Any = jit_step(state, task=task, optimizer=optimizer, schedule=schedule, seed=0)
    element: Any = task.batches[0]
    rows = batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype, sharding=rows)
        for name, x in element.items()
    }
    lowered = step.trace(state, batch).lower(lowering_platforms=(platform(target),))
    program = lowered.compile(dict(compiler_options(target)))
    done = work(program.as_text())
    norms = len(jax.tree.leaves(state.model_state)) // 2  # a mean and a variance each
    assert done.collectives["all-gather"] <= norms + 1  # and one of the updates of matrices
    assert done.collectives["all-reduce"] <= norms
    assert set(done.collectives) == {"all-gather", "all-reduce"}
    assert done.carried["u16"] > 0  # the updates
    memory = program.memory_analysis()
    assert memory is not None
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert memory.alias_size_in_bytes >= held  # the new state is written over the old one
    if platform(target) == "cuda":
        assert done.operands["f16"] == 2 * 18  # two batches, in six steps
        assert done.operands["f32"] == 12  # of attention, whose precision is `--precision`
