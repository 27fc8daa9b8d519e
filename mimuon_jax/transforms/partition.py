"""Matrices to one transformation, everything else to another."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mimuon_jax.transforms.describe import warn_if_few_are_matrices
from mimuon_jax.transforms.roles import check_every_entry_is_used, roles
from mimuon_jax.transforms.variance_reduction import Mvr2State
from mimuon_jax.types import Matrices, State, Tree


class PartitionState(NamedTuple):
    """States of the two sides; each sees the other side's leaves as ``optax.MaskedNode``."""

    matrices: optax.OptState
    auxiliary: optax.OptState
    params: Tree  # the last parameters of the side that holds no `mvr2`, if the other does; else ()


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
      A transformation with both sides' states. Extra arguments go to both sides; but ``grad_fn``, a
      function of all parameters, is called here, once, for whichever side holds an `mvr2`.

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
    inner = optax.with_extra_args_support(transformation)
    outer = optax.with_extra_args_support(auxiliary)

    def init(params: Tree) -> PartitionState:
        check_every_entry_is_used(params, matrices)
        warn_if_few_are_matrices(params, matrices)
        ours, theirs = _split(params, _chosen(params, matrices))
        states = inner.init(ours), outer.init(theirs)
        return PartitionState(*states, _kept(*states, ours, theirs))

    def update(
        updates: Tree, state: State, params: Tree = None, **extra: object
    ) -> tuple[Tree, PartitionState]:
        chosen = _chosen(updates, matrices)
        ours, theirs = _split(updates, chosen)
        our_params, their_params = (None, None) if params is None else _split(params, chosen)
        extras = _with_gradients(updates, chosen, state, extra)
        ours, matrix_state = inner.update(ours, state.matrices, our_params, **extras[0])
        theirs, auxiliary_state = outer.update(theirs, state.auxiliary, their_params, **extras[1])
        kept = _kept(matrix_state, auxiliary_state, our_params, their_params)
        new_state = PartitionState(matrix_state, auxiliary_state, kept)
        return _join(updates, ours, theirs, chosen), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def _chosen(tree: Tree, matrices: Matrices) -> list[bool]:
    """Whether each leaf is a matrix, in flattening order."""
    return [role.numbers is not None for role in roles(tree, matrices)]


def _split(tree: Tree, chosen: list[bool]) -> tuple[Tree, Tree]:
    """The tree twice: with the chosen leaves only, and with the others only."""
    leaves, treedef = jax.tree.flatten(tree)
    masked = optax.MaskedNode()
    ours = [leaf if mine else masked for leaf, mine in zip(leaves, chosen, strict=True)]
    theirs = [masked if mine else leaf for leaf, mine in zip(leaves, chosen, strict=True)]
    return treedef.unflatten(ours), treedef.unflatten(theirs)


def _estimate(state: State) -> Mvr2State | None:
    """The `mvr2` within a state, if there is one."""
    is_ours = lambda x: isinstance(x, Mvr2State)  # noqa: E731
    return next(filter(is_ours, jax.tree.leaves(state, is_leaf=is_ours)), None)


def _kept(matrices: State, auxiliary: State, ours: Tree, theirs: Tree) -> Tree:
    """Parameters that one side's `mvr2` needs and the other side does not keep itself."""
    mine, other = _estimate(matrices), _estimate(auxiliary)
    if (mine is None) == (other is None):
        return ()
    return jax.tree.map(jnp.copy, theirs if other is None else ours)


def _with_gradients(
    like: Tree, chosen: list[bool], state: PartitionState, extra: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Extra arguments of both sides, with ``grad_fn`` called at the last parameters of both."""
    mine, other = _estimate(state.matrices), _estimate(state.auxiliary)
    if extra.get("grad_fn") is None or (mine is None and other is None):
        return extra, extra
    ours = state.params if mine is None else mine.params
    theirs = state.params if other is None else other.params
    gradients = _split(extra["grad_fn"](_join(like, ours, theirs, chosen)), chosen)
    rest = {name: value for name, value in extra.items() if name != "grad_fn"}
    ours, theirs = (
        rest if estimate is None else rest | {"grad_fn": lambda params, g=gradient: g}
        for estimate, gradient in zip((mine, other), gradients, strict=True)
    )
    return ours, theirs


def _join(like: Tree, ours: Tree, theirs: Tree, chosen: list[bool]) -> Tree:
    """Undoes `_split`."""
    our_leaves, their_leaves = iter(jax.tree.leaves(ours)), iter(jax.tree.leaves(theirs))
    leaves = [next(our_leaves if mine else their_leaves) for mine in chosen]
    return jax.tree.structure(like).unflatten(leaves)
