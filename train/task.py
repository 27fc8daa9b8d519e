"""A task, as the loop sees it: plain functions of parameters, and data."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

import grain
import jax
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from mimuon_jax.transforms.qk_clip import QKSpecs
from mimuon_jax.types import Matrices
from train.mesh import Rules

Tree = Any  # a pytree of arrays


#: From a key to `params` and `model_state`; pure, jitted.
Init: TypeAlias = Callable[[PRNGKeyArray], tuple[Tree, Tree]]


class Task(NamedTuple):
    """Model, loss, data and evaluation of one kind of training.

    The optimizer updates `params`. `model_state` holds the non-parameter variables that the model
    carries from step to step, such as BatchNorm statistics; it is empty for a decoder.
    """

    init: Init
    loss: Callable[
        # params, model_state, batch, key, steps done (for losses that change during a run)
        [Tree, Tree, Tree, PRNGKeyArray, Int32[Array, ""]],
        # loss, (model_state, metrics); "max_logits" among these is for the optimizer
        tuple[Float[Array, ""], tuple[Tree, dict[str, Float[Array, ""]]]],
    ]
    batches: grain.MapDataset  # element k: this process's part of the batch of step k
    evaluate: Callable[[Tree, Tree], dict[str, float]]  # on the held-out split; includes "loss"
    finish: Callable[[Tree, Tree, Path], str]  # writes samples to a folder, returns text to print
    matrices: Matrices  # dimension numbers of the parameters
    sharding_rules: Rules  # for the parameters; `model_state` is replicated
    items_per_step: int  # in the unit below
    unit: str  # what throughput counts: "bytes", "images"
    loss_unit: str  # "nats/byte", or the terms of the sum
    data: dict[str, int | str]  # sizes and checksum, to detect changed data
    files: Mapping[str, str] = MappingProxyType({})  # name -> text, for the run directory
    # Regular expression for paths -> sizes of the matrices concatenated along the output axis
    split: Mapping[str, Sequence[int]] = MappingProxyType({})
    query_key: QKSpecs = MappingProxyType({})  # where queries and keys are; empty: not to be scaled
    best: tuple[str, Literal["min", "max"]] = ("loss", "min")  # chooses the best checkpoint
    workers: int = 0  # processes that prefetch batches; 0: threads of this process
    # Decay, at step 1.0, 2.0, ..., of the average of (params, model_state) that is evaluated
    average: Callable[[Float[Array, ""]], Float[Array, ""]] | None = None
    # Shapes and shardings of (params, model_state), and a key -> both, in place of those of `init`
    pretrained: Callable[[tuple[Tree, Tree], PRNGKeyArray], tuple[Tree, Tree]] | None = None
    # Ordered (regular expression for paths, factor of the learning rate); 1 if none matches
    rate_factors: Sequence[tuple[str, float]] = ()


def split_batch(batch: Tree, sharding: jax.sharding.Sharding) -> Tree:
    """Shards this process's part of a batch over the mesh."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
