"""Orthogonalization as a transformation, and orthogonalizers by name."""

from __future__ import annotations

import functools
from typing import Literal, TypeAlias

import optax

from mimuon_jax.linalg.coefficients import DION, JORDAN
from mimuon_jax.linalg.newton_schulz import fast_newton_schulz, gram_newton_schulz, newton_schulz
from mimuon_jax.linalg.powers import polar
from mimuon_jax.transforms.fused import Split
from mimuon_jax.transforms.gains import GainName
from mimuon_jax.transforms.per_matrix import per_matrix
from mimuon_jax.types import Gain, Matrices, Orthogonalizer, Shardings

#: Names of orthogonalizers.
OrthogonalizerName: TypeAlias = Literal[
    "newton_schulz",
    "polar_express",
    "gram_newton_schulz",
    "fast_newton_schulz",
    "jordan",
    "dion",
    "svd",
]

#: Orthogonalizers by name.
ORTHOGONALIZERS: dict[OrthogonalizerName, Orthogonalizer] = {
    "newton_schulz": newton_schulz,
    "polar_express": newton_schulz,
    "gram_newton_schulz": gram_newton_schulz,
    "fast_newton_schulz": fast_newton_schulz,
    "jordan": functools.partial(newton_schulz, schedule=JORDAN),
    "dion": functools.partial(newton_schulz, schedule=DION),
    "svd": polar,
}


def as_orthogonalizer(orthogonalizer: OrthogonalizerName | Orthogonalizer) -> Orthogonalizer:
    """The function that an ``orthogonalizer`` argument stands for."""
    if callable(orthogonalizer):
        return orthogonalizer
    if orthogonalizer in ORTHOGONALIZERS:
        return ORTHOGONALIZERS[orthogonalizer]
    raise ValueError(
        f"orthogonalizer={orthogonalizer!r} is unknown; use "
        f"{', '.join(map(repr, ORTHOGONALIZERS))} or a function [..., m, n] -> [..., m, n]"
    )


def orthogonalize(
    orthogonalizer: OrthogonalizerName | Orthogonalizer = "newton_schulz",
    *,
    equivariant: bool | None = None,
    gain: GainName | float | Gain | None = None,
    split: Split | None = None,
    matrices: Matrices = None,
    shardings: Shardings = None,
) -> optax.GradientTransformationExtraArgs:
    """Replaces every matrix ``M = U S V^T`` by ``gain * U V^T``.

    All matrices of one shape form one batch, whichever leaves they come from. Auxiliary leaves
    pass through unchanged; `partition` gives them a transformation of their own.

    Args:
      orthogonalizer: ``"newton_schulz"``, also named ``"polar_express"`` (6 steps; 0.6 % error),
        ``"gram_newton_schulz"`` (the same, cheaper for long matrices), ``"fast_newton_schulz"``
        (the cheaper of the two by shape, symmetric products halved; compiles longer), ``"jordan"``
        (5 steps; singular values end between 0.5 and 1.2), ``"dion"`` (likewise), ``"svd"``, or
        a function ``[..., m, n] -> [..., m, n]``, such as
        ``functools.partial(newton_schulz, schedule=polar_express(5))`` for 5 steps. A function
        that is not declared `equivariant` gets every matrix as ``[reduction, output]``, in batches
        of equal shape. A complex matrix ``A + iB`` is passed as the real one
        ``[[A, -B], [B, A]]``, whose orthogonal factor has the same form.
      equivariant: whether the function commutes with transposition and zero padding, so that
        matrices of different shapes can share batches; None: as declared, see `equivariant`.
      gain: factor that depends on the shape, see `scale_by_gain`: ``"width"``, ``"rms"``,
        ``"spectral"``, ``"unflattened"``, a number (the RMS), a function
        ``(reduction, output) -> float``, or None for 1.
      split: fused matrices to be orthogonalized part by part, see `split_fused`; None: there are
        none.
      matrices: as in `partition`.
      shardings: how the parameters are sharded: a tree, a prefix tree or a function
        ``params -> tree`` with one ``NamedSharding`` or ``PartitionSpec`` per parameter (None: not
        sharded). None: read from the arrays, on Auto mesh axes by an ``init`` outside ``jax.jit``,
        which also takes shapes with shardings (``jax.ShapeDtypeStruct``). Where they do not show
        it, matrices are moved without knowing it, in more exchanges. Wrong shardings cost time,
        never correctness.

    Returns:
      A transformation without state. Its ``update`` takes ``active``, ``{path: bool [*batch]}``
      with paths as in `describe`; results for matrices that are not active are unspecified (see
      `threshold_gate`).

    Raises:
      ValueError: a name is unknown; at ``init``, as `partition`.

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
