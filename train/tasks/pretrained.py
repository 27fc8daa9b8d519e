"""The weights that a language model starts from: of another run, or of a published model."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PRNGKeyArray

from models import gpt2, qwen3
from models.weights import read_json
from train import run_directory
from train.errors import BadInput, require
from train.task import Init, Tree
from train.tasks.decoders import Architecture, published
from train.warm_start import is_run, weights_of_run

if TYPE_CHECKING:
    from train.tasks.language_model import LanguageModel


def architecture_of(folder: Path) -> Architecture:
    """The architecture of the model in a run directory or Hugging Face folder."""
    if is_run(folder):
        config = run_directory.read_config(folder)
        model = getattr(config, "model", None)
        if not isinstance(model, Architecture):
            raise BadInput(
                f"pretrained={folder} is a run of {type(config).__name__}, and this is a run of "
                "LanguageModel; use the folder of another run"
            )
        return model
    try:
        is_gpt2 = read_json(folder / "config.json").get("model_type") == "gpt2"
        return gpt2.read_config(folder) if is_gpt2 else qwen3.read_config(folder)
    except ValueError as error:
        raise _unusable(folder, error) from error


def weights(
    config: "LanguageModel", init: Init, like: tuple[Tree, Tree], key: PRNGKeyArray
) -> tuple[Tree, Tree]:
    """`params` as float32 and `model_state` of `config.pretrained`; see `Task.pretrained`.

    Each device reads its own part.
    """
    assert config.pretrained is not None
    require_equal(config.pretrained, architecture_of(config.pretrained), config.model)
    if is_run(config.pretrained):
        return weights_of_run(config, init, like, key)
    shardings = jax.tree.map(lambda x: x.sharding, like)
    kind: Any = published(config.model)
    try:
        found = kind.load(
            config.pretrained, param_dtype=jnp.float32, shardings=lambda _: shardings[0]
        )
    except ValueError as error:
        raise _unusable(config.pretrained, error) from error
    model_state = jax.jit(lambda key: init(key)[1], out_shardings=shardings[1])(key)
    return nnx.to_pure_dict(nnx.state(found, nnx.Param)), model_state


def require_equal(
    folder: Path, found: Architecture, model: Any, *, fields: Iterable[str] | None = None
) -> None:
    """Refuses a folder of another architecture; the range of the initial values may differ."""
    names = [field.name for field in dataclasses.fields(found)] if fields is None else [*fields]
    require(
        fields is not None or type(found) is type(model),
        f"pretrained={folder} has a {_kind(found)}, and the run a {_kind(model)}; use another "
        "preset, or choose another folder",
    )
    for name in names:
        theirs, ours = getattr(found, name, None), getattr(model, name)
        option = f"--model.{name.replace('_', '-')}"
        require(
            theirs == ours or name == "initializer_range",
            f"pretrained={folder} has {name}={theirs} and the run has {ours}; leave out {option}, "
            "or choose another folder",
        )


def _kind(model: Any) -> str:
    """The name of an architecture."""
    return type(model).__name__.removesuffix("Config")


def _unusable(folder: Path, error: ValueError) -> BadInput:
    """The error for a folder whose model cannot be built."""
    return BadInput(f"pretrained={folder} cannot be used: {error}")
