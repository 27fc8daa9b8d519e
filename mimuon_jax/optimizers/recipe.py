"""What the optimizers share: momentum, weight decay, the auxiliary side, rates and checks."""

from collections.abc import Callable
from typing import Any

import optax
from jax.core import Tracer

from mimuon_jax.transforms.momentum import heavy_ball, with_nesterov
from mimuon_jax.types import LearningRate, Number

# 3e-4, the usual rate of AdamW, where the matrices get 0.02, the usual rate of Muon.
_AUXILIARY_RATIO = 0.015


def as_momentum(
    momentum: Number | optax.GradientTransformation, nesterov: bool
) -> optax.GradientTransformation:
    """The transformation that the arguments ``momentum`` and ``nesterov`` mean."""
    if not isinstance(momentum, optax.GradientTransformation):
        return heavy_ball(momentum, nesterov=nesterov)
    return with_nesterov(momentum) if nesterov else momentum


def decayed(weight_decay: Number) -> optax.GradientTransformation:
    """Decoupled decay; nothing at all for the number 0, so that ``params`` are not needed."""
    check_weight("weight_decay", weight_decay)
    if isinstance(weight_decay, Tracer) or weight_decay:
        return optax.add_decayed_weights(weight_decay)
    return optax.identity()


def as_auxiliary(
    auxiliary: optax.GradientTransformation | None,
    auxiliary_learning_rate: LearningRate | None,
    otherwise: LearningRate,
    default: Callable[[Any], optax.GradientTransformation] = optax.adam,
) -> optax.GradientTransformation:
    """The transformation of what is no matrix: the caller's, or the default at the rate due."""
    if auxiliary is None:
        return default(otherwise if auxiliary_learning_rate is None else auxiliary_learning_rate)
    if auxiliary_learning_rate is not None:
        raise ValueError(
            f"auxiliary_learning_rate={auxiliary_learning_rate} is for the default auxiliary "
            "transformation; set the rate within `auxiliary`"
        )
    return auxiliary


def adam_rate(learning_rate: LearningRate) -> LearningRate:
    """The rate of the default AdamW next to a rate of Muon's, schedule included."""
    if callable(learning_rate):
        return lambda step: _AUXILIARY_RATIO * learning_rate(step)
    return _AUXILIARY_RATIO * learning_rate


def check_weight(name: str, weight: Number) -> None:
    """Refuses a negative number, and NaN; a traced one cannot be looked at."""
    if not isinstance(weight, Tracer) and not float(weight) >= 0:
        raise ValueError(f"{name}={weight} must be >= 0: 0 is none")
