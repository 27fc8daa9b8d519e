"""Gains: factors that an orthogonalized update is multiplied by, given the sizes of its matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, TypeGuard

import jax
import jax.numpy as jnp
import optax

from mimuon_jax.engine.axes import matrix_shape
from mimuon_jax.transforms.roles import roles
from mimuon_jax.types import Array, Gain, Matrices, MuonDimensionNumbers, State, Tree


def width(reduction: int, output: int) -> float:
    """``sqrt(max(1, output / reduction))``: one learning rate for all widths (Jordan's Muon).

    Args:
      reduction: size of the reduction axis, ``m``.
      output: size of the output axis, ``n``.

    Returns:
      The factor; 1 for a matrix that is square or tall.

    Source:
      Jordan et al., "Muon", 2024.

    Example:
      >>> from mimuon_jax.transforms.gains import width
      >>> width(4, 16), width(16, 4)
      (2.0, 1.0)
    """
    return math.sqrt(max(1.0, output / reduction))


def rms(reduction: int, output: int) -> float:
    """``0.2 sqrt(max(reduction, output))``: updates have the RMS of AdamW's updates (Moonshot).

    The entries of an orthogonal matrix have RMS ``1 / sqrt(max(m, n))``; those of AdamW's updates
    were measured at 0.2 to 0.4. With this gain, AdamW's learning rate and weight decay carry over.

    Args:
      reduction: size of the reduction axis, ``m``.
      output: size of the output axis, ``n``.

    Returns:
      The factor.

    Source:
      Liu et al., "Muon is scalable for LLM training", 2025 (arXiv 2502.16982), section 2.2.

    Example:
      >>> from mimuon_jax.transforms.gains import rms
      >>> rms(25, 16)
      1.0
    """
    return 0.2 * math.sqrt(max(reduction, output))


def spectral(reduction: int, output: int) -> float:
    """``sqrt(output / reduction)``: the effect on an input of RMS 1 has an RMS of at most 1.

    Args:
      reduction: size of the reduction axis, ``m``.
      output: size of the output axis, ``n``.

    Returns:
      The factor.

    Source:
      Bernstein, "Deriving Muon", 2025.

    Example:
      >>> from mimuon_jax.transforms.gains import spectral
      >>> spectral(16, 4)
      0.5
    """
    return math.sqrt(output / reduction)


#: Names of gains.
GainName: TypeAlias = Literal["rms", "spectral", "width", "unflattened"]

#: Gains by name. "unflattened" is not among them: it also depends on the dimension numbers.
GAINS: dict[str, Gain] = {"rms": rms, "spectral": spectral, "width": width}


def factor_of(
    gain: GainName | float | Gain | None,
) -> Callable[[Sequence[int], MuonDimensionNumbers], float]:
    """The function ``(shape, numbers) -> factor`` of a ``gain`` argument; None: the constant 1."""
    if gain is None:
        return lambda shape, numbers: 1.0
    if gain == "unflattened":
        return lambda shape, numbers: (
            1.0 if is_convolution(numbers) else width(*matrix_shape(shape, numbers))
        )
    if is_rms(gain):
        target = float(gain)
        return lambda shape, numbers: target * math.sqrt(max(matrix_shape(shape, numbers)))
    function = gain if callable(gain) else GAINS.get(gain) if isinstance(gain, str) else None
    if function is None:
        raise ValueError(
            f"gain={gain!r} is unknown; use {', '.join(map(repr, GAINS))}, 'unflattened', None, a "
            "positive Python number, which is the RMS of an update (static_args=('gain',) under "
            "optax.inject_hyperparams), or a function (reduction, output) -> float"
        )
    return lambda shape, numbers: function(*matrix_shape(shape, numbers))


def is_rms(gain: object) -> TypeGuard[float]:
    """Whether a ``gain`` argument is a number, the RMS of an update of full rank."""
    if isinstance(gain, bool) or not isinstance(gain, int | float):
        return False
    return 0 < gain < math.inf


def is_convolution(numbers: MuonDimensionNumbers) -> bool:
    """Whether a parameter is a convolution kernel ``(kh, kw, in, out)``: three reduction axes."""
    return not isinstance(numbers.reduction_axis, int) and len(numbers.reduction_axis) == 3


def scale_by_gain(
    gain: GainName | float | Gain | None = "width", *, matrices: Matrices = None
) -> optax.GradientTransformation:
    """Multiplies every matrix by a gain; auxiliary leaves pass through unchanged.

    Args:
      gain: ``"width"``, ``"rms"``, ``"spectral"``, ``"unflattened"`` (as ``"width"``, except 1
        for convolutions: the convention of YOLO26's MuSGD, which computes the gain from the last
        axes of a kernel before flattening it), a number ``c > 0`` for
        ``c sqrt(max(reduction, output))``, updates of RMS ``c`` (0.2 is ``"rms"``), a function
        ``(reduction, output) -> float``, or None for 1.
      matrices: as in `partition`.

    Returns:
      A transformation without state.

    Raises:
      ValueError: the name is unknown or the number is not positive; at ``init``, as `partition`.

    Source:
      See `mimuon_jax.transforms.gains`.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import scale_by_gain
      >>> tx = scale_by_gain("width")
      >>> tx.update({"kernel": jnp.ones((1, 4))}, tx.init({"kernel": jnp.ones((1, 4))}))[0]
      {'kernel': Array([[2., 2., 2., 2.]], dtype=float32)}
    """
    factor = factor_of(gain)

    def init(params: Tree) -> optax.EmptyState:
        roles(params, matrices)
        return optax.EmptyState()

    def update(updates: Tree, state: State, params: Tree = None) -> tuple[Tree, optax.EmptyState]:
        del params
        leaves, treedef = jax.tree.flatten(updates)
        decided = roles(updates, matrices)
        scaled = [
            leaf if role.numbers is None else scale(leaf, factor(leaf.shape, role.numbers))
            for leaf, role in zip(leaves, decided, strict=True)
        ]
        return treedef.unflatten(scaled), state

    return optax.GradientTransformation(init, update)


def scale(x: Array, factor: float) -> Array:
    """``factor * x`` in the dtype of ``x``; ``x`` itself for the factor 1."""
    return x if factor == 1 else x * jnp.asarray(factor, x.dtype)
