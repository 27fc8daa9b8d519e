"""Declarations about a function of matrices that let different shapes share one computation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

_Function = TypeVar("_Function", bound=Callable)


def equivariant(function: _Function) -> _Function:
    """Declares that a function commutes with transposition and with zero padding.

    For an orthogonalizer ``f``: ``f(M^T) = f(M)^T``, and rows or columns of zeros added to ``M``
    are added to ``f(M)``. For a measure: neither changes its value. Matrices of different shapes
    are then transposed and padded to share batches, which makes programs smaller. A function
    without the declaration gets every matrix as ``[reduction, output]``, neither transposed nor
    padded.

    Args:
      function: ``[..., m, n] -> [..., m, n]`` or, for a measure, ``[..., m, n] -> [...]``. A
        `functools.partial` or ``jax.jit`` of a declared function needs no declaration of its own.

    Returns:
      The same function. The declaration is not checked.

    Example:
      >>> from mimuon_jax import equivariant, newton_schulz, orthogonalize
      >>> @equivariant
      ... def twice(x):
      ...     return newton_schulz(newton_schulz(x))
      >>> tx = orthogonalize(twice)
    """
    function.equivariant = True  # pyright: ignore[reportFunctionMemberAccess]
    return function


def is_equivariant(function: Callable) -> bool:
    """Whether a function, or the function inside a partial or ``jax.jit``, is `equivariant`.

    A function among the arguments of a partial (the ``method`` of `power`) must be declared too.
    """
    if isinstance(function, functools.partial):
        given = [*function.args, *function.keywords.values()]
        functions = [x for x in given if callable(x) and not isinstance(x, type)]  # not a dtype
        return all(map(is_equivariant, [function.func, *functions]))
    wrapped = getattr(function, "__wrapped__", None)
    declared = getattr(function, "equivariant", False)
    return declared or (wrapped is not None and is_equivariant(wrapped))


def along(computation: Callable) -> Callable[[_Function], _Function]:
    """Declares how a measure is computed without moving the entries of matrices between devices.

    Args:
      computation: ``(array, reduction axes, output axes) -> [*batch]`` for sharded arrays of any
        rank, for example a sum over the entries.

    Returns:
      A decorator for the measure, a function ``[..., m, n] -> [...]``.
    """

    def declare(measure: _Function) -> _Function:
        measure.along = computation  # pyright: ignore[reportFunctionMemberAccess]
        return measure

    return declare


def along_of(measure: Callable) -> Callable | None:
    """The computation declared with `along`, or None."""
    return getattr(measure, "along", None)
