"""The optimizers that `--optimizer` takes: their typed options, and how each is built."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax

from mimuon_jax import mimuon, muon
from mimuon_jax.matrices import roles
from mimuon_jax.types import Matrices, Shardings
from train.errors import BadInput, require

Scheduled = Callable[[float], optax.Schedule]


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Options that every optimizer shares. A new one: a subclass here, a line in `OPTIMIZERS`."""

    learning_rate: float = 1e-3
    """Peak learning rate, reached after the warm-up."""

    weight_decay: float = 0.0
    """Decoupled weight decay of the matrices; a step shrinks them by learning rate times this."""

    warmup_steps: int | None = None
    """Steps of linear warm-up, the first with learning_rate / warmup_steps; None: a tenth of the
    run, at most 300."""

    final_fraction: float = 0.0
    """Learning rate at the end of the cosine decay, as a fraction of the peak, 0 .. 1."""

    clip_norm: float = 1.0
    """Largest global gradient norm, longer gradients are scaled down to it; inf: no clipping."""

    def __post_init__(self) -> None:
        _positive(self, "learning_rate")
        require(
            0 <= self.weight_decay < math.inf,
            f"optimizer.weight_decay={self.weight_decay} must be a finite number >= 0",
        )
        require(
            0 <= self.final_fraction <= 1,
            f"optimizer.final_fraction={self.final_fraction} must lie in 0 .. 1",
        )
        require(
            self.clip_norm > 0,
            f"optimizer.clip_norm={self.clip_norm} must be a number > 0; inf does not clip",
        )
        require(
            self.warmup_steps is None or self.warmup_steps >= 0,
            f"optimizer.warmup_steps={self.warmup_steps} must be at least 0",
        )

    def transformation(
        self, scheduled: Scheduled, matrices: Matrices, shardings: Shardings
    ) -> optax.GradientTransformation:
        """Builds the optimizer.

        Args:
            scheduled: turns a peak into its warm-up and cosine schedule.
            matrices: dimension numbers of the parameters.
            shardings: how the parameters lie on a mesh; None if the optimizer has to find out.
        """
        raise TypeError(f"{type(self).__name__} builds no optimizer; use one of {OPTIMIZERS}")


@dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """Muon for matrices, Adam for everything else."""

    learning_rate: float = 0.02
    """Peak learning rate of the matrices, reached after the warm-up."""

    weight_decay: float = 0.1
    """Decoupled weight decay of the matrices; a step shrinks them by learning rate times this."""

    momentum: float = 0.95
    """Heavy-ball momentum mu in [0, 1): M = mu M + G."""

    nesterov: bool = True
    """Pass on mu M + G instead of M."""

    orthogonalizer: Literal[
        "newton_schulz", "gram_newton_schulz", "fast_newton_schulz", "jordan", "dion", "svd"
    ] = "newton_schulz"
    """Polynomial that orthogonalizes: newton_schulz (Polar Express, 6 steps; gram_ and fast_ are
    cheaper forms of it), jordan or dion (5 steps); svd is exact and slow."""

    gain: Literal["width", "rms", "spectral"] = "width"
    """Shape-dependent factor of an orthogonalized update; width: sqrt(max(1, output /
    reduction))."""

    auxiliary_learning_rate: float | None = None
    """Peak learning rate of Adam, for vectors and embeddings; None: 0.015 * learning_rate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _below_one(self, "momentum")
        if self.auxiliary_learning_rate is not None:
            _positive(self, "auxiliary_learning_rate")

    def transformation(
        self, scheduled: Scheduled, matrices: Matrices, shardings: Shardings
    ) -> optax.GradientTransformation:
        """Muon with the given schedule, on the given matrices."""
        return muon(scheduled(self.learning_rate), **self._common(scheduled, matrices, shardings))

    def _common(
        self, scheduled: Scheduled, matrices: Matrices, shardings: Shardings
    ) -> dict[str, Any]:
        """The keywords that `muon` and `mimuon` share."""
        auxiliary = self.auxiliary_learning_rate
        return {
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "orthogonalizer": self.orthogonalizer,
            "gain": self.gain,
            "weight_decay": self.weight_decay,
            "auxiliary_learning_rate": None if auxiliary is None else scheduled(auxiliary),
            "matrices": matrices,
            "shardings": shardings,
        }


@dataclass(frozen=True, kw_only=True)
class MiMuon(Muon):
    """Muon for matrices whose gate is open, momentum SGD where it is shut, Adam for the rest."""

    weight_decay: float = 0.08
    """Decoupled weight decay of the matrices; a step shrinks them by learning rate times this."""

    nesterov: bool = False
    """Pass on mu M + G instead of M."""

    threshold: float = 5e-3
    """Gate threshold tau >= 0, in the unit of the measure of the momentum; 0 is Muon, inf is
    momentum SGD."""

    measure: Literal["rms", "gap", "spectral", "frobenius"] = "rms"
    """What the gate compares with the threshold, a number a matrix."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.threshold >= 0,
            f"optimizer.threshold={self.threshold} must be a number >= 0: 0 is Muon, inf is "
            "momentum SGD",
        )

    def transformation(
        self, scheduled: Scheduled, matrices: Matrices, shardings: Shardings
    ) -> optax.GradientTransformation:
        """MiMuon with the given schedule, on the given matrices."""
        return mimuon(
            scheduled(self.learning_rate),
            threshold=self.threshold,
            measure=self.measure,
            **self._common(scheduled, matrices, shardings),
        )


@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """AdamW for everything, with weight decay on the matrices alone."""

    learning_rate: float = 3e-3
    """Peak learning rate, reached after the warm-up."""

    weight_decay: float = 0.1
    """Decoupled weight decay of the matrices; a step shrinks them by learning rate times this."""

    b1: float = 0.9
    """Decay of the first moment, in [0, 1)."""

    b2: float = 0.95
    """Decay of the second moment, in [0, 1)."""

    eps: float = 1e-8
    """Added to the root of the second moment, in units of the gradient."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _below_one(self, "b1", "b2")
        _positive(self, "eps")

    def transformation(
        self, scheduled: Scheduled, matrices: Matrices, shardings: Shardings
    ) -> optax.GradientTransformation:
        """AdamW with the given schedule."""

        def is_matrix(params: Any) -> Any:
            decided = [role.numbers is not None for role in roles(params, matrices)]
            return jax.tree.unflatten(jax.tree.structure(params), decided)

        return optax.adamw(
            scheduled(self.learning_rate),
            b1=self.b1,
            b2=self.b2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            mask=is_matrix,
        )


OPTIMIZERS: dict[str, type[Optimizer]] = {"mimuon": MiMuon, "muon": Muon, "adamw": AdamW}


def warmup_cosine(peak: float, *, options: Optimizer, steps: int) -> optax.Schedule:
    """Linear warm-up to the peak, then a cosine down to `final_fraction` of it.

    `peak (t + 1) / warmup_steps` at step `t < warmup_steps`: no step has the learning rate 0.

    Example:
        >>> rate = warmup_cosine(1.0, options=Optimizer(warmup_steps=4), steps=8)
        >>> [round(float(rate(step)), 3) for step in (0, 3, 4, 6)]
        [0.25, 1.0, 1.0, 0.5]
    """
    warmup = min(steps // 10, 300) if options.warmup_steps is None else options.warmup_steps
    cosine = optax.cosine_decay_schedule(peak, steps - warmup, alpha=options.final_fraction)
    if warmup == 0:
        return cosine
    rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, cosine], [warmup])


def make_optimizer(
    options: Optimizer, *, steps: int, matrices: Matrices, shardings: Shardings = None
) -> tuple[optax.GradientTransformationExtraArgs, optax.Schedule]:
    """Builds clipping and optimizer, and the schedule of its learning rate.

    Args:
        options: which optimizer, and its settings.
        steps: length of the run, in optimizer steps, where the schedule ends.
        matrices: the model's dimension numbers, as `mimuon_jax.partition` takes them.
        shardings: of the parameters; None: learned from the arrays. Under Auto mesh axes only an
            optimizer that is told them knows while tracing where matrices travel.

    Returns:
        The transformation, which takes extra arguments such as `grad_fn`, and the learning rate as
        a function of the step.

    Raises:
        BadInput: settings that the optimizer refuses, in its own words.
    """

    def scheduled(peak: float) -> optax.Schedule:
        return warmup_cosine(peak, options=options, steps=steps)

    try:
        inner = options.transformation(scheduled, matrices, shardings)
    except ValueError as error:
        raise BadInput(f"optimizer: {error}") from error
    if options.clip_norm < math.inf:
        inner = optax.chain(optax.clip_by_global_norm(options.clip_norm), inner)
    return optax.with_extra_args_support(inner), scheduled(options.learning_rate)


def _positive(options: Any, *names: str) -> None:
    """Requires finite numbers above 0."""
    for name in names:
        value = getattr(options, name)
        require(0 < value < math.inf, f"optimizer.{name}={value} must be a finite number > 0")


def _below_one(options: Any, *names: str) -> None:
    """Requires decay factors, in [0, 1)."""
    for name in names:
        value = getattr(options, name)
        require(0 <= value < 1, f"optimizer.{name}={value} must be at least 0 and less than 1")
