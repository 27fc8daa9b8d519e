"""Peak memory of one compiled training step of Qwen3-0.6B on eight devices, for several meshes."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from models.cross_entropy import cross_entropy
from models.qwen3 import Qwen3, Qwen3Config, matrix_dimension_numbers, qwen3_0_6b
from train import sharding_rules
from train.mesh import batch_sharding, make_mesh
from train.optimizers import MiMuon, make_optimizer
from train.step import abstract_state, jit_step, parameter_shardings
from train.task import Task

MESHES = ("data=8", "fsdp=8", "fsdp=4,tensor=2", "data=2,fsdp=2,tensor=2")


class Memory(NamedTuple):
    """One mesh; in GB per device."""

    mesh: str
    state: float  # the arguments of the step
    temporary: float
    peak: float  # both, and results that do not reuse a buffer of the state


def rows(layers: int | None, vocabulary: int | None, batch: int, length: int) -> Iterator[Memory]:
    """Steps of MiMuon in float32; every layer is recomputed in the backward pass."""
    config = qwen3_0_6b()
    config = dataclasses.replace(
        config,
        num_hidden_layers=layers or config.num_hidden_layers,
        vocab_size=vocabulary or config.vocab_size,
    )
    for spec in MESHES:
        mesh = make_mesh(spec)
        task = decoder_task(config, mesh)
        optimizer, schedule = make_optimizer(
            MiMuon(),
            steps=100,
            matrices=task.matrices,
            shardings=parameter_shardings(task, mesh),
        )
        state = abstract_state(task, optimizer, mesh)
        step: Any = jit_step(state, task=task, optimizer=optimizer, schedule=schedule, seed=0)
        tokens = jax.ShapeDtypeStruct((batch, length + 1), jnp.int32, sharding=batch_sharding(mesh))
        used = step.lower(state, tokens).compile().memory_analysis()
        given, temporary = used.argument_size_in_bytes / 1e9, used.temp_size_in_bytes / 1e9
        fresh = (used.output_size_in_bytes - used.alias_size_in_bytes) / 1e9
        yield Memory(spec, given, temporary, given + temporary + fresh)


def decoder_task(
    config: Qwen3Config, mesh: Mesh, *, dtype: Any = jnp.float32, remat: Any = jax.checkpoint
) -> Task:
    """The task of language-model training, without its data; products are in ``dtype``."""
    make = functools.partial(Qwen3, config, dtype=dtype)
    graph, _ = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))), nnx.Param)
    rules = sharding_rules.qwen3(config)
    around = sharding_rules.layer_by_layer(rules, mesh, remat)

    def init(key):
        return nnx.to_pure_dict(nnx.state(make(rngs=nnx.Rngs(key)), nnx.Param)), {}

    def loss(params, model_state, tokens, key, step):
        model = nnx.merge(graph, sharding_rules.as_used(params, rules, mesh))
        hidden = model.hidden_states(tokens[:, :-1], remat=around)
        groups = sharding_rules.head_groups(mesh)
        loss = cross_entropy(hidden, model.head, tokens[:, 1:], groups=groups)
        return loss, (model_state, {})

    return Task(
        init=init,
        loss=loss,
        batches=grain.MapDataset.range(1),
        evaluate=lambda params, model_state: {},
        finish=lambda params, model_state, directory: "",
        matrices=matrix_dimension_numbers,
        sharding_rules=rules,
        items_per_step=1,
        unit="tokens",
        loss_unit="nats/token",
        data={},
    )
