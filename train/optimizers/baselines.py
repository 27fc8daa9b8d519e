"""What the papers compare with: AdamW, Lion, momentum SGD and Shampoo."""

import functools
from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax

from mimuon_jax import sgdm, shampoo
from mimuon_jax.transforms.roles import roles
from mimuon_jax.types import Matrices, Shardings
from train.optimizers.options import Optimizer, Scheduled, Split


@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """AdamW for everything, with weight decay on the matrices alone."""

    learning_rate: float = 3e-3
    """Peak learning rate, reached after the warm-up."""

    b1: float = 0.9
    """Decay of the first moment, in [0, 1)."""

    b2: float = 0.95
    """Decay of the second moment, in [0, 1)."""

    eps: float = 1e-8
    """Added to the root of the second moment, in the unit of the gradient."""

    weight_decay: float = 0.1
    """Decoupled weight decay of the matrices; a step shrinks them by learning rate times this."""

    def transformation(
        self, scheduled: Scheduled, matrices: Matrices, shardings: Shardings, split: Split
    ) -> optax.GradientTransformation:
        """`optax.adamw` with these options."""
        mask = functools.partial(_is_matrix, matrices=matrices)
        return optax.adamw(scheduled(self.learning_rate), **self.keywords(scheduled), mask=mask)


@dataclass(frozen=True, kw_only=True)
class Lion(Optimizer):
    """Lion for everything, with weight decay on the matrices alone."""

    learning_rate: float = 3e-4
    """Peak learning rate, reached after the warm-up; every entry moves by it at every step."""

    b1: float = 0.9
    """Weight of the momentum in the direction, in [0, 1)."""

    b2: float = 0.99
    """Decay of the momentum, in [0, 1)."""

    weight_decay: float = 0.2
    """Decoupled weight decay of the matrices; a step shrinks them by learning rate times this."""

    def transformation(
        self, scheduled: Scheduled, matrices: Matrices, shardings: Shardings, split: Split
    ) -> optax.GradientTransformation:
        """`optax.lion` with these options."""
        mask = functools.partial(_is_matrix, matrices=matrices)
        return optax.lion(scheduled(self.learning_rate), **self.keywords(scheduled), mask=mask)


@dataclass(frozen=True, kw_only=True)
class SGDM(Optimizer):
    """Momentum SGD for everything."""

    learning_rate: float = 0.05
    """Peak learning rate, reached after the warm-up; a step is up to 1 / (1 - momentum) gradients
    long."""

    momentum: float = 0.9
    """Heavy-ball momentum mu in [0, 1): M = mu M + G."""

    nesterov: bool = False
    """Pass on mu M + G instead of M."""

    weight_decay: float = 0.0
    """Decoupled weight decay of all parameters; a step shrinks them by learning rate times this."""

    def transformation(
        self, scheduled: Scheduled, matrices: Matrices, shardings: Shardings, split: Split
    ) -> optax.GradientTransformation:
        """`mimuon_jax.sgdm` with these options."""
        return sgdm(scheduled(self.learning_rate), **self.keywords(scheduled))


@dataclass(frozen=True, kw_only=True)
class Shampoo(Optimizer):
    """Shampoo for matrices, Adam for everything else."""

    learning_rate: float = 0.02
    """Peak learning rate of the matrices, reached after the warm-up. Without grafting an update has
    the size of an orthogonal matrix at first, and shrinks as Adagrad's do."""

    max_dim: int = 768
    """Longest side that is preconditioned, in entries; beside a longer one the other side takes the
    power -1/2."""

    update_every: int = 20
    """Steps from one computation of the roots to the next; the first step computes them."""

    damping: float = 1e-4
    """Added to the statistics before a root, in 0 .. 1, relative to their largest eigenvalue."""

    grafting: Literal["adam", "sgd"] | None = None
    """Whose update lends every matrix its Frobenius norm: Adam's, the gradient itself, or (None)
    nobody's."""

    weight_decay: float = 0.1
    """Decoupled weight decay of the matrices; a step shrinks them by learning rate times this."""

    auxiliary_learning_rate: float | None = None
    """Peak learning rate of Adam, for vectors and embeddings; None: 0.015 * learning_rate."""

    def transformation(
        self, scheduled: Scheduled, matrices: Matrices, shardings: Shardings, split: Split
    ) -> optax.GradientTransformation:
        """`mimuon_jax.shampoo` with these options."""
        grafts = {None: None, "adam": optax.scale_by_adam(), "sgd": optax.identity()}
        keywords = self.keywords(scheduled) | {"grafting": grafts[self.grafting]}
        return shampoo(scheduled(self.learning_rate), **keywords, matrices=matrices)


def _is_matrix(params: Any, matrices: Matrices) -> Any:
    """True at the parameters that are matrices, False elsewhere."""
    decided = [role.numbers is not None for role in roles(params, matrices)]
    return jax.tree.unflatten(jax.tree.structure(params), decided)
