"""Ordered rules for the paths of a tree: the first pattern that matches the whole path wins."""

import re
from collections.abc import Sequence
from typing import Any, TypeVar

import jax

Value = TypeVar("Value")


def path_of(key_path: tuple[Any, ...]) -> str:
    """The path of a leaf as the rules read it: `layers/mlp/up`."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def first_match(path: str, rules: Sequence[tuple[str, Any]]) -> int | None:
    """Index of the first rule whose pattern matches the whole path, or None."""
    return next((i for i, (pattern, _) in enumerate(rules) if re.fullmatch(pattern, path)), None)


def first_matches(
    tree: Any, rules: Sequence[tuple[str, Value]], *, kind: str, default: tuple[Value, ...] = ()
) -> Any:
    """Gives every leaf of a tree the value of the first rule that matches its path.

    Args:
        tree: any pytree.
        rules: ordered (regular expression, value).
        kind: what the rules define, for errors, such as "sharding".
        default: `(value,)` for leaves that no rule covers; empty: such a leaf is an error.

    Returns:
        A tree of values of the same structure.

    Raises:
        ValueError: a path that no rule covers, or a rule that is never the first match.

    Example:
        >>> first_matches({"head": 0, "bias": 0}, [("head", 3.0)], kind="rate", default=(1.0,))
        {'bias': 1.0, 'head': 3.0}
    """
    used: set[int] = set()
    uncovered: list[str] = []

    def value(key_path: Any, _: Any) -> Value | None:
        path = path_of(key_path)
        first = first_match(path, rules)
        if first is not None:
            used.add(first)
            return rules[first][1]
        if not default:
            uncovered.append(path)
            return None
        return default[0]

    values = jax.tree_util.tree_map_with_path(value, tree)
    if uncovered:
        raise ValueError(
            f"no {kind} rule covers {', '.join(uncovered)}; add a rule for it, or end with one for "
            '".*", which covers all others'
        )
    idle = [pattern for i, (pattern, _) in enumerate(rules) if i not in used]
    if idle:
        raise ValueError(
            f"{kind} rules that are never the first match: {', '.join(idle)}; remove them, or move "
            "them before the rule that shadows them"
        )
    return values
