"""The Muon family of optimizers for JAX, as composable Optax transformations.

Optimizers (`mimuon`, `muon`, `musgd`, `muon_mvr1`, `muon_mvr2`, `spectral_sgd`, `spectral_adam`,
`shampoo`, `sgdm`, and variants of Muon such as `normuon`) are functions
``f(learning_rate, *, ...)`` that return an ``optax.GradientTransformation``. Each is an
``optax.chain`` of building blocks: a gradient estimate (`heavy_ball`, `ema`, `mvr1`, `mvr2`), then
a transformation of its matrices (`orthogonalize` or `spectral_power`, optionally behind a
`threshold_gate` and with a gain; or `scale_by_shampoo`).
`partition` decides which parameters are matrices, and `describe` prints its decision. The functions
on arrays ``[..., m, n]`` that the building blocks apply (`newton_schulz` and its faster forms,
`polar`, `power`, `gap`, `frobenius`, `rms`, `spectral_norm`) can also be used, or replaced, on
their own.
"""

from mimuon_jax import diagnostics
from mimuon_jax.linalg.coefficients import DION, JORDAN, POLAR_EXPRESS, Schedule, polar_express
from mimuon_jax.linalg.coupled_newton import coupled_newton
from mimuon_jax.linalg.equivariance import equivariant
from mimuon_jax.linalg.measures import frobenius, gap, rms, spectral_norm
from mimuon_jax.linalg.newton_schulz import fast_newton_schulz, gram_newton_schulz, newton_schulz
from mimuon_jax.linalg.powers import polar, power
from mimuon_jax.linalg.presets import PRESETS
from mimuon_jax.optimizers.dion2 import dion2
from mimuon_jax.optimizers.from_optax import from_optax_muon
from mimuon_jax.optimizers.muon import mimuon, muon
from mimuon_jax.optimizers.muon_mvr import muon_mvr1, muon_mvr2
from mimuon_jax.optimizers.muonclip import muonclip
from mimuon_jax.optimizers.muonh import muonh, normuonh
from mimuon_jax.optimizers.musgd import musgd
from mimuon_jax.optimizers.namo import namo
from mimuon_jax.optimizers.normuon import adamuon, normuon
from mimuon_jax.optimizers.polargrad import polargrad
from mimuon_jax.optimizers.scion import scion
from mimuon_jax.optimizers.sgdm import sgdm
from mimuon_jax.optimizers.shampoo import shampoo
from mimuon_jax.optimizers.soap import soap, soap_muon
from mimuon_jax.optimizers.spectral import spectral_adam, spectral_sgd
from mimuon_jax.transforms.cautious import add_cautious_decay
from mimuon_jax.transforms.describe import describe
from mimuon_jax.transforms.fused import split_fused
from mimuon_jax.transforms.gains import scale_by_gain
from mimuon_jax.transforms.gates import threshold_gate
from mimuon_jax.transforms.given import by_path
from mimuon_jax.transforms.hyperball import match_param_norm, retract
from mimuon_jax.transforms.kronecker import precondition_kron, scale_by_soap
from mimuon_jax.transforms.module_types import roles_of
from mimuon_jax.transforms.momentum import ema, heavy_ball
from mimuon_jax.transforms.namo import scale_by_namo
from mimuon_jax.transforms.norms import lmo
from mimuon_jax.transforms.orthogonalize import orthogonalize
from mimuon_jax.transforms.partition import partition
from mimuon_jax.transforms.preconditioner import scale_by_shampoo
from mimuon_jax.transforms.qk_clip import QKSpec, clip_qk, qk_clip
from mimuon_jax.transforms.relative import floor_relative, pin_radius, radial_brake
from mimuon_jax.transforms.slices import select_slices
from mimuon_jax.transforms.spectra import clip_spectrum, contra, scale_by_dual_norm
from mimuon_jax.transforms.spectral_power import spectral_power
from mimuon_jax.transforms.units import normalize_units
from mimuon_jax.transforms.variance_reduction import mvr1, mvr2, with_previous_gradient
from mimuon_jax.transforms.wrappers import (
    evaluation_params,
    lookahead_ema,
    outer_nesterov,
    track_average,
)

__version__ = "0.1.0"

__all__ = [
    "DION",
    "JORDAN",
    "POLAR_EXPRESS",
    "PRESETS",
    "QKSpec",
    "Schedule",
    "adamuon",
    "add_cautious_decay",
    "by_path",
    "clip_qk",
    "clip_spectrum",
    "contra",
    "coupled_newton",
    "describe",
    "diagnostics",
    "dion2",
    "ema",
    "equivariant",
    "evaluation_params",
    "fast_newton_schulz",
    "floor_relative",
    "frobenius",
    "from_optax_muon",
    "gap",
    "gram_newton_schulz",
    "heavy_ball",
    "lmo",
    "lookahead_ema",
    "match_param_norm",
    "mimuon",
    "muon",
    "muon_mvr1",
    "muon_mvr2",
    "muonclip",
    "muonh",
    "musgd",
    "mvr1",
    "mvr2",
    "namo",
    "newton_schulz",
    "normalize_units",
    "normuon",
    "normuonh",
    "orthogonalize",
    "outer_nesterov",
    "partition",
    "pin_radius",
    "polar",
    "polar_express",
    "polargrad",
    "power",
    "precondition_kron",
    "qk_clip",
    "radial_brake",
    "retract",
    "rms",
    "roles_of",
    "scale_by_dual_norm",
    "scale_by_gain",
    "scale_by_namo",
    "scale_by_shampoo",
    "scale_by_soap",
    "scion",
    "select_slices",
    "sgdm",
    "shampoo",
    "soap",
    "soap_muon",
    "spectral_adam",
    "spectral_norm",
    "spectral_power",
    "spectral_sgd",
    "split_fused",
    "threshold_gate",
    "track_average",
    "with_previous_gradient",
]
