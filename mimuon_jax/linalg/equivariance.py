"""What a function of matrices declares about itself, so that shapes may share one computation."""

import functools
from collections.abc import Callable
from typing import TypeVar

_Function = TypeVar("_Function", bound=Callable)


def equivariant(function: _Function) -> _Function:
    """Declares that a function commutes with transposition and with zero padding.

    For an orthogonalizer ``f``: ``f(M^T) = f(M)^T``, and rows or columns of zeros added to ``M``
    are added to ``f(M)``. For a measure: its value does not change under either. Matrices of
    different shapes, transposed and padded, then share batches, and programs are smaller. A
    function that is not declared gets every matrix as it is, ``[reduction, output]``.

    Args:
      function: ``[..., m, n] -> [..., m, n]`` or, for a measure, ``[..., m, n] -> [...]``. A
        `functools.partial` or ``jax.jit`` of a declared function needs no declaration of its own.

    Returns:
      The same function. Nothing checks the declaration.

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
    """Whether a function, or what it is a partial or ``jax.jit`` of, is declared `equivariant`.

    A function among the arguments of a partial (the ``method`` of `power`) must be declared too.
    """
    if isinstance(function, functools.partial):
        given = [*function.args, *function.keywords.values()]
        functions = [x for x in given if callable(x) and not isinstance(x, type)]  # a dtype is one
        return all(map(is_equivariant, [function.func, *functions]))
    wrapped = getattr(function, "__wrapped__", None)
    declared = getattr(function, "equivariant", False)
    return declared or (wrapped is not None and is_equivariant(wrapped))


def along(computation: Callable) -> Callable[[_Function], _Function]:
    """Declares how a measure is computed without moving the entries of its matrices.

    Args:
      computation: ``(array, reduction axes, output axes) -> [*batch]``, for sharded arrays of any
        rank, such as a sum over the entries.

    Returns:
      A decorator of the measure, a function ``[..., m, n] -> [...]``.
    """

    def declare(measure: _Function) -> _Function:
        measure.along = computation  # pyright: ignore[reportFunctionMemberAccess]
        return measure

    return declare


def along_of(measure: Callable) -> Callable | None:
    """How a measure is computed without moving entries, if that is declared."""
    return getattr(measure, "along", None)
