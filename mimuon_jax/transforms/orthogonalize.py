"""Orthogonalization as a transformation, and the names of orthogonalizers."""

import functools

import optax

from mimuon_jax.linalg.coefficients import DION, JORDAN
from mimuon_jax.linalg.newton_schulz import fast_newton_schulz, gram_newton_schulz, newton_schulz
from mimuon_jax.linalg.powers import polar
from mimuon_jax.transforms.fused import Split
from mimuon_jax.transforms.per_matrix import per_matrix
from mimuon_jax.types import Gain, Matrices, Orthogonalizer, Shardings

#: The orthogonalizers that have a name.
ORTHOGONALIZERS: dict[str, Orthogonalizer] = {
    "newton_schulz": newton_schulz,
    "gram_newton_schulz": gram_newton_schulz,
    "fast_newton_schulz": fast_newton_schulz,
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
    equivariant: bool | None = None,
    gain: str | Gain | None = None,
    split: Split | None = None,
    matrices: Matrices = None,
    shardings: Shardings = None,
) -> optax.GradientTransformationExtraArgs:
    """Replaces every matrix ``M = U S V^T`` by ``gain * U V^T``.

    Matrices of equal shape, whatever leaves they come from, are one batch. Leaves that are no
    matrices pass through unchanged: `partition` gives them a transformation of their own.

    Args:
      orthogonalizer: ``"newton_schulz"`` (Polar Express, 6 steps; 0.6 % error),
        ``"gram_newton_schulz"`` (the same, cheaper for long matrices), ``"fast_newton_schulz"``
        (the cheaper of the two by shape, symmetric products halved; compiles longer), ``"jordan"``
        (5 steps, singular values end between 0.5 and 1.2), ``"dion"`` (likewise), ``"svd"``, or
        a function ``[..., m, n] -> [..., m, n]``, such as
        ``functools.partial(newton_schulz, schedule=...)``. A function that is not declared
        `equivariant` gets every matrix as ``[reduction, output]``, those of equal shape together.
      equivariant: whether the function commutes with transposition and zero padding, so that
        matrices of different shapes share batches; None: as declared, see `equivariant`.
      gain: factor by shape, see `scale_by_gain`: ``"width"``, ``"rms"``, ``"spectral"``,
        ``"unflattened"``, a function ``(reduction, output) -> float``, or None for 1.
      split: fused matrices that are orthogonalized part by part, see `split_fused`; None: none.
      matrices: as in `partition`.
      shardings: how the parameters lie on the mesh, a ``NamedSharding`` or ``PartitionSpec`` each
        (None: not cut), as a tree, a prefix tree or a function ``params -> tree``. None: learned
        from the arrays. Only needed for Auto mesh axes under ``jax.vmap``, ``jax.grad`` or
        ``jax.export``; a wrong one costs time, never correctness.

    Returns:
      A transformation without state. Its ``update`` takes ``active``, ``{path: bool [*batch]}``
      with paths as in `describe`: matrices that are not active need not be computed
      (`threshold_gate`).

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
    return per_matrix(
        as_orthogonalizer(orthogonalizer),
        equivariant=equivariant,
        gain=gain,
        split=split,
        matrices=matrices,
        shardings=shardings,
    )
