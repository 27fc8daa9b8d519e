"""Functions of the singular values as transformations: Contra-Muon, PolarGrad, clipping.

All matrices go to their owners once, as in `orthogonalize`, whose arguments they take.
"""

from __future__ import annotations

import functools
import math

import optax

from mimuon_jax.linalg.coefficients import polar_express
from mimuon_jax.linalg.newton_schulz import newton_schulz
from mimuon_jax.linalg.spectra import clipped_spectrum, contra_polar, dual_polar
from mimuon_jax.transforms.checks import check_static
from mimuon_jax.transforms.fused import Split
from mimuon_jax.transforms.gains import GainName
from mimuon_jax.transforms.in_place import change_matrices
from mimuon_jax.transforms.orthogonalize import OrthogonalizerName, as_orthogonalizer
from mimuon_jax.transforms.per_matrix import per_matrix
from mimuon_jax.types import Gain, Matrices, Orthogonalizer, Shardings, State, Tree


def contra(
    strength: float = 0.4,
    *,
    orthogonalizer: OrthogonalizerName | Orthogonalizer = "newton_schulz",
    gain: GainName | float | Gain | None = None,
    split: Split | None = None,
    matrices: Matrices = None,
    shardings: Shardings = None,
) -> optax.GradientTransformationExtraArgs:
    """Contra-Muon: orthogonalizes, and takes away a share of the momentum itself.

    ``O - strength / 2 M / |M|_2`` with ``O = Orth(M)``, rescaled to ``|O|``: directions of large
    singular values get less. Auxiliary leaves pass through unchanged.

    Args:
      strength: in [0, 2), a Python number; 0 is `orthogonalize`. 0.4 in the source, which found
        the gain over its base within the noise.
      orthogonalizer: see `orthogonalize`.
      gain: factor that depends on the shape, as in `orthogonalize`; None for 1.
      split: fused matrices, as in `orthogonalize`.
      matrices: as in `partition`.
      shardings: as in `orthogonalize`.

    Returns:
      A transformation without state.

    Raises:
      ValueError: an unknown name or a number out of range; at ``init``, as `partition`.

    Source:
      modded-nanogpt, optimization track, pull request 275.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import contra
      >>> tx, grads = contra(0.8, orthogonalizer="svd"), {"kernel": jnp.diag(jnp.array([4.0, 2.0]))}
      >>> y = tx.update(grads, tx.init(grads))[0]["kernel"]
      >>> round(float(y[0, 0] / y[1, 1]), 3)  # 0.6 / 0.8
      0.75
    """
    check_static("strength", strength, lambda x: 0 <= x < 2, "in [0, 2)")
    function = functools.partial(
        contra_polar, strength=float(strength), orthogonalizer=as_orthogonalizer(orthogonalizer)
    )
    return per_matrix(function, gain=gain, split=split, matrices=matrices, shardings=shardings)


def scale_by_dual_norm(
    *,
    orthogonalizer: OrthogonalizerName | Orthogonalizer = "newton_schulz",
    gain: GainName | float | Gain | None = None,
    split: Split | None = None,
    matrices: Matrices = None,
    shardings: Shardings = None,
) -> optax.GradientTransformationExtraArgs:
    """Orthogonalizes, and multiplies by the nuclear norm: steepest descent of the spectral norm.

    ``<M, O> O`` with ``O = Orth(M)``; ``<M, O>`` is the nuclear norm of ``M``, the sum of its
    singular values, if ``O`` is exact. An update scales as the gradient does, so the learning rate
    of Muon does not carry over. Auxiliary leaves pass through unchanged.

    Args:
      orthogonalizer: see `orthogonalize`.
      gain: factor that depends on the shape, as in `orthogonalize`; None for 1.
      split: fused matrices, as in `orthogonalize`.
      matrices: as in `partition`.
      shardings: as in `orthogonalize`.

    Returns:
      A transformation without state.

    Raises:
      ValueError: an unknown name; at ``init``, as `partition`; at ``update``, a complex matrix.

    Source:
      "PolarGrad", 2025 (arXiv 2505.21799); Bernstein and Newhouse, 2024 (arXiv 2409.20325);
      ``adaptive=True`` in ``optax.contrib.muon``.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import scale_by_dual_norm
      >>> tx = scale_by_dual_norm(orthogonalizer="svd")
      >>> grads = {"kernel": jnp.diag(jnp.array([4.0, 2.0]))}
      >>> tx.update(grads, tx.init(grads))[0]["kernel"].round(4).tolist()
      [[6.0, 0.0], [0.0, 6.0]]
    """
    function = functools.partial(dual_polar, orthogonalizer=as_orthogonalizer(orthogonalizer))
    inner = per_matrix(function, gain=gain, split=split, matrices=matrices, shardings=shardings)

    def update(
        updates: Tree, state: State, params: Tree = None, **extra: object
    ) -> tuple[Tree, State]:
        # Complex matrices are computed as real ones of twice the size, and twice the nuclear norm.
        change_matrices(lambda place, x: x, updates, matrices=matrices)
        return inner.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def clip_spectrum(
    limit: float = 1.0,
    *,
    method: OrthogonalizerName | Orthogonalizer | None = None,
    gain: GainName | float | Gain | None = None,
    split: Split | None = None,
    matrices: Matrices = None,
    shardings: Shardings = None,
) -> optax.GradientTransformationExtraArgs:
    """Clips the singular values of every matrix: ``U min(S, limit) V^T``.

    Between SGD (a large limit) and Muon (a small one, divided by the limit). Auxiliary leaves pass
    through unchanged.

    Args:
      limit: largest singular value, a Python number > 0, in the unit of the updates.
      method: the orthogonalizer, see `orthogonalize`. Its error is multiplied by the limit; None:
        Newton-Schulz with 8 steps, accurate for singular values above 1e-3 of the norm.
      gain: factor that depends on the shape, as in `orthogonalize`; None for 1.
      split: fused matrices, as in `orthogonalize`.
      matrices: as in `partition`.
      shardings: as in `orthogonalize`.

    Returns:
      A transformation without state.

    Raises:
      ValueError: an unknown name or a number out of range; at ``init``, as `partition`.

    Source:
      Cesista, "Fast spectral clipping", 2025; used on gradients and on weights by several methods.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import clip_spectrum
      >>> tx = clip_spectrum(3.0, method="svd")
      >>> grads = {"kernel": jnp.diag(jnp.array([4.0, 2.0]))}
      >>> tx.update(grads, tx.init(grads))[0]["kernel"].round(4).tolist()
      [[3.0, 0.0], [0.0, 2.0]]
    """
    check_static("limit", limit, lambda x: 0 < x < math.inf, "> 0")
    chosen = _EIGHT_STEPS if method is None else as_orthogonalizer(method)
    function = functools.partial(clipped_spectrum, limit=float(limit), orthogonalizer=chosen)
    return per_matrix(function, gain=gain, split=split, matrices=matrices, shardings=shardings)


_EIGHT_STEPS = functools.partial(newton_schulz, schedule=polar_express(8))
