"""MuonClip: Muon, and a limit on attention logits."""

from __future__ import annotations

import optax
from jax.typing import DTypeLike

from mimuon_jax.optimizers.muon import muon
from mimuon_jax.optimizers.optax_names import explains_optax_names
from mimuon_jax.transforms.fused import Split
from mimuon_jax.transforms.gains import GainName
from mimuon_jax.transforms.orthogonalize import OrthogonalizerName
from mimuon_jax.transforms.qk_clip import QKSpecs, qk_clip
from mimuon_jax.types import Gain, LearningRate, Mask, Matrices, Number, Orthogonalizer, Shardings


@explains_optax_names
def muonclip(
    learning_rate: LearningRate,
    *,
    specs: QKSpecs,
    tau: Number = 100.0,
    alpha: Number = 0.5,
    momentum: Number | optax.GradientTransformation = 0.95,
    nesterov: bool = False,
    orthogonalizer: OrthogonalizerName | Orthogonalizer = "newton_schulz",
    gain: GainName | float | Gain | None = "rms",
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
    """MuonClip: `muon`, then `qk_clip`, which keeps attention logits below a limit.

    ``W <- (1 - eta lambda) W - eta gain Orth(M_t)``; then, for every head ``h`` with a logit above
    ``tau``, ``W_q <- g_h^alpha W_q`` and ``W_k <- g_h^(1 - alpha) W_k``, ``g_h = tau / S_h``.

    Args:
      learning_rate: ``eta``, a number or a schedule: AdamW's, with the gain ``"rms"``; 2e-4 in the
        source.
      specs: where queries and keys are, see `qk_clip`.
      tau: the largest logit, > 0; inf is `muon`.
      alpha: share of the queries in the clip, in [0, 1].
      momentum: ``mu`` in [0, 1) of `heavy_ball`, or a transformation such as ``ema(0.95)``.
      nesterov: pass on the look-ahead ``mu M_t + G_t``; False: ``M_t``, or what ``momentum`` says.
      orthogonalizer: see `orthogonalize`.
      gain: factor by shape, see `scale_by_gain`.
      weight_decay: ``lambda >= 0`` of the matrices; 0: no decay. 0.1 in the source.
      auxiliary: transformation of all other parameters, with its own learning rate; None: AdamW
        at ``auxiliary_learning_rate``.
      auxiliary_learning_rate: None: ``learning_rate`` with the gain ``"rms"`` or a number, or
        ``0.015 learning_rate``, schedule included.
      matrices: see `partition`.
      shardings: of the parameters, see `orthogonalize`; None: read from the arrays.
      split: fused matrices (one ``qkv`` kernel) whose parts are matrices, see `split_fused`.
      weight_decay_mask: as for `muon`.
      auxiliary_weight_decay: decay of the default AdamW, decoupled; None: no decay.
      state_dtype: dtype of the momentum, such as ``jnp.bfloat16``; None: that of each parameter.

    Returns:
      The optimizer, whose ``update`` needs the extra argument ``max_logits``, see `qk_clip`. Its
      state is that of `muon`.

    Raises:
      ValueError: an unknown name or a number out of range here, or at ``init`` as `partition` and
        `qk_clip`.

    Source:
      "Kimi K2", 2025 (arXiv 2507.20534), algorithm 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import QKSpec, muonclip
      >>> specs = {"query": QKSpec("attention", "q"), "key": QKSpec("attention", "k")}
      >>> tx, params = muonclip(0.1, specs=specs), {"query": jnp.eye(2), "key": jnp.eye(2)}
      >>> still = {"query": jnp.zeros((2, 2)), "key": jnp.zeros((2, 2))}
      >>> largest = {"attention": jnp.array([400.0])}  # of one head
      >>> tx.update(still, tx.init(params), params, max_logits=largest)[0]["key"].tolist()
      [[-0.5, -0.0], [-0.0, -0.5]]
    """
    steps = muon(
        learning_rate,
        momentum=momentum,
        nesterov=nesterov,
        orthogonalizer=orthogonalizer,
        gain=gain,
        weight_decay=weight_decay,
        auxiliary=auxiliary,
        auxiliary_learning_rate=auxiliary_learning_rate,
        matrices=matrices,
        shardings=shardings,
        split=split,
        weight_decay_mask=weight_decay_mask,
        auxiliary_weight_decay=auxiliary_weight_decay,
        state_dtype=state_dtype,
    )
    return optax.chain(steps, qk_clip(specs, tau=tau, alpha=alpha))
