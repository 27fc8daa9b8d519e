"""Scion: every parameter, embeddings and heads included, moves in a norm of its own."""

from __future__ import annotations

from collections.abc import Mapping

import optax
from jax.typing import DTypeLike

from mimuon_jax.optimizers.optax_names import explains_optax_names
from mimuon_jax.optimizers.recipe import as_auxiliary, as_momentum, decayed, descent
from mimuon_jax.transforms.checks import check_weight
from mimuon_jax.transforms.fused import Split
from mimuon_jax.transforms.norms import NormName, lmo
from mimuon_jax.transforms.orthogonalize import OrthogonalizerName
from mimuon_jax.transforms.partition import partition
from mimuon_jax.types import LearningRate, Mask, Matrices, Number, Orthogonalizer, Shardings


@explains_optax_names
def scion(
    learning_rate: LearningRate,
    *,
    radius: Number = 50.0,
    auxiliary_radius: Number = 3000.0,
    norms: Mapping[str, NormName] | None = None,
    momentum: Number | optax.GradientTransformation = 0.9,
    nesterov: bool = False,
    orthogonalizer: OrthogonalizerName | Orthogonalizer = "newton_schulz",
    weight_decay: Number = 1.0,
    auxiliary: optax.GradientTransformation | None = None,
    auxiliary_learning_rate: LearningRate | None = None,
    matrices: Matrices = None,
    shardings: Shardings = None,
    split: Split | None = None,
    weight_decay_mask: Mask = None,
    state_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Scion: ``W <- (1 - eta) W - eta rho lmo(M_t)``, with a norm per parameter and without AdamW.

    ``lmo(M)`` is the extreme point of the unit ball in the direction of ``M``: for matrices
    ``sqrt(n / m) Orth(M)``, for output heads ``sign(M) / m``, for embeddings and vectors every row
    divided by its root mean square. With ``eta <= 1``, a parameter that starts in its ball of
    radius ``rho`` stays there.

    Args:
      learning_rate: ``eta``, a number or a schedule; 2^-12 in the source (NanoGPT).
      radius: ``rho >= 0`` of the matrices; 50 in the source.
      auxiliary_radius: ``rho >= 0`` of all other parameters; 3000 in the source, for output heads
        and tied embeddings.
      norms: other norms by patterns of paths, see `lmo`; None: the default.
      momentum: ``mu`` in [0, 1) of `heavy_ball`, or a transformation such as ``ema(0.9)``, whose
        direction is the same.
      nesterov: pass on the look-ahead; False, as in the source: ``M_t``.
      orthogonalizer: see `orthogonalize`.
      weight_decay: ``lambda >= 0`` of all parameters; 1 is Scion, 0 unconstrained Scion.
      auxiliary: transformation of all other parameters, with its own learning rate; None: Scion.
      auxiliary_learning_rate: None: ``learning_rate``.
      matrices: see `partition`.
      shardings: of the parameters, see `orthogonalize`; None: read from the arrays.
      split: fused matrices (one ``qkv`` kernel) whose parts are matrices, see `split_fused`.
      weight_decay_mask: as for `muon`, of all parameters.
      state_dtype: dtype of the momentum, such as ``jnp.bfloat16``; None: that of each parameter.

    Returns:
      The optimizer. Its state is the momentum of all parameters.

    Raises:
      ValueError: an unknown name or a number out of range here, or at ``init`` as `partition`.

    Source:
      "Training Deep Learning Models with Norm-Constrained LMOs", 2025 (arXiv 2502.07529). The
      source initializes the parameters on the spheres of these radii.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import scion
      >>> params = {"kernel": jnp.eye(2), "bias": jnp.ones(2)}
      >>> tx = scion(0.5, radius=2.0, auxiliary_radius=3.0, orthogonalizer="svd")
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> updates["kernel"].round(4).tolist(), updates["bias"].round(4).tolist()
      ([[-1.5, -0.0], [-0.0, -1.5]], [-2.0, -2.0])
    """
    for name, value in (("radius", radius), ("auxiliary_radius", auxiliary_radius)):
        check_weight(name, value)
    decay = decayed(weight_decay, weight_decay_mask)

    def steps(rate: LearningRate, rho: Number, split: Split | None) -> optax.GradientTransformation:
        return optax.chain(
            as_momentum(momentum, nesterov, state_dtype),
            lmo(norms, orthogonalizer=orthogonalizer, split=split, shardings=shardings),
            optax.scale(rho),
            decay,
            descent(rate),
        )

    rest = as_auxiliary(
        auxiliary,
        auxiliary_learning_rate,
        learning_rate,
        lambda rate: steps(rate, auxiliary_radius, None),
    )
    return partition(steps(learning_rate, radius, split), rest, matrices=matrices)
