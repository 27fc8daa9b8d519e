"""Which parameter is a matrix, and along which axes.

A parameter of any rank is a batch of matrices ``[reduction, output]``: the axes that
``optax.contrib.MuonDimensionNumbers`` names are merged into these two, all others are batch axes
(scanned layers, experts, heads). ``None`` instead of dimension numbers means auxiliary.
"""

import re
from collections.abc import Hashable
from typing import NamedTuple

import jax
import optax
from optax.contrib import MuonDimensionNumbers

from mimuon_jax.types import Matrices, Tree

_EMBEDDING = {"embed", "embeds", "embedder", "embedding", "embeddings", "emb", "wte", "wpe"}
_HEAD = {"logit", "logits", "logitdense", "unembed", "unembedding"}
_NORM = {"bn", "gn", "ln", "norms", "normalization"}
_BIAS = {"bias", "biases"}
_GAIN = {"scale", "scales", "gain", "gains", "gamma", "beta"}
_UNKNOWN = "unknown"


class Role(NamedTuple):
    """What one parameter is to the optimizer."""

    path: str  # "layers/attention/query/kernel"
    shape: tuple[int, ...]
    numbers: MuonDimensionNumbers | None  # None: auxiliary
    why: str


def roles(params: Tree, matrices: Matrices = None) -> list[Role]:
    """Decides for every array of ``params``, in flattening order, whether it is a matrix.

    Args:
      params: pytree of arrays (or of anything with a shape). Absent leaves (``None``,
        ``optax.MaskedNode``) are no leaves and are left out.
      matrices: dimension numbers (tree, prefix tree or ``params -> tree``, with ``None`` for
        auxiliary). What has no entry follows the default rule; None: all of it. A function is
        called once per tree structure and shapes, and not again for a masked part of a tree.

    Returns:
      One `Role` an array.

    Raises:
      ValueError: an array that its numbers do not fit, or that has none and that the default
        rule cannot place; the message names its path and shape.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax.transforms.roles import roles
      >>> [role.why for role in roles({"embed": jnp.ones((9, 4)), "up": jnp.ones((4, 8))})]
      ['names an embedding', 'matrix']
    """
    leaves, treedef = jax.tree.flatten(params)
    key = treedef, tuple(tuple(leaf.shape) for leaf in leaves), _identity(matrices)
    try:
        known = _DECIDED.get(key)
    except TypeError:  # a structure or an entry that cannot be hashed
        return _decide(params, matrices)
    if known is None:
        decided = _of_whole_tree(params, matrices)
        decided = _decide(params, matrices) if decided is None else decided
        known = _Decision(decided, matrices, is_whole=not _is_masked(params))
        while len(_DECIDED) >= _REMEMBERED:
            _DECIDED.pop(next(iter(_DECIDED)), None)
        _DECIDED[key] = known
    return list(known.roles)


class _Decision(NamedTuple):
    """The roles of one tree, and what they were decided by."""

    roles: list[Role]
    matrices: Matrices  # held, so that the id of a function stays its own
    is_whole: bool  # whether no leaf is masked


# Decided once per tree structure, shapes and `matrices`: the pieces of a chain cannot disagree. The
# oldest decisions are dropped first.
_DECIDED: dict[Hashable, _Decision] = {}
_REMEMBERED = 128


def _identity(matrices: Matrices) -> Hashable:
    """A key that tells one ``matrices`` from another: a function by itself, a tree by content."""
    if callable(matrices):
        return id(matrices)
    entries, treedef = jax.tree.flatten(matrices, is_leaf=_is_entry)
    return treedef, tuple(entries)


def _is_masked(tree: Tree) -> bool:
    """Whether some leaves are masked: the other side's within `partition` and ``optax.masked``."""
    is_mask = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
    return any(map(is_mask, jax.tree.leaves(tree, is_leaf=is_mask)))


def _of_whole_tree(params: Tree, matrices: Matrices) -> list[Role] | None:
    """What a function decided for the whole tree of which ``params`` is the unmasked part."""
    if not callable(matrices) or not _is_masked(params):
        return None
    leaves = [("/".join(names), shape) for names, shape in _arrays(params)]
    for decision in reversed(list(_DECIDED.values())):
        if decision.matrices is matrices and decision.is_whole:
            whole = {(role.path, role.shape): role for role in decision.roles}
            if all(leaf in whole for leaf in leaves):
                return [whole[leaf] for leaf in leaves]
    return None


def _decide(params: Tree, matrices: Matrices) -> list[Role]:
    """`roles`, without memory."""
    given = _given(params, matrices)
    decided = [_as_given(_by_name(names, shape), names, given) for names, shape in _arrays(params)]
    _check_decided(decided)
    return decided


def _arrays(params: Tree) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
    """Names and shape of every array, in flattening order."""
    entries, _ = jax.tree_util.tree_flatten_with_path(params)
    return [(_names(path), tuple(leaf.shape)) for path, leaf in entries]


def check_every_entry_is_used(params: Tree, matrices: Matrices) -> None:
    """Raises if ``matrices`` has an entry for a parameter that ``params`` does not hold."""
    leaves = [_names(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    for names in _given(params, matrices):
        if not any(leaf[: len(names)] == names for leaf in leaves):
            raise ValueError(
                f"`matrices` has an entry for {'/'.join(names)!r}, which is no parameter; "
                f"the parameters are {', '.join(map('/'.join, leaves))}"
            )


def _names(path: tuple) -> tuple[str, ...]:
    """Key path as names; the ``value`` that ``nnx.State`` puts at the end is no name."""
    names = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
    return names[:-1] if len(names) > 1 and names[-1] == "value" else names


def _given(params: Tree, matrices: Matrices) -> dict[tuple[str, ...], MuonDimensionNumbers | None]:
    """The caller's dimension numbers as ``{names: numbers}``; empty for the default rule."""
    if matrices is None:
        return {}
    entries, _ = jax.tree_util.tree_flatten_with_path(
        matrices(params) if callable(matrices) else matrices, is_leaf=_is_entry
    )
    for path, entry in entries:
        if not _is_entry(entry):
            raise ValueError(
                f"`matrices` holds {entry!r} at {'/'.join(_names(path))!r}; use "
                "optax.contrib.MuonDimensionNumbers(reduction_axis, output_axis), or None for "
                "auxiliary"
            )
    return {_names(path): entry for path, entry in entries}


def _is_entry(x: object) -> bool:
    """Whether ``x`` is a leaf of a tree of dimension numbers."""
    return x is None or isinstance(x, MuonDimensionNumbers)


def _as_given(role: Role, names: tuple[str, ...], given: dict) -> Role:
    """The role that the longest prefix of the path in ``given`` says, else the role as it is."""
    prefixes = [names[:i] for i in range(len(names), -1, -1) if names[:i] in given]
    if not prefixes:
        return role
    numbers = given[prefixes[0]]
    if numbers is None:
        return role._replace(numbers=None, why="given as auxiliary")
    rank = len(role.shape)
    axes = [i for side in numbers for i in ((side,) if isinstance(side, int) else side)]
    fits = all(-rank <= i < rank for i in axes) and 0 not in role.shape
    if not fits or len({i % rank for i in axes}) < max(len(axes), 2):
        raise ValueError(
            f"{numbers} does not fit parameter {role.path!r} of shape {role.shape}: reduction and "
            f"output axes must be disjoint, not empty and within rank {rank}, and no size may be "
            "0; use None to leave it to the auxiliary transformation"
        )
    return role._replace(numbers=numbers, why="given as matrix")


def _check_decided(decided: list[Role]) -> None:
    """Raises if neither the given numbers nor the default rule place a parameter."""
    unknown = [role for role in decided if role.why == _UNKNOWN]
    if not unknown:
        return
    first, others = unknown[0], ", ".join(role.path for role in unknown[1:])
    entry = "MuonDimensionNumbers(reduction_axis=1, output_axis=2)"
    for name in reversed(first.path.split("/")):
        entry = f"{{{name!r}: {entry}}}"
    raise ValueError(
        f"parameter {first.path!r} of shape {first.shape} has rank {len(first.shape)} and is no "
        "convolution by its name, so its matrix axes are unknown"
        + (f" (so are those of {others})" if others else "")
        + f"; say them with optax.contrib.MuonDimensionNumbers, for example matrices={entry} "
        "(all other axes are batch axes), or None instead of them for auxiliary"
    )


def _by_name(names: tuple[str, ...], shape: tuple[int, ...]) -> Role:
    """The default rule for one parameter; ``why`` is `_UNKNOWN` where it does not decide."""
    path, rank, named = "/".join(names), len(shape), _named(names)
    if rank < 2:
        return Role(path, shape, None, "vector" if rank else "scalar")
    if named:
        return Role(path, shape, None, f"names {named}")
    if 0 in shape:
        return Role(path, shape, None, "empty")
    if rank == 2:
        return Role(path, shape, MuonDimensionNumbers(0, 1), "matrix")
    if rank in (3, 4) and any(word.startswith("conv") for name in names for word in _words(name)):
        if shape[-2] == 1:
            return Role(path, shape, None, "depthwise convolution")
        numbers = MuonDimensionNumbers(tuple(range(rank - 1)), rank - 1)
        return Role(path, shape, numbers, "convolution")
    return Role(path, shape, None, _UNKNOWN)


def _named(names: tuple[str, ...]) -> str | None:
    """What auxiliary thing the path names, as Flax linen and nnx write names."""
    for name in names:
        words = _words(name)
        if _EMBEDDING & set(words):
            return "an embedding"
        # "head", "lm_head", "Head_0", but neither "heads" nor "multi_head"
        ends_in_head = words[-1:] == ["head"] and not {"multi", "attention", "attn"} & set(words)
        if ends_in_head or _HEAD & set(words):
            return "an output head"
        if any(word in _NORM or word.endswith("norm") for word in words):
            return "a norm"
    last = set(_words(names[-1])) if names else set()
    return "a bias" if last & _BIAS else "a gain" if last & _GAIN else None


def _words(name: str) -> list[str]:
    """``"LayerNorm_0"`` -> ``["layer", "norm"]``, ``"lm_head"`` -> ``["lm", "head"]``."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
