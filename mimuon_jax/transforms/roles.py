"""Which parameters are matrices, and along which axes.

A parameter of any rank can be a batch of matrices ``[reduction, output]``: the axes given by
``optax.contrib.MuonDimensionNumbers`` are merged into these two, all others are batch axes
(scanned layers, experts, heads). ``None`` instead of dimension numbers means auxiliary.
"""

from collections.abc import Hashable
from typing import Any, NamedTuple

import jax

from mimuon_jax.transforms.given import (
    Names,
    Role,
    entries_of,
    is_absent,
    is_entry,
    is_function,
    named_leaves,
    unused_entries,
)
from mimuon_jax.transforms.module_types import equinox_roles
from mimuon_jax.transforms.naming import by_name, vector_of
from mimuon_jax.transforms.proposals import undecided_message
from mimuon_jax.transforms.scope import passed_on
from mimuon_jax.types import Matrices, Tree

UNDECIDED = "undecided"


def roles(params: Tree, matrices: Matrices = None) -> list[Role]:
    """The role of every array of ``params``, in flattening order: matrix or auxiliary.

    Args:
      params: pytree of arrays (or of anything with a shape). Absent parameters (``None``,
        ``optax.MaskedNode``) are left out.
      matrices: dimension numbers (tree, prefix tree or ``params -> tree``, with ``None`` for
        auxiliary and ``"default"`` for the default rule). Parameters without an entry follow the
        default rule; None: all of them. A function is called once per tree structure and shapes.

    Returns:
      One `Role` per array.

    Raises:
      ValueError: an entry does not match any array, dimension numbers do not fit one, or an array
        has none and the default rule cannot decide; the message states its path and shape.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax.transforms.roles import roles
      >>> [role.why for role in roles({"embed": jnp.ones((9, 4)), "up": jnp.ones((4, 8))})]
      ['names an embedding', 'matrix']
    """
    decided = roles_or_undecided(params, matrices)
    if any(role.rule == UNDECIDED for role in decided):
        arrays = zip(_arrays(params), decided, strict=True)
        raise ValueError(undecided_message([a for a, role in arrays if role.rule == UNDECIDED]))
    return decided


def roles_or_undecided(params: Tree, matrices: Matrices = None) -> list[Role]:
    """As `roles`, but with ``rule="undecided"`` for arrays that the default rule cannot decide."""
    leaves, treedef = jax.tree.flatten(params)
    if not leaves:  # optax.tree_map_params initializes with a tree without leaves
        return []
    matrices = passed_on(matrices)
    key = treedef, tuple(_shape(leaf) for leaf in leaves), _identity(matrices)
    try:
        known = _DECIDED.pop(key, None)
    except TypeError:  # a structure or an entry that cannot be hashed
        return _decide(params, matrices)
    if known is None:
        known = _Decision(_decide(params, matrices), matrices)
        while len(_DECIDED) >= _REMEMBERED:
            _DECIDED.pop(next(iter(_DECIDED)), None)
    _DECIDED[key] = known  # moved to the end: the most recently used
    return list(known.roles)


class _Decision(NamedTuple):
    """The roles of one tree, and the ``matrices`` argument that they were decided with."""

    roles: list[Role]
    matrices: Matrices  # kept alive, so that its id is not reused


# Roles are decided once per tree structure, shapes and `matrices`, so that the transformations of a
# chain cannot disagree. The least recently used entry is dropped first.
_DECIDED: dict[Hashable, _Decision] = {}
_REMEMBERED = 128


def _identity(matrices: Matrices) -> Hashable:
    """A key for ``matrices``: functions are compared by identity, trees by content."""
    if is_function(matrices):
        return id(matrices)
    entries, treedef = jax.tree.flatten(matrices, is_leaf=is_entry)
    return treedef, tuple(entries)


def _arrays(params: Tree) -> list[tuple[Names, tuple[int, ...]]]:
    """Names and shape of every array, in flattening order."""
    return [(names, _shape(leaf)) for names, leaf in named_leaves(params) if not is_absent(leaf)]


def _shape(leaf: Any) -> tuple[int, ...]:
    """The shape of an array or of a Python number."""
    if hasattr(leaf, "shape"):
        return tuple(leaf.shape)
    if isinstance(leaf, int | float | complex):
        return ()
    raise ValueError(
        f"the parameters hold {leaf!r}, which is not an array; pass arrays only: of an Equinox "
        "model `eqx.filter(model, eqx.is_inexact_array)`, of an nnx model `nnx.state(model, "
        "nnx.Param)`"
    )


def _decide(params: Tree, matrices: Matrices) -> list[Role]:
    """`roles_or_undecided` without the cache."""
    given = entries_of(params, matrices)
    unused = unused_entries(params, given)
    if unused:
        raise ValueError(
            f"`matrices` has an entry for {'/'.join(unused[0])!r}, which is not a parameter; "
            f"the parameters are {', '.join('/'.join(names) for names, _ in _arrays(params))}"
        )
    typed = equinox_roles(params)
    return [_role(names, shape, given, typed) for names, shape in _arrays(params)]


def _role(
    names: Names, shape: tuple[int, ...], given: dict[Names, Any], typed: dict[Names, Role]
) -> Role:
    """One parameter's role: as given for the longest prefix of its path, by type, or by name."""
    verdict = by_name(names, shape)
    rule = "name" if verdict.is_decided else UNDECIDED
    default = typed.get(names, Role("/".join(names), shape, verdict.numbers, verdict.why, rule))
    prefix = next((names[:i] for i in range(len(names), -1, -1) if names[:i] in given), None)
    entry = "default" if prefix is None else given[prefix]
    if entry == "default":
        return default
    if isinstance(entry, Role):
        return _fitting(entry._replace(path=default.path, shape=shape))
    if entry is None:
        return default._replace(numbers=None, why="given as auxiliary", rule="given")
    if prefix != names and (len(shape) < 2 or vector_of(names)):
        return default  # an entry for a module is for its kernel, not its bias
    return _fitting(default._replace(numbers=entry, why="given as matrix", rule="given"))


def _fitting(role: Role) -> Role:
    """The role; raises if its dimension numbers do not fit its shape."""
    if role.numbers is None:
        return role
    rank = len(role.shape)
    sides = [side if isinstance(side, list | tuple) else (side,) for side in role.numbers]
    axes: list[Any] = [axis for side in sides for axis in side]
    fits = all(isinstance(i, int) and -rank <= i < rank for i in axes) and 0 not in role.shape
    if not fits or not all(sides) or len({i % rank for i in axes}) < max(len(axes), 2):
        raise ValueError(
            f"{role.numbers} does not fit parameter {role.path!r} of shape {role.shape}: reduction "
            f"and output axes must be disjoint, not empty and within rank {rank}, and no size may "
            "be 0; use None to leave it to the auxiliary transformation"
        )
    return role
