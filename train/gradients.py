"""The gradient of a batch, at once or by micro-batches, on any mesh."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import P
from jax.sharding import AxisType, NamedSharding
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from train.mesh import BATCH_AXES
from train.task import Tree

Loss = Callable[
    [Tree, Tree, Tree, PRNGKeyArray, Int32[Array, ""]],
    tuple[Float[Array, ""], tuple[Tree, dict[str, Any]]],
]


class BatchGradient(NamedTuple):
    """A loss, its gradient, and what else the loss function returned."""

    loss: Float[Array, ""]
    gradients: Tree  # dtypes and shardings of the parameters
    model_state: Tree
    metrics: dict[str, Any]  # scalars, and "max_logits" if the task gives it


def batch_gradient(
    loss: Loss,
    params: Tree,
    model_state: Tree,
    batch: Tree,
    key: PRNGKeyArray,
    step: Int32[Array, ""],
    *,
    micro_batches: int = 1,
    layout: Tree = None,
) -> BatchGradient:
    """Loss and gradient of a batch.

    `g = (g_1 + ... + g_k) / k`, summed in float32, with `g_j` the gradient of rows
    `j, j + k, j + 2k, ...`. For a loss that is a mean over rows, `g` is the gradient of the whole
    batch. `model_state` is passed from one micro-batch to the next; loss and metrics are averaged,
    except for `max_logits`, of which the largest counts.

    `optax.microbatch` splits a batch likewise and adds or averages results, but neither passes
    `model_state` on, nor takes a largest value, nor sums in float32.

    Args:
        loss: the loss function of the task.
        params: the parameters to differentiate at.
        model_state: non-parameter variables, such as BatchNorm statistics.
        batch: arrays whose leading axis is the row.
        key: random key of the batch, used as it is if `k = 1` and split into `k` keys otherwise.
        step: steps done.
        micro_batches: `k >= 1`; must divide the number of rows per device.
        layout: shardings of the parameters, on Auto axes; None: there is no mesh.

    Returns:
        The loss, its gradient sharded like the parameters, the new model state, and metrics.
    """
    mesh = jax.typeof(jax.tree.leaves(params)[0]).sharding.mesh

    def run(
        params: Tree, model_state: Tree, batch: Tree, key: PRNGKeyArray, step: Array
    ) -> BatchGradient:
        placed = _Placed(loss, layout)
        if micro_batches == 1:
            return placed.at_once(params, model_state, batch, key, step)
        return placed.in_turn(params, model_state, batch, key, step, micro_batches)

    if AxisType.Explicit not in mesh.axis_types:
        # The loss may ask how many devices its work is sharded over.
        known = mesh if layout is None else jax.tree.leaves(layout)[0].mesh.abstract_mesh
        with jax.sharding.use_abstract_mesh(known):
            return run(params, model_state, batch, key, step)
    # Models are written for Auto axes; on Explicit axes every array has its sharding in its type.
    specs = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, params)
    shardings: Any = (P(), specs, P(), P())
    with jax.sharding.use_abstract_mesh(mesh):
        typed: Any = jax.sharding.auto_axes(run, out_sharding=BatchGradient(*shardings))
        return typed(params, model_state, batch, key, step)


class _Placed(NamedTuple):
    """A loss whose gradients are sharded like the parameters."""

    loss: Loss
    layout: Tree

    def at_once(
        self, params: Tree, model_state: Tree, batch: Tree, key: PRNGKeyArray, step: Array
    ) -> BatchGradient:
        """The gradient of all rows at once."""
        value_and_grad = jax.value_and_grad(self.loss, has_aux=True)
        (loss, (model_state, metrics)), gradients = value_and_grad(
            params, model_state, batch, key, step
        )
        return BatchGradient(loss, self.laid_out(gradients), model_state, metrics)

    def in_turn(
        self,
        params: Tree,
        model_state: Tree,
        batch: Tree,
        key: PRNGKeyArray,
        step: Array,
        count: int,
    ) -> BatchGradient:
        """The mean gradient of micro-batches, computed one after another."""

        def body(carry: tuple[Tree, Tree], part: tuple[Tree, PRNGKeyArray]) -> tuple[Any, Any]:
            total, model_state = carry
            rows, key = part
            loss, gradients, model_state, metrics = self.at_once(
                params, model_state, rows, key, step
            )
            total = jax.tree.map(lambda t, g: t + g.astype(jnp.float32), total, gradients)
            return (self.laid_out(total), model_state), (loss, metrics)

        zeros = jax.tree.map(lambda x: jnp.zeros_like(x, jnp.float32), params)
        parts = jax.tree.map(lambda x: self.divided(x, count), batch)
        (total, model_state), values = jax.lax.scan(
            body, (self.laid_out(zeros), model_state), (parts, jax.random.split(key, count))
        )
        losses, metrics = values
        largest = jax.tree.map(lambda x: x.max(0), metrics.pop("max_logits", None))
        loss, metrics = jax.tree.map(lambda x: x.mean(), (losses, metrics))
        metrics |= {} if largest is None else {"max_logits": largest}
        mean = jax.tree.map(lambda g, x: (g / count).astype(x.dtype), total, params)
        return BatchGradient(loss, mean, model_state, metrics)

    def laid_out(self, gradients: Tree) -> Tree:
        """Gradients sharded like their parameters: summed over devices once, and not replicated."""
        if self.layout is None:
            return gradients
        return jax.lax.with_sharding_constraint(gradients, self.layout)

    def divided(self, x: Array, count: int) -> Array:
        """`[rows, ...]` as `[micro-batch, row, ...]`; every device divides its own rows."""
        x = x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)
        if self.layout is None:
            return x
        mesh = jax.tree.leaves(self.layout)[0].mesh
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(None, BATCH_AXES)))
