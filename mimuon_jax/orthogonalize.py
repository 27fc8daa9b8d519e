"""Orthogonalization as a transformation: every matrix of a tree, few batches, one function."""

import functools

import jax
import jax.numpy as jnp
import optax

from mimuon_jax.batching import map_matrices
from mimuon_jax.coefficients import DION, JORDAN
from mimuon_jax.gains import as_gain, scale
from mimuon_jax.matrices import matrix_shape, roles
from mimuon_jax.newton_schulz import newton_schulz
from mimuon_jax.powers import polar
from mimuon_jax.sharding import of_leaves
from mimuon_jax.types import Gain, Matrices, Orthogonalizer, Shardings, State, Tree

#: The orthogonalizers that have a name.
ORTHOGONALIZERS: dict[str, Orthogonalizer] = {
    "newton_schulz": newton_schulz,
    "jordan": functools.partial(newton_schulz, schedule=JORDAN),
    "dion": functools.partial(newton_schulz, schedule=DION),
    "svd": polar,
}


def as_orthogonalizer(orthogonalizer: str | Orthogonalizer) -> Orthogonalizer:
    """The function that an ``orthogonalizer`` argument means."""
    if callable(orthogonalizer):
        return orthogonalizer
    if orthogonalizer in ORTHOGONALIZERS:
        return ORTHOGONALIZERS[orthogonalizer]
    raise ValueError(
        f"orthogonalizer={orthogonalizer!r} is unknown; use "
        f"{', '.join(map(repr, ORTHOGONALIZERS))} or a function [..., m, n] -> [..., m, n]"
    )


def orthogonalize(
    orthogonalizer: str | Orthogonalizer = "newton_schulz",
    *,
    gain: str | Gain | None = None,
    matrices: Matrices = None,
    shardings: Shardings = None,
) -> optax.GradientTransformationExtraArgs:
    """Replaces every matrix ``M = U S V^T`` by ``gain * U V^T``.

    Matrices of equal shape, whatever leaves they come from, are one batch. Leaves that are no
    matrices pass through unchanged: `partition` gives them a transformation of their own.

    Args:
      orthogonalizer: ``"newton_schulz"`` (Polar Express, 6 steps), ``"jordan"`` (5 steps, singular
        values end between 0.5 and 1.2), ``"dion"`` (5 steps, likewise), ``"svd"`` (exact, slow), or
        a function ``[..., m, n] -> [..., m, n]``, such as
        ``functools.partial(newton_schulz, schedule=...)``. Nothing is assumed of a function of your
        own: it gets ``[reduction, output]``, matrices of equal shape together.
      gain: factor by shape: ``"width"``, ``"rms"``, ``"spectral"``, a function
        ``(reduction, output) -> float``, or None for 1.
      matrices: as in `partition`.
      shardings: how the parameters lie on the mesh, a ``NamedSharding`` or ``PartitionSpec`` each
        (None: not cut), as a tree, a prefix tree or a function ``params -> tree``. None: learned
        from the arrays. Only needed for Auto mesh axes under ``jax.vmap``, ``jax.grad`` or
        ``jax.export``; a wrong one costs time, never correctness.

    Returns:
      A transformation without state. Its ``update`` takes ``active``, a tree with a bool array
      ``[*batch]`` for every matrix: what is not active need not be computed (`threshold_gate`).

    Raises:
      ValueError: an unknown name; at ``init`` as `partition`.

    Source:
      Jordan et al., "Muon", 2024; Amsel et al., "The Polar Express", 2025 (arXiv 2505.16932).

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import orthogonalize
      >>> tx = orthogonalize("svd")
      >>> grads = {"kernel": 3 * jnp.eye(2)}
      >>> tx.update(grads, tx.init(grads))[0]["kernel"].tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """
    return map_tree(as_orthogonalizer(orthogonalizer), gain, matrices, shardings)


def is_equivariant(function: Orthogonalizer) -> bool:
    """Whether it is one of ours: they commute with transposition and with padding by zeros."""
    while isinstance(function, functools.partial):
        function = function.func
    return function in (newton_schulz, polar)


def map_tree(
    function: Orthogonalizer,
    gain: str | Gain | None,
    matrices: Matrices,
    shardings: Shardings,
) -> optax.GradientTransformationExtraArgs:
    """A function of matrices as a transformation of trees, times a gain."""
    factor = as_gain(gain)

    def init(params: Tree) -> optax.EmptyState:
        roles(params, matrices)
        return optax.EmptyState()

    def update(
        updates: Tree,
        state: State,
        params: Tree = None,
        *,
        active: Tree = None,
        **extra: object,
    ) -> tuple[Tree, optax.EmptyState]:
        del params, extra
        entries, treedef = jax.tree_util.tree_flatten_with_path(updates)
        leaves = [leaf for _, leaf in entries]
        numbers = {i: r.numbers for i, r in enumerate(roles(updates, matrices)) if r.numbers}
        needed = dict(jax.tree_util.tree_flatten_with_path(active)[0])
        results = map_matrices(
            function,
            [jnp.asarray(leaves[i]) for i in numbers],
            list(numbers.values()),
            shardings=of_leaves(shardings, updates, numbers),
            active=[needed.get(entries[i][0]) for i in numbers],
            equivariant=is_equivariant(function),
        )
        for (i, number), result in zip(numbers.items(), results, strict=True):
            leaves[i] = scale(result, factor(*matrix_shape(result.shape, number)))
        return treedef.unflatten(leaves), state

    return optax.GradientTransformationExtraArgs(init, update)
