"""Adam in the eigenbasis of Shampoo: SOAP, and SOAP-Muon."""

from dataclasses import dataclass
from typing import Annotated, TypeAlias

from tyro.conf import arg

from mimuon_jax import soap, soap_muon
from mimuon_jax.transforms.eigenbasis import SidesName
from train.optimizers.options import (
    AdamDecay,
    AdamRate,
    Epsilon,
    FirstMoment,
    Gain,
    MatrixDecay,
    MatrixRate,
    Momentum,
    Nesterov,
    Optimizer,
    Orthogonalizer,
    SecondMoment,
)

Every: TypeAlias = Annotated[
    int, arg(help="Steps from one improvement of the eigenvectors to the next.")
]
Longest: TypeAlias = Annotated[
    int, arg(help="Longest side that has a basis of its own, in entries.")
]
Sides: TypeAlias = Annotated[
    SidesName,
    arg(help="Sides of a matrix that have a basis of their own."),
]


@dataclass(frozen=True, kw_only=True)
class SOAP(Optimizer):
    """Adam in the eigenbasis of Shampoo for matrices, Adam for everything else."""

    function = staticmethod(soap)

    learning_rate: float = 3e-3
    """Peak learning rate of all parameters, reached after the warm-up: AdamW's."""

    b1: FirstMoment = 0.95
    b2: SecondMoment = 0.95
    eps: Epsilon = 1e-8
    update_every: Every = 10
    max_dim: Longest = 10_000
    sides: Sides = "both"
    weight_decay: MatrixDecay = 0.1
    auxiliary_learning_rate: float | None = None
    """Peak learning rate of Adam, for vectors and embeddings; None: learning_rate."""

    auxiliary_weight_decay: AdamDecay = None


@dataclass(frozen=True, kw_only=True)
class SOAPMuon(Optimizer):
    """Muon of momentum that is divided as in SOAP; Adam for everything else."""

    function = staticmethod(soap_muon)
    learning_rate: MatrixRate = 0.02

    beta2: float = 0.9
    """Decay of the second moment and of the statistics, in [0, 1)."""

    power: float = 0.5
    """Exponent >= 0 of the second moment that momentum is divided by; 0 is Muon."""

    eps: Epsilon = 1e-8
    update_every: Every = 1
    max_dim: Longest = 10_000
    sides: Sides = "both"
    momentum: Momentum = 0.95
    nesterov: Nesterov = True
    orthogonalizer: Orthogonalizer = "newton_schulz"
    gain: Gain = "width"
    weight_decay: MatrixDecay = 0.1
    auxiliary_learning_rate: AdamRate = None
    auxiliary_weight_decay: AdamDecay = None
