"""What the options of every optimizer share: fields, limits, and their way into the library."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import optax

from mimuon_jax.types import Matrices, Shardings
from train.errors import require

#: Regular expression on a path -> sizes along the output axis.
Split: TypeAlias = Mapping[str, Sequence[int]]
#: A peak learning rate to its schedule over the run.
Scheduled: TypeAlias = Callable[[float], optax.Schedule]

Orthogonalizer: TypeAlias = Literal[
    "newton_schulz", "gram_newton_schulz", "fast_newton_schulz", "jordan", "dion", "svd"
]
Gain: TypeAlias = Literal["width", "rms", "spectral", "unflattened"]


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Options that every optimizer shares. A new one: a subclass, and a line in `OPTIMIZERS`.

    A subclass adds the keywords of its function in the library, by the same names and in the same
    order.
    """

    learning_rate: float = 1e-3
    """Peak learning rate, reached after the warm-up."""

    warmup_steps: int | None = None
    """Steps of linear warm-up, the first with learning_rate / warmup_steps; None: a tenth of the
    run, at most 300."""

    final_fraction: float = 0.0
    """Learning rate at the end of the cosine decay, as a fraction of the peak, 0 .. 1."""

    clip_norm: float = 1.0
    """Largest global gradient norm, longer gradients are scaled down to it; inf: no clipping."""

    def __post_init__(self) -> None:
        for name, limit in LIMITS.items():
            value = getattr(self, name, None)
            require(
                value is None or limit.holds(value),
                f"optimizer.{name}={value} must {limit.text}",
            )

    def transformation(
        self, scheduled: Scheduled, matrices: Matrices, shardings: Shardings, split: Split
    ) -> optax.GradientTransformation:
        """Builds the optimizer.

        Args:
            scheduled: turns a peak into its warm-up and cosine schedule.
            matrices: dimension numbers of the parameters.
            shardings: how the parameters lie on a mesh; None if the optimizer has to find out.
            split: sizes of the matrices that one parameter holds side by side; the optimizers of
                the spectral family take them apart.
        """
        raise TypeError(f"{type(self).__name__} builds no optimizer; use one of OPTIMIZERS")

    def keywords(self, scheduled: Scheduled) -> dict[str, Any]:
        """The options of the subclass, as keywords of the library's function."""
        shared = {field.name for field in dataclasses.fields(Optimizer)}
        own = [f.name for f in dataclasses.fields(self) if f.name not in shared]
        values = {name: getattr(self, name) for name in own}
        auxiliary = values.get("auxiliary_learning_rate")
        if auxiliary is not None:
            values["auxiliary_learning_rate"] = scheduled(auxiliary)
        return values


class Limit(NamedTuple):
    """What a number has to be; NaN holds nowhere."""

    text: str
    holds: Callable[[float], bool]


_POSITIVE = Limit("be a finite number > 0", lambda x: 0 < x < math.inf)
_NOT_NEGATIVE = Limit("be a finite number >= 0", lambda x: 0 <= x < math.inf)
_DECAY = Limit("be at least 0 and less than 1", lambda x: 0 <= x < 1)
_SHARE = Limit("lie in 0 .. 1", lambda x: 0 <= x <= 1)
_COUNT = Limit("be at least 1", lambda x: x >= 1)

#: The limits of every numeric option, by its name.
LIMITS = {
    "learning_rate": _POSITIVE,
    "warmup_steps": Limit("be at least 0", lambda x: x >= 0),
    "final_fraction": _SHARE,
    "clip_norm": Limit("be a number > 0; inf does not clip", lambda x: x > 0),
    "threshold": Limit("be a number >= 0: 0 is Muon, inf is momentum SGD", lambda x: x >= 0),
    "muon_weight": _NOT_NEGATIVE,
    "sgd_weight": _NOT_NEGATIVE,
    "gamma": _SHARE,
    "clip": _POSITIVE,
    "p": Limit("lie in 0 .. 1: 0 orthogonalizes, 1 changes nothing", lambda x: 0 <= x <= 1),
    "b1": _DECAY,
    "b2": _DECAY,
    "eps": _POSITIVE,
    "max_dim": _COUNT,
    "update_every": _COUNT,
    "damping": Limit("be a number > 0, at most 1", lambda x: 0 < x <= 1),
    "momentum": _DECAY,
    "sgd_momentum": _DECAY,
    "weight_decay": _NOT_NEGATIVE,
    "auxiliary_learning_rate": _POSITIVE,
}
