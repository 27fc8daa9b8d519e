"""The Muon family of optimizers for JAX, as composable Optax transformations.

Optimizers (`muon`, `mimuon`, `sgdm`) are functions ``f(learning_rate, *, ...)`` that return an
``optax.GradientTransformation``. They are sentences made of the pieces: a gradient estimate
(`heavy_ball`, `ema`), what is done with every matrix of it (`orthogonalize`, under a
`threshold_gate`, times a gain), and `partition`, which decides what a matrix is; `describe` prints
its decision. The functions on arrays ``[..., m, n]`` below them (`newton_schulz`, `polar`, `power`,
`gap`, `frobenius`, `rms`, `spectral_norm`) can be used, and replaced, on their own.
"""

from mimuon_jax import diagnostics
from mimuon_jax.coefficients import DION, JORDAN, POLAR_EXPRESS, Schedule, polar_express
from mimuon_jax.gains import scale_by_gain
from mimuon_jax.gates import threshold_gate
from mimuon_jax.measures import frobenius, gap, rms, spectral_norm
from mimuon_jax.momentum import ema, heavy_ball
from mimuon_jax.newton_schulz import newton_schulz
from mimuon_jax.optimizers import mimuon, muon, sgdm
from mimuon_jax.orthogonalize import orthogonalize
from mimuon_jax.partition import describe, partition
from mimuon_jax.powers import polar, power

__all__ = [
    "DION",
    "JORDAN",
    "POLAR_EXPRESS",
    "Schedule",
    "describe",
    "diagnostics",
    "ema",
    "frobenius",
    "gap",
    "heavy_ball",
    "mimuon",
    "muon",
    "newton_schulz",
    "orthogonalize",
    "partition",
    "polar",
    "polar_express",
    "power",
    "rms",
    "scale_by_gain",
    "sgdm",
    "spectral_norm",
    "threshold_gate",
]
