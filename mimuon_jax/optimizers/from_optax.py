"""Optax's own Muon, by its arguments, as an optimizer of this package."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from mimuon_jax.linalg.coefficients import DION, JORDAN, Schedule
from mimuon_jax.linalg.newton_schulz import newton_schulz
from mimuon_jax.optimizers.muon import muon
from mimuon_jax.transforms.checks import check_decay, check_rate, check_weight
from mimuon_jax.transforms.gains import is_rms
from mimuon_jax.transforms.momentum import ema
from mimuon_jax.types import LearningRate, Mask, Matrices, MuonDimensionNumbers, Number, Tree

_PRESETS: dict[str, Schedule] = {"standard": JORDAN, "dion": DION}


def from_optax_muon(
    learning_rate: LearningRate,
    *,
    ns_coeffs: Any = JORDAN.triples[0],
    ns_steps: int = 5,
    beta: Number = 0.95,
    eps: Number = 1e-8,
    weight_decay: Number = 0.0,
    weight_decay_mask: Mask = None,
    mu_dtype: DTypeLike | None = None,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: Literal["frobenius"] = "frobenius",
    adam_b1: Number = 0.9,
    adam_b2: Number = 0.999,
    adam_eps_root: Number = 0.0,
    adam_weight_decay: Number = 0.0,
    adam_learning_rate: LearningRate | None = None,
    muon_weight_dimension_numbers: Matrices = None,
    consistent_rms: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer equal to ``optax.contrib.muon`` with the same arguments.

    The matrices are computed as by `muon`, so each by its owner on a mesh. Updates are equal up to
    rounding, with two differences: optax adds ``eps`` to the Frobenius norm of the momentum before
    the iteration (a relative change of ``eps / ||M||_F``), and with a ``mu_dtype`` it rounds the
    momentum only after the look-ahead.

    Args:
      learning_rate: ``eta``, a number or a schedule.
      ns_coeffs: ``(a, b, c)``, a sequence of such triples, ``"standard"`` or ``"dion"``.
      ns_steps: number of steps; read only if ``ns_coeffs`` is one triple, otherwise at least the
        number of triples.
      beta: decay of the average of gradients, in [0, 1); `muon`'s is ``momentum=ema(beta,
        debias=True)``.
      eps: AdamW's, added to the root of the second moment.
      weight_decay: ``lambda >= 0`` of the matrices; 0: no decay.
      weight_decay_mask: as for `muon`.
      mu_dtype: dtype of the average and of AdamW's first moment; None: that of the parameter.
      nesterov: pass on the look-ahead, in AdamW too.
      adaptive: False; True has no equal here.
      preconditioning: ``"frobenius"``; the others have no equal here.
      adam_b1: decay of AdamW's first moment.
      adam_b2: decay of AdamW's second moment.
      adam_eps_root: added inside AdamW's square root.
      adam_weight_decay: AdamW's decay.
      adam_learning_rate: of auxiliary parameters; None: ``learning_rate``.
      muon_weight_dimension_numbers: see `partition`; None: all parameters of rank 2, and no others,
        are matrices.
      consistent_rms: the gain as a number, see `scale_by_gain`; None: ``"width"``.

    Returns:
      The optimizer.

    Raises:
      ValueError: an argument that has no equal here, or as `muon`.

    Source:
      ``optax.contrib.muon`` of optax 0.2.8.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import from_optax_muon
      >>> tx, params = from_optax_muon(0.5, consistent_rms=0.2), {"kernel": jnp.ones((4, 4))}
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> updates["kernel"].shape
      (4, 4)
    """
    _check_equal_exists(adaptive, preconditioning, consistent_rms)
    for name, decay in (("beta", beta), ("adam_b1", adam_b1), ("adam_b2", adam_b2)):
        check_decay(decay, name)
    for name, weight in (
        ("eps", eps),
        ("adam_eps_root", adam_eps_root),
        ("adam_weight_decay", adam_weight_decay),
    ):
        check_weight(name, weight)
    if adam_learning_rate is not None:
        check_rate("adam_learning_rate", adam_learning_rate)
    auxiliary = optax.adamw(
        learning_rate if adam_learning_rate is None else adam_learning_rate,
        b1=adam_b1,
        b2=adam_b2,
        eps=eps,
        eps_root=adam_eps_root,
        mu_dtype=mu_dtype,
        weight_decay=adam_weight_decay,
        nesterov=nesterov,
    )
    numbers = muon_weight_dimension_numbers
    return muon(
        learning_rate,
        momentum=ema(beta, debias=True, accumulator_dtype=mu_dtype),
        nesterov=nesterov,
        orthogonalizer=functools.partial(newton_schulz, schedule=_schedule(ns_coeffs, ns_steps)),
        gain="width" if consistent_rms is None else consistent_rms,
        weight_decay=weight_decay,
        auxiliary=auxiliary,
        matrices=_of_rank_two if numbers is None else numbers,
        weight_decay_mask=weight_decay_mask,
    )


def _check_equal_exists(adaptive: bool, preconditioning: str, consistent_rms: float | None) -> None:
    """Refuses arguments for which there is no equal optimizer."""
    if adaptive:
        raise ValueError(
            "adaptive=True scales an update by its product with the momentum, which has no equal "
            "here; use adaptive=False"
        )
    if preconditioning != "frobenius":
        raise ValueError(
            f"preconditioning={preconditioning!r} has no equal here; use 'frobenius', and for "
            "more accuracy muon(..., orthogonalizer='polar_express')"
        )
    if consistent_rms is not None and not is_rms(consistent_rms):
        raise ValueError(
            f"consistent_rms={consistent_rms} must be a positive Python number, or None; under "
            'optax.inject_hyperparams pass static_args=("consistent_rms",)'
        )


def _schedule(coefficients: str | Sequence, steps: int) -> Schedule:
    """The iteration that ``ns_coeffs`` and ``ns_steps`` mean."""
    if not isinstance(steps, int):
        raise ValueError(
            f"ns_steps={steps} must be a Python int; under optax.inject_hyperparams pass "
            'static_args=("ns_steps",)'
        )
    if isinstance(coefficients, str):
        if coefficients not in _PRESETS:
            raise ValueError(
                f"ns_coeffs={coefficients!r} is unknown; use {', '.join(map(repr, _PRESETS))}, "
                "three numbers or a sequence of triples"
            )
        triples = _PRESETS[coefficients].triples
        triples = triples[:1] if coefficients == "standard" else triples
    else:
        table = jnp.asarray(coefficients)
        if table.ndim not in (1, 2) or table.shape[-1] != 3:
            raise ValueError(f"ns_coeffs has shape {table.shape}; it must be (3,) or (n, 3)")
        triples = [coefficients] if table.ndim == 1 else coefficients
    if len(triples) > steps:
        raise ValueError(f"ns_steps={steps} is less than the {len(triples)} triples of ns_coeffs")
    return Schedule(list(triples) * steps if len(triples) == 1 else triples)


def _of_rank_two(params: Tree) -> Tree:
    """Optax's default: parameters of rank 2 are matrices, and no others."""
    return jax.tree.map(lambda x: MuonDimensionNumbers() if jnp.ndim(x) == 2 else None, params)
