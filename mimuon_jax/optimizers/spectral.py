"""SGD and Adam with spectral powers: between momentum (``p = 1``) and Muon (``p = 0``)."""

from __future__ import annotations

from typing import Any

import optax
from jax.typing import DTypeLike

from mimuon_jax.linalg.powers import PowerMethod, PowerMethodName
from mimuon_jax.optimizers.optax_names import explains_optax_names
from mimuon_jax.optimizers.recipe import as_auxiliary, as_momentum, decayed, descent, widened
from mimuon_jax.transforms.checks import check_decay, check_weight
from mimuon_jax.transforms.fused import Split
from mimuon_jax.transforms.gains import GainName, factor_of
from mimuon_jax.transforms.orthogonalize import OrthogonalizerName
from mimuon_jax.transforms.partition import partition
from mimuon_jax.transforms.spectral_power import checked_exponent, spectral_power
from mimuon_jax.types import Gain, LearningRate, Mask, Matrices, Number, Shardings


@explains_optax_names
def spectral_sgd(
    learning_rate: LearningRate,
    *,
    p: float = 0.5,
    momentum: Number | optax.GradientTransformation = 0.95,
    nesterov: bool = False,
    method: OrthogonalizerName | PowerMethodName | PowerMethod | None = None,
    gain: GainName | float | Gain | None = "width",
    weight_decay: Number = 0.0,
    auxiliary: optax.GradientTransformation | None = None,
    auxiliary_learning_rate: LearningRate | None = None,
    matrices: Matrices = None,
    shardings: Shardings = None,
    split: Split | None = None,
    weight_decay_mask: Mask = None,
    state_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Momentum SGD with spectral powers: mSGD, mSGDS, mSGDQ, mSGDZ for ``p = 1, 1/2, 1/4, 0``.

    ``W <- (1 - eta lambda) W - eta U S^p V^T`` of ``M_t = mu M_{t-1} + G_t``; auxiliary
    parameters get ``M_t`` itself.

    Args:
      learning_rate: ``eta``, a number or a schedule. Its useful size depends on ``p``: updates
        scale as the gradient to the power ``p``. The paper's matrices: 7e-3 at ``p = 0``.
      p: exponent in [0, 1], a Python number (``static_args=("p",)`` under
        ``optax.inject_hyperparams``); 1 is `sgdm`, 0 is `muon` with SGD for auxiliary parameters.
      momentum: ``mu`` in [0, 1) of `heavy_ball`, or a transformation such as ``ema(0.95)``.
      nesterov: pass on the look-ahead ``mu M_t + G_t``; False: ``M_t``, or what ``momentum`` says.
      method: see `spectral_power`.
      gain: factor by shape of matrices at ``p = 0``; ignored for every other ``p``.
      weight_decay: ``lambda >= 0`` of all parameters, decoupled; 0: no decay.
      auxiliary: transformation of all other parameters, with its own learning rate; None: the same
        without the power, at ``auxiliary_learning_rate``.
      auxiliary_learning_rate: None: ``learning_rate``.
      matrices: see `partition`.
      shardings: of the parameters, see `orthogonalize`; None: read from the arrays.
      split: fused matrices (one ``qkv`` kernel) whose parts are matrices, see `split_fused`.
      weight_decay_mask: booleans, a tree or prefix tree like the parameters or a function of them:
        which parameters decay; None: all.
      state_dtype: dtype of the momentum, such as ``jnp.bfloat16``; None: that of each parameter.

    Returns:
      The optimizer.

    Raises:
      ValueError: an unknown name or a number out of range here, or at ``init`` as `partition`.

    Source:
      "Delving into Muon and Beyond".

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import spectral_sgd
      >>> tx, params = spectral_sgd(0.5, p=0.5, method="svd"), {"kernel": 4 * jnp.eye(2)}
      >>> tx.update(params, tx.init(params))[0]["kernel"].round(5).tolist()
      [[-1.0, -0.0], [-0.0, -1.0]]
    """
    return _spectral(
        as_momentum(momentum, nesterov, state_dtype),
        spectral_power(
            p,
            method=method,
            gain=_gain(p, gain),
            split=split,
            shardings=shardings,
        ),
        learning_rate,
        decayed(weight_decay, weight_decay_mask),
        auxiliary,
        auxiliary_learning_rate,
        matrices,
    )


@explains_optax_names
def spectral_adam(
    learning_rate: LearningRate,
    *,
    p: float = 0.5,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    method: OrthogonalizerName | PowerMethodName | PowerMethod | None = None,
    gain: GainName | float | Gain | None = "width",
    weight_decay: Number = 0.0,
    auxiliary: optax.GradientTransformation | None = None,
    auxiliary_learning_rate: LearningRate | None = None,
    matrices: Matrices = None,
    shardings: Shardings = None,
    split: Split | None = None,
    weight_decay_mask: Mask = None,
    state_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam with spectral powers: Adam, AdamS, AdamQ, AdamZ for ``p = 1, 1/2, 1/4, 0``.

    ``W <- (1 - eta lambda) W - eta U S^p V^T`` of ``O_t = m_t / (sqrt(v_t) + eps)``, Adam's
    bias-corrected update; auxiliary parameters get ``O_t`` itself.

    Args:
      learning_rate: ``eta``, a number or a schedule. The paper's matrices: 1e-2 at ``p = 1/2``.
      p: exponent in [0, 1], a Python number (``static_args=("p",)`` under
        ``optax.inject_hyperparams``); 1 is AdamW.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the square root, in the unit of the gradient.
      method: see `spectral_power`.
      gain: factor by shape of matrices at ``p = 0``; ignored for every other ``p``.
      weight_decay: ``lambda >= 0`` of all parameters, decoupled; 0: no decay.
      auxiliary: transformation of all other parameters, with its own learning rate; None: the same
        without the power, at ``auxiliary_learning_rate``.
      auxiliary_learning_rate: None: ``learning_rate``. The paper's vectors: 3e-4.
      matrices: see `partition`.
      shardings: of the parameters, see `orthogonalize`; None: read from the arrays.
      split: fused matrices (one ``qkv`` kernel) whose parts are matrices, see `split_fused`.
      weight_decay_mask: booleans, a tree or prefix tree like the parameters or a function of them:
        which parameters decay; None: all.
      state_dtype: dtype of the first moment, such as ``jnp.bfloat16``; None: that of the parameter.

    Returns:
      The optimizer.

    Raises:
      ValueError: an unknown name or a number out of range here, or at ``init`` as `partition`.

    Source:
      "Delving into Muon and Beyond"; Kingma and Ba, 2015.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import spectral_adam
      >>> tx, params = spectral_adam(0.5, p=0.5, method="svd"), {"kernel": 4 * jnp.ones((1, 1))}
      >>> tx.update(params, tx.init(params))[0]["kernel"].round(5).tolist()
      [[-0.5]]
    """
    for name, decay in (("b1", b1), ("b2", b2)):
        check_decay(decay, name)
    check_weight("eps", eps)
    return _spectral(
        widened(optax.scale_by_adam(b1, b2, eps, mu_dtype=state_dtype)),
        spectral_power(
            p,
            method=method,
            gain=_gain(p, gain),
            split=split,
            shardings=shardings,
        ),
        learning_rate,
        decayed(weight_decay, weight_decay_mask),
        auxiliary,
        auxiliary_learning_rate,
        matrices,
    )


def _spectral(
    estimate: optax.GradientTransformation,
    powers: optax.GradientTransformation,
    learning_rate: LearningRate,
    decay: optax.GradientTransformation,
    auxiliary: optax.GradientTransformation | None,
    auxiliary_learning_rate: LearningRate | None,
    matrices: Matrices,
) -> optax.GradientTransformationExtraArgs:
    """The estimate with powers for matrices, and without them for auxiliary parameters."""

    def steps(rate: LearningRate, *between: optax.GradientTransformation) -> Any:
        return optax.chain(estimate, *between, decay, descent(rate))

    rest = as_auxiliary(auxiliary, auxiliary_learning_rate, learning_rate, steps)
    return partition(steps(learning_rate, powers), rest, matrices=matrices)


def _gain(p: float, gain: GainName | float | Gain | None) -> GainName | float | Gain | None:
    """The gain at ``p = 0``, None for every other ``p``; checked for every ``p``."""
    factor_of(gain)
    return gain if checked_exponent(p) == 0 else None
