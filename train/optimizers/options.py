"""What the options of every optimizer share: fields, help texts, limits, and the call itself."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple, TypeAlias

import optax
from tyro.conf import arg

from mimuon_jax.transforms.gains import GainName
from mimuon_jax.transforms.orthogonalize import OrthogonalizerName
from mimuon_jax.transforms.qk_clip import QKSpecs
from mimuon_jax.types import Matrices, Shardings
from train.errors import require

#: Regular expression on a path -> sizes along the output axis.
Split: TypeAlias = Mapping[str, Sequence[int]]
#: A peak learning rate to its schedule over the run.
Scheduled: TypeAlias = Callable[[float], optax.Schedule]

# Options that several optimizers have, each with its help text.
MatrixRate: TypeAlias = Annotated[
    float, arg(help="Peak learning rate of the matrices, reached after the warm-up.")
]
Momentum: TypeAlias = Annotated[float, arg(help="Heavy-ball momentum mu in [0, 1): M = mu M + G.")]
Nesterov: TypeAlias = Annotated[bool, arg(help="Pass on mu M + G instead of M.")]
Orthogonalizer: TypeAlias = Annotated[
    OrthogonalizerName,
    arg(
        help="Polynomial that orthogonalizes: newton_schulz or polar_express (6 steps; gram_ and "
        "fast_ are cheaper forms of it), jordan or dion (5 steps); svd is exact and slow."
    ),
]
Gain: TypeAlias = Annotated[
    GainName | None,
    arg(
        help="Factor of an orthogonalized update that depends on its shape; width: "
        "sqrt(max(1, output / reduction)); unflattened: the same, 1 for convolutions; None: 1."
    ),
]
MatrixDecay: TypeAlias = Annotated[
    float,
    arg(
        help="Decoupled weight decay of the matrices; each step shrinks them by learning rate "
        "times this."
    ),
]
Decay: TypeAlias = Annotated[
    float,
    arg(
        help="Decoupled weight decay of all parameters; each step shrinks them by learning rate "
        "times this."
    ),
]
AdamRate: TypeAlias = Annotated[
    float | None,
    arg(
        help="Peak learning rate of Adam, for vectors and embeddings; None: 0.015 * learning_rate, "
        "with gain rms: learning_rate."
    ),
]
AdamDecay: TypeAlias = Annotated[
    float | None, arg(help="Decoupled weight decay of Adam, for vectors and embeddings; None: 0.")
]
FirstMoment: TypeAlias = Annotated[float, arg(help="Decay of the first moment, in [0, 1).")]
SecondMoment: TypeAlias = Annotated[float, arg(help="Decay of the second moment, in [0, 1).")]
Epsilon: TypeAlias = Annotated[
    float, arg(help="Added to the root of the second moment, in the unit of the gradient.")
]


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Options that every optimizer shares. A new one: a subclass, and a line in `OPTIMIZERS`.

    A subclass names its function, and adds the function's arguments by the same names and in the
    same order.
    """

    function: ClassVar[Callable[..., optax.GradientTransformation]]
    """What builds the optimizer: takes a learning rate, then keywords."""

    needs_max_logits: ClassVar[bool] = False
    """Whether `update` takes the largest attention logits of the step."""

    learning_rate: float = 1e-3
    """Peak learning rate, reached after the warm-up."""

    warmup_steps: int | None = None
    """Steps of linear warm-up, the first with learning_rate / warmup_steps; None: a tenth of the
    run, at most 300."""

    final_fraction: float = 0.0
    """Learning rate at the end of the run, as a fraction of the peak, 0 .. 1."""

    cooldown: float | None = None
    """Part of the run, at its end, in which the learning rate falls linearly to final_fraction, in
    0 .. 1; before, it is constant. None: a cosine from the warm-up on."""

    clip_norm: float = 1.0
    """Largest global gradient norm; longer gradients are scaled down to it. inf: no clipping."""

    lookahead: float = 0.0
    """EMA-Nesterov: take gradients ahead, along a running mean of the steps times this and the
    learning rate relative to its peak, from 16 to 77 percent of the run; evaluate without it. The
    source: 0.6, on stronger optimizers 0.3. 0: off."""

    lookahead_decay: float = 0.99
    """Decay of this running mean, in [0, 1); shorter runs need less."""

    outer_every: int | None = None
    """Steps from one outer Nesterov step (rate 0.7, momentum 0.5) to the next; the source: 30.
    None: off."""

    def __post_init__(self) -> None:
        for name, limit in LIMITS.items():
            value = getattr(self, name, None)
            require(
                value is None or limit.holds(value),
                f"optimizer.{name}={value} must {limit.text}",
            )
        require(
            not self.lookahead or self.outer_every is None,
            f"optimizer.lookahead={self.lookahead} and optimizer.outer_every={self.outer_every} "
            "exclude each other; choose one",
        )

    def transformation(
        self,
        scheduled: Scheduled,
        matrices: Matrices,
        shardings: Shardings,
        split: Split,
        specs: QKSpecs,
    ) -> optax.GradientTransformation:
        """Calls the function with these options, and with those facts of the task that it takes.

        Args:
            scheduled: turns a peak into its warm-up and cosine schedule.
            matrices: dimension numbers of the parameters.
            shardings: of the parameters; None: the optimizer learns them from the arrays.
            split: sizes of the matrices that one parameter holds side by side.
            specs: where the queries and keys of attention are; empty: nowhere.
        """
        require(
            bool(specs) or not self.needs_max_logits,
            f"optimizer={type(self).__name__} limits attention logits, which this model does not "
            "have, or which its normalized queries and keys limit already; GPT-2 has them",
        )
        task = {"matrices": matrices, "shardings": shardings, "split": split, "specs": specs}
        taken = inspect.signature(self.function).parameters
        task = {name: fact for name, fact in task.items() if name in taken}
        return self.function(scheduled(self.learning_rate), **self.keywords(scheduled), **task)

    def keywords(self, scheduled: Scheduled) -> dict[str, Any]:
        """The options of the subclass, as keywords of its function."""
        shared = {field.name for field in dataclasses.fields(Optimizer)}
        own = [f.name for f in dataclasses.fields(self) if f.name not in shared]
        values = {name: getattr(self, name) for name in own}
        auxiliary = values.get("auxiliary_learning_rate")
        if auxiliary is not None:
            values["auxiliary_learning_rate"] = scheduled(auxiliary)
        return values


class Limit(NamedTuple):
    """What a number has to be; NaN fails every limit."""

    text: str
    holds: Callable[[float], bool]


_POSITIVE = Limit("be a finite number > 0", lambda x: 0 < x < math.inf)
_NOT_NEGATIVE = Limit("be a finite number >= 0", lambda x: 0 <= x < math.inf)
_DECAY = Limit("be at least 0 and less than 1", lambda x: 0 <= x < 1)
_SHARE = Limit("lie between 0 and 1", lambda x: 0 <= x <= 1)
_COUNT = Limit("be at least 1", lambda x: x >= 1)

#: The limits of every numeric option, by its name.
LIMITS = {
    "auxiliary_weight_decay": _NOT_NEGATIVE,
    "learning_rate": _POSITIVE,
    "lookahead": _NOT_NEGATIVE,
    "lookahead_decay": _DECAY,
    "outer_every": _COUNT,
    "warmup_steps": Limit("be at least 0", lambda x: x >= 0),
    "final_fraction": _SHARE,
    "cooldown": _SHARE,
    "clip_norm": Limit("be a number > 0; inf does not clip", lambda x: x > 0),
    "threshold": Limit("be a number >= 0: 0 is Muon, inf is momentum SGD", lambda x: x >= 0),
    "muon_weight": _NOT_NEGATIVE,
    "sgd_weight": _NOT_NEGATIVE,
    "gamma": _SHARE,
    "power": _NOT_NEGATIVE,
    "tau": Limit("be a number > 0; inf does not clip", lambda x: x > 0),
    "alpha": _SHARE,
    "clip": _POSITIVE,
    "p": Limit("lie between 0 and 1: 0 orthogonalizes, 1 changes nothing", lambda x: 0 <= x <= 1),
    "b1": _DECAY,
    "b2": _DECAY,
    "beta2": _SHARE,
    "rms": _POSITIVE,
    "radius": _NOT_NEGATIVE,
    "auxiliary_radius": _NOT_NEGATIVE,
    "fraction": Limit("be a number > 0, at most 1", lambda x: 0 < x <= 1),
    "eps": _POSITIVE,
    "max_dim": _COUNT,
    "update_every": _COUNT,
    "damping": Limit("be a number > 0, at most 1", lambda x: 0 < x <= 1),
    "momentum": _DECAY,
    "sgd_momentum": _DECAY,
    "weight_decay": _NOT_NEGATIVE,
    "auxiliary_learning_rate": _POSITIVE,
}
