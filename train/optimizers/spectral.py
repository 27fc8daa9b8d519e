"""The spectral family: U S^p V^T of momentum or of Adam's update."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import optax

from mimuon_jax import spectral_adam, spectral_sgd
from mimuon_jax.types import Matrices, Shardings
from train.optimizers.options import Gain, Optimizer, Orthogonalizer, Scheduled, Split

Method: TypeAlias = Orthogonalizer | Literal["coupled_newton"]


@dataclass(frozen=True, kw_only=True)
class SpectralSGD(Optimizer):
    """Spectral power p of the momentum: mSGD, mSGDS, mSGDQ, mSGDZ for p = 1, 1/2, 1/4, 0."""

    learning_rate: float = 7e-3
    """Peak learning rate, reached after the warm-up. Its useful size depends on p: updates scale as
    the gradient to the power p. 7e-3 is the paper's for p = 0."""

    p: float = 0.5
    """Power of the singular values in 0 .. 1: 0 is Muon, 1 is momentum SGD."""

    momentum: float = 0.95
    """Heavy-ball momentum mu in [0, 1): M = mu M + G."""

    nesterov: bool = False
    """Pass on mu M + G instead of M."""

    method: Method | None = None
    """How the power is computed; None: newton_schulz for p = 0 (or another orthogonalizer),
    coupled_newton for 1/2 and 1/4, svd (exact and slow) for any other p."""

    gain: Gain | None = "width"
    """Shape-dependent factor at p = 0 alone; width: sqrt(max(1, output / reduction)); unflattened:
    the same, 1 for convolutions; None: 1."""

    weight_decay: float = 0.1
    """Decoupled weight decay of all parameters; a step shrinks them by learning rate times this."""

    auxiliary_learning_rate: float | None = None
    """Peak learning rate of vectors and embeddings, which take the momentum itself; None:
    learning_rate."""

    def transformation(
        self, scheduled: Scheduled, matrices: Matrices, shardings: Shardings, split: Split
    ) -> optax.GradientTransformation:
        """`mimuon_jax.spectral_sgd` with these options."""
        rate = scheduled(self.learning_rate)
        keywords = self.keywords(scheduled)
        return spectral_sgd(rate, **keywords, matrices=matrices, shardings=shardings, split=split)


@dataclass(frozen=True, kw_only=True)
class SpectralAdam(Optimizer):
    """Spectral power p of Adam's update: Adam, AdamS, AdamQ, AdamZ for p = 1, 1/2, 1/4, 0."""

    learning_rate: float = 1e-2
    """Peak learning rate of the matrices, reached after the warm-up; 1e-2 is the paper's for
    p = 1/2."""

    p: float = 0.5
    """Power of the singular values in 0 .. 1: 1 is AdamW."""

    b1: float = 0.9
    """Decay of the first moment, in [0, 1)."""

    b2: float = 0.999
    """Decay of the second moment, in [0, 1)."""

    eps: float = 1e-8
    """Added to the root of the second moment, in the unit of the gradient."""

    method: Method | None = None
    """How the power is computed; None: newton_schulz for p = 0 (or another orthogonalizer),
    coupled_newton for 1/2 and 1/4, svd (exact and slow) for any other p."""

    gain: Gain | None = "width"
    """Shape-dependent factor at p = 0 alone; width: sqrt(max(1, output / reduction)); unflattened:
    the same, 1 for convolutions; None: 1."""

    weight_decay: float = 0.1
    """Decoupled weight decay of all parameters; a step shrinks them by learning rate times this."""

    auxiliary_learning_rate: float | None = 3e-4
    """Peak learning rate of vectors and embeddings, which take Adam's update itself; None:
    learning_rate."""

    def transformation(
        self, scheduled: Scheduled, matrices: Matrices, shardings: Shardings, split: Split
    ) -> optax.GradientTransformation:
        """`mimuon_jax.spectral_adam` with these options."""
        rate = scheduled(self.learning_rate)
        keywords = self.keywords(scheduled)
        return spectral_adam(rate, **keywords, matrices=matrices, shardings=shardings, split=split)
