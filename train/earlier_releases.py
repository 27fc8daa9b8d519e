"""Configurations that earlier releases stored, with the fields of this one."""

from collections.abc import Mapping
from typing import Any

from models.qwen3 import RotaryScaling
from train.config_json import to_json

_RENAMED = {"skipped_at_most": "max_skipped_steps"}  # fields of config.json in earlier releases
# Fields that earlier releases did not have: of all configurations, and by type.
_ADDED_TO_ALL = {"precision": "default", "log": [], "pretrained": None}
_ADDED_TO_OPTIMIZERS = {
    "cooldown": None,
    "lookahead": 0.0,
    "lookahead_decay": 0.99,
    "outer_every": None,
}
_ADDED = {
    "ImageData": {"label_noise": 0.0},
    "LanguageModel": {"attention": "auto"},
    "MiMuon": {"relative_to": None},
    "Qwen3Config": {"attention_bias": False, "rope_scaling": to_json(RotaryScaling())},
}


def upgraded(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a configuration of any release, with those that releases since have added."""
    fields = {_RENAMED.get(name, name): value for name, value in config.items()}
    fields = {**_ADDED_TO_ALL, **_ADDED.get(str(fields.get("type")), {}), **fields}
    for name, added in (("data", {}), ("model", {}), ("optimizer", _ADDED_TO_OPTIMIZERS)):
        value = fields.get(name)
        if isinstance(value, dict):
            fields[name] = {**added, **_ADDED.get(str(value.get("type")), {}), **value}
    return fields
