"""MuonH and NorMuonH: Muon on hyperballs, where matrices keep their norm."""

from __future__ import annotations

import optax
from jax.typing import DTypeLike

from mimuon_jax.linalg.measures import MeasureName
from mimuon_jax.optimizers.optax_names import explains_optax_names
from mimuon_jax.optimizers.recipe import adam_rate, as_adamw, as_momentum, descent
from mimuon_jax.transforms.checks import check_share
from mimuon_jax.transforms.fused import Split, split_fused
from mimuon_jax.transforms.hyperball import match_param_norm, retract
from mimuon_jax.transforms.orthogonalize import OrthogonalizerName, orthogonalize
from mimuon_jax.transforms.partition import partition
from mimuon_jax.transforms.units import MEMORY, UnitName, normalize_units
from mimuon_jax.types import LearningRate, Matrices, Measure, Number, Orthogonalizer, Shardings


@explains_optax_names
def muonh(
    learning_rate: LearningRate,
    *,
    measure: MeasureName | Measure = "frobenius",
    momentum: Number | optax.GradientTransformation = 0.95,
    nesterov: bool = True,
    orthogonalizer: OrthogonalizerName | Orthogonalizer = "newton_schulz",
    auxiliary: optax.GradientTransformation | None = None,
    auxiliary_learning_rate: LearningRate | None = None,
    matrices: Matrices = None,
    shardings: Shardings = None,
    split: Split | None = None,
    auxiliary_weight_decay: Number | None = None,
    state_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """MuonH: Muon whose matrices keep their norm, and turn by about ``eta`` per step.

    ``Z = W - eta R O_t / |O_t|``, ``W <- R Z / |Z|``, with ``O_t = Orth(M_t)`` and ``R`` the norm
    of the matrix at ``init``. There is neither decay nor a gain: no norm is left to shrink, and the
    size of ``O_t`` does not matter.

    Args:
      learning_rate: ``eta``, a number or a schedule: the length of a step relative to the matrix.
        0.018 in the source, with linear decay over the whole run and without warm-up; from Muon
        with decay, ``sqrt(eta lambda)``.
      measure: the norm: ``"frobenius"``, ``"spectral"`` or a function, see `match_param_norm`.
      momentum: ``mu`` in [0, 1) of `heavy_ball`, or a transformation such as ``ema(0.95)``, whose
        direction is the same.
      nesterov: pass on the look-ahead ``mu M_t + G_t``; False: ``M_t``, or what ``momentum`` says.
      orthogonalizer: see `orthogonalize`.
      auxiliary: transformation of all other parameters, with its own learning rate; None: AdamW
        at ``auxiliary_learning_rate``.
      auxiliary_learning_rate: None: ``0.015 learning_rate``, schedule included.
      matrices: see `partition`.
      shardings: of the parameters, see `orthogonalize`; None: read from the arrays.
      split: fused matrices (one ``qkv`` kernel) whose parts are matrices, see `split_fused`.
      auxiliary_weight_decay: decay of the default AdamW, decoupled; None: no decay.
      state_dtype: dtype of the momentum, such as ``jnp.bfloat16``; None: that of each parameter.

    Returns:
      The optimizer. Its state has one number per matrix more than that of `muon`.

    Raises:
      ValueError: an unknown name or a number out of range here, or at ``init`` as `partition`, or
        if a matrix is zero, see `retract`.

    Source:
      "Hyperball", 2026 (arXiv 2606.16899).

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mimuon_jax import muonh
      >>> params = {"kernel": 3 * jnp.eye(2)}
      >>> tx = muonh(0.5, orthogonalizer="svd")
      >>> updates, _ = tx.update({"kernel": jnp.eye(2)[::-1]}, tx.init(params), params)
      >>> params = optax.apply_updates(params, updates)
      >>> round(float(jnp.linalg.norm(params["kernel"])), 4)  # sqrt(18)
      4.2426
    """
    direction = orthogonalize(orthogonalizer, shardings=shardings)
    steps = optax.chain(
        as_momentum(momentum, nesterov, state_dtype),
        split_fused(_on_sphere(direction, learning_rate, measure, shardings), split),
    )
    rest = as_adamw(
        auxiliary, auxiliary_learning_rate, auxiliary_weight_decay, adam_rate(learning_rate)
    )
    return partition(steps, rest, matrices=matrices)


@explains_optax_names
def normuonh(
    learning_rate: LearningRate,
    *,
    beta2: Number = 0.95,
    per: UnitName = "longer",
    eps: Number = 1e-8,
    measure: MeasureName | Measure = "frobenius",
    momentum: Number | optax.GradientTransformation = 0.95,
    nesterov: bool = True,
    orthogonalizer: OrthogonalizerName | Orthogonalizer = "newton_schulz",
    auxiliary: optax.GradientTransformation | None = None,
    auxiliary_learning_rate: LearningRate | None = None,
    matrices: Matrices = None,
    shardings: Shardings = None,
    split: Split | None = None,
    auxiliary_weight_decay: Number | None = None,
    state_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """NorMuonH: `muonh` whose units have updates of equal running size, as in `normuon`.

    ``Z = W - eta R Y_t / |Y_t|``, ``W <- R Z / |Z|``, with ``Y_t = O_t / sqrt(v_t)`` as in
    `normuon`.

    Args:
      learning_rate: ``eta``, as for `muonh`; 0.018 in the source.
      beta2: in [0, 1]: 0 looks at this step alone, 1 is `muonh`.
      per: see `normalize_units`; ``"longer"`` in the source.
      eps: added to the root of ``v_t``.
      measure: the norm, see `match_param_norm`.
      momentum: as for `muonh`.
      nesterov: as for `muonh`.
      orthogonalizer: see `orthogonalize`.
      auxiliary: transformation of all other parameters, with its own learning rate; None: AdamW
        at ``auxiliary_learning_rate``.
      auxiliary_learning_rate: None: ``0.015 learning_rate``, schedule included.
      matrices: see `partition`.
      shardings: of the parameters, see `orthogonalize`; None: read from the arrays.
      split: fused matrices (one ``qkv`` kernel) whose parts are matrices, see `split_fused`.
      auxiliary_weight_decay: decay of the default AdamW, decoupled; None: no decay.
      state_dtype: dtype of the momentum, such as ``jnp.bfloat16``; None: that of each parameter.

    Returns:
      The optimizer.

    Raises:
      ValueError: as `muonh`.

    Source:
      modded-nanogpt, optimization track, pull request 273.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import normuonh
      >>> params = {"kernel": 3 * jnp.eye(2)}
      >>> tx = normuonh(0.5, orthogonalizer="svd")
      >>> updates, _ = tx.update({"kernel": jnp.eye(2)}, tx.init(params), params)
      >>> abs(updates["kernel"]).max() < 1e-5  # a step along W changes nothing
      Array(True, dtype=bool)
    """
    check_share("beta2", beta2, MEMORY)
    direction = optax.chain(
        orthogonalize(orthogonalizer, shardings=shardings),
        normalize_units(beta2, per=per, restore=None, eps=eps),
    )
    steps = optax.chain(
        as_momentum(momentum, nesterov, state_dtype),
        split_fused(_on_sphere(direction, learning_rate, measure, shardings), split),
    )
    rest = as_adamw(
        auxiliary, auxiliary_learning_rate, auxiliary_weight_decay, adam_rate(learning_rate)
    )
    return partition(steps, rest, matrices=matrices)


def _on_sphere(
    direction: optax.GradientTransformation,
    learning_rate: LearningRate,
    measure: MeasureName | Measure,
    shardings: Shardings,
) -> optax.GradientTransformationExtraArgs:
    """Steps along a direction, on the sphere of every matrix."""
    return optax.chain(
        direction,
        match_param_norm(measure, shardings=shardings),
        descent(learning_rate),
        retract(measure, shardings=shardings),
    )
