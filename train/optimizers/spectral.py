"""The spectral family: U S^p V^T of the momentum or of Adam's update."""

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from tyro.conf import arg

from mimuon_jax import spectral_adam, spectral_sgd
from train.optimizers.options import (
    Decay,
    Epsilon,
    FirstMoment,
    GainName,
    Momentum,
    Nesterov,
    Optimizer,
    OrthogonalizerName,
    SecondMoment,
)

Method: TypeAlias = Annotated[
    OrthogonalizerName | Literal["coupled_newton"] | None,
    arg(
        help="How the power is computed; None: newton_schulz for p = 0 (or another "
        "orthogonalizer), coupled_newton for 1/2 and 1/4, svd (exact and slow) for any other p."
    ),
]
Gain: TypeAlias = Annotated[
    GainName | None,
    arg(
        help="Factor that depends on the shape, at p = 0 alone; width: "
        "sqrt(max(1, output / reduction)); unflattened: the same, 1 for convolutions; None: 1."
    ),
]


@dataclass(frozen=True, kw_only=True)
class SpectralSGD(Optimizer):
    """Spectral power p of the momentum: mSGD, mSGDS, mSGDQ, mSGDZ for p = 1, 1/2, 1/4, 0."""

    function = staticmethod(spectral_sgd)

    learning_rate: float = 7e-3
    """Peak learning rate, reached after the warm-up. Its useful size depends on p: updates scale as
    the gradient to the power p. 7e-3 is the paper's for p = 0."""

    p: float = 0.5
    """Power of the singular values in 0 .. 1: 0 is Muon, 1 is momentum SGD."""

    momentum: Momentum = 0.95
    nesterov: Nesterov = False
    method: Method = None
    gain: Gain = "width"
    weight_decay: Decay = 0.1

    auxiliary_learning_rate: float | None = None
    """Peak learning rate of vectors and embeddings, which take the momentum itself; None:
    learning_rate."""


@dataclass(frozen=True, kw_only=True)
class SpectralAdam(Optimizer):
    """Spectral power p of Adam's update: Adam, AdamS, AdamQ, AdamZ for p = 1, 1/2, 1/4, 0."""

    function = staticmethod(spectral_adam)

    learning_rate: float = 1e-2
    """Peak learning rate of the matrices, reached after the warm-up; 1e-2 is the paper's for
    p = 1/2."""

    p: float = 0.5
    """Power of the singular values in 0 .. 1: 1 is AdamW."""

    b1: FirstMoment = 0.9
    b2: SecondMoment = 0.999
    eps: Epsilon = 1e-8
    method: Method = None
    gain: Gain = "width"
    weight_decay: Decay = 0.1

    auxiliary_learning_rate: float | None = 3e-4
    """Peak learning rate of vectors and embeddings, which take Adam's update itself; None:
    learning_rate."""
