"""The baselines of the papers: AdamW, Lion, momentum SGD and Shampoo."""

import functools
from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax

from mimuon_jax import sgdm, shampoo
from mimuon_jax.transforms.roles import roles
from mimuon_jax.types import LearningRate, Matrices
from train.optimizers.options import (
    AdamDecay,
    AdamRate,
    Decay,
    Epsilon,
    FirstMoment,
    MatrixDecay,
    Momentum,
    Nesterov,
    Optimizer,
    Scheduled,
    SecondMoment,
)


def _is_matrix(params: Any, matrices: Matrices) -> Any:
    """True for the parameters that are matrices, False for the others."""
    decided = [role.numbers is not None for role in roles(params, matrices)]
    return jax.tree.unflatten(jax.tree.structure(params), decided)


def _adamw(
    learning_rate: LearningRate, *, matrices: Matrices, **keywords: Any
) -> optax.GradientTransformation:
    """`optax.adamw` with weight decay on the matrices alone."""
    mask = functools.partial(_is_matrix, matrices=matrices)
    return optax.adamw(learning_rate, **keywords, mask=mask)


def _lion(
    learning_rate: LearningRate, *, matrices: Matrices, **keywords: Any
) -> optax.GradientTransformation:
    """`optax.lion` with weight decay on the matrices alone."""
    mask = functools.partial(_is_matrix, matrices=matrices)
    return optax.lion(learning_rate, **keywords, mask=mask)


@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """AdamW for everything, with weight decay on the matrices alone."""

    function = staticmethod(_adamw)

    learning_rate: float = 3e-3
    """Peak learning rate, reached after the warm-up."""

    b1: FirstMoment = 0.9
    b2: SecondMoment = 0.95
    eps: Epsilon = 1e-8
    weight_decay: MatrixDecay = 0.1


@dataclass(frozen=True, kw_only=True)
class Lion(Optimizer):
    """Lion for everything, with weight decay on the matrices alone."""

    function = staticmethod(_lion)

    learning_rate: float = 3e-4
    """Peak learning rate, reached after the warm-up; every entry moves by it at every step."""

    b1: float = 0.9
    """Weight of the momentum in the direction, in [0, 1)."""

    b2: float = 0.99
    """Decay of the momentum, in [0, 1)."""

    weight_decay: MatrixDecay = 0.2


@dataclass(frozen=True, kw_only=True)
class SGDM(Optimizer):
    """Momentum SGD for everything."""

    function = staticmethod(sgdm)

    learning_rate: float = 0.05
    """Peak learning rate, reached after the warm-up; a step is up to 1 / (1 - momentum) gradients
    long."""

    momentum: Momentum = 0.9
    nesterov: Nesterov = False
    weight_decay: Decay = 0.0


@dataclass(frozen=True, kw_only=True)
class Shampoo(Optimizer):
    """Shampoo for matrices, Adam for everything else."""

    function = staticmethod(shampoo)

    learning_rate: float = 0.02
    """Peak learning rate of the matrices, reached after the warm-up. Without grafting an update has
    the size of an orthogonal matrix at first, and shrinks as Adagrad's do."""

    max_dim: int = 768
    """Longest side that is preconditioned, in entries. If one side is longer, the other takes the
    power -1/2."""

    update_every: int = 20
    """Steps from one computation of the roots to the next; the first step computes them."""

    damping: float = 1e-4
    """Added to the statistics before the root is taken, in 0 .. 1, relative to their largest
    eigenvalue."""

    grafting: Literal["adam", "sgd"] | None = None
    """Whose update gives each matrix its Frobenius norm: Adam's, the gradient itself, or (None)
    Shampoo's own."""

    weight_decay: MatrixDecay = 0.1
    auxiliary_learning_rate: AdamRate = None
    auxiliary_weight_decay: AdamDecay = None

    def keywords(self, scheduled: Scheduled) -> dict[str, Any]:
        """The same, with the transformation that `grafting` names."""
        grafts = {None: None, "adam": optax.scale_by_adam(), "sgd": optax.identity()}
        return super().keywords(scheduled) | {"grafting": grafts[self.grafting]}
