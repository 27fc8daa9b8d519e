"""SOAP, Adam in the eigenbasis of Shampoo, and SOAP-Muon, which orthogonalizes in addition."""

from __future__ import annotations

import optax
from jax.typing import DTypeLike

from mimuon_jax.optimizers.optax_names import explains_optax_names
from mimuon_jax.optimizers.recipe import adam_rate, as_adamw, as_momentum, decayed, descent
from mimuon_jax.transforms.checks import check_decay
from mimuon_jax.transforms.eigenbasis import SidesName
from mimuon_jax.transforms.fused import Split, split_fused
from mimuon_jax.transforms.gains import GainName
from mimuon_jax.transforms.kronecker import precondition_kron, scale_by_soap
from mimuon_jax.transforms.orthogonalize import OrthogonalizerName, orthogonalize
from mimuon_jax.transforms.partition import partition
from mimuon_jax.types import Gain, LearningRate, Mask, Matrices, Number, Orthogonalizer, Shardings


@explains_optax_names
def soap(
    learning_rate: LearningRate,
    *,
    b1: Number = 0.95,
    b2: Number = 0.95,
    eps: Number = 1e-8,
    update_every: int = 10,
    max_dim: int = 10_000,
    sides: SidesName = "both",
    weight_decay: Number = 0.0,
    auxiliary: optax.GradientTransformation | None = None,
    auxiliary_learning_rate: LearningRate | None = None,
    matrices: Matrices = None,
    split: Split | None = None,
    weight_decay_mask: Mask = None,
    auxiliary_weight_decay: Number | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SOAP for matrices, AdamW for auxiliary parameters.

    ``W <- (1 - eta lambda) W - eta Q_A (Q_A^T M Q_C / sqrt(v)) Q_C^T``, with ``M`` and ``v`` Adam's
    moments, ``v`` that of ``Q_A^T G Q_C``, and ``Q_A``, ``Q_C`` the eigenvectors of running means
    of ``G G^T`` and ``G^T G``.

    Args:
      learning_rate: ``eta``, a number or a schedule; 3e-3 in the source.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, and of the running means.
      eps: added to the root of ``v``, in the unit of the gradients.
      update_every: steps from one improvement of the eigenvectors to the next.
      max_dim: longest side that has a basis of its own; entries along a longer one stay as they
        are.
      sides: ``"both"``, ``"reduction"``, ``"output"`` or ``"shorter"``, see `precondition_kron`.
      weight_decay: ``lambda >= 0`` of the matrices; 0: no decay. 0.01 in the source.
      auxiliary: transformation of all other parameters, with its own learning rate; None: AdamW
        at ``auxiliary_learning_rate``.
      auxiliary_learning_rate: None: ``learning_rate``.
      matrices: see `partition`.
      split: fused matrices (one ``qkv`` kernel) whose parts are matrices, see `split_fused`.
      weight_decay_mask: as for `muon`.
      auxiliary_weight_decay: decay of the default AdamW, decoupled; None: no decay.

    Returns:
      The optimizer. The first step of matrices makes their bases only, so it moves them by weight
      decay alone.

    Raises:
      ValueError: an unknown name or a number out of range here, or at ``init`` as `partition`.

    Source:
      Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam", 2024 (arXiv 2409.11321).

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import soap
      >>> tx, params = soap(0.5), {"kernel": jnp.diag(jnp.array([9.0, 1.0]))}
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> tx.update(params, state, params)[0]["kernel"].round(3).tolist()
      [[-0.5, -0.0], [-0.0, -0.5]]
    """
    preconditioner = scale_by_soap(
        b1, b2, eps, update_every=update_every, max_dim=max_dim, sides=sides
    )
    steps = optax.chain(
        split_fused(preconditioner, split),
        decayed(weight_decay, weight_decay_mask),
        descent(learning_rate),
    )
    rest = as_adamw(auxiliary, auxiliary_learning_rate, auxiliary_weight_decay, learning_rate)
    return partition(steps, rest, matrices=matrices)


@explains_optax_names
def soap_muon(
    learning_rate: LearningRate,
    *,
    beta2: Number = 0.9,
    power: Number = 0.5,
    eps: Number = 1e-8,
    update_every: int = 1,
    max_dim: int = 10_000,
    sides: SidesName = "both",
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
    """SOAP-Muon: momentum divided as in SOAP, then orthogonalized; AdamW for everything else.

    ``W <- (1 - eta lambda) W - eta gain Orth(Q_A (P / v^power) Q_C^T)`` with
    ``P = Q_A^T M_t Q_C`` and ``v`` the running mean of ``P^2``, see `precondition_kron`.

    Args:
      learning_rate: ``eta``, a number or a schedule, as for `muon`; 0.0375 in the source, which has
        a floor as well (`floor_relative`).
      beta2: decay of the second moment and of the statistics, in [0, 1).
      power: >= 0; 0 is `muon`.
      eps: > 0; entries below it are not divided by less, in the unit of the gradients.
      update_every: steps from one improvement of the eigenvectors to the next; 10 costs less.
      max_dim: longest side that has a basis of its own.
      sides: ``"both"``, ``"reduction"``, ``"output"`` or ``"shorter"``, see `precondition_kron`.
      momentum: ``mu`` in [0, 1) of `heavy_ball`, or a transformation such as ``ema(0.95)``, whose
        direction is the same.
      nesterov: pass on the look-ahead ``mu M_t + G_t``; False: ``M_t``, or what ``momentum`` says.
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
      The optimizer, whose first step is Muon's. Its state is 2 to 10 times that of `muon`.

    Raises:
      ValueError: an unknown name or a number out of range here, or at ``init`` as `partition`.

    Source:
      modded-nanogpt, optimization track, pull requests 278, 283 and 321.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import soap_muon
      >>> tx, params = soap_muon(0.5, orthogonalizer="svd"), {"kernel": 4 * jnp.eye(2)}
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> updates["kernel"].round(3).tolist()
      [[-0.5, -0.0], [-0.0, -0.5]]
    """
    check_decay(beta2, "beta2")
    preconditioned = precondition_kron(
        as_momentum(momentum, nesterov, state_dtype),
        decay=beta2,
        power=power,
        eps=eps,
        update_every=update_every,
        max_dim=max_dim,
        sides=sides,
    )
    direction = orthogonalize(orthogonalizer, gain=gain, shardings=shardings)
    steps = optax.chain(
        split_fused(optax.chain(preconditioned, direction), split),
        decayed(weight_decay, weight_decay_mask),
        descent(learning_rate),
    )
    rest = as_adamw(
        auxiliary, auxiliary_learning_rate, auxiliary_weight_decay, adam_rate(learning_rate, gain)
    )
    return partition(steps, rest, matrices=matrices)
