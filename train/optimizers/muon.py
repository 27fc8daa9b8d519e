"""Muon and its mixtures with momentum SGD: MiMuon chooses a matrix at a time, MuSGD adds both."""

from dataclasses import dataclass
from typing import Literal

import optax

from mimuon_jax import mimuon, muon, musgd
from mimuon_jax.types import Matrices, Shardings
from train.optimizers.options import Gain, Optimizer, Orthogonalizer, Scheduled, Split


@dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """Muon for matrices, Adam for everything else."""

    learning_rate: float = 0.02
    """Peak learning rate of the matrices, reached after the warm-up."""

    momentum: float = 0.95
    """Heavy-ball momentum mu in [0, 1): M = mu M + G."""

    nesterov: bool = True
    """Pass on mu M + G instead of M."""

    orthogonalizer: Orthogonalizer = "newton_schulz"
    """Polynomial that orthogonalizes: newton_schulz (Polar Express, 6 steps; gram_ and fast_ are
    cheaper forms of it), jordan or dion (5 steps); svd is exact and slow."""

    gain: Gain | None = "width"
    """Shape-dependent factor of an orthogonalized update; width: sqrt(max(1, output / reduction));
    unflattened: the same, 1 for convolutions; None: 1."""

    weight_decay: float = 0.1
    """Decoupled weight decay of the matrices; a step shrinks them by learning rate times this."""

    auxiliary_learning_rate: float | None = None
    """Peak learning rate of Adam, for vectors and embeddings; None: 0.015 * learning_rate."""

    def transformation(
        self, scheduled: Scheduled, matrices: Matrices, shardings: Shardings, split: Split
    ) -> optax.GradientTransformation:
        """`mimuon_jax.muon` with these options."""
        rate = scheduled(self.learning_rate)
        return muon(rate, **self.keywords(scheduled), matrices=matrices, shardings=shardings)


@dataclass(frozen=True, kw_only=True)
class MiMuon(Optimizer):
    """Muon for matrices whose gate is open, momentum SGD where it is shut, Adam for the rest."""

    learning_rate: float = 0.02
    """Peak learning rate of the matrices, reached after the warm-up."""

    threshold: float = 5e-3
    """Gate threshold tau >= 0, in the unit of the measure of the momentum; 0 is Muon, inf is
    momentum SGD."""

    measure: Literal["rms", "gap", "spectral", "frobenius"] = "rms"
    """What the gate compares with the threshold, a number a matrix."""

    momentum: float = 0.95
    """Heavy-ball momentum mu in [0, 1): M = mu M + G."""

    nesterov: bool = False
    """Gate and pass on mu M + G instead of M."""

    orthogonalizer: Orthogonalizer = "newton_schulz"
    """Polynomial that orthogonalizes: newton_schulz (Polar Express, 6 steps; gram_ and fast_ are
    cheaper forms of it), jordan or dion (5 steps); svd is exact and slow."""

    gain: Gain | None = "width"
    """Shape-dependent factor of an orthogonalized update; width: sqrt(max(1, output / reduction));
    unflattened: the same, 1 for convolutions; None: 1."""

    weight_decay: float = 0.08
    """Decoupled weight decay of the matrices; a step shrinks them by learning rate times this."""

    auxiliary_learning_rate: float | None = None
    """Peak learning rate of Adam, for vectors and embeddings; None: 0.015 * learning_rate."""

    def transformation(
        self, scheduled: Scheduled, matrices: Matrices, shardings: Shardings, split: Split
    ) -> optax.GradientTransformation:
        """`mimuon_jax.mimuon` with these options."""
        rate = scheduled(self.learning_rate)
        return mimuon(rate, **self.keywords(scheduled), matrices=matrices, shardings=shardings)


@dataclass(frozen=True, kw_only=True)
class MuSGD(Optimizer):
    """Muon and momentum SGD at every step with a weight each; the SGD part alone for the rest."""

    learning_rate: float = 0.015
    """Peak learning rate of both parts, reached after the warm-up."""

    muon_weight: float = 0.7
    """Weight >= 0 of Muon's part; 0 leaves momentum SGD."""

    sgd_weight: float = 0.4
    """Weight >= 0 of the SGD part; 0 leaves Muon without decay."""

    momentum: float = 0.95
    """Heavy-ball momentum mu in [0, 1) of Muon's part: M = mu M + G."""

    sgd_momentum: float = 0.9
    """Heavy-ball momentum in [0, 1) of the SGD part."""

    nesterov: bool = True
    """Pass on mu M + G instead of M in Muon's part."""

    orthogonalizer: Orthogonalizer = "newton_schulz"
    """Polynomial that orthogonalizes: newton_schulz (Polar Express, 6 steps; gram_ and fast_ are
    cheaper forms of it), jordan or dion (5 steps); svd is exact and slow."""

    gain: Gain | None = "width"
    """Shape-dependent factor of an orthogonalized update; width: sqrt(max(1, output / reduction));
    unflattened: the same, 1 for convolutions (as YOLO26 has it); None: 1."""

    weight_decay: float = 0.05
    """Weight decay of all parameters, added to the gradient of the SGD part: a step shrinks them by
    about learning rate * sgd_weight / (1 - sgd_momentum) times this."""

    auxiliary_learning_rate: float | None = None
    """Peak learning rate of the SGD part of vectors and embeddings; None: learning_rate."""

    def transformation(
        self, scheduled: Scheduled, matrices: Matrices, shardings: Shardings, split: Split
    ) -> optax.GradientTransformation:
        """`mimuon_jax.musgd` with these options."""
        rate = scheduled(self.learning_rate)
        return musgd(rate, **self.keywords(scheduled), matrices=matrices, shardings=shardings)
