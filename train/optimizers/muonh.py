"""Muon on hyperballs: matrices keep their norm."""

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from tyro.conf import arg

from mimuon_jax import muonh, normuonh
from mimuon_jax.transforms.units import UnitName
from train.optimizers.options import (
    AdamDecay,
    AdamRate,
    Epsilon,
    Momentum,
    Nesterov,
    Optimizer,
    Orthogonalizer,
)

Norm: TypeAlias = Annotated[
    Literal["frobenius", "spectral"],
    arg(help="Norm that every matrix keeps: frobenius or spectral."),
]
Turn: TypeAlias = Annotated[
    float,
    arg(help="Peak learning rate of the matrices: length of a step relative to the matrix."),
]


@dataclass(frozen=True, kw_only=True)
class MuonH(Optimizer):
    """Muon whose matrices keep their norm; Adam for everything else."""

    function = staticmethod(muonh)
    learning_rate: Turn = 0.018
    measure: Norm = "frobenius"
    momentum: Momentum = 0.95
    nesterov: Nesterov = True
    orthogonalizer: Orthogonalizer = "newton_schulz"
    auxiliary_learning_rate: AdamRate = None
    auxiliary_weight_decay: AdamDecay = None


@dataclass(frozen=True, kw_only=True)
class NorMuonH(Optimizer):
    """MuonH whose units have updates of equal running size; Adam for everything else."""

    function = staticmethod(normuonh)
    learning_rate: Turn = 0.018

    beta2: float = 0.95
    """Decay of the mean square of each unit in 0 .. 1; 1 is MuonH."""

    per: UnitName = "longer"
    """Unit of the mean square: a neuron (output), an index of the longer axis, an entry, or the
    whole matrix (scalar)."""

    eps: Epsilon = 1e-8
    measure: Norm = "frobenius"
    momentum: Momentum = 0.95
    nesterov: Nesterov = True
    orthogonalizer: Orthogonalizer = "newton_schulz"
    auxiliary_learning_rate: AdamRate = None
    auxiliary_weight_decay: AdamDecay = None
