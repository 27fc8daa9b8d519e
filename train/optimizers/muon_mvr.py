"""Muon on gradient estimates with variance reduction."""

from dataclasses import dataclass

import optax

from mimuon_jax import muon_mvr1, muon_mvr2
from mimuon_jax.types import Matrices, Shardings
from train.optimizers.options import Gain, Optimizer, Orthogonalizer, Scheduled, Split


@dataclass(frozen=True, kw_only=True)
class MuonMVR1(Optimizer):
    """Muon on an average corrected by the gradient of the step before; Adam for the rest."""

    learning_rate: float = 0.02
    """Peak learning rate of the matrices, reached after the warm-up."""

    gamma: float = 0.05
    """Strength of the correction in 0 .. 1; 0 leaves an average of gradients."""

    clip: float | None = None
    """Bound of the Frobenius norm of every matrix's corrected gradient, in the unit of the
    gradient; None: no bound."""

    momentum: float = 0.95
    """Decay beta in [0, 1) of the average: M = beta M + (1 - beta) G + gamma beta (G - last G)."""

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
        """`mimuon_jax.muon_mvr1` with these options."""
        rate = scheduled(self.learning_rate)
        return muon_mvr1(rate, **self.keywords(scheduled), matrices=matrices, shardings=shardings)


@dataclass(frozen=True, kw_only=True)
class MuonMVR2(MuonMVR1):
    """Muon on an average corrected with a second gradient a step; Adam for the rest."""

    gamma: float = 0.05
    """Strength of the correction in 0 .. 1; 0 leaves an average of gradients, 1 is STORM."""

    momentum: float = 0.95
    """Decay beta in [0, 1) of the average: M = beta M + (1 - beta) G + gamma beta (G - G'), G' the
    same batch's gradient at the previous weights."""

    def transformation(
        self, scheduled: Scheduled, matrices: Matrices, shardings: Shardings, split: Split
    ) -> optax.GradientTransformation:
        """`mimuon_jax.muon_mvr2` with these options; its `update` needs `grad_fn`."""
        rate = scheduled(self.learning_rate)
        return muon_mvr2(rate, **self.keywords(scheduled), matrices=matrices, shardings=shardings)
