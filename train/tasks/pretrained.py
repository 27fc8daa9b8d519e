"""Folders of published models as the start of a run: their architecture against the run's."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from models.qwen3 import Qwen3Config, read_config
from train.errors import BadInput, require


def published_config(folder: Path | None) -> Qwen3Config:
    """The architecture of the model in a Hugging Face folder."""
    try:
        return read_config(folder or "")
    except ValueError as error:
        raise unusable(folder, error) from error


def unusable(folder: Path | None, error: ValueError) -> BadInput:
    """The error for a folder that is not a Qwen3 which can be built."""
    return BadInput(f"pretrained={folder} cannot be used: {error}")


def require_equal(
    folder: Path | None, found: Qwen3Config, model: Any, *, fields: Iterable[str] | None = None
) -> None:
    """Refuses a folder of another architecture; the range of the initial values may differ."""
    names = [field.name for field in dataclasses.fields(found)] if fields is None else [*fields]
    for name in names:
        theirs, ours = getattr(found, name), getattr(model, name)
        option = f"--model.{name.replace('_', '-')}"
        require(
            theirs == ours or name == "initializer_range",
            f"pretrained={folder} has {name}={theirs} and the run has {ours}; leave out {option}, "
            "or choose another folder",
        )
