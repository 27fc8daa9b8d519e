"""Momentum SGD."""

from __future__ import annotations

import optax
from jax.typing import DTypeLike

from mimuon_jax.optimizers.optax_names import explains_optax_names
from mimuon_jax.optimizers.recipe import as_momentum, decayed, descent
from mimuon_jax.types import LearningRate, Mask, Number


@explains_optax_names
def sgdm(
    learning_rate: LearningRate,
    *,
    momentum: Number | optax.GradientTransformation = 0.9,
    nesterov: bool = False,
    weight_decay: Number = 0.0,
    weight_decay_mask: Mask = None,
    state_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Momentum SGD for every parameter.

    ``M_t = mu M_{t-1} + G_t``; ``W <- (1 - eta lambda) W - eta M_t``.

    Args:
      learning_rate: ``eta``, a number or a schedule. With heavy ball an update is up to
        ``1 / (1 - mu)`` times as large as a gradient.
      momentum: ``mu`` in [0, 1) of `heavy_ball`, or a transformation such as ``ema(0.9)``.
      nesterov: pass on the look-ahead ``mu M_t + G_t``; False: ``M_t``, or what ``momentum`` says.
      weight_decay: ``lambda >= 0``, decoupled; 0: no decay.
      weight_decay_mask: booleans, a tree or prefix tree like the parameters or a function of them:
        which parameters decay; None: all.
      state_dtype: dtype of the momentum, such as ``jnp.bfloat16``; None: that of each parameter.

    Returns:
      The optimizer.

    Raises:
      ValueError: a number out of range.

    Source:
      Sutskever et al., 2013.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import sgdm
      >>> tx = sgdm(0.5)
      >>> tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))[0].tolist()
      [-0.5, -0.5]
    """
    return optax.with_extra_args_support(
        optax.chain(
            as_momentum(momentum, nesterov, state_dtype),
            decayed(weight_decay, weight_decay_mask),
            descent(learning_rate),
        )
    )
