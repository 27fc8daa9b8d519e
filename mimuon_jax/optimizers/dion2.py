"""Dion2: Muon that orthogonalizes a part of every matrix per step."""

from __future__ import annotations

import optax
from jax.typing import DTypeLike

from mimuon_jax.optimizers.optax_names import explains_optax_names
from mimuon_jax.optimizers.recipe import adam_rate, as_adamw, decayed, descent
from mimuon_jax.transforms.checks import check_decay
from mimuon_jax.transforms.fused import Split, split_fused
from mimuon_jax.transforms.gains import GainName, scale_by_gain
from mimuon_jax.transforms.orthogonalize import OrthogonalizerName
from mimuon_jax.transforms.partition import partition
from mimuon_jax.transforms.slices import select_slices
from mimuon_jax.types import Gain, LearningRate, Mask, Matrices, Number, Orthogonalizer, Shardings


@explains_optax_names
def dion2(
    learning_rate: LearningRate,
    *,
    fraction: float = 0.25,
    momentum: Number = 0.95,
    orthogonalizer: OrthogonalizerName | Orthogonalizer = "newton_schulz",
    gain: GainName | float | Gain | None = "spectral",
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
    """Dion2: the longest rows (or columns) of the momentum are orthogonalized; AdamW for the rest.

    ``B = M + G``; ``W <- (1 - eta lambda) W - eta gain U``, where ``U`` is ``Orth`` of the longest
    slices of ``B`` and zero elsewhere; ``M = B`` with these slices multiplied by ``mu``.

    Args:
      learning_rate: ``eta``, a number or a schedule, as for `muon` with the gain ``"spectral"``.
      fraction: part of the slices along the shorter side, in (0, 1], a Python number
        (``static_args=("fraction",)`` under ``optax.inject_hyperparams``); 1 is `muon` with
        ``nesterov=False``.
      momentum: ``mu`` in [0, 1), of the slices that were chosen.
      orthogonalizer: see `orthogonalize`.
      gain: factor by the shape of the whole matrix, see `scale_by_gain`.
      weight_decay: ``lambda >= 0`` of the matrices, of all their entries; 0: no decay. 0.01 in the
        source.
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
      The optimizer.

    Raises:
      ValueError: an unknown name or a number out of range here, or at ``init`` as `partition`.

    Source:
      "Dion2", 2025 (arXiv 2512.16928).

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import dion2
      >>> params = {"kernel": jnp.diag(jnp.array([3.0, 1.0]))}
      >>> tx = dion2(0.5, fraction=0.5, orthogonalizer="svd")
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> updates["kernel"].tolist()
      [[-0.5, -0.0], [-0.0, -0.0]]
    """
    check_decay(momentum, "momentum")
    chosen = select_slices(
        fraction,
        momentum,
        orthogonalizer=orthogonalizer,
        shardings=shardings,
        accumulator_dtype=state_dtype,
    )
    steps = optax.chain(
        split_fused(optax.chain(chosen, scale_by_gain(gain)), split),
        decayed(weight_decay, weight_decay_mask),
        descent(learning_rate),
    )
    rest = as_adamw(
        auxiliary, auxiliary_learning_rate, auxiliary_weight_decay, adam_rate(learning_rate, gain)
    )
    return partition(steps, rest, matrices=matrices)
