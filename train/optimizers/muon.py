"""Muon and its mixtures with momentum SGD: MiMuon chooses one per matrix, MuSGD adds both."""

from dataclasses import dataclass

from mimuon_jax import mimuon, muon, musgd
from mimuon_jax.linalg.measures import MeasureName
from mimuon_jax.transforms.references import ReferenceName
from train.optimizers.options import (
    AdamDecay,
    AdamRate,
    Gain,
    MatrixDecay,
    MatrixRate,
    Momentum,
    Nesterov,
    Optimizer,
    Orthogonalizer,
)


@dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """Muon for matrices, Adam for everything else."""

    function = staticmethod(muon)
    learning_rate: MatrixRate = 0.02
    momentum: Momentum = 0.95
    nesterov: Nesterov = True
    orthogonalizer: Orthogonalizer = "newton_schulz"
    gain: Gain = "width"
    weight_decay: MatrixDecay = 0.1
    auxiliary_learning_rate: AdamRate = None
    auxiliary_weight_decay: AdamDecay = None


@dataclass(frozen=True, kw_only=True)
class MiMuon(Optimizer):
    """Muon for matrices with an open gate, momentum SGD with a closed one, Adam for all else."""

    function = staticmethod(mimuon)
    learning_rate: MatrixRate = 0.02

    threshold: float = 5e-3
    """Gate threshold tau >= 0, in the unit of the measure of the momentum; 0 is Muon, inf is
    momentum SGD."""

    measure: MeasureName = "rms"
    """What the gate compares with the threshold: one number per matrix."""

    relative_to: ReferenceName | None = None
    """What the measure is divided by, per matrix, so that clipping and the scale of the loss do not
    matter: its largest value so far, its average over about 100 steps, or that of the measure of
    the momentum's change. None: nothing, the threshold is absolute."""

    momentum: Momentum = 0.95

    nesterov: bool = False
    """Gate and pass on mu M + G instead of M."""

    orthogonalizer: Orthogonalizer = "newton_schulz"
    gain: Gain = "width"
    weight_decay: MatrixDecay = 0.08
    auxiliary_learning_rate: AdamRate = None
    auxiliary_weight_decay: AdamDecay = None


@dataclass(frozen=True, kw_only=True)
class MuSGD(Optimizer):
    """Muon plus momentum SGD at every step, each with a weight; SGD alone for non-matrices."""

    function = staticmethod(musgd)

    learning_rate: float = 0.015
    """Peak learning rate of both parts, reached after the warm-up."""

    muon_weight: float = 0.7
    """Weight >= 0 of the Muon part; 0 leaves momentum SGD."""

    sgd_weight: float = 0.4
    """Weight >= 0 of the SGD part; 0 leaves Muon without decay."""

    momentum: float = 0.95
    """Heavy-ball momentum mu in [0, 1) of the Muon part: M = mu M + G."""

    sgd_momentum: float = 0.9
    """Heavy-ball momentum in [0, 1) of the SGD part."""

    nesterov: bool = True
    """Pass on mu M + G instead of M in the Muon part."""

    orthogonalizer: Orthogonalizer = "newton_schulz"
    gain: Gain = "width"

    weight_decay: float = 0.05
    """Weight decay of all parameters, added to the gradient of the SGD part: each step shrinks them
    by about learning rate * sgd_weight / (1 - sgd_momentum) times this."""

    auxiliary_learning_rate: float | None = None
    """Peak learning rate of the SGD part of vectors and embeddings; None: learning_rate."""
