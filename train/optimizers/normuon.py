"""Muon with a second moment after orthogonalization: per neuron or per entry."""

from dataclasses import dataclass

from mimuon_jax import adamuon, normuon
from mimuon_jax.transforms.units import UnitName
from train.optimizers.options import (
    AdamDecay,
    AdamRate,
    Epsilon,
    Gain,
    MatrixDecay,
    MatrixRate,
    Momentum,
    Nesterov,
    Optimizer,
    Orthogonalizer,
)


@dataclass(frozen=True, kw_only=True)
class NorMuon(Optimizer):
    """Muon whose neurons have updates of equal running size; Adam for everything else."""

    function = staticmethod(normuon)
    learning_rate: MatrixRate = 0.02

    beta2: float = 0.95
    """Decay of the mean square of each neuron in 0 .. 1; 1 is Muon."""

    per: UnitName = "output"
    """Unit of the mean square: a neuron (output), an index of the longer axis, an entry, or the
    whole matrix (scalar)."""

    eps: Epsilon = 1e-8
    momentum: Momentum = 0.95
    nesterov: Nesterov = True
    orthogonalizer: Orthogonalizer = "newton_schulz"
    gain: Gain = "width"
    weight_decay: MatrixDecay = 0.1
    auxiliary_learning_rate: AdamRate = None
    auxiliary_weight_decay: AdamDecay = None


@dataclass(frozen=True, kw_only=True)
class AdaMuon(Optimizer):
    """Muon of the signs of the momentum, divided entry by entry; Adam for everything else."""

    function = staticmethod(adamuon)

    learning_rate: float = 3e-3
    """Peak learning rate of all parameters, reached after the warm-up: AdamW's."""

    beta2: float = 0.95
    """Decay of the second moment of each entry, in 0 .. 1."""

    rms: float = 0.2
    """Root mean square of an update of a matrix."""

    eps: Epsilon = 1e-8
    momentum: Momentum = 0.95
    nesterov: Nesterov = True
    orthogonalizer: Orthogonalizer = "newton_schulz"
    weight_decay: MatrixDecay = 0.1

    auxiliary_learning_rate: float | None = None
    """Peak learning rate of Adam, for vectors and embeddings; None: learning_rate."""

    auxiliary_weight_decay: AdamDecay = None
