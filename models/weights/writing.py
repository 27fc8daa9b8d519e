"""Writing: a folder that appears when it is complete."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from models.weights.table import INDEX, SINGLE, Tree, Weight, check_float, flat


def write(
    folder: Path | str,
    table: Sequence[Weight],
    params: Tree,
    *,
    config: Mapping[str, Any],
    files: Mapping[str, str] | None = None,
    dtype: DTypeLike | None = None,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes parameters and `config.json` as a new folder, which appears when it is complete.

    Args:
        folder: to be made; its parents too.
        table: the tensors of each parameter.
        params: nested dicts of arrays.
        config: the content of `config.json`.
        files: further text files, `{name: content}`.
        dtype: to cast to. None: as the parameters are.
        shard_bytes: most bytes of weights in one file, unless a single tensor is larger; also the
            memory that writing needs.

    Raises:
        ValueError: the folder exists, `dtype` is not a float, or a parameter is sharded over
            several processes.
    """
    folder = Path(folder)
    check_float(dtype)
    if folder.exists():
        raise ValueError(f"{folder} exists; name a folder that does not, or remove it")
    leaves = dict(flat(params))
    remote = [path for path, leaf in leaves.items() if not getattr(leaf, "is_fully_addressable", 1)]
    if remote:
        raise ValueError(
            f"{', '.join(remote)} are sharded over several processes; restore the checkpoint in "
            f"one process and write from there"
        )
    rows = [weight for weight in table if weight.path in leaves]
    sizes = {name: size for row in rows for name, size in _sizes(row, leaves[row.path], dtype)}
    places = _assign(sizes, shard_bytes)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        shard: dict[str, np.ndarray] = {}
        for name, tensor in _tensors(rows, leaves, dtype):
            shard[name] = tensor
            file = places[name]
            if len(shard) == sum(other == file for other in places.values()):
                save_file(shard, partial / file, metadata={"format": "pt"})
                shard = {}
        if len(set(places.values())) > 1:
            index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
            (partial / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        texts = {"config.json": json.dumps(dict(config), indent=2) + "\n", **(files or {})}
        for name, content in texts.items():
            (partial / name).write_text(content, encoding="utf-8")
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial)
        raise


def _tensors(
    rows: Sequence[Weight], leaves: Mapping[str, Any], dtype: DTypeLike | None
) -> Iterator[tuple[str, np.ndarray]]:
    """Each tensor of a folder, row by row."""
    for weight in rows:
        host = np.asarray(leaves[weight.path])
        target = host.dtype if dtype is None else jnp.dtype(dtype)
        for layer, name in enumerate(weight.names(host.shape)):
            one = host[layer] if weight.stacked else host
            one = one.T if weight.transposed else one
            yield name, np.ascontiguousarray(one, target)


def _sizes(weight: Weight, leaf: Any, dtype: DTypeLike | None) -> Iterator[tuple[str, int]]:
    """The names of a parameter's tensors and their sizes in bytes."""
    names = weight.names(leaf.shape)
    bytes_each = jnp.dtype(dtype or leaf.dtype).itemsize
    return ((name, leaf.size // len(names) * bytes_each) for name in names)


def _assign(sizes: Mapping[str, int], shard_bytes: int) -> dict[str, str]:
    """The file of each tensor: a new one as soon as the current one would be too large."""
    number, filled = 0, 0
    numbers = {}
    for name, size in sizes.items():
        if filled and filled + size > shard_bytes:
            number, filled = number + 1, 0
        numbers[name], filled = number, filled + size
    if number == 0:
        return dict.fromkeys(numbers, SINGLE)
    return {name: f"model-{n + 1:05}-of-{number + 1:05}.safetensors" for name, n in numbers.items()}
