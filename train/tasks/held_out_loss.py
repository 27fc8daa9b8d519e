"""The loss of held-out text."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from train.data.language import LanguageData
from train.data.windows import evaluation_windows
from train.distributed import own_rows
from train.mesh import batch_sharding
from train.task import Tree, split_batch
from train.tasks.text_metrics import text_metrics

Weights = Float[Array, "B T"]


def held_out_loss(
    mean_loss: Callable[[Tree, Tree, Tree, Weights], Float[Array, ""]],
    data: LanguageData,
    limit: int | None,
    batch_size: int,
    mesh: Mesh,
) -> Callable[[Tree, Tree], dict[str, float]]:
    """The mean loss of held-out windows; rows that fill up a batch have weight 0.

    The batches stay on the devices from one evaluation to the next.
    """
    windows = evaluation_windows(data.held_out, limit)
    count = len(jax.tree.leaves(windows)[0])
    filled = -count % batch_size
    rows = jax.tree.map(lambda x: np.pad(x, [(0, filled), (0, 0)]), windows)
    weights = np.zeros((count + filled, data.held_out.length), np.float32)
    weights[:count] = 1
    mine = own_rows(batch_size)
    batches = [
        split_batch(
            jax.tree.map(lambda x, i=i: x[i : i + batch_size][mine], (rows, weights)),
            batch_sharding(mesh),
        )
        for i in range(0, count + filled, batch_size)
    ]

    @jax.jit
    def total(params: Tree, model_state: Tree, batch: Tree, weights: Weights) -> Array:
        return mean_loss(params, model_state, batch, weights) * weights.sum()

    def evaluate(params: Tree, model_state: Tree) -> dict[str, float]:
        totals = [total(params, model_state, *batch) for batch in batches]
        nats = sum(float(t) for t in totals)
        return text_metrics(nats / (count * data.held_out.length), data.counts)

    return evaluate
