"""The table from the names in a folder to the parameters of a model."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Tree = Any  # nested dicts of arrays, or of their shapes

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Weight(NamedTuple):
    """A row of the table: a parameter of a model, and the tensor or tensors of a folder."""

    name: str  # with "{layer}": one tensor per layer, stacked along the first axis of the parameter
    path: str  # of the parameter: "layers/mlp/up/kernel"
    transposed: bool = False  # PyTorch's linear layers keep [output, reduction]

    def names(self, shape: tuple[int, ...]) -> list[str]:
        """Names of the tensors that make a parameter of this shape."""
        layers = shape[0] if self.stacked else 1
        return [self.name.format(layer=layer) for layer in range(layers)]

    @property
    def stacked(self) -> bool:
        """Whether there is one tensor per layer."""
        return "{layer}" in self.name


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; an error of one line if there is none."""
    if file.exists() and not file.is_file():  # a named pipe would be waited for
        raise ValueError(f"{file} is not a file")
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{file} cannot be read as a JSON object: {error}") from None


def check_float(dtype: DTypeLike | None) -> None:
    """Refuses a dtype that is not a float."""
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"weights cannot be cast to {jnp.dtype(dtype)}; use a float, or None")


def flat(tree: Tree) -> Iterator[tuple[str, Any]]:
    """Leaves with their paths."""
    return ((path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree))


def path_name(path: tuple) -> str:
    """A path as `layers/mlp/up/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
