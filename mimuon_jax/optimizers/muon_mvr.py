"""Muon on gradient estimates with variance reduction."""

from __future__ import annotations

import optax
from jax.typing import DTypeLike

from mimuon_jax.optimizers.optax_names import explains_optax_names
from mimuon_jax.optimizers.recipe import adam_rate, as_adamw, decayed, descent
from mimuon_jax.transforms.checks import check_decay
from mimuon_jax.transforms.fused import Split
from mimuon_jax.transforms.gains import GainName
from mimuon_jax.transforms.orthogonalize import OrthogonalizerName, orthogonalize
from mimuon_jax.transforms.partition import partition
from mimuon_jax.transforms.variance_reduction import mvr1, mvr2
from mimuon_jax.types import Gain, LearningRate, Mask, Matrices, Number, Orthogonalizer, Shardings


@explains_optax_names
def muon_mvr1(
    learning_rate: LearningRate,
    *,
    gamma: Number = 0.05,
    clip: float | None = None,
    momentum: Number = 0.95,
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
    """Muon-MVR1: Muon on an estimate corrected by the gradient of the previous step.

    ``M_t = beta M_{t-1} + (1 - beta) G_t + gamma beta (G_t - G_{t-1})`` from ``M_0 = G_0``;
    ``W <- (1 - eta lambda) W - eta gain Orth(M_t)``. One gradient per step.

    Args:
      learning_rate: ``eta``, a number or a schedule, as for `muon`.
      gamma: strength of the correction in [0, 1]; 0 is `muon` on ``ema(start="gradient")``.
      clip: bound of the corrected gradient of every matrix, see `mvr1`; None: no bound.
      momentum: ``beta`` in [0, 1).
      orthogonalizer: see `orthogonalize`.
      gain: factor by shape, see `scale_by_gain`; a number is the RMS of an update.
      weight_decay: ``lambda >= 0`` of the matrices; 0: no decay.
      auxiliary: transformation of all other parameters, with its own learning rate; None: AdamW
        at ``auxiliary_learning_rate``.
      auxiliary_learning_rate: None: ``0.015 learning_rate``, schedule included (3e-4 at 0.02), or
        ``learning_rate`` itself with the gain ``"rms"`` or a number.
      matrices: see `partition`.
      shardings: of the parameters, see `orthogonalize`; None: read from the arrays.
      split: fused matrices (one ``qkv`` kernel) whose parts are matrices, see `split_fused`.
      weight_decay_mask: booleans, a tree or prefix tree like the parameters or a function of them:
        which matrices decay; None: all.
      auxiliary_weight_decay: decay of the default AdamW, decoupled; None: no decay.
      state_dtype: dtype of the estimate and the kept gradient, such as ``jnp.bfloat16``; None: the
        parameter's.

    Returns:
      The optimizer.

    Raises:
      ValueError: an unknown name or a number out of range here, or at ``init`` as `partition`.

    Source:
      "On the Convergence of Muon and Beyond", Muon-MVR1.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import muon_mvr1
      >>> tx, params = muon_mvr1(0.5, orthogonalizer="svd"), {"kernel": 4 * jnp.eye(2)}
      >>> tx.update(params, tx.init(params))[0]["kernel"].tolist()
      [[-0.5, -0.0], [-0.0, -0.5]]
    """
    check_decay(momentum, "momentum")
    steps = optax.chain(
        mvr1(momentum, gamma, clip=clip, accumulator_dtype=state_dtype),
        orthogonalize(orthogonalizer, gain=gain, split=split, shardings=shardings),
        decayed(weight_decay, weight_decay_mask),
        descent(learning_rate),
    )
    rest = as_adamw(
        auxiliary, auxiliary_learning_rate, auxiliary_weight_decay, adam_rate(learning_rate, gain)
    )
    return partition(steps, rest, matrices=matrices)


@explains_optax_names
def muon_mvr2(
    learning_rate: LearningRate,
    *,
    gamma: Number = 0.05,
    clip: float | None = None,
    momentum: Number = 0.95,
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
    """Muon-MVR2: Muon on an estimate corrected by this batch's gradient at the previous point.

    ``M_t = beta M_{t-1} + (1 - beta) G_t + gamma beta (G_t - G'_t)`` from ``M_0 = G_0``, with
    ``G'_t`` the gradient of batch ``t`` at ``W_{t-1}``;
    ``W <- (1 - eta lambda) W - eta gain Orth(M_t)``. Two gradients per step.

    Args:
      learning_rate: ``eta``, a number or a schedule, as for `muon`.
      gamma: strength of the correction in [0, 1]; 0 is `muon` on ``ema(start="gradient")``, 1 is
        STORM.
      clip: bound of the corrected gradient of every matrix, see `mvr1`; None: no bound.
      momentum: ``beta`` in [0, 1).
      orthogonalizer: see `orthogonalize`.
      gain: factor by shape, see `scale_by_gain`; a number is the RMS of an update.
      weight_decay: ``lambda >= 0`` of the matrices; 0: no decay.
      auxiliary: transformation of all other parameters, with its own learning rate; None: AdamW
        at ``auxiliary_learning_rate``.
      auxiliary_learning_rate: None: ``0.015 learning_rate``, schedule included (3e-4 at 0.02), or
        ``learning_rate`` itself with the gain ``"rms"`` or a number.
      matrices: see `partition`.
      shardings: of the parameters, see `orthogonalize`; None: read from the arrays.
      split: fused matrices (one ``qkv`` kernel) whose parts are matrices, see `split_fused`.
      weight_decay_mask: booleans, a tree or prefix tree like the parameters or a function of them:
        which matrices decay; None: all.
      auxiliary_weight_decay: decay of the default AdamW, decoupled; None: no decay.
      state_dtype: dtype of the estimate, such as ``jnp.bfloat16``; None: that of each parameter.

    Returns:
      The optimizer. Its ``update`` needs ``params`` and ``grad_fn``, a function of all parameters
      that returns the gradient of the same batch; it is called once. The state keeps the previous
      parameters, all of them.

    Raises:
      ValueError: an unknown name or a number out of range here, or at ``init`` as `partition`; at
        ``update`` without ``grad_fn``.

    Source:
      "On the Convergence of Muon and Beyond", Muon-MVR2.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from mimuon_jax import muon_mvr2
      >>> tx, params = muon_mvr2(0.5, orthogonalizer="svd"), {"kernel": 4 * jnp.eye(2)}
      >>> grad_fn = jax.grad(lambda params: (params["kernel"] ** 2).sum() / 2)
      >>> gradient = grad_fn(params)
      >>> tx.update(gradient, tx.init(params), params, grad_fn=grad_fn)[0]["kernel"].tolist()
      [[-0.5, -0.0], [-0.0, -0.5]]
    """
    check_decay(momentum, "momentum")
    steps = optax.chain(
        mvr2(momentum, gamma, clip=clip, accumulator_dtype=state_dtype),
        orthogonalize(orthogonalizer, gain=gain, split=split, shardings=shardings),
        decayed(weight_decay, weight_decay_mask),
        descent(learning_rate),
    )
    rest = as_adamw(
        auxiliary, auxiliary_learning_rate, auxiliary_weight_decay, adam_rate(learning_rate, gain)
    )
    return partition(steps, rest, matrices=matrices)
