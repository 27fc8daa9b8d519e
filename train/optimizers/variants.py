"""Other variants of Muon: MuonClip, Scion, Dion2, PolarGrad and NAMO."""

from dataclasses import dataclass
from typing import ClassVar

from mimuon_jax import dion2, muonclip, namo, polargrad, scion
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
class MuonClip(Optimizer):
    """Muon, and a limit on attention logits, for models that do not normalize queries and keys."""

    function = staticmethod(muonclip)
    needs_max_logits: ClassVar[bool] = True

    learning_rate: float = 3e-3
    """Peak learning rate of all parameters, reached after the warm-up: AdamW's, with gain rms."""

    tau: float = 100.0
    """Limit on attention logits, > 0; the queries and keys of heads beyond it are scaled down. inf:
    no limit."""

    alpha: float = 0.5
    """Share of the queries in this scaling, 0 .. 1; the keys have the rest."""

    momentum: Momentum = 0.95
    nesterov: Nesterov = False
    orthogonalizer: Orthogonalizer = "newton_schulz"
    gain: Gain = "rms"
    weight_decay: MatrixDecay = 0.1
    auxiliary_learning_rate: AdamRate = None
    auxiliary_weight_decay: AdamDecay = None


@dataclass(frozen=True, kw_only=True)
class Scion(Optimizer):
    """A norm per parameter, embeddings and heads included; no Adam."""

    function = staticmethod(scion)

    learning_rate: float = 2**-9
    """Peak learning rate of all parameters, reached after the warm-up, relative to their radii."""

    radius: float = 50.0
    """Radius of the balls of the matrices, in units of sqrt(output / reduction) for each."""

    auxiliary_radius: float = 3000.0
    """Radius of the balls of all other parameters."""

    momentum: Momentum = 0.9
    nesterov: Nesterov = False
    orthogonalizer: Orthogonalizer = "newton_schulz"

    weight_decay: float = 1.0
    """Decoupled weight decay of all parameters; 1 is Scion, 0 unconstrained Scion."""

    auxiliary_learning_rate: float | None = None
    """Peak learning rate of vectors and embeddings; None: learning_rate."""


@dataclass(frozen=True, kw_only=True)
class Dion2(Optimizer):
    """Muon that orthogonalizes a part of every matrix per step; Adam for everything else."""

    function = staticmethod(dion2)
    learning_rate: MatrixRate = 0.02

    fraction: float = 0.25
    """Part of the rows or columns, along the shorter side, in 0 .. 1; 1 is Muon."""

    momentum: Momentum = 0.95
    orthogonalizer: Orthogonalizer = "newton_schulz"
    gain: Gain = "spectral"
    weight_decay: MatrixDecay = 0.1
    auxiliary_learning_rate: AdamRate = None
    auxiliary_weight_decay: AdamDecay = None


@dataclass(frozen=True, kw_only=True)
class PolarGrad(Optimizer):
    """Muon whose updates scale with the gradient; Adam for everything else."""

    function = staticmethod(polargrad)
    learning_rate: MatrixRate = 0.02

    momentum: float = 0.95
    """Decay of the average of gradients, in [0, 1)."""

    nesterov: Nesterov = False
    orthogonalizer: Orthogonalizer = "newton_schulz"
    gain: Gain = None
    weight_decay: MatrixDecay = 0.1
    auxiliary_learning_rate: AdamRate = None
    auxiliary_weight_decay: AdamDecay = None


@dataclass(frozen=True, kw_only=True)
class NAMO(Optimizer):
    """Muon whose steps are shorter the less the gradients agree; Adam for everything else."""

    function = staticmethod(namo)
    learning_rate: MatrixRate = 0.02

    beta2: float = 0.95
    """Decay of the mean square of the norm of the gradients, in [0, 1)."""

    eps: Epsilon = 1e-8

    momentum: float = 0.95
    """Decay of the average of gradients, in [0, 1)."""

    nesterov: Nesterov = False
    orthogonalizer: Orthogonalizer = "newton_schulz"
    gain: Gain = "width"
    weight_decay: MatrixDecay = 0.1
    auxiliary_learning_rate: AdamRate = None
    auxiliary_weight_decay: AdamDecay = None
