"""The gradient of a batch: at once, or micro-batch by micro-batch, on any mesh."""

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
    tuple[Float[Array, ""], tuple[Tree, dict[str, Float[Array, ""]]]],
]


class BatchGradient(NamedTuple):
    """A loss and what came with it."""

    loss: Float[Array, ""]
    gradients: Tree  # like the parameters, in value type and layout
    rest: Tree
    metrics: dict[str, Float[Array, ""]]


def batch_gradient(
    loss: Loss,
    params: Tree,
    rest: Tree,
    batch: Tree,
    key: PRNGKeyArray,
    step: Int32[Array, ""],
    *,
    micro_batches: int = 1,
    layout: Tree = None,
) -> BatchGradient:
    """Loss and gradient of a batch.

    `g = (g_1 + ... + g_k) / k`, summed in float32, with `g_j` the gradient of rows
    `j, j + k, j + 2k, ...`: a loss that is a mean over rows gets the gradient of the whole batch.
    `rest` goes from one micro-batch to the next, loss and metrics are means.

    Args:
        loss: the task's.
        params: at which the gradient is taken.
        rest: what the model carries.
        batch: arrays whose leading axis are the rows.
        key: of the batch; a micro-batch has a part of it, the whole batch as one has it itself.
        step: steps done.
        micro_batches: `k >= 1`; divides the rows of every device.
        layout: shardings of the parameters, on Auto axes; None: not on a mesh.

    Returns:
        The loss, its gradient in the parameters' layout, and what else came of it.
    """
    mesh = jax.typeof(jax.tree.leaves(params)[0]).sharding.mesh

    def run(params: Tree, rest: Tree, batch: Tree, key: PRNGKeyArray, step: Array) -> BatchGradient:
        placed = _Placed(loss, layout)
        if micro_batches == 1:
            return placed.at_once(params, rest, batch, key, step)
        return placed.in_turn(params, rest, batch, key, step, micro_batches)

    if AxisType.Explicit not in mesh.axis_types:
        # The loss may ask how many devices share its work.
        known = mesh if layout is None else jax.tree.leaves(layout)[0].mesh.abstract_mesh
        with jax.sharding.use_abstract_mesh(known):
            return run(params, rest, batch, key, step)
    # Models are written for Auto axes; outside of them every array has its sharding in its type.
    specs = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, params)
    shardings: Any = (P(), specs, P(), P())
    with jax.sharding.use_abstract_mesh(mesh):
        typed: Any = jax.sharding.auto_axes(run, out_sharding=BatchGradient(*shardings))
        return typed(params, rest, batch, key, step)


class _Placed(NamedTuple):
    """A loss whose gradients lie as the parameters do."""

    loss: Loss
    layout: Tree

    def at_once(
        self, params: Tree, rest: Tree, batch: Tree, key: PRNGKeyArray, step: Array
    ) -> BatchGradient:
        """Of all rows together."""
        value_and_grad = jax.value_and_grad(self.loss, has_aux=True)
        (loss, (rest, metrics)), gradients = value_and_grad(params, rest, batch, key, step)
        return BatchGradient(loss, self.laid_out(gradients), rest, metrics)

    def in_turn(
        self,
        params: Tree,
        rest: Tree,
        batch: Tree,
        key: PRNGKeyArray,
        step: Array,
        count: int,
    ) -> BatchGradient:
        """Of one micro-batch after the other."""

        def body(carry: tuple[Tree, Tree], part: tuple[Tree, PRNGKeyArray]) -> tuple[Any, Any]:
            total, rest = carry
            rows, key = part
            loss, gradients, rest, metrics = self.at_once(params, rest, rows, key, step)
            total = jax.tree.map(lambda t, g: t + g.astype(jnp.float32), total, gradients)
            return (self.laid_out(total), rest), (loss, metrics)

        zeros = jax.tree.map(lambda x: jnp.zeros_like(x, jnp.float32), params)
        parts = jax.tree.map(lambda x: self.divided(x, count), batch)
        (total, rest), values = jax.lax.scan(
            body, (self.laid_out(zeros), rest), (parts, jax.random.split(key, count))
        )
        loss, metrics = jax.tree.map(lambda x: x.mean(), values)
        mean = jax.tree.map(lambda g, x: (g / count).astype(x.dtype), total, params)
        return BatchGradient(loss, mean, rest, metrics)

    def laid_out(self, gradients: Tree) -> Tree:
        """Gradients where their parameters are: summed over devices once, not kept as copies."""
        if self.layout is None:
            return gradients
        return jax.lax.with_sharding_constraint(gradients, self.layout)

    def divided(self, x: Array, count: int) -> Array:
        """`[rows, ...]` as `[micro-batch, row, ...]`: every device divides its own rows."""
        x = x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)
        if self.layout is None:
            return x
        mesh = jax.tree.leaves(self.layout)[0].mesh
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(None, BATCH_AXES)))
