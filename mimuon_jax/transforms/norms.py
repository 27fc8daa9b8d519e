"""Scion's norms: every parameter moves to the extreme point of a ball of its own norm."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import optax

from mimuon_jax.linalg.scaling import wide_dtype
from mimuon_jax.transforms.fused import Split
from mimuon_jax.transforms.given import Role, is_masked
from mimuon_jax.transforms.in_place import norm, ratio
from mimuon_jax.transforms.orthogonalize import OrthogonalizerName, orthogonalize
from mimuon_jax.transforms.roles import roles
from mimuon_jax.transforms.scope import passing_on
from mimuon_jax.types import Array, Matrices, Orthogonalizer, Shardings, State, Tree


def _rms(x: Array) -> Array:
    """Every vector along the last axis divided by its root mean square."""
    return _unit(x, -1) * x.shape[-1] ** 0.5


def _unit(x: Array, axis: int) -> Array:
    """Every vector along an axis divided by its length; zero stays zero."""
    return ratio(x, norm(x, (axis % x.ndim,)))


#: Names of norms.
NormName: TypeAlias = Literal["spectral", "rms", "row", "sign"]

#: Extreme points by norm, for arrays ``[..., m, n]``, and ``[..., n]`` for ``"rms"``; that of
#: "spectral" is found by `orthogonalize`.
NORMS: dict[NormName, Callable[[Array], Array]] = {
    "rms": _rms,
    "row": lambda x: _unit(x, -2) / x.shape[-2] ** 0.5,
    "sign": lambda x: jnp.sign(x) / (x.shape[-2] if x.ndim > 1 else 1),
}


def lmo(
    norms: Mapping[str, NormName] | None = None,
    *,
    orthogonalizer: OrthogonalizerName | Orthogonalizer = "newton_schulz",
    split: Split | None = None,
    matrices: Matrices = None,
    shardings: Shardings = None,
) -> optax.GradientTransformationExtraArgs:
    """Replaces every leaf by the extreme point of a norm ball in its direction.

    ``argmax <M, U>`` over ``|U| <= 1``, with a norm per parameter. Matrices have the norm
    ``"spectral"``, output heads ``"sign"``, and all others (embeddings, biases, gains) ``"rms"``,
    unless ``norms`` says otherwise.

    Args:
      norms: ``{pattern: norm}``: the first regular expression that matches anywhere in the path of
        a parameter decides. ``"spectral"``: ``sqrt(n / m) U V^T`` (matrices alone); ``"sign"``:
        ``sign(M) / m``; ``"row"``: every neuron divided by ``sqrt(m)`` times its length;
        ``"rms"``: every vector along the last axis (the row of a token, a bias) divided by its root
        mean square. None: the default for all.
      orthogonalizer: see `orthogonalize`.
      split: fused matrices, as in `orthogonalize`.
      matrices: as in `partition`.
      shardings: as in `orthogonalize`.

    Returns:
      A transformation without state.

    Raises:
      ValueError: an unknown norm; at ``init``, as `partition`, a pattern that does not match any
        parameter, or ``"spectral"`` for a parameter that is not a matrix.

    Source:
      "Training Deep Learning Models with Norm-Constrained LMOs", 2025 (arXiv 2502.07529).

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import lmo
      >>> tx, grads = lmo(), {"head": jnp.array([[3.0], [-4.0]]), "bias": jnp.array([3.0, -3.0])}
      >>> updates, _ = tx.update(grads, tx.init(grads))
      >>> updates["bias"].tolist(), updates["head"].tolist()
      ([1.0, -1.0], [[0.5], [-0.5]])
    """
    for pattern, name in (norms or {}).items():
        if name not in ("spectral", *NORMS):
            known = ", ".join(map(repr, ("spectral", *NORMS)))
            raise ValueError(f"norms={{{pattern!r}: {name!r}}} is unknown; use {known}")
    spectral = orthogonalize(orthogonalizer, gain="spectral", split=split, shardings=shardings)

    def chosen(tree: Tree) -> tuple[list[NormName], list[Role]]:
        decided = roles(tree, matrices)
        names: list[NormName] = [_norm_of(role, norms or {}) for role in decided]
        left = [
            role if name == "spectral" else role._replace(numbers=None)
            for role, name in zip(decided, names, strict=True)
        ]
        return names, left

    def init(params: Tree) -> optax.EmptyState:
        _, left = chosen(params)
        # optax.tree_map_params initializes with a tree without leaves, and `partition` masks some.
        if left and not is_masked(params):
            _check_patterns(norms or {}, left)
        with passing_on(left, params):
            spectral.init(params)
        return optax.EmptyState()

    def update(
        updates: Tree, state: State, params: Tree = None, **extra: object
    ) -> tuple[Tree, optax.EmptyState]:
        names, left = chosen(updates)
        with passing_on(left, updates):
            updates, _ = spectral.update(updates, optax.EmptyState(), params, **extra)
        leaves, treedef = jax.tree.flatten(updates)
        moved = [
            x if name == "spectral" else _extreme(NORMS[name], jnp.asarray(x))
            for x, name in zip(leaves, names, strict=True)
        ]
        return treedef.unflatten(moved), state

    return optax.GradientTransformationExtraArgs(init, update)


def _extreme(function: Callable[[Array], Array], x: Array) -> Array:
    """The extreme point in the dtype of ``x``; of a scalar its sign."""
    wide = x.astype(wide_dtype(x.dtype))
    return (function(wide) if x.ndim else jnp.sign(wide)).astype(x.dtype)


def _norm_of(role: Role, norms: Mapping[str, NormName]) -> NormName:
    """The norm of a parameter."""
    for pattern, name in norms.items():
        if re.search(pattern, role.path):
            fits = role.numbers is not None if name == "spectral" else _fits(name, role)
            if not fits:
                raise ValueError(
                    f"norms={{{pattern!r}: {name!r}}} does not fit parameter {role.path!r} of "
                    f"shape {role.shape}: 'spectral' is for matrices, 'row' for rank 2 or more"
                )
            return name
    if role.numbers is not None:
        return "spectral"
    is_head = role.why == "names an output head" and len(role.shape) > 1
    return "sign" if is_head else "rms"


def _fits(name: str, role: Role) -> bool:
    """Whether an array has the axes that a norm needs."""
    return name != "row" or len(role.shape) > 1


def _check_patterns(norms: Mapping[str, NormName], decided: list[Role]) -> None:
    """Raises if a pattern does not match any parameter."""
    for pattern in norms:
        if not any(re.search(pattern, role.path) for role in decided):
            paths = ", ".join(role.path for role in decided)
            raise ValueError(
                f"norms={{{pattern!r}: ...}} does not match any parameter; they are {paths}"
            )
