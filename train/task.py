"""What a task is to the loop: plain functions over parameters, and its data."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import grain
import jax
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from mimuon_jax.types import Matrices
from train.mesh import Rules

Tree = Any  # a pytree of arrays


class Task(NamedTuple):
    """Model, loss, data and evaluation of one kind of training.

    `params` are what the optimizer changes, `rest` what else the model carries from step to step
    (running statistics; empty for a decoder).
    """

    init: Callable[[PRNGKeyArray], tuple[Tree, Tree]]  # key -> (params, rest); pure, jitted
    loss: Callable[
        # params, rest, batch, key, steps done; the last for losses that change over a run
        [Tree, Tree, Tree, PRNGKeyArray, Int32[Array, ""]],
        tuple[Float[Array, ""], tuple[Tree, dict[str, Float[Array, ""]]]],  # loss, (rest, metrics)
    ]
    batches: grain.MapDataset  # element k is this process's part of the batch of step k
    evaluate: Callable[[Tree, Tree], dict[str, float]]  # on the held-out split; has a "loss"
    finish: Callable[[Tree, Tree, Path], str]  # writes samples into a folder, returns what to print
    matrices: Matrices  # dimension numbers of the parameters
    sharding_rules: Rules  # of the parameters; `rest` is replicated
    items_a_step: int  # of the unit below
    unit: str  # what throughput counts: "bytes", "images"
    loss_unit: str  # "nats/byte", or of what it is the sum
    data: dict[str, int | str]  # sizes and checksum, to tell whether the data changed
    files: Mapping[str, str] = MappingProxyType({})  # name -> text, for the run directory
    # Regular expression on a path -> sizes along the output axis of the matrices side by side there
    split: Mapping[str, Sequence[int]] = MappingProxyType({})
    best: tuple[str, Literal["min", "max"]] = ("loss", "min")  # which evaluation is the best one
    workers: int = 0  # processes that make batches ahead of time; 0: threads of this one
    # Decay at step 1.0, 2.0, ... of an average of params and rest, evaluated and finished with
    average: Callable[[Float[Array, ""]], Float[Array, ""]] | None = None
    # Layout of the parameters -> the parameters to start from, in place of those of `init`
    pretrained: Callable[[Tree], Tree] | None = None
    # Ordered (regular expression on a path, factor of the learning rate); 1 where none matches
    rate_factors: Sequence[tuple[str, float]] = ()


def split_batch(batch: Tree, sharding: jax.sharding.Sharding) -> Tree:
    """Lays this process's part of a batch out over the mesh."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
