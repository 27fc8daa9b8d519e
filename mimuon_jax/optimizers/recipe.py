"""What the optimizers share: momentum, weight decay, auxiliary parameters, checks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.typing import DTypeLike

from mimuon_jax.transforms.checks import check_decay, check_rate, check_weight
from mimuon_jax.transforms.gains import GainName, is_rms
from mimuon_jax.transforms.masks import as_mask
from mimuon_jax.transforms.momentum import heavy_ball, with_nesterov
from mimuon_jax.types import Gain, LearningRate, Mask, Number, State, Tree

# 3e-4, the usual learning rate of AdamW, if that of the matrices is 0.02, the usual one of Muon.
_AUXILIARY_RATIO = 0.015


def as_momentum(
    momentum: Number | optax.GradientTransformation,
    nesterov: bool,
    state_dtype: DTypeLike | None = None,
    name: str = "momentum",
) -> optax.GradientTransformation:
    """The transformation that ``momentum``, ``nesterov`` and ``state_dtype`` mean."""
    if not isinstance(momentum, optax.GradientTransformation):
        check_decay(momentum, name)
        return heavy_ball(momentum, nesterov=nesterov, accumulator_dtype=state_dtype)
    if state_dtype is not None:
        raise ValueError(
            f"state_dtype={state_dtype!r} needs a number as {name}; give the transformation its "
            f"own dtype, as in {name}=ema(0.95, accumulator_dtype=jnp.bfloat16)"
        )
    return with_nesterov(momentum) if nesterov else momentum


def decayed(weight_decay: Number, mask: Mask = None) -> optax.GradientTransformation:
    """Decoupled decay where the mask is true; for 0 the identity, which needs no ``params``."""
    check_weight("weight_decay", weight_decay)
    if isinstance(weight_decay, Tracer) or weight_decay:
        chosen = None if mask is None else as_mask("weight_decay_mask", mask)
        return optax.add_decayed_weights(weight_decay, chosen)
    return optax.identity()


def descent(learning_rate: LearningRate) -> optax.GradientTransformation:
    """``optax.scale_by_learning_rate``, which also refuses a negative rate and NaN."""
    check_rate("learning_rate", learning_rate)
    return optax.scale_by_learning_rate(learning_rate)


def as_auxiliary(
    auxiliary: optax.GradientTransformation | None,
    auxiliary_learning_rate: LearningRate | None,
    otherwise: LearningRate,
    default: Callable[[Any], optax.GradientTransformation],
) -> optax.GradientTransformation:
    """The transformation of auxiliary parameters: the caller's, or the default."""
    if auxiliary_learning_rate is not None:
        check_rate("auxiliary_learning_rate", auxiliary_learning_rate)
    if auxiliary is None:
        return default(otherwise if auxiliary_learning_rate is None else auxiliary_learning_rate)
    if auxiliary_learning_rate is not None:
        raise ValueError(
            f"auxiliary_learning_rate={auxiliary_learning_rate} is for the default auxiliary "
            "transformation; set the rate within `auxiliary`"
        )
    return auxiliary


def as_adamw(
    auxiliary: optax.GradientTransformation | None,
    auxiliary_learning_rate: LearningRate | None,
    auxiliary_weight_decay: Number | None,
    otherwise: LearningRate,
) -> optax.GradientTransformation:
    """The transformation of auxiliary parameters: the caller's, or AdamW."""
    if auxiliary is not None and auxiliary_weight_decay is not None:
        raise ValueError(
            f"auxiliary_weight_decay={auxiliary_weight_decay} is for the default auxiliary "
            "transformation; set the decay within `auxiliary`, as in optax.adamw(3e-4, "
            "weight_decay=0.1)"
        )
    decay = 0.0 if auxiliary_weight_decay is None else auxiliary_weight_decay
    check_weight("auxiliary_weight_decay", decay)

    def adamw(rate: Any) -> optax.GradientTransformation:
        if isinstance(decay, Tracer) or decay:
            return widened(optax.adamw(rate, weight_decay=decay))
        return widened(optax.adam(rate))

    return as_auxiliary(auxiliary, auxiliary_learning_rate, otherwise, adamw)


def widened(transformation: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The transformation in float32 for float16: squares of gradients above 255 overflow there."""
    inner = optax.with_extra_args_support(transformation)

    def wide(tree: Tree) -> Tree:
        return jax.tree.map(
            lambda x: x.astype("float32") if jnp.result_type(x) == jnp.float16 else x, tree
        )

    def update(updates: Tree, state: State, params: Tree = None, **extra: object) -> tuple:
        return inner.update(wide(updates), state, wide(params), **extra)

    return optax.GradientTransformationExtraArgs(lambda params: inner.init(wide(params)), update)


def adam_rate(
    learning_rate: LearningRate, gain: GainName | float | Gain | None = None
) -> LearningRate:
    """The learning rate of the default AdamW next to that of the matrices, schedule included."""
    if gain == "rms" or is_rms(gain):  # the updates of the matrices have the RMS of AdamW's
        return learning_rate
    if callable(learning_rate):
        return lambda step: _AUXILIARY_RATIO * learning_rate(step)
    return _AUXILIARY_RATIO * learning_rate
