"""Muon, and MiMuon, which chooses between Muon and momentum SGD matrix by matrix."""

from __future__ import annotations

import optax
from jax.typing import DTypeLike

from mimuon_jax.linalg.measures import MeasureName
from mimuon_jax.optimizers.optax_names import explains_optax_names
from mimuon_jax.optimizers.recipe import adam_rate, as_adamw, as_momentum, decayed, descent
from mimuon_jax.transforms.fused import Split, split_fused
from mimuon_jax.transforms.gains import GainName
from mimuon_jax.transforms.gates import threshold_gate
from mimuon_jax.transforms.orthogonalize import OrthogonalizerName, orthogonalize
from mimuon_jax.transforms.partition import partition
from mimuon_jax.transforms.references import ReferenceName
from mimuon_jax.types import (
    Gain,
    LearningRate,
    Mask,
    Matrices,
    Measure,
    Number,
    Orthogonalizer,
    Shardings,
)


@explains_optax_names
def muon(
    learning_rate: LearningRate,
    *,
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
    """Muon: orthogonalized momentum for matrices, AdamW for auxiliary parameters.

    ``M_t = mu M_{t-1} + G_t``; ``W <- (1 - eta lambda) W - eta gain Orth(mu M_t + G_t)``.

    Args:
      learning_rate: ``eta``, a number or a schedule; 0.02 is usual with the gain ``"width"``,
        AdamW's with ``"rms"`` or a number as gain.
      momentum: ``mu`` in [0, 1) of `heavy_ball`, or a transformation such as ``ema(0.95)``.
      nesterov: pass on the look-ahead ``mu M_t + G_t``; False: ``M_t``, or what ``momentum`` says.
      orthogonalizer: see `orthogonalize`.
      gain: factor by shape: ``"width"``, ``"rms"``, ``"spectral"``, a number (the RMS of an
        update), a function or None.
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
      state_dtype: dtype of the momentum, such as ``jnp.bfloat16``; None: that of each parameter.

    Returns:
      The optimizer.

    Raises:
      ValueError: an unknown name or a number out of range here, or at ``init`` as `partition`.

    Source:
      Jordan et al., "Muon", 2024; Liu et al., 2025 (arXiv 2502.16982).

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mimuon_jax import muon
      >>> params = {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}
      >>> tx = muon(0.5, orthogonalizer="svd")
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> optax.apply_updates(params, updates)["kernel"].tolist()
      [[0.5, 0.0], [0.0, 0.5]]
    """
    steps = optax.chain(
        as_momentum(momentum, nesterov, state_dtype),
        orthogonalize(orthogonalizer, gain=gain, split=split, shardings=shardings),
        decayed(weight_decay, weight_decay_mask),
        descent(learning_rate),
    )
    rest = as_adamw(
        auxiliary, auxiliary_learning_rate, auxiliary_weight_decay, adam_rate(learning_rate, gain)
    )
    return partition(steps, rest, matrices=matrices)


@explains_optax_names
def mimuon(
    learning_rate: LearningRate,
    *,
    threshold: Number = 5e-3,
    measure: MeasureName | Measure = "rms",
    relative_to: ReferenceName | optax.GradientTransformation | None = None,
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
    """MiMuon: Muon for matrices with an open gate, momentum SGD for those with a closed one.

    ``M_t = mu M_{t-1} + G_t``; if ``measure(M_t) >= tau``:
    ``W <- (1 - eta lambda) W - eta gain Orth(M_t)``, else ``W <- (1 - eta lambda) W - eta M_t``.

    Args:
      learning_rate: ``eta``, a number or a schedule; the paper's experiments use 0.02.
      threshold: ``tau >= 0``, in the unit of ``M_t``; 0 is Muon, ``inf`` momentum SGD. The paper's
        values, 0.005 (language model) and 0.01 (detector), are for `heavy_ball`; with `ema` the
        same decisions need ``tau (1 - mu)``.
      measure: ``"rms"``, ``"gap"``, ``"spectral"``, ``"frobenius"`` or a function: see
        `threshold_gate`.
      relative_to: ``"peak"``, ``"average"``, ``"noise"`` or a transformation: divides the measure,
        so that ``tau`` does not depend on the scale of the gradients, see `threshold_gate`; None:
        the paper's gate, which clipping or scaling the gradients can close for good.
      momentum: ``mu`` in [0, 1) of `heavy_ball`, or a transformation such as ``ema(0.95)``.
      nesterov: gate and pass on the look-ahead ``mu M_t + G_t``; False: ``M_t``, or what
        ``momentum`` says.
      orthogonalizer: see `orthogonalize`.
      gain: factor by shape of the orthogonalized update alone: ``"width"``, ``"rms"``,
        ``"spectral"``, a number (the RMS of an update), a function or None.
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
      state_dtype: dtype of the momentum, such as ``jnp.bfloat16``; None: that of each parameter.

    Returns:
      The optimizer; decisions and measures are in its state, see `mimuon_jax.diagnostics`.

    Raises:
      ValueError: an unknown name or a number out of range here, or at ``init`` as `partition`.

    Source:
      MiMuon, algorithm 2 and section 5.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mimuon_jax import mimuon
      >>> params = {"up": 4 * jnp.eye(2), "down": 0.5 * jnp.eye(2), "bias": jnp.zeros(2)}
      >>> tx = mimuon(0.5, threshold=2.0, orthogonalizer="svd")
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> updates["up"].tolist(), updates["down"].tolist()
      ([[-0.5, -0.0], [-0.0, -0.5]], [[-0.25, -0.0], [-0.0, -0.25]])
    """
    gated = threshold_gate(
        orthogonalize(orthogonalizer, gain=gain, shardings=shardings),
        threshold=threshold,
        measure=measure,
        relative_to=relative_to,
        shardings=shardings,
    )
    steps = optax.chain(
        as_momentum(momentum, nesterov, state_dtype),
        split_fused(gated, split),
        decayed(weight_decay, weight_decay_mask),
        descent(learning_rate),
    )
    rest = as_adamw(
        auxiliary, auxiliary_learning_rate, auxiliary_weight_decay, adam_rate(learning_rate, gain)
    )
    return partition(steps, rest, matrices=matrices)
