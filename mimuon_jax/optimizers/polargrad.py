"""PolarGrad: Muon whose updates scale with the gradient."""

from __future__ import annotations

import optax
from jax.typing import DTypeLike

from mimuon_jax.optimizers.optax_names import explains_optax_names
from mimuon_jax.optimizers.recipe import adam_rate, as_adamw, as_momentum, decayed, descent
from mimuon_jax.transforms.checks import check_decay
from mimuon_jax.transforms.fused import Split
from mimuon_jax.transforms.gains import GainName
from mimuon_jax.transforms.momentum import ema
from mimuon_jax.transforms.orthogonalize import OrthogonalizerName
from mimuon_jax.transforms.partition import partition
from mimuon_jax.transforms.spectra import scale_by_dual_norm
from mimuon_jax.types import Gain, LearningRate, Mask, Matrices, Number, Orthogonalizer, Shardings


@explains_optax_names
def polargrad(
    learning_rate: LearningRate,
    *,
    momentum: Number | optax.GradientTransformation = 0.95,
    nesterov: bool = False,
    orthogonalizer: OrthogonalizerName | Orthogonalizer = "newton_schulz",
    gain: GainName | float | Gain | None = None,
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
    """PolarGrad: orthogonalized momentum times its nuclear norm; AdamW for everything else.

    ``W <- (1 - eta lambda) W - eta gain |M_t|_* Orth(M_t)``, with ``|M|_*`` the sum of the singular
    values, computed as ``<M, Orth(M)>``.

    Args:
      learning_rate: ``eta``, a number or a schedule; 0.02 in the source. Updates scale as the
        gradient does, so Muon's learning rate does not carry over.
      momentum: decay of an average, in [0, 1), as in `ema` (a heavy ball would give updates
        ``1 / (1 - mu)`` times as large), or a transformation.
      nesterov: pass on the look-ahead; False: ``M_t``, or what ``momentum`` says.
      orthogonalizer: see `orthogonalize`.
      gain: factor by shape, see `scale_by_gain`; None for 1, as in the source.
      weight_decay: ``lambda >= 0`` of the matrices; 0: no decay.
      auxiliary: transformation of all other parameters, with its own learning rate; None: AdamW
        at ``auxiliary_learning_rate``.
      auxiliary_learning_rate: None: ``0.015 learning_rate``, schedule included.
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
      "PolarGrad", 2025 (arXiv 2505.21799).

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import polargrad
      >>> params = {"kernel": jnp.diag(jnp.array([3.0, 1.0]))}
      >>> tx = polargrad(0.5, momentum=0.0, orthogonalizer="svd")
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> updates["kernel"].round(4).tolist()  # 0.5 (3 + 1)
      [[-2.0, -0.0], [-0.0, -2.0]]
    """
    if not isinstance(momentum, optax.GradientTransformation):
        check_decay(momentum, "momentum")
        momentum, state_dtype = ema(momentum, accumulator_dtype=state_dtype), None
    steps = optax.chain(
        as_momentum(momentum, nesterov, state_dtype),
        scale_by_dual_norm(
            orthogonalizer=orthogonalizer, gain=gain, split=split, shardings=shardings
        ),
        decayed(weight_decay, weight_decay_mask),
        descent(learning_rate),
    )
    rest = as_adamw(
        auxiliary, auxiliary_learning_rate, auxiliary_weight_decay, adam_rate(learning_rate)
    )
    return partition(steps, rest, matrices=matrices)
