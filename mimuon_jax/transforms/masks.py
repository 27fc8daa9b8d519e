"""Masks: booleans by parameter, as a tree, a prefix tree or a function of the parameters."""

from collections.abc import Callable

import jax
import numpy as np

from mimuon_jax.transforms.given import (
    Names,
    as_scalars,
    is_absent,
    is_function,
    is_mask,
    named_leaves,
)
from mimuon_jax.types import Mask, Tree


def as_mask(name: str, mask: Mask) -> Callable[[Tree], Tree]:
    """The function from parameters to a tree of booleans that a mask means, for `optax.masked`.

    Entries are found by the path of a parameter, so the containers may differ (a plain dictionary
    for an ``nnx.State``). An entry for a module holds for everything below it.

    Args:
      name: of the argument, for errors.
      mask: booleans, as a tree or prefix tree like the parameters or as a function of them.

    Returns:
      A function that raises a ValueError if an entry is not a boolean or does not belong to any
      parameter, or if a parameter has no entry.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax.transforms.masks import as_mask
      >>> params = {"up": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "scale": jnp.ones(2)}
      >>> as_mask("weight_decay_mask", {"up": True})(params)
      Traceback (most recent call last):
      ValueError: weight_decay_mask has no entry for parameter 'scale'; give True or False
    """

    def booleans(params: Tree) -> Tree:
        given = mask(as_scalars(params)) if is_function(mask) else mask
        leaves = named_leaves(params)
        entries = {n: x for n, x in named_leaves(given) if not is_absent(x)}
        for names, entry in entries.items():
            _check(name, names, entry, leaves)
        found = []
        for names, leaf in leaves:
            if not is_absent(leaf):
                prefixes = (names[:i] for i in range(len(names), -1, -1))
                prefix = next((p for p in prefixes if p in entries), None)
                if prefix is None:
                    path = "/".join(names)
                    raise ValueError(
                        f"{name} has no entry for parameter {path!r}; give True or False"
                    )
                found.append(bool(entries[prefix]))
        return jax.tree.structure(params).unflatten(found)

    return booleans


def _check(name: str, names: Names, entry: object, leaves: list[tuple[Names, object]]) -> None:
    """Raises unless an entry is a boolean for some parameter, which may be masked or absent."""
    path = "/".join(names)
    if not isinstance(entry, bool | np.bool_):
        raise ValueError(f"{name} holds {entry!r} at {path!r}; give True or False")
    own = (
        leaf[: len(names)] == names or (is_mask(x) and names[: len(leaf)] == leaf)
        for leaf, x in leaves
    )
    if not any(own):
        parameters = ", ".join("/".join(leaf) for leaf, _ in leaves)
        raise ValueError(
            f"{name} has an entry for {path!r}, which is not a parameter; the parameters are "
            f"{parameters}"
        )
