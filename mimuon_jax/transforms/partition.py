"""Matrices to one transformation, everything else to another."""

from collections.abc import Hashable

import jax
import optax

from mimuon_jax.transforms.describe import warn_if_few_are_matrices
from mimuon_jax.transforms.roles import check_every_entry_is_used, roles
from mimuon_jax.transforms.scope import passing_on
from mimuon_jax.transforms.variance_reduction import with_previous_gradient
from mimuon_jax.types import Matrices, State, Tree


def partition(
    transformation: optax.GradientTransformation,
    auxiliary: optax.GradientTransformation,
    *,
    matrices: Matrices = None,
) -> optax.GradientTransformationExtraArgs:
    """Sends the matrices to ``transformation`` and all other parameters to ``auxiliary``.

    Args:
      transformation: applied to the parameters that are matrices.
      auxiliary: applied to the rest: vectors, embeddings, output head, whatever ``matrices`` says.
      matrices: ``optax.contrib.MuonDimensionNumbers`` as a tree, a prefix tree or a function
        ``params -> tree``, with None for auxiliary. What has no entry follows the default rule: a
        parameter of rank 2, or a convolution kernel of rank 3 or 4, whose path names no embedding,
        head, norm, bias or gain. Parameters are told apart by path and shape alone.

    Returns:
      `optax.partition` of the two: each side sees the other side's leaves as ``optax.MaskedNode``.
      Extra arguments go to both sides; trees like the parameters are masked in the same way, and
      ``grad_fn``, a function of all parameters, is called once, for every `mvr2` inside. Pieces
      inside that were built without ``matrices`` use the dimension numbers decided here.

    Raises:
      ValueError: at ``init``, if numbers do not fit a parameter, name none, or are missing where
        the rule cannot decide (rank >= 3).

    Source:
      Jordan et al., "Muon", 2024: hidden matrices to Muon, the rest to AdamW.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mimuon_jax import partition
      >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
      >>> tx = partition(optax.scale(-1.0), optax.scale(10.0))
      >>> updates, _ = tx.update(params, tx.init(params))
      >>> updates["kernel"][0].tolist(), updates["bias"].tolist()
      ([-1.0, -1.0], [10.0, 10.0])
    """

    def labels(tree: Tree) -> Tree:
        chosen = [role.numbers is not None for role in roles(tree, matrices)]
        names = ["matrices" if mine else "auxiliary" for mine in chosen]
        return jax.tree.structure(tree).unflatten(names)

    sides: dict[Hashable, optax.GradientTransformation] = {
        "matrices": transformation,
        "auxiliary": auxiliary,
    }
    both = with_previous_gradient(optax.partition(sides, labels, mask_compatible_extra_args=True))

    def init(params: Tree) -> State:
        if jax.tree.leaves(params):  # optax.tree_map_params initializes with a tree without leaves
            check_every_entry_is_used(params, matrices)
            warn_if_few_are_matrices(params, matrices)
        with passing_on(roles(params, matrices), params):
            return both.init(params)

    def update(
        updates: Tree, state: State, params: Tree = None, **extra: object
    ) -> tuple[Tree, State]:
        with passing_on(roles(updates, matrices), updates):
            return both.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(init, update)
