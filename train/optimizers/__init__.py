"""The optimizers that `--optimizer` accepts: their typed options, and how each is built."""

import math
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import optax

from mimuon_jax import lookahead_ema, outer_nesterov
from mimuon_jax.transforms.qk_clip import QKSpecs
from mimuon_jax.types import Matrices, Shardings, State
from train.errors import BadInput
from train.optimizers.baselines import SGDM, AdamW, Lion, Shampoo
from train.optimizers.muon import MiMuon, Muon, MuSGD
from train.optimizers.muon_mvr import MuonMVR1, MuonMVR2
from train.optimizers.muonh import MuonH, NorMuonH
from train.optimizers.normuon import AdaMuon, NorMuon
from train.optimizers.options import Optimizer, Split
from train.optimizers.soap import SOAP, SOAPMuon
from train.optimizers.spectral import SpectralAdam, SpectralSGD
from train.optimizers.variants import NAMO, Dion2, MuonClip, PolarGrad, Scion

__all__ = [
    "NAMO",
    "OPTIMIZERS",
    "SGDM",
    "SOAP",
    "AdaMuon",
    "AdamW",
    "Dion2",
    "Lion",
    "MiMuon",
    "MuSGD",
    "Muon",
    "MuonClip",
    "MuonH",
    "MuonMVR1",
    "MuonMVR2",
    "NorMuon",
    "NorMuonH",
    "Optimizer",
    "PolarGrad",
    "SOAPMuon",
    "Scion",
    "Shampoo",
    "SpectralAdam",
    "SpectralSGD",
    "make_optimizer",
    "warmup_cosine",
]

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "mimuon": MiMuon,
    "muon": Muon,
    "adamw": AdamW,
    "musgd": MuSGD,
    "muon_mvr1": MuonMVR1,
    "muon_mvr2": MuonMVR2,
    "spectral_sgd": SpectralSGD,
    "spectral_adam": SpectralAdam,
    "shampoo": Shampoo,
    "sgdm": SGDM,
    "lion": Lion,
    "normuon": NorMuon,
    "adamuon": AdaMuon,
    "muonclip": MuonClip,
    "muonh": MuonH,
    "normuonh": NorMuonH,
    "scion": Scion,
    "dion2": Dion2,
    "polargrad": PolarGrad,
    "namo": NAMO,
    "soap": SOAP,
    "soap_muon": SOAPMuon,
}


def warmup_cosine(peak: float, *, options: Optimizer, steps: int) -> optax.Schedule:
    """Linear warm-up to the peak, then cosine decay to `final_fraction` of it.

    With a `cooldown`, constant, and linear in that last part of the run.

    `peak (t + 1) / warmup_steps` at step `t < warmup_steps`, so the first step is not wasted on a
    learning rate of 0.

    Example:
        >>> rate = warmup_cosine(1.0, options=Optimizer(warmup_steps=4), steps=8)
        >>> [round(float(rate(step)), 3) for step in (0, 3, 4, 6)]
        [0.25, 1.0, 1.0, 0.5]
    """
    warmup = min(steps // 10, 300) if options.warmup_steps is None else options.warmup_steps
    if options.cooldown is None:
        fall = optax.cosine_decay_schedule(peak, steps - warmup, alpha=options.final_fraction)
    else:
        falling = round(options.cooldown * steps)
        begin = max(steps - falling - warmup, 0)
        fall = optax.linear_schedule(peak, options.final_fraction * peak, max(falling, 1), begin)
    if warmup == 0:
        return fall
    rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, fall], [warmup])


def make_optimizer(
    options: Optimizer,
    *,
    steps: int,
    matrices: Matrices,
    shardings: Shardings = None,
    split: Split = MappingProxyType({}),
    specs: QKSpecs = MappingProxyType({}),
) -> tuple[optax.GradientTransformationExtraArgs, optax.Schedule]:
    """Builds the optimizer, with gradient clipping, and its learning-rate schedule.

    Args:
        options: which optimizer, and its settings.
        steps: length of the run, in optimizer steps; the schedule ends there.
        matrices: the model's dimension numbers, as `mimuon_jax.partition` takes them.
        shardings: of the parameters; None: learned from the arrays. Under Auto mesh axes the
            optimizer needs them to know the layout while it is traced.
        split: sizes of the matrices that one parameter holds side by side, by a regular expression
            on its path.
        specs: where the queries and keys of attention are, for optimizers that limit its logits.

    Returns:
        The transformation, which takes extra arguments such as `grad_fn`, and the learning rate as
        a function of the step.

    Raises:
        BadInput: settings that the optimizer refuses, with its own message.
    """

    def scheduled(peak: float) -> optax.Schedule:
        return warmup_cosine(peak, options=options, steps=steps)

    try:
        inner = options.transformation(scheduled, matrices, shardings, split, specs)
    except ValueError as error:
        raise BadInput(f"optimizer: {error}") from error
    if options.clip_norm < math.inf:
        inner = _clipped(inner, options.clip_norm)
    if options.lookahead:
        scale = _lookahead_scale(options.lookahead, scheduled(1.0), steps)
        inner = lookahead_ema(inner, options.lookahead_decay, scale=scale)
    if options.outer_every is not None:
        inner = outer_nesterov(inner, every=options.outer_every)
    return optax.with_extra_args_support(inner), scheduled(options.learning_rate)


def _lookahead_scale(peak: float, relative: optax.Schedule, steps: int) -> optax.Schedule:
    """The lookahead's factor, `peak` times the relative learning rate in the source's part."""
    first, last = round(0.16 * steps), round(0.77 * steps)  # 500 and 2400 of 3125

    def scale(step: Any) -> Any:
        return jnp.where((step >= first) & (step < last), peak * relative(step), 0.0)

    return scale


def _clipped(
    inner: optax.GradientTransformation, clip_norm: float
) -> optax.GradientTransformationExtraArgs:
    """Clips the gradients, and those of `grad_fn` likewise, so that the two are comparable."""
    clip = optax.clip_by_global_norm(clip_norm)
    chain = optax.chain(clip, inner)

    def update(
        updates: Any, state: State, params: Any = None, *, grad_fn: Any = None, **extra: Any
    ) -> tuple[Any, State]:
        if grad_fn is not None:
            extra["grad_fn"] = lambda params: clip.update(grad_fn(params), clip.init(params))[0]
        return chain.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(chain.init, update)
