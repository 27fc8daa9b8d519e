"""`--config FILE`: the options of a run from a file, such as the config.json of another run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.config import Config
from train.config_json import from_json, to_json
from train.earlier_releases import upgraded
from train.errors import BadInput
from train.integrity import read_json
from train.optimizers import Optimizer


def configured(path: Path, default: Config, optimizers: Mapping[str, Optimizer]) -> Config:
    """The configuration in a file.

    Args:
        path: the config.json of a run directory, or JSON of the same fields, which may leave out
            any: `{"steps": 500, "optimizer": {"type": "Muon", "learning_rate": 0.03}}`.
        default: where the fields that the file leaves out come from.
        optimizers: where those of its optimizer come from, if the default has another one.

    Raises:
        BadInput: the file is unreadable, or a field of it unknown or of another type; the message
            names both.
    """
    try:
        stored = read_json(path, dict)
    except (OSError, ValueError) as error:
        raise BadInput(f"--config {path} cannot be read: {error}") from error
    try:
        if isinstance(stored.get("config"), dict):  # of a run directory
            stored = upgraded(stored["config"])
        bases = {type(tuned).__name__: to_json(tuned) for tuned in optimizers.values()}
        fields = _over(to_json(default), stored, bases)
        return from_json(type(default), fields | {"preset": default.preset})
    except (BadInput, ValueError) as error:
        raise BadInput(f"--config {path}: {error}") from error


def _over(base: dict[str, Any], fields: dict[str, Any], bases: Mapping[str, Any]) -> dict[str, Any]:
    """The fields over those of the base, at any depth; objects of another type stand alone."""
    merged = dict(base)
    for name, value in fields.items():
        below = base.get(name)
        if isinstance(value, dict) and isinstance(below, dict):
            kind = value.get("type", below.get("type"))
            below = below if kind == below.get("type") else bases.get(str(kind), {})
            value = _over(below, value, bases)
        merged[name] = value
    return merged
