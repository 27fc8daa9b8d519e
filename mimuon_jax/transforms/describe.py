"""Reports about roles: the table of all parameters, and the warning if few are matrices."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

from mimuon_jax.engine.axes import batch_shape, matrix_shape
from mimuon_jax.transforms.roles import (
    UNDECIDED,
    Role,
    roles_or_undecided,
)
from mimuon_jax.types import Matrices, Tree


def describe(params: Tree, matrices: Matrices = None) -> str:
    """A table of the roles of all parameters: matrices with their sizes, or auxiliary, and why.

    Args:
      params: pytree of arrays, ``jax.ShapeDtypeStruct`` or anything with a shape.
      matrices: as in `partition`.

    Returns:
      Text, one line per parameter: path, shape, ``batch x [reduction, output]`` or ``auxiliary``,
      the reason, and the rule that decided: ``name``, ``type`` (of the module), or ``given`` (in
      ``matrices``). A parameter that no rule decides is ``undecided``, and an optimizer would raise
      an error. The last line has totals, counted in parameters and in numbers (array elements).

    Raises:
      ValueError: an entry of ``matrices`` does not match any parameter or does not fit it.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import describe
      >>> print(describe({"embed": jnp.ones((9, 4)), "up": jnp.ones((4, 8)), "bias": jnp.ones(8)}))
      parameter  shape   goes to     why                 rule
      bias       (8,)    auxiliary   vector              name
      embed      (9, 4)  auxiliary   names an embedding  name
      up         (4, 8)  1 x [4, 8]  matrix              name
      1 of 3 parameters are matrices, 32 of 76 numbers
    """
    decided = roles_or_undecided(params, matrices)
    rows = [("parameter", "shape", "goes to", "why", "rule")]
    rows += [(r.path, str(r.shape), _destination(r), r.why, r.rule) for r in decided]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    undecided = sum(role.rule == UNDECIDED for role in decided)
    return "\n".join([*lines, _totals(decided) + (f", {undecided} undecided" if undecided else "")])


def warn_if_few_are_matrices(params: Tree, matrices: Matrices = None) -> None:
    """Warns if few parameters are matrices: none, or less than half of the numbers of rank >= 2.

    Parameters that ``matrices`` declares auxiliary do not count.

    Args:
      params: the whole tree of parameters.
      matrices: as in `partition`.
    """
    counted = [
        role for role in roles_or_undecided(params, matrices) if not _is_named_auxiliary(role)
    ]
    ours = [role for role in counted if role.numbers is not None]
    wide = [role for role in counted if len(role.shape) >= 2]
    few = sum(math.prod(r.shape) for r in ours) < sum(math.prod(r.shape) for r in wide) / 2
    if counted and (not ours or few):
        largest = max((r for r in counted if not r.numbers), key=lambda r: math.prod(r.shape))
        warnings.warn(
            f"{_totals(counted)}: the others go to the auxiliary transformation (the largest is "
            f"{largest.path!r} of shape {largest.shape}: {largest.why}). "
            "mimuon_jax.describe(params) shows all; the argument `matrices` decides",
            stacklevel=2,
        )


def _is_named_auxiliary(role: Role) -> bool:
    """Whether the caller declared the parameter auxiliary."""
    return role.rule == "given" and role.numbers is None


def _totals(decided: Sequence[Role]) -> str:
    """How many of the parameters, and of their numbers, are matrices."""
    ours = [role for role in decided if role.numbers is not None]
    return (
        f"{len(ours)} of {len(decided)} parameters are matrices, "
        f"{sum(math.prod(r.shape) for r in ours):,} of "
        f"{sum(math.prod(r.shape) for r in decided):,} numbers"
    )


def _destination(role: Role) -> str:
    """``3 x [64, 256]``, ``auxiliary`` or ``undecided``."""
    if role.rule == UNDECIDED:
        return UNDECIDED
    if role.numbers is None:
        return "auxiliary"
    count = math.prod(batch_shape(role.shape, role.numbers))
    return f"{count} x {list(matrix_shape(role.shape, role.numbers))}"
