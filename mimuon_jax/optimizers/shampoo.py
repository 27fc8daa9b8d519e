"""Shampoo: every matrix is preconditioned from both sides. A baseline."""

from __future__ import annotations

import optax

from mimuon_jax.optimizers.optax_names import explains_optax_names
from mimuon_jax.optimizers.recipe import adam_rate, as_adamw, decayed, descent
from mimuon_jax.transforms.fused import Split, split_fused
from mimuon_jax.transforms.partition import partition
from mimuon_jax.transforms.preconditioner import scale_by_shampoo
from mimuon_jax.types import LearningRate, Mask, Matrices, Number


@explains_optax_names
def shampoo(
    learning_rate: LearningRate,
    *,
    max_dim: int = 768,
    update_every: int = 1,
    damping: float = 1e-4,
    grafting: optax.GradientTransformation | None = None,
    weight_decay: Number = 0.0,
    auxiliary: optax.GradientTransformation | None = None,
    auxiliary_learning_rate: LearningRate | None = None,
    matrices: Matrices = None,
    split: Split | None = None,
    weight_decay_mask: Mask = None,
    auxiliary_weight_decay: Number | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Shampoo for matrices, AdamW for auxiliary parameters.

    ``L += G G^T``, ``R += G^T G``;
    ``W <- (1 - eta lambda) W - eta (L + eps max(L) I)^{-1/4} G (R + eps max(R) I)^{-1/4}``, with
    ``max`` the largest eigenvalue. No momentum.

    Args:
      learning_rate: ``eta``, a number or a schedule. Without grafting an update has the size of an
        orthogonal matrix at first and shrinks with the sums, as Adagrad's do.
      max_dim: longest side that is preconditioned. If one side is longer, the other takes the power
        -1/2; if both are, the gradient passes through unchanged. 768 in the MiMuon paper.
      update_every: steps from one computation of the roots (by eigenvalues) to the next; the first
        step computes them. 20 in the paper's detector runs.
      damping: ``eps`` in (0, 1], relative to the largest eigenvalue ``max(L)``. In float32, 1e-6
        leaves the roots of singular statistics (all but the shortest side has them at first)
        wrong by some percent, 1e-4 by less than a thousandth.
      grafting: a transformation (``optax.scale_by_adam()``, ``optax.identity()``) whose update
        lends every matrix its Frobenius norm; None: off.
      weight_decay: ``lambda >= 0`` of the matrices, decoupled; 0: no decay.
      auxiliary: transformation of all other parameters, with its own learning rate; None: AdamW
        at ``auxiliary_learning_rate``.
      auxiliary_learning_rate: None: ``0.015 learning_rate``, schedule included.
      matrices: see `partition`.
      split: fused matrices (one ``qkv`` kernel) whose parts are matrices, see `split_fused`.
      weight_decay_mask: booleans, a tree or prefix tree like the parameters or a function of them:
        which matrices decay; None: all.
      auxiliary_weight_decay: decay of the default AdamW, decoupled; None: no decay.

    Returns:
      The optimizer.

    Raises:
      ValueError: a number out of range here, or at ``init`` as `partition`.

    Source:
      Gupta, Koren and Singer, "Shampoo", 2018; MiMuon, section 5.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import shampoo
      >>> tx, params = shampoo(0.5), {"kernel": 4 * jnp.eye(2)}
      >>> tx.update(params, tx.init(params))[0]["kernel"].round(3).tolist()
      [[-0.5, -0.0], [-0.0, -0.5]]
    """
    preconditioner = scale_by_shampoo(
        max_dim=max_dim, update_every=update_every, damping=damping, grafting=grafting
    )
    steps = optax.chain(
        split_fused(preconditioner, split),
        decayed(weight_decay, weight_decay_mask),
        descent(learning_rate),
    )
    rest = as_adamw(
        auxiliary, auxiliary_learning_rate, auxiliary_weight_decay, adam_rate(learning_rate)
    )
    return partition(steps, rest, matrices=matrices)
