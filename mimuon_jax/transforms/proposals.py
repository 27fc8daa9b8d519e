"""The error for parameters whose matrix axes are unknown, and the axes that it proposes.

Axes are proposed only if the name and the shape leave a single reading, because wrong axes would
run without an error.
"""

import re
from collections.abc import Sequence

from mimuon_jax.transforms.naming import (
    dimensions_of,
    is_convolution,
    owner_and_own,
    words_of,
)
from mimuon_jax.types import MuonDimensionNumbers

_ANY = "MuonDimensionNumbers(reduction_axis=..., output_axis=...)"


def undecided_message(unknown: Sequence[tuple[tuple[str, ...], tuple[int, ...]]]) -> str:
    """The error message for parameters ``(names, shape)`` that the rule by name cannot decide."""
    names, shape = unknown[0]
    others = ", ".join("/".join(more) for more, _ in unknown[1:])
    numbers = proposal(names, shape)
    entry = str(_ANY if numbers is None else numbers)
    for name in reversed(names):
        entry = f"{{{name!r}: {entry}}}"
    reading = (
        "the reduction axes are those summed over in the layer, the output axes those of its "
        "result, and all others are batch axes (stacked layers, experts)"
        if numbers is None
        else "all other axes are batch axes"
    )
    return (
        f"parameter {'/'.join(names)!r} of shape {shape} has rank {len(shape)}, and its name does "
        "not tell which axes make a matrix, so they are unknown"
        + (f" (so are those of {others})" if others else "")
        + f"; give them with optax.contrib.MuonDimensionNumbers, {_as_example(entry, numbers)} "
        f"({reading}), or None instead of them for auxiliary. mimuon_jax.roles_of(model) reads "
        "them from the modules of Flax and Equinox, and mimuon_jax.by_path takes patterns of paths"
    )


def _as_example(entry: str, numbers: MuonDimensionNumbers | None) -> str:
    """The entry as an example if it has dimension numbers, else as a form to fill in."""
    return f"for example matrices={entry}" if numbers else f"in the form matrices={entry}"


def proposal(names: Sequence[str], shape: Sequence[int]) -> MuonDimensionNumbers | None:
    """Dimension numbers of an array of rank 3 or more, if there is a single reading.

    Args:
      names: the keys on the path to the parameter.
      shape: shape of the array.

    Returns:
      Dimension numbers to propose, or None if several readings are possible.

    Example:
      >>> from mimuon_jax.transforms.proposals import proposal
      >>> proposal(("attention", "key", "kernel"), (32, 4, 8))
      MuonDimensionNumbers(reduction_axis=0, output_axis=(1, 2))
      >>> proposal(("Dense_0", "kernel"), (6, 64, 256))
      MuonDimensionNumbers(reduction_axis=1, output_axis=2)
      >>> proposal(("mlp", "kernel"), (6, 64, 256)) is None
      True
    """
    rank, (owner, own) = len(shape), owner_and_own(names)
    if is_convolution(owner) and own in ("kernel", "w"):
        return _stacked_convolution(owner, rank)
    if rank != 3:
        return None
    if re.fullmatch(r"(query|key|value|[qkv])(_?proj)?", owner) and shape[0] == shape[1] * shape[2]:
        return MuonDimensionNumbers(0, (1, 2))  # [features, heads, head size]
    if (
        re.fullmatch(r"(out|o|attention_output)(_?proj)?", owner)
        and shape[0] * shape[1] == shape[2]
    ):
        return MuonDimensionNumbers((0, 1), 2)  # [heads, head size, features]
    is_dense = words_of(owner) in (["dense"], ["linear"]) and own in ("kernel", "w")
    if is_dense or "experts" in (owner, own):
        return MuonDimensionNumbers(1, 2)  # [layers or experts, reduction, output]
    return None


def _stacked_convolution(owner: str, rank: int) -> MuonDimensionNumbers | None:
    """Axes of stacked convolutions whose name states the number of spatial dimensions."""
    dimensions = dimensions_of(owner)
    if dimensions is None or rank < dimensions + 2 or "transpose" in owner.lower():
        return None
    return MuonDimensionNumbers(tuple(range(rank - dimensions - 2, rank - 1)), rank - 1)
