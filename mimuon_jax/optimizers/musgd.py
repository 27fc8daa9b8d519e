"""MuSGD: Muon and momentum SGD at every step, each with a weight."""

from __future__ import annotations

from typing import NamedTuple

import jax
import optax
from jax.typing import DTypeLike

from mimuon_jax.optimizers.optax_names import explains_optax_names
from mimuon_jax.optimizers.recipe import as_auxiliary, as_momentum, decayed, descent
from mimuon_jax.transforms.checks import check_weight
from mimuon_jax.transforms.fused import Split
from mimuon_jax.transforms.gains import GainName
from mimuon_jax.transforms.orthogonalize import OrthogonalizerName, orthogonalize
from mimuon_jax.transforms.partition import partition
from mimuon_jax.types import (
    Gain,
    LearningRate,
    Mask,
    Matrices,
    Number,
    Orthogonalizer,
    Shardings,
    State,
    Tree,
)


class SumState(NamedTuple):
    """States of the summands."""

    summands: tuple[optax.OptState, ...]


@explains_optax_names
def musgd(
    learning_rate: LearningRate,
    *,
    muon_weight: Number = 0.7,
    sgd_weight: Number = 0.4,
    momentum: Number | optax.GradientTransformation = 0.95,
    sgd_momentum: Number | optax.GradientTransformation = 0.9,
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
    state_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """MuSGD: ``W <- W - eta w_muon gain Orth(M_t) - eta w_sgd N_t``.

    ``M_t`` and ``N_t`` are momenta of the same gradient: ``M_t`` that of `muon`, ``N_t`` a heavy
    ball of ``G_t + lambda W_t`` (coupled decay, in the SGD part alone). Auxiliary
    parameters get the SGD part, including its weight and decay.

    Args:
      learning_rate: ``eta``, a number or a schedule; the MiMuon paper's experiments use 0.015
        (language model) and 0.02 (detector).
      muon_weight: ``w_muon >= 0``; 0 leaves momentum SGD with coupled decay.
      sgd_weight: ``w_sgd >= 0``; 0 leaves `muon` without decay. The MiMuon paper: 0.7 and 0.4, the
        defaults; YOLO26: 0.2 and 1.0, in older versions 0.5 and 0.5.
      momentum: of the Muon part; ``mu`` in [0, 1) of `heavy_ball`, or a transformation such as
        ``ema(0.95)``, whose direction, the look-ahead's included, is the same.
      sgd_momentum: of the SGD part; ``mu`` of `heavy_ball`, or a transformation such as
        ``heavy_ball(0.9, nesterov=True)``, as in YOLO26.
      nesterov: pass on the look-ahead in the Muon part.
      orthogonalizer: see `orthogonalize`; YOLO26 uses ``"jordan"``.
      gain: factor by shape, see `scale_by_gain`; YOLO26 uses ``"unflattened"``, 1 for convolutions.
      weight_decay: ``lambda >= 0`` in the SGD part of all parameters; 0: no decay.
      auxiliary: transformation of auxiliary parameters; None: the SGD part.
      auxiliary_learning_rate: of their SGD part; None: ``learning_rate``.
      matrices: see `partition`.
      shardings: of the parameters, see `orthogonalize`; None: read from the arrays.
      split: fused matrices (one ``qkv`` kernel) whose parts are matrices, see `split_fused`.
      weight_decay_mask: booleans, a tree or prefix tree like the parameters or a function of them:
        which parameters decay; None: all.
      state_dtype: dtype of the momenta, such as ``jnp.bfloat16``; None: that of each parameter.

    Returns:
      The optimizer.

    Raises:
      ValueError: an unknown name or a number out of range here, or at ``init`` as `partition`.

    Source:
      YOLO26; MiMuon, section 5.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import musgd
      >>> params = {"kernel": 4 * jnp.eye(2)}
      >>> tx = musgd(0.5, muon_weight=1.0, sgd_weight=0.25, orthogonalizer="svd")
      >>> tx.update(params, tx.init(params), params)[0]["kernel"].tolist()
      [[-1.0, -0.0], [-0.0, -1.0]]
    """
    for name, weight in (("muon_weight", muon_weight), ("sgd_weight", sgd_weight)):
        check_weight(name, weight)
    sgd = optax.chain(
        decayed(weight_decay, weight_decay_mask),
        as_momentum(sgd_momentum, False, state_dtype, "sgd_momentum"),
        optax.scale(sgd_weight),
    )
    muon = optax.chain(
        as_momentum(momentum, nesterov, state_dtype),
        orthogonalize(orthogonalizer, gain=gain, split=split, shardings=shardings),
        optax.scale(muon_weight),
    )
    # A part of weight 0 is left out, not multiplied by 0: exact, and inf does not become NaN.
    weighted = ((muon, muon_weight), (sgd, sgd_weight))
    parts = [tx for tx, weight in weighted if isinstance(weight, jax.Array) or weight != 0]
    both = optax.chain(sum_of(*parts or [optax.set_to_zero()]), descent(learning_rate))
    rest = as_auxiliary(
        auxiliary,
        auxiliary_learning_rate,
        learning_rate,
        lambda rate: optax.chain(sgd, descent(rate)),
    )
    return partition(both, rest, matrices=matrices)


def sum_of(*transformations: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Applies all transformations to the same updates, and adds what they return.

    Args:
      transformations: at least one; each keeps its own state.

    Returns:
      A transformation with a `SumState`; extra arguments go to every summand.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mimuon_jax.optimizers.musgd import sum_of
      >>> tx = sum_of(optax.scale(2.0), optax.scale(0.5))
      >>> tx.update(jnp.ones(1), tx.init(jnp.ones(1)))[0].tolist()
      [2.5]
    """
    summands = [optax.with_extra_args_support(tx) for tx in transformations]

    def init(params: Tree) -> SumState:
        return SumState(tuple(tx.init(params) for tx in summands))

    def update(
        updates: Tree, state: State, params: Tree = None, **extra: object
    ) -> tuple[Tree, SumState]:
        results = [
            tx.update(updates, own, params, **extra)
            for tx, own in zip(summands, state.summands, strict=True)
        ]
        total = jax.tree.map(
            lambda *terms: sum(terms[1:], terms[0]), *(tree for tree, _ in results)
        )
        return total, SumState(tuple(own for _, own in results))

    return optax.GradientTransformationExtraArgs(init, update)
