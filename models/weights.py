"""Folders of safetensors, read and written through a table of names.

Such a folder, as the Hugging Face libraries use it, holds `config.json` and the weights in
`model.safetensors`, or in several files that `model.safetensors.index.json` lists.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from jax.typing import DTypeLike
from jaxtyping import Array
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

Tree = Any  # nested dicts of arrays, or of their shapes
Tensors = Mapping[str, Any]  # what `safe_open` gives to be sliced: nothing is read before

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Weight(NamedTuple):
    """A row of the table: a parameter of a model, and the tensor or tensors of a folder."""

    name: str  # with "{layer}": one tensor a layer, stacked along the first axis of the parameter
    path: str  # of the parameter: "layers/mlp/up/kernel"
    transposed: bool = False  # PyTorch's linear layers keep [output, reduction]

    def names(self, shape: tuple[int, ...]) -> list[str]:
        """Names of the tensors that make a parameter of this shape."""
        layers = shape[0] if self.stacked else 1
        return [self.name.format(layer=layer) for layer in range(layers)]

    @property
    def stacked(self) -> bool:
        """Whether there is one tensor a layer."""
        return "{layer}" in self.name


def read(
    folder: Path | str,
    table: Sequence[Weight],
    like: Tree,
    *,
    dtype: DTypeLike | None = None,
    shardings: Callable[[Tree], Tree] | None = None,
    copies: Mapping[str, str] | None = None,
) -> Tree:
    """Reads parameters from a folder of safetensors, each device's part alone.

    Args:
        folder: where `model.safetensors` or `model.safetensors.index.json` lies.
        table: which tensors make which parameter; rows of parameters that `like` lacks are idle.
        like: nested dicts of `jax.ShapeDtypeStruct`, of which the shapes count.
        dtype: to cast to. None: as in the folder.
        shardings: from `like` to a tree of `jax.sharding.Sharding`. None: all on one device.
        copies: tensors that the folder may have beside, `{name: of which it is a copy}`.

    Returns:
        Arrays in the structure of `like`. Beside them no more is held than the part of one of them
        that goes to one device, and one layer of it.

    Raises:
        ValueError: the folder is incomplete or damaged, tensors are missing or left over or have
            another shape (all of them are named), or a dtype is no float or differs among layers.
    """
    layout = None if shardings is None else dict(_flat(shardings(like)))
    rows = {weight.path: weight for weight in table}
    alone = SingleDeviceSharding(jax.local_devices()[0])
    with contextlib.ExitStack() as stack:
        tensors = _open(Path(folder), stack)
        _check(folder, tensors, table, dict(_flat(like)), copies or {})

        def parameter(path: tuple, leaf: jax.ShapeDtypeStruct) -> Array:
            name = _name(path)
            sharding = layout[name] if layout else alone
            part = _reader(rows[name], tensors, leaf.shape, dtype)
            # Finished one by one, so that the host holds the source of one of them only.
            array = jax.make_array_from_callback(leaf.shape, sharding, part)
            return jax.block_until_ready(array)

        return jax.tree_util.tree_map_with_path(parameter, like)


def write(
    folder: Path | str,
    table: Sequence[Weight],
    params: Tree,
    *,
    config: Mapping[str, Any],
    dtype: DTypeLike | None = None,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes parameters and `config.json` as a new folder, which appears when it is complete.

    Args:
        folder: to be made; its parents too.
        table: which tensors each parameter makes.
        params: nested dicts of arrays.
        config: what `config.json` says.
        dtype: to cast to. None: as the parameters are.
        shard_bytes: most bytes of weights in one file, unless a single tensor is larger; also the
            memory that writing needs.

    Raises:
        ValueError: the folder exists, or a parameter is spread over several processes.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists; name a folder that does not, or remove it")
    flat = dict(_flat(params))
    remote = [path for path, leaf in flat.items() if not getattr(leaf, "is_fully_addressable", 1)]
    if remote:
        raise ValueError(
            f"{', '.join(remote)} are spread over several processes; restore the checkpoint in "
            f"one process and write from there"
        )
    rows = [weight for weight in table if weight.path in flat]
    sizes = {name: size for row in rows for name, size in _sizes(row, flat[row.path], dtype)}
    files = _assign(sizes, shard_bytes)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        shard: dict[str, np.ndarray] = {}
        for name, tensor in _tensors(rows, flat, dtype):
            shard[name] = tensor
            file = files[name]
            if len(shard) == sum(other == file for other in files.values()):
                save_file(shard, partial / file, metadata={"format": "pt"})
                shard = {}
        if len(set(files.values())) > 1:
            index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": files}
            (partial / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        (partial / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n")
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial)
        raise


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file, or one line on why there is none."""
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{file} cannot be read as a JSON object: {error}") from None


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
    missing = [file for file in files if not (folder / file).exists()]
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}, which {INDEX} lists")
    tensors = {}
    for file in files:
        try:
            handle = stack.enter_context(safe_open(folder / file, framework="np"))
        except SafetensorError as error:
            raise ValueError(f"{folder / file} is damaged or cut short: {error}") from None
        tensors |= {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
    return tensors


def _check(
    folder: Path | str,
    tensors: Tensors,
    table: Sequence[Weight],
    like: Mapping[str, Any],
    copies: Mapping[str, str],
) -> None:
    """Refuses a folder whose tensors are not those of the table, naming every one that differs."""
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
        f"{name} is no copy of {copies[name]}" for name in sorted(beside & copies.keys() - copied)
    ]
    problems += [
        f"{name} is {tensors[name].get_shape()} and should be {shape}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].get_shape() != shape
    ]
    if problems:
        raise ValueError(
            f"the weights in {folder} are not those of this configuration: {'; '.join(problems)}"
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


def _tensors(
    rows: Sequence[Weight], flat: Mapping[str, Any], dtype: DTypeLike | None
) -> Iterator[tuple[str, np.ndarray]]:
    """Each tensor of a folder, row by row."""
    for weight in rows:
        host = np.asarray(flat[weight.path])
        target = host.dtype if dtype is None else jnp.dtype(dtype)
        for layer, name in enumerate(weight.names(host.shape)):
            one = host[layer] if weight.stacked else host
            one = one.T if weight.transposed else one
            yield name, np.ascontiguousarray(one, target)


def _sizes(weight: Weight, leaf: Any, dtype: DTypeLike | None) -> Iterator[tuple[str, int]]:
    """The tensors of a parameter with their bytes."""
    names = weight.names(leaf.shape)
    bytes_each = jnp.dtype(dtype or leaf.dtype).itemsize
    return ((name, leaf.size // len(names) * bytes_each) for name in names)


def _assign(sizes: Mapping[str, int], shard_bytes: int) -> dict[str, str]:
    """The file of each tensor: the next one as soon as the present one would be too large."""
    number, filled = 0, 0
    numbers = {}
    for name, size in sizes.items():
        if filled and filled + size > shard_bytes:
            number, filled = number + 1, 0
        numbers[name], filled = number, filled + size
    if number == 0:
        return dict.fromkeys(numbers, SINGLE)
    return {name: f"model-{n + 1:05}-of-{number + 1:05}.safetensors" for name, n in numbers.items()}


def _flat(tree: Tree) -> Iterator[tuple[str, Any]]:
    """Leaves with their paths."""
    return ((_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree))


def _name(path: tuple) -> str:
    """A path as `layers/mlp/up/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
