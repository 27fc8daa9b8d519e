"""Reading: each device's part only, with every name checked."""

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Sharding, SingleDeviceSharding
from jax.typing import DTypeLike
from jaxtyping import Array
from safetensors import SafetensorError, safe_open

from models.weights.table import (
    INDEX,
    SINGLE,
    Tree,
    Weight,
    check_float,
    flat,
    path_name,
    read_json,
)

Tensors = Mapping[str, Any]  # slices of `safe_open`, which read nothing before they are indexed

_NAMED = 3  # differences named in a message
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def read(
    folder: Path | str,
    table: Sequence[Weight],
    like: Tree,
    *,
    dtype: DTypeLike | None = None,
    shardings: Callable[[Tree], Tree] | None = None,
    prefix: str = "",
    copies: Mapping[str, str] | None = None,
    idle: re.Pattern[str] | None = None,
) -> Tree:
    """Reads parameters from a folder of safetensors, each device's part only.

    Args:
        folder: with `model.safetensors` or `model.safetensors.index.json`.
        table: the tensors of each parameter; rows of parameters that `like` lacks are ignored.
        like: nested dicts of `jax.ShapeDtypeStruct`, whose dtypes are ignored.
        dtype: to cast to. None: as in the folder.
        shardings: from `like` to a tree of `jax.sharding.Sharding`. None: all on one device.
        prefix: of names in the table, which the tensors of the folder may lack: transformers
            leaves it out of a model without a head.
        copies: additional tensors that the folder may have, `{name: name of the original}`.
        idle: names of additional tensors that are ignored.

    Returns:
        Arrays in the structure of `like`. Further memory is needed for one part of one array, and
        for one layer of it.

    Raises:
        ValueError: the folder is incomplete or damaged, tensors are missing or left over or have
            another shape (the first are named), a dtype is not a float or differs among layers, or
            `shardings` leaves a parameter out.
    """
    check_float(dtype)
    alone = SingleDeviceSharding(jax.local_devices()[0])
    layout = jax.tree.map(lambda _: alone, like) if shardings is None else shardings(like)
    _check_layout(layout, like)
    rows = {weight.path: weight for weight in table}
    with contextlib.ExitStack() as stack:
        tensors = _with_prefix(_open(Path(folder), stack), prefix, {w.name for w in table})
        if idle is not None:
            tensors = {name: tensor for name, tensor in tensors.items() if not idle.fullmatch(name)}
        _check(folder, tensors, table, dict(flat(like)), copies or {})

        def parameter(path: tuple, leaf: jax.ShapeDtypeStruct, sharding: Sharding) -> Array:
            part = _reader(rows[path_name(path)], tensors, leaf.shape, dtype)
            # Finished one by one, so that the host holds the source of one array at a time.
            array = jax.make_array_from_callback(leaf.shape, sharding, part)
            return jax.block_until_ready(array)

        return jax.tree_util.tree_map_with_path(parameter, like, layout)


def filled(model: nnx.Module, folder: Path | str, table: Sequence[Weight], **options: Any) -> Any:
    """An abstract model, from `nnx.eval_shape`, with the weights in a folder; see `read`."""
    graph, state = nnx.split(model)
    params = read(folder, table, nnx.to_pure_dict(state), **options)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def _open(folder: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Every tensor of the folder by name."""
    if (folder / SINGLE).exists():
        files = [SINGLE]
    elif (folder / INDEX).exists():
        files = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
    else:
        raise ValueError(
            f"{folder} has neither {SINGLE} nor {INDEX}; use a folder that this program or the "
            f"`save_pretrained` of transformers wrote"
        )
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        source = "" if files == [SINGLE] else f", which {INDEX} lists"
        raise ValueError(f"{folder} lacks {', '.join(missing)}{source}")
    tensors = {}
    for file in files:
        try:
            handle = stack.enter_context(safe_open(folder / file, framework="np"))
        except SafetensorError as error:
            raise ValueError(f"{folder / file} is damaged or truncated: {error}") from None
        tensors |= {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
    return tensors


def _with_prefix(tensors: Tensors, prefix: str, known: set[str]) -> Tensors:
    """The tensors by their full names, if all of them lack the prefix."""
    if not prefix or any(name.startswith(prefix) for name in tensors):
        return tensors
    return {name if name in known else prefix + name: tensors[name] for name in tensors}


def _check(
    folder: Path | str,
    tensors: Tensors,
    table: Sequence[Weight],
    like: Mapping[str, Any],
    copies: Mapping[str, str],
) -> None:
    """Refuses a folder whose tensors are not those of the table, naming the first that differ."""
    expected = {}
    for weight in table:
        if weight.path in like:
            shape = like[weight.path].shape
            one = shape[1:] if weight.stacked else shape
            one = one[::-1] if weight.transposed else one
            expected |= {name: list(one) for name in weight.names(shape)}
    beside = tensors.keys() - expected.keys()
    copied = {
        name for name in beside & copies.keys() if _equal(tensors[name], tensors.get(copies[name]))
    }
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} has no parameter" for name in sorted(beside - copies.keys())]
    problems += [
        f"{name} is not a copy of {copies[name]}"
        for name in sorted(beside & copies.keys() - copied)
    ]
    problems += [
        f"{name} is {tensors[name].get_shape()} and should be {shape}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].get_shape() != shape
    ]
    if problems:
        more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise ValueError(
            f"the weights in {folder} are not those of its config.json: "
            f"{'; '.join(problems[:_NAMED])}{more}"
        )


def _check_layout(layout: Tree, like: Tree) -> None:
    """Refuses shardings whose structure is not that of the parameters."""
    given = {name: leaf for name, leaf in flat(layout) if isinstance(leaf, Sharding)}
    expected = dict(flat(like))
    wrong = [*(expected.keys() - given.keys()), *(given.keys() - expected.keys())]
    if wrong:
        raise ValueError(
            f"the shardings have no jax.sharding.Sharding at, or one too many: "
            f"{', '.join(sorted(wrong))}; return a tree like the parameters"
        )


def _equal(one: Any, other: Any, rows: int = 4096) -> bool:
    """Whether two tensors of a folder are the same, a few rows at a time."""
    if other is None or one.get_shape() != other.get_shape():
        return False
    end = one.get_shape()[0]
    pieces = (slice(start, min(start + rows, end)) for start in range(0, end, rows))
    return all(np.array_equal(one[piece], other[piece]) for piece in pieces)


def _reader(
    weight: Weight, tensors: Tensors, shape: tuple[int, ...], dtype: DTypeLike | None
) -> Callable[[Any], np.ndarray]:
    """A function from a part of a parameter, as slices, to its values."""
    names = weight.names(shape)
    kinds = {tensors[name].get_dtype() for name in names}
    if not kinds <= DTYPES.keys() or (dtype is None and len(kinds) > 1):
        raise ValueError(
            f"{weight.name} is stored as {', '.join(sorted(kinds))}; one of {', '.join(DTYPES)} "
            f"can be read, several if they are cast to a dtype"
        )
    target = jnp.dtype(DTYPES[min(kinds)] if dtype is None else dtype)

    def tensor(name: str, index: tuple[slice, ...]) -> np.ndarray:
        part = tensors[name][index[::-1] if weight.transposed else index]
        return (part.T if weight.transposed else part).astype(target, copy=False)

    def part(index: tuple[slice, ...]) -> np.ndarray:
        if not weight.stacked:
            return tensor(names[0], index)
        chosen = names[index[0]]
        sizes = [len(range(*s.indices(n))) for s, n in zip(index[1:], shape[1:], strict=True)]
        stack = np.empty((len(chosen), *sizes), target)
        for row, name in enumerate(chosen):
            stack[row] = tensor(name, index[1:])
        return stack

    return part
