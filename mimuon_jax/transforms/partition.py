"""One transformation for matrices, another for auxiliary parameters."""

from __future__ import annotations

from collections.abc import Hashable

import jax
import optax

from mimuon_jax.transforms.checks import check_gradients
from mimuon_jax.transforms.describe import warn_if_few_are_matrices
from mimuon_jax.transforms.roles import roles
from mimuon_jax.transforms.scope import passing_on
from mimuon_jax.transforms.variance_reduction import with_previous_gradient
from mimuon_jax.types import Matrices, State, Tree


def partition(
    transformation: optax.GradientTransformation,
    auxiliary: optax.GradientTransformation,
    *,
    matrices: Matrices = None,
) -> optax.GradientTransformationExtraArgs:
    """Applies one transformation to matrices and another to auxiliary parameters.

    Args:
      transformation: applied to the parameters that are matrices.
      auxiliary: applied to all other parameters: vectors, embeddings, the output head, and those
        that ``matrices`` declares auxiliary.
      matrices: which parameters are matrices, and along which axes: a tree, a prefix tree or a
        function ``params -> tree`` of ``optax.contrib.MuonDimensionNumbers``, None for auxiliary,
        or ``"default"``; see also `by_path` and `roles_of`. A parameter without an entry follows
        the default rule: it is a matrix if it has rank 2, or is a convolution kernel of rank 3 or
        4, unless it is named as an embedding, head, norm, bias or gain. In an Equinox model the
        layer classes decide first.

    Returns:
      `optax.partition` of the two: each side sees the other side's leaves as ``optax.MaskedNode``.
      Extra arguments go to both sides; those with the structure of the parameters are masked in the
      same way. ``grad_fn``, a function of all parameters, is called once for all `mvr2` inside.
      Transformations inside that were built without ``matrices`` use the roles decided here.

    Raises:
      ValueError: at ``init``: an entry does not match any parameter or does not fit it, or a
        parameter of rank 3 or more has no entry and the default rule does not decide.

    Source:
      Jordan et al., "Muon", 2024: Muon for hidden matrices, AdamW for other parameters.

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
        decided = roles(params, matrices)
        if decided:  # optax.tree_map_params initializes with a tree without leaves
            warn_if_few_are_matrices(params, matrices)
        with passing_on(decided, params):
            return both.init(params)

    def update(
        updates: Tree, state: State, params: Tree = None, **extra: object
    ) -> tuple[Tree, State]:
        if params is not None:
            check_gradients(updates, params)
        with passing_on(roles(updates, matrices), updates):
            return both.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(init, update)
