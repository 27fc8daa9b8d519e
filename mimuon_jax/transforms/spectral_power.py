"""Spectral powers as a transformation, from momentum (``p = 1``) to Muon (``p = 0``)."""

from __future__ import annotations

import functools
from typing import cast

import optax

from mimuon_jax.linalg.powers import METHODS, PowerMethod, PowerMethodName, power
from mimuon_jax.transforms.fused import Split
from mimuon_jax.transforms.gains import GainName
from mimuon_jax.transforms.orthogonalize import OrthogonalizerName, as_orthogonalizer
from mimuon_jax.transforms.per_matrix import per_matrix
from mimuon_jax.types import Gain, Matrices, Shardings


def spectral_power(
    p: float,
    *,
    method: OrthogonalizerName | PowerMethodName | PowerMethod | None = None,
    gain: GainName | float | Gain | None = None,
    split: Split | None = None,
    matrices: Matrices = None,
    shardings: Shardings = None,
) -> optax.GradientTransformationExtraArgs:
    """Replaces every matrix ``M = U S V^T`` by ``gain * U S^p V^T``.

    Auxiliary leaves pass through unchanged.

    Args:
      p: exponent in [0, 1], a Python number: 1 changes nothing, 0 orthogonalizes.
      method: how to compute it. For ``p = 0``: the name of an orthogonalizer (see
        `orthogonalize`). Otherwise: ``"svd"`` (any ``p``), ``"coupled_newton"`` (``p`` of 1/2 and
        1/4, matrix products only; `power` states its errors), or a function
        ``(x, p) -> U S^p V^T``. None: ``"newton_schulz"`` for 0, ``"coupled_newton"`` for 1/2 and
        1/4, ``"svd"`` for other exponents.
      gain: factor that depends on the shape, as in `orthogonalize`; None for 1.
      split: fused matrices, as in `orthogonalize`.
      matrices: as in `partition`.
      shardings: as in `orthogonalize`.

    Returns:
      A transformation without state.

    Raises:
      ValueError: ``p`` is traced or outside [0, 1], or a name is unknown or does not support
        ``p``; at ``init``, as `partition`.

    Source:
      "Delving into Muon and Beyond": the exponents 1, 1/2, 1/4 and 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import spectral_power
      >>> tx = spectral_power(0.5, method="svd")
      >>> grads = {"kernel": jnp.diag(jnp.array([9.0, 4.0]))}
      >>> tx.update(grads, tx.init(grads))[0]["kernel"].round(5).tolist()
      [[3.0, 0.0], [0.0, 2.0]]
    """
    exponent = checked_exponent(p)
    if exponent == 1 and gain is None and split is None:
        return optax.with_extra_args_support(optax.identity())
    if callable(method):
        function = functools.partial(power, p=exponent, method=method)
    elif exponent == 0:
        function = as_orthogonalizer(cast("OrthogonalizerName", method or "newton_schulz"))
    else:
        named = method or ("coupled_newton" if exponent in (0.5, 0.25) else "svd")
        if named not in METHODS:
            raise ValueError(
                f"method={named!r} is unknown for p={exponent}; use "
                f"{', '.join(map(repr, METHODS))}, None or a function (x, p) -> U S^p V^T"
            )
        function = functools.partial(power, p=exponent, method=named)
    return per_matrix(function, gain=gain, split=split, matrices=matrices, shardings=shardings)


def checked_exponent(p: float) -> float:
    """The exponent as a Python number in [0, 1]."""
    if not isinstance(p, int | float) or not 0 <= p <= 1:
        raise ValueError(
            f"p={p} must be a Python number in [0, 1]: 0 orthogonalizes, 1 changes nothing; under "
            'optax.inject_hyperparams pass static_args=("p",)'
        )
    return float(p)
