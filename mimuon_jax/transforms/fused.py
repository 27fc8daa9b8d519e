"""Fused matrices: one parameter that holds several matrices side by side."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from mimuon_jax.engine.axes import axes_of
from mimuon_jax.transforms.given import Role
from mimuon_jax.transforms.roles import roles
from mimuon_jax.transforms.scope import passing_on
from mimuon_jax.types import Array, Matrices, State, Tree

#: ``{pattern: sizes}``: for the parameters whose path matches a regular expression, the sizes of
#: the parts along the output axis, or ``{"reduction": sizes, "output": sizes}``.
Split: TypeAlias = Mapping[str, Sequence[int] | Mapping[str, Sequence[int]]]

#: The axes along which an array is split, each with the sizes of its parts.
_Sizes: TypeAlias = tuple[tuple[int, tuple[int, ...]], ...]


def split_fused(
    transformation: optax.GradientTransformation,
    split: Split | None,
    *,
    matrices: Matrices = None,
) -> optax.GradientTransformationExtraArgs:
    """Applies a transformation to the parts of fused matrices, each as a matrix of its own.

    Every part has its own measure, gate, orthogonalization and gain. In states and diagnostics, the
    parts of ``attention/qkv/kernel`` are called ``attention/qkv/kernel/0``, ``.../1`` and so on.

    Args:
      transformation: it sees a tree in which each fused matrix is a tuple of its parts.
      split: ``{pattern: sizes}``: a parameter whose path matches the regular expression (anywhere
        in the path) is split along its output axis into parts of these sizes. The first pattern
        that matches counts. ``{"qkv": (512, 128, 128)}`` separates query, key and value;
        ``{"qkv": [64] * 12}`` makes every head a matrix. The groups of a convolution are split in
        the same way. ``{"out": {"reduction": [64] * 12}}`` splits along the reduction axis, as the
        heads of an output projection require. (If heads have an axis of their own, make it a batch
        axis with ``matrices`` instead.) None: nothing is split.
      matrices: as in `partition`.

    Returns:
      A transformation whose state is that of ``transformation``.

    Raises:
      ValueError: ``split`` is not a mapping; at ``init``, if a pattern does not match any matrix,
        if sizes do not add up to the axis, or if there are several such axes; and as `partition`.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import orthogonalize, split_fused
      >>> tx = split_fused(orthogonalize("svd"), {"qk": (2, 2)})
      >>> grads = {"qk": jnp.concatenate([3 * jnp.eye(2), 5 * jnp.eye(2)], axis=1)}
      >>> tx.update(grads, tx.init(grads))[0]["qk"].tolist()
      [[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]]
    """
    inner = optax.with_extra_args_support(transformation)
    if not split:
        return inner
    if not isinstance(split, Mapping):
        raise ValueError(
            f"split={split!r} does not say which parameters it splits; give {{pattern: sizes}}, "
            'for example {"qkv/kernel": (512, 128, 128)}'
        )

    def init(params: Tree) -> State:
        decided = roles(params, matrices)
        if decided:  # optax.tree_map_params initializes with a tree without leaves
            _check_every_pattern_is_used(decided, split)
        with passing_on(decided, params):  # the parts have the roles of the whole
            return inner.init(_split(params, decided, split))

    def update(
        updates: Tree,
        state: State,
        params: Tree = None,
        *,
        active: Mapping[str, Array] | None = None,
        **extra: object,
    ) -> tuple[Tree, State]:
        decided = roles(updates, matrices)
        if active is not None:
            extra["active"] = _of_parts(active, decided, split)
        with passing_on(decided, updates):
            results, state = inner.update(
                _split(updates, decided, split),
                state,
                None if params is None else _split(params, decided, split),
                **extra,
            )
        return _assembled(results, updates, decided, split), state

    return optax.GradientTransformationExtraArgs(init, update)


def _split(tree: Tree, decided: Sequence[Role], split: Split) -> Tree:
    """The tree with a tuple of parts in place of every fused matrix."""

    def parts(x: ArrayLike, role: Role) -> ArrayLike | tuple[Array, ...]:
        sizes = _sizes(role, split)
        pieces = [jnp.asarray(x)] if sizes else []
        for axis, along in sizes:
            ends = list(itertools.accumulate(along))[:-1]
            pieces = [part for piece in pieces for part in jnp.split(piece, ends, axis)]
        return tuple(pieces) or x

    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten(map(parts, leaves, decided))


def _assembled(results: Tree, like: Tree, decided: Sequence[Role], split: Split) -> Tree:
    """Undoes `_split`."""

    def whole(pieces: Any, role: Role) -> ArrayLike:
        for axis, along in reversed(_sizes(role, split)):
            groups = zip(*[iter(pieces)] * len(along), strict=True)
            pieces = [jnp.concatenate(group, axis) for group in groups]
        return pieces[0] if isinstance(pieces, list) else pieces

    treedef = jax.tree.structure(like)
    return treedef.unflatten(map(whole, treedef.flatten_up_to(results), decided))


def _of_parts(
    active: Mapping[str, Array], decided: Sequence[Role], split: Split
) -> dict[str, Array]:
    """The flags of ``active``, with those of a fused matrix repeated for each of its parts."""
    every = dict(active)
    for role in decided:
        if role.path in active:
            count = len(list(itertools.product(*(along for _, along in _sizes(role, split)))))
            every |= {f"{role.path}/{i}": active[role.path] for i in range(count)}
    return every


def _sizes(role: Role, split: Split) -> _Sizes:
    """How a parameter is split: by the first pattern that matches; empty if it stays whole."""
    pattern = _pattern_of(role, split)
    if pattern is None:
        return ()
    given = split[pattern]
    sides = given if isinstance(given, Mapping) else {"output": given}
    return tuple((_axis(role, pattern, side, sizes), tuple(sizes)) for side, sizes in sides.items())


def _pattern_of(role: Role, split: Split) -> str | None:
    """The first pattern that matches the path of a matrix; None if there is none."""
    found = (pattern for pattern in split if re.search(pattern, role.path))
    return None if role.numbers is None else next(found, None)


def _axis(role: Role, pattern: str, side: str, sizes: Sequence[int]) -> int:
    """The axis of a matrix to be split; raises if the sizes do not fit it."""
    place = f"split={{{pattern!r}: ...}} of parameter {role.path!r} of shape {role.shape}"
    if side not in ("reduction", "output"):
        raise ValueError(f"{place} names the axis {side!r}; use 'reduction' or 'output'")
    assert role.numbers is not None
    _, reduction, output = axes_of(len(role.shape), role.numbers)
    axes = reduction if side == "reduction" else output
    if len(axes) != 1:
        raise ValueError(
            f"{place}: it has {side} axes {axes}, and only a single one can be split; make the "
            "others batch axes in `matrices` (heads, for example) or leave it whole"
        )
    if sum(sizes) != role.shape[axes[0]] or min(sizes, default=0) < 1:
        raise ValueError(
            f"{place} does not add up: the sizes {tuple(sizes)} must be positive and add up to the "
            f"{side} axis, {role.shape[axes[0]]}"
        )
    return axes[0]


def _check_every_pattern_is_used(decided: Sequence[Role], split: Split) -> None:
    """Raises if a pattern does not match any matrix, or sizes do not fit."""
    for role in decided:
        _sizes(role, split)
    unused = split.keys() - {_pattern_of(role, split) for role in decided}
    if unused:
        paths = ", ".join(role.path for role in decided if role.numbers is not None)
        raise ValueError(
            f"split={{{min(unused)!r}: ...}} does not match any matrix, or only matrices that an "
            f"earlier pattern matches; the matrices are {paths or 'none'}"
        )
