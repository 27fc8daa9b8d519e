"""The argument ``matrices``: the forms in which a caller gives dimension numbers.

It is a tree or prefix tree of entries, or a function ``params -> tree``. An entry is
``optax.contrib.MuonDimensionNumbers``, None (auxiliary), ``"default"`` (apply the default rule), or
a `Role`, as in the trees that `roles_of` returns.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import optax

from mimuon_jax.types import Matrices, MuonDimensionNumbers, Tree

Names: TypeAlias = tuple[str, ...]


class Role(NamedTuple):
    """The role of one parameter, and why it has it."""

    path: str  # "layers/attention/query/kernel"
    shape: tuple[int, ...]
    numbers: MuonDimensionNumbers | None  # None: auxiliary, or undecided
    why: str
    rule: str = "name"  # which rule decided: "name", "type" or "given"; else "undecided"


def by_path(
    patterns: Mapping[str, MuonDimensionNumbers | Literal["default"] | None],
    otherwise: Matrices = None,
) -> Callable[[Tree], Tree]:
    r"""Dimension numbers by regular expressions on paths, for the argument ``matrices``.

    Args:
      patterns: ``{regular expression: entry}``: the first expression that matches anywhere in a
        path (``"layers/attention/query/kernel"``) decides. An entry is dimension numbers, None for
        auxiliary, or ``"default"`` for the default rule.
      otherwise: ``matrices`` in any form, for the paths that no pattern matches: None for the
        default rule, or the result of `roles_of`.

    Returns:
      A function ``params -> tree`` to pass as ``matrices``.

    Raises:
      ValueError: an entry or a regular expression is not valid. When the function is called: a
        pattern does not match any parameter (not checked if some parameters are masked).

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import by_path, describe
      >>> from optax.contrib import MuonDimensionNumbers
      >>> params = {"attention": {"key": jnp.ones((32, 4, 8))}, "mlp": jnp.ones((4, 8))}
      >>> print(describe(params, by_path({r"attention/(query|key|value)":
      ...                                 MuonDimensionNumbers(0, (1, 2))})))
      parameter      shape       goes to       why              rule
      attention/key  (32, 4, 8)  1 x [32, 32]  given as matrix  given
      mlp            (4, 8)      1 x [4, 8]    matrix           name
      2 of 2 parameters are matrices, 1,056 of 1,056 numbers
    """
    for pattern, entry in patterns.items():
        if not is_entry(entry):
            raise ValueError(_not_an_entry(entry, pattern))
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"by_path: {pattern!r} is not a regular expression: {error}") from None

    def matrices(params: Tree) -> Tree:
        entries: dict[Names, Any] = entries_of(params, otherwise)
        names = [name for name, leaf in named_leaves(params) if not is_absent(leaf)]
        found = set()
        for name in names:
            path = "/".join(name)
            pattern = next((p for p in patterns if re.search(p, path)), None)
            if pattern is not None:
                found.add(pattern)
                entries[name] = patterns[pattern]
        missing = [pattern for pattern in patterns if pattern not in found]
        if missing and names and not is_masked(params):
            raise ValueError(
                f"by_path: {missing[0]!r} does not match any parameter, or only parameters that an "
                f"earlier pattern matches; the parameters are {', '.join(map('/'.join, names))}"
            )
        return nested(entries)

    return matrices


def entries_of(params: Tree, matrices: Matrices) -> dict[Names, Any]:
    """The caller's entries as ``{names: entry}``; empty for the default rule."""
    if matrices is None:
        return {}
    if is_function(matrices):
        matrices = matrices(as_scalars(params))
        if matrices is None:
            raise ValueError(
                "`matrices` is a function that returned None; return a tree of entries, in which "
                "None means auxiliary; {} is the default rule for all parameters"
            )
    found = named_leaves(matrices, is_entry)
    for names, entry in found:
        if not is_entry(entry):
            raise ValueError(_not_an_entry(entry, "/".join(names)))
    return dict(found)


def unused_entries(params: Tree, entries: Mapping[Names, Any]) -> list[Names]:
    """The entries that do not belong to any parameter; not checked if some are masked.

    Under ``optax.masked`` and ``optax.multi_transform`` the parameters of the other side are
    masked, and an entry for one of them is not an error. Neither is an entry for an absent
    parameter (None), nor one from `roles_of`, which covers the whole model.
    """
    leaves = named_leaves(params)
    if is_masked(params) or all(is_absent(leaf) for _, leaf in leaves):
        return []
    return [
        names
        for names, entry in entries.items()
        if not isinstance(entry, Role)
        and not any(leaf[: len(names)] == names for leaf, _ in leaves)
    ]


def named_leaves(
    tree: Tree, is_leaf: Callable[[Any], bool] | None = None
) -> list[tuple[Names, Any]]:
    """``(names, leaf)`` of every leaf in flattening order, including absent ones (None, masked).

    The attribute in which a wrapper keeps its array (``value`` of nnx and linen, ``array`` of
    Haliax, ``qvalue`` of Qwix) is left out of the names.
    """
    entries, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf or is_absent)
    paths = [path for path, _ in entries]
    # Leaves of one parent are adjacent: a leaf is alone if neither neighbor has its parent.
    around = zip([(), *paths[:-1]], [*paths[1:], ()], strict=True) if paths else ()
    return [
        (_names(path, is_alone=path[:-1] not in (one[: len(path) - 1], two[: len(path) - 1])), leaf)
        for (path, leaf), (one, two) in zip(entries, around, strict=True)
    ]


def as_scalars(params: Tree) -> Tree:
    """The parameters with scalars for masked ones, for functions that look them up by name."""
    scalar = jax.ShapeDtypeStruct((), "float32")
    return jax.tree.map(lambda x: scalar if is_mask(x) else x, params, is_leaf=is_mask)


def is_absent(x: Any) -> bool:
    """Whether a leaf stands for an absent parameter."""
    return x is None or is_mask(x)


def is_mask(x: Any) -> bool:
    """Whether optax masked a leaf."""
    return isinstance(x, optax.MaskedNode)


def is_masked(tree: Tree) -> bool:
    """Whether some leaves are masked, as the other side's are in ``optax.partition``."""
    return any(map(is_mask, jax.tree.leaves(tree, is_leaf=is_mask)))


def is_function(matrices: Matrices) -> bool:
    """Whether to call ``matrices``: an Equinox module is callable, but is a tree of entries."""
    is_one = isinstance(matrices, functools.partial) or jax.tree_util.all_leaves([matrices])
    return callable(matrices) and is_one


def is_entry(x: Any) -> bool:
    """Whether ``x`` is a leaf of a tree of entries."""
    is_default = isinstance(x, str) and x == "default"
    return x is None or is_default or isinstance(x, MuonDimensionNumbers | Role)


def nested(entries: Mapping[Names, Any]) -> Tree:
    """Nested dictionaries of entries; an entry below another entry is left out."""
    tree: dict[str, Any] = {}
    for names, entry in sorted(entries.items(), key=lambda item: len(item[0])):
        if not names:
            return entry
        node = tree
        for name in names[:-1]:
            node = node.setdefault(name, {}) if isinstance(node, dict) else node
        if isinstance(node, dict):
            node.setdefault(names[-1], entry)
    return tree


def _names(path: Sequence[Any], is_alone: bool) -> Names:
    """The names of a key path; ``is_alone``: the leaf is the only one of its parent."""
    names = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
    if is_alone and len(names) > 1 and _is_of_wrapper(path[-1], names[-1]):
        names = names[:-1]
    if len(names) > 1 and names[-1] == "qvalue":  # next to its scale
        names = names[:-2] if names[-2] == "array" and len(names) > 2 else names[:-1]
    return names


def _is_of_wrapper(key: Any, name: str) -> bool:
    """Whether a key is that under which a wrapper of a single array keeps it."""
    if isinstance(key, jax.tree_util.FlattenedIndexKey):  # without names, as in Haliax 1.3
        return True
    return isinstance(key, jax.tree_util.GetAttrKey) and name in ("value", "array")


def _not_an_entry(entry: Any, place: str) -> str:
    """The error message for an invalid entry."""
    shape = getattr(entry, "shape", None)
    what = repr(entry) if shape is None else f"an array of shape {tuple(shape)}"
    return (
        f"`matrices` holds {what} at {place!r}; use "
        if place
        else f"`matrices` is {what}; it is a tree or a function of the parameters; its leaves are "
    ) + (
        "optax.contrib.MuonDimensionNumbers(reduction_axis, output_axis), None for auxiliary or "
        '"default" for the default rule'
    )
