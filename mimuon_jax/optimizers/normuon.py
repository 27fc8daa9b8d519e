"""NorMuon and AdaMuon: Muon with a second moment after orthogonalization."""

from __future__ import annotations

import optax
from jax.typing import DTypeLike

from mimuon_jax.optimizers.optax_names import explains_optax_names
from mimuon_jax.optimizers.recipe import adam_rate, as_adamw, as_momentum, decayed, descent
from mimuon_jax.transforms.checks import check_positive, check_share
from mimuon_jax.transforms.fused import Split, split_fused
from mimuon_jax.transforms.gains import GainName, scale_by_gain
from mimuon_jax.transforms.orthogonalize import OrthogonalizerName, orthogonalize
from mimuon_jax.transforms.partition import partition
from mimuon_jax.transforms.units import MEMORY, UnitName, normalize_units
from mimuon_jax.types import (
    Gain,
    LearningRate,
    Mask,
    Matrices,
    Number,
    Orthogonalizer,
    Shardings,
)


@explains_optax_names
def normuon(
    learning_rate: LearningRate,
    *,
    beta2: Number = 0.95,
    per: UnitName = "output",
    eps: Number = 1e-8,
    momentum: Number | optax.GradientTransformation = 0.95,
    nesterov: bool = True,
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
    """NorMuon: Muon whose neurons have updates of equal running size.

    ``O_t = Orth(M_t)``; ``v_t = beta2 v_{t-1} + (1 - beta2) mean(O_t^2)`` per neuron;
    ``Y_t = O_t / sqrt(v_t)``; ``W <- (1 - eta lambda) W - eta gain Y_t |O_t| / |Y_t|``.

    Args:
      learning_rate: ``eta``, a number or a schedule; 0.02 is the source's, as for `muon`.
      beta2: in [0, 1]: 0 looks at this step alone, 1 is `muon`.
      per: ``"output"``: a neuron is an index of the output axis, as in the source; ``"longer"``: of
        the longer axis, as in modded-nanogpt. An exactly orthogonal matrix varies along its longer
        axis alone: with ``"output"`` little changes if ``output <= reduction``.
      eps: added to the root of ``v_t``.
      momentum: ``mu`` in [0, 1) of `heavy_ball`, or a transformation such as ``ema(0.95)``, whose
        direction is the same.
      nesterov: pass on the look-ahead ``mu M_t + G_t``; False: ``M_t``, or what ``momentum`` says.
      orthogonalizer: see `orthogonalize`.
      gain: factor by shape, see `scale_by_gain`; ``"rms"`` gives updates of RMS 0.2, as in the
        paper, and keeps AdamW's learning rate.
      weight_decay: ``lambda >= 0`` of the matrices; 0: no decay, as in the source.
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
      The optimizer. Its state has one number per neuron more than that of `muon`.

    Raises:
      ValueError: an unknown name or a number out of range here, or at ``init`` as `partition`.

    Source:
      "NorMuon", 2025 (arXiv 2510.05491), and its code.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import normuon
      >>> params = {"kernel": 4 * jnp.eye(2), "bias": jnp.zeros(2)}
      >>> tx = normuon(0.5, orthogonalizer="svd")
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> updates["kernel"].round(3).tolist()
      [[-0.5, -0.0], [-0.0, -0.5]]
    """
    check_share("beta2", beta2, MEMORY)
    normalized = optax.chain(
        orthogonalize(orthogonalizer, shardings=shardings),
        normalize_units(beta2, per=per, eps=eps),
        scale_by_gain(gain),
    )
    steps = optax.chain(
        as_momentum(momentum, nesterov, state_dtype),
        split_fused(normalized, split),
        decayed(weight_decay, weight_decay_mask),
        descent(learning_rate),
    )
    rest = as_adamw(
        auxiliary, auxiliary_learning_rate, auxiliary_weight_decay, adam_rate(learning_rate, gain)
    )
    return partition(steps, rest, matrices=matrices)


@explains_optax_names
def adamuon(
    learning_rate: LearningRate,
    *,
    beta2: Number = 0.95,
    rms: Number = 0.2,
    eps: Number = 1e-8,
    momentum: Number | optax.GradientTransformation = 0.95,
    nesterov: bool = True,
    orthogonalizer: OrthogonalizerName | Orthogonalizer = "newton_schulz",
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
    """AdaMuon: the orthogonalized signs of the momentum, divided entry by entry as in Adam.

    ``O_t = Orth(sign(M_t))``; ``v_t = beta2 v_{t-1} + (1 - beta2) O_t^2``;
    ``Y_t = O_t / sqrt(v_t)``; ``W <- (1 - eta lambda) W - eta rms Y_t / RMS(Y_t)``.

    Args:
      learning_rate: ``eta``, a number or a schedule: AdamW's, since updates have its RMS; 6e-4 in
        the source.
      beta2: decay of the second moment, in [0, 1]; the source uses the one of the momentum.
      rms: root mean square of an update.
      eps: added to the root of ``v_t``.
      momentum: ``mu`` in [0, 1) of `heavy_ball`, or a transformation such as ``ema(0.95)``, whose
        signs are the same.
      nesterov: pass on the look-ahead ``mu M_t + G_t``; False: ``M_t``, or what ``momentum`` says.
      orthogonalizer: see `orthogonalize`.
      weight_decay: ``lambda >= 0`` of the matrices; 0: no decay. The source: 0.01 to 0.1.
      auxiliary: transformation of all other parameters, with its own learning rate; None: AdamW
        at ``auxiliary_learning_rate``.
      auxiliary_learning_rate: None: ``learning_rate``.
      matrices: see `partition`.
      shardings: of the parameters, see `orthogonalize`; None: read from the arrays.
      split: fused matrices (one ``qkv`` kernel) whose parts are matrices, see `split_fused`.
      weight_decay_mask: as for `muon`.
      auxiliary_weight_decay: decay of the default AdamW, decoupled; None: no decay.
      state_dtype: dtype of the momentum, such as ``jnp.bfloat16``; None: that of each parameter.

    Returns:
      The optimizer. Its state has one float32 array like every matrix more than that of `muon`.

    Raises:
      ValueError: an unknown name or a number out of range here, or at ``init`` as `partition`.

    Source:
      "AdaMuon: Adaptive Muon Optimizer", 2025 (arXiv 2507.11005), version 3.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import adamuon
      >>> params = {"kernel": jnp.array([[4.0, 4.0], [4.0, -4.0]]), "bias": jnp.zeros(2)}
      >>> tx = adamuon(1.25, orthogonalizer="svd")
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> updates["kernel"].round(3).tolist()  # RMS 1.25 * 0.2
      [[-0.25, -0.25], [-0.25, 0.25]]
    """
    check_share("beta2", beta2, MEMORY)
    check_positive("rms", rms, "the root mean square of the entries of an update")
    normalized = optax.chain(
        orthogonalize(orthogonalizer, shardings=shardings),
        normalize_units(beta2, per="element", restore=rms, eps=eps),
    )
    steps = optax.chain(
        as_momentum(momentum, nesterov, state_dtype),
        optax.scale_by_sign(),
        split_fused(normalized, split),
        decayed(weight_decay, weight_decay_mask),
        descent(learning_rate),
    )
    rest = as_adamw(auxiliary, auxiliary_learning_rate, auxiliary_weight_decay, learning_rate)
    return partition(steps, rest, matrices=matrices)
