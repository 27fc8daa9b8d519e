"""NAMO: Muon whose step size adapts to the noise of the gradients."""

from __future__ import annotations

import optax
from jax.typing import DTypeLike

from mimuon_jax.optimizers.optax_names import explains_optax_names
from mimuon_jax.optimizers.recipe import adam_rate, as_adamw, as_momentum, decayed, descent
from mimuon_jax.transforms.checks import check_decay
from mimuon_jax.transforms.fused import Split, split_fused
from mimuon_jax.transforms.gains import GainName
from mimuon_jax.transforms.momentum import ema
from mimuon_jax.transforms.namo import scale_by_namo
from mimuon_jax.transforms.orthogonalize import OrthogonalizerName, orthogonalize
from mimuon_jax.transforms.partition import partition
from mimuon_jax.types import Gain, LearningRate, Mask, Matrices, Number, Orthogonalizer, Shardings


@explains_optax_names
def namo(
    learning_rate: LearningRate,
    *,
    beta2: Number = 0.95,
    eps: Number = 1e-8,
    momentum: Number | optax.GradientTransformation = 0.95,
    nesterov: bool = False,
    orthogonalizer: OrthogonalizerName | Orthogonalizer = "newton_schulz",
    gain: GainName | float | Gain | None = "width",
    weight_decay: Number = 0.0,
    auxiliary: optax.GradientTransformation | None = None,
    auxiliary_learning_rate: LearningRate | None = None,
    matrices: Matrices = None,
    shardings: Shardings = None,
    split: Split | None = None,
    weight_decay_mask: Mask = None,
    auxiliary_weight_decay: Number | None = None,
    state_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """NAMO: Muon times the norm of its momentum, relative to a running norm of the gradients.

    ``v_t = beta2 v_{t-1} + (1 - beta2) |G_t|^2``, one number per matrix;
    ``W <- (1 - eta lambda) W - eta gain Orth(M_t) |M_t| / (sqrt(v_t) + eps)``; AdamW for everything
    else.

    Args:
      learning_rate: ``eta``, a number or a schedule. Steps are at most about as long as Muon's, and
        shorter the less the gradients agree.
      beta2: decay of the mean square, in [0, 1).
      eps: added to the root of ``v_t``, in the unit of the norm of a gradient.
      momentum: decay of an average, in [0, 1), as in `ema` (a heavy ball would give updates
        ``1 / (1 - mu)`` times as large), or a transformation of gradients.
      nesterov: pass on the look-ahead; False: ``M_t``, or what ``momentum`` says.
      orthogonalizer: see `orthogonalize`.
      gain: factor by shape, see `scale_by_gain`.
      weight_decay: ``lambda >= 0`` of the matrices; 0: no decay.
      auxiliary: transformation of all other parameters, with its own learning rate; None: AdamW
        at ``auxiliary_learning_rate``.
      auxiliary_learning_rate: None: ``0.015 learning_rate``, schedule included, or
        ``learning_rate`` itself with the gain ``"rms"`` or a number.
      matrices: see `partition`.
      shardings: of the parameters, see `orthogonalize`; None: read from the arrays.
      split: fused matrices (one ``qkv`` kernel) whose parts are matrices, see `split_fused`.
      weight_decay_mask: as for `muon`.
      auxiliary_weight_decay: decay of the default AdamW, decoupled; None: no decay.
      state_dtype: dtype of the momentum, such as ``jnp.bfloat16``; None: that of each parameter.

    Returns:
      The optimizer. Its state has one number per matrix more than that of `muon`.

    Raises:
      ValueError: an unknown name or a number out of range here, or at ``init`` as `partition`.

    Source:
      "NAMO", 2026 (arXiv 2602.17080), as in NVIDIA's Emerging Optimizers: no bias correction, and a
      weight decay that the factor does not scale.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import namo
      >>> params = {"kernel": 4 * jnp.eye(2)}
      >>> tx = namo(0.5, beta2=0.75, momentum=0.5, orthogonalizer="svd")
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> updates["kernel"].round(4).tolist()  # -0.5 * 0.5 / sqrt(0.25)
      [[-0.5, -0.0], [-0.0, -0.5]]
    """
    check_decay(beta2, "beta2")
    if not isinstance(momentum, optax.GradientTransformation):
        check_decay(momentum, "momentum")
        momentum, state_dtype = ema(momentum, accumulator_dtype=state_dtype), None
    scaled = scale_by_namo(
        as_momentum(momentum, nesterov, state_dtype),
        orthogonalize(orthogonalizer, gain=gain, shardings=shardings),
        beta2,
        eps=eps,
    )
    steps = optax.chain(
        split_fused(scaled, split),
        decayed(weight_decay, weight_decay_mask),
        descent(learning_rate),
    )
    rest = as_adamw(
        auxiliary, auxiliary_learning_rate, auxiliary_weight_decay, adam_rate(learning_rate, gain)
    )
    return partition(steps, rest, matrices=matrices)
