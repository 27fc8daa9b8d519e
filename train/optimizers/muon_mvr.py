"""Muon on gradient estimates with variance reduction."""

from dataclasses import dataclass

from mimuon_jax import muon_mvr1, muon_mvr2
from train.optimizers.options import (
    AdamDecay,
    AdamRate,
    Gain,
    MatrixDecay,
    MatrixRate,
    Optimizer,
    Orthogonalizer,
)


@dataclass(frozen=True, kw_only=True)
class MuonMVR1(Optimizer):
    """Muon on an average corrected by the previous step's gradient; Adam for everything else."""

    function = staticmethod(muon_mvr1)
    learning_rate: MatrixRate = 0.02

    gamma: float = 0.05
    """Strength of the correction in 0 .. 1; 0 leaves an average of gradients."""

    clip: float | None = None
    """Largest Frobenius norm of each matrix's corrected gradient, in the unit of the gradient;
    None: unlimited."""

    momentum: float = 0.95
    """Decay beta in [0, 1) of the average: M = beta M + (1 - beta) G + gamma beta (G - last G)."""

    orthogonalizer: Orthogonalizer = "newton_schulz"
    gain: Gain = "width"
    weight_decay: MatrixDecay = 0.1
    auxiliary_learning_rate: AdamRate = None
    auxiliary_weight_decay: AdamDecay = None


@dataclass(frozen=True, kw_only=True)
class MuonMVR2(MuonMVR1):
    """Muon on an average corrected by a second gradient per step; Adam for everything else."""

    function = staticmethod(muon_mvr2)

    gamma: float = 0.05
    """Strength of the correction in 0 .. 1; 0 leaves an average of gradients, 1 is STORM."""

    momentum: float = 0.95
    """Decay beta in [0, 1) of the average: M = beta M + (1 - beta) G + gamma beta (G - G'), where
    G' is the same batch's gradient at the previous weights."""
